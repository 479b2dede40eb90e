"""Files made up or bent by a fuzzer, with right digests: an object that works, or an error of ours; nothing else.

`fuzzing.py` has the targets and the bending. Here Hypothesis drives them, bent checkpoints and runs
are put through everything that reads them, and atheris searches on its own, guided by coverage.
"""

import base64
import contextlib
import importlib.util
import json
import os
import random
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import fuzzing
import numpy as np
import pytest
import torch
from harming import call
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

import holdfast
from holdfast import FormatError, HoldfastError, Keep, UsageError
from holdfast.format import names, sealed

SEED = 20_260
HARNESS = Path(__file__).with_name("fuzzing.py")


def explore(act, strategy, count):
    """Hypothesis tries so many values, always the same ones, and shrinks what fails."""
    calls = [0]

    @settings(
        max_examples=count,
        deadline=None,
        database=None,
        derandomize=True,
        print_blob=True,
        suppress_health_check=list(HealthCheck),
        phases=[Phase.generate, Phase.shrink],
    )
    @given(strategy)
    def each(value):
        calls[0] += 1
        act(value)

    each()
    return calls[0]


def training(value=1.0):
    net = torch.nn.Linear(9, 5)
    opt = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    net(torch.full((1, 9), value)).sum().backward()
    opt.step()
    opt.zero_grad()
    return {"model": net, "optimizer": opt}


