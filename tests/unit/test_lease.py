"""The lease: who may take it from whom, and what a holder is told when it is gone."""

import dataclasses
import errno
import os
import threading
import time

import pytest
from lease_clock import Time

from holdfast import files
from holdfast.errors import LeaseError, NotFoundError, StorageError
from holdfast.store import holder as holder_module
from holdfast.store import lease as lease_module
from holdfast.store.holder import decode, encode, judge, myself, process_start
from holdfast.store.lease import Lease, holder_of


@pytest.fixture
def run(tmp_path):
    return str(tmp_path)


@pytest.fixture
def no_slurm(monkeypatch):
    for name in [name for name in os.environ if name.startswith("SLURM_")]:
        monkeypatch.delenv(name)


pytestmark = pytest.mark.usefixtures("no_slurm")


def put(run, generation, **changes):
    """Writes a lease as some process would have left it; by default one on another machine."""
    values = {"boot_id": "another", "host": "node7", "acquired": "2026-11-23T08:31:07Z", "pid": 4242}
    holder = dataclasses.replace(myself(generation), **{**values, **changes})
    with open(os.path.join(run, f"lease-{generation:06d}"), "wb") as file:
        file.write(encode(holder))
    return holder


def leases(run):
    return sorted(name for name in os.listdir(run) if name.startswith("lease-"))


def sleeping_process():
    """The pid of a child that lives until it is killed."""
    pid = os.fork()
    if pid == 0:
        time.sleep(60)
        os._exit(0)
    return pid


def ended_process():
    """The pid of a process that has been and gone, and the start time it had."""
    pid = sleeping_process()
    start = process_start(pid)
    os.kill(pid, 9)
    os.waitpid(pid, 0)
    return pid, start


@pytest.fixture
def alive():
    """What the lease of another living process of this machine says."""
    pid = sleeping_process()
    yield {"boot_id": myself(1).boot_id, "pid": pid, "process_start": process_start(pid)}
    os.kill(pid, 9)
    os.waitpid(pid, 0)


# -- holding -----------------------------------------------------------------------------------


def test_first_lease(run):
    """The first lease has generation 1, its directory is there while it is held, and it names us."""
    lease = Lease.acquire(run)
    assert (lease.run, lease.generation) == (run, 1)
    assert os.path.isdir(lease.writing)
    assert os.path.basename(lease.writing) == ".writing-000001"
    lease.check()
    holder = holder_of(run)
    assert (holder.pid, holder.generation, holder.released) == (os.getpid(), 1, False)
    lease.release()
    assert not os.path.exists(lease.writing)
    assert holder_of(run).released


def test_release_twice_and_when_all_is_gone(run, tmp_path_factory):
    """A release is idempotent and harmless where lease, directory or the whole run was deleted."""
    lease = Lease.acquire(run)
    os.unlink(os.path.join(run, "lease-000001"))
    os.rmdir(lease.writing)
    lease.release()
    lease.release()
    assert os.listdir(run) == []
    other = tmp_path_factory.mktemp("gone")
    lease = Lease.acquire(str(other))
    files.remove_tree(other)
    lease.release()
    assert not other.exists()


def test_release_empties_its_directory(run):
    """A release removes partial checkpoints and trash with the directory that holds them."""
    lease = Lease.acquire(run)
    files.make_directory(os.path.join(lease.writing, "partial"))
    files.create_file(os.path.join(lease.writing, "partial", "model.safetensors"), b"x")
    lease.release()
    assert os.listdir(run) == ["lease-000001"]


def test_numbers_are_never_reused(run):
    """Each lease gets a higher number, and only the newest lease file stays."""
    for generation in range(1, 5):
        lease = Lease.acquire(run)
        assert lease.generation == generation
        assert leases(run) == [f"lease-{generation:06d}"]
        lease.release()
        assert leases(run) == [f"lease-{generation:06d}"]


def test_number_is_not_reused_when_leases_were_deleted(run):
    """A directory that is being written in proves its number used, though its lease was deleted."""
    first = Lease.acquire(run)
    os.unlink(os.path.join(run, "lease-000001"))
    second = Lease.acquire(run)
    assert second.generation == 2
    with pytest.raises(LeaseError, match="taken over"):
        first.check()
    first.release()
    second.check()
    second.release()


