"""Files of other formats made to harm whoever imports them: pickles, archives, headers, expansions, pipes."""

import io
import os
import pickle
import socket
import struct
import tarfile
import zipfile

import hostile
import numpy as np
import pytest
import torch
from hostile import MEGABYTE, attack, sparse, zipped
from hostile_cage import confined, on_disk

import holdfast
from holdfast.exchange import import_file


@pytest.fixture(autouse=True, scope="module")
def warm(tmp_path_factory):
    hostile.warm_up_imports(tmp_path_factory.mktemp("warm"))


# -- code ------------------------------------------------------------------------------------------


class Bomb:
    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return (os.system, (f"touch {self.mark}",))


class Quiet(Bomb):
    """Runs something while a class is looked up, or an object built, and not called."""

    def __reduce_ex__(self, _):
        return (eval, (f"open({self.mark!r}, 'w').close()",))


def pickled(what, path, _):
    path.write_bytes(pickle.dumps(what))


def saved(what, path, _):
    torch.save({"state_dict": {"weight": torch.ones(2)}, "x": what}, path)


def saved_the_old_way(what, path, _):
    torch.save(
        {"state_dict": {"weight": torch.ones(2)}, "x": what}, path, _use_new_zipfile_serialization=False
    )


def in_an_array(what, path, folder):
    np.savez(path.with_suffix(".npz"), x=np.array([what], dtype=object))
    os.rename(path.with_suffix(".npz"), path)


def in_a_tar(what, path, _):
    with tarfile.open(path, "w") as file:
        for name in ("sys_info", "pickle", "tensors", "storages"):
            data = pickle.dumps(what)
            info = tarfile.TarInfo(name)
            info.size = len(data)
            file.addfile(info, io.BytesIO(data))


def in_an_archive(what, path, _):
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("archive/data.pkl", pickle.dumps(what, 2))
        file.writestr("archive/version", "3\n")
        file.writestr("archive/byteorder", "little")


def after_a_header(what, path, _):
    header = b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}'
    path.write_bytes(struct.pack("<Q", len(header)) + header + b"0000" + pickle.dumps(what))


MAKERS = [pickled, saved, saved_the_old_way, in_an_array, in_a_tar, in_an_archive, after_a_header]


@pytest.mark.parametrize("suffix", ["pt", "pth", "bin", "ckpt", "pkl", "safetensors", "npz"])
@pytest.mark.parametrize("maker", MAKERS, ids=lambda maker: maker.__name__)
@pytest.mark.parametrize("bomb", [Bomb, Quiet], ids=["call", "eval"])
def test_code_never_runs(tmp_path, suffix, maker, bomb, tried):
    """A file that brings code is refused without trust, whatever it is called and however it is wrapped."""
    path, mark = tmp_path / f"model.{suffix}", tmp_path / "exploded"
    maker(bomb(str(mark)), path, tmp_path)
    outcome = attack(path, tmp_path)
    assert outcome.error in ("UntrustedError", "FormatError"), outcome.message
    assert str(path) in outcome.message
    assert not mark.exists()
    assert not (tmp_path / "run").exists()
    tried("hostile")


# -- archives ----------------------------------------------------------------------------------------


def rewritten(path, pattern, value, at):
    """Overwrites a field in each record of a kind in a ZIP archive."""
    data = bytearray(path.read_bytes())
    place = data.find(pattern)
    while place >= 0:
        data[place + at : place + at + len(value)] = value
        place = data.find(pattern, place + 4)
    path.write_bytes(data)


def a_bomb(path):
    zipped(path, zipfile.ZIP_DEFLATED, [("a/data.pkl", b"\0" * (100 << 20)), ("a/version", b"3\n")])


def a_small_bomb_beside(path):
    zipped(path, zipfile.ZIP_DEFLATED, [("a/data.pkl", pickle.dumps({})), ("a/data/0", b"\0" * (100 << 20))])


def overlapping_entries(path):
    zipped(
        path,
        zipfile.ZIP_STORED,
        [("a/data.pkl", b"x" * 100_000), *((f"a/data/{n}", b"") for n in range(2000))],
    )
    rewritten(path, b"PK\x01\x02", struct.pack("<II", 100_000, 100_000), 20)
    rewritten(path, b"PK\x01\x02", struct.pack("<I", 0), 42)


def sizes_beyond_all(path):
    zipped(path, zipfile.ZIP_STORED, [("a/data.pkl", b"x" * 100)])
    rewritten(path, b"PK\x01\x02", b"\xfe\xff\xff\xff" * 2, 20)


def a_password(path):
    zipped(path, zipfile.ZIP_STORED, [("a/data.pkl", b"x" * 100)])
    rewritten(path, b"PK\x01\x02", b"\x01\x00", 8)
    rewritten(path, b"PK\x03\x04", b"\x01\x00", 6)


