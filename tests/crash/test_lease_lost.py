"""A run that is lost: what its former holder does when it wakes, and what the training hears."""

import dataclasses
import gc
import os
import time
import weakref

import numpy as np
import pytest
from rivals import Stopping, contents, rivals, take_from_elsewhere, train

import holdfast
from holdfast import Every, Keep, files
from holdfast.errors import LeaseError
from holdfast.store import lease as lease_module
from holdfast.store.holder import encode, myself

# -- a holder that sleeps through a take-over ----------------------------------------------------


def save_and_stop(rival, path, at):
    """Saves, and saves, publishes and deletes once more, and stops before the call number `at` of that."""
    lease_module.BEAT_SECONDS = 1e6
    run = train(path, rival, 2, keep=Keep(last=1), staging=0)
    files.system = system = Stopping(path, at)
    system.count = 0
    run.state["weights"] += 2
    try:
        run.save(step=3, wait=True)
        rival.tell(calls=system.names)
        run.save(step=4, wait=True)
    finally:
        files.system = files.System()


@pytest.fixture(scope="module")
def calls_of_a_save(tmp_path_factory):
    """The system calls of a save with retention, in a training that nobody disturbs."""
    path = str(tmp_path_factory.mktemp("calls") / "run")
    with rivals((save_and_stop, path, 0)) as (one,):
        heard = [one.hear() for _ in range(3)]
        assert one.end() == 0, heard
    calls = heard[2]["calls"]
    assert calls.count("rename") == 3, "a publication, a link, a deletion"
    return calls


@pytest.mark.parametrize("share", range(6))
def test_stopped_at_every_call_of_a_save(share, calls_of_a_save, tmp_path, monkeypatch, tried):
    """Wherever in a save, its publication or its deletions a holder sleeps through a take-over, it changes nothing after."""
    for at in range(share + 1, len(calls_of_a_save) + 1, 6):
        where = f"before call {at} ({calls_of_a_save[at - 1]})"
        path = str(tmp_path / f"run{at}")
        with rivals((save_and_stop, path, at)) as (one,):
            assert one.wait_until_stopped(), f"{where}: {one.hear()} {one.hear()} {one.hear()}"
            lease = take_from_elsewhere(path, monkeypatch)
            before = contents(path)
            one.wake()
            code = one.end()
            heard = [fact for fact in (one.hear(), one.hear(), one.hear(), one.hear()) if fact]
        assert contents(path) == before, where
        assert code == LeaseError.exit_code, f"{where}: {heard}"
        assert f"taken over by pid {os.getpid()} " in heard[-1]["error"], where
        lease.check()
        lease.release()
        newest = holdfast.open(path)
        assert newest.progress.step >= 2, where
        for checkpoint in holdfast.Run(path).checkpoints:
            assert checkpoint.verify() == [], where
        tried("schedules")


def loop_and_beat(rival, path, at):
    """A loop whose saves never come due, and that beats; the beat's call `at` stops the process."""
    lease_module.BEAT_SECONDS = 0.02
    run = holdfast.Run(path, every=Every(minutes=1000))
    run.state["weights"] = np.zeros(10)
    files.system = system = Stopping(path, at)
    for step in run.steps(10**9):
        if step == 0:
            system.count = 0
        time.sleep(0.001)


@pytest.mark.parametrize("at", range(1, 4))
def test_stopped_in_its_beat(at, tmp_path, monkeypatch, tried):
    """A holder that sleeps in its beat hears of its loss at a boundary soon after, though no save is due."""
    path = str(tmp_path / "run")
    with rivals((loop_and_beat, path, at)) as (one,):
        assert one.wait_until_stopped()
        lease = take_from_elsewhere(path, monkeypatch)
        before = contents(path)
        one.wake()
        assert one.end() == LeaseError.exit_code
        assert f"taken over by pid {os.getpid()} " in one.hear()["error"]
    assert contents(path) == before
    lease.release()
    tried("schedules")


# -- what the training that lost its run hears ----------------------------------------------------


def lose(path, generation=2):
    """Does to a run what a process of another machine does when it takes over."""
    run = str(path)
    files.create_file(
        os.path.join(run, f"lease-{generation:06d}"),
        encode(dataclasses.replace(myself(generation), boot_id="far", host="node7", pid=4242)),
    )
    os.rename(
        os.path.join(run, f".writing-{generation - 1:06d}"),
        os.path.join(run, f".writing-{generation - 1:06d}.swept-{generation:06d}"),
    )
    files.remove_tree(os.path.join(run, f".writing-{generation - 1:06d}.swept-{generation:06d}"))
    os.unlink(os.path.join(run, f"lease-{generation - 1:06d}"))


def checkpoints(path):
    return sorted(name for name in os.listdir(path) if name[0].isdigit())


def test_lost_before_a_save(tmp_path):
    """A training that lost its run hears a LeaseError that names the new holder at its next save, and writes nothing."""
    run = holdfast.Run(tmp_path / "run")
    run.resume()
    run.state["weights"] = np.zeros(1000)
    run.save(step=1, wait=True)
    lose(run.path)
    before = contents(run.path)
    with pytest.raises(LeaseError, match="taken over by pid 4242 on node7") as caught:
        run.save(step=2)
    assert caught.value.exit_code == 11
    run.close()
    assert contents(run.path) == before


def test_lost_with_a_save_in_flight(tmp_path, monkeypatch):
    """The save in flight of a training that lost its run is discarded, its memory is freed, and a boundary raises."""
    path = str(tmp_path / "run")
    run = holdfast.Run(path, every=Every(steps=1))
    state = np.zeros(3_000_000)
    seen = weakref.ref(state)
    run.state["weights"] = state
    del state
    real, lost = files.create_file, []

    def create_file(file, data, **options):
        if os.path.basename(file) == "arrays.json" and len(checkpoints(path)) == 1 and not lost:
            lost.append(file)
            lose(path)
        real(file, data, **options)

    monkeypatch.setattr(files, "create_file", create_file)
    done = []
    with pytest.raises(LeaseError, match="taken over by pid 4242 on node7") as caught:
        for step in run.steps(50):
            done.append(step)
            flight = run._training.saver._flight if run._training.saver else None
            if flight is not None:
                flight.ticket.join()
    assert caught.value.exit_code == 11
    assert len(checkpoints(path)) == 1
    assert len(done) == 3
    assert not os.path.exists(lost[0])
    assert run._training.saver._flight is None
    assert run._training.saver._session.entries[-1].path.endswith(checkpoints(path)[0])
    run.close()
    run.state.clear()
    del flight, caught
    gc.collect()
    assert seen() is None


def test_lost_before_the_book_is_written(tmp_path):
    """A run that is lost after its last save says so, and not that a file is missing, when its end is recorded."""
    run = holdfast.Run(tmp_path / "run")
    run.resume()
    run.state["x"] = 1
    session = run._training.open()
    lose(run.path)
    with pytest.raises(LeaseError, match="taken over by pid 4242 on node7"):
        session.write_book()
    run.close()
