"""`checkpoint.json` and `arrays.json`: what is written, and what a reader refuses."""

import json
import os

import msgspec
import pytest

from holdfast.errors import DamagedError, FormatError
from holdfast.format import fields, sealed
from holdfast.format.manifest import (
    Goal,
    Manifest,
    Progress,
    SmallFile,
    decode_manifest,
    encode_manifest,
)
from holdfast.format.table import (
    ArrayEntry,
    Arrays,
    Chunk,
    Part,
    PayloadRecord,
    decode_arrays,
    encode_arrays,
)

ZERO = "0" * 32
WHERE = "runs/a/000001/checkpoint.json"


def a_manifest(**changes):
    values = {
        "run": "r",
        "name": "000001",
        "sequence": 1,
        "created": "2026-11-23T08:31:07.000Z",
        "progress": Progress(epoch=1, step=10, batch=2, samples=128, entered=True),
        "metrics": {"loss": 0.5},
        "goal": Goal("epochs", 20),
        "files": {"arrays.json": SmallFile(10, ZERO)},
        "history": [{"epoch": 1, "loss": 0.5}],
    }
    return Manifest(**{**values, **changes})


def an_arrays(**changes):
    entry = ArrayEntry("F32", (2, 3), (Chunk("model.safetensors", (4096, 4120)),))
    values = {
        "block_size": 16 << 20,
        "files": {"model.safetensors": PayloadRecord(4120, (ZERO,))},
        "parts": {
            "model": Part(kind="torch.Module", skeleton={"$": "flat", "v": "torch"}, arrays={"w": entry})
        },
    }
    return Arrays(**{**values, **changes})


def altered(data, change):
    """The sealed file with its JSON changed and a right digest again."""
    content = json.loads(data)
    del content["xxh3-128"]
    change(content)
    return sealed.encode(content)


def test_round_trip():
    """Both files come back equal."""
    assert decode_manifest(encode_manifest(a_manifest()), WHERE) == a_manifest()
    assert decode_arrays(encode_arrays(an_arrays()), "arrays.json") == an_arrays()


def test_history_gives_way_to_the_limit():
    """A manifest stays within 64 KiB: the oldest rows of the history are dropped, the newest stay."""
    rows = [{"epoch": n, "note": "x" * 2000} for n in range(100)]
    data = encode_manifest(a_manifest(history=rows))
    kept = decode_manifest(data, WHERE).history
    assert len(data) <= 64 * 1024
    assert 20 <= len(kept) < 40
    assert kept == rows[-len(kept) :]
    few = [{"epoch": n} for n in range(300)]
    assert decode_manifest(encode_manifest(a_manifest(history=few)), WHERE).history == few[-100:]


@pytest.mark.parametrize(("encode", "made"), [(encode_manifest, a_manifest), (encode_arrays, an_arrays)])
def test_a_newer_major_format_is_refused(encode, made):
    """A newer major version is refused with both versions and the way out; a newer minor one is read."""
    decode = {encode_manifest: decode_manifest, encode_arrays: decode_arrays}[encode]
    newer = altered(encode(made()), lambda c: c.update(version=[2, 3], surprise=1, progress="elsewhere"))
    with pytest.raises(FormatError) as caught:
        decode(newer, WHERE)
    assert str(caught.value) == (
        f"{WHERE} has format 2.3; this Holdfast reads up to 1.x. Upgrade with: pip install --upgrade holdfast"
    )
    assert caught.value.newer is True
    minor = altered(encode(made()), lambda c: c.update(version=[1, 99], surprise={"a": 1}))
    assert decode(minor, WHERE).version == (1, 99)


@pytest.mark.parametrize("version", [None, 1, [1], [1, 0, 0], ["1", 0], [-1, 0], [1.5, 0]])
def test_no_version(version):
    """A file without a format version is refused."""
    with pytest.raises(FormatError, match="has no format version"):
        decode_manifest(altered(encode_manifest(a_manifest()), lambda c: c.update(version=version)), WHERE)


