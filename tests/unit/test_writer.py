import contextlib
import errno
import os
import threading
import weakref

import numpy as np
import pytest
import safetensors.numpy
import xxhash

from holdfast import files, open_files
from holdfast.errors import StorageError, UsageError
from holdfast.payload import filling, pending, staging, threads, writer
from holdfast.payload.array import HostArray, LazyArray
from holdfast.payload.filling import Filling
from holdfast.payload.layout import plan
from holdfast.payload.writer import Save

BLOCK = 8192
NAMES = {"f4": "F32", "f8": "F64", "f2": "F16", "u1": "U8", "i8": "I64"}


def host(array, identity=None, check=False):
    return HostArray(
        NAMES[array.dtype.str[1:]], array.shape, array.reshape(-1).view(np.uint8), identity, check
    )


def lazy(array, make=None, check=False):
    make = make or (lambda: np.ascontiguousarray(array).reshape(-1).view(np.uint8))
    return LazyArray(NAMES[array.dtype.str[1:]], array.shape, array.nbytes, make, None, check)


def arrays(count=8, size=3000, dtype="f4", seed=0):
    rng = np.random.default_rng(seed)
    return {f"a{i:03}": rng.standard_normal(size + i).astype(dtype) for i in range(count)}


def save(parts, directory, **options):
    options.setdefault("block_size", BLOCK)
    job = Save(plan(parts), str(directory), **options)
    job.start()
    job.wait_copied()
    return job.wait()


def idle():
    return staging.pool.free == staging.pool.size


def descriptors():
    return len(os.listdir("/proc/self/fd"))


@pytest.fixture(autouse=True)
def nothing_is_left_behind():
    """After every test all buffers are back, no descriptor is open, and the crew is free."""
    threads.submit("blocks", lambda: None).wait()
    before = descriptors()
    yield
    assert idle()
    assert descriptors() == before
    for ticket in [threads.submit("blocks", lambda: None) for _ in range(8)]:
        assert ticket.wait(20)


@pytest.fixture(params=[True, False], ids=["direct", "buffered"])
def direct(request, monkeypatch, tmp_path):
    if request.param and not open_files.direct_io_works(tmp_path):
        pytest.skip("no direct I/O here")
    monkeypatch.setattr(open_files, "direct_io_works", lambda directory: request.param)
    monkeypatch.setattr(writer, "DIRECT_FROM", 0)
    return request.param


class Broken(files.System):
    """A system whose call of one kind fails, or writes short, at the nth time."""

    def __init__(self, call, at=1, code=errno.ENOSPC):
        self.call, self.left, self.code, self.lock = call, at, code, threading.Lock()

    def hit(self, call):
        with self.lock:
            if call == self.call:
                self.left -= 1
                return self.left == 0
        return False

    def open(self, path, flags):
        if self.hit("open"):
            raise OSError(self.code, os.strerror(self.code))
        return super().open(path, flags)

    def pwrite(self, fd, data, offset):
        if self.hit("pwrite"):
            raise OSError(self.code, os.strerror(self.code))
        if self.hit("short"):
            # Direct I/O takes no odd length: a page is written, and the answer is shorter still.
            return min(1000, super().pwrite(fd, data[:4096], offset))
        return super().pwrite(fd, data, offset)

    def truncate(self, fd, size):
        if self.hit("truncate"):
            raise OSError(self.code, os.strerror(self.code))
        super().truncate(fd, size)

    def fsync(self, fd):
        if self.hit("fsync"):
            raise OSError(self.code, os.strerror(self.code))
        super().fsync(fd)


@pytest.mark.parametrize("room", [None, 3 * BLOCK, 1 << 30], ids=["streaming", "some", "all"])
def test_the_library_opens_what_is_written(tmp_path, direct, room):
    """With any memory and either kind of I/O, the library reads back every array."""
    state = {**arrays(), "scalar": np.float64(3).reshape(()), "empty": np.zeros((0, 4), "f4")}
    written = save({"model": {name: host(array) for name, array in state.items()}}, tmp_path, staging=room)
    found = safetensors.numpy.load_file(tmp_path / "model.safetensors")
    assert set(found) == set(state)
    for name, array in state.items():
        assert found[name].dtype == array.dtype
        assert np.array_equal(found[name], array)
    assert (tmp_path / "model.safetensors").stat().st_size == written.files["model.safetensors"].size


