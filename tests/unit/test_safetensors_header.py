import json

import numpy as np
import pytest
import safetensors.numpy

from holdfast.errors import FormatError, UsageError
from holdfast.format import safetensors as format_


def framed(content, size=None):
    text = content if isinstance(content, bytes) else json.dumps(content).encode()
    return (len(text) if size is None else size).to_bytes(8, "little") + text


def array(start, stop, dtype="U8", shape=None):
    return {
        "dtype": dtype,
        "shape": [stop - start] if shape is None else shape,
        "data_offsets": [start, stop],
    }


def refused(data, size, *words):
    with pytest.raises(FormatError) as caught:
        format_.parse_header(data, size, "some/file")
    message = str(caught.value)
    for word in ("some/file", *words):
        assert word in message
    return caught.value


def test_header_ends_on_a_page():
    """Whatever it holds, a header is a multiple of 4096 bytes and reads back as it was built."""
    for count in (0, 1, 37, 38, 39, 40, 400):
        entries = [(f"ä{i}", "F32", (2, i), 8 * sum(range(i)), 8 * sum(range(i + 1))) for i in range(count)]
        data = format_.build_header(entries, {"format": "pt"})
        assert len(data) % 4096 == 0
        size = len(data) + (entries[-1][4] if entries else 0)
        found = format_.parse_header(data, size, "f")
        assert found == {n: (d, s, len(data) + a, len(data) + b) for n, d, s, a, b in entries}
        assert format_.header_size(data[:8], size, "f") == len(data)


def test_the_library_reads_our_header():
    """The ordinary library opens a file made of our header and packed data."""
    data = format_.build_header(
        [('a/b"\\\n', "F32", (3,), 0, 12), ("é", "U8", (0, 2), 12, 12)], {"format": "pt"}
    )
    found = safetensors.numpy.load(data + np.arange(3, dtype="f4").tobytes())
    assert set(found) == {'a/b"\\\n', "é"}
    assert found["é"].shape == (0, 2)
    assert found['a/b"\\\n'].tolist() == [0, 1, 2]


def test_we_read_the_librarys_header():
    """A file of the ordinary library is understood to the byte."""
    arrays = {"x": np.arange(6, dtype="f8").reshape(2, 3), "y": np.zeros((), "i2"), "z": np.zeros(0, "f4")}
    data = safetensors.numpy.save(arrays, {"k": "v"})
    for name, entry in format_.parse_header(data, len(data), "f").items():
        assert data[entry.start : entry.stop] == arrays[name].tobytes()
        assert entry.shape == arrays[name].shape


def test_a_name_that_is_no_text_is_refused():
    """A lone surrogate cannot be stored, and the error quotes the name."""
    with pytest.raises(UsageError, match="udc80"):
        format_.build_header([("\udc80", "U8", (0,), 0, 0)])


def test_an_oversized_header_is_refused_with_number_limit_and_file():
    """A header over 100 MB is refused before it is read, with the number, the limit and the file."""
    refused(framed(b"{}", 100_000_001), 1 << 40, "100,000,001", "100,000,000")
    error = refused(framed(b"{}", 1 << 60), 1 << 62, f"{1 << 60:,}")
    assert error.found == 1 << 60
    refused(framed(b"{}", (1 << 64) - 1), 10, f"{(1 << 64) - 1:,}")


def test_a_header_beyond_the_file_is_refused():
    """A header that is longer than the file says both figures."""
    refused(framed(b"{}", 50), 10, "50", "only 2")
    refused(framed(b"{}", 50), 100, "50", "2")
    refused(b"abc", 3, "3 bytes")
    refused(b"", 0, "0 bytes")


@pytest.mark.parametrize(
    ("content", "size", "word"),
    [
        ({"a": array(0, 4), "b": array(2, 6)}, 6, "overlaps"),
        ({"a": array(0, 4), "b": array(5, 6)}, 6, "hole"),
        ({"a": array(1, 4)}, 4, "hole"),
        ({"a": array(0, 4)}, 3, "would end"),
        ({"a": array(0, 4)}, 5, "arrays end"),
        ({"a": array(0, 1 << 60)}, 5, "would end"),
        ({"a": array(0, 4, "U8", [1 << 62, 1 << 62, 4])}, 4, "has"),
        ({"a": array(0, 4, "U8", [5])}, 4, "has 5"),
        ({"a": array(0, 0, "U8", [1 << 63])}, 0, "shape"),
        ({"a": array(0, 4, "U8", [-4])}, 4, "shape"),
        ({"a": array(0, 1, "U8", [True])}, 1, "shape"),
        ({"a": array(0, 4, "U8", [4.0])}, 4, "shape"),
        ({"a": array(0, 4, "U8", "4")}, 4, "shape"),
        ({"a": array(0, 4, "U8", [4] + [1] * 64)}, 4, "shape"),
        ({"a": {"dtype": "U8", "shape": [1], "data_offsets": [4, 3]}}, 4, "data_offsets"),
        ({"a": {"dtype": "U8", "shape": [1], "data_offsets": [0, 1, 1]}}, 4, "data_offsets"),
        ({"a": {"dtype": "U8", "shape": [1]}}, 4, "dtype, shape"),
        ({"a": 3}, 4, "dtype, shape"),
        ({"a": array(0, 4, "numpy:<f4", [1])}, 4, "dtype"),
        ({"a": array(0, 4, ["U8"])}, 4, "dtype"),
        ({"__metadata__": {"a": 3}}, 0, "__metadata__"),
        ({"__metadata__": []}, 0, "__metadata__"),
        (b"[]", 0, "begin"),
        (b"{", 0, "JSON"),
        (b'{"a\xff":1}', 0, "JSON"),
        (b'{"a":' + b"[" * 100_000, 0, "JSON"),
        (b'{"a":' + b"9" * 5000 + b"}", 0, "JSON"),
        (b'{"a":1,"a":2}', 0, "twice"),
        (b'{"a":{"dtype":"U8","dtype":"U8","shape":[0],"data_offsets":[0,0]}}', 0, "twice"),
    ],
)
def test_a_hostile_header_is_refused(content, size, word):
    """Overlaps, holes, overflows, duplicates and nonsense are a FormatError naming file and array."""
    data = framed(content)
    refused(data, len(data) + size, word)