def values():
    return {"a": [1, (2.5, None)], "x": np.arange(7, dtype=np.int16), 3: {"b": b"bytes", "c": 1 + 2j}}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of three checkpoints with a model, an optimizer and nested values."""
    path = tmp_path_factory.mktemp("fuzz") / "digits"
    things = training()
    with holdfast.Run(path, config={"lr": 0.1}, note="bent", keep=KEEP) as run:
        run.track(**things)
        for epoch in range(1, 4):
            run.state.update(values())
            run.save(epoch=epoch, step=epoch, metrics={"score": epoch / 3}, wait=True)
    return path


KEEP = Keep(last=None, metric="score", mode="max")


@pytest.fixture(scope="module")
def samples(run, tmp_path_factory):
    """Valid bytes for each target of the fuzzer."""
    path = tmp_path_factory.mktemp("samples") / "ckpt"
    holdfast.save(path, {**training(), "values": values()}, config={"lr": 0.1}, note="a note")
    found = fuzzing.samples(run, path)
    newest = sorted(name for name in os.listdir(run) if "_epoch-" in name)[-1]
    of_the_run = fuzzing.samples(run, run / newest)
    for target in ("manifest", "name"):
        found[target] += of_the_run[target]
    return found


def test_samples(samples):
    """What the fuzzers begin with is valid: each sample of each target is accepted."""
    assert set(samples) == set(fuzzing.TARGETS)
    for target, items in samples.items():
        for item in items:
            if b"@bset" not in item:
                assert fuzzing.call(target, item), (target, item)


# -- by Hypothesis --------------------------------------------------------------------------------

COUNTS = {"run_json": 700, "history": 500, "lease": 500, "reference": 500, "name": 700}


@pytest.mark.parametrize("target", fuzzing.TARGETS)
def test_bent(samples, target, tried, thorough):
    """Bent JSON under right digests, and bytes that are none, give an object that holds together or an error of ours."""
    whole = st.tuples(st.sampled_from(samples[target]), st.integers(0, 2**32))
    count = COUNTS.get(target, 1200) * (8 if thorough else 1)
    if target in ("name", "reference"):
        number = explore(lambda data: fuzzing.call(target, data), texts(samples[target]), count)
    else:
        accepted = [0]

        def each(drawn):
            data, seed = drawn
            accepted[0] += fuzzing.call(target, fuzzing.bent(target, data, seed))

        number = explore(each, whole, count)
        assert 0 < accepted[0] < number or target in ("history", "lease"), "both ends are reached"
    number += explore(lambda data: fuzzing.call(target, data), st.binary(max_size=300), count // 10)
    for data in fuzzing.EXTREMES:
        fuzzing.call(target, data)
    tried("fuzz", number + len(fuzzing.EXTREMES))


def texts(items):
    """Texts near valid ones, and any others."""
    near = st.tuples(st.sampled_from(items), st.integers(0, 60), st.integers(0, 9), st.binary(max_size=6))
    pieces = [
        b"0",
        b"9" * 20,
        b"_epoch-",
        b"_step-",
        b"@",
        b"@seq=",
        b"\0",
        b"/",
        b"..",
        b"\xff",
        b"\xd9\xa3",
        b"~x",
        b"\n",
        b"Z",
    ]
    digits = st.tuples(
        st.sampled_from(items), st.integers(0, 60), st.sampled_from([b"0", b"00", b"9", "٣".encode()])
    )
    return (
        digits.map(lambda n: n[0][: n[1]] + n[2] + n[0][n[1] :])
        | near.map(lambda n: n[0][: n[1]] + n[3] + n[0][n[1] + n[2] :])
        | st.lists(st.sampled_from([*items, *pieces]), max_size=6).map(b"".join)
        | st.binary(max_size=40)
    )


# -- whole checkpoints and runs ----------------------------------------------------------------------


def forge(path, *, manifest=None, table=None, random_seed):
    """Bends one of the two JSON files of a checkpoint, and makes all digests right that can be made so."""
    file = path / "checkpoint.json"
    content = sealed.decode(file.read_bytes(), "checkpoint.json")
    if table is not None:
        body = fuzzing.bent("arrays", table, random_seed)
        data = fuzzing.seal(body)
        (path / "arrays.json").write_bytes(data)
        content["files"]["arrays.json"] = {"size": len(data), "digest": sealed.digest(data)}
        with contextlib.suppress(ValueError, TypeError, KeyError, AttributeError):
            for name, record in json.loads(data)["files"].items():
                digest = sealed.digest(b"".join(bytes.fromhex(block) for block in record["blocks"]))
                content["files"][name] = {"size": record["size"], "digest": digest}
        file.write_bytes(sealed.encode(content))
    if manifest is not None:
        file.write_bytes(fuzzing.seal(fuzzing.bent("manifest", manifest, random_seed)))


def refused(act):
    """What an act ends with: None, or an error of ours; others go on."""
    found = None
    try:
        act()
    except HoldfastError as error:
        found = error
    assert found is None or 0 < len(str(found)) < 20_000
    return found


def read(path):
    """Everything that Python reads of a checkpoint."""
    live = training(2.0)
    before = [parameter.detach().clone() for parameter in live["model"].parameters()]
    error = refused(lambda: holdfast.restore(path, live))
    if error is not None and not error.facts.get("target_changed", False):
        same = all(torch.equal(a, b) for a, b in zip(before, live["model"].parameters(), strict=True))
        assert same, f"half restored: {error!r}"
    for act in (
        lambda: holdfast.open(path).load(),
        lambda: holdfast.open(path).load(arrays="numpy"),
        lambda: holdfast.open(path).verify(),
        lambda: holdfast.open(path).config,
        lambda: holdfast.open(path).environment,
        lambda: holdfast.open(path).metrics,
        lambda: repr(holdfast.open(path)),
    ):
        refused(act)


def commands(path, other):
    """The commands that read a checkpoint; each ends with a code of ours and without a traceback."""
    for words in (
        ("show", path),
        ("show", path, "--json"),
        ("verify", path, "--json"),
        ("diff", other, path),
        ("diff", path, other, "--json"),
        ("export", path, path.parent / "out.pth", "--overwrite"),
    ):
        result = call(*words)
        assert result.exit_code in (0, 2, 3, 4, 5, 6, 7, 8, 10), (words, result.output)
        if "--json" in words and result.exit_code == 0:
            json.loads(result.stdout)


@contextlib.contextmanager
def bounded(megabytes=700):
    """No case asks for more memory than that, whatever it claims to need."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    yield
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < megabytes << 10


@pytest.mark.parametrize("file", ["manifest", "arrays"])
def test_bent_checkpoints(tmp_path, file, samples, tried, thorough):
    """A checkpoint whose manifest or table is bent loads, or every reader and command refuses it with an error of ours."""
    whole = tmp_path / "whole"
    holdfast.save(whole, {**training(), "values": values()}, config={"lr": 0.1}, note="a note")
    path = shutil.copytree(whole, tmp_path / "bent")
    body = fuzzing.samples_of(whole)

    def each(seed):
        for name in ("checkpoint.json", "arrays.json"):
            shutil.copy(whole / name, path / name)
        forge(path, **{"manifest" if file == "manifest" else "table": body[file]}, random_seed=seed)
        read(path)
        if seed % 4 == 0:
            commands(path, whole)

    with bounded():
        number = explore(each, st.integers(0, 2**32), 3_000 if thorough else 250)
    tried("fuzz", number)


