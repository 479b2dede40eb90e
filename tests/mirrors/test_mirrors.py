"""Mirrors as a user meets them: set up, lost runs, rewinds, several of them, what is refused."""

import os
import shutil
import threading

import numpy as np
import pytest
from mirrored_runs import LAST, content, draws, flip, names, steps, train

import holdfast
from holdfast import DamagedError, Keep, Mirror, StorageError, UsageError, files, rewinding
from holdfast.store import book, catalog


@pytest.fixture
def run(tmp_path):
    return str(tmp_path / "run")


@pytest.fixture
def arch(tmp_path):
    return str(tmp_path / "arch")


def events(run, kind):
    return [event for event in book.read_events(run) if event["event"] == kind]


# -- copies ------------------------------------------------------------------------------------------


def test_a_mirror_holds_what_the_run_holds(run, arch):
    """After close a mirror has the same checkpoints, to the byte, and run.json; no lease, no links, no history."""
    train(run, 3, [arch])
    assert names(run) == names(arch)
    assert steps(arch) == [2, 3]
    assert sorted(os.listdir(arch)) == [*names(arch), "run.json"]
    assert book.read_run(arch).id == book.read_run(run).id
    for name in names(run):
        for file in os.listdir(os.path.join(run, name)):
            here, there = (os.path.join(place, name, file) for place in (run, arch))
            with open(here, "rb") as one, open(there, "rb") as other:
                assert one.read() == other.read()
            assert os.stat(here).st_ino != os.stat(there).st_ino, "a hard link"


def test_a_checkpoint_is_sent_once(run, arch):
    """What a mirror has already is not sent again, in this launch or the next."""
    train(run, 2, [arch])
    train(run, 3, [arch])
    sent = [event["name"] for event in events(run, "mirror") if "name" in event]
    assert len(sent) == len(set(sent)) == 3


def test_the_training_thread_only_hands_over(run, arch, monkeypatch):
    """While a run is trained, every call that changes a mirror is made by one other thread."""
    made = set()

    class Watched(files.System):
        def open(self, path, flags):
            if os.fspath(path).startswith(arch):
                made.add(threading.current_thread().name)
            return super().open(path, flags)

    monkeypatch.setattr(files, "system", Watched())
    train(run, 3, [arch])
    assert made == {"holdfast-mirrors-0"}


def test_an_interrupted_copy_goes_on_by_block(run, arch, monkeypatch):
    """A copy that was interrupted sends only the blocks that are missing or wrong, whoever began it."""
    size = 9 << 20  # 36 MB: three blocks
    train(run, 1, size=size)
    from holdfast.mirrors import copying
    from holdfast.mirrors.mirroring import _Stopped

    real, sent = copying._take, []

    def stop(sources, file, number, *more):
        if number == 2:
            raise _Stopped
        real(sources, file, number, *more)

    monkeypatch.setattr(copying, "_take", stop)
    train(run, 0, [arch], size=size)
    assert names(arch) == []
    monkeypatch.setattr(copying, "_take", lambda *all: (sent.append(all[2]), real(*all)))
    [begun] = [name for name in os.listdir(arch) if name.startswith(".copying-")]
    path = os.path.join(arch, begun, names(run)[0], "state.safetensors")
    with open(path, "r+b") as file:  # and one block was torn
        file.seek(100)
        file.write(b"torn")
    train(run, 0, [arch], size=size)
    assert sent == [0, 2]
    assert steps(arch) == [1]
    [event] = [event for event in events(run, "mirror") if "name" in event]
    assert event["found"] >> 20 == 16


def test_damage_is_not_spread(run, arch, said):
    """A local checkpoint that is damaged is found while it is copied, told, and never published in the mirror."""
    train(run, 3)
    flip(run, 2)
    train(run, 0, [arch])
    assert steps(arch) == [3]
    assert "was not copied to the mirror" in said.text
    assert "is damaged in block 0 of 1" in said.text
    assert [event["problem"][:4] for event in events(run, "mirror") if "problem" in event]


