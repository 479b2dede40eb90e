"""Run directories made to harm whoever goes on with them: names, leases, histories, run.json."""

import json
import os
import shutil

import hostile
import pytest
from hostile import MEGABYTE, command, forge, read, sparse
from hostile_cage import confined, on_disk

import holdfast
from holdfast.errors import HoldfastError, UsageError
from holdfast.format import names


@pytest.fixture(autouse=True, scope="module")
def warm():
    hostile.warm_up()


# -- names ------------------------------------------------------------------------------------------


@pytest.fixture
def run(tmp_path):
    path = tmp_path / "run"
    with holdfast.Run(path) as made:
        for epoch in (1, 2):
            made.state["x"] = epoch
            made.save(epoch=epoch)
    return path


def test_a_name_with_more_zeros_takes_no_other_s_place(run, tried):
    """A checkpoint whose number has zeros too many is not taken for the one without, and that is not deleted for it."""
    first, second = sorted(name for name in os.listdir(run) if name[0] == "0")
    twin = f"0{first}"
    shutil.copytree(run / first, run / twin)
    forge(run / twin, manifest=lambda m: m.update(name=twin))
    assert names.parse_checkpoint_name(twin) is None
    code, out, _ = command("prune", run, "--keep-last", "1", "--json", "--yes")
    assert code == 0
    assert json.loads(out)["deleted"] == [first]
    assert {second, twin} <= set(os.listdir(run))
    tried("hostile")


@pytest.mark.parametrize("sequence", [10**18 - 1, 10**17])
def test_the_last_number(run, sequence, tried):
    """A folder with the last number that there is stops the next save loudly; any lower one only moves it on."""
    os.mkdir(run / f"{sequence}_epoch-0001_step-00000000_20260101T000000Z")
    made = holdfast.Run(run)
    made.resume()
    if sequence == 10**17:
        made.save(epoch=3, wait=True)
        assert made.latest.sequence == 10**17 + 1
    else:
        with pytest.raises(UsageError, match="can take no more checkpoints"):
            made.save(epoch=3, wait=True)
    made.close()
    tried("hostile")


def test_strangers_without_number(run, tried):
    """Thousands of folders that are named like checkpoints, and as many other names, are listed in bounded time and text."""
    for number in range(2_000):
        os.mkdir(run / f"{number + 100:06d}_epoch-0001_step-00000000_20260101T000000Z")
        (run / f"garbage-{number}").write_text("")

    def act():
        made = holdfast.Run(run)
        try:
            made.resume()
        finally:
            made.close()
        return [command("ls", run, "--json")[0], command("show", f"{run}@step=123456789012345678")[0]]

    outcome = confined(act, run, cpu=60)
    assert outcome.error is None, outcome.trace
    assert outcome.value == [0, 4]
    assert outcome.peak < 256 * MEGABYTE
    tried("hostile")


REFERENCES = [
    "@step=" + "9" * 1000, "@step=-1", "@seq=٣", "@-0", "@-" + "1" * 50, "@epoch=1e9", "@best\0", "@\ud800", "@" * 1000,
    "@step=1@step=2", "/" + "a/" * 2000, "@-9999999999",
]  # fmt: skip


@pytest.mark.parametrize("number", range(len(REFERENCES)))
def test_references_without_end(run, number, tried):
    """A reference of any length and any characters names nothing, and says so."""
    with pytest.raises(HoldfastError) as caught:
        holdfast.open(f"{run}{REFERENCES[number]}")
    assert len(str(caught.value)) < 25_000
    with pytest.raises(HoldfastError):
        holdfast.open(f"a\0b{REFERENCES[number]}/c")
    tried("hostile", 2)


# -- leases and histories -----------------------------------------------------------------------------


def go_on_with(run, folder):
    def act():
        made = holdfast.Run(run)
        try:
            made.resume()
            made.save(epoch=3, wait=True)
        finally:
            made.close()
        return command("ls", run)[0]

    outcome = confined(act, folder, cpu=30, wall=60)
    assert outcome.error is None or outcome.ours, outcome.trace
    return outcome


