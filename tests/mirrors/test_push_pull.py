"""`push` and `pull` as a user meets them: what goes, what stays, what is refused, and what a kill leaves."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from click.testing import CliRunner
from mirrored_runs import content, draws, flip, names, steps, train

import holdfast
from holdfast import DamagedError, Keep, LeaseError, UsageError, rewinding
from holdfast.cli.main import INTERRUPTED, main
from holdfast.mirrors import folder
from holdfast.mirrors.folder import Folder
from holdfast.pulling import Pull
from holdfast.pushing import Push
from holdfast.store import book, catalog

ALL = Keep(last=None, metric="m", mode="max")
BIG = 9 << 20  # numbers of four bytes: three blocks


@pytest.fixture
def run(tmp_path):
    return str(tmp_path / "run")


@pytest.fixture
def arch(tmp_path):
    return str(tmp_path / "arch")


@pytest.fixture
def new(tmp_path):
    return str(tmp_path / "new")


def ranked(run, values=(1.0, 9.0, 3.0)):
    """A run whose checkpoints have the metric `m`."""
    with holdfast.Run(run, keep=ALL) as opened:
        start = opened.resume().step
        for step, value in enumerate(values[start:], start + 1):
            opened.state.update(content(step))
            opened.save(step=step, metrics={"m": value}, wait=True)


def call(*words):
    result = CliRunner().invoke(main, [str(word) for word in words], prog_name="holdfast")
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def statuses(task):
    return [item.status for item in task.items]


def copied(task, **options):
    task.go(**options)
    return statuses(task)


# -- push --------------------------------------------------------------------------------------------


def test_push_copies_what_is_not_there(run, arch):
    """A push copies every whole checkpoint to the byte, newest first; a second one sends nothing, and deletes nothing."""
    ranked(run)
    order = []
    task = Push(run, arch)
    task.go(ended=lambda item: order.append(item.name))
    assert order == names(run)[::-1]
    assert steps(arch) == [1, 2, 3]
    assert sorted(os.listdir(arch)) == [*names(run), "run.json"]
    for name in names(run):
        for file in os.listdir(os.path.join(run, name)):
            here, there = (os.path.join(place, name, file) for place in (run, arch))
            with open(here, "rb") as one, open(there, "rb") as other:
                assert one.read() == other.read()
            assert os.stat(here).st_ino != os.stat(there).st_ino, "a hard link"
    shutil.rmtree(os.path.join(run, names(run)[0]))
    before = {path: os.stat(os.path.join(arch, path)).st_mtime_ns for path in os.listdir(arch)}
    again = Push(run, arch)
    assert copied(again) == ["there", "there"]
    assert sum(item.sent for item in again.items) == 0
    assert steps(arch) == [1, 2, 3]
    assert before == {path: os.stat(os.path.join(arch, path)).st_mtime_ns for path in os.listdir(arch)}
    assert [event for event in book.read_events(run) if event["event"] == "push"] == []


@pytest.mark.parametrize(
    ("words", "found"),
    [
        (["best"], [2]),
        (["newest"], [3]),
        (["latest", "step=1"], [1, 3]),
        (["-2"], [2]),
        (["@seq=1"], [1]),
        (["best", "best"], [2]),
    ],
)
def test_only_what_is_named(words, found, run, arch, new):
    """`--only` takes the words of a reference, several of them, in both directions."""
    ranked(run)
    Push(run, arch, words).go()
    assert steps(arch) == found
    Push(run, arch).go()
    Pull(arch, new, words).go()
    assert steps(new) == found


def test_only_by_name(run, arch):
    """`--only` takes names of checkpoints; what means none is refused, and lists what there is."""
    ranked(run)
    Push(run, arch, [names(run)[1]]).go()
    assert steps(arch) == [2]
    with pytest.raises(holdfast.NotFoundError, match="has no checkpoint for @step=9"):
        Push(run, arch, ["step=9"])
    with pytest.raises(holdfast.NotFoundError, match=names(run)[0]):
        Push(run, arch, ["000009_epoch-0000_step-00000009_20261127T000000Z"])
    with pytest.raises(UsageError, match="'bset' means no checkpoint"):
        Push(run, arch, ["bset"])


def test_damage_is_not_pushed(run, arch):
    """A damaged checkpoint is named, with exit code 5, and does not keep the others from being copied."""
    ranked(run)
    flip(run, 2)
    with open(os.path.join(run, names(run)[2], "checkpoint.json"), "r+b") as file:
        file.write(b"?")
    done = call("push", run, arch)
    assert done.exit_code == DamagedError.exit_code
    assert steps(arch) == [1]
    assert f"damaged  {names(run)[1]}" in done.output
    assert "is damaged in block 0 of 1" in done.output
    assert f"damaged  {names(run)[2]}" in done.output
    assert "1 checkpoint copied" in done.output
    assert "2 not copied" in done.output
    assert [name for name in os.listdir(arch) if name.startswith(".")] == []


def test_what_retention_deletes_meanwhile_is_passed_over(run, arch, monkeypatch):
    """A checkpoint that the run's policy deletes during the push is told, and is no failure."""
    ranked(run)
    real = Folder.target

    def target(self, name):
        if name == names(run)[0]:
            shutil.rmtree(os.path.join(run, name))
        return real(self, name)

    monkeypatch.setattr(Folder, "target", target)
    done = call("push", run, arch, "--jobs", 1)
    assert done.exit_code == 0
    assert "gone     000001" in done.output
    assert steps(arch) == [2, 3]
    assert [name for name in os.listdir(arch) if name.startswith(".")] == []