def test_a_cut_file_in_a_mirror_is_sent_again(run, arch):
    """A checkpoint that lost a file, or the end of one, in the mirror is copied there once more."""
    train(run, 3, [arch])
    os.truncate(os.path.join(arch, names(arch)[0], "state.safetensors"), 5000)
    os.unlink(os.path.join(arch, names(arch)[1], "arrays.json"))
    train(run, 0, [arch])
    assert steps(arch) == [2, 3]


def test_a_damaged_run_json_in_a_mirror_is_written_anew(run, arch):
    """A mirror that this run has used before gets a new run.json in the place of a damaged one."""
    train(run, 3, [arch])
    train(run, 4, [arch])
    with open(os.path.join(arch, "run.json"), "r+b") as file:
        file.write(b"?")
    train(run, 5, [arch])
    assert book.read_run(arch).id == book.read_run(run).id
    assert steps(arch) == [4, 5]


def test_a_limit_is_kept(run, arch):
    """A limit of bytes per second reaches the copy, and what it says of itself is recorded without secrets."""
    train(run, 1, [Mirror(arch, limit="2 MB")])
    assert steps(arch) == [1]
    [record] = book.read_run(run).mirrors
    assert record == {"url": arch, "keep": None, "limit": 2_000_000, "required": False, "reached": True}


# -- a run that is lost, or behind ---------------------------------------------------------------------


def test_a_lost_run_continues_to_the_bit(tmp_path, run, arch):
    """A run whose directory is gone goes on from its mirror, and ends as one that was never interrupted."""
    straight = draws(str(tmp_path / "straight"), 9)
    draws(run, 5, [arch])
    identity = book.read_run(run).id
    shutil.rmtree(run)
    assert draws(run, 9, [arch]) == straight
    assert book.read_run(run).id == identity
    numbers = [int(name[:6]) for name in names(arch)]
    assert len(set(numbers)) == len(numbers), "a number was used twice"


def test_best_and_pins_come_back(run, arch):
    """A lost run gets its best checkpoint back beside the newest, and what is pinned is pinned."""
    keep = Keep(last=1, best=1, metric="m", mode="max")

    def go(goal):
        with holdfast.Run(run, mirrors=[arch], keep=keep) as opened:
            start = opened.resume().step
            for step in range(start + 1, goal + 1):
                opened.save(step=step, metrics={"m": -abs(step - 2)}, wait=True)

    go(2)
    holdfast.open(f"{run}@best").pin()
    go(4)
    assert steps(arch) == [2, 4]
    shutil.rmtree(run)
    go(5)
    assert holdfast.open(f"{run}@best").progress.step == 2
    assert catalog.marks(run, "pins") == {name for name in names(run) if name.startswith("000002")}
    assert steps(arch) == [2, 5]


def test_behind_a_mirror(run, arch, tmp_path, said):
    """A run that is behind its mirror goes on from the newer one, and says so."""
    train(run, 2, [arch])
    shutil.copytree(run, tmp_path / "old", symlinks=True)
    train(run, 4, [arch])
    shutil.rmtree(run)
    os.rename(tmp_path / "old", run)
    assert train(run, 5, [arch]) == 4
    assert f"{run} is behind its mirror {arch}: the training goes on from 000004" in said.text
    assert events(run, "fetch")[0]["url"] == arch


def test_mirrors_that_disagree(run, arch, tmp_path, said):
    """Of several mirrors the newest whole checkpoint wins, and the others are told and brought up to date."""
    other = str(tmp_path / "other")
    train(run, 2, [arch, other])
    train(run, 3, [other])
    shutil.rmtree(run)
    assert train(run, 4, [arch, other]) == 3
    assert f"The mirror {arch} does not have 000003" in said.text
    assert steps(arch)[-2:] == steps(other)[-2:] == [3, 4]


def test_damage_in_one_mirror_is_made_good_by_another(run, arch, tmp_path):
    """A lost run takes each block from whichever mirror has it right; with none, an older checkpoint."""
    other = str(tmp_path / "other")
    train(run, 3, [arch, other])
    flip(arch, 3)
    shutil.rmtree(run)
    assert train(run, 0, [arch, other]) == 3
    shutil.rmtree(run)
    shutil.rmtree(other)
    flip(arch, 3, at=5001)
    assert train(run, 0, [arch]) == 2


