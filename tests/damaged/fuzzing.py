"""What a fuzzer calls: each target takes any bytes, and gives a valid object or an error of ours.

    python fuzzing.py TARGET -runs=10000 [CORPUS]

runs a target under atheris, which is guided by coverage; `test_fuzz.py` calls the same targets
with JSON that Hypothesis has bent. What must be sealed is sealed here, with a right digest, so that
what is tried is everything behind the digest. Where an object comes out, it is used as a reader
would use it, and what must hold of it is asserted.
"""

import contextlib
import copy
import json
import os
import random
import sys
import tempfile


def seal(body):
    """The bytes of a sealed file whose JSON is `body`, with a right digest."""
    from holdfast.format import sealed

    body = body.rstrip()
    body = body[:-1] + b",\n" if body.endswith(b"}") and len(body) > 2 else body
    return body + b'"xxh3-128":"%s"}\n' % sealed.digest(body).encode()


def manifest(data):
    """checkpoint.json: what is accepted can be written again, shown as a card and ranked."""
    from holdfast.format import card, names
    from holdfast.format.manifest import decode_manifest, encode_manifest
    from holdfast.format.summary import Reader, summarize
    from holdfast.policy.keep import Keep, decide
    from holdfast.state import tree
    from holdfast.store.entry import Entry

    found = decode_manifest(seal(data), "checkpoint.json")
    assert decode_manifest(encode_manifest(found), "checkpoint.json").files == found.files
    with contextlib.suppress(*tree.WRONG_CONTENT):  # `holdfast show` says so
        card.render(found)
    reader, short = Reader(), summarize(found)
    assert [reader.read(seal(data), "checkpoint.json") for _ in range(2)] == [short, short]
    name = "000001_epoch-0001_step-00000001_20261123T083107Z"
    entry = Entry("path", name, names.parse_checkpoint_name(name), summary=short)
    decide(Keep(last=1, best=1, metric="score", mode="max"), [entry.record()])
    for value in (found.metrics, found.config, found.environment):
        tree.decode(value, lambda framework, name: None)


def arrays(data):
    """arrays.json: every array of what is accepted lies inside a listed file, and has bytes for each element."""
    from holdfast.format import dtypes
    from holdfast.format.table import decode_arrays, encode_arrays
    from holdfast.state.part import SavedPart

    found = decode_arrays(seal(data), "arrays.json")
    assert decode_arrays(encode_arrays(found), "arrays.json") == found
    for name, part in found.parts.items():
        for entry in part.arrays.values():
            assert _covered_once(entry)
            sizes = [chunk.bytes[1] - chunk.bytes[0] for chunk in entry.chunks]
            assert sum(sizes) == dtypes.byte_count(entry.dtype, entry.shape)
            assert all(0 <= c.bytes[0] <= c.bytes[1] <= found.files[c.file].size for c in entry.chunks)
        saved = SavedPart.of(name, part, "ckpt")
        assert saved.nbytes() >= 0
        for _, leaf in saved.leaves():
            saved.entry(leaf)


def _covered_once(entry):
    """Whether every element of an array of several chunks lies in one of them, counted one by one."""
    import numpy as np

    if len(entry.chunks) < 2 or 0 in entry.shape or np.prod(entry.shape, dtype=float) > 100_000:
        return True
    count = np.zeros(entry.shape, int)
    for chunk in entry.chunks:
        offset, shape = chunk.offset or (0,) * len(entry.shape), chunk.shape or entry.shape
        count[tuple(slice(o, o + s) for o, s in zip(offset, shape, strict=True))] += 1
    return bool((count == 1).all())


def header(data):
    """A payload's header: the arrays of what is accepted lie one behind the other up to the end of the file."""
    from holdfast.format import dtypes, safetensors

    total = len(data)
    found = safetensors.parse_header(data, total, "x.safetensors")
    at = safetensors.header_size(data[:8], total, "x.safetensors")
    for entry in found.values():
        assert entry.start == at
        assert entry.stop - entry.start == dtypes.byte_count(entry.dtype, entry.shape)
        at = entry.stop
    assert at == total