def test_sweeps_only_lower_generations(run):
    """Taking over removes the directories of lower generations, half-swept ones too, and no others."""
    put(run, 5, released=True)
    keep = [".writing-000009", ".writing-x", "000001_epoch-0001", ".writing-0003"]
    for name in [".writing-000002", ".writing-000003.swept-000004", ".writing-000005", *keep]:
        files.make_directory(os.path.join(run, name, "partial"))
    lease = Lease.acquire(run)
    assert lease.generation == 10
    keep.remove(".writing-000009")
    assert sorted(os.listdir(run)) == sorted([*keep, "lease-000010", ".writing-000010"])
    lease.release()


def test_missing_run_directory(tmp_path):
    """No lease is taken of a directory that is not there, and nothing is created."""
    with pytest.raises(NotFoundError, match="no run directory"):
        Lease.acquire(str(tmp_path / "nowhere"))
    assert holder_of(str(tmp_path / "nowhere")) is None
    assert list(tmp_path.iterdir()) == []


def test_file_in_place_of_the_run(tmp_path):
    """A file where the run should be is a storage error that names it."""
    (tmp_path / "run").write_text("")
    with pytest.raises(StorageError, match="run"):
        Lease.acquire(str(tmp_path / "run"))


# -- storage -----------------------------------------------------------------------------------


class Refusing(files.System):
    """A disk that refuses one kind of call."""

    def __init__(self, call, code, after=0):
        self.call, self.code, self.after, self.calls = call, code, after, 0

    def __getattribute__(self, name):
        if name in ("call", "code", "after", "calls") or name != object.__getattribute__(self, "call"):
            return super().__getattribute__(name)
        self.calls += 1
        if self.calls > self.after:

            def refuse(*args):
                raise OSError(self.code, os.strerror(self.code))

            return refuse
        return super().__getattribute__(name)


def test_read_only_directory(run, monkeypatch):
    """A directory that cannot be written is a storage error with the system's reason."""
    monkeypatch.setattr(files, "system", Refusing("open", errno.EROFS))
    with pytest.raises(StorageError, match="read-only") as caught:
        Lease.acquire(run)
    assert caught.value.errno == errno.EROFS
    assert os.listdir(run) == []


@pytest.mark.parametrize("call", ["write", "fsync", "mkdir"])
@pytest.mark.parametrize("after", [0, 1, 2])
def test_failed_acquisition_leaves_no_holder(run, monkeypatch, call, after):
    """An acquisition that the disk stopped leaves nothing that would keep the next one out."""
    disk = Refusing(call, errno.ENOSPC, after)
    with monkeypatch.context() as patch:
        patch.setattr(files, "system", disk)
        try:
            Lease.acquire(run).release()
        except StorageError:
            assert disk.calls > after
        else:
            assert disk.calls <= after
    assert lease_module._held == set()
    Lease.acquire(run, sleep=lambda seconds: pytest.fail("it waited")).release()


def test_leftovers_do_not_stop_a_start(run, monkeypatch):
    """What cannot be emptied after it was renamed away is told, left, and removed by a later start."""
    put(run, 1, released=True)
    files.make_directory(os.path.join(run, ".writing-000001"))
    said = []
    monkeypatch.setattr(files, "system", Refusing("rmdir", errno.ENOTEMPTY))
    lease = Lease.acquire(run, say=said.append)
    assert any(".writing-000001.swept-000002" in line for line in said)
    monkeypatch.undo()
    lease.release()
    Lease.acquire(run).release()
    assert os.listdir(run) == ["lease-000003"]


def test_directory_that_cannot_be_renamed_away_stops_the_start(run, monkeypatch):
    """Without the rename a sleeping holder could still publish, so nobody takes over."""
    put(run, 1, released=True)
    files.make_directory(os.path.join(run, ".writing-000001"))
    monkeypatch.setattr(files, "system", Refusing("rename", errno.EIO))
    with pytest.raises(StorageError, match="rename"):
        Lease.acquire(run)


# -- the beat ----------------------------------------------------------------------------------


def wait_for(condition):
    for _ in range(2000):
        if condition():
            return
        time.sleep(0.005)
    pytest.fail("it never happened")


