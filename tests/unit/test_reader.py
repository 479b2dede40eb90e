import errno
import os
import threading
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

from holdfast import open_files
from holdfast.errors import DamagedError, FormatError, NotFoundError, StorageError, UsageError
from holdfast.payload import blocks, staging, threads
from holdfast.payload.array import HostArray
from holdfast.payload.layout import plan
from holdfast.payload.reader import Batch, FileRecord, Request, read, verify
from holdfast.payload.source import FolderSource
from holdfast.payload.writer import Save

BLOCK = 8192


def split(label):
    part, _, name = label.partition("/")
    return part, name


class Place(NamedTuple):
    file: str
    start: int
    stop: int


class Saved:
    """Arrays on disk, and what is needed to read them."""

    def __init__(self, directory, parts):
        self.directory, self.parts = str(directory), parts
        self.source = FolderSource(self.directory)
        layout = plan(
            {
                part: {n: HostArray("F32", a.shape, a.reshape(-1).view(np.uint8)) for n, a in arrays.items()}
                for part, arrays in parts.items()
            }
        )
        self.table = {
            part: {name: Place(entry.chunks[0].file, *entry.chunks[0].bytes) for name, entry in rows.items()}
            for part, rows in layout.table.items()
        }
        job = Save(layout, self.directory, block_size=BLOCK)
        job.start()
        self.files = {n: FileRecord(n, f.size, f.blocks) for n, f in job.wait().files.items()}

    def requests(self, *wanted):
        """Requests for "part/name" (default: all), and the arrays that they fill with -1 first."""
        wanted = wanted or [f"{part}/{name}" for part, arrays in self.parts.items() for name in arrays]
        into, requests = {}, []
        for label in wanted:
            part, name = label.split("/")
            place = self.table[part][name]
            into[label] = np.full(self.parts[part][name].shape, -1, "f4")
            view = into[label].reshape(-1).view(np.uint8)
            requests.append(Request(place.file, place.start, place.stop, view, label))
        return requests, into

    def batch(self, *wanted):
        """A batch of "part/name", all in one file, and what it hands over: label → [bytes]."""
        rows = sorted((self.table[part][name], f"{part}/{name}") for part, name in map(split, wanted))
        taken = {}

        def place(first, last, data, base):
            for at, label in rows[first:last]:
                taken.setdefault(label, []).append(data[at.start - base : at.stop - base].tobytes())

        def label(index):
            return rows[index][1]

        starts, stops = [at.start for at, _ in rows], [at.stop for at, _ in rows]
        return Batch(rows[0][0].file, starts, stops, place, label), taken

    def bytes_of(self, label):
        part, name = split(label)
        return self.parts[part][name].tobytes()

    def read(self, *wanted, **options):
        requests, into = self.requests(*wanted)
        read(self.source, self.files, requests, block_size=BLOCK, **options)
        return into

    def check(self, into):
        for label, array in into.items():
            part, name = label.split("/")
            assert np.array_equal(array, self.parts[part][name])

    def path(self, part):
        return os.path.join(self.directory, f"{part}.safetensors")

    def names(self, file, start, stop):
        return [
            f"{part}/{name}"
            for part, rows in self.table.items()
            for name, place in rows.items()
            if place.file == file and place.start < stop and start < place.stop
        ]


def flip(path, offset):
    with open(path, "r+b") as file:
        file.seek(offset)
        byte = file.read(1)
        file.seek(offset)
        file.write(bytes([byte[0] ^ 1]))


@pytest.fixture
def saved(tmp_path):
    rng = np.random.default_rng(5)
    parts = {
        "model": {f"w{i:03}": rng.random(997 + 500 * i, "f4") for i in range(12)},
        "tiny": {f"t{i:03}": rng.random(3, "f4") for i in range(900)},
        "empty": {"e": np.zeros((0, 3), "f4")},
    }
    directory = tmp_path / "checkpoint"
    directory.mkdir()
    return Saved(directory, parts)


@pytest.fixture(autouse=True)
def nothing_is_left_behind():
    """After every test all buffers are back and no descriptor is open."""
    before = len(os.listdir("/proc/self/fd"))
    yield
    assert staging.pool.free == staging.pool.size
    assert len(os.listdir("/proc/self/fd")) == before


def test_everything_comes_back(saved):
    """All arrays of all files, large, small and empty, are read back to the bit."""
    into = saved.read()
    assert len(into) == 913
    saved.check(into)


