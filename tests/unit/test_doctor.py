"""`examine`: what it finds, that it leaves nothing behind, and what it advises."""

import os
import subprocess
import sys

import pytest
from cli_runs import make_run

import holdfast
from holdfast import doctor, files
from holdfast.doctor import SaveCost, examine, save_cost, suggested_interval
from holdfast.errors import NotFoundError, StorageError
from holdfast.store import quota


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
    assert any("Every(minutes=" in line for line in report.suggestions)
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
        saves=20, bytes=100, held_seconds=0.1, longest_held_seconds=0.5, seconds=1.0
    )
    assert save_cost([]) is None


def test_the_interval_costs_one_percent_and_leaves_time_to_write():
    """Saves are suggested so far apart that they hold the training 1 % of its time, and never overlap."""
    cost = SaveCost(saves=1, bytes=1, held_seconds=3.0, longest_held_seconds=3.0, seconds=10.0)
    assert suggested_interval(cost) == 300.0
    cost = SaveCost(saves=1, bytes=1, held_seconds=0.001, longest_held_seconds=0.001, seconds=40.0)
    assert suggested_interval(cost) == 80.0


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
