"""Each command is documented: its section, its options, its example, its JSON keys, and the exit codes."""

import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

import holdfast
from holdfast import errors
from holdfast.cli.main import COMMANDS, INTERRUPTED, PIPE_CLOSED, main

DOCS = Path(__file__).resolve().parents[2] / "docs"
# Mappings whose keys are the user's own, or another page's.
FREE = {
    "metrics", "config", "environment", "parts", "declared", "fresh", "loader", "files", "history", "init", "keep",
    "best", "goal", "progress", "versions", "slurm", "reached", "counts",
}  # fmt: skip
WITH_JSON = [name for name in COMMANDS if any(p.name == "as_json" for p in main.commands[name].params)]


def sections(page, pattern):
    """Command → the text of its section."""
    pieces = re.split(pattern, (DOCS / page).read_text(encoding="utf-8"), flags=re.M)
    return dict(zip(pieces[1::2], pieces[2::2], strict=True))


CLI = sections("cli.md", r"^## holdfast (\w+)$")
SCRIPTING = sections("scripting.md", r"^### holdfast (\w+) --json$")


def test_every_command_has_a_section_in_order():
    """docs/cli.md has one section for each command, in the order of --help, and none besides."""
    assert list(CLI) == list(COMMANDS)
    assert list(SCRIPTING) == [name for name in COMMANDS if name in WITH_JSON]


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_and_an_example(name):
    """A command's section names each of its options and arguments and shows it being called."""
    text = CLI[name]
    for parameter in main.commands[name].params:
        if parameter.param_type_name == "option" and parameter.name != "debug":
            assert f"`{parameter.opts[0]}" in text, parameter.opts
        elif parameter.param_type_name == "argument":
            assert parameter.make_metavar(_context(name)).strip("[]") in text
    assert re.search(rf"^\$ holdfast {name}\b", text, re.M)


def _context(name):
    import click

    return click.Context(main.commands[name])


def test_reading_commands_take_json():
    """All commands that tell something have --json; those that only do or fail have not."""
    assert set(COMMANDS) - set(WITH_JSON) == {"pin", "unpin", "import", "export"}


def test_every_exit_code_is_documented():
    """The table of exit codes has each class of the error tree with its code, and no other."""
    rows = re.findall(
        r"^\| (\d+) \| [^|\n]*(?:\\\|[^|\n]*)?\| (?:`(\w+)`)? *\|$", (DOCS / "scripting.md").read_text(), re.M
    )
    documented = {name: int(code) for code, name in rows if name}

    def classes(kind):
        return [kind, *(below for child in kind.__subclasses__() for below in classes(child))]

    expected = {
        kind.__name__: kind.exit_code
        for kind in classes(errors.HoldfastError)
        if kind.__module__ == "holdfast.errors"
    }
    expected |= {
        "Preempted": errors.Preempted().code,
        "KeyboardInterrupt": INTERRUPTED,
        "BrokenPipeError": PIPE_CLOSED,
    }
    assert documented == expected


def keys_of(value):
    """All keys in a JSON value, except those of free mappings."""
    if isinstance(value, list):
        return {key for item in value for key in keys_of(item)}
    if not isinstance(value, dict):
        return set()
    below = {key for name, item in value.items() if name not in FREE for key in keys_of(item)}
    return set(value) | below


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    path = str(tmp_path_factory.mktemp("documented") / "run")
    run = holdfast.Run(path, keep=holdfast.Keep(last=None, metric="accuracy", mode="max"))
    run.resume()
    for epoch in range(3):
        run.state["w"] = np.full(3, epoch, "f4")
        run.save(epoch=epoch + 1, metrics={"accuracy": float(epoch)}, wait=True)
    run.close()
    with open(holdfast.open(f"{path}@seq=2").path + "/state.safetensors", "ab") as file:
        file.write(b"x")
    return path


def _differing(directory):
    """A script that a rehearsal finds a fault in, so that there are differences to tell of."""
    script = directory / "fault.py"
    script.write_text(
        "import numpy, random, holdfast\nrng = random.Random(0)\nrun = holdfast.Run('r')\n"
        "for step in run.steps(4):\n    run.state['n'] = numpy.full(2, rng.random())\n"
        "    run.state['m'] = rng.random()\n"
    )
    return script


@pytest.mark.parametrize("name", WITH_JSON)
def test_every_json_key_is_documented(run, name):
    """Every key that a command's --json prints stands in its section of docs/scripting.md."""
    words = {
        "diff": [f"{run}@seq=1", f"{run}@seq=3"],
        "rewind": [run, "@seq=1"],
        "push": [run, str(Path(run).parent.parent / "pushed")],
        "pull": [run, str(Path(run).parent.parent / "pulled")],
        "doctor": [run, "--no-write"],
        "submit": ["--print", "--allow-local", "--run", run, "--time=5", "--", sys.executable, "-c", "1"],
        "rehearse": ["--once", "--", sys.executable, str(_differing(Path(run).parent.parent))],
    }
    outputs = [CliRunner().invoke(main, [name, "--json", *words.get(name, [run])])]
    if name == "ls":
        outputs.append(CliRunner().invoke(main, [name, str(Path(run).parent), "--json"]))
    found = {key for output in outputs for key in keys_of(json.loads(output.stdout))}
    assert len(found) > 4
    documented = set(re.findall(r"`(\w+)`", SCRIPTING[name]))
    assert found <= documented, found - documented
