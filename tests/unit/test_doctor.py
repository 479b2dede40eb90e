"""`examine`: what it finds, that it leaves nothing behind, and what it advises."""

import math
import os
import subprocess
import sys

import pytest
from cli_runs import call, call_json, make_run

import holdfast
from holdfast import Every, doctor, files
from holdfast.cost import Choice, SaveCost, choices, save_cost, suggested_interval, used_every
from holdfast.doctor import examine
from holdfast.errors import NotFoundError, StorageError
from holdfast.store import book, quota


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setattr(doctor, "TEST_BYTES", 1 << 20)


def test_a_run_is_examined(tmp_path):
    """Versions, storage, the cost of the last saves and a suggestion are there, and no holder."""
    path = make_run(tmp_path / "run")
    before = sorted(os.listdir(path))
    report = examine(path)
    assert report.versions["holdfast"] == holdfast.__version__
    assert report.versions["python"] == sys.version.split()[0]
    assert report.storage.write_bytes == 1 << 20
    assert report.storage.write_speed > 0
    assert 0 < report.storage.free <= report.storage.total
    assert (report.cost.saves, report.run, report.holder) == (4, path, None)
    assert any("every=Every(overhead=0.01)" in line for line in report.suggestions)
    assert [(choice.every, choice.used) for choice in report.intervals] == [
        (Every(overhead=0.01), False),
        (Every(overhead=0.001, mtbf="24h"), False),
        (Every(mtbf="24h"), False),
    ]
    assert sorted(os.listdir(path)) == before


def test_no_framework_is_imported(tmp_path):
    """The versions of frameworks are told without importing them."""
    code = f"import sys; from holdfast.doctor import examine; examine({str(tmp_path)!r}, write=False); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_without_the_write_nothing_is_written(tmp_path, monkeypatch):
    """write=False creates nothing, not for a moment."""
    calls = []
    monkeypatch.setattr(files.system, "open", lambda *a: calls.append(a))
    report = examine(tmp_path, write=False)
    assert (calls, report.storage.write_seconds, report.storage.direct_io) == ([], None, None)


def test_a_failed_write_leaves_nothing(tmp_path, monkeypatch):
    """When the disk fails in the middle of the test write, the error comes and the file is gone."""

    def fail(fd):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(files.system, "fsync", fail)
    monkeypatch.setattr(files, "sync_directory", lambda path: True)
    with pytest.raises(StorageError):
        examine(tmp_path)
    assert os.listdir(tmp_path) == []


def test_little_space_is_not_filled(tmp_path, monkeypatch):
    """The test write takes at most a tenth of what is free."""
    monkeypatch.setattr(doctor, "free_bytes", lambda path: 500_000)
    assert examine(tmp_path).storage.write_bytes == 50_000 // 4096 * 4096
    monkeypatch.setattr(doctor, "free_bytes", lambda path: 1000)
    assert examine(tmp_path).storage.write_bytes is None


def test_a_directory_that_is_not_there_yet(tmp_path):
    """For a run that does not exist yet its nearest parent is examined, and nothing is created."""
    report = examine(tmp_path / "not" / "yet")
    assert report.storage.path == str(tmp_path)
    assert report.run is None
    assert os.listdir(tmp_path) == []
    (tmp_path / "file").write_text("x")
    with pytest.raises(NotFoundError, match="is a file"):
        examine(tmp_path / "file")


def test_a_holder_is_named(tmp_path):
    """While a run is open, the report says which process holds it."""
    path = make_run(tmp_path / "run", epochs=1)
    run = holdfast.Run(path, config={"lr": 0.1})
    run.resume()
    assert f"pid {os.getpid()}" in examine(path, write=False).holder
    run.close()