def test_beats_until_released(run, monkeypatch):
    """The beat counts up in a file of constant length while the lease is held, and then stops."""
    monkeypatch.setattr(lease_module, "BEAT_SECONDS", 0.001)
    lease = Lease.acquire(run)
    size = os.path.getsize(os.path.join(run, "lease-000001"))
    wait_for(lambda: holder_of(run).beat > 20)
    lease.release()
    last = holder_of(run)
    assert last.released
    assert os.path.getsize(os.path.join(run, "lease-000001")) == size
    wait_for(lambda: "holdfast-lease" not in [thread.name for thread in threading.enumerate()])
    assert holder_of(run) == last


def test_failed_beat_reaches_the_caller(run, monkeypatch):
    """A beat that cannot be written is raised by the next check; once one can be again, nothing is."""
    monkeypatch.setattr(lease_module, "BEAT_SECONDS", 0.001)
    lease = Lease.acquire(run)
    monkeypatch.setattr(files, "system", Refusing("pwrite", errno.EIO))
    wait_for(lambda: lease._failures)
    with pytest.raises(StorageError, match="I/O error"):
        lease.check()
    wait_for(lambda: lease._failures)
    monkeypatch.undo()
    lease.check()
    beat = holder_of(run).beat
    monkeypatch.setattr(lease_module, "BEAT_SECONDS", 0.001)
    wait_for(lambda: holder_of(run).beat > beat)
    lease.check()
    lease.release()


@pytest.mark.parametrize("beat", [0, 9, 10, 123456789, 10**15])
def test_constant_length(beat):
    """No beat, released or not, changes the length of the file, however long its names are."""
    for letters in range(0, 600, 3):
        first = dataclasses.replace(myself(3), host="n" * letters)
        for released in (False, True):
            later = dataclasses.replace(first, beat=beat, released=released)
            assert len(encode(later)) == len(encode(first))
            assert decode(encode(later), 3) == later


@pytest.mark.parametrize(
    "data", [b"", b"{", b"[]", b"\xff\xfe", b'{"pid":"x"}', b"{}", b'{"pid":true}', b'{"pid":-4}', b"null"]
)
def test_damaged_lease_names_nobody(data):
    """Bytes that make no sense give a nameless holder, never an error and never a dead one."""
    holder = decode(data, 7)
    assert (holder.generation, holder.pid, holder.released) == (7, 0, False)
    assert "lease-000007 is unreadable" in holder.describe()
    assert judge(holder, myself(8), ()) == "unknown"


# -- dead, released, alive -----------------------------------------------------------------------


def test_dead_process_is_taken_over_at_once(run):
    """A pid of this boot and namespace that is gone means dead, whatever the beat."""
    pid, start = ended_process()
    put(run, 3, boot_id=myself(1).boot_id, pid=pid, process_start=start)
    clock = Time()
    lease = clock.acquire(run)
    assert (lease.generation, clock.now, clock.said) == (4, 1000.0, [])
    lease.release()


def test_reused_pid_is_dead(run, alive):
    """A pid that is alive but started at another time belongs to somebody else."""
    put(run, 3, **{**alive, "process_start": "1"})
    Time().acquire(run).release()


def test_unreaped_process_is_dead():
    """A killed process that its parent has not waited for holds nothing."""
    pid = sleeping_process()
    assert process_start(pid)
    os.kill(pid, 9)
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    assert process_start(pid) is None
    os.waitpid(pid, 0)


def test_living_process_is_refused_with_its_name(run, alive):
    """A holder that is alive here is refused at once; the message names it, since when, and remedies."""
    holder = put(run, 3, slurm_job="1234", **alive)
    clock = Time()
    with pytest.raises(LeaseError) as caught:
        clock.acquire(run)
    message = str(caught.value)
    assert f"pid {alive['pid']} on node7 (Slurm job 1234), since 2026-11-23 08:31:07 UTC" in message
    assert "wait=SECONDS" in message
    assert caught.value.holder == holder
    assert caught.value.exit_code == 11
    assert leases(run) == ["lease-000003"]
    assert clock.now == 1000.0


def test_waiting_for_a_living_process(run, alive):
    """With `wait` a living holder is waited for, said at the start and each half minute, and refused at the end."""
    put(run, 3, **alive)
    clock = Time()
    with pytest.raises(LeaseError):
        clock.acquire(run, wait=70)
    assert clock.now == pytest.approx(1070)
    assert [line.split("Waiting ")[1] for line in clock.said] == [
        "up to 70 s for it.",
        "up to 40 s for it.",
        "up to 10 s for it.",
    ]
    clock = Time()
    clock.at(20, lambda: put(run, 3, released=True, **alive))
    lease = clock.acquire(run, wait=70)
    assert lease.generation == 4
    assert clock.now == pytest.approx(1020, abs=1.5)
    lease.release()