def test_another_kind_of_file():
    """One JSON file in the place of the other says which format was found."""
    with pytest.raises(
        FormatError, match="is not a holdfast-checkpoint file: its format is 'holdfast-arrays'"
    ):
        decode_manifest(encode_arrays(an_arrays()), WHERE)
    with pytest.raises(DamagedError):
        decode_manifest(b"", WHERE)


MANIFEST_FAULTS = {
    "no name": (lambda c: c.pop("name"), "name"),
    "a name of numbers": (lambda c: c.update(name=5), r"\$.name"),
    "a negative sequence": (lambda c: c.update(sequence=-1), "holds the size -1"),
    "a sequence beyond all": (lambda c: c.update(sequence=2**64), "18,446,744,073,709,551,616"),
    "a step that is true": (lambda c: c["progress"].update(step=True), r"\$.progress.step"),
    "a step in floats": (lambda c: c["progress"].update(step=1.5), r"\$.progress.step"),
    "a negative batch": (lambda c: c["progress"].update(batch=-3), "holds the size -3"),
    "files as a list": (lambda c: c.update(files=[]), r"\$.files"),
    "a file outside": (lambda c: c["files"].update({"../x": c["files"]["arrays.json"]}), "'../x'"),
    "an absolute file": (
        lambda c: c["files"].update({"/etc/passwd": c["files"]["arrays.json"]}),
        "'/etc/passwd'",
    ),
    "a negative size": (lambda c: c["files"]["arrays.json"].update(size=-5), "holds the size -5"),
    "a size of 2^63": (lambda c: c["files"]["arrays.json"].update(size=2**63), "9,223,372,036,854,775,808"),
    "a short digest": (
        lambda c: c["files"]["arrays.json"].update(digest="00"),
        "32 lower-case hexadecimal digits",
    ),
    "a digest of letters": (lambda c: c["files"]["arrays.json"].update(digest="z" * 32), "hexadecimal"),
    "metrics as a list": (lambda c: c.update(metrics=[1]), r"\$.metrics"),
    "NaN marks as numbers": (lambda c: c.update(nan=[1]), r"\$.nan"),
    "declared as texts": (lambda c: c.update(declared={"optimizer": "sgd"}), r"\$.declared"),
    "a goal as a text": (lambda c: c.update(goal="20 epochs"), r"\$.goal"),
}


@pytest.mark.parametrize("name", MANIFEST_FAULTS)
def test_manifest_faults(name):
    """Whatever is not as the format says is a `FormatError` with the file and the place in it."""
    change, words = MANIFEST_FAULTS[name]
    with pytest.raises(FormatError, match=words) as caught:
        decode_manifest(altered(encode_manifest(a_manifest()), change), WHERE)
    assert WHERE in str(caught.value)


def entry(c):
    return c["parts"]["model"]["arrays"]["w"]


def chunk(c):
    return entry(c)["chunks"][0]