def test_lost_after_a_rewind(run, arch):
    """A run that is lost after a rewind, before it went on, comes back at what it was rewound to."""
    keep = Keep(last=5)
    train(run, 3, [arch], keep=keep)
    rewinding.rewind(run, f"{run}@step=2", wait=0)
    train(run, 0, [arch], keep=keep)
    shutil.rmtree(run)
    assert train(run, 0, [arch], keep=keep) == 2


@pytest.mark.parametrize("order", ["known first", "known last"])
def test_lost_after_a_rewind_that_one_mirror_missed(order, run, arch, tmp_path):
    """A lost run comes back at what it was rewound to, though one of its mirrors was out of reach then."""
    keep, other = Keep(last=5), str(tmp_path / "other")
    train(run, 3, [arch, other], keep=keep)
    rewinding.rewind(run, f"{run}@step=2", wait=0)
    train(run, 0, [arch], keep=keep)
    shutil.rmtree(run)
    assert train(run, 0, [arch, other] if order == "known first" else [other, arch], keep=keep) == 2
    assert {name[:6] for name in catalog.marks(other, "abandoned")} == {"000003"}


@pytest.mark.parametrize("file", ["state.safetensors", "checkpoint.json"])
def test_nothing_whole_in_the_mirror_by_its_looks(run, arch, file):
    """A lost run whose mirror has only a checkpoint that was cut short does not begin anew."""
    train(run, 1, [arch])
    os.truncate(os.path.join(arch, names(arch)[0], file), 300)
    shutil.rmtree(run)
    with pytest.raises(DamagedError):
        train(run, 1, [arch])


def test_nothing_whole_in_the_mirror(run, arch):
    """A lost run whose mirror has nothing whole does not begin anew."""
    train(run, 1, [arch])
    flip(arch, 1)
    shutil.rmtree(run)
    with pytest.raises(DamagedError, match="damaged in block 0"):
        train(run, 2, [arch])


def test_a_rewind_is_not_undone(run, arch):
    """What a rewind left behind is abandoned in the mirror as well, and is taken up from nowhere."""
    keep = Keep(last=None)
    train(run, 4, [arch], keep=keep)
    rewinding.rewind(run, "@step=2")
    assert train(run, 3, [arch], keep=keep) == 2
    assert {name[:6] for name in catalog.marks(arch, "abandoned")} == {"000003", "000004"}
    shutil.rmtree(run)
    assert train(run, 0, [arch], keep=keep) == 3


def test_a_rewind_that_did_not_know(run, arch, tmp_path):
    """A run that was behind its mirror when it was rewound stays there: what was made since then alone counts."""
    keep = Keep(last=None)
    train(run, 2, [arch], keep=keep)
    shutil.copytree(run, tmp_path / "old", symlinks=True)
    train(run, 4, [arch], keep=keep)
    shutil.rmtree(run)
    os.rename(tmp_path / "old", run)
    rewinding.rewind(run, "@step=1")
    assert train(run, 0, [arch], keep=keep) == 1
    assert {name[:6] for name in catalog.marks(arch, "abandoned")} == {"000002", "000003", "000004"}
    assert train(run, 2, [arch], keep=keep) == 1
    shutil.rmtree(run)
    assert train(run, 0, [arch], keep=keep) == 2


def test_saving_before_resuming_is_refused(run, arch):
    """A lost run that its mirror holds must be resumed before it saves, as one that is there."""
    train(run, 1, [arch])
    shutil.rmtree(run)
    opened = holdfast.Run(run, mirrors=[arch])
    with pytest.raises(UsageError, match=r"run.resume\(\)"):
        opened.save(step=9)


def test_a_mirror_is_a_run(run, arch, said):
    """A mirror can be trained in as a run; meanwhile nothing is copied there, and its newer ones are taken later."""
    train(run, 2, [arch])
    opened = holdfast.Run(arch, keep=LAST)
    assert opened.resume().step == 2
    train(run, 2, [arch])
    assert "is written as a run by" in said.text
    opened.state.update(content(3))
    opened.save(step=3, wait=True)
    opened.close()
    assert train(run, 4, [arch]) == 3
    assert steps(arch) == [3, 4]