def test_cost_is_of_the_last_saves():
    """Medians are taken over the last twenty saves; lines that are not whole are left out."""
    events = [{"event": "save", "held_seconds": 9.0, "seconds": 9.0, "bytes": 9}] * 5
    events += [{"event": "save", "held_seconds": 0.1, "seconds": 1.0, "bytes": 100}] * 19
    events += [
        {"event": "save"},
        {"event": "resume"},
        {"event": "save", "held_seconds": 0.5, "seconds": 2, "bytes": 100},
    ]
    assert save_cost(events) == SaveCost(
        saves=20,
        bytes=100,
        held_seconds=0.1,
        longest_held_seconds=0.5,
        seconds=1.0,
        cost_seconds=0.1,
        slowdown_seconds=None,
        write_seconds=1.0,
    )
    assert save_cost([]) is None


def save_event(**facts):
    return {"event": "save", "held_seconds": 0.1, "seconds": 1.0, "bytes": 100, **facts}


def test_cost_is_what_was_measured_last():
    """What a training measured of its saves counts before what their copies took, the latest of it first."""
    events = [
        save_event(),
        save_event(cost_seconds=9.0, slowdown_seconds=8.0, write_seconds=7.0),
        save_event(cost_seconds=0.41, slowdown_seconds=0.1, write_seconds=1.2),
        save_event(),  # the first of a new launch, which has measured nothing yet
    ]
    cost = save_cost(events)
    assert (cost.cost_seconds, cost.slowdown_seconds, cost.write_seconds) == (0.41, 0.1, 1.2)
    assert cost.stall_seconds == pytest.approx(0.31)
    events.append(save_event(cost_seconds=0.3, write_seconds=1.1))  # no step could be compared
    cost = save_cost(events)
    assert (cost.cost_seconds, cost.slowdown_seconds, cost.write_seconds) == (0.3, None, 1.1)


@pytest.mark.parametrize("value", [math.nan, math.inf, -1, "x", [1], 10**400, {}])
def test_no_nonsense_is_believed(value):
    """A history that anybody has written into makes no cost, no slow-down and no Every of what is no number."""
    good = {"cost_seconds": 0.41, "slowdown_seconds": 0.1, "write_seconds": 1.2}
    for name in good:
        cost = save_cost([save_event(**{**good, name: value})])
        assert cost.slowdown_seconds in (None, 0.1)
        assert cost.cost_seconds in (0.1, 0.41)
    assert used_every([save_event(overhead=value)]) is None
    assert used_every([save_event(mtbf=value)]) is None


def test_absurd_numbers_give_no_infinite_interval():
    """Whatever a history says, intervals are finite numbers, as JSON has no others."""
    cost = save_cost([save_event(cost_seconds=1e300, write_seconds=1.0), save_event(held_seconds=1e300)])
    assert cost.cost_seconds == 0.1
    found = choices(cost, Every(overhead=5e-324))
    assert [choice.used for choice in found] == [False] * 3


def test_the_every_that_is_used():
    """The `Every` of the last save is told where it goes by cost; an earlier launch's is not."""
    paced = save_event(overhead=0.01, mtbf="24h")
    assert used_every([save_event(), paced]) == Every(overhead=0.01, mtbf="24h")
    assert used_every([paced, {"event": "resume"}]) == Every(overhead=0.01, mtbf="24h")
    assert used_every([save_event(overhead=None, mtbf=3600)]) == Every(mtbf=3600)
    assert used_every([paced, save_event()]) is None
    assert used_every([]) is None


def test_choices():
    """The Every that a run uses comes first, and each is what the policy says at the measured cost."""
    cost = save_cost([save_event(cost_seconds=0.41, slowdown_seconds=0.1, write_seconds=1.2)])
    own = Every(overhead=0.01, mtbf="24h")
    first, *others = choices(cost, own)
    terms = {"overhead": 41.0, "mtbf": pytest.approx(266.17, abs=0.01), "write": 1.2, "least": 1.0}
    assert first == Choice(0.01, "24h", True, 41.0, "overhead", terms)
    assert [(choice.every, choice.used, choice.term) for choice in others] == [
        (Every(overhead=0.01), False, "overhead"),
        (Every(overhead=0.001, mtbf="24h"), False, "mtbf"),
        (Every(mtbf="24h"), False, "mtbf"),
    ]
    assert [choice.used for choice in choices(cost, Every(mtbf="24h"))] == [True, False, False]