@pytest.mark.parametrize("file", ["manifest", "arrays", "run_json"])
def test_bent_runs(tmp_path, run, samples, file, tried, thorough):
    """A run whose newest manifest or table, or whose run.json, is bent resumes or is refused; ls and prune never fail."""
    count = 400 if thorough else 45
    number = [0]

    def each(seed):
        number[0] += 1
        path = tmp_path / f"{number[0]}"
        shutil.copytree(run, path, symlinks=True)
        newest = sorted(path.glob("*_epoch-*"))[-1]
        body = fuzzing.samples_of(newest)
        if file == "run_json":
            draw = fuzzing.bent("run_json", samples["run_json"][0], seed)
            (path / "run.json").write_bytes(fuzzing.seal(draw))
        else:
            forge(newest, **{"manifest" if file == "manifest" else "table": body[file]}, random_seed=seed)
        for words in (("ls", path), ("ls", path, "--json"), ("prune", path), ("verify", path)):
            result = call(*words)
            assert result.exit_code in (0, 2, 3, 4, 5, 6, 10), (words, result.output)
        for selector in ("", "@best", "@latest", "@seq=3", "@-1"):
            refused(lambda selector=selector: holdfast.open(f"{path}{selector}").load())
        things = training(2.0)
        again = holdfast.Run(path, config={"lr": 0.1}, keep=KEEP)
        again.track(**things)
        error = refused(again.resume)
        if error is None:
            assert again.progress.epoch >= 0
            refused(lambda: again.save(epoch=again.progress.epoch + 1, metrics={"score": 1}, wait=True))
        else:
            assert refused(lambda: again.save(epoch=9, wait=True)) is not None, "nothing is saved over it"
        refused(again.close)
        shutil.rmtree(path)

    with bounded():
        number = explore(each, st.integers(0, 2**32), count)
    tried("fuzz", number)


# -- what is saved can be read ---------------------------------------------------------------------------

odd_texts = st.sampled_from(
    [
        "",
        "a",
        "x" * 99,
        "x" * 100,
        "x" * 101,
        "x" * 195,
        "p" * 20_000,
        "\ud800",
        "é☃",
        "a\nb",
        "\0",
        "\x1b[2J",
        "|",
        '":',
        "$",
    ]
) | st.text(max_size=8)
odd_numbers = st.sampled_from([0, 1, 2**31, 2**63 - 1, 2**63, 10**18, 10**30, -1, True, 0.5]) | st.integers()


@st.composite
def saves(draw):
    """Arguments of `holdfast.save`, odd ones among them."""
    arrays = draw(st.dictionaries(odd_texts, st.just(np.arange(3)), min_size=1, max_size=3))
    parts = {draw(st.sampled_from(["a", "model"]) | odd_texts): arrays}
    if draw(st.booleans()):
        parts[draw(st.sampled_from(["epoch", "step"]))] = draw(odd_numbers)
    extra_names = odd_texts | st.sampled_from(
        [
            ".hidden",
            "../out",
            "x.safetensors",
            "a.safetensors",
            "README.md",
            "arrays.json",
            "a/b",
            "a..b",
            "notes.txt",
        ]
    )
    arguments = {
        "note": draw(odd_texts | st.just(5)),
        "config": draw(st.none() | st.dictionaries(odd_texts, odd_texts | odd_numbers, max_size=2)),
        "extra": draw(st.none() | st.dictionaries(extra_names, st.binary(max_size=3), max_size=2)),
    }
    return parts, arguments


def test_what_is_saved_can_be_read(tmp_path, tried, thorough):
    """Whatever names and texts are saved: a `UsageError` that leaves the old checkpoint, or one that is whole and gives them back."""
    path = tmp_path / "ckpt"
    accepted = [0]

    def each(drawn):
        parts, arguments = drawn
        holdfast.save(path, {"a": {"x": np.zeros(2)}}, note="old")
        try:
            holdfast.save(path, parts, **arguments)
        except UsageError:
            assert holdfast.open(path).note == "old"
            assert (holdfast.open(path).load()["a"]["x"] == 0).all()
        else:
            accepted[0] += 1
            found = holdfast.open(path)
            assert found.note == arguments["note"]
            assert (found.config or {}) == (arguments["config"] or {})
            loaded = found.load()
            assert loaded.keys() == parts.keys()
            for part, value in parts.items():
                if isinstance(value, dict):
                    assert all((loaded[part][name] == array).all() for name, array in value.items())
                else:
                    assert loaded[part] == value
        assert holdfast.open(path).verify() == []
        assert os.listdir(tmp_path) == ["ckpt"]
        assert call("show", path).exit_code == 0

    number = explore(each, saves(), 500 if thorough else 80)
    assert 0 < accepted[0] < number
    tried("fuzz", number)