def test_a_name_alone_is_no_hold(run, arch):
    """A lost run goes on counting where its mirrors are, marked and damaged ones included."""
    train(run, 3, [arch])
    flip(arch, 3)
    shutil.rmtree(run)
    train(run, 3, [arch])
    assert [name[:6] for name in names(run)] == ["000002", "000004"]


# -- repairs -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("file", ["state.safetensors", "arrays.json", "checkpoint.json"])
def test_damage_is_repaired(run, arch, file, said):
    """Whatever file of the newest checkpoint is damaged, a launch makes it whole and resumes from it."""
    train(run, 3, [arch])
    flip(run, 3, file, at=300)
    assert train(run, 0, [arch]) == 3
    assert steps(run) == [2, 3]
    assert events(run, "repair")[0]["files"] == [file]
    assert "is repaired from a mirror" in said.text


def test_exactly_the_damaged_block_is_fetched(run, arch):
    """Of a payload file of three blocks, the damaged one alone comes from the mirror; a new file takes its place."""
    size = 9 << 20
    train(run, 1, [arch], size=size)
    path = flip(run, 1, at=(16 << 20) + 99)
    before = os.stat(path).st_ino
    with open(path, "rb") as held:
        damaged = held.read()
        assert train(run, 0, [arch], size=size) == 1
        held.seek(0)
        assert held.read() == damaged, "written in place"
    assert os.stat(path).st_ino != before
    assert events(run, "repair")[0]["bytes"] == 16 << 20
    assert steps(run) == [1]


def test_damage_on_both_sides(run, arch):
    """Blocks that are right on one side make up for those of the other; a block that is right nowhere is passed over."""
    size = 9 << 20
    train(run, 1, [arch], size=size)
    train(run, 2, [arch], size=size)
    flip(run, 2, at=99)
    flip(arch, 2, at=(16 << 20) + 99)
    assert train(run, 0, [arch], size=size) == 2
    flip(run, 2, at=(16 << 20) + 99)
    assert train(run, 0, [arch], size=size) == 1


# -- what is refused ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mirrors", "words"),
    [
        (["s3://key:secret@bucket/x"], "brings credentials"),
        (["ftp://host/x"], "not in an object store that is supported"),
        (["s3://b/x", "s3://b/x/"], "is given twice"),
        (["s3://b/x", "s3://b/x/y"], "lie in one another"),
        ("/archive", "expected a list"),
        (["{run}"], "is the run"),
        (["{run}/inside"], "lies in the run"),
        (["{run}/.."], "holds the run"),
        (["/tmp/a", "/tmp/../tmp/a"], "is given twice"),
        ([3], "expected a directory"),
        ([""], "expected a directory"),
    ],
)
def test_refused(run, mirrors, words):
    """A mirror that cannot be one is refused before anything is touched; no secret is repeated."""
    asked = [m.format(run=run) if isinstance(m, str) else m for m in mirrors]
    with pytest.raises(UsageError, match=words) as caught:
        holdfast.Run(run, mirrors=asked if isinstance(mirrors, list) else mirrors)
    assert "secret" not in str(caught.value)
    assert not os.path.exists(run)


@pytest.mark.parametrize("more", [{"keep": 3}, {"limit": "fast"}, {"limit": 0}, {"required": 1}])
def test_refused_settings(more):
    """A Mirror refuses settings that make no sense, and names the argument."""
    with pytest.raises(UsageError, match=f"Mirror\\({next(iter(more))}="):
        Mirror("/archive", **more)


def test_another_run(run, arch, tmp_path):
    """A mirror of another run is refused with both ids, and neither side is changed."""
    train(run, 1, [arch])
    stranger = str(tmp_path / "stranger")
    train(stranger, 2)
    before = names(arch)
    with pytest.raises(UsageError, match="holds another run") as caught:
        train(stranger, 3, [arch])
    assert book.read_run(run).id in str(caught.value)
    assert book.read_run(stranger).id in str(caught.value)
    assert (names(arch), steps(stranger)) == (before, [1, 2])
    assert train(stranger, 3) == 2, "the lease was not released"