def an_unknown_compression(path):
    zipped(path, zipfile.ZIP_STORED, [("a/data.pkl", b"x" * 100)])
    rewritten(path, b"PK\x01\x02", b"\x63\x00", 10)


def many_entries(path):
    zipped(path, zipfile.ZIP_STORED, [("a/data.pkl", b"x"), *((f"a/{n}", b"") for n in range(5000))])


def paths_as_names(path):
    entries = [("../../data.pkl", b"x"), ("/etc/cron.d/x", b"x"), ("a/data.pkl", pickle.dumps({"a": 1}, 2))]
    zipped(path, zipfile.ZIP_STORED, entries)


def names_that_steer(path):
    zipped(path, zipfile.ZIP_STORED, [("\x1b]0;x\x07\u202e", b"x"), ("b" * 60_000, b"x")])


def a_directory_elsewhere(path):
    zipped(path, zipfile.ZIP_STORED, [("a/data.pkl", b"x" * 100)])
    rewritten(path, b"PK\x05\x06", struct.pack("<II", 2**32 - 2, 2**32 - 2), 12)


ARCHIVES = [
    a_bomb, a_small_bomb_beside, overlapping_entries, sizes_beyond_all, a_password, an_unknown_compression, many_entries,
    paths_as_names, names_that_steer, a_directory_elsewhere,
]  # fmt: skip


@pytest.mark.parametrize("maker", ARCHIVES, ids=lambda maker: maker.__name__)
def test_archives(tmp_path, maker, tried):
    """An archive that unpacks to more than it is, or lies about its entries, is refused before anything is unpacked."""
    path = tmp_path / "model.pt"
    maker(path)
    outcome = attack(path, tmp_path, memory=96 * MEGABYTE)
    assert outcome.error in ("FormatError", "DamagedError"), outcome.message
    assert str(path) in outcome.message
    tried("hostile")


# -- safetensors ---------------------------------------------------------------------------------------


def header(text, data=b""):
    return struct.pack("<Q", len(text)) + text + data


def entry(shape="[1]", offsets="[0,4]", dtype='"F32"'):
    return f'{{"dtype":{dtype},"shape":{shape},"data_offsets":{offsets}}}'.encode()


HEADERS = {
    "2^63 bytes of header": struct.pack("<Q", 2**63) + b"{}",
    "100 MB of spaces": header(b"{" + b" " * 99_000_000 + b"}"),
    "a header beyond the limit": struct.pack("<Q", 100_000_001) + b"{" + b" " * 100_000_001,
    "many entries": header(
        b"{" + b",".join(b'"%d":%b' % (n, entry("[0]", "[0,0]")) for n in range(20_000)) + b"}"
    ),
    "one entry twice": header(b'{"a":' + entry() + b',"a":' + entry() + b"}", b"0000"),
    "entries on each other": header(b'{"a":' + entry() + b',"b":' + entry() + b"}", b"0000"),
    "beyond the file": header(b'{"a":' + entry("[1000]", "[0,4000]") + b"}", b"0000"),
    "before the file": header(b'{"a":' + entry("[1]", "[-4,0]") + b"}", b"0000"),
    "offsets the wrong way round": header(b'{"a":' + entry("[1]", "[4,0]") + b"}", b"0000"),
    "floats": header(b'{"a":' + entry("[1.0]", "[0.0,4.0]") + b"}", b"0000"),
    "true": header(b'{"a":' + entry("[true]", "[false,4]") + b"}", b"0000"),
    "NaN": header(b'{"a":' + entry("[NaN]", "[0,4]") + b"}", b"0000"),
    "infinity": header(b'{"a":' + entry("[1e400]", "[0,1e400]") + b"}", b"0000"),
    "a size of a million digits": header(b'{"a":' + entry(f"[{'9' * 10**6}]") + b"}", b"0000"),
    "a product beyond 2^64": header(b'{"a":' + entry(f"[{2**33},{2**33}]", "[0,0]") + b"}"),
    "nothing, of 2^60": header(b'{"a":' + entry(f"[0,{2**62},{2**62}]", "[0,0]") + b"}"),
    "a million dimensions": header(b'{"a":' + entry(f"[{'1,' * 10**6}1]") + b"}", b"0000"),
    "an unknown dtype": header(b'{"a":' + entry(dtype='"os.system"') + b"}", b"0000"),
    "a dtype of 10 MB": header(b'{"a":' + entry(dtype='"' + "F" * (10 << 20) + '"') + b"}", b"0000"),
    "a hole": header(b'{"a":' + entry("[1]", "[4,8]") + b"}", b"00000000"),
    "deep": header(b'{"a":' + b"[" * 10**6, b""),
    "metadata that is none": header(b'{"__metadata__":{"a":[1]},"a":' + entry() + b"}", b"0000"),
    "surrogates": header(b'{"\\ud800":' + entry() + b"}", b"0000"),
    "escapes": header(b'{"\\u001b]0;x\\u0007\\u202e\\u0000":' + entry() + b"}", b"0000"),
    "a pickle": pickle.dumps({"a": 1}) * 100,
    "an archive": b"PK\x03\x04" + b"\0" * 100,
    "nothing": b"",
}  # fmt: skip
TAKEN = {"escapes", "100 MB of spaces", "many entries", "surrogates"}


