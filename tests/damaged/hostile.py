"""Makers of hostile checkpoints, and all that a reader can do with one.

Whoever can write a folder can write digests that match: `forge` does.
"""

import contextlib
import importlib
import io
import json
import os
import re
import traceback
import zipfile

import numpy as np
import torch
from hostile_cage import confined, on_disk, snapshot

import holdfast
from holdfast.errors import HoldfastError
from holdfast.exchange import import_file
from holdfast.format import sealed

MEGABYTE = 1 << 20

# -- makers --------------------------------------------------------------------------------------


def read(path, name):
    """The content of a sealed file."""
    return sealed.decode((path / name).read_bytes(), name)


def seal(body):
    """Bytes of JSON without their last line → a sealed file; `body` ends with a comma and a line feed."""
    return body + b'"xxh3-128":"%s"}\n' % sealed.digest(body).encode()


def forge(path, *, arrays=None, manifest=None, raw=None):
    """Changes the JSON files by functions (or replaces arrays.json's bytes) and makes all digests right."""
    content = read(path, "arrays.json")
    if arrays is not None:
        arrays(content)
    data = raw if raw is not None else sealed.encode(content)
    (path / "arrays.json").write_bytes(data)
    table = read(path, "checkpoint.json")
    list_file(table, "arrays.json", data)
    for name, record in content["files"].items():
        with contextlib.suppress(ValueError, TypeError, KeyError):
            digest = sealed.digest(b"".join(bytes.fromhex(block) for block in record["blocks"]))
            table["files"][name] = {"size": record["size"], "digest": digest}
    if manifest is not None:
        manifest(table)
    (path / "checkpoint.json").write_bytes(sealed.encode(table))


def list_file(table, name, data):
    """Lists a small file's bytes in the content of checkpoint.json."""
    table["files"][name] = {"size": len(data), "digest": sealed.digest(data)}


def payload(path, data, name="model.safetensors"):
    """Puts other bytes into a payload file; a change of arrays.json that makes its digests right."""
    (path / name).write_bytes(data)

    def change(content):
        content["files"][name] = {"size": len(data), "blocks": [sealed.digest(data)] if data else []}

    return change


def part(content, name="model"):
    return content["parts"][name]


def weight(content):
    return part(content)["arrays"]["weight"]


def skeleton(value, name="values"):
    """A change of arrays.json that puts another skeleton into a part."""
    return lambda content: part(content, name).update(skeleton=value)


def sparse(path, size):
    """A file that claims so many bytes and takes none on the disk."""
    with open(path, "wb") as file:
        file.truncate(size)


# -- what readers do -----------------------------------------------------------------------------


def training():
    """Live things to restore into, and what a template is made of."""

    net = torch.nn.Linear(30, 20)
    opt = torch.optim.Adam(net.parameters())
    net(torch.ones(1, 30)).sum().backward()
    opt.step()
    return {"model": net, "optimizer": opt, "generator": np.random.default_rng(0)}


def save_template(path):
    """An ordinary checkpoint, to be bent."""

    values = {"a": [1, (2, 3)], "x": np.arange(5), "rng": np.random.default_rng(1)}
    holdfast.save(path, {**training(), "values": values})
    return path


def _pickled(live):
    return (
        repr(live["model"].state_dict())
        + repr(live["optimizer"].state_dict())
        + repr(live["generator"].bit_generator.state)
    )


def command(*arguments):
    """Runs a command of the program in this process: [exit code, stdout, stderr]."""

    from holdfast.cli.main import main

    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            main([os.fspath(argument) for argument in arguments])
            code = 0
        except SystemExit as error:
            code = error.code
    return [code, out.getvalue(), err.getvalue()]


def warm_up():
    """Loads what the acts use, so that a measurement in the cage is not one of imports."""
    from holdfast.cli.main import COMMANDS, load

    for name in COMMANDS:
        load(name)
    for name in (
        "comparison",
        "exchange.exporting",
        "exchange.importing",
        "payload.difference",
        "torch.edge",
    ):
        importlib.import_module(f"holdfast.{name}")