def test_own_process_is_told_so(run):
    """A second acquisition in the process that holds the lease says that it is this process."""
    lease = Lease.acquire(run)
    with pytest.raises(LeaseError, match="this very process"):
        Lease.acquire(run)
    lease.check()
    lease.release()


def test_former_program_of_this_process_is_dead(run):
    """A lease of this very pid that no object here holds was left by a program that exec'ed."""
    put(run, 3, **{name: getattr(myself(3), name) for name in ("boot_id", "pid", "process_start")})
    Time().acquire(run).release()


@pytest.mark.parametrize(("restart", "task", "cluster"), [(0, "4", "one"), (1, "5", "one"), (1, "4", "two")])
def test_slurm_job_that_is_not_the_same_restarted(run, monkeypatch, restart, task, cluster):
    """Another task, another cluster, or no higher restart count proves nothing about the holder."""
    put(run, 3, slurm_job="1234", slurm_task="4", slurm_cluster="one")
    monkeypatch.setenv("SLURM_JOB_ID", "1234")
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", task)
    monkeypatch.setenv("SLURM_CLUSTER_NAME", cluster)
    monkeypatch.setenv("SLURM_RESTART_COUNT", str(restart))
    clock = Time()
    clock.acquire(run, stale_after=40).release()
    assert clock.now >= 1040


def test_restarted_slurm_job_takes_over_at_once(run, monkeypatch):
    """The same job and array task with a higher restart count is its own dead predecessor's heir."""
    put(run, 3, slurm_job="1234", slurm_task="4")
    monkeypatch.setenv("SLURM_JOB_ID", "1234")
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "4")
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    clock = Time()
    clock.acquire(run).release()
    assert clock.now == 1000.0


def test_several_tasks_of_one_srun(run, monkeypatch, alive):
    """Tasks of one srun that meet at a run are told about srun."""
    put(run, 3, slurm_job="1234", **alive)
    monkeypatch.setenv("SLURM_JOB_ID", "1234")
    monkeypatch.setenv("SLURM_NTASKS", "8")
    with pytest.raises(LeaseError) as caught:
        Lease.acquire(run)
    assert "of one srun" not in str(caught.value)
    monkeypatch.setenv("SLURM_PROCID", "3")
    with pytest.raises(LeaseError, match=r"task 3 of 8 .* several tasks of one srun"):
        Lease.acquire(run)


def test_pid_without_a_known_place_proves_nothing():
    """Where neither boot nor namespace can be told, a pid that is gone proves nothing."""
    gone = ended_process()[0]
    for unknown in ({"boot_id": ""}, {"pid_namespace": 0}):
        me = dataclasses.replace(myself(2), **unknown)
        assert judge(dataclasses.replace(me, pid=gone), me, ()) == "unknown"
    assert judge(dataclasses.replace(myself(2), pid=gone), myself(2), ()) == "dead"


# -- a holder that cannot be seen --------------------------------------------------------------


@pytest.mark.parametrize("elsewhere", [{"boot_id": "another"}, {"pid_namespace": 7}, {"boot_id": ""}])
def test_stale_holder_elsewhere(run, elsewhere):
    """A holder in another place is taken over only after 300 s of our clock without a beat, said on the way."""
    here = {"boot_id": myself(1).boot_id, "pid": ended_process()[0]}
    put(run, 3, **{**here, **elsewhere})
    clock = Time()
    lease = clock.acquire(run)
    assert 1300 <= clock.now <= 1302
    assert "node7" in clock.said[0]
    assert "300 s" in clock.said[0]
    assert len(clock.said) == 11
    assert "taking over" in clock.said[-1]
    assert lease.generation == 4
    lease.release()


def test_beating_holder_elsewhere_is_alive(run):
    """A beat that moves proves life: refused then, however long ago the lease was taken."""
    put(run, 3)
    clock = Time().at(250, lambda: put(run, 3, beat=1))
    with pytest.raises(LeaseError, match="node7"):
        clock.acquire(run)
    assert 1250 <= clock.now <= 1252