def skeleton(data):
    """A skeleton: what is accepted is a value that can be encoded and decoded again, or is refused by name."""
    from holdfast.errors import UsageError
    from holdfast.format import sealed
    from holdfast.state import tree
    from holdfast.state.part import SavedPart

    content = sealed.parse(b'{"v":' + data + b"}", "arrays.json")["v"]
    saved = SavedPart("values", "value", content, {}, "ckpt")
    saved.leaves()
    value = saved.value(lambda framework, name: f"<{framework} {name}>")
    try:
        shown = repr(value)
    except ValueError:  # Python shows no number of more than 4300 digits
        return
    with contextlib.suppress(UsageError):
        assert repr(tree.decode(tree.encode(value), lambda *_: None)) == shown


def strict_json(data):
    """The quick way to parse JSON never accepts what the strict one refuses, and gives the same."""
    from holdfast.format import sealed

    quick = sealed._parse_compact(data, "x.json")
    if quick is not None:
        assert repr(sealed._parse_strictly(data, "x.json")) == repr(quick)
    sealed.parse(data, "x.json")


def name(data):
    """A checkpoint's name: what is accepted is written the same again, and is one name in one folder."""
    from holdfast.errors import HoldfastError
    from holdfast.format import names

    text = data.decode("utf-8", "surrogateescape")
    found = names.parse_checkpoint_name(text)
    if found is not None:
        assert str(found) == text
        assert os.path.basename(text) == text
    for check in (names.check_part_name, names.check_extra_name, lambda x: names.check_file_name(x, "x")):
        with contextlib.suppress(HoldfastError):
            check(text)
            assert "/" not in text
            assert "\0" not in text
            assert text not in ("", ".", "..")


def reference(data):
    """A reference: any text means something, or nothing, and nothing is created."""
    from holdfast.format import names
    from holdfast.store import catalog

    text = data.decode("utf-8", "surrogateescape")
    found = names.parse_reference(text)
    assert names.parse_reference(str(found)) == found
    catalog.resolve(text)


def _in_a_run(file, data):
    """A directory with one file of a run, the same for every call."""
    global _directory
    if _directory is None:
        memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
        _directory = tempfile.TemporaryDirectory(prefix="holdfast-fuzzing-", dir=memory)
    path = os.path.join(_directory.name, file)
    with open(path, "wb") as stream:
        stream.write(data)
    return _directory.name


_directory = None


def run_json(data):
    """run.json: what is accepted can be listed, ranked by, and written again."""
    import msgspec

    from holdfast.format import sealed
    from holdfast.policy.keep import Keep, decide
    from holdfast.store import book, catalog

    run = _in_a_run("run.json", seal(data))
    found = book.read_run(run)
    sealed.encode(msgspec.to_builtins(found, str_keys=True))
    assert catalog.scan(run) == []
    decide(catalog.run_keep(run) or Keep(), [])


def history(data):
    """history.jsonl: whatever lies there, its whole lines are events and the others are left out."""
    from holdfast.doctor import save_cost
    from holdfast.store import book

    events = book.read_events(_in_a_run("history.jsonl", data + b"\n"))
    assert all(type(event) is dict for event in events)
    cost = save_cost(events)
    assert cost is None or 0 <= cost.held_seconds <= cost.longest_held_seconds


def lease(data):
    """A lease: whatever lies there names a holder, or one that cannot be named, and says whether it lives."""
    from holdfast.store import holder

    run = _in_a_run(holder.lease_name(3), data)
    found, raw = holder.read_holder(run, 3)
    assert raw == data or len(data) > 1 << 16
    assert found.generation == 3
    assert found.describe()
    life = holder.judge(found, holder.myself(4), set())
    assert life in ("released", "dead", "alive", "unknown")
    assert life == "unknown" or found.pid


TARGETS = {
    target.__name__: target
    for target in (
        manifest,
        arrays,
        header,
        skeleton,
        strict_json,
        name,
        reference,
        run_json,
        history,
        lease,
    )
}


def call(target, data):
    """Calls a target; True where it found an object, False where it was refused with an error of ours."""
    from holdfast.errors import HoldfastError

    said = ""
    try:
        TARGETS[target](data)
    except HoldfastError as error:
        said = str(error) or "nothing"
    assert said != "nothing"
    assert len(said) < 20_000
    return not said


