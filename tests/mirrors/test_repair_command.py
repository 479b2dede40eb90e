"""`holdfast verify --repair`: what is damaged in a run is taken from its mirrors."""

import json
import os

import pytest
from click.testing import CliRunner
from mirrored_runs import flip, names, steps, train

from holdfast.cli.main import main


def invoke(*words):
    done = CliRunner().invoke(main, ["verify", *words])
    return done.exit_code, done.stdout, done.stderr


@pytest.fixture
def run(tmp_path):
    return str(tmp_path / "run")


@pytest.fixture
def arch(tmp_path):
    return str(tmp_path / "arch")


def test_repair(run, arch):
    """Every damaged file of every checkpoint is taken from the mirrors that the run was last started with."""
    train(run, 3, [arch])
    flip(run, 2, "README.md", at=40)
    flip(run, 3)
    flip(run, 3, "checkpoint.json", at=100)
    assert invoke(run)[0] == 5
    code, out, _ = invoke(run, "--repair")
    assert code == 0, out
    assert f"repaired {names(run)[0]}: README.md; " in out
    assert "all whole" in out
    assert steps(run) == [2, 3]
    assert not [name for name in os.listdir(run) if name.startswith(".writing")]


def test_a_mirror_by_name(run, arch):
    """--mirror names a mirror that the run does not know."""
    train(run, 3, [arch])
    train(run, 0)
    flip(run, 3)
    code, _, err = invoke(run, "--repair")
    assert code == 2
    assert "--repair --mirror DIR" in err
    assert invoke(run, "--repair", "--mirror", arch)[0] == 0
    assert steps(run) == [2, 3]


def test_a_mirror_is_repaired_from_its_run(run, arch):
    """A damaged mirror is a run with a damaged checkpoint: it is repaired from the run that it mirrors."""
    train(run, 3, [arch])
    flip(arch, 3)
    code, out, _ = invoke(arch)
    assert (code, f"Next: holdfast verify {arch} --repair --mirror RUN" in out) == (5, True)
    assert invoke(arch, "--repair", "--mirror", run)[0] == 0
    assert steps(arch) == [2, 3]


def test_what_cannot_be_repaired(run, arch, tmp_path):
    """What no mirror has right stays damaged, is told, and the exit code says so; a stranger is refused."""
    train(run, 3, [arch])
    flip(run, 3)
    flip(arch, 3)
    code, out, _ = invoke(run, "--repair")
    assert (code, "not repaired: 000003" in out) == (5, True)
    other = str(tmp_path / "other")
    train(other, 3)
    code, _, err = invoke(run, "--repair", "--mirror", other)
    assert (code, "holds another run" in err) == (2, True)
    code, _, err = invoke(f"{run}@seq=2", "--repair")
    assert (code, "--repair takes a run" in err) == (2, True)


def test_as_json(run, arch):
    """With --json each repaired checkpoint lists its files."""
    train(run, 3, [arch])
    flip(run, 3)
    code, out, _ = invoke(run, "--repair", "--json")
    said = json.loads(out)
    assert (code, said["damaged"]) == (0, 0)
    assert said["checkpoints"][1]["repaired"] == ["state.safetensors"]
    assert said["checkpoints"][1]["status"] == "whole"


def test_nothing_to_repair(run, arch):
    """A run that is whole is not opened for writing."""
    train(run, 3, [arch])
    before = sorted(os.listdir(run))
    assert invoke(run, "--repair")[0] == 0
    assert sorted(os.listdir(run)) == before