def test_beat_that_stops_again(run):
    """A holder that beats and then falls silent is stale 300 s after its last beat, if `wait` lasts."""
    put(run, 3)
    clock = Time().at(100, lambda: put(run, 3, beat=1)).at(200, lambda: put(run, 3, beat=2))
    lease = clock.acquire(run, wait=1000)
    assert 1500 <= clock.now <= 1503
    lease.release()


def test_time_nobody_watched_does_not_count(run):
    """A contender that was itself asleep for an hour does not take a silent holder for dead."""
    put(run, 3)
    clock = Time()
    clock.at(10, lambda: setattr(clock, "now", clock.now + 3600))
    clock.at(10 + 3600 + 200, lambda: put(run, 3, beat=1))
    with pytest.raises(LeaseError):
        clock.acquire(run)


def test_released_while_waited_for(run):
    """A holder elsewhere that releases while it is watched is followed at once."""
    put(run, 3)
    clock = Time().at(50, lambda: put(run, 3, released=True))
    clock.acquire(run).release()
    assert 1050 <= clock.now <= 1052


def test_unreadable_lease(run):
    """An unreadable lease counts as alive until it is readable, or stale."""
    path = os.path.join(run, "lease-000003")
    with open(path, "wb") as file:
        file.write(b'{"pid":42\n')
    assert holder_of(run).pid == 0
    clock = Time()
    clock.acquire(run, stale_after=60).release()
    assert clock.now >= 1060
    with open(os.path.join(run, "lease-000005"), "wb") as file:
        file.write(encode(myself(5))[:100] + b"\n")
    clock = Time().at(20, lambda: put(run, 5, released=True))
    lease = clock.acquire(run)
    assert (lease.generation, clock.now <= 1022) == (6, True)
    lease.release()


def test_lease_that_is_just_being_written(run, alive):
    """A lease met between its creation and its first byte is read again at once, without a word."""
    files.create_file(os.path.join(run, "lease-000003"), b"")
    clock = Time().at(0.05, lambda: put(run, 3, **alive))
    with pytest.raises(LeaseError, match=f"pid {alive['pid']} "):
        clock.acquire(run)
    assert clock.now < 1000.2
    assert clock.said == []


@pytest.mark.parametrize("data", [b"", b'{"generation":3,"host":"node7","pi', bytes(512)])
def test_lease_that_was_never_finished(run, data):
    """Who was killed before its name was written has trained nothing, and is waited for only briefly."""
    files.create_file(os.path.join(run, "lease-000003"), data)
    clock = Time()
    lease = clock.acquire(run)
    assert 1015 <= clock.now <= 1018
    assert lease.generation == 4
    lease.release()


def test_whole_lease_of_nobody(run):
    """A lease that was written whole and makes no sense any more may be a living one's: it is watched to the end."""
    files.create_file(os.path.join(run, "lease-000003"), b"damaged".ljust(511) + b"\n")
    clock = Time()
    clock.acquire(run).release()
    assert clock.now >= 1300


def test_higher_lease_while_watching_starts_anew(run):
    """When another contender takes over first, its lease is watched from the beginning."""
    put(run, 3)
    clock = Time().at(200, lambda: put(run, 4, pid=77))
    lease = clock.acquire(run)
    assert 1500 <= clock.now <= 1503
    assert lease.generation == 5
    lease.release()


# -- losing it -----------------------------------------------------------------------------------


def test_holder_that_was_overtaken(run):
    """After a take-over check names the successor, and release leaves the successor's files alone."""
    lease = Lease.acquire(run)
    put(run, 2)
    with pytest.raises(LeaseError, match="pid 4242 on node7") as caught:
        lease.check()
    assert caught.value.holder.generation == 2
    files.make_directory(os.path.join(run, ".writing-000002"))
    lease.release()
    assert leases(run) == ["lease-000001", "lease-000002"]
    assert os.path.isdir(os.path.join(run, ".writing-000002"))
    assert not holder_of(run).released


def test_deleted_lease_is_lost(run):
    """A holder whose lease file somebody deleted does not go on."""
    lease = Lease.acquire(run)
    os.unlink(os.path.join(run, "lease-000001"))
    with pytest.raises(LeaseError, match="deleted the file lease-000001"):
        lease.check()
    lease.release()


def test_released_lease_refuses(run):
    """A lease that was released is not checked as if it were held."""
    lease = Lease.acquire(run)
    lease.release()
    with pytest.raises(LeaseError, match="was released"):
        lease.check()


