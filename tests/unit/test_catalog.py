"""What is read of a run's checkpoints, and how often: no more manifests than an answer needs."""

import logging
import math
import os
import shutil
import threading
from collections import Counter

import numpy as np
import pytest
from click.testing import CliRunner

import holdfast
from holdfast import Keep, NotFoundError, files, session
from holdfast.cli.main import main
from holdfast.format.manifest import decode_manifest, encode_manifest
from holdfast.store import retention

KEEP = Keep(last=None, metric="score", mode="max")
COUNT = 8


@pytest.fixture(scope="module")
def template(tmp_path_factory):
    """A run of eight epochs, the third of which is the best."""
    path = str(tmp_path_factory.mktemp("template") / "run")
    with holdfast.Run(path, keep=KEEP) as run:
        for epoch in range(1, COUNT + 1):
            run.state["w"] = np.full(3, epoch)
            run.save(epoch=epoch, step=10 * epoch, metrics={"score": -abs(epoch - 3)}, wait=True)
    return path


@pytest.fixture
def run(template, tmp_path):
    return shutil.copytree(template, str(tmp_path / "run"), symlinks=True)


@pytest.fixture
def looks(monkeypatch):
    """Counts which checkpoints' manifests are opened, by their epochs: in this thread, and in others."""
    here, others = Counter(), Counter()
    real = files.open_for_reading

    def opened(path):
        folder, file = os.path.split(os.fspath(path))
        if file == "checkpoint.json" and not os.path.basename(os.path.dirname(folder)).startswith("."):
            own = threading.current_thread() is threading.main_thread()
            (here if own else others)[int(os.path.basename(folder)[13:17])] += 1
        return real(path)

    monkeypatch.setattr(files, "open_for_reading", opened)
    return here, others


def names(run):
    return sorted(name for name in os.listdir(run) if name[:1].isdigit())


def change(place, name, **fields):
    """Rewrites a checkpoint's manifest, with a right digest."""
    path = os.path.join(place, name, "checkpoint.json")
    with open(path, "rb") as file:
        manifest = decode_manifest(file.read(), path)
    for field, value in fields.items():
        setattr(manifest, field, value)
    with open(path, "wb") as file:
        file.write(encode_manifest(manifest))


def harm(run, name):
    with open(f"{run}/{name}/checkpoint.json", "r+b") as file:
        file.write(b"[")


def resumed(run):
    again = holdfast.Run(run, keep=KEEP)
    epoch = again.resume().epoch
    again.close()
    return epoch


ALL = set(range(1, COUNT + 1))


@pytest.mark.parametrize(
    ("selector", "epoch", "read"),
    [
        ("", 8, {8}),
        ("@latest", 8, {8}),
        ("@-3", 6, {8, 7, 6}),
        ("@seq=2", 2, {2}),
        ("@step=50", 5, {5}),
        ("@epoch=4", 4, {4}),
        ("@best", 3, ALL),
    ],
)
def test_a_reference_reads_what_it_needs(run, looks, selector, epoch, read):
    """A reference reads the manifests that decide which one is meant, and no others."""
    assert holdfast.open(run + selector).progress.epoch == epoch
    assert set(looks[0]) == read
    assert all(count == 1 + (each == epoch) for each, count in looks[0].items())


def test_latest_best_and_checkpoints(run, looks):
    """`latest` reads one manifest; `best` and `checkpoints` read each once, and again only what is looked into."""
    here, _ = looks
    again = holdfast.Run(run, keep=KEEP)
    assert again.latest.progress.epoch == 8
    assert set(here) == {8}
    here.clear()
    assert again.best.progress.epoch == 3
    assert set(here) == ALL
    assert sum(here.values()) == COUNT + 1
    here.clear()
    found = again.checkpoints
    assert [(c.sequence, c.progress.epoch, c.metrics["score"]) for c in found] == [
        (epoch, epoch, -abs(epoch - 3)) for epoch in range(1, COUNT + 1)
    ]
    assert all(c.created.endswith("Z") and c.name in c.path for c in found)
    assert here == dict.fromkeys(ALL, 1)
    assert (found[4].parts, found[4].load()["state"]["w"][0]) == (["state", "random"], 5)
    assert found[4].manifest == holdfast.open(found[4].path).manifest
    assert here[5] == 3


def test_checkpoints_that_go_meanwhile(run):
    """One of `checkpoints` that is deleted or damaged later says so when more is asked of it."""
    one, two, *_ = holdfast.Run(run, keep=KEEP).checkpoints
    shutil.rmtree(one.path)
    assert one.metrics == {"score": -2}
    with pytest.raises(NotFoundError):
        one.load()
    harm(run, two.name)
    [problem] = two.verify()
    assert "checkpoint.json" in str(problem)


def test_resuming_reads_the_newest(run, looks):
    """A launch reads the manifest of the newest checkpoint, and of no other."""
    assert resumed(run) == 8
    assert set(looks[0] + looks[1]) == {8}