def whole(path):
    with open(path, "rb") as stream:
        return stream.read()


def body(path):
    """A sealed file as one JSON object without its seal."""
    lines = whole(path).splitlines(keepends=True)
    return b"".join(lines[:-1]).rstrip(b",\n") + b"}"


def samples_of(checkpoint):
    """The JSON of a checkpoint's two sealed files."""
    names = {"manifest": "checkpoint.json", "arrays": "arrays.json"}
    return {target: body(os.path.join(checkpoint, name)) for target, name in names.items()}


SHARDED = json.dumps(
    {
        "format": "holdfast-arrays",
        "version": [1, 0],
        "block_size": 4096,
        "files": {f"w-0000{n}-of-00002.safetensors": {"size": 5000, "blocks": ["0" * 32] * 2} for n in (1, 2)},
        "parts": {
            "w": {
                "kind": "mapping",
                "skeleton": {"$": "flat", "v": "numpy"},
                "arrays": {
                    "a": {
                        "dtype": "I16",
                        "shape": [4, 6],
                        "chunks": [
                            {"file": "w-00001-of-00002.safetensors", "bytes": [0, 12], "offset": [0, 0], "shape": [2, 3]},
                            {"file": "w-00001-of-00002.safetensors", "bytes": [12, 24], "offset": [0, 3], "shape": [2, 3]},
                            {"file": "w-00002-of-00002.safetensors", "bytes": [0, 12], "offset": [2, 0], "shape": [2, 3]},
                            {"file": "w-00002-of-00002.safetensors", "bytes": [12, 24], "offset": [2, 3], "shape": [2, 3]},
                        ],
                    },
                    "b": {
                        "dtype": "U8",
                        "shape": [9],
                        "chunks": [
                            {"file": "w-00001-of-00002.safetensors", "bytes": [100, 104], "offset": [5], "shape": [4]},
                            {"file": "w-00001-of-00002.safetensors", "bytes": [104, 109], "offset": [0], "shape": [5]},
                        ],
                    },
                },
            }
        },
    }
).encode()  # fmt: skip


EXTREMES = [
    b"", b"\0", b"\n", b"{}", b"[]", b"null", b"NaN", b"1e999", b'""', b"{", b'{"', b"\xff", b"\xef\xbb\xbf{}", b"9" * 4300, b"9" * 5000,
    *[bracket * count for bracket in (b"[", b'{"a":', b'[{"$":"tuple","v":') for count in (99, 101, 1_500, 3_000, 20_000)],
    *[b"[" * count + b"]" * count for count in (99, 101, 1_500, 3_000, 20_000)],
    b'{"$":"tuple","v":{"$":"range","v":[0,9223372036854775807,1]}}', b'{"$":"int","v":"' + b"9" * 5000 + b'"}',
    (2**63).to_bytes(8, "little") + b"{}", (2).to_bytes(8, "little") + b"{}", (2).to_bytes(8, "little") + b"[]",
]  # fmt: skip
"""Bytes that are no good to any target, or just so."""


def samples(run, checkpoint):
    """Valid bytes for each target, from a run and a checkpoint: what a fuzzer begins with."""
    files = sorted(os.listdir(checkpoint))
    table = body(os.path.join(checkpoint, "arrays.json"))
    skeletons = [json.dumps(part["skeleton"]).encode() for part in json.loads(table)["parts"].values()]
    leases = [whole(os.path.join(run, file)) for file in os.listdir(run) if file.startswith("lease-")]
    selectors = ["", "@best", "@latest", "@step=1", "@epoch=2", "@seq=3", "@-1", "@bset"]
    return {
        "manifest": [body(os.path.join(checkpoint, "checkpoint.json"))],
        "arrays": [table, SHARDED],
        "header": [whole(os.path.join(checkpoint, file)) for file in files if file.endswith(".safetensors")],
        "skeleton": skeletons,
        "strict_json": [whole(os.path.join(checkpoint, "checkpoint.json")), *skeletons],
        "name": [os.path.basename(checkpoint).encode(), b"model", b"model-00001-of-00002.safetensors"],
        "reference": [(str(run) + selector).encode() for selector in selectors],
        "run_json": [body(os.path.join(run, "run.json"))],
        "history": [whole(os.path.join(run, "history.jsonl"))],
        "lease": leases,
    }