@pytest.mark.parametrize("name", HEADERS)
def test_headers(tmp_path, name, tried):
    """A safetensors file is believed only where its header and its size agree; anything else is refused by its name."""
    path = tmp_path / "model.safetensors"
    path.write_bytes(HEADERS[name])
    # Of a header of spaces nothing is left but the text: twice, while it is read.
    memory = 64 * MEGABYTE + 4 * on_disk(path) if name == "100 MB of spaces" else None
    outcome = attack(path, tmp_path, memory=memory)
    if name not in TAKEN:
        assert outcome.error == "FormatError"
    assert outcome.error is None or str(path) in outcome.message or outcome.error == "UsageError"
    tried("hostile")


@pytest.mark.parametrize("suffix", ["pt", "safetensors"])
def test_a_hole_of_ten_terabytes(tmp_path, suffix, tried):
    """A file that is one hole of ten terabytes is refused by its first bytes."""
    path = tmp_path / f"model.{suffix}"
    sparse(path, 10 << 40)
    outcome = attack(path, tmp_path, memory=32 * MEGABYTE)
    assert outcome.error == "FormatError"
    tried("hostile")


@pytest.mark.parametrize("kind", ["pipe", "device", "socket", "folder", "link to a device"])
def test_places_that_are_no_file(tmp_path, kind, tried):
    """A pipe, a device, a socket or a folder in the file's place is refused, and not waited for."""
    path = tmp_path / "model.pt"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "device":
        try:
            os.mknod(path, 0o20666, os.makedev(1, 5))
        except PermissionError:
            pytest.skip("needs root, to make a device file")
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as made, pytest.MonkeyPatch.context() as patch:
            patch.chdir(tmp_path)
            made.bind("model.pt")
    elif kind == "folder":
        path.mkdir()
    else:
        path.symlink_to("/dev/zero")
    outcome = attack(path, tmp_path, memory=32 * MEGABYTE)
    assert outcome.error in ("FormatError", "StorageError")
    assert str(path) in outcome.message
    if kind in ("pipe", "device", "link to a device"):
        assert "is no regular file" in outcome.message
    tried("hostile")


def test_a_file_that_shrinks_while_it_is_imported(tmp_path, tried):
    """A safetensors file that gets shorter between its header and its data ends the import, not the process."""
    path = tmp_path / "model.safetensors"
    path.write_bytes(header(b'{"a.weight":' + entry("[1048576]", "[0,4194304]") + b"}", b"\0" * 4194304))

    def act():
        from holdfast.exchange import reading

        true = reading.sort

        def cutting(content, where):
            os.truncate(path, 5000)
            return true(content, where)

        reading.sort = cutting
        import_file(path, tmp_path / "run")

    outcome = confined(act, path, tmp_path / "run")
    assert outcome.ours, outcome.trace
    assert outcome.error == "DamagedError"
    assert "became shorter while it was read" in outcome.message
    assert [name for name in os.listdir(tmp_path / "run") if name[0] == "0"] == []
    tried("hostile")


# -- entire models ---------------------------------------------------------------------------------------


def test_a_structure_without_trust(tmp_path, tried):
    """An entire model is described and not opened, whatever its list of names says; a renamed pickle changes nothing."""
    from holdfast.errors import FormatError, UntrustedError
    from holdfast.format import sealed
    from holdfast.torch import load_model, save_model

    path, mark = tmp_path / "model", tmp_path / "exploded"
    save_model(torch.nn.Linear(3, 2), path)
    bomb = pickle.dumps(Bomb(str(mark)))
    facts = hostile.read(path, "structure.json")
    names = {
        "\x1b]0;x\x07" * 1000: "\u202e",
        **{f"a{n}.b": None for n in range(50_000)},
        "c.d": [[{}]],
        "": 5,
    }
    changes = [{"names": names}, {"class": "x" * 10**6}, {"names": []}, {"class": 5}]
    for change in changes:
        text = sealed.encode({**facts, **change})
        (path / "structure.pickle").write_bytes(bomb)
        (path / "structure.json").write_bytes(text)

        def relist(manifest, text=text):
            hostile.list_file(manifest, "structure.json", text)
            hostile.list_file(manifest, "structure.pickle", bomb)

        hostile.forge(path, manifest=relist)
        with pytest.raises((UntrustedError, FormatError)) as caught:
            load_model(path)
        assert not hostile.CONTROL.search(str(caught.value))
        assert len(str(caught.value)) < 25_000
        holdfast.open(path).load()
        assert holdfast.open(path).verify() == []
        assert not mark.exists()
        tried("hostile")
