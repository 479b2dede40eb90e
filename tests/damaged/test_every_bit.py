"""Single bits: each bit of the small files and of a small payload, and many random ones of large payloads.

A bit is flipped in place, everything that reads is tried, and the bit is flipped back. What a test
expects (the file, the block, the arrays that it touches) is worked out here, not by the code under test.
"""

import contextlib
import functools
import json
import os
import random
import shutil

import numpy as np
import pytest
import torch
from harming import Bits, bits_of, call, caught_by, check, reblock, table_of, touched

import holdfast
from holdfast import DamagedError, LeaseError
from holdfast.doctor import save_cost
from holdfast.store import book, holder
from holdfast.store.lease import Lease

SEED = 20_260
MIB = 1 << 20


# -- a small checkpoint, all of its bits -------------------------------------------------------------

SMALL = ["checkpoint.json", "arrays.json", "README.md", "notes.txt"]
PAYLOAD = {"model.safetensors": "model", "values.safetensors": "values"}


def weights():
    return {"model": torch.nn.Linear(30, 9), "values": {"x": np.arange(600, dtype=np.int16), "y": [1, 2]}}


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A checkpoint of 16 kB, whose payload files have two blocks of 4096 bytes."""
    path = tmp_path_factory.mktemp("small") / "ckpt"
    torch.manual_seed(0)
    holdfast.save(path, weights(), extra={"notes.txt": b"a file of the caller's own"})
    reblock(path, 4096)
    assert {name: len(record["blocks"]) for name, record in table_of(path)["files"].items()} == dict.fromkeys(
        PAYLOAD, 2
    )
    assert set(os.listdir(path)) == {*SMALL, *PAYLOAD}
    return path


def test_every_bit_of_the_manifest(small, tried):
    """Every single bit of checkpoint.json is found by open, and by `verify` of a checkpoint opened before."""
    known = holdfast.open(small)
    with bits_of(small / "checkpoint.json") as bits:
        for number in range(len(bits)):
            with bits.flipped(number):
                check(caught_by(lambda: holdfast.open(small)), small, "checkpoint.json")
                [problem] = known.verify()
                check(problem, small, "checkpoint.json")
        tried("bits", len(bits))
    assert known.verify() == []


def test_every_bit_of_the_table(small, tried):
    """Every single bit of arrays.json is found by `verify`, by load and by restore, before anything is read."""
    live = weights()
    before = live["model"].weight.detach().clone()
    with bits_of(small / "arrays.json") as bits:
        for number in range(len(bits)):
            with bits.flipped(number):
                found = holdfast.open(small)
                [problem] = found.verify()
                check(problem, small, "arrays.json")
                check(caught_by(found.load), small, "arrays.json")
                if number % 16 == 0:
                    error = caught_by(lambda: holdfast.restore(small, live))
                    check(error, small, "arrays.json")
                    assert not error.target_changed
        tried("bits", len(bits))
    assert torch.equal(live["model"].weight, before)
    assert holdfast.open(small).verify() == []


@pytest.mark.parametrize("name", ["README.md", "notes.txt"])
def test_every_bit_of_what_is_not_loaded(small, name, tried):
    """Every single bit of the card and of other small files is found by `verify`; a load does not read them."""
    known = holdfast.open(small)
    right = known.load()
    with bits_of(small / name) as bits:
        for number in range(len(bits)):
            with bits.flipped(number):
                [problem] = known.verify()
                check(problem, small, name)
                if number % 64 == 0:
                    assert_same(known.load(), right)
        tried("bits", len(bits))


def assert_same(one, other):
    assert list(one) == list(other)
    for part in one:
        for key, value in other[part].items():
            if isinstance(value, torch.Tensor | np.ndarray):
                same = (np.asarray(one[part][key]) == np.asarray(value)).all()
                assert same, f"{part}/{key} has other values"
            else:
                assert one[part][key] == value


@pytest.mark.parametrize("name", PAYLOAD)
def test_every_bit_of_a_payload(small, name, tried, thorough):
    """Every single bit of a payload file, header and padding included, is found with its block and its arrays."""
    # One of the two files has every bit flipped in everyday runs, the other one bit of every byte.
    every = 1 if thorough or name == "model.safetensors" else 9
    known, table = holdfast.open(small), table_of(small)
    right = known.load()
    [other] = set(PAYLOAD.values()) - {PAYLOAD[name]}
    with bits_of(small / name) as bits:
        blocks = [
            (number, touched(table, name, 4096 * number, min(4096 * (number + 1), bits.size)))
            for number in range(2)
        ]
        assert not blocks[0][1], "block 0 is the header and nothing else"
        for number in range(0, len(bits), every):
            with bits.flipped(number) as place:
                expected = blocks[place // 4096]
                [problem] = known.verify()
                check(problem, small, name, *expected)
                check(caught_by(known.load), small, name, *expected)
                if number % 64 == 0:
                    assert_same(known.load(parts=[other]), {other: right[other]})
        tried("bits", len(range(0, len(bits), every)))
    assert known.verify() == []
    assert_same(known.load(), right)


# -- large payloads, random bits ---------------------------------------------------------------------


def large_state(seed=0):
    """Arrays of all sizes: larger than blocks, across their edges, many in one, shared, and of odd dtypes."""
    generator = np.random.default_rng(seed)
    tied = torch.from_numpy(generator.standard_normal((130, 77)).astype(np.float32))
    return {
        "model": {
            "encoder": tied,
            "decoder": tied,
            "body": torch.from_numpy(generator.standard_normal((311, 513)).astype(np.float32)),
            "half": torch.from_numpy(generator.standard_normal(40_001)).to(torch.bfloat16),
            "phase": torch.from_numpy(generator.standard_normal(999) * 1j),
            "flags": torch.from_numpy(generator.random(3_333) > 0.5),
        },
        "many": {
            f"{number:04}": generator.integers(0, 255, 1 + number % 7, np.uint8) for number in range(250)
        },
        "stream": {"long": generator.standard_normal(65_537), "empty": np.zeros((0, 3))},
    }


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """A checkpoint of 1.3 MB in three payload files, in blocks of 64 KiB."""
    path = tmp_path_factory.mktemp("large") / "ckpt"
    holdfast.save(path, large_state())
    reblock(path, 1 << 16)
    return path


def targets_of(state):
    """Live arrays of the same shapes, all of whose bytes are 0x5A."""
    live = {}
    for part, arrays in state.items():
        live[part] = {}
        for name, array in arrays.items():
            fresh = torch.empty_like(array) if isinstance(array, torch.Tensor) else np.empty_like(array)
            as_bytes(fresh)[:] = 0x5A
            live[part][name] = fresh
    return live


def as_bytes(array):
    if isinstance(array, torch.Tensor):
        return array.reshape(-1).view(torch.uint8).numpy()
    return array.reshape(-1).view(np.uint8)


def untouched(live):
    return all((as_bytes(array) == 0x5A).all() for arrays in live.values() for array in arrays.values())


@pytest.mark.parametrize("part", range(4))
def test_random_bits_of_large_payloads(large, part, tried, thorough):
    """A random bit of a payload of many blocks is found by `verify`, load and restore, with block and arrays."""
    known, table = holdfast.open(large), table_of(large)
    state = large_state()
    live = targets_of(state)
    files = {name: record["size"] for name, record in table["files"].items()}
    step = table["block_size"]
    assert all(
        len(record["blocks"]) >= (1 if name == "many.safetensors" else 8)
        for name, record in table["files"].items()
    )
    count = 8_000 if thorough else 700
    draw = random.Random(SEED + part)
    with contextlib.ExitStack() as stack:
        bits = {name: stack.enter_context(bits_of(large / name)) for name in files}
        weighted = draw.choices(list(files), weights=[size + 60_000 for size in files.values()], k=count)
        for turn, name in enumerate(weighted):
            number = draw.randrange(len(bits[name]))
            with bits[name].flipped(number) as place:
                block = place // step
                arrays = touched(table, name, block * step, min((block + 1) * step, files[name]))
                [problem] = known.verify()
                check(problem, large, name, block, arrays)
                check(caught_by(known.load), large, name, block, arrays)
                if turn % 4 == 0:
                    error = caught_by(functools.partial(known.restore, live))
                    check(error, large, name, block, arrays)
                    if error.target_changed:
                        assert "already partly overwritten" in str(error)
                        live = targets_of(state)
                    else:
                        assert untouched(live)
    tried("bits", count)
    known.restore(live)
    for key, arrays in state.items():
        for name, array in arrays.items():
            assert (as_bytes(live[key][name]) == as_bytes(array)).all()


def test_random_bits_at_the_true_block_size(tmp_path, tried, thorough):
    """In a payload of three blocks of 16 MiB a random bit is found, and the other arrays still load."""
    path = tmp_path / "ckpt"
    state = {
        "first": np.arange(5 * MIB, dtype=np.float32),
        "last": np.arange(5 * MIB, dtype=np.float32)[::-1].copy(),
    }
    holdfast.save(path, {"model": state})
    known, table = holdfast.open(path), table_of(path)
    assert table["block_size"] == 16 * MIB
    size = table["files"]["model.safetensors"]["size"]
    count = 400 if thorough else 40
    draw = random.Random(SEED)
    edges = [8 * (at + offset) for at in (16 * MIB, 32 * MIB) for offset in (-1, 0)] + [0, 8 * size - 1]
    with bits_of(path / "model.safetensors") as bits:
        for number in edges + [draw.randrange(len(bits)) for _ in range(count)]:
            with bits.flipped(number) as place:
                block = place // (16 * MIB)
                arrays = touched(
                    table, "model.safetensors", block * 16 * MIB, min(size, (block + 1) * 16 * MIB)
                )
                [problem] = known.verify()
                check(problem, path, "model.safetensors", block, arrays)
                check(caught_by(known.load), path, "model.safetensors", block, arrays)
    tried("bits", count + len(edges))
    assert known.verify() == []


# -- the files of a run --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def template(tmp_path_factory):
    path = tmp_path_factory.mktemp("run") / "digits"
    with holdfast.Run(path, note="a run") as run:
        for epoch in range(1, 4):
            run.state["x"] = np.full(3, epoch)
            run.save(epoch=epoch, metrics={"loss": 1 / epoch}, wait=True)
    return path


@pytest.fixture
def run(template, tmp_path):
    return shutil.copytree(template, tmp_path / "digits", symlinks=True)


def test_every_bit_of_run_json(run, tried):
    """Every single bit of run.json is found by whatever reads the run; its checkpoints open by their own paths."""
    newest = run / os.readlink(run / "latest")
    with bits_of(run / "run.json") as bits:
        for number in range(len(bits)):
            with bits.flipped(number):
                check(caught_by(lambda: holdfast.open(run)), run, "run.json")
                if number % 100 == 0:
                    listing = sorted(os.listdir(run))
                    check(caught_by(lambda: holdfast.Run(run).resume()), run, "run.json")
                    check(caught_by(lambda: holdfast.Run(run).save(epoch=4)), run, "run.json")
                    left = [name for name in os.listdir(run) if not name.startswith(("lease-", ".writing-"))]
                    assert sorted(left) == [name for name in listing if not name.startswith("lease-")]
                    assert holdfast.open(newest).load()["state"]["x"][0] == 3
        tried("bits", len(bits))
    assert holdfast.Run(run).resume().epoch == 3


def test_every_bit_of_the_history(run, tried):
    """No bit of history.jsonl costs more than the one or two lines that it touches."""
    events = book.read_events(run)
    assert {event["event"] for event in events} == {"launch", "save", "metrics"}
    with bits_of(run / "history.jsonl") as bits:
        for number in range(len(bits)):
            with bits.flipped(number):
                found = book.read_events(run)
                kept = [event for event in events if event in found]
                assert len(kept) >= len(events) - 2
                assert len(found) <= len(events)
                save_cost(found)
        tried("bits", len(bits))


def test_every_bit_of_a_lease(run, tried):
    """Every single bit of a living holder's lease leaves it a holder, or one that publishes and deletes nothing more."""
    lease = Lease.acquire(str(run))
    try:
        me = holder.myself(lease.generation)
        with bits_of(run / holder.lease_name(lease.generation)) as bits:
            lives = set()
            for number in range(len(bits)):
                with bits.flipped(number):
                    found, _ = holder.read_holder(str(run), lease.generation)
                    assert found.generation == lease.generation, "it comes from the name"
                    assert 0 < len(found.describe()) < 500
                    life = holder.judge(found, me, {found.token} if number % 2 else set())
                    lives.add(life)
                    assert life != "released"
            tried("bits", len(bits))
        assert lives >= {"ours", "dead", "unknown"}
    finally:
        lease.release()