@pytest.mark.parametrize("call", ["first sync", "mkdir"])
def test_gives_up_for_a_higher_one(run, monkeypatch, alive, call):
    """A contender that finds a higher lease after making its own removes what it made and is refused."""
    made = []

    class Raced(files.System):
        def fsync(self, fd):
            super().fsync(fd)
            self.overtake("first sync")

        def mkdir(self, path):
            super().mkdir(path)
            made.append(path)
            self.overtake("mkdir")

        def overtake(self, name):
            if name == call:
                put(run, 7, **alive)

    monkeypatch.setattr(files, "system", Raced())
    with pytest.raises(LeaseError) as caught:
        Lease.acquire(run)
    assert caught.value.holder.generation == 7
    assert os.listdir(run) == ["lease-000007"]
    assert bool(made) == (call == "mkdir")
    assert lease_module._held == set()


@pytest.mark.parametrize("listed", [True, False])
def test_lease_made_between_look_and_creation(run, monkeypatch, alive, listed):
    """A lease that appears after the last one was found free is respected, even if a listing misses it."""
    put(run, 1, released=True)

    def look(path):
        if not os.path.exists(os.path.join(run, "lease-000002")):
            put(run, 2, **alive)
            files.make_directory(os.path.join(run, ".writing-000002", "partial"))
        names = os.listdir(path)
        return names if listed else [name for name in names if name != "lease-000002"]

    monkeypatch.setattr(lease_module, "names_in", look)
    with pytest.raises(LeaseError) as caught:
        Lease.acquire(run)
    assert caught.value.holder.generation == 2
    assert os.path.isdir(os.path.join(run, ".writing-000002", "partial"))
    assert leases(run) == ["lease-000001", "lease-000002"]


def test_sweep_spares_a_higher_generation(run, monkeypatch, alive):
    """A contender that is overtaken while it sweeps leaves the winner's directory alone."""
    looks = []

    def look(path):
        looks.append(path)
        if len(looks) == 2:  # The first is for the number, the second for the sweep.
            put(run, 7, **alive)
            files.make_directory(os.path.join(run, ".writing-000007", "partial"))
        return os.listdir(path)

    monkeypatch.setattr(lease_module, "names_in", look)
    with pytest.raises(LeaseError):
        Lease.acquire(run)
    assert sorted(os.listdir(run)) == [".writing-000007", "lease-000007"]
    assert os.path.isdir(os.path.join(run, ".writing-000007", "partial"))


def test_forked_child_is_inert(run):
    """A forked child neither checks nor releases its parent's lease, and is told why."""
    lease = Lease.acquire(run)
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            lease.release()
            lease.check()
        except LeaseError as error:
            code = 0 if "forked" in str(error) else 2
        try:
            Lease.acquire(run)
        except LeaseError as error:
            os._exit(4 if "this very process" in str(error) else code)
        os._exit(3)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    lease.check()
    assert os.path.isdir(lease.writing)
    assert not holder_of(run).released
    lease.release()


def test_one_of_many_threads_wins(run):
    """Of threads that start at once exactly one gets the lease, in each round."""
    for _ in range(5):
        start = threading.Barrier(8)
        won, lost = [], []

        def contend(start=start, won=won, lost=lost):
            start.wait()
            try:
                won.append(Lease.acquire(run))
            except LeaseError:
                lost.append(1)

        threads = [threading.Thread(target=contend) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert (len(won), len(lost)) == (1, 7)
        won[0].check()
        won[0].release()


def test_names_that_are_no_leases(run):
    """Only canonical names are leases: a seventh digit in front, or other words, count for nothing."""
    for name in ["lease-0000009", "lease-12", "lease-abcdef", "lease-000009.tmp"]:
        files.create_file(os.path.join(run, name), b"")
    assert holder_of(run) is None
    lease = Lease.acquire(run)
    assert lease.generation == 1
    lease.release()


def test_another_users_holder_is_named(monkeypatch):
    """The owner is named where it is not the reader."""
    holder = dataclasses.replace(myself(1), user="alice", pid=7, host="n1", acquired="2026-01-02T03:04:05Z")
    assert holder.describe() == "pid 7 of alice on n1, since 2026-01-02 03:04:05 UTC"
    monkeypatch.setattr(holder_module, "_user", lambda: "alice")
    assert holder.describe() == "pid 7 on n1, since 2026-01-02 03:04:05 UTC"
