"""Checkpoints of every format version so far, read by the present code and by forty lines of NumPy."""

import importlib.util
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

import holdfast

HOME = Path(__file__).parent
VERSIONS = sorted(path for path in HOME.glob("v*") if path.is_dir())


def golden():
    spec = importlib.util.spec_from_file_location("make_golden", HOME / "make_golden.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def code_of_the_page():
    text = (HOME.parents[1] / "docs" / "format.md").read_text()
    section = text[text.index("## 7.") :]
    return re.search(r"```python\n(.*?)```", section, re.DOTALL)[1]


@pytest.mark.parametrize("place", VERSIONS, ids=lambda path: path.name)
def test_every_format_so_far_is_read(place):
    """A golden run of each format version verifies, and each value comes back as it was written."""
    for reference in (str(place), f"{place}@best", f"{place}@step=1"):
        assert holdfast.open(reference).verify() == []
    checkpoint = holdfast.open(f"{place}@step=2")
    loaded = checkpoint.load()
    expected = golden().values()
    state = loaded["state"]
    assert list(state) == list(expected)
    for name, value in expected.items():
        if isinstance(value, (np.ndarray, torch.Tensor)):
            assert (state[name] == value).all(), name
            assert state[name].dtype == value.dtype, name
        else:
            assert state[name] == value, name
            assert type(state[name]) is type(value), name
    assert checkpoint.progress.step == 2
    assert checkpoint.metrics == {"loss": 0.5}
    assert checkpoint.config == {"lr": 0.5}
    model = loaded["model"]
    assert model["halves"].dtype == torch.bfloat16
    assert model["phase"].tolist() == [1 + 2j, -0.5j]
    assert model["head.weight"] is model["body.weight"]
    assert model["nothing"].shape == (0, 7)
    assert "momentum_buffer" in loaded["optimizer"]["state"]["body.weight"]


@pytest.mark.parametrize("place", VERSIONS, ids=lambda path: path.name)
def test_an_old_run_is_continued(place, tmp_path):
    """A run that an older version left is resumed, and goes on in the present format."""
    run_path = tmp_path / "run"
    shutil.copytree(place, run_path)
    made = golden()
    net = made.Small()
    opt = torch.optim.SGD(net.parameters(), lr=0.5, momentum=0.9)
    with holdfast.Run(run_path, config={"lr": 0.5}, every=holdfast.Every(steps=1)) as run:
        run.track(model=net, optimizer=opt)
        assert list(run.steps(3)) == [2]
        assert run.state["keys"] == made.values()["keys"]
    assert holdfast.open(run_path).progress.step == 3


@pytest.mark.parametrize("place", VERSIONS, ids=lambda path: path.name)
def test_a_stranger_opens_it_with_numpy_alone(place):
    """The code of docs/format.md, at most forty lines without ours, reads and checks a part."""
    code = code_of_the_page()
    lines = [line for line in code.splitlines() if line.strip() and not line.startswith(("import", "from"))]
    assert len(lines) <= 40
    assert "holdfast" not in code
    scope = {}
    exec(code.replace('"BOOL": "|b1"}', '"BOOL": "|b1", "BF16": "<u2", "I16": "<i2", "C128": "<c16"}'), scope)
    found = scope["read"](holdfast.open(str(place)).path, "model")
    expected = holdfast.open(str(place)).load(["model"], arrays="numpy")["model"]
    assert sorted(found) == sorted(expected)
    for name, array in expected.items():
        assert found[name].tobytes() == array.tobytes(), name


@pytest.mark.parametrize("place", VERSIONS, ids=lambda path: path.name)
def test_the_stranger_notices_damage(place, tmp_path):
    """The code of docs/format.md refuses a flipped byte in each file that it reads."""
    scope = {}
    exec(code_of_the_page(), scope)
    source = Path(holdfast.open(str(place)).path)
    for name in ("checkpoint.json", "arrays.json", "model.safetensors"):
        copy = tmp_path / name.replace(".", "_")
        shutil.copytree(source, copy)
        data = bytearray((copy / name).read_bytes())
        data[len(data) // 2] ^= 1
        (copy / name).write_bytes(data)
        with pytest.raises((AssertionError, ValueError)):
            scope["read"](copy, "model")