def test_a_selection_reads_only_its_blocks(saved):
    """Reading one array reads its blocks and the header's, nothing else."""
    count = []
    saved.check(saved.read("model/w007", progress=count.append))
    place = saved.table["model"]["w007"]
    touched = {0, *range(place.start // BLOCK, (place.stop - 1) // BLOCK + 1)}
    assert sum(count) == BLOCK * len(touched)


def test_each_block_is_read_once(saved):
    """Reading everything reads each byte of each file once."""
    count = []
    saved.read(progress=count.append)
    assert sum(count) == sum(record.size for record in saved.files.values())


def test_two_destinations_may_want_the_same_bytes(saved):
    """Overlapping requests are all filled, whatever their order."""
    requests, into = saved.requests("model/w003", "model/w004")
    again, copies = saved.requests("model/w004", "model/w003")
    read(saved.source, saved.files, [*requests, *again], block_size=BLOCK)
    saved.check(into)
    saved.check(copies)


@pytest.mark.parametrize("step", [2, 3, 5])
@pytest.mark.parametrize("part", ["model", "tiny"])
def test_what_lies_between_is_checked_too(saved, part, step):
    """Reading every second, third or fifth array checks the bytes between them as well."""
    saved.check(saved.read(*[f"{part}/{name}" for name in list(saved.parts[part])[::step]]))
    saved.check(saved.read(f"{part}/{next(iter(saved.parts[part]))}"))


def test_part_of_an_array(saved):
    """A request may begin and end anywhere."""
    place = saved.table["model"]["w009"]
    into = np.zeros(12_345, np.uint8)
    read(
        saved.source,
        saved.files,
        [Request(place.file, place.start + 777, place.start + 777 + 12_345, into, "x")],
        block_size=BLOCK,
    )
    assert into.tobytes() == saved.parts["model"]["w009"].tobytes()[777 : 777 + 12_345]


def test_short_reads_are_continued(saved, monkeypatch):
    """A system that hands out a few bytes at a time changes nothing."""
    real = os.preadv

    def few(fd, views, offset):
        return real(fd, [views[0][:1000]], offset)

    monkeypatch.setattr(os, "preadv", few)
    saved.check(saved.read())


@pytest.mark.parametrize("where", ["header", "first", "middle", "last"])
def test_a_flipped_bit_is_found(saved, where):
    """One flipped bit anywhere in a file is a DamagedError naming file, block and arrays."""
    size = saved.files["model.safetensors"].size
    offset = {"header": 50, "first": 4096, "middle": size // 2, "last": size - 1}[where]
    flip(saved.path("model"), offset)
    with pytest.raises(DamagedError) as caught:
        saved.read(names=saved.names)
    error, block = caught.value, offset // BLOCK
    assert (error.path, error.file, error.block) == (saved.directory, "model.safetensors", block)
    assert error.arrays == saved.names("model.safetensors", block * BLOCK, (block + 1) * BLOCK)
    assert error.expected == saved.files["model.safetensors"].blocks[block].hex()
    assert len(error.found) == 32
    assert error.found != error.expected
    for word in ("model.safetensors", f"block {block} of", error.arrays[0], error.found, "holdfast verify"):
        assert word in str(error)
    assert error.target_changed


@pytest.mark.parametrize("offset", [0, 7, 50, 4095])
def test_a_damaged_header_is_found_by_any_load(saved, offset):
    """Any load of a file finds damage in its header, be it in the length or in the padding."""
    flip(saved.path("model"), offset)
    with pytest.raises(DamagedError) as caught:
        saved.read("model/w001")
    assert caught.value.block == 0


def test_the_header_of_a_file_with_only_empty_arrays_is_checked(saved):
    """Even a request for no bytes has its file's header checked."""
    flip(saved.path("empty"), 20)
    with pytest.raises(DamagedError):
        saved.read("empty/e")


def test_a_long_header_is_checked_whole(tmp_path):
    """Where the header spans several blocks, each of them is checked by any load."""
    parts = {"m": {f"array.with.a.long.name.{i}": np.zeros(1, "f4") for i in range(400)}}
    saved = Saved(tmp_path, parts)
    end = min(place.start for place in saved.table["m"].values())
    assert end > 2 * BLOCK
    for offset in (BLOCK + 5, end - 1):
        flip(saved.path("m"), offset)
        with pytest.raises(DamagedError) as caught:
            saved.read("m/array.with.a.long.name.399")
        assert caught.value.block == offset // BLOCK
        flip(saved.path("m"), offset)


def test_damage_caught_in_scratch_leaves_the_target_alone(saved):
    """When no destination was written to before the damage was found, the error says so."""
    rows = saved.table["tiny"]
    block = rows["t000"].start // BLOCK
    flip(saved.path("tiny"), rows["t000"].start)
    requests, into = saved.requests(
        *[f"tiny/{name}" for name, row in rows.items() if row.stop <= (block + 1) * BLOCK]
    )
    assert len(requests) > 64
    with pytest.raises(DamagedError) as caught:
        read(saved.source, saved.files, requests, block_size=BLOCK)
    assert not caught.value.target_changed
    assert "overwritten" not in str(caught.value)
    assert all((array == -1).all() for array in into.values())


@pytest.mark.parametrize("kind", ["missing", "short", "long", "link", "directory"])
def test_structural_damage_is_found_before_any_byte_is_written(saved, kind):
    """A missing, cut, grown or replaced file is found before a destination of any file is written to."""
    path = saved.path("tiny")
    if kind in {"short", "long"}:
        os.truncate(path, os.path.getsize(path) + (1 if kind == "long" else -1))
    else:
        os.rename(path, path + ".aside")
    if kind == "link":
        os.symlink(path + ".aside", path)
    if kind == "directory":
        os.mkdir(path)
    requests, into = saved.requests()
    with pytest.raises(DamagedError) as caught:
        read(saved.source, saved.files, requests, block_size=BLOCK)
    error = caught.value
    assert error.file == "tiny.safetensors"
    assert error.expected == saved.files["tiny.safetensors"].size
    assert not error.target_changed
    assert all((array == -1).all() for array in into.values())
    if kind in {"short", "long"}:
        assert f"{error.expected:,}" in str(error)
        assert f"{error.found:,}" in str(error)
    assert next(found.file for found in verify(saved.source, saved.files, block_size=BLOCK)) == error.file


def test_a_file_that_is_not_wanted_is_not_looked_at(saved):
    """A load of one part does not mind that another part's file is gone."""
    os.unlink(saved.path("tiny"))
    saved.check(saved.read("model/w000"))


def test_a_deleted_checkpoint_is_not_damage(saved):
    """When the directory itself is gone, it was deleted meanwhile: NotFoundError."""
    import shutil

    requests, _ = saved.requests()
    shutil.rmtree(saved.directory)
    with pytest.raises(NotFoundError, match="deleted"):
        read(saved.source, saved.files, requests, block_size=BLOCK)
    with pytest.raises(NotFoundError, match="deleted"):
        verify(saved.source, saved.files, block_size=BLOCK)


def test_a_file_cut_while_it_is_read(saved, monkeypatch):
    """A file that ends early although its size was right is a DamagedError with both sizes."""
    real = os.preadv

    def cutting(fd, views, offset):
        os.truncate(saved.path("model"), 10_000)
        return real(fd, views, offset)

    monkeypatch.setattr(os, "preadv", cutting)
    with pytest.raises(DamagedError) as caught:
        saved.read("model/w011")
    assert caught.value.found == 10_000


@pytest.mark.parametrize(("code", "kind"), [(errno.EIO, StorageError), (errno.ESTALE, NotFoundError)])
def test_an_error_of_the_system(saved, monkeypatch, code, kind):
    """An I/O error is a StorageError that says whether the target was changed; ESTALE means deleted."""
    real = os.preadv

    def failing(fd, views, offset):
        if offset >= 3 * BLOCK:
            raise OSError(code, os.strerror(code))
        return real(fd, views, offset)

    monkeypatch.setattr(os, "preadv", failing)
    with pytest.raises(kind) as caught:
        saved.read("model/w000", "model/w011")
    assert caught.value.target_changed
    assert "overwritten" in str(caught.value)


def test_verify_reports_every_damaged_block(saved):
    """`verify` reads every byte and returns all damage in order; a whole checkpoint has none."""
    count = []
    assert verify(saved.source, saved.files, block_size=BLOCK, progress=count.append) == []
    assert sum(count) == sum(record.size for record in saved.files.values())
    for offset in (10, 5 * BLOCK, 5 * BLOCK + 9, 2 * BLOCK - 1):
        flip(saved.path("model"), offset)
    path = saved.path("tiny")
    os.truncate(path, os.path.getsize(path) - 1)
    found = verify(saved.source, saved.files, block_size=BLOCK, names=saved.names)
    assert [(error.file, error.block) for error in found] == [
        ("model.safetensors", 0),
        ("model.safetensors", 1),
        ("model.safetensors", 5),
        ("tiny.safetensors", None),
    ]
    assert found[2].arrays == saved.names("model.safetensors", 5 * BLOCK, 6 * BLOCK)


def test_verify_counts_what_the_device_cannot_read_as_damaged(saved, monkeypatch):
    """A block that gives an I/O error is reported, and the others are still looked at."""
    real = os.preadv

    def failing(fd, views, offset):
        if BLOCK <= offset < 2 * BLOCK:
            raise OSError(errno.EIO, "Input/output error")
        return real(fd, views, offset)

    flip(saved.path("model"), 4 * BLOCK)
    monkeypatch.setattr(os, "preadv", failing)
    found = verify(saved.source, {"model.safetensors": saved.files["model.safetensors"]}, block_size=BLOCK)
    assert [error.block for error in found] == [1, 4]
    assert "Input/output" in str(found[0])


def test_swapped_files_are_found(saved):
    """Two files of equal size that changed places are found."""
    other = saved.files["model.safetensors"]
    copy = os.path.join(saved.directory, "other.safetensors")
    data = bytearray(Path(saved.path("model")).read_bytes())
    data[-1] ^= 255
    Path(copy).write_bytes(data)
    os.replace(copy, saved.path("model"))
    assert os.path.getsize(saved.path("model")) == other.size
    with pytest.raises(DamagedError):
        saved.read()


@pytest.mark.parametrize(
    ("request_", "kind"),
    [
        (Request("none.safetensors", 0, 1, np.zeros(1, np.uint8), "m/x"), FormatError),
        (Request("model.safetensors", 0, 1 << 40, np.zeros(1, np.uint8), "m/x"), FormatError),
        (Request("model.safetensors", -1, 0, np.zeros(1, np.uint8), "m/x"), FormatError),
        (Request("model.safetensors", 0, 4, np.zeros(3, np.uint8), "m/x"), UsageError),
        (Request("model.safetensors", 0, 4, np.zeros(4, np.int8), "m/x"), UsageError),
        (Request("model.safetensors", 0, 4, np.zeros(8, np.uint8)[::2], "m/x"), UsageError),
        (Request("model.safetensors", 0, 4, np.frombuffer(b"1234", np.uint8), "m/x"), UsageError),
    ],
)
def test_impossible_requests_are_refused(saved, request_, kind):
    """A request outside its file, or with a destination that does not fit, names the array."""
    with pytest.raises(kind, match="m/x"):
        read(saved.source, saved.files, [request_], block_size=BLOCK)


def test_a_record_without_all_its_digests_is_refused(saved):
    """A record with fewer digests than blocks would leave bytes unchecked: FormatError."""
    record = saved.files["model.safetensors"]
    saved.files["model.safetensors"] = FileRecord(record.name, record.size, record.blocks[:-1])
    with pytest.raises(FormatError):
        saved.read()
    with pytest.raises(FormatError):
        verify(saved.source, saved.files, block_size=BLOCK)


def test_an_error_in_progress_reaches_the_caller(saved):
    """What `progress` raises, an OSError too, ends the read as it is."""

    def broken(count):
        raise BrokenPipeError(errno.EPIPE, "closed")

    with pytest.raises(BrokenPipeError):
        saved.read(progress=broken)


def test_reading_beside_a_save(saved, tmp_path):
    """A load works, in the caller's thread, while a save holds every thread of the crew."""
    gate = threading.Event()
    busy = [threads.submit("blocks", gate.wait) for _ in range(threads.size("blocks"))]
    try:
        saved.check(saved.read())
    finally:
        gate.set()
        for ticket in busy:
            ticket.wait()


def test_blocks_larger_than_the_pools_buffers(tmp_path, monkeypatch):
    """A checkpoint with larger blocks than ours is read all the same."""
    import xxhash

    saved = Saved(tmp_path, {"m": {f"x{i}": np.full(2, i, "f4") for i in range(200)}})
    data = Path(saved.path("m")).read_bytes()
    record = FileRecord("m.safetensors", len(data), [xxhash.xxh3_128_digest(data)])
    monkeypatch.setattr(staging, "BLOCK", 4096)
    monkeypatch.setattr(staging, "pool", staging.Pool())
    monkeypatch.setattr(blocks, "_STRETCH", 4096)
    requests, into = saved.requests()
    read(saved.source, {"m.safetensors": record}, requests, block_size=1 << 25)
    saved.check(into)


def test_nothing_is_wanted(saved):
    """A read of nothing touches nothing, not even a directory that is not there."""
    read(FolderSource("/nowhere"), {}, [])
    assert verify(saved.source, {}) == []
    assert open_files.direct_io_works(saved.directory) in {True, False}


# -- batches ------------------------------------------------------------------------------------


@pytest.mark.parametrize("step", [1, 2, 7])
@pytest.mark.parametrize("part", ["tiny", "model"])
def test_a_batch_gets_each_array_once(saved, part, step):
    """A batch gets the bytes of each of its arrays, once, whether they lie in one block or astride of several."""
    wanted = [f"{part}/{name}" for name in sorted(saved.parts[part])[::step]]
    batch, taken = saved.batch(*wanted)
    read(saved.source, saved.files, [], batches=[batch], block_size=BLOCK)
    assert taken == {label: [saved.bytes_of(label)] for label in wanted}


@pytest.mark.parametrize("step", [1, 30])
def test_batches_beside_requests(saved, step):
    """Batches and requests may want arrays of one block, even the same ones; no block is read twice."""
    names = sorted(saved.parts["tiny"])
    some = [f"tiny/{name}" for name in names[::step]]
    others = [f"tiny/{name}" for name in names[::50]]
    (one, first), (two, second) = saved.batch(*some), saved.batch(*others)
    requests, into = saved.requests(*others, "model/w011")
    count = []
    read(saved.source, saved.files, requests, batches=[one, two], progress=count.append, block_size=BLOCK)
    assert first == {label: [saved.bytes_of(label)] for label in some}
    assert second == {label: [saved.bytes_of(label)] for label in others}
    saved.check(into)
    assert sum(count) <= sum(saved.files[f"{part}.safetensors"].size for part in ("tiny", "model"))


@pytest.mark.parametrize("step", [1, 60])
def test_a_batch_gets_nothing_of_a_damaged_block(saved, step):
    """What lies in a damaged block is handed to nobody, and the error names the arrays of the batch that lie there."""
    names = sorted(saved.parts["tiny"])[::step]
    batch, taken = saved.batch(*[f"tiny/{name}" for name in names])
    victim = saved.table["tiny"][names[3]]
    flip(saved.path("tiny"), victim.start)
    with pytest.raises(DamagedError) as caught:
        read(saved.source, saved.files, [], batches=[batch], block_size=BLOCK)
    block = victim.start // BLOCK
    assert caught.value.block == block
    inside = {f"tiny/{n}" for n in names if saved.table["tiny"][n].start // BLOCK == block}
    assert f"tiny/{names[3]}" in caught.value.arrays
    assert not inside & set(taken)


def test_a_batch_whose_arrays_overlap(saved):
    """The arrays of a batch may lie in one another, or share their first byte."""
    first = saved.table["tiny"]["t100"].start
    data = b"".join(saved.bytes_of(f"tiny/t{i}") for i in range(100, 200))
    spans = [(0, 100), (0, 4), (8, 20), (8, 12), (300, 310), (305, 306)]
    taken = {}

    def place(begin, end, block, base):
        for a, b in spans[begin:end]:
            taken[a, b] = block[first + a - base : first + b - base].tobytes()

    starts, stops = [first + a for a, _ in spans], [first + b for _, b in spans]
    batch = Batch("tiny.safetensors", starts, stops, place, str)
    read(saved.source, saved.files, [], batches=[batch], block_size=BLOCK)
    assert taken == {(a, b): data[a:b] for a, b in spans}


def test_impossible_batches_are_refused(saved):
    """A batch outside of its file, or backwards, or of a file that is not listed, is refused with the array's name."""
    batch, taken = saved.batch("tiny/t000", "tiny/t001", "tiny/t002")
    size = saved.files["tiny.safetensors"].size
    for starts, stops in [
        ([-1, *batch.starts[1:]], batch.stops),
        (batch.starts, [*batch.stops[:2], size + 1]),
        (batch.starts, [batch.starts[0] - 1, *batch.stops[1:]]),
    ]:
        bent = batch._replace(starts=starts, stops=stops)
        with pytest.raises(FormatError, match=r"the array tiny/t00[02] is said to be in bytes"):
            read(saved.source, saved.files, [], batches=[bent], block_size=BLOCK)
    with pytest.raises(FormatError, match="tiny/t000 is said to be in 'elsewhere'"):
        read(saved.source, saved.files, [], batches=[batch._replace(file="elsewhere")], block_size=BLOCK)
    assert not taken


def test_an_error_in_a_batch_reaches_the_caller(saved):
    """What a batch raises when it gets its arrays is raised by the read."""
    batch, _ = saved.batch(*[f"tiny/{name}" for name in saved.parts["tiny"]])

    def fail(*_):
        raise MemoryError("full")

    with pytest.raises(MemoryError, match="full"):
        read(saved.source, saved.files, [], batches=[batch._replace(place=fail)], block_size=BLOCK)
