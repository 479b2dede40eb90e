# Everything runs in .venv, which the first target that needs it makes.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
# The development set-up pins torch; users may have any torch >= 2.4.
TORCH  ?= torch==2.13.0

.PHONY: setup packages demo test prove check bench format clean
setup: $(VENV)/.ready

$(VENV)/.ready: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --upgrade 'pip>=25.1'
	$(BIN)/python -m pip install --quiet --disable-pip-version-check '$(TORCH)'
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[torch]' --group dev
	touch $@

packages:
	@tests/packages.sh

demo: setup
	$(BIN)/python examples/demo.py $(ARGS)

test: setup packages
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder --durations=25 --durations-min=10 $(ARGS)

# Many more faults than `make test` tries; their number goes into the page.
prove: setup packages
	$(BIN)/python -m pytest -n 2 tests/crash tests/damaged --thorough --figures=docs/promises.md $(ARGS)

check: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

format: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# Its results go into docs/performance.md with ARGS="--write docs/performance.md".
bench: setup packages
	$(BIN)/python -m benchmarks $(ARGS)

clean:
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache
