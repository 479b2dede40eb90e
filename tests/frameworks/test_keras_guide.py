"""The scripts in examples/keras_guide: what was changed in them, and that they run and continue on Keras 3."""

import difflib
import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from backends import ENVIRONMENT

ROOT = Path(__file__).resolve().parents[2]
PLACE = ROOT / "examples" / "keras_guide"
SCRIPTS = ("weights", "every_five_epochs", "slurm_array")
needs_tensorflow = pytest.mark.skipif(
    importlib.util.find_spec("tensorflow") is None, reason="TensorFlow is not installed"
)


def lines(name):
    """A script without its docstring and its blank lines."""
    text = (PLACE / f"{name}.py").read_text(encoding="utf-8")
    return [line for line in text.split('"""', 2)[2].splitlines() if line.strip()]


def difference(name):
    """(lines added, lines changed, the difference as the page shows it) between a script before and after."""
    before, after = lines(f"{name}_before"), lines(name)
    added, changed, shown = 0, 0, []
    for kind, a, b, c, d in difflib.SequenceMatcher(None, before, after, autojunk=False).get_opcodes():
        if kind == "equal":
            continue
        assert kind in ("insert", "replace")
        assert kind == "insert" or b - a == d - c
        added, changed = (added + d - c, changed) if kind == "insert" else (added, changed + b - a)
        for old, new in zip(before[a:b] or [None] * (d - c), after[c:d], strict=True):
            shown += [f"-{old}"] if old is not None else []
            shown.append(f"+{new}")
    return added, changed, shown


@pytest.mark.parametrize("name", SCRIPTS)
def test_the_page_counts_and_shows_what_was_changed(name):
    """Between a script for TensorFlow 2 and the same for Keras 3 lie as many lines, and those, as the page says."""
    page = (ROOT / "docs" / "modelcheckpoint.md").read_text(encoding="utf-8")
    added, changed, shown = difference(name)
    size = len((PLACE / f"{name}_before.py").read_text(encoding="utf-8").splitlines())
    assert f"(../examples/keras_guide/{name}.py) | {size} | {added} | {changed} |" in page
    blocks = re.findall(r"^```diff\n(.*?)^```$", page, re.M | re.S)
    assert "\n".join(shown) + "\n" in blocks


def run(name, folder, **variables):
    done = subprocess.run(
        [sys.executable, str(PLACE / f"{name}.py")],
        cwd=folder,
        env={
            **os.environ,
            "HOME": str(folder),  # where nobody has fetched MNIST
            **ENVIRONMENT,
            "KERAS_BACKEND": "tensorflow",
            **variables,
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


def percent(text, words):
    return float(re.search(rf"{words}, accuracy: +([\d.]+)%", text)[1])


@needs_tensorflow
def test_weights_are_saved_each_epoch_and_loaded_into_a_new_model(tmp_path):
    """The first script says when it saves, as Keras does, and its new model is as good as the trained one."""
    out = run("weights", tmp_path)
    assert out.count("saving model to training_1/cp.ckpt\n") == 2 * 10
    assert percent(out, "Untrained model") < 40
    assert percent(out, "Restored model") > 60
    assert os.listdir(tmp_path / "training_1") == ["cp.ckpt"]


@needs_tensorflow
def test_every_fifth_epoch_is_saved_and_the_latest_continued(tmp_path):
    """The second script finds epoch 20 as the latest, reads its number out of its name, and ends at 30."""
    out = run("every_five_epochs", tmp_path)
    assert re.findall(r"Latest: (\S+)", out) == ["training_2/20.ckpt", "training_2/30.ckpt"]
    assert percent(out, "Restored model after epoch 20") > 60
    expected = {f"{epoch}.ckpt" for epoch in range(0, 31, 5)}
    assert set(os.listdir(tmp_path / "training_2")) == expected


@needs_tensorflow
def test_tasks_of_an_array_continue_one_another(tmp_path):
    """Each task of the third script goes on from the latest of those before, to its own number of epochs."""
    for task in (1, 2):
        out = run("slurm_array", tmp_path, SLURM_ARRAY_TASK_ID=str(task), EPOCHS="10")
        assert f"Epochs {10 * (task - 1)} to {10 * task}\n" in out
    names = {f"cp-{epoch:04d}.ckpt" for epoch in (5, 10, 15, 20)}
    assert set(os.listdir(tmp_path / "training_3")) == names