ARRAYS_FAULTS = {
    "an unknown dtype": (lambda c: entry(c).update(dtype="F31"), "'F31' is no dtype"),
    "an object dtype": (lambda c: entry(c).update(dtype="numpy:|O"), "is no dtype"),
    "a negative extent": (lambda c: entry(c).update(shape=[-2, 3]), "sizes of 0 or more"),
    "an overflow to nothing": (lambda c: entry(c).update(shape=[2**32, 2**32]), "would have"),
    "an overflow beside zero": (lambda c: entry(c).update(shape=[0, 2**62, 8]), "would have"),
    "one extent beyond all": (lambda c: entry(c).update(shape=[2**63]), "would have"),
    "a hundred axes": (lambda c: entry(c).update(shape=[1] * 100), "at most 64 sizes"),
    "a shape in floats": (lambda c: entry(c).update(shape=[2.5]), r"\$.parts"),
    "too many bytes": (
        lambda c: entry(c).update(shape=[3, 3]),
        "has a chunk of 24 bytes; F32 \\[3, 3\\] needs 36",
    ),
    "no chunks": (lambda c: entry(c).update(chunks=[]), "hold 0 of its 24 bytes"),
    "a whole without chunks": (lambda c: entry(c).update(shape=[2**60], chunks=[]), "hold 0 of its"),
    "the same chunk twice": (
        lambda c: entry(c).update(chunks=[chunk(c), chunk(c)]),
        "hold 48 of its 24 bytes",
    ),
    "an unlisted file": (lambda c: chunk(c).update(file="other.safetensors"), "which is not listed"),
    "a file outside": (lambda c: chunk(c).update(file="../../secret"), "'../../secret', which is not listed"),
    "past the end": (lambda c: chunk(c).update(bytes=[4100, 4124]), "which has 4,120 bytes"),
    "before the start": (lambda c: chunk(c).update(bytes=[-24, 0]), "points to bytes -24 to 0"),
    "backwards": (lambda c: chunk(c).update(bytes=[4120, 4096]), "points to bytes 4,120 to 4,096"),
    "three ends": (lambda c: chunk(c).update(bytes=[1, 2, 3]), r"\$.parts"),
    "an offset alone": (lambda c: chunk(c).update(offset=[0, 0]), "does not lie inside it"),
    "a piece outside": (lambda c: chunk(c).update(offset=[1, 0], shape=[2, 3]), "does not lie inside it"),
    "a piece of other rank": (lambda c: chunk(c).update(offset=[0], shape=[6]), "does not lie inside it"),
    "no block size": (lambda c: c.update(block_size=0), "gives a block size of 0 bytes"),
    "a huge block size": (lambda c: c.update(block_size=2**40), "gives a block size of 1,099,511,627,776"),
    "too few digests": (lambda c: c["files"]["model.safetensors"].update(blocks=[]), "lists 0 block digests"),
    "a digest of letters": (
        lambda c: c["files"]["model.safetensors"].update(blocks=["g" * 32]),
        "hexadecimal",
    ),
    "a listed file outside": (lambda c: c["files"].update({"..": c["files"]["model.safetensors"]}), "'..'"),
    "a size that overflows": (
        lambda c: c["files"]["model.safetensors"].update(size=2**64, blocks=[]),
        "holds the size",
    ),
    "a kind of numbers": (lambda c: c["parts"]["model"].update(kind=3), r"\$.parts"),
}


@pytest.mark.parametrize("behind", [0, 1, 3])
@pytest.mark.parametrize("name", ARRAYS_FAULTS)
def test_arrays_faults(name, behind):
    """Every array must be a whole array inside a listed file, before memory is asked for; so must one after many right ones."""
    change, words = ARRAYS_FAULTS[name]
    right = an_arrays().parts["model"].arrays["w"]
    several = an_arrays()
    several.parts["model"].arrays = {**{f"right{i}": right for i in range(behind)}, "w": right}
    with pytest.raises(FormatError, match=words) as caught:
        decode_arrays(altered(encode_arrays(several), change), "runs/a/000001/arrays.json")
    assert "runs/a/000001/arrays.json" in str(caught.value)


def test_pieces_of_a_sharded_array():
    """Chunks with offsets that together are the whole array are accepted."""
    pieces = tuple(
        Chunk("model.safetensors", (4096 + 12 * row, 4108 + 12 * row), (row, 0), (1, 3)) for row in range(2)
    )
    arrays = an_arrays()
    arrays.parts["model"].arrays["w"] = ArrayEntry("F32", (2, 3), pieces)
    assert decode_arrays(encode_arrays(arrays), "a").parts["model"].arrays["w"].chunks == pieces


def test_a_manifest_that_is_huge_is_not_read_into_memory(tmp_path):
    """A file of a terabyte in the manifest's place is refused by its size, before it is read."""
    from holdfast.store import catalog

    with open(tmp_path / "checkpoint.json", "wb") as file:
        os.truncate(file.fileno(), 1 << 40)
    with pytest.raises(FormatError, match="has 1,099,511,627,776 bytes; such a file has at most 16,777,216"):
        catalog.read_manifest(str(tmp_path))


def test_structs_say_what_the_format_says():
    """Every field of the manifest is in the file, so that nobody must know our defaults."""
    content = json.loads(encode_manifest(a_manifest()))
    assert set(content) == {field.name for field in msgspec.structs.fields(Manifest)} | {"xxh3-128"}
    assert fields.VERSION == (1, 0)