# -- bending JSON ----------------------------------------------------------------------------------


def _deep(levels):
    value = []
    for _ in range(levels):
        value = [value]
    return value


ODD = [
    None, True, False, 0, 1, -1, 3, 2**31, 2**53 + 1, 2**63 - 1, 2**63, -(2**63) - 1, 2**64, 10**30, 10**400,
    0.5, -0.0, 1e308, 5e-324,
    "", "x", "$", "\0", "\ud800", "\u2028", "é", "nan", "a" * 5000, "0" * 32, "g" * 32, "../x", "/etc/passwd", ".", "5",
    "model", "model.safetensors", "arrays.json", "weight", "torch", "torch.Module", "epochs", "max",
    "F32", "C128", "BOOL", "F8_E8M0", "numpy:O", "numpy:>f4", "numpy:V0", "numpy:(2,)f4", "numpy:V999999999", "numpy:",
    {}, [], [[]], [0], [-1], [2**62], [2**62, 4], [1] * 65, [0, 2**62], [None], {"": {}}, {"a": [1]}, {"__metadata__": 1},
    {"$": "float", "v": "nan"}, {"$": "tuple", "v": [1, []]}, {"$": "torch", "v": "weight"}, {"$": "numpy", "v": "/x"},
    {"$": 5}, {"$": []}, {"$": "flat", "v": "torch"}, {"$": "flat", "v": "os"}, {"$": "dict", "v": [[[], 1]]},
    {"$": "int", "v": "0x" + "f" * 3000}, {"$": "enum", "class": "os:sep.x", "name": [], "v": 1},
    {"$": "namedtuple", "class": "datetime:date", "fields": ["a"], "v": [1]}, {"$": "range", "v": [0, 2**62, 1]},
    {"$": "deque", "maxlen": -1, "v": []}, {"$": "numpy.scalar", "v": ["<f8", "00"]}, {"$": "numpy.dtype", "v": "f4,("},
    {"$": "numpy.Generator", "v": {"bit_generator": "MT19937", "state": {"key": [1], "pos": 9}}},
    {"$": "partial", "v": None, "frozen": 1}, {"$": "timedelta", "v": [10**9, 0, 0]}, {"$": "slice", "v": []},
    _deep(90), _deep(150),
]  # fmt: skip


def _odd(draw):
    return copy.deepcopy(draw.choice(ODD))  # what is put in may be bent itself


def places(value):
    """All (container, key) of a nested value."""
    found, level = [], [value]
    while level:
        below = []
        for container in level:
            keys = list(container) if isinstance(container, dict) else range(len(container))
            found += [(container, key) for key in keys]
            below += [container[key] for key in keys if isinstance(container[key], dict | list)]
        level = below
    return found


def bend(value, draw):
    """A JSON value of which one to three places are otherwise; `draw` is a `random.Random`."""
    value = json.loads(json.dumps(value))
    for _ in range(draw.choice([1, 1, 1, 2, 3])):
        found = places(value) if isinstance(value, dict | list) else []
        if not found:
            return _odd(draw)
        # Places near the top are few, and have the checks: each depth gets its share.
        container, key = draw.choice(found) if draw.random() < 0.5 else _shallow(value, draw)
        _change(container, key, found, draw)
    return value


def _shallow(value, draw):
    while True:
        keys = list(value) if isinstance(value, dict) else range(len(value))
        key = draw.choice(list(keys))
        child = value[key]
        if not isinstance(child, dict | list) or not child or draw.random() < 0.25:
            return value, key
        value = child