METRICS = [
    {"\ud800": 1},
    {"": 1.0},
    {"$": 1},
    {"a|b": 1},
    {"score": 10**400},
    {"score": float("nan")},
    {"score": -float("inf")},
    {"score": True},
    {"x" * 5000: 1},
    {f"m{number}": number for number in range(5000)},
    {"epoch": 5, "step": -1, "$": 2**64},
]


@pytest.mark.parametrize("number", range(len(METRICS)))
def test_odd_metrics(tmp_path, number, tried):
    """Whatever is logged is refused at once, or the run goes on with it: saved, listed, resumed."""
    path, metrics = tmp_path / "run", METRICS[number]
    with holdfast.Run(path, keep=KEEP) as run:
        run.state["x"] = np.arange(3)
        run.save(epoch=1, metrics={"score": 0.5}, wait=True)
        with contextlib.suppress(UsageError):
            run.save(epoch=2, metrics=metrics, wait=True)
        run.save(epoch=3, metrics={"score": 0.1}, wait=True)
    for words in (
        ("ls", path),
        ("ls", path, "--json"),
        ("show", path),
        ("show", f"{path}@best"),
        ("verify", path),
    ):
        assert call(*words).exit_code == 0
    assert holdfast.Run(path, keep=KEEP).resume().epoch == 3
    tried("fuzz")


@pytest.mark.parametrize("length", [1, 100, 101, 150, 189, 230])
def test_long_part_names(tmp_path, length):
    """A part's name is taken and read back, or refused, whatever its length."""
    with contextlib.suppress(UsageError) if length > 100 else contextlib.nullcontext():
        found = holdfast.save(tmp_path / "ckpt", {"p" * length: {"x": np.arange(3)}})
        assert (found.load()["p" * length]["x"] == np.arange(3)).all()


def test_what_would_not_be_read_replaces_nothing(tmp_path, monkeypatch):
    """Should an odd name slip through, the manifest is refused before it takes the place of a whole one."""
    path = tmp_path / "ckpt"
    holdfast.save(path, {"a": {"x": np.zeros(2)}}, note="old")
    monkeypatch.setattr(names, "check_extra_name", lambda name: name)
    with pytest.raises(FormatError, match=r"names the file '\.hidden'"):
        holdfast.save(path, {"a": {"x": np.ones(2)}}, extra={".hidden": b"x"})
    assert holdfast.open(path).note == "old"
    assert holdfast.open(path).verify() == []
    assert os.listdir(tmp_path) == ["ckpt"]


def cut(path, chunks):
    """Divides the array `w/a` of a checkpoint into chunks, as several processes would write it."""
    table = sealed.decode((path / "arrays.json").read_bytes(), "")
    entry = table["parts"]["w"]["arrays"]["a"]
    [whole] = entry["chunks"]
    entry["chunks"] = [
        {
            "file": whole["file"],
            "bytes": [whole["bytes"][0] + a, whole["bytes"][0] + b],
            "offset": o,
            "shape": s,
        }
        for a, b, o, s in chunks
    ]
    data = sealed.encode(table)
    (path / "arrays.json").write_bytes(data)
    manifest = sealed.decode((path / "checkpoint.json").read_bytes(), "")
    manifest["files"]["arrays.json"] = {"size": len(data), "digest": sealed.digest(data)}
    (path / "checkpoint.json").write_bytes(sealed.encode(manifest))


CHUNKS = {
    "rows": [(0, 6, [0, 0], [2, 3]), (6, 12, [2, 0], [2, 3])],
    "columns": [(0, 4, [0, 0], [4, 1]), (4, 12, [0, 1], [4, 2])],
    "a pinwheel": [(0, 2, [0, 0], [1, 2]), (2, 5, [0, 2], [3, 1]), (5, 7, [3, 1], [1, 2]), (7, 10, [1, 0], [3, 1]), (10, 12, [1, 1], [2, 1])],
    "the same rows twice": [(0, 6, [0, 0], [2, 3]), (6, 12, [0, 0], [2, 3])],
    "overlapping": [(0, 6, [0, 0], [2, 3]), (6, 12, [1, 0], [2, 3])],
    "two over one corner": [(0, 6, [0, 0], [3, 2]), (6, 8, [0, 2], [2, 1]), (8, 12, [2, 1], [2, 2])],
    "outside": [(0, 6, [0, 0], [2, 3]), (6, 12, [3, 0], [2, 3])],
    "negative": [(0, 6, [0, 0], [2, 3]), (6, 12, [-2, 0], [2, 3])],
}  # fmt: skip


