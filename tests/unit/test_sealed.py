"""Sealed JSON files: the digest on the last line, and what strict JSON refuses."""

import json

import pytest
import xxhash

from holdfast.errors import DamagedError, FormatError
from holdfast.format import sealed

CONTENT = {
    "format": "holdfast-checkpoint",
    "version": [1, 0],
    "note": 'ünïcode "quoted": ☃ \ud800',
    "x": [1.5],
}


def seal(body):
    """Any bytes that end where the digest's line begins, with a right digest."""
    return body + b'"xxh3-128":"%s"}\n' % xxhash.xxh3_128_hexdigest(body).encode()


def test_layout():
    """One key a line in the given order, all ASCII, and the last line is the digest of all before it."""
    data = sealed.encode(CONTENT)
    lines = data.split(b"\n")
    assert lines[0] == b'{"format":"holdfast-checkpoint",'
    assert lines[-1] == b""
    body = data[: -len(lines[-2]) - 1]
    assert lines[-2] == b'"xxh3-128":"%s"}' % xxhash.xxh3_128_hexdigest(body).encode()
    assert data.isascii()
    assert {**CONTENT, "xxh3-128": xxhash.xxh3_128_hexdigest(body)} == json.loads(data)
    assert sealed.decode(data, "a.json") == CONTENT


def test_every_flipped_bit_is_found():
    """A flip of any single bit of the file is a `DamagedError` that names the file."""
    data = sealed.encode({"a": 1, "b": "x"})
    for place in range(len(data)):
        for bit in range(8):
            bad = bytearray(data)
            bad[place] ^= 1 << bit
            with pytest.raises(DamagedError) as caught:
                sealed.decode(bytes(bad), "runs/a/checkpoint.json")
            assert "runs/a/checkpoint.json" in str(caught.value)
            assert "Next: " in str(caught.value)


def test_every_truncation_is_found():
    """A file cut anywhere, or with bytes after its end, is damaged, not merely bad JSON."""
    data = sealed.encode({"a": 1})
    for length in range(len(data)):
        with pytest.raises(
            DamagedError, match="is truncated or was changed: its last line is not its digest"
        ):
            sealed.decode(data[:length], "checkpoint.json")
    for more in (b"\n", b" ", b"x" * 100, data):
        with pytest.raises(DamagedError):
            sealed.decode(data + more, "checkpoint.json")


def test_digest_is_compared_as_bytes_before_anything_is_parsed():
    """The same JSON with other spaces, or with upper-case digits, is not what was written."""
    data = sealed.encode({"a": 1})
    for bad in (data.replace(b'"a":1', b'"a": 1'), data[:-36] + data[-36:].upper()):
        with pytest.raises(DamagedError, match=r"its digest is|its last line"):
            sealed.decode(bad, "checkpoint.json")


def test_message_has_both_digests():
    """A wrong digest is named beside the one that was written, as text and as facts."""
    bad = bytearray(sealed.encode({"a": 1}))
    bad[5] ^= 1
    with pytest.raises(DamagedError) as caught:
        sealed.decode(bytes(bad), "checkpoint.json")
    error = caught.value
    assert error.file == "checkpoint.json"
    assert error.block is None
    assert error.arrays == []
    assert error.expected in str(error)
    assert error.found in str(error)
    assert error.expected != error.found == xxhash.xxh3_128_hexdigest(bytes(bad[:-47]))


HOSTILE = {
    "a key twice": (b'{"a":1,"a":2,\n', "has the key 'a' twice"),
    "a key twice, once escaped": (b'{"a":1,"\\u0061":2,\n', "has the key 'a' twice"),
    "a key twice, with spaces": (b'{"b":{"a" : 1 , "a" : 2},\n', "has the key 'a' twice"),
    "a key twice, deep": (b'{"b":[[{"a":1,"c":":","a":1}]],\n', "has the key 'a' twice"),
    "the digest's key twice": (b'{"xxh3-128":"0",\n', "has the key 'xxh3-128' twice"),
    "NaN": (b'{"a":NaN,\n', "holds the number NaN, which JSON does not have"),
    "Infinity": (b'{"a":[-Infinity],\n', "holds the number -Infinity"),
    "a number beyond all floats": (b'{"a":1e400,\n', "holds the number 1e400"),
    "a number of a million digits": (b'{"a":' + b"9" * 10**6 + b",\n", "is not valid JSON"),
    "nested a little too deep": (b'{"a":' + b"[" * 101 + b"]" * 101 + b",\n", "nested deeper than 100"),
    "nested a million deep": (b'{"a":' + b"[" * 10**6 + b",\n", "nested deeper than 100"),
    "objects a million deep": (b'{"a":' * 10**6 + b"\n", "nested deeper than 100"),
    "no JSON": (b"PK\x03\x04", "is not valid JSON"),
    "not UTF-8": (b'{"a":"\xff",\n', "is not valid JSON"),
    "a control character": (b'{"a":"\x01",\n', "is not valid JSON"),
    "a pickle": (b"\x80\x04\x95\x00.", "is not valid JSON"),
    "something after the object": (b'{"a":1}\n{', "is not valid JSON"),
    "a UTF-8 mark": (b'\xef\xbb\xbf{"a":1,\n', "is not valid JSON"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_but_with_a_right_digest(name):
    """What no Holdfast writes is a `FormatError` that says what it is, though its digest is right."""
    body, words = HOSTILE[name]
    with pytest.raises(FormatError) as caught:
        sealed.decode(seal(body), "runs/a/arrays.json")
    assert str(caught.value).startswith("runs/a/arrays.json ")
    assert words in str(caught.value)
    assert len(str(caught.value)) < 400


def test_depth_of_exactly_one_hundred_is_read():
    """The limit of depth is 100, not less."""
    assert sealed.decode(seal(b'{"a":' + b"[" * 99 + b"]" * 99 + b",\n"), "a.json")["a"]


def test_texts_that_look_like_keys():
    """Texts with quotes and colons in them are read as what they are."""
    content = {"a": 'x":', "b": ['":":'], '":': {'k":': 1}}
    assert sealed.decode(sealed.encode(content), "a.json") == content


def test_nothing_nonfinite_is_written():
    """`encode` refuses a NaN that nobody tagged, rather than write what is no JSON."""
    with pytest.raises(ValueError, match="JSON compliant"):
        sealed.encode({"a": float("nan")})