def test_digests_cover_exactly_the_bytes_of_each_block(tmp_path, direct):
    """A block's digest is that of the file's bytes in it, header included, padding not."""
    written = save({"m": {name: host(array) for name, array in arrays().items()}}, tmp_path)
    data = (tmp_path / "m.safetensors").read_bytes()
    record = written.files["m.safetensors"]
    assert record.size == len(data)
    assert len(data) % 4096
    blocks = [xxhash.xxh3_128_digest(data[i : i + BLOCK]) for i in range(0, len(data), BLOCK)]
    assert record.blocks == blocks
    assert record.digest == xxhash.xxh3_128_hexdigest(b"".join(blocks))


def test_blocks_are_16_mib(tmp_path):
    """Unless a test says otherwise, a block has 16 MiB."""
    big = np.arange((16 << 20) // 8 + 5, dtype="i8")
    layout = plan({"m": {"x": host(big)}})
    job = Save(layout, str(tmp_path))
    job.start()
    record = job.wait().files["m.safetensors"]
    data = (tmp_path / "m.safetensors").read_bytes()
    assert record.blocks == [xxhash.xxh3_128_digest(data[: 1 << 24]), xxhash.xxh3_128_digest(data[1 << 24 :])]


def test_nothing_to_write(tmp_path):
    """A layout without arrays writes no file; one with only empty arrays writes a header."""
    assert save({"m": {}}, tmp_path).files == {}
    save({"m": {"e": host(np.zeros((3, 0), "f4"))}}, tmp_path)
    assert safetensors.numpy.load_file(tmp_path / "m.safetensors")["e"].shape == (3, 0)


def test_copied_means_that_arrays_may_change(tmp_path):
    """What is done to an array after `wait_copied` is not in the file, though nothing was written yet."""
    gate = threading.Event()

    class Slow(files.System):
        def pwrite(self, fd, data, offset):
            assert gate.wait(20)
            return super().pwrite(fd, data, offset)

    state = arrays(4)
    before = {name: array.copy() for name, array in state.items()}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(files, "system", Slow())
        job = Save(
            plan({"m": {n: host(a) for n, a in state.items()}}),
            str(tmp_path),
            staging=1 << 20,
            block_size=BLOCK,
        )
        job.start()
        job.wait_copied()
        for array in state.values():
            array.fill(-1)
        gate.set()
        job.wait()
    found = safetensors.numpy.load_file(tmp_path / "m.safetensors")
    assert all(np.array_equal(found[name], array) for name, array in before.items())


@pytest.mark.parametrize("size", [10, 3000, 30_000], ids=["many in a block", "about one", "many blocks"])
def test_late_arrays_are_copied_last(tmp_path, size):
    """`wait_early` returns before any late array is opened; what the others hold then is in the file, as are late ones later."""
    gate = threading.Event()
    state = arrays(12, size)
    late = [("m", name) for number, name in enumerate(state) if number % 3]
    parts = {
        name: lazy(array, lambda array=array: gate.wait(20) and array.view(np.uint8))
        if ("m", name) in late
        else host(array)
        for name, array in state.items()
    }
    job = Save(plan({"m": parts}, late=late), str(tmp_path), staging=1 << 30, block_size=BLOCK)
    job.start()
    job.wait_early()
    assert job.overlapped
    assert not job._copied.done
    expected = {name: array.copy() for name, array in state.items()}
    for name, array in state.items():
        array.fill(-1)
        if ("m", name) in late:
            expected[name].fill(-1)
    gate.set()
    pending.settle()
    for array in state.values():
        array.fill(-2)
    job.wait()
    found = safetensors.numpy.load_file(tmp_path / "m.safetensors")
    assert all(np.array_equal(found[name], array) for name, array in expected.items())


@pytest.mark.parametrize("room", [None, 100_000, 1 << 30])
def test_late_arrays_with_little_memory(tmp_path, room):
    """With few buffers what shares a block with other arrays is copied at once, and the rest when a buffer is free."""
    state = arrays(30, 2000)
    parts = {name: host(array) for name, array in state.items()}
    late = [("m", name) for name in list(parts)[5:]]
    job = Save(plan({"m": parts}, late=late), str(tmp_path), staging=room, block_size=BLOCK)
    job.start()
    job.wait_early()
    for name in list(parts)[:5]:
        state[name] = state[name].copy()
        parts[name].view.fill(7)
    job.wait()
    found = safetensors.numpy.load_file(tmp_path / "m.safetensors")
    assert all(np.array_equal(found[name], array) for name, array in state.items())


@pytest.mark.parametrize("room", [None, 1 << 30])
def test_what_must_hold_after_copying(tmp_path, room):
    """`confirm` is called once all is copied and before anybody is told; what it raises fails the save."""
    opened, seen = [], []
    state = arrays(12, 3000)
    parts = {}
    for name, array in state.items():
        parts[name] = lazy(array, lambda name=name, array=array: opened.append(name) or array.view(np.uint8))

    def confirm():
        seen.append((len(opened), job._copied.done))
        raise ZeroDivisionError("torn")

    planned = plan({"m": parts}, late=[("m", name) for name in parts])
    job = Save(planned, str(tmp_path), staging=room, block_size=BLOCK, confirm=confirm)
    job.start()
    job.wait_early()
    pending.settle()
    for wait in (job.wait_copied, job.wait):
        with pytest.raises(ZeroDivisionError):
            wait()
    assert seen == [(12, False)]


@pytest.mark.parametrize("end", [None, ZeroDivisionError, UsageError])
def test_settling_leaves_errors_to_those_who_wait_for_the_save(tmp_path, end):
    """`settle` returns when nothing is copied any more, whatever became of it; `spoil` makes the save fail."""
    gate = threading.Event()
    array = lazy(
        np.zeros(10, "f4"), lambda: gate.wait(20) and np.zeros(40 if end is None else 1 // 0, np.uint8)
    )
    job = Save(plan({"m": {"x": array}}, late=[("m", "x")]), str(tmp_path), staging=1 << 30, block_size=BLOCK)
    job.start()
    job.wait_early()
    if end is UsageError:
        pending.spoil()
    gate.set()
    pending.settle()
    assert job._copied.done
    pending.spoil()  # too late to matter
    with pytest.raises(end) if end is not None else contextlib.nullcontext():
        job.wait()


def test_streaming_needs_a_handful_of_buffers(tmp_path, monkeypatch):
    """A streaming save of many blocks takes no more than a handful of buffers."""
    taken = []
    real = staging.Pool.take
    monkeypatch.setattr(staging.Pool, "take", lambda self, count: taken.append(count) or real(self, count))
    save({"m": {name: host(array) for name, array in arrays(40).items()}}, tmp_path)
    assert taken == [min(threads.size("blocks") + threads.size("disk") + 1, 7)]


@pytest.mark.parametrize("room", [0, 1 << 30], ids=["streaming", "background"])
@pytest.mark.parametrize("size", [64, 3000, 300_000])
@pytest.mark.parametrize("dtype", ["f2", "f4", "f8"])
def test_a_single_nan_is_found_wherever_it_is(tmp_path, dtype, size, room):
    """One NaN or infinity in any place of any array is found, and nothing else is named."""
    rng = np.random.default_rng(size)
    state = arrays(12, size, dtype)
    wrong = {"a000": np.nan, "a003": np.inf, "a004": -np.inf, "a011": -np.nan}
    for name, value in wrong.items():
        state[name][rng.integers(len(state[name]))] = value
    state["a003"][:] = np.inf
    state["a007"][0] = np.nan  # not looked at
    parts = {"m": {name: host(array, check=name != "a007") for name, array in state.items()}}
    written = save(parts, tmp_path, block_size=BLOCK if size < 10_000 else 1 << 20, staging=room)
    assert sorted(written.nonfinite) == [("m", name) for name in sorted(wrong)]


@pytest.mark.parametrize("seed", range(6))
def test_looking_later_finds_the_same(seed):
    """Blocks that are looked at when they are full show what copying shows, wherever arrays begin and end in them."""
    rng = np.random.default_rng(seed)
    state = {}
    for number in range(60):
        size = int(rng.choice([1, 7, 100, 1500, 70_000, 300_000]))
        state[f"a{number:03}"] = rng.standard_normal(size).astype(rng.choice(["f2", "f4", "f8"]))
    for name in rng.choice(list(state), 20):
        state[name][rng.integers(len(state[name]))] = rng.choice([np.nan, np.inf, -np.inf])
    layout = plan({"m": {name: host(array, check=rng.random() < 0.8) for name, array in state.items()}})
    block = int(rng.choice([BLOCK, 64 << 10, 1 << 20]))
    found = []
    for looks in (True, False):
        fill = Filling(layout, block)
        fill.looks = looks
        for file in range(len(layout.files)):
            for number in range(-(-layout.files[file].size // block)):
                target = np.zeros(block, np.uint8)
                fill.fill(file, number, target)
                if not looks:
                    fill.look(file, number, target)
        found.append(fill.nonfinite())
    assert found[0] == found[1] != []


def test_nobody_waits_for_the_look_at_numbers(tmp_path, monkeypatch):
    """With room for everything no block is looked at before the last one is being copied."""
    waiting = []
    real = filling.finite
    monkeypatch.setattr(filling, "finite", lambda *args: waiting.append(len(job._to_fill)) or real(*args))
    state = arrays(12, 3000)
    state["a003"][17] = np.nan
    parts = {"m": {name: host(array, check=True) for name, array in state.items()}}
    job = Save(plan(parts), str(tmp_path), block_size=BLOCK, staging=1 << 30)
    job.start()
    assert job.wait().nonfinite == [("m", "a003")]
    assert set(waiting) == {0}


def test_lazy_arrays_are_opened_once(tmp_path):
    """An array that must be copied is made once, however many blocks it spans, and is let go."""
    calls = []

    def counted(array, name):
        def make():
            calls.append(name)
            return np.ascontiguousarray(array.T).reshape(-1).view(np.uint8)

        return make

    wide = np.arange(200 * 300, dtype="f8").reshape(200, 300)
    small = np.arange(6, dtype="f8").reshape(2, 3)
    parts = {
        "m": {
            "wide": LazyArray("F64", (300, 200), wide.nbytes, counted(wide, "wide"), None, True),
            "small": LazyArray("F64", (3, 2), small.nbytes, counted(small, "small"), None, True),
            "none": LazyArray("F64", (0,), 0, counted(np.zeros((0, 0)), "none")),
        }
    }
    save(parts, tmp_path)
    found = safetensors.numpy.load_file(tmp_path / "m.safetensors")
    assert np.array_equal(found["wide"], wide.T)
    assert np.array_equal(found["small"], small.T)
    assert sorted(calls) == ["small", "wide"]


def test_a_copy_of_an_array_goes_when_its_last_block_is_filled():
    """The transient copy of an array is freed with the last block that needs it, before the others are filled."""
    made = []

    def make():
        copy = np.zeros(5 * BLOCK, np.uint8)
        made.append(weakref.ref(copy))
        return copy

    names = ["a", "b"]
    layout = plan({"m": {name: LazyArray("U8", (5 * BLOCK,), 5 * BLOCK, make) for name in names}})
    filling = Filling(layout, BLOCK)
    target = np.empty(BLOCK, np.uint8)
    ends = [segment.stop for segment in layout.files[0].segments]
    for number in range(-(-layout.total_bytes // BLOCK)):
        filling.fill(0, number, target)
        done = sum(end <= (number + 1) * BLOCK for end in ends)
        assert [copy() is None for copy in made[:done]] == [True] * done
    assert len(made) == 2


@pytest.mark.parametrize("room", [None, 1 << 30])
@pytest.mark.parametrize("size", [10, 30_000])
def test_a_failing_copy_reaches_both_waits(tmp_path, room, size):
    """An array that cannot be copied stops the save; both waits raise its error, with its name."""

    def fail():
        raise ZeroDivisionError("device lost")

    state = {**{n: host(a) for n, a in arrays(20).items()}, "bad": lazy(np.zeros(size, "f4"), fail)}
    job = Save(plan({"m": state}), str(tmp_path), staging=room, block_size=BLOCK)
    job.start()
    for wait in (job.wait_copied, job.wait):
        with pytest.raises(ZeroDivisionError) as caught:
            wait()
        assert any("m/bad" in note for note in caught.value.__notes__)


@pytest.mark.parametrize("size", [10, 30_000])
@pytest.mark.parametrize("short", [-4, 4])
def test_an_array_that_changed_its_size_is_refused(tmp_path, size, short):
    """Bytes that are more or fewer than planned are a UsageError naming the array."""
    made = np.zeros(4 * size + short, np.uint8)
    with pytest.raises(UsageError, match="m/bad"):
        save({"m": {"bad": lazy(np.zeros(size, "f4"), lambda: made)}}, tmp_path)


@pytest.mark.parametrize("call", ["pwrite", "fsync", "truncate"])
@pytest.mark.parametrize("at", [1, 2, 5])
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO, errno.EDQUOT])
@pytest.mark.parametrize("room", [None, 1 << 30])
def test_a_failing_disk_reaches_the_wait(tmp_path, monkeypatch, call, at, code, room):
    """A failed write, truncate or sync of any file is raised by `wait` as a StorageError."""
    monkeypatch.setattr(files, "system", Broken(call, at, code))
    parts = {f"p{i}": {name: host(array) for name, array in arrays(3).items()} for i in range(5)}
    job = Save(plan(parts), str(tmp_path), staging=room, block_size=BLOCK)
    job.start()
    with pytest.raises(StorageError) as caught:
        job.wait()
    assert caught.value.errno == code
    assert str(tmp_path) in str(caught.value)


def test_a_short_write_is_continued(tmp_path, monkeypatch, direct):
    """A write that the system cuts short is continued where it stopped."""
    state = arrays(6)
    monkeypatch.setattr(files, "system", Broken("short", 2))
    save({"m": {name: host(array) for name, array in state.items()}}, tmp_path)
    found = safetensors.numpy.load_file(tmp_path / "m.safetensors")
    assert all(np.array_equal(found[name], array) for name, array in state.items())


@pytest.mark.parametrize("at", [1, 3])
def test_a_file_that_cannot_be_created(tmp_path, monkeypatch, at):
    """`start` raises when a file cannot be created, and closes those that were."""
    monkeypatch.setattr(files, "system", Broken("open", at, errno.EACCES))
    parts = {f"p{i}": {name: host(array) for name, array in arrays(1).items()} for i in range(3)}
    job = Save(plan(parts), str(tmp_path), block_size=BLOCK)
    with pytest.raises(StorageError, match=r"p[02]"):
        job.start()
    with pytest.raises(StorageError):
        job.wait()


def test_an_existing_file_is_not_overwritten(tmp_path):
    """A file that is there already is an error and stays as it is."""
    (tmp_path / "m.safetensors").write_bytes(b"mine")
    with pytest.raises(StorageError, match="exists"):
        save({"m": {"x": host(np.zeros(3, "f4"))}}, tmp_path)
    assert (tmp_path / "m.safetensors").read_bytes() == b"mine"


def test_cancel_stops_and_closes(tmp_path):
    """A cancelled save writes no more, and says so to those who wait."""
    gate, begun = threading.Event(), threading.Event()

    class Slow(files.System):
        def pwrite(self, fd, data, offset):
            begun.set()
            assert gate.wait(20)
            return super().pwrite(fd, data, offset)

    parts = {"m": {name: host(array) for name, array in arrays(40).items()}}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(files, "system", Slow())
        job = Save(plan(parts), str(tmp_path), block_size=BLOCK)
        job.start()
        assert begun.wait(20)
        waiter = threading.Timer(0.05, gate.set)
        waiter.start()
        job.cancel()
        waiter.join()
    with pytest.raises(UsageError, match="cancelled"):
        job.wait()
    unstarted = Save(plan({}), str(tmp_path))
    unstarted.cancel()


def test_waiting_for_what_was_not_started(tmp_path):
    """Waiting before `start` is a UsageError, not a wait for ever."""
    with pytest.raises(UsageError, match="start"):
        Save(plan({}), str(tmp_path)).wait()


def test_twenty_thousand_small_arrays_are_gathered(tmp_path, monkeypatch):
    """20,000 arrays of 1 KiB are written in as many writes as they fill blocks."""
    sizes = []
    open_files.direct_io_works(tmp_path)  # the first to ask tries it out, with a write of its own

    class Counting(files.System):
        def pwrite(self, fd, data, offset):
            if os.path.samestat(os.fstat(fd), os.stat(tmp_path / "m.safetensors")):
                sizes.append(len(data))
            return super().pwrite(fd, data, offset)

    monkeypatch.setattr(files, "system", Counting())
    data = np.random.default_rng(1).standard_normal((20_000, 256)).astype("f4")
    data[777, 3] = np.nan
    written = save(
        {"m": {f"x{i}": host(data[i], check=True) for i in range(20_000)}}, tmp_path, block_size=16 << 20
    )
    assert len(sizes) == 2
    assert written.nonfinite == [("m", "x777")]
    found = safetensors.numpy.load_file(tmp_path / "m.safetensors")
    assert all(found[f"x{i}"].tobytes() == data[i].tobytes() for i in range(0, 20_000, 97))


# -- staging ------------------------------------------------------------------------------------


def test_the_pool_reuses_its_buffers():
    """Buffers are page-aligned and made once."""
    first = staging.pool.take(3)
    size = staging.pool.size
    assert all(buffer.bytes.ctypes.data % 4096 == 0 and len(buffer.view) == 16 << 20 for buffer in first)
    staging.pool.give(first)
    again = staging.pool.take(3)
    assert {id(buffer) for buffer in again} == {id(buffer) for buffer in first}
    assert staging.pool.size == size
    staging.pool.give(again)


def test_a_child_does_not_see_the_buffers():
    """After a fork the child has a pool of its own, and the parent's pages read as zeros."""
    [buffer] = staging.pool.take(1)
    buffer.bytes[:] = 7
    child = os.fork()
    if not child:
        try:
            fine = not buffer.bytes.any() and staging.pool.size == 0
            [own] = staging.pool.take(1)
            own.bytes[:] = 3
            os._exit(0 if fine else 1)
        finally:
            os._exit(2)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert (buffer.bytes == 7).all()
    staging.pool.give([buffer])


def test_prepared_staging_is_what_a_save_takes(monkeypatch):
    """Buffers made ahead are in memory, are taken before new ones are made, and are made once."""
    pool = staging.Pool()
    pool.prepare(3)
    pool.prepare(2)
    assert pool.size == pool.free == 3 * staging.BLOCK
    taken = pool.take(3)
    assert (pool.size, pool.free) == (3 * staging.BLOCK, 0)
    pool.give(taken)
    monkeypatch.setattr(staging, "Buffer", lambda **_: (_ for _ in ()).throw(OSError("none left")))
    pool.prepare(5)
    assert pool.size == pool.free == 3 * staging.BLOCK
    with pytest.raises(MemoryError):
        pool.take(4)
    assert pool.size == pool.free == 3 * staging.BLOCK


def test_the_limit_of_staging(monkeypatch):
    """The limit is the argument less a block for all else, or the state's size but at most a quarter of what is free."""
    monkeypatch.setattr(staging, "free_memory", lambda: 4000)
    monkeypatch.setattr(staging, "pool", staging.Pool())
    assert staging.limit(300) == 300
    assert staging.limit(5000) == 1000
    assert staging.limit(5000, 7 + (16 << 20)) == 7
    assert staging.limit(5000, 0) == 0


@pytest.mark.parametrize("version", [1, 2])
def test_the_cgroup_limit_counts(tmp_path, version):
    """What a cgroup of either version, or one above it, has left is found; file pages are free."""
    if version == 2:
        membership, base = "0::/job/step\n", tmp_path
        names, idle_name = ("memory.max", "memory.current"), "inactive_file"
    else:
        membership, base = "3:cpu:/x\n5:memory:/job/step\n0::/\n", tmp_path / "memory"
        names, idle_name = ("memory.limit_in_bytes", "memory.usage_in_bytes"), "total_inactive_file"
    (base / "job" / "step").mkdir(parents=True)
    (tmp_path / "self").write_text(membership)
    (base / "job" / names[0]).write_text("1000\n")
    (base / "job" / names[1]).write_text("600\n")
    (base / "job" / "memory.stat").write_text(f"anon 5\n{idle_name} 100\n")
    (base / "job" / "step" / names[0]).write_text("max\n")
    (base / "job" / "step" / names[1]).write_text("500\n")
    assert list(staging._cgroups(str(tmp_path / "self"), str(tmp_path))) == [500]
    assert staging.free_memory() > 0
