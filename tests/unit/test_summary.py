"""Summaries of very many manifests: the same as reading each as a whole, and far less parsing."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from holdfast.errors import DamagedError, FormatError
from holdfast.format import sealed, summary
from holdfast.format.manifest import Goal, Manifest, Progress, SmallFile, decode_manifest, encode_manifest
from holdfast.format.summary import Reader, summarize

WHERE = "run/000001/checkpoint.json"


def manifest(number, **changes):
    """The manifest of checkpoint `number` of a run; its history has three rows of the one before."""
    fields = {
        "run": "c0ffee",
        "name": f"{number:06d}_epoch-{number:04d}_step-{number:08d}_20261123T083107Z",
        "sequence": number,
        "created": "2026-11-23T08:31:07.123Z",
        "progress": Progress(epoch=number, step=10 * number, batch=number % 3),
        "metrics": {"loss": 1 / number, "epochs": number},
        "best": {"name": "x", "metric": "loss", "mode": "min", "value": 1 / number},
        "goal": Goal("epochs", 20),
        "config": {"lr": 0.1, "layers": [{"size": 3}, {"size": 4}], "text": 'a ": b'},
        "environment": {"host": "h", "command": "python train.py --lr=0.1"},
        "files": {
            "arrays.json": SmallFile(100 + number, f"{number:032x}"),
            "model.safetensors": SmallFile(7, "0" * 32),
        },
        "history": [
            {"epoch": n, "step": 10 * n, "loss": 1 / n} for n in range(max(1, number - 3), number + 1)
        ],
    }
    return Manifest(**{**fields, **changes})


@pytest.fixture
def parsed(monkeypatch):
    """Counts what is parsed as a whole."""
    calls = []

    def decode(data, path):
        calls.append(path)
        return decode_manifest(data, path)

    monkeypatch.setattr(summary, "decode_manifest", decode)
    return calls


def test_of_many_alike_the_first_is_parsed(parsed):
    """Of checkpoints whose config, environment and parts are the same, only the first is parsed as a whole."""
    reader = Reader()
    for number in range(1, 50):
        made = manifest(number)
        assert reader.read(encode_manifest(made), WHERE) == summarize(made)
    assert len(parsed) == 1
    for number in range(50, 60):  # another launch, with another config
        reader.read(encode_manifest(manifest(number, config={"lr": 0.2})), WHERE)
    assert len(parsed) == 2


@pytest.mark.parametrize(
    "changes",
    [
        {"metrics": {}, "best": None, "files": {}, "history": []},
        {"metrics": {"loss": {"float": "nan"}}},
        {"metrics": {'a":b': 1, "c:d": 2, "e\\": True, "ü": 0.5}},
        {"history": [{"text": '},{"'}, {"text": "}"}]},
        {"history": [{"nested": {"a": [{}, {}]}}]},
        {"history": [{}, {}, {"a": None}]},
        {"nan": ["model/weight"]},
        {"note": ',\n"files":{},\n"history":[', "sequence": 10**18},
        {"run": None},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_whatever_they_hold(changes):
    """Whatever a manifest holds, its summary is that of the whole, first or after others, twice over."""
    reader, made = Reader(), manifest(5, **changes)
    for each in (made, manifest(4), made, manifest(5), manifest(6), made):
        assert reader.read(encode_manifest(each), WHERE) == summarize(each)


def test_a_flipped_bit_is_found():
    """A bit that flipped anywhere is found although all of it has been seen before."""
    reader, data = Reader(), encode_manifest(manifest(3))
    reader.read(data, WHERE)
    for place in range(0, len(data), 7):
        harmed = bytearray(data)
        harmed[place] ^= 4
        with pytest.raises(DamagedError):
            reader.read(bytes(harmed), WHERE)


def seal(body):
    return body + sealed._LINE % sealed.digest(body).encode("ascii")


TRICKS = [
    (b'"loss":', b'"epochs":1,"loss":'),  # a key of metrics twice
    (b'{"loss"', b'{"epochs" :1,"loss"'),
    (b'"sequence":3,', b'"sequence":3,\n"sequence":4,'),
    (b'"sequence":3,', b'"sequence":03,'),
    (b'"batch":0,', b'"batch":0,"batch":1,'),
    (b'"size":103,', b'"size":1,"size":103,'),
    (b'"files":{', b'"files":{"arrays.json":{"size":1,"digest":"%s"},' % (b"0" * 32)),
    (b'"files":{', b'"files":{"../x":{"size":1,"digest":"%s"},' % (b"0" * 32)),
    (b'"size":103', b'"size":-1'),
    (b'"size":103', b'"size":%d' % 2**63),
    (b'"digest":"0000', b'"digest":"G000'),
    (b'"epoch":2,"step":20,', b'"epoch":2,"epoch":2,"step":20,'),  # in a row of the history
    (b'"epoch":3,"step":30,"loss"', b'"epoch":3,"step":30,"step":30,"loss"'),
    (b'"epoch":3,"step":30,"loss":', b'"epoch":3,"step":30,"x":1e400,"loss":'),
    (b'"epoch":3,"step":30,"loss":', b'"epoch":3,"step":30,"x":NaN,"loss":'),
    (b'"epoch":3,"step":30,"loss":', b'"epoch":3,"step":30,"x":%s%s,"loss":' % (b"[" * 101, b"]" * 101)),
    (b'"history":[', b'"history":[1,'),
    (b'"history":[', b'"history":[],\n"history":['),
    (b'"config":', b'"goal":null,\n"config":'),
    (b'"stopped":', b'"files":{},\n"stopped":'),
    (b'"stopped":', b'"x":{"a":1,\n"stopped":'),
    (b'"best":{', b'"best":[{'),
    (b'"mode":"min"', b'"mode":"\xff"'),
    (b'"loss":', b'"\\ud800":1,"loss":'),
    (b'"version":[1,0]', b'"version":[2,0]'),
    (b'"version":[1,0]', b'"version":[1,7]'),
    (b"],\n", b"],\n\n"),
]


def same(reader, data):
    """What both ways find in a file: the same, or that it is refused."""
    answers = []
    for read in (lambda: reader.read(data, WHERE), lambda: summarize(decode_manifest(data, WHERE))):
        try:
            answers.append(read())
        except FormatError as error:
            answers.append(str(error))
    assert answers[0] == answers[1]
    return answers[0]


@pytest.mark.parametrize(("old", "new"), TRICKS, ids=range(len(TRICKS)))
def test_what_is_refused_as_a_whole_is_refused(old, new):
    """What is hostile with a right digest is refused in the same words, whatever has been seen before."""
    body = encode_manifest(manifest(3))[: -sealed._LINE_LENGTH]
    assert old in body
    harmed = seal(body.replace(old, new, 1))
    fresh, warm = Reader(), Reader()
    for number in (1, 2, 3):
        warm.read(encode_manifest(manifest(number)), WHERE)
    assert same(fresh, harmed) == same(warm, harmed) == same(warm, harmed)
    for number in (2, 3, 4):
        assert same(warm, encode_manifest(manifest(number))) == summarize(manifest(number))


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b'},{"epoch":4', b'};{"epoch":4'),  # between the rows that are known and the new one
        (b'"history":[{"epoch":1,"step":10,', b'"history":['),  # from the middle of a row that is known
        (b"}],\n", b"}];\n"),
        (b"}],\n", b"},\n\n"),
    ],
)
def test_rows_that_are_known_end_where_they_end(old, new):
    """Rows that have been seen before are taken from the beginning of one to the end of another."""
    reader = Reader()
    for number in (1, 2, 3):
        reader.read(encode_manifest(manifest(number)), WHERE)
    body = encode_manifest(manifest(4))[: -sealed._LINE_LENGTH]
    harmed = body[::-1].replace(old[::-1], new[::-1], 1)[::-1]
    assert harmed != body
    assert "not valid JSON" in same(reader, seal(harmed))


def test_a_piece_is_learned_between_complete_ones():
    """What leaves an object open, and is closed in another place, is not taken for a complete piece."""
    body = encode_manifest(manifest(3))[: -sealed._LINE_LENGTH]
    opened = body.replace(b'"note":"",', b'"note":"","x":{"a":1,', 1)
    closed = opened.replace(b'"history":[', b'"history":[{}]},"history":[', 1)
    for known in (True, False):
        reader = Reader()
        if known:
            reader.read(seal(body), WHERE)
        assert not isinstance(same(reader, seal(closed)), str)
        assert "not valid JSON" in same(reader, seal(opened))
        assert "not valid JSON" in same(reader, seal(opened))


def test_most_tricks_are_refused():
    """The list above is of harm: nearly all of it is refused."""
    body = encode_manifest(manifest(3))[: -sealed._LINE_LENGTH]
    found = [same(Reader(), seal(body.replace(old, new, 1))) for old, new in TRICKS]
    assert sum(isinstance(answer, str) for answer in found) >= len(TRICKS) - 4


PIECES = [
    b'"', b":", b",", b"{", b"}", b"[", b"]", b"\\", b"\n", b" ", b"},{", b'":', b'"a":1,', b"{},", b"1e999", b"nul",
    b'],\n"history":[', b',\n"files":{', b'{"epoch":1},', b"\xc3", b"0",
]  # fmt: skip


@settings(max_examples=1500, deadline=None)
@given(st.data())
def test_any_change_is_judged_alike(data):
    """Whatever is inserted, cut out or moved, with a right digest, is judged as reading the whole judges it."""
    reader = Reader()
    for number in data.draw(st.permutations([1, 2, 3, 4])):
        reader.read(encode_manifest(manifest(number)), WHERE)
    body = encode_manifest(manifest(data.draw(st.integers(2, 5))))[: -sealed._LINE_LENGTH]
    for _ in range(data.draw(st.integers(1, 3))):
        start = data.draw(st.integers(0, len(body)))
        stop = data.draw(st.integers(start, min(len(body), start + 40)))
        piece = data.draw(st.sampled_from([*PIECES, b"", body[start:stop] * 2]))
        body = body[:start] + piece + body[stop:]
    harmed = seal(body)
    if harmed.count(b"xxh3-128") == 1:
        same(reader, harmed)
        same(reader, harmed)
        same(reader, encode_manifest(manifest(3)))
