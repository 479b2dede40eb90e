"""`arrays.json` has a quick way in and out for what this version writes; it must judge as the general one does."""

import msgspec
import pytest

from holdfast.errors import FormatError
from holdfast.format import sealed, table
from holdfast.format.table import ArrayEntry, Arrays, Chunk, Part, PayloadRecord


def arrays(*names, skeleton=None):
    """The table of a part whose arrays all lie in the same eight bytes."""
    entry = ArrayEntry("F32", (2,), (Chunk("m.safetensors", (4096, 4104)),))
    return Arrays(
        block_size=16 << 20,
        files={"m.safetensors": PayloadRecord(4104, ("0" * 32,))},
        parts={"m": Part(kind="mapping", skeleton=skeleton, arrays=dict.fromkeys(names or ("a",), entry))},
    )


def resealed(data, old, new):
    """The file with some bytes replaced, and the digest that belongs to the result."""
    body = data[: data.rindex(b'"xxh3-128"')]
    assert body.count(old) == 1
    body = body.replace(old, new)
    return body + b'"xxh3-128":"%s"}\n' % sealed.digest(body).encode()


def nested(depth):
    value = 0
    for _ in range(depth):
        value = [value]
    return value


CASES = {
    "plain": arrays(),
    "characters": arrays("é", 'a"\\\n\x7f', "/x~1y"),
    "surrogates": arrays("\ud800"),
    "values": arrays(
        skeleton={"x": [1, 1e-8, 1e22, -0.0, {"$": "float", "v": "nan"}, 2**63 - 1, True, None]}
    ),
    "text": arrays(skeleton='é": {"$'),
    "empty": Arrays(block_size=16 << 20),
}


@pytest.mark.parametrize("name", CASES)
def test_the_quick_writer_writes_the_same_bytes(name):
    """The quick encoder gives the very bytes that the general one gives, in ASCII, and they read back."""
    data = table.encode_arrays(CASES[name])
    assert data == sealed.encode(msgspec.to_builtins(CASES[name], str_keys=True))
    assert data.isascii()
    assert table.decode_arrays(data, "p") == CASES[name]


def test_the_quick_reader_is_used():
    """What this version wrote is not parsed a second time by the general reader, but for texts that look like keys."""
    for name, case in CASES.items():
        quick = table._decode_own(table.encode_arrays(case), "p")
        assert (quick == case) is (name not in {"surrogates", "text"})


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b'"kind":"mapping"', b'"kind":"other","kind":"mapping"'),
        (b'"dtype":"F32"', b'"dtype":"I32","dtype":"F32"'),
        (b'"m":{"kind"', b'"m":{"kind":"x"},"m":{"kind"'),
    ],
)
def test_a_key_given_twice_is_refused(old, new):
    """A key that stands twice in a table is a FormatError, though the last one alone would do."""
    with pytest.raises(FormatError, match="twice"):
        table.decode_arrays(resealed(table.encode_arrays(arrays()), old, new), "p")


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b'"overlaps":[],\n', b""),
        (b'"files":{', b'"files" :{'),
        (b'"block_size":', b'"block_size"\n:'),
        (b'"kind":"other",', b'"kind":"other","skeleton":null,'),
        (b'"kind":"other",', b'"kind":"other","skeleton":"\\":",'),
    ],
)
def test_no_count_of_keys_hides_one_that_is_given_twice(old, new):
    """A key given twice is found, though another is left out, or spelt otherwise, so that their number is right."""
    data = resealed(table.encode_arrays(arrays()), b'"kind":"mapping"', b'"kind":"other","kind":"mapping"')
    with pytest.raises(FormatError, match="twice"):
        table.decode_arrays(resealed(data, old, new), "p")


def test_unknown_keys_are_ignored():
    """Keys of a later minor version are passed over, by way of the general reader."""
    data = table.encode_arrays(arrays())
    later = resealed(data, b'"kind":"mapping"', b'"new":[1,{"z":2}],"kind":"mapping"')
    assert table.decode_arrays(later, "p") == arrays()


def test_depth_is_judged_alike():
    """Both readers take a skeleton to the same depth, and no deeper."""

    def refused(read, data):
        try:
            read(data, "p")
        except FormatError:
            return True
        return False

    limits = []
    for read in (table._decode_own, sealed.decode):
        found = [refused(read, table.encode_arrays(arrays(skeleton=nested(n)))) for n in range(90, 110)]
        assert found == sorted(found)
        limits.append(found.index(True))
    assert limits[0] == limits[1]


def test_numbers_beyond_64_bits_are_refused_or_kept():
    """An integer that does not fit 64 bits never comes back as another number."""
    data = table.encode_arrays(arrays(skeleton=[2**63, -(2**70)]))
    assert table.decode_arrays(data, "p").parts["m"].skeleton == [2**63, -(2**70)]