@pytest.mark.parametrize("how", CHUNKS)
def test_chunks(tmp_path, how, tried):
    """Chunks that cover an array give it back; those that overlap, or leave a part out, are refused before a byte is read."""
    path, array = tmp_path / "ckpt", np.arange(12, dtype=np.int8)
    holdfast.save(path, {"w": {"a": array.reshape(4, 3)}})
    cut(path, CHUNKS[how])
    if how in ("rows", "columns", "a pinwheel"):
        expected = np.full((4, 3), -1, np.int8)
        for start, stop, offset, shape in CHUNKS[how]:
            place = tuple(slice(o, o + s) for o, s in zip(offset, shape, strict=True))
            expected[place] = array[start:stop].reshape(shape)
        assert (holdfast.open(path).load()["w"]["a"] == expected).all()
        live = {"a": np.zeros((4, 3), np.int8)}
        holdfast.restore(path, {"w": live})
        assert (live["a"] == expected).all()
        assert holdfast.open(path).verify() == []
    else:
        for act in (lambda: holdfast.open(path).load(), lambda: refuse(holdfast.open(path).verify())):
            with pytest.raises(
                FormatError, match=r"w/a.*(overlap|does not lie inside)|array w/a does not lie inside"
            ):
                act()
    tried("fuzz")


def refuse(problems):
    [problem] = problems
    raise problem


@pytest.mark.parametrize("what", ["epoch", "step", "metric", "note"])
def test_what_no_reader_would_take_is_refused_at_once(tmp_path, what):
    """Numbers, names and notes that no reader would take are a `UsageError`, and the run is as it was."""
    path = tmp_path / "run"
    with holdfast.Run(path) as run:
        run.save(epoch=1, wait=True)
        with pytest.raises(UsageError):
            if what == "metric":
                run.save(epoch=2, metrics={"x" * (17 << 20): 1}, wait=True)
            elif what == "note":
                holdfast.Run(path, note="x" * (1 << 20))
            else:
                run.save(**{what: 10**18})
        run.save(epoch=2, wait=True)
    assert holdfast.open(path).progress.epoch == 2
    assert holdfast.open(path).verify() == []


# -- by atheris -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("target", fuzzing.TARGETS)
def test_atheris(tmp_path, samples, target, tried, thorough):
    """A fuzzer that is guided by coverage finds no bytes that end in anything else than an object or an error of ours."""
    if importlib.util.find_spec("atheris") is None:
        pytest.skip("atheris is not installed (it has wheels for Linux on x86-64)")
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    for number, data in enumerate(samples[target]):
        (corpus / str(number)).write_bytes(data)
    runs = 100_000 if thorough else 3_000
    if target in ("history", "lease", "run_json"):  # each writes a file
        runs //= 3
    command = [sys.executable, str(HARNESS), target, f"-runs={runs}", f"-seed={SEED}", "-max_len=40000"]
    command += ["-timeout=60", "-rss_limit_mb=2048", f"-artifact_prefix={tmp_path}/", str(corpus)]
    done = subprocess.run(
        command, cwd=tmp_path, capture_output=True, text=True, errors="replace", check=False
    )
    found = [path for path in tmp_path.iterdir() if path.is_file()]
    bytes_found = [base64.b64encode(path.read_bytes()).decode() for path in found]
    report = f"{done.stdout[-3000:]}\n{done.stderr[-3000:]}\nThe bytes, in base64: {bytes_found}"
    assert done.returncode == 0, report
    assert f"DONE {runs} runs" in done.stderr.replace("Done", "DONE"), report
    tried("fuzz", runs)


def test_the_bending_reaches_every_depth(samples):
    """The bender changes every field of the manifest and of the table, so that no check is out of its reach."""
    for target in ("manifest", "arrays"):
        [data, *_] = samples[target]
        original = json.loads(data)
        changed = set()
        for seed in range(1500):
            with contextlib.suppress(ValueError, RecursionError):
                content = json.loads(fuzzing.bent(target, data, random.Random(seed)))
                if isinstance(content, dict):
                    changed |= {key for key in original if content.get(key) != original[key]}
        assert changed >= set(original)