def test_what_was_cut_is_sent_again_and_what_differs_is_left(run, arch):
    """A checkpoint that lost a file in the place is copied once more; another one of the same name stays, with exit code 6."""
    ranked(run)
    Push(run, arch).go()
    os.unlink(os.path.join(arch, names(arch)[0], "README.md"))
    os.truncate(os.path.join(arch, names(arch)[1], "state.safetensors"), 5000)
    assert copied(Push(run, arch)) == ["copied", "copied", "there"]
    assert steps(arch) == [1, 2, 3]
    path = os.path.join(run, names(run)[0], "checkpoint.json")
    with open(path, "rb") as file:
        data = file.read()
    from holdfast.format import sealed

    changed = sealed.decode(data, path)
    changed["note"] = "another"
    with open(path, "wb") as file:
        file.write(sealed.encode(changed))
    done = call("push", run, arch)
    assert done.exit_code == 6
    assert "differs  000001" in done.output
    assert open(os.path.join(arch, names(arch)[0], "checkpoint.json"), "rb").read() == data


def test_marks_go_along(run, arch):
    """What is pinned is pinned there; what a rewind left behind only goes along where it is named, with its mark."""
    ranked(run)
    holdfast.open(f"{run}@seq=1").pin()
    rewinding.rewind(run, "@seq=2")
    task = Push(run, arch)
    assert copied(task) == ["copied", "copied"]
    assert task.abandoned == 1
    assert catalog.marks(arch, "pins") == {names(run)[0]}
    Push(run, arch, [names(run)[2]]).go()
    assert catalog.marks(arch, "abandoned") == {names(run)[2]}
    assert holdfast.open(arch).progress.step == 2


def test_a_place_that_is_further_keeps_its_book(run, arch):
    """A push from an older copy of a run does not put an older run.json into the place."""
    ranked(run)
    shutil.copytree(run, run + ".old", symlinks=True)
    with holdfast.Run(run, keep=ALL, note="later") as opened:
        opened.resume()
        opened.save(step=9, wait=True)
    Push(run, arch).go()
    shutil.rmtree(os.path.join(arch, names(arch)[0]))
    Push(run + ".old", arch).go()
    assert steps(arch) == [1, 2, 3, 9]
    assert book.read_run(arch).note == "later"


# -- beside a living training ------------------------------------------------------------------------


def test_a_living_run_keeps_its_mirrors_itself(run, arch, tmp_path):
    """A push to a mirror of a living training is refused, who trains is named; elsewhere it goes on beside it."""
    opened = holdfast.Run(run, mirrors=[arch], keep=ALL)
    opened.resume()
    opened.state.update(content(1))
    opened.save(step=1, wait=True)
    with pytest.raises(LeaseError, match=rf"is a mirror of .* being trained by pid {os.getpid()}"):
        Push(run, arch)
    other = str(tmp_path / "other")
    Push(run, other).go()
    opened.state.update(content(2))
    opened.save(step=2, wait=True)
    opened.close()
    assert steps(other) == [1]
    assert steps(arch) == steps(run) == [1, 2]
    assert copied(Push(run, arch)) == ["there", "there"]


