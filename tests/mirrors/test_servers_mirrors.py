"""Mirrors on each real server: the whole of a run's life there, and what only a large file shows."""

import os
import shutil
import time

import pytest
from mirrored_runs import draws, flip, names, steps, train
from servers.contents import folders, held, key_of, url_of
from servers.faultproxy import reset, status
from servers.stores import Google

import holdfast
from holdfast import Keep, Mirror
from holdfast.objects import parts, stores
from holdfast.store import book

LARGE = 18 << 20
"""Of 4 bytes each: 72 MiB, five parts."""


@pytest.fixture
def run(tmp_path):
    return str(tmp_path / "run")


def events(run, kind):
    return [event for event in book.read_events(run) if event["event"] == kind]


def test_a_runs_life_on_each_server(store, run, tmp_path):
    """Copied, thinned out, lost, fetched and continued to the bit: on every server as on a disk."""
    straight = draws(str(tmp_path / "straight"), 8)
    mirror = Mirror(url_of(store), keep=Keep(last=2))
    draws(run, 5, [mirror])
    # Which one stays beside the newest depends on how fast the copies were.
    assert held(store) == folders(store)
    assert held(store)[-1] == 5
    assert len(held(store)) == 2
    for name in names(run)[-1:]:
        for file in os.listdir(os.path.join(run, name)):
            with open(os.path.join(run, name, file), "rb") as here:
                assert store.read(f"runs/first/{name}/{file}") == here.read()
    shutil.rmtree(run)
    assert draws(run, 8, [mirror]) == straight
    assert held(store) == folders(store)
    assert held(store)[-1] == 8
    assert len(held(store)) == 2
    assert events(run, "fetch")
    assert len(store.keys()) == len(store.keys("runs/first/0")) + 1, (
        "beside the checkpoints lies run.json alone"
    )


def test_damage_on_each_server(store, run):
    """A damaged block is taken from each server, and what is damaged there is copied anew and never seen meanwhile."""
    train(run, 2, [url_of(store)])
    flip(run, 2)
    key = key_of(store, 1, "state.safetensors")
    store.write(key, store.read(key)[:-1])
    assert train(run, 0, [url_of(store)]) == 2
    assert len(events(run, "repair")) == 1
    assert steps(run) == held(store) == [1, 2]


def test_two_servers_at_once(moto_store, ceph_store, run):
    """Two mirrors in different kinds of store are brought up to date side by side, each through its own URL."""
    # One environment leads S3 clients to one server: the other one is reached as Google's.
    google = Google(moto_store.server)
    try:
        with pytest.MonkeyPatch.context() as patch:
            for name, value in google.environ(google.endpoint).items():
                patch.setenv(name, value)
            train(run, 3, [url_of(ceph_store), f"gs://{moto_store.name}/runs/first"])
    finally:
        google.stop()
    assert held(ceph_store) == held(moto_store) == [2, 3]


# -- large files ---------------------------------------------------------------------------------------


def test_an_interrupted_copy_goes_on_by_part(real_store, run, proxied, monkeypatch):
    """After an interruption the next launch sends only the parts that are not there, counted on the wire."""
    monkeypatch.setattr(stores, "BULK_RETRIES", 0.1)
    proxy = proxied(real_store)
    proxy.inject(status(403, "AccessDenied"), path=real_store.part(4, 5), times=None)
    train(run, 1, [url_of(real_store)], size=LARGE)
    assert held(real_store) == []
    assert folders(real_store) == [1]
    [event] = [event for event in events(run, "mirror") if "problem" in event][:1]
    assert "do not allow it" in event["problem"]
    proxy.heal()
    proxy.log.clear()
    train(run, 0, [url_of(real_store)], size=LARGE)
    assert held(real_store) == [1]
    assert real_store.uploads() == []
    whole = real_store.sizes()[key_of(real_store, 1, "state.safetensors")]
    assert proxy.sent("PUT", real_store.part()) == whole - 3 * parts.PART_SIZE
    [event] = [event for event in events(run, "mirror") if "bytes" in event]
    assert event["bytes"] < whole - 3 * parts.PART_SIZE + 100_000, "the history says more than was sent"


def test_parts_that_nobody_continues_are_removed(parted_store, run, proxied, monkeypatch):
    """Parts of a checkpoint that left the run before it was copied are gone after the next copy: they would be paid for."""
    monkeypatch.setattr(stores, "BULK_RETRIES", 0.1)
    proxy = proxied(parted_store)
    proxy.inject(reset(), path=parted_store.part(5), times=None)
    train(run, 1, [url_of(parted_store)], size=LARGE)
    assert len(parted_store.uploads()) == 1
    proxy.heal()
    for key in parted_store.sizes("runs/first/0"):  # what a list of objects shows; the parts are not in it
        parted_store.remove(key)
    shutil.rmtree(os.path.join(run, names(run)[0]))
    time.sleep(1 - time.time() % 1)  # in the same second the next one would have the same name
    train(run, 1)
    train(run, 0, [url_of(parted_store)])
    assert held(parted_store) == folders(parted_store) == [1]
    assert parted_store.uploads() == []


def test_it_reads_as_a_run_by_hand(ceph_store, run, tmp_path):
    """What lies in a bucket, copied with any tool, is a run that opens, without a lease and without links."""
    train(run, 2, [url_of(ceph_store)])
    place = tmp_path / "copied"
    for key in ceph_store.sizes():
        path = place / key.removeprefix("runs/first/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(ceph_store.read(key))
    assert holdfast.open(str(place)).progress.step == 2
    assert holdfast.open(str(place)).verify() == []