def _change(container, key, found, draw):
    old = container[key]
    way = draw.choice(["odd", "odd", "number", "shift", "drop", "wrap", "other", "swap", "key", "more"])
    if way == "shift" and isinstance(old, list) and all(type(item) is int for item in old):
        by = draw.choice([1, -1, 8, -8, 4096, -4096, 2**40, -(2**40)])
        container[key] = [item + by for item in old]
    elif way == "number" and type(old) in (int, float):
        old = min(max(old, -(2**70)), 2**70)
        step = [old + 1, old - 1, -old, old * 2, old + 0.5, str(old), old + 2**32, old * 2**40, 0, bool(old)]
        container[key] = draw.choice(step)
    elif way == "drop":
        del container[key]
    elif way == "wrap":
        container[key] = draw.choice(
            [[old], [old, copy.deepcopy(old)], {"a": old}, {"$": "tuple", "v": [old]}, str(old)]
        )
    elif way == "other":
        source, where = draw.choice(found)
        if isinstance(source, dict) or where < len(source):
            container[key] = json.loads(
                json.dumps(source.get(where) if isinstance(source, dict) else source[where])
            )
    elif way == "swap" and len(container) > 1:
        other = draw.choice(list(container) if isinstance(container, dict) else range(len(container)))
        container[key], container[other] = container[other], container[key]
    elif way == "key" and isinstance(container, dict):
        del container[key]
        container[draw.choice(["", "$", "v", "x", "../x", "\ud800", f"{key}2", str(key).upper(), "0"])] = old
    elif way == "more":
        if isinstance(container, list):
            container.insert(key, _odd(draw))
        else:
            container[draw.choice(["$", "v", "new", f"{key} "])] = _odd(draw)
    else:
        container[key] = _odd(draw)


def bend_text(text, draw):
    """JSON text with something in it that is no JSON, or that only some parsers take."""
    at = draw.randrange(len(text) + 1)
    for word in draw.sample([b":1", b":0", b":null", b":true", b":false", b':"'], 6):
        if word in text and draw.random() < 0.5:
            odd = draw.choice(
                [b":NaN", b":-Infinity", b":1e999", b":1E+2", b":-0", b":01", b":" + b"9" * 5000, b": \t1"]
            )
            return text.replace(word, odd + (b',"x":"' if word == b':"' else b""), 1)
    ways = [
        text[:at],
        text[:at] + draw.choice([b"\xff", b"\xc0\x80", b"\xed\xa0\x80", b"\0", b"\xef\xbb\xbf"]) + text[at:],
        text[:at] + draw.choice([b" ", b"\n", b"\t", b"/**/", b","]) + text[at:],
        text[:at] + b"[" * draw.choice([99, 5000, 100_000]) + text[at:],
        text + text,
        text.replace(b",", b',"a":1,"a":2,', 1),
        text.replace(b'"', b'"\\u0000', 1),
    ]
    return draw.choice(ways)


def bent(target, data, seed):
    """Other bytes for a target, made from valid ones: JSON is bent as JSON."""
    draw = seed if isinstance(seed, random.Random) else random.Random(seed)
    if target == "history":
        lines = data.splitlines()
        if lines:
            place = draw.randrange(len(lines))
            lines[place] = bent("", lines[place], draw)
        return b"\n".join(lines)
    start = 8 + int.from_bytes(data[:8], "little") if target == "header" else len(data)
    try:
        value = json.loads(data[8:start] if target == "header" else data)
        text = json.dumps(bend(value, draw), separators=(",", ":")).encode()
    except (ValueError, RecursionError):
        return data
    if draw.random() < 0.15:
        text = bend_text(text, draw)
    if target == "header":
        return len(text).to_bytes(8, "little") + text + data[start:]
    return text.ljust(512) if target == "lease" else text


def main(arguments):
    """Runs one target under atheris until -runs are done."""
    import atheris

    chosen = arguments.pop(1)
    target = TARGETS[chosen]
    with atheris.instrument_imports(include=["holdfast"]):
        from holdfast import doctor  # noqa: F401
        from holdfast.errors import HoldfastError
        from holdfast.format import card, fields, manifest, names, safetensors, sealed, table  # noqa: F401
        from holdfast.state import part, tree  # noqa: F401
        from holdfast.store import catalog, holder  # noqa: F401

    def one(data):
        with contextlib.suppress(HoldfastError):
            target(data)

    def mutate(data, most, seed):
        if seed % 3:
            found = bent(chosen, data, seed)
            if found != data and len(found) <= most:
                return found
        return atheris.Mutate(data, most)

    as_json = chosen not in ("name", "reference")
    atheris.Setup(arguments, one, **({"custom_mutator": mutate} if as_json else {}))
    atheris.Fuzz()


if __name__ == "__main__":
    main(sys.argv)