def acts_on(path, other):
    """All that a reader can do with a checkpoint, by name."""

    live = training()

    def restore():
        before = _pickled(live)
        try:
            holdfast.restore(path, live)
        except HoldfastError as error:
            if _pickled(live) != before and not error.facts.get("target_changed"):
                raise AssertionError("live objects were changed, and the error does not say so") from error
            raise

    def look():
        found = holdfast.open(path)
        errors = []
        for name in ("metrics", "config", "environment", "parts", "progress", "note"):
            try:
                getattr(found, name)
            except HoldfastError as error:
                errors.append(error)
        _raise_first(errors)

    def told(*arguments):
        def run():
            code, out, err = command(*arguments)
            assert code in range(12), f"exit code {code}"
            assert "Traceback" not in out + err
            if "--json" in arguments and out:
                json.loads(out, parse_constant=lambda word: _no_json(word))

        return run

    return {
        "look": look,
        "load": lambda: holdfast.open(path).load(),
        "numpy": lambda: holdfast.open(path).load(arrays="numpy"),
        "verify": lambda: _raise_first(holdfast.open(path).verify()),
        "restore": restore,
        "show": told("show", path),
        "show --json": told("show", path, "--json"),
        "verify --json": told("verify", path, "--json"),
        "diff": told("diff", path, other),
    }


def _no_json(word):
    raise AssertionError(f"{word} is no JSON")


def _raise_first(problems):
    if problems:
        raise problems[0]


def use(path, other, only=None):
    """Does all of `acts_on`; for each [name, class of its error or None, ours, message, traceback]."""
    results = []
    for name, act in acts_on(path, other).items():
        if only is not None and name not in only:
            continue
        try:
            act()
            results.append([name, None, True, "", ""])
        except BaseException as error:
            ours = isinstance(error, HoldfastError)
            text = "" if ours else traceback.format_exc()[-2000:]
            results.append([name, type(error).__name__, ours, str(error)[:30_000], text])
    return results


def check_use(path, other, *, memory=None, cpu=60, only=None, address_space=2 << 30):
    """Uses a hostile checkpoint in the cage, checks all that must hold whatever it says; the errors by act."""
    beside = snapshot(os.path.dirname(path))
    outcome = confined(lambda: use(path, other, only), path, other, cpu=cpu, address_space=address_space)
    assert outcome.error is None, outcome.trace
    assert snapshot(os.path.dirname(path)) == beside, "files beside it, or in it, were changed"
    assert outcome.changed == [], "a reader changed something"
    assert outcome.outside == [], "a reader looked at something outside"
    assert outcome.ran == [], "a reader ran something"
    wrong = [result for result in outcome.value if not result[2]]
    assert not wrong, "\n".join(f"{result[0]}: {result[1]}: {result[3]}\n{result[4]}" for result in wrong)
    limit = 64 * MEGABYTE + 50 * on_disk(path) if memory is None else memory
    assert outcome.peak <= limit, f"{outcome.peak >> 20} MB of memory, {limit >> 20} are allowed"
    assert all(len(result[3]) <= 25_000 for result in outcome.value), "a message is too long"
    assert not any(CONTROL.search(result[3]) for result in outcome.value), "a message steers the terminal"
    return {result[0]: (result[1], result[3]) for result in outcome.value}


CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


# -- imports -------------------------------------------------------------------------------------


def zipped(path, compression, entries):
    with zipfile.ZipFile(path, "w", compression) as file:
        for name, data in entries:
            file.writestr(name, data)


def warm_up_imports(folder):
    """The same for imports, which load parts of torch at their first use."""
    warm_up()
    torch.save({"weight": torch.ones(2)}, folder / "x.pt")
    import_file(folder / "x.pt", folder / "run")


def attack(path, tmp_path, *, memory=None, cpu=30, **more):
    """Imports a file in the cage, where nothing of it may run; whatever it does, the rest of the folder stays."""
    run = tmp_path / "run"
    before = snapshot(tmp_path)

    def act():
        import_file(path, run)
        return True

    outcome = confined(act, path, run, cpu=cpu, **more)
    after = {name: what for name, what in snapshot(tmp_path).items() if not name.startswith(str(run))}
    assert {name: what for name, what in before.items() if name in after} == after, (
        "something else was changed"
    )
    assert outcome.error is None or outcome.ours, outcome.trace
    # Naming the commit that a checkpoint was made with runs git; and pickle itself looks classes up.
    allowed = ("subprocess.Popen", "pickle.find_class")
    assert [event for event in outcome.ran if event[0] not in allowed] == []
    limit = 64 * MEGABYTE + 50 * on_disk(path) if memory is None else memory
    assert outcome.peak <= limit, f"{outcome.peak >> 20} MB, {limit >> 20} are allowed"
    assert not CONTROL.search(outcome.message)
    assert len(outcome.message) < 25_000
    if outcome.error is None:
        assert holdfast.open(run).verify() == []
        holdfast.open(run).load()
    return outcome
