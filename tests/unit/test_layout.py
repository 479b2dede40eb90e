import numpy as np
import pytest

from holdfast.errors import UsageError
from holdfast.format import dtypes, safetensors
from holdfast.payload.array import HostArray, LazyArray
from holdfast.payload.joining import SmallArray
from holdfast.payload.layout import plan


def host(dtype, shape, identity=None, check=False):
    return HostArray(dtype, shape, np.zeros(dtypes.byte_count(dtype, shape), np.uint8), identity, check)


def test_packed_by_element_size_then_name():
    """Arrays lie by descending element size, then name, without a hole, from a page on."""
    layout = plan(
        {
            "m": {
                "b": host("U8", (3,)),
                "z": host("F64", (2,)),
                "a": host("F64", (1,)),
                "c": host("C128", (1,)),
                "t": host("numpy:<U7", (1,)),
            }
        }
    )
    [file] = layout.files
    assert [segment.name for segment in file.segments] == ["c", "a", "z", "t", "b"]
    assert file.segments[0].start == len(file.header)
    assert len(file.header) % 4096 == 0
    ends = [segment.stop for segment in file.segments]
    assert [segment.start for segment in file.segments[1:]] == ends[:-1]
    assert file.size == ends[-1] == layout.total_bytes
    entries = safetensors.parse_header(file.header, file.size, "m")
    for name, place in layout.table["m"].items():
        assert (entries[name].start, entries[name].stop) == place.chunks[0].bytes
    assert entries["c"][:2] == ("U8", (1, 16))
    assert (layout.table["m"]["c"].dtype, layout.table["m"]["c"].shape) == ("C128", (1,))


def test_every_number_is_aligned():
    """Each array starts at a multiple of its element size, so no number straddles two blocks."""
    kinds = ["U8", "F32", "numpy:|S3", "F64", "BF16", "C128", "numpy:<U5", "C64"]
    layout = plan({"m": {f"{kind}{i}": host(kind, (i,)) for kind in kinds for i in range(5)}})
    for segment in layout.files[0].segments:
        assert segment.start % dtypes.alignment(segment.array.dtype) == 0


def test_equal_identity_is_stored_once():
    """Equal identities, in one part or two, are stored once under the first name."""
    tied = ("cpu", 7)
    layout = plan(
        {
            "model": {
                "z": host("F32", (2,), tied),
                "a": host("F32", (2,), tied, check=True),
                "b": host("F32", (2,)),
            },
            "ema": {"w": host("F32", (2,), tied, check=True)},
        }
    )
    assert [file.name for file in layout.files] == ["model.safetensors"]
    assert [segment.name for segment in layout.files[0].segments] == ["b", "z"]
    first = layout.table["model"]["z"]
    assert layout.table["model"]["a"] is first
    assert layout.table["ema"]["w"] is first
    assert layout.files[0].segments[1].checked == (("model", "a"), ("ema", "w"))


def test_a_large_header_splits_the_part():
    """A part whose header would exceed the limit is split into files counted from 1 of n."""
    arrays = {f"layer.{i:04}": host("F32", (i % 3,)) for i in range(300)}
    layout = plan({"model": arrays, "tiny": {"x": host("F32", ())}}, {"model": "pt"}, header_limit=16384)
    names = [file.name for file in layout.files]
    count = len(names) - 1
    assert count > 1
    assert names == [f"model-{i:05}-of-{count:05}.safetensors" for i in range(1, count + 1)] + [
        "tiny.safetensors"
    ]
    assert all(len(file.header) <= 16384 for file in layout.files)
    stored = {}
    for file in layout.files[:-1]:
        stored.update(safetensors.parse_header(file.header, file.size, file.name))
    assert set(stored) == set(arrays)


def test_metadata_only_where_asked():
    """The file of a torch module says so in its metadata; no other file has any."""
    layout = plan({"model": {"x": host("F32", ())}, "other": {"x": host("F32", ())}}, {"model": "pt"})
    assert b'"__metadata__":{"format":"pt"}' in layout.files[0].header
    assert b"__metadata__" not in layout.files[1].header


def test_empty_arrays_and_parts():
    """An array without elements has a place of no bytes; a part without arrays has no file."""
    layout = plan({"m": {"e": host("F32", (0, 3)), "s": host("I64", ())}, "none": {}})
    places = {name: entry.chunks[0].bytes for name, entry in layout.table["m"].items()}
    assert places["e"][0] == places["e"][1]
    assert places["s"][1] - places["s"][0] == 8
    assert layout.table["none"] == {}
    assert [file.name for file in layout.files] == ["m.safetensors"]
    assert plan({}).files == ()


def test_reserved_name_and_wrong_size_are_refused():
    """A name that the format keeps, and bytes that do not fit dtype and shape, are UsageErrors."""
    with pytest.raises(UsageError, match="__metadata__"):
        plan({"m": {"__metadata__": host("F32", ())}})
    with pytest.raises(UsageError, match="m/x brings 5 bytes"):
        plan({"m": {"x": LazyArray("F32", (1,), 5, lambda: np.zeros(5, np.uint8))}})


class Small(SmallArray):
    """An array of numbered bytes."""

    def __init__(self, dtype, count, value, check=False):
        super().__init__(dtype, (count,), dtypes.byte_count(dtype, (count,)), None, check)
        self.value = value

    def open(self):
        return np.full(self.nbytes, self.value, np.uint8)

    @staticmethod
    def join(arrays):
        return np.concatenate([array.open() for array in arrays])


class OtherSmall(Small):
    pass


def test_small_neighbours_are_one_segment():
    """Small arrays that follow one another are one segment, as long as class, dtype and lateness are the same."""
    arrays = {
        "a": Small("F32", 1, 1),
        "b": Small("F32", 2, 2),
        "c": Small("I32", 1, 3),
        "d": Small("I32", 1, 4),
        "e": Small("I32", 1, 5),
        "f": OtherSmall("I32", 1, 6),
        "g": Small("F32", 1, 7, check=True),
        "h": Small("F32", 0, 8),
        "i": Small("F32", 1, 9),
        "j": Small("F32", 1, 10),
        "k": host("F32", (1,)),
        "l": host("F32", (1,)),
    }
    [file] = plan({"m": arrays}, late=[("m", name) for name in "def"]).files
    segments = [(segment.name, segment.late) for segment in file.segments]
    names = ["a … b", "c", "d … e", "f", "g", "i … j", "k", "l"]
    assert segments == list(zip(names, [False, False, True, True, *[False] * 4], strict=True))
    spans = [(segment.start, segment.stop) for segment in file.segments]
    assert [stop for _, stop in spans[:-1]] == [start for start, _ in spans[1:]]
    assert all(segment.array.nbytes == segment.stop - segment.start for segment in file.segments)
    opened = b"".join(segment.array.open().tobytes() for segment in file.segments)
    assert opened == b"".join(array.open().tobytes() for array in arrays.values())


@pytest.mark.parametrize(("dtype", "most"), [("U8", 32_000), ("F32", 128_000), ("F64", 128 * 1024)])
def test_no_segment_of_neighbours_is_large(dtype, most):
    """Neighbours that are opened together have at most 128 KiB and 32,000 elements."""
    arrays = {f"{number:03}": Small(dtype, 1000, number) for number in range(256)}
    sizes = [segment.stop - segment.start for segment in plan({"m": arrays}).files[0].segments]
    one = dtypes.item_size(dtype) * 1000
    assert set(sizes[:-1]) == {most // one * one}
    assert sum(sizes) == 256 * one