def test_a_living_push_is_left_alone(run, arch, said):
    """While a push of a living process is under way, neither a push nor a training takes its work away."""
    ranked(run)
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"]) as other:
        try:
            from holdfast.store import holder

            start = holder.process_start(other.pid)
            me = folder.writer_here("x").split("_")
            begun = os.path.join(arch, f".copying-{'_'.join([me[0], me[1], str(other.pid), start, 'x'])}")
            os.makedirs(begun)
            with pytest.raises(
                holdfast.StorageError, match=f"A push to .* is under way, by pid {other.pid} "
            ):
                Push(run, arch).go()
            train(run, 0, [arch], keep=ALL)
            assert "A push to" in said.text
            assert os.path.isdir(begun)
        finally:
            other.kill()
    Push(run, arch).go()
    assert steps(arch) == [1, 2, 3]
    assert not os.path.exists(begun)


def test_a_push_that_was_taken_over_says_so(run, arch, monkeypatch):
    """A push whose place another writer took over publishes nothing more, and says why."""
    ranked(run)
    real = Folder.publish

    def publish(self, name):
        Folder(arch, "later").enter(open(os.path.join(run, "run.json"), "rb").read())
        real(self, name)

    monkeypatch.setattr(Folder, "publish", publish)
    with pytest.raises(holdfast.StorageError, match="Another process has begun to copy"):
        Push(run, arch).go()
    assert steps(arch) == []


# -- pull --------------------------------------------------------------------------------------------


def test_two_commands_on_a_new_machine(run, arch, new):
    """Pull, then start the script: the training ends to the bit as one that stayed where it was."""
    draws(run, 9)
    Push(run, arch).go()
    straight = draws(run, 20)
    done = call("pull", arch, new)
    assert done.exit_code == 0, done.output
    assert "checkpoints copied" in done.output
    assert names(new) == names(arch)
    assert book.read_run(new).id == book.read_run(run).id
    assert os.readlink(os.path.join(new, "latest")) == names(arch)[-1]
    assert call("verify", new).exit_code == call("ls", new).exit_code == 0
    assert draws(new, 20) == straight


def test_pull_adds_what_is_missing(run, arch, new):
    """A run of the same id gets what it lacks, and what it has is not sent again; another run is refused."""
    ranked(run)
    Push(run, arch).go()
    Pull(arch, new, ["step=2"]).go()
    task = Pull(arch, new)
    assert copied(task) == ["copied", "there", "copied"]
    assert steps(new) == [1, 2, 3]
    train(new + "2", 1)
    with pytest.raises(UsageError, match="is another run than that in"):
        Pull(arch, new + "2")
    assert steps(new + "2") == [1]


def test_the_best_alone_is_gone_on_from(run, arch, new):
    """After `pull --only best` a training goes on from the best, with numbers that the run has never used."""
    ranked(run)
    Push(run, arch).go()
    Pull(arch, new, ["best"]).go()
    with holdfast.Run(new, keep=ALL) as opened:
        assert opened.resume().step == 2
        assert np.array_equal(opened.state["w"], content(2)["w"])
        assert opened.best.progress.step == 2
        opened.save(step=7, metrics={"m": 2.0}, wait=True)
    assert [name[:6] for name in names(new)] == ["000002", "000004"]


def test_what_training_resumes_from_comes_first(run, arch, new):
    """The newest clean checkpoint comes first, then the best, then the others from new to old."""
    ranked(run, (1.0, 9.0, 3.0, 4.0))
    Push(run, arch).go()
    order = []
    Pull(arch, new).go(ended=lambda item: order.append(int(item.name[:6])))
    assert order == [4, 2, 3, 1]


def test_a_pull_does_not_undo_a_rewind(run, arch):
    """What the run left behind by a rewind, known to it or not, only comes back where it is named, and is marked."""
    ranked(run)
    shutil.copytree(run, run + ".old", symlinks=True)
    ranked(run, (1.0, 9.0, 3.0, 4.0))
    Push(run, arch).go()
    shutil.rmtree(run)
    os.rename(run + ".old", run)
    rewinding.rewind(run, "@seq=2")
    task = Pull(arch, run)
    task.go()
    assert steps(run) == [1, 2, 3]
    assert task.abandoned == 2
    Pull(arch, run, ["seq=4"]).go()
    assert holdfast.open(run).progress.step == 2
    assert len(catalog.marks(run, "abandoned")) == 2