@pytest.mark.parametrize(
    ("facts", "words"),
    [
        (
            {"overhead": 0.01, "mtbf": "24h"},
            "every 41 s: 0.41 s a save / overhead 0.01 (mtbf 24h alone would give 4 min 26 s; a write takes 1.2 s)",
        ),
        (
            {"overhead": 0.001, "mtbf": "24h"},
            "every 4 min 26 s: √(2 · 0.41 s a save · mtbf 24h) (overhead 0.001 alone would give 6 min 50 s; a write takes 1.2 s)",
        ),
        (
            {"overhead": 0.01, "write_seconds": 55},
            "every 55 s: a write takes as long (overhead 0.01 alone would give 41 s)",
        ),
        (
            {"overhead": 0.5},
            "every 1.2 s: a write takes as long (overhead 0.5 alone would give 0.82 s)",
        ),
        (
            {"overhead": 0.5, "write_seconds": 0.1},
            "every 1 s: the least (overhead 0.5 alone would give 0.82 s; a write takes 0.1 s)",
        ),
    ],
)
def test_the_deciding_term_is_told(tmp_path, facts, words):
    """`holdfast doctor RUN` tells what a save costs, and what decides the interval of the run's own Every, in numbers."""
    path = make_run(tmp_path / "run", epochs=1)
    measured = {"cost_seconds": 0.41, "slowdown_seconds": 0.1, "write_seconds": 1.2}
    book.note_events(path, [save_event(**{**measured, **facts})])
    lines = call("doctor", path, "--no-write", env={"COLUMNS": "300"}).output.splitlines()
    own = repr(used_every([save_event(**facts)]))
    assert [line for line in lines if line.startswith("this run uses")] == [f"this run uses   {own}: {words}"]
    content = call_json("doctor", path, "--no-write")
    assert content["intervals"][0]["used"] is True
    assert content["intervals"][0]["overhead"] == facts["overhead"]
    assert content["cost"]["cost_seconds"] == 0.41
    assert not any("every=Every" in line for line in content["suggestions"])


def test_the_interval_costs_one_percent_and_leaves_time_to_write():
    """Saves are suggested so far apart that they hold the training 1 % of its time, and never overlap."""
    assert suggested_interval(save_cost([save_event(held_seconds=3.0, seconds=10.0)])) == 300.0
    assert suggested_interval(save_cost([save_event(held_seconds=0.001, seconds=40.0)])) == 40.0


def test_slurm_is_seen(tmp_path, monkeypatch):
    """The job's own variables are told."""
    monkeypatch.setenv("SLURM_JOB_ID", "4242")
    assert examine(tmp_path, write=False).slurm["job_id"] == "4242"


LUSTRE = "     /scratch   1048576*  524288 2097152       -    1000       0       0       -\n"
NONE = "     /scratch   1048576       0       0       -    1000       0       0       -\n"
PLAIN = """Disk quotas for user me (uid 1000):
     Filesystem  blocks   quota   limit   grace   files   quota   limit   grace
server:/export/me  2048    4096       0       0      10       0       0       0
"""


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (LUSTRE, quota.Quota(1 << 30, 2 << 30)),
        (NONE, None),
        (PLAIN, quota.Quota(2 << 20, 4 << 20)),
        ("", None),
        ("no quota here\n", None),
    ],
)
def test_quota_tools_are_read(text, expected):
    """The figures of `lfs quota` and `quota` are KiB; no limit means no quota."""
    assert quota.parse(text) == expected


def test_quota_bounds_the_write_and_is_told(tmp_path, monkeypatch):
    """What a quota leaves bounds the test write as free space does."""
    tool = tmp_path / "quota"
    device = quota._device(str(tmp_path))
    tool.write_text(f"#!/bin/sh\necho '{device} 1000 0 1400 0 0 0 0 0'\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    storage = examine(tmp_path).storage
    assert storage.quota.left == 400 * 1024
    assert storage.write_bytes == 40 * 1024 // 4096 * 4096
