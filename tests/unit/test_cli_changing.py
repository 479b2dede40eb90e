"""`prune`, `pin`, `unpin`, `rewind`, `import` and `export`: what they change, and what they refuse."""

import os
import subprocess
import sys

import pytest
from cli_runs import ALL, call, call_json, checkpoints, make_run

import holdfast
from holdfast.cli import pruning
from holdfast.store import book, catalog


@pytest.fixture
def run(tmp_path):
    return make_run(tmp_path / "run")


def held(run):
    """A run that this process holds until it is closed."""
    holder = holdfast.Run(run, config={"lr": 0.1}, keep=ALL)
    holder.resume()
    return holder


def everything(directory):
    return sorted(os.path.join(place, name) for place, _, names in os.walk(directory) for name in names)


# -- prune ---------------------------------------------------------------------------------------


def test_prune_only_says(run):
    """Without --yes nothing on disk changes, not even a lease."""
    before = everything(run)
    result = call("prune", run, "--keep-last", "1")
    assert everything(run) == before
    assert [line.split()[0] for line in result.output.splitlines()[1:5]] == [
        "delete",
        "keep",
        "delete",
        "keep",
    ]
    assert "Nothing was changed. With --yes, 2 checkpoints would go" in result.output
    assert "beyond last 1" in result.output


def test_prune_deletes_with_yes(run):
    """--yes deletes what was said, keeps newest and best, and writes history."""
    content = call_json("prune", run, "--keep-last", "1", "--yes")
    assert [name[:6] for name in content["deleted"]] == ["000001", "000003"]
    assert [entry.sequence for entry in catalog.scan(run)] == [2, 4]
    events = [event for event in book.read_events(run) if event["event"] == "delete"]
    assert [event["name"] for event in events] == content["deleted"]
    assert call("prune", run).output.splitlines()[-1] == "Nothing to delete."


def test_prune_spares_the_pinned(run):
    """A pinned checkpoint stays whatever the options say."""
    call("pin", f"{run}@seq=1")
    call("prune", run, "--keep-last", "1", "--yes")
    assert [entry.sequence for entry in catalog.scan(run)] == [1, 2, 4]


def test_prune_spares_a_pin_that_came_after_its_look(run, monkeypatch):
    """The mark of a checkpoint that was published and pinned after the look for debris stays."""
    look = pruning.debris_in
    monkeypatch.setattr(pruning, "debris_in", lambda run, entries: look(run, entries[:-1]))
    call("pin", f"{run}@seq=4")
    call("prune", run, "--yes")
    assert [entry.sequence for entry in catalog.scan(run) if entry.pinned] == [4]


def test_prune_takes_a_policy(run):
    """Options replace parts of the run's own Keep: metric and mode, epochs, budget."""
    kept = call_json("prune", run, "--keep-last", "1", "--metric", "loss", "--mode", "min", "--best", "2")[
        "keep"
    ]
    assert [row["sequence"] for row in kept] == [3, 4]
    kept = call_json("prune", run, "--keep-last", "1", "--every-epochs", "3")["keep"]
    assert [row["sequence"] for row in kept] == [2, 3, 4]
    assert len(call_json("prune", run, "--budget", "1 kB")["keep"]) == 2
    assert len(call_json("prune", run, "--keep-last", "all")["keep"]) == 4


@pytest.mark.parametrize(
    "words",
    [
        ["--keep-last", "0"],
        ["--keep-last", "x"],
        ["--metric", "loss"],
        ["--budget", "much"],
        ["--best", "0"],
        ["--mode", "up"],
    ],
)
def test_prune_refuses_policies_that_make_no_sense(run, words):
    """A policy that makes no sense ends with code 2 and deletes nothing."""
    assert call("prune", run, *words, "--yes").exit_code == 2
    assert len(checkpoints(run)) == 4


def test_prune_takes_the_abandoned(run):
    """What a rewind abandoned is deleted with its mark."""
    call("rewind", run, "@seq=2")
    content = call_json("prune", run, "--yes")
    assert [name[:6] for name in content["deleted"]] == ["000003", "000004"]
    assert not os.listdir(os.path.join(run, "abandoned"))