def test_a_run_that_was_rewound_can_be_pulled_in_two_goes(run, arch, new):
    """What a place knows of a rewind counts: what is older than it and was not left behind comes, whenever it is pulled."""
    ranked(run, (1.0, 9.0, 3.0, 4.0))
    rewinding.rewind(run, "@seq=3")
    Push(run, arch).go()
    Push(run, arch, ["seq=4"]).go()
    Pull(arch, new, ["seq=1"]).go()
    task = Pull(arch, new)
    assert copied(task) == ["there", "copied", "copied"]
    assert task.abandoned == 1
    assert steps(new) == [1, 2, 3]


def test_damage_is_not_pulled(run, arch, new):
    """A damaged checkpoint in the place is named, with exit code 5, and the others come."""
    ranked(run)
    Push(run, arch).go()
    flip(arch, 2)
    done = call("pull", arch, new)
    assert done.exit_code == DamagedError.exit_code
    assert steps(new) == [1, 3]
    assert "is damaged in block 0 of 1" in done.output
    assert not [name for name in os.listdir(new) if name.startswith(".")]


def test_a_living_run_is_not_pulled_into(run, arch):
    """A run that is being trained is left alone, and its holder named; its lease is free after a pull."""
    ranked(run)
    Push(run, arch).go()
    shutil.rmtree(os.path.join(run, names(run)[0]))
    opened = holdfast.Run(run, keep=ALL)
    opened.resume()
    with pytest.raises(LeaseError, match=f"pid {os.getpid()}|this very process"):
        Pull(arch, run).go()
    opened.close()
    Pull(arch, run).go()
    train(run, 0, keep=ALL)
    assert steps(run) == [1, 2, 3]


# -- what a kill leaves -------------------------------------------------------------------------------

KILLED = """
import os, signal, sys
from holdfast.mirrors import copying
real = copying._take
def take(sources, file, number, *more):
    if file == "state.safetensors" and number == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    real(sources, file, number, *more)
copying._take = take
{act}
"""


