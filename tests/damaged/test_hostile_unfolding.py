"""Files of torch.save that are small and unfold without end: lists in lists, views, prefixes, objects on demand."""

import collections
import pickle
import struct
import zipfile

import hostile
import pytest
import torch
from hostile import MEGABYTE, attack, zipped

import holdfast
from holdfast.exchange import import_file


@pytest.fixture(autouse=True, scope="module")
def warm(tmp_path_factory):
    hostile.warm_up_imports(tmp_path_factory.mktemp("warm"))


# -- what unfolds --------------------------------------------------------------------------------------


def laughs():
    value = [1]
    for _ in range(40):
        value = [value] * 10
    return {"state_dict": {"weight": torch.ones(2)}, "x": value}


def laughing_texts():
    return {"state_dict": {"weight": torch.ones(2)}, "x": ["a" * MEGABYTE] * 4000}


def a_circle_of_lists():
    value = []
    value.append(value)
    return {"state_dict": {"weight": torch.ones(2)}, "x": value}


def a_circle_of_dicts():
    value = {"state_dict": {"weight": torch.ones(2)}}
    value["self"] = value
    return value


def a_repeated_element():
    return {"weight": torch.ones(1).expand(10_000, 1_000_000)}


def many_views():
    base = torch.ones(1 << 18)
    return {f"w{n}.weight": base[n:] for n in range(3000)}


def a_deep_list():
    value = []
    for _ in range(300):
        value = [value]
    return {"state_dict": {"weight": torch.ones(2)}, "x": value}


def many_models():
    return {f"net{n}_state_dict": {"weight": torch.ones(1)} for n in range(600)}


def names_alike():
    return {"net" + "!" * n: {"weight": torch.ones(1)} for n in range(1, 500)}


def endless_prefixes():
    return {"module." * 20_000 + "weight": torch.ones(1)}


def many_values():
    return {"state_dict": {"weight": torch.ones(1)}, **{f"x{n}": n for n in range(5000)}}


def names_that_steer_a_terminal():
    return {"state_dict": {"\x1b]0;x\x07\u202e": torch.ones(1)}, "\x1b[2J<script>": 1, "m|\n|": float("nan")}


def a_huge_epoch():
    return {"state_dict": {"weight": torch.ones(1)}, "epoch": 10**30, "step": -5, "global_step": 10**17 - 1}


def metrics_of_a_stranger():
    return {"state_dict": {"weight": torch.ones(1)}, "metrics": {f"m{n}|<b>": 10**300 for n in range(1000)}}


def a_namespace():
    import argparse

    inner = argparse.Namespace(**{"\x1b": 6, "": 7})
    return {"state_dict": {"weight": torch.ones(1)}, "args": inner}


UNFOLDING = [
    laughs, laughing_texts, a_circle_of_lists, a_circle_of_dicts, a_repeated_element, many_views, a_deep_list, many_models,
    names_alike, endless_prefixes, many_values, names_that_steer_a_terminal, a_huge_epoch, metrics_of_a_stranger, a_namespace,
]  # fmt: skip
REFUSED = {laughs, laughing_texts, a_circle_of_lists, a_circle_of_dicts, a_repeated_element, many_views, a_deep_list,
           many_models}  # fmt: skip


@pytest.mark.parametrize("maker", UNFOLDING, ids=lambda maker: maker.__name__)
def test_what_unfolds(tmp_path, maker, tried):
    """What is small in a pickle and without end when it is written out is refused; anything else is taken as it is."""
    path = tmp_path / "model.pt"
    torch.save(maker(), path)
    outcome = attack(path, tmp_path)
    if maker in REFUSED:
        assert outcome.error in ("FormatError", "UsageError"), outcome.message
        assert not (tmp_path / "run").exists() or maker is many_models
    if maker is endless_prefixes:  # as many are cut off as wrappers may make
        [name] = holdfast.open(tmp_path / "run").load()["model"]
        assert name == "module." * (20_000 - 8) + "weight"
    tried("hostile")


def number(value):
    return b"\x8a\x08" + struct.pack("<q", value)


CALLS = {
    "an array": b"cnumpy\nndarray\n(" + number(10**11) + b"\x85tR",
    "an array, unpickled": b"cnumpy._core.multiarray\n_reconstruct\ncnumpy\nndarray\n"
    + number(10**11)
    + b"\x85U\x01b\x87R",
    "a smaller array": b"cnumpy\nndarray\n(" + number(10**7) + b"\x85tR",
    "a tensor": b"ctorch\nTensor\n" + number(10**11) + b"\x85R",
    "a smaller tensor": b"ctorch\nTensor\n" + number(10**8) + b"\x85R",
    "a bytearray": b"c__builtin__\nbytearray\n" + number(10**9) + b"\x85R",
    "a bytearray by its other name": b"cbuiltins\nbytearray\n" + number(10**9) + b"\x85R",
    "a size": b"ctorch\nSize\n" + number(10**9) + b"\x85R",
    "a dtype of strange fields": b"cnumpy\ndtype\nU\x02f8\x85R(K\x03U\x01<NU\x01a\x85}N"
    + number(2**40)
    + b"K\x08K\x00tb",
}


@pytest.mark.parametrize("archive", [True, False], ids=["archive", "bare"])
@pytest.mark.parametrize("name", CALLS)
def test_memory_for_the_asking(tmp_path, name, archive, tried):
    """A pickle that asks one of the harmless classes for a huge object gets none of it."""
    path = tmp_path / "model.pt"
    body = b"\x80\x02}U\x01x" + CALLS[name] + b"s."
    if archive:
        files = [("a/data.pkl", body), ("a/version", b"3\n"), ("a/byteorder", b"little")]
        zipped(path, zipfile.ZIP_STORED, files)
    else:
        path.write_bytes(
            pickle.dumps(0x1950A86A20F9469CFC6C, 2) + pickle.dumps(1001, 2) + pickle.dumps({}, 2) + body
        )
    outcome = attack(path, tmp_path, memory=64 * MEGABYTE, address_space=1 << 40)
    assert outcome.error in ("FormatError", "UntrustedError"), outcome.message
    assert not (tmp_path / "run").exists()
    tried("hostile")


def test_what_is_shared_and_small_is_taken(tmp_path):
    """Values that occur twice, tied weights and a repeated small tensor are no attack."""
    shared = [1, 2]
    weight = torch.ones(4)
    content = {"state_dict": {"a.weight": weight, "b.weight": weight, "c.weight": torch.ones(1).expand(1000)}}
    torch.save({**content, "x": [shared, shared], "y": collections.OrderedDict(a=shared)}, tmp_path / "m.pt")
    import_file(tmp_path / "m.pt", tmp_path / "run")
    values = holdfast.open(tmp_path / "run").load()
    assert values["state"]["x"] == [[1, 2], [1, 2]]
    assert values["model"]["c.weight"].shape == (1000,)