@pytest.mark.parametrize("part", range(2))
def test_a_lease_misread_makes_no_second_writer(run, part, tried, thorough):
    """Whatever bit of a living holder's lease is flipped, a contender is refused or the holder can publish nothing."""
    draw = random.Random(SEED + part)
    outcomes = {"refused": 0, "taken over": 0}
    count = 400 if thorough else 60
    for _ in range(count):
        first = Lease.acquire(str(run), say=lambda _: None)
        path = run / holder.lease_name(first.generation)
        text = path.read_bytes()
        # The fields that tell whether a holder lives; elsewhere a bit changes nothing that counts.
        start = text.index(b'"pid"')
        stop = text.index(b'"slurm_cluster"') if draw.random() < 0.8 else len(text)
        bits = Bits(path)
        second = None
        with bits.flipped(draw.randrange(8 * start, 8 * stop)):
            try:
                second = Lease.acquire(str(run), stale_after=0.0, sleep=lambda _: None, say=lambda _: None)
            except LeaseError:
                outcomes["refused"] += 1
        bits.close()
        if second is None:
            first.check()
        else:
            outcomes["taken over"] += 1
            second.check()
            with pytest.raises(LeaseError):
                first.check()
            assert not os.path.exists(first.writing)
            second.release()
        first.release()
    assert min(outcomes.values()) > 0, outcomes
    tried("bits", count)