def test_something_else_is_there(run, arch):
    """A directory that holds other things, or a file, is refused, and nothing is written there."""
    os.mkdir(arch)
    with open(os.path.join(arch, "thesis.tex"), "w"):
        pass
    with pytest.raises(UsageError, match=r"it holds thesis\.tex"):
        train(run, 1, [arch])
    assert os.listdir(arch) == ["thesis.tex"]
    with pytest.raises(UsageError, match="is a file"):
        train(run, 1, [os.path.join(arch, "thesis.tex")])


def test_an_empty_run_begins_nothing_while_a_mirror_is_out_of_reach(run, tmp_path, said):
    """Out of reach, a mirror stops a new run, which it may hold; one that has checkpoints goes on with a warning."""
    away = str(tmp_path / "mount" / "arch")
    with pytest.raises(StorageError, match="Nothing was begun"):
        train(run, 1, [away])
    assert names(run) == []
    train(run, 1)
    assert train(run, 2, [away]) == 1
    assert "is it mounted?" in said.text
    assert not os.path.exists(tmp_path / "mount")
    os.mkdir(tmp_path / "mount")
    train(run, 3, [away])
    assert steps(away) == [2, 3]


def test_a_mirror_that_vanished_is_not_begun_anew(run, arch, said):
    """Where a mirror of this run was and nothing is now, as on a disk that is not mounted, nothing is written."""
    train(run, 2, [arch])
    train(run, 3, [arch])
    os.rename(arch, arch + ".away")
    os.mkdir(arch)
    train(run, 4, [arch])
    assert os.listdir(arch) == []
    assert "Is it mounted?" in said.text
    os.rmdir(arch)
    os.rename(arch + ".away", arch)
    train(run, 5, [arch])
    assert steps(arch) == [4, 5]


def test_rehearsed_runs_have_no_mirrors(run, arch, tmp_path, monkeypatch):
    """A run that is rehearsed writes nothing but its own place."""
    from holdfast import stage

    class Stage:
        plan = {}

        def note(self, *_, **facts):
            """Nothing is read of it here."""

        def place(self, path, _):
            return path + "-rehearsed"

        def owns(self, _):
            return True

    monkeypatch.setattr(stage, "current", Stage)
    opened = holdfast.Run(run, mirrors=[arch])
    assert opened._training.options.mirrors == ()


def test_values_are_restored(run, arch):
    """What comes out of a mirror is what went in, array by array."""
    train(run, 2, [arch])
    shutil.rmtree(run)
    train(run, 0, [arch])
    loaded = holdfast.open(run).load()["state"]
    assert np.array_equal(loaded["w"], content(2)["w"])


def test_a_link_is_not_followed(run, arch, tmp_path):
    """A link in the place of what a writer left is removed; nothing is written where it leads to."""
    train(run, 2, [arch])
    outside = tmp_path / "outside"
    outside.mkdir()
    os.symlink(outside, os.path.join(arch, ".copying-evil"))
    train(run, 3, [arch])
    assert steps(arch) == [2, 3]
    assert os.listdir(outside) == []
    assert not [name for name in os.listdir(arch) if name.startswith(".")]


def test_a_launch_reads_few_manifests(run, arch, monkeypatch):
    """Opening a run reads of a mirror's many checkpoints only the newest ones' manifests."""
    from holdfast.store.entry import Entry

    keep = Keep(last=None)
    train(run, 60, keep=keep)
    train(run, 0, [arch], keep=keep)
    read, real = [], Entry.read
    monkeypatch.setattr(Entry, "read", lambda self: (read.append(self.path), real(self))[1])
    monkeypatch.setattr("holdfast.mirrors.mirroring.Mirroring.hand_over", lambda *_, **__: None)
    train(run, 0, [arch], keep=keep)
    assert 0 < len({path for path in read if path.startswith(arch)}) <= 20