LEASES = {
    "10^30": f"lease-{10**30}",
    "the longest": "lease-" + "9" * 249,
    "nines": "lease-999999999",
    "other digits": "lease-٠٠٠٠٠٩",
    "writing, other digits": ".writing-٠٠٠٠٠٩",
    "writing, the longest": ".writing-" + "9" * 246,
}
RELEASED = {"pid": 5, "released": True, "host": "x", "boot_id": "x", "pid_namespace": 1, "process_start": "1"}


@pytest.mark.parametrize("name", LEASES)
def test_leases_without_end(run, tmp_path, name, tried):
    """A lease with an absurd number is outrun, or refused by the storage; the run is not lost."""
    path = run / LEASES[name]
    if "writing" in name:
        path.mkdir()
    else:
        path.write_text(json.dumps(RELEASED))
    outcome = go_on_with(run, run)
    assert outcome.error in (None, "StorageError")
    assert outcome.error is None or "too long" in outcome.message
    tried("hostile")


HOLDERS = {
    "brackets": b"[" * 60_000,
    "a huge pid": json.dumps({**RELEASED, "pid": 10**30}).encode(),
    "escapes": json.dumps({**RELEASED, "host": "\x1b]0;owned\x07\u202e", "user": "\ud800"}).encode(),
    "a number of 5000 digits": b'{"pid":' + b"1" * 5000 + b"}",
    "NaN": b'{"pid":NaN}',
}


@pytest.mark.parametrize("name", HOLDERS)
def test_holders_of_any_kind(run, name, tried):
    """Whatever a lease file says, who it names is told without steering the terminal, or it is nobody."""
    from holdfast.store.lease import holder_of

    (run / "lease-000777").write_bytes(HOLDERS[name])

    def act():
        return [holder_of(str(run)).describe(), command("doctor", run)[1]]

    outcome = confined(act, run, cpu=30)
    assert outcome.error is None, outcome.trace
    assert not hostile.CONTROL.search(outcome.value[1])
    tried("hostile")


@pytest.mark.parametrize("size", [10 << 30, 1 << 30])
def test_a_history_of_one_endless_line(run, size, tried):
    """A history of one line of gigabytes costs neither time nor memory, and the run goes on writing to it."""
    sparse(run / "history.jsonl", size)
    outcome = confined(lambda: command("doctor", run), run, cpu=30)
    assert outcome.error is None, outcome.trace
    assert outcome.value[0] == 0
    # The examination itself writes a block of 16 MB.
    assert outcome.peak < 96 * MEGABYTE
    assert go_on_with(run, run).error is None
    tried("hostile")


def test_run_json_of_any_kind(run, tried):
    """A run.json with a right digest and wrong content ends in an error of ours in every command."""
    from holdfast.format import sealed

    good = read(run, "run.json")
    changes = [
        {"keep": {"last": -1}}, {"keep": {"last": 10**400}}, {"keep": {"budget": "9" * 10**5}}, {"keep": {"best": 1}},
        {"keep": {"metric": {"a": 1}, "mode": []}}, {"keep": {"budget": 10**400}}, {"note": "\x1b[2J"}, {"id": "../x"},
        {"goals": {"a": [[]]}}, {"reached": {"x": {}}}, {"config": {"$": "x"}}, {"created": "\x1b]0;x\x07"},
    ]  # fmt: skip
    for change in changes:
        (run / "run.json").write_bytes(sealed.encode({**good, **change}))
        for words in (["ls"], ["ls", "--json"], ["prune"], ["verify"], ["show"], ["ls", ".."]):
            code, out, err = command(
                words[0], run / words[1] if words[-1] == ".." else run, *[w for w in words[1:] if w != ".."]
            )
            assert code in range(12), (change, words, out, err)
            if code and "keep" in change:
                assert (code, "run.json" in err) == (6, True)
            assert not hostile.CONTROL.search(out + err), (change, words)
        tried("hostile")
    assert on_disk(run) > 0