def test_prune_names_and_removes_debris(run):
    """Unfinished saves of ended writers, test files and marks of what is gone are named, then removed."""
    os.makedirs(f"{run}/.writing-000001/half")
    os.makedirs(f"{run}/pins")
    for name in (".writing-000001/half/x", ".doctor-1", "pins/gone"):
        open(f"{run}/{name}", "w").close()
    content = call_json("prune", run)
    assert content["debris"] == [".doctor-1", ".writing-000001", "pins/gone"]
    assert os.path.exists(f"{run}/.doctor-1")
    content = call_json("prune", run, "--yes")
    assert content["debris"] == [".doctor-1", ".writing-000001", "pins/gone"]
    assert not [name for name in os.listdir(run) if name.startswith((".writing", ".doctor"))]
    assert os.listdir(f"{run}/pins") == []
    assert len(checkpoints(run)) == 4


def test_prune_yes_while_a_training_writes(run):
    """While somebody holds the run, --yes ends with code 11 and names them; the plan is still shown without."""
    holder = held(run)
    code = "from holdfast.cli.main import main; main()"
    words = [sys.executable, "-c", code, "prune", run, "--keep-last", "1"]
    done = subprocess.run([*words, "--yes"], capture_output=True, text=True, check=False)
    assert done.returncode == 11
    assert f"pid {os.getpid()}" in done.stderr
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0
    assert "debris" not in done.stdout  # its directory is in use
    holder.close()
    assert len(checkpoints(run)) == 4


def test_prune_of_no_run(tmp_path):
    """What is no run is not touched, and not made one."""
    assert call("prune", tmp_path, "--yes").exit_code == 4
    assert os.listdir(tmp_path) == []


# -- pin, unpin, rewind ----------------------------------------------------------------------------


def test_pin_and_unpin(run):
    """A pin is seen by ls and gone after unpin; both work while a training holds the run."""
    holder = held(run)
    assert call("pin", f"{run}@seq=1").exit_code == 0
    assert call_json("ls", run)["checkpoints"][0]["marks"] == ["pinned"]
    assert call("unpin", f"{run}@seq=1").exit_code == 0
    assert call_json("ls", run)["checkpoints"][0]["marks"] == []
    holder.close()


def test_only_checkpoints_of_runs_are_pinned(tmp_path):
    """A checkpoint outside a run has no policy to be kept from."""
    holdfast.save(tmp_path / "single", {"m": {"x": 1}})
    assert call("pin", tmp_path / "single").exit_code == 2


def test_rewind_says_what_comes_next(run):
    """The output names what was abandoned, what a launch resumes from, and the way back, which works."""
    output = call("rewind", run, "@epoch=2").output
    assert output.count("abandoned  0000") == 2
    assert "The next launch resumes from 000002_" in output
    way_back = output.splitlines()[-1].partition("holdfast ")[2].split()
    assert call(*way_back).exit_code == 0
    assert holdfast.open(run).sequence == 4
    assert call_json("rewind", run, "@seq=1")["target"].startswith("000001")


def test_rewind_errors_have_their_codes(run, tmp_path):
    """No run, no such checkpoint, and a running training end with 4, 4 and 11."""
    assert call("rewind", tmp_path / "no", "@seq=1").exit_code == 4
    assert call("rewind", run, "@seq=9").exit_code == 4
    holder = held(run)
    assert call("rewind", run, "@seq=1").exit_code == 11
    holder.close()


# -- import, export ----------------------------------------------------------------------------------


def test_export_and_import_reach_the_exchange(run, tmp_path):
    """What export writes is a file, and import makes a run of it; both say so."""
    torch = pytest.importorskip("torch")
    net = torch.nn.Linear(3, 2)
    holdfast.save(tmp_path / "first", {"model": net})
    target = tmp_path / "model.safetensors"
    result = call("export", tmp_path / "first", target, "--part", "model")
    assert (result.exit_code, str(target) in result.stderr) == (0, True)
    assert call("export", tmp_path / "first", target).exit_code == 2
    assert call("export", tmp_path / "first", target, "--overwrite").exit_code == 0
    result = call("import", target, tmp_path / "imported")
    assert result.exit_code == 0
    loaded = holdfast.open(tmp_path / "imported").load(parts=["model"], arrays="torch")["model"]
    assert torch.equal(loaded["weight"], net.weight)


def test_import_without_trust_runs_no_code(tmp_path):
    """A pickle that would run code is refused with code 8."""
    torch = pytest.importorskip("torch")
    torch.save({"epoch": 1, "state_dict": {}, "extra": torch.nn.Linear(1, 1)}, tmp_path / "old.pth")
    result = call("import", tmp_path / "old.pth", tmp_path / "imported")
    assert result.exit_code == 8
    assert "trust" in result.stderr
    assert not os.path.exists(tmp_path / "imported")