def test_resuming_passes_over(run, looks, caplog, monkeypatch):
    """Damaged, foreign, abandoned and NaN-marked ones lead to the next; what is older is not looked at."""
    monkeypatch.setattr(logging.getLogger("holdfast"), "propagate", True)
    harm(run, names(run)[0])  # older than what is resumed from: nobody asks
    harm(run, names(run)[7])
    change(run, names(run)[6], run="another")
    change(run, names(run)[5], nan=["model/w"])
    retention.abandon(run, names(run)[4])
    retention.abandon(run, names(run)[7])
    assert resumed(run) == 4
    assert set(looks[0]) == {7, 6, 4}
    told = list({text for record in caplog.records if "Passed over" in (text := record.getMessage())})
    assert len(told) == 1
    assert f"Passed over {names(run)[6]}: " in told[0]
    assert "is foreign" in told[0]


def test_only_marked_ones_are_left(run, looks):
    """Before a NaN-marked one is resumed from, all others are looked at."""
    for name in names(run)[2:]:
        change(run, name, nan=["model/w"])
    for name in names(run)[:2]:
        harm(run, name)
    assert resumed(run) == 8
    assert set(looks[0]) == ALL


@pytest.mark.parametrize("many", [True, False])
def test_a_save_reads_each_once(run, looks, monkeypatch, many):
    """The first save after a resume has each manifest read once, in the background if they are many; later ones none."""
    if many:
        monkeypatch.setattr(session, "_FEW", 0)
    here, others = looks
    again = holdfast.Run(run, keep=KEEP)
    again.resume()
    again.save(epoch=9, metrics={"score": -1}, wait=True)
    assert set(here) == ({8} if many else ALL)
    # The newest is read once more: its arrays are compared with, so that a part that stands still is told.
    assert {epoch: count for epoch, count in (here + others).items() if epoch != 8} == dict.fromkeys(
        ALL - {8}, 1
    )
    here.clear()
    others.clear()
    for epoch in (10, 11):
        again.save(epoch=epoch, metrics={"score": epoch - 10}, wait=True)
    assert not here + others
    assert again.latest.manifest.best["value"] == 1
    again.close()


def test_a_loop_reads_ahead(run, looks, monkeypatch):
    """In a managed loop the training's own thread reads the newest manifest and no other."""
    monkeypatch.setattr(session, "_FEW", 0)
    again = holdfast.Run(run, keep=KEEP)
    for epoch in again.epochs(10):
        again.log(score=epoch)
    again.close()
    assert set(looks[0]) == {8}
    assert set(looks[1]) == ALL


def test_without_a_metric_nothing_is_ranked(run, looks):
    """Without a metric no manifest is read by the training's own thread but the newest."""
    again = holdfast.Run(run, keep=Keep(last=4))
    again.resume()
    again.save(epoch=9, wait=True)
    again.close()
    assert set(looks[0]) == {8}
    assert [int(name[13:17]) for name in names(run)] == [6, 7, 8, 9]


def test_marks_by_hand_between_saves(run):
    """A best that is abandoned by hand, and taken up again, is followed by what later checkpoints record."""
    again = holdfast.Run(run, keep=KEEP)
    again.resume()
    found = []
    for epoch in range(9, 14):
        again.save(epoch=epoch, metrics={"score": -9}, wait=True)
        found.append(again.latest.manifest.best["value"])
        if epoch == 9:
            retention.abandon(run, names(run)[2])
        elif epoch == 11:
            retention.unmark(run, "abandoned", names(run)[2])
    again.close()
    assert found == [0, 0, -1, -1, 0]


@pytest.mark.parametrize("keep", [KEEP, Keep(last=1, best=2, metric="score", mode="max")])
def test_the_best_so_far_is_kept_up_to_date(run, keep):
    """Each checkpoint records the best of all so far, whatever was saved, marked or deleted since the run was opened."""
    again = holdfast.Run(run, keep=keep)
    again.resume()
    found = []
    for epoch, score in enumerate([-1, 2, 1, math.nan, 2, 3, 0], start=9):
        again.save(epoch=epoch, metrics={"score": score}, wait=True)
        found.append(holdfast.open(f"{run}@latest").manifest.best["value"])
        clean = [one.metrics["score"] for one in again.checkpoints if not one.manifest.nan]
        assert again.best.metrics["score"] == max(clean)
    again.close()
    assert found == [0, 2, 2, 2, 2, 3, 3]


def test_a_best_that_turns_out_to_have_nan(tmp_path):
    """What was taken for the best, until a NaN was found in its parameters, is not recorded as the best later."""
    torch = pytest.importorskip("torch")
    net, found = torch.nn.Linear(2, 1), []
    run = holdfast.Run(tmp_path / "run", keep=KEEP)
    run.track(model=net)
    run.resume()
    for epoch, (score, weight) in enumerate([(1, 0.0), (9, math.nan), (0, 1.0), (2, 2.0)], start=1):
        torch.nn.init.constant_(net.weight, weight)
        run.save(epoch=epoch, metrics={"score": score}, wait=True)
        found.append(holdfast.open(f"{tmp_path}/run@latest").manifest.best["value"])
    run.close()
    assert found == [1, 9, 1, 2]


@pytest.mark.parametrize(
    "command", [["ls"], ["ls", "--json"], ["prune"], ["prune", "--keep-last", "2", "--json"]]
)
def test_a_list_reads_each_once(run, looks, command):
    """`holdfast ls` and `prune` open each manifest exactly once."""
    done = CliRunner().invoke(main, [command[0], run, *command[1:]])
    assert done.exit_code == 0, done.output
    assert looks[0] == dict.fromkeys(ALL, 1)