def killed(act):
    done = subprocess.run(
        [sys.executable, "-c", KILLED.format(act=act)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == -signal.SIGKILL, done.stderr


def test_a_killed_push_and_pull_go_on_at_the_block(run, arch, new):
    """Killed in the middle of a file, the same command sends only the blocks that are not there yet, or not right."""
    train(run, 1, size=BIG)
    killed(f"from holdfast.pushing import Push; Push({run!r}, {arch!r}).go(jobs=1)")
    assert names(arch) == []
    [begun] = [name for name in os.listdir(arch) if name.startswith(".")]
    with open(os.path.join(arch, begun, names(run)[0], "state.safetensors"), "r+b") as file:
        file.write(b"torn")
    task = Push(run, arch)
    assert copied(task) == ["copied"]
    assert task.items[0].found >> 20 in (0, 16)  # the block before the last one may have been on its way
    assert steps(arch) == [1]
    killed(f"from holdfast.pulling import Pull; Pull({arch!r}, {new!r}).go(jobs=1)")
    assert names(new) == []
    task = Pull(arch, new)
    assert copied(task, jobs=3) == ["copied"]
    assert task.items[0].found >> 20 in (16, 32)
    assert train(new, 0, size=BIG) == 1


def test_a_killed_launch_goes_on_fetching_at_the_block(run, arch, said):
    """A launch that is killed while it fetches goes on at the block; what was begun in vain is cleared away."""
    train(run, 1, [arch], size=BIG)
    shutil.rmtree(run)
    script = f"import holdfast; holdfast.Run({run!r}, mirrors=[{arch!r}]).resume()"
    killed(script)
    killed(script)  # and what two of them left is one
    os.makedirs(os.path.join(run, ".fetching-000001", "000009_epoch-0000_step-00000009_20261127T000000Z"))
    assert train(run, 0, [arch], size=BIG) == 1
    [event] = [event for event in book.read_events(run) if event["event"] == "fetch"]
    assert event["found"] >> 20 in (16, 32)
    assert not [name for name in os.listdir(run) if name.startswith(".")]


def test_nothing_is_begun_beside_an_unfinished_pull(run, arch, new):
    """A launch into which nothing came yet is refused, and says which command goes on; `prune` clears it away."""
    train(run, 1, size=BIG)
    killed(f"from holdfast.pulling import Pull; Pull({run!r}, {new!r}).go(jobs=1)")
    with pytest.raises(UsageError, match="the same `holdfast pull` again"):
        train(new, 1)
    assert train(new, 0, [run], size=BIG) == 1, "the launch with its mirror goes on"
    shutil.rmtree(new)
    killed(f"from holdfast.pulling import Pull; Pull({run!r}, {new!r}).go(jobs=1)")
    assert ".fetching-" in call("prune", new).output
    call("prune", new, "--yes")
    assert not [name for name in os.listdir(new) if name.startswith(".")]
    assert train(new, 1) == 0


def test_an_unfinished_pull_is_told_of(run, new, said):
    """A launch in a run that has some checkpoints, and into which others were being fetched, goes on, and says so."""
    train(run, 2, size=BIG)
    Pull(run, new, ["step=1"]).go()
    killed(f"from holdfast.pulling import Pull; Pull({run!r}, {new!r}).go(jobs=1)")
    assert train(new, 0, size=BIG) == 1
    assert "were being fetched into" in said.text
    Pull(run, new).go()
    assert steps(new) == [1, 2]


def test_ctrl_c_ends_promptly(run, arch):
    """Ctrl-C ends a push at the next block with exit code 130, and says that the same command goes on."""
    train(run, 1, size=BIG)
    code = (
        "import time, sys; from holdfast.mirrors import copying; real = copying._take\n"
        "def take(*all):\n    print('block', flush=True); time.sleep(0.4); real(*all)\n"
        "copying._take = take\nfrom holdfast.cli.main import main; main()"
    )
    words = [sys.executable, "-c", code, "push", run, arch, "--jobs", "1"]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        process.stdout.readline()
        process.send_signal(signal.SIGINT)
        started = time.monotonic()
        _, said = process.communicate(timeout=60)
        assert time.monotonic() - started < 30
    assert process.returncode == INTERRUPTED
    assert "the same command goes on where it was" in said
    assert "Traceback" not in said
    assert names(arch) == []
    assert copied(Push(run, arch)) == ["copied"]


def test_memory_is_bounded(run, arch, monkeypatch):
    """A push holds no more blocks in memory than it was allowed jobs."""
    from holdfast.payload import staging

    train(run, 1, size=3 * BIG)
    real, taken = staging.Pool.take, []
    monkeypatch.setattr(staging.Pool, "take", lambda self, count: taken.append(count) or real(self, count))
    Push(run, arch).go(jobs=2)
    assert taken == [1, 1]


# -- the commands ------------------------------------------------------------------------------------


def test_a_dry_run_changes_nothing(run, arch, new):
    """`--dry-run` says what would be copied, and makes nothing, not even a directory."""
    ranked(run)
    done = call("push", run, arch, "--dry-run", "--only", "best,newest")
    assert done.exit_code == 0
    assert done.output.count("to copy") == 2
    assert "2 checkpoints would be copied" in done.output
    assert not os.path.exists(arch)
    call("pull", run, new, "--dry-run")
    assert not os.path.exists(new)


def test_a_rehearsal_pushes_nothing(run, arch, monkeypatch):
    """A script that is rehearsed, and pushes its run, writes to no other place, and is not failed for it."""
    from holdfast import stage

    ranked(run)
    monkeypatch.setattr(stage, "current", lambda: object())
    done = call("push", run, arch)
    assert done.exit_code == 0
    assert "this is a rehearsal: nothing is pushed" in done.output
    assert not os.path.exists(arch)


def test_json(run, arch):
    """`--json` prints one object with what became of each checkpoint."""
    ranked(run)
    flip(run, 1)
    done = call("push", run, arch, "--json")
    found = json.loads(done.stdout)
    assert done.exit_code == 5
    assert (found["source"], found["target"]) == (run, arch)
    assert [row["status"] for row in found["checkpoints"]] == ["damaged", "copied", "copied"]
    assert found["checkpoints"][1]["sent"] >= found["checkpoints"][1]["size"] > 8000


def test_what_makes_no_sense_is_refused(run, arch, new, tmp_path):
    """Swapped, the same place twice, nested, foreign, missing, out of reach: each is said, and nothing is written."""
    ranked(run)
    Push(run, arch).go()
    os.mkdir(tmp_path / "full")
    (tmp_path / "full" / "file").write_text("mine")
    (tmp_path / "plain").write_text("mine")
    cases = [
        (("push", new, arch), 4, "are the two swapped? The run comes first"),
        (("push", "s3://bucket/x", run), 2, "push copies from a run on this machine"),
        (("push", run, run), 2, "are the same place"),
        (("push", run, os.path.join(run, "in")), 2, "lies in"),
        (("push", run, tmp_path), 2, "holds"),
        (("push", run, tmp_path / "full"), 2, "is not a run and not empty"),
        (("push", run, tmp_path / "plain"), 2, "is a file"),
        (("push", run, tmp_path / "no" / "place"), 10, "there is no directory"),
        (("push", run, "ftp://x/y"), 2, "ftp"),
        (("push", os.path.join(run, names(run)[0]), arch), 4, "is not a run"),
        (("pull", new, run), 4, "are the two swapped? The place comes first"),
        (("pull", arch, "s3://bucket/x"), 2, "pull brings checkpoints to this machine"),
        (("pull", run, run), 2, "are the same place"),
        (("pull", arch, tmp_path / "full"), 2, "is not a run and not empty"),
        (("pull", tmp_path / "full", new), 4, "is no run"),
        (("pull", os.path.join(arch, names(arch)[0]), new), 4, "is a checkpoint, and no run"),
        (("push", tmp_path / "nowhere", arch), 4, "There is nothing at"),
        (("pull", tmp_path / "nowhere", new), 4, "There is nothing at"),
        (("push", run, arch, "--only", "none"), 2, "means no checkpoint"),
    ]
    for words, code, text in cases:
        done = call(*words)
        assert done.exit_code == code, (words, done.output)
        assert text in done.output, (words, done.output)
        assert "Traceback" not in done.output
    assert sorted(os.listdir(tmp_path)) == ["arch", "full", "plain", "run"]
    assert os.listdir(tmp_path / "full") == ["file"]
    train(new, 1)
    done = call("push", run, new)
    assert (done.exit_code, "holds another run" in done.output) == (2, True)


def test_unreadable(run, arch, new, monkeypatch):
    """A place that may not be read or written is a storage error with the path and what helps."""
    ranked(run)
    Push(run, arch).go()
    real = os.listdir

    def listdir(path="."):
        if os.path.abspath(path) == arch:
            raise PermissionError(13, os.strerror(13), path)
        return real(path)

    monkeypatch.setattr(os, "listdir", listdir)
    for words in (("push", run, arch), ("pull", arch, new)):
        done = call(*words)
        assert done.exit_code == 10
        assert f"Cannot list {arch}: Permission denied. Check the owner and the permissions" in done.output
    assert not os.path.exists(new)


# -- an object store ---------------------------------------------------------------------------------


def test_what_is_no_run_in_a_bucket(bucket, run, new):
    """A pull from a checkpoint, or from something else, says which it is; nothing is written."""
    ranked(run)
    Push(run, f"s3://{bucket}/first").go()
    for url, text in (
        (f"s3://{bucket}/first/{names(run)[0]}", "is a checkpoint, and no run"),
        (f"s3://{bucket}", "is no run: it has no run.json"),
        (f"s3://{bucket}/other", "There is no run in"),
    ):
        done = call("pull", url, new)
        assert (done.exit_code, text in done.output) == (4, True), done.output
        assert not os.path.exists(new)


def test_to_a_bucket_and_back(bucket, run, new):
    """Push and pull work with an object store: sent once, by file, and to the bit."""
    pytest.importorskip("obstore")
    ranked(run)
    url = f"s3://{bucket}/first"
    assert copied(Push(run, url)) == ["copied"] * 3
    assert copied(Push(run, url)) == ["there"] * 3
    assert call("push", run, url).exit_code == 0
    Pull(url, new).go()
    assert steps(new) == [1, 2, 3]
    assert names(new) == names(run)
    with holdfast.Run(new, keep=ALL) as opened:
        assert opened.resume().step == 3
        assert opened.best.progress.step == 2
    assert copied(Pull(url, new)) == ["there"] * 3


def test_a_kill_on_the_way_to_a_real_server_and_back(real_store, run, new):
    """Killed in the middle of a large file on a real server, a push goes on by part and a pull at the block."""
    url = f"{real_store.url}/first"
    train(run, 1, size=BIG)
    killed(f"from holdfast.pushing import Push; Push({run!r}, {url!r}).go(jobs=1)")
    task = Push(run, url)
    assert copied(task, jobs=3) == ["copied"]
    assert task.items[0].found >> 20 in (0, 16)
    assert task.items[0].sent + task.items[0].found >= 36 << 20
    killed(f"from holdfast.pulling import Pull; Pull({url!r}, {new!r}).go(jobs=1)")
    task = Pull(url, new)
    assert copied(task) == ["copied"]
    assert task.items[0].found >> 20 in (16, 32)
    assert train(new, 0, [url], size=BIG) == 1


# -- what strangers left -------------------------------------------------------------------------------


def test_links_are_not_followed(run, arch, new, tmp_path):
    """Links that a stranger put where something is to be built are removed, and what they lead to is left alone."""
    train(run, 1)
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "mine").write_text("mine")
    for place in (os.path.join(arch, ".copying-x"), os.path.join(new, ".fetching-000009")):
        os.makedirs(place)
        os.symlink(outside, os.path.join(place, names(run)[0]))
    Push(run, arch).go()
    Pull(run, new).go()
    os.symlink(outside, os.path.join(new, ".fetching-000002"))  # the next holder's own
    shutil.rmtree(os.path.join(new, names(new)[0]))
    Pull(run, new).go()
    assert steps(new) == steps(arch) == [1]
    assert os.listdir(outside) == ["mine"]
    assert not [name for name in [*os.listdir(new), *os.listdir(arch)] if name.startswith(".")]


# -- fetching, seen from inside ------------------------------------------------------------------------


def test_a_holder_that_lost_its_lease_publishes_nothing_that_it_fetched(run, arch, tmp_path):
    """A fetch that was only asleep, when its run was taken over, makes nothing visible and takes nothing away."""
    from holdfast.mirrors import copying
    from holdfast.mirrors.arrivals import Arrivals
    from holdfast.mirrors.folder import FolderSource
    from holdfast.store.lease import Lease

    train(run, 1)
    os.mkdir(arch)
    source = [FolderSource(os.path.join(run, names(run)[0]))]
    lease = Lease.acquire(arch)
    asleep = Arrivals(arch, lease.writing)
    asleep.enter()
    copying.copy(source, asleep.target(names(run)[0]), lambda _: None)
    with open(os.path.join(arch, "lease-000001"), "w"):  # as if its holder had died
        pass
    later = Lease.acquire(arch, stale_after=0.1)
    with pytest.raises(holdfast.StorageError):
        asleep.publish(names(run)[0])
    assert names(arch) == []
    area = Arrivals(arch, later.writing)
    area.enter()
    asleep.forget(names(run)[0])
    copied = copying.copy(source, area.target(names(run)[0]), lambda _: None)
    assert copied.found > 8000
    area.publish(names(run)[0])
    assert len(names(arch)) == 1
    later.release()
    lease.release()


def test_a_launch_tells_how_far_its_fetch_is(run, arch, said, monkeypatch):
    """In a log, a launch that fetches says the share, the rate and the time left now and then."""
    from holdfast import meter

    train(run, 1, [arch], size=BIG)
    shutil.rmtree(run)
    monkeypatch.setattr(meter, "LINE_SECONDS", 0.0)
    monkeypatch.setattr(meter, "WORTH_SHOWING", 1 << 20)
    train(run, 0, [arch], size=BIG)
    line = r"fetching 000001\S+: 44% \(16\.8 MB of 37\.8 MB\), [\d.]+ [MG]B/s, \S+ s left"
    assert re.search(line, said.text), said.text


def test_a_fetch_on_a_terminal_shows_a_bar(run, arch):
    """On a terminal there is a bar instead, and nothing of it stays."""
    import pty

    train(run, 1, [arch], size=BIG)
    shutil.rmtree(run)
    code = (
        "from holdfast import meter; meter.WORTH_SHOWING = 1 << 20; import holdfast\n"
        f"holdfast.Run({run!r}, mirrors=[{arch!r}]).resume()"
    )
    ours, theirs = pty.openpty()
    with subprocess.Popen(
        [sys.executable, "-c", code], stderr=theirs, env={**os.environ, "TERM": "xterm"}
    ) as process:
        os.close(theirs)
        shown = b""
        while True:
            try:
                shown += os.read(ours, 4096)
            except OSError:
                break
    os.close(ours)
    assert process.returncode == 0
    assert b"fetching 000001" in shown
    assert b"MB" in shown