# -- through the command ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*SMALL, *PAYLOAD])
def test_bits_through_the_command(small, name, tried, thorough):
    """`holdfast verify` ends with 5 for a flipped bit of any file, and names file, block and arrays; with --json too."""
    table = table_of(small)
    draw = random.Random(f"{SEED} {name}")
    count = 100 if thorough else 10
    with bits_of(small / name) as bits:
        for _ in range(count):
            with bits.flipped(draw.randrange(len(bits))) as place:
                said, as_json = call("verify", small), call("verify", small, "--json")
                assert said.exit_code == as_json.exit_code == DamagedError.exit_code
                if name == "checkpoint.json":
                    assert said.stdout == as_json.stdout == ""
                    assert f"error: {small}/checkpoint.json is" in said.stderr
                    continue
                assert said.stdout.startswith("damaged  ckpt")
                assert name in said.stdout
                found = json.loads(as_json.stdout)
                assert found["damaged"] == 1
                [row] = found["checkpoints"]
                assert row["status"] == "damaged"
                [problem] = row["problems"]
                assert (problem["error"], problem["file"]) == ("DamagedError", name)
                if name in PAYLOAD:
                    block = place // 4096
                    arrays = touched(table, name, 4096 * block, min(bits.size, 4096 * block + 4096))
                    assert problem["block"] == block
                    assert set(problem["arrays"]) == arrays
                    assert f"is damaged in block {block} of 2 (bytes {4096 * block:,} to " in said.stdout
                    assert all(array in said.stdout for array in arrays)
        tried("bits", count)
    assert call("verify", small).exit_code == 0


def test_bits_of_a_run_through_the_command(run, tried):
    """`holdfast verify RUN` tells which checkpoint a flipped bit is in, and that the others are whole."""
    names = sorted(name for name in os.listdir(run) if "_epoch-" in name)
    for name in names:
        for file in sorted(os.listdir(run / name)):
            with bits_of(run / name / file) as bits, bits.flipped(len(bits) // 2 + 3):
                said = call("verify", run)
                assert said.exit_code == DamagedError.exit_code
                lines = said.stdout.splitlines()
                states = {
                    line.split()[1]: line.split()[0]
                    for line in lines
                    if line.startswith(("whole", "damaged"))
                }
                assert states == {n: "damaged" if n == name else "whole" for n in names}
                assert file in said.stdout
                assert lines[-2].endswith("1 not whole")
                found = json.loads(call("verify", run, "--json").stdout)
                assert [row["status"] for row in found["checkpoints"]] == [states[n] for n in names]
            tried("bits")
    assert call("verify", run).exit_code == 0
