"""Files called those of Keras or TensorFlow, made to harm whoever imports them."""

import json
import os
import pickle
import random
import shutil
import struct
import zipfile
from pathlib import Path

import hostile
import numpy as np
import pytest
from hostile import MEGABYTE, attack, sparse, zipped

from holdfast.errors import HoldfastError
from holdfast.exchange import crc32c, reading, tensor_bundle

h5py = pytest.importorskip("h5py")
OLD = Path(__file__).parents[1] / "golden" / "keras2" / "adam"


@pytest.fixture(autouse=True, scope="module")
def warm(tmp_path_factory):
    hostile.warm_up_imports(tmp_path_factory.mktemp("warm"))
    for name in ("weights.h5", "model.keras", "tf/cp-0002.ckpt"):
        reading.read(str(OLD / name), trust=False)


# -- HDF5 --------------------------------------------------------------------------------------------


def a_link_out(file, folder):
    with h5py.File(folder / "secret.h5", "w") as other:
        other["vars/0"] = np.ones(3)
    file["layers/dense"] = h5py.ExternalLink(str(folder / "secret.h5"), "/")


def a_link_within(file, _):
    file["layers/dense/vars/0"] = np.ones(3)
    file["layers/twin"] = h5py.SoftLink("/layers/dense")


def a_hard_link_to_itself(file, _):
    file["layers/dense/vars/0"] = np.ones(3)
    file["layers/dense/again"] = file["layers"]


def one_array_by_two_names(file, _):
    file["layers/dense/vars/0"] = np.ones(3)
    file["layers/dense/vars/1"] = file["layers/dense/vars/0"]


def data_outside(file, folder):
    (folder / "raw").write_bytes(b"secret!!" * 8)
    file.require_group("layers/dense/vars").create_dataset(
        "0", (8,), "f8", external=[(str(folder / "raw"), 0, h5py.h5f.UNLIMITED)]
    )


def virtual_data(file, folder):
    with h5py.File(folder / "secret.h5", "w") as other:
        other["x"] = np.ones(8)
    layout = h5py.VirtualLayout((8,), "f8")
    layout[:] = h5py.VirtualSource(str(folder / "secret.h5"), "x", (8,))
    file.require_group("layers/dense/vars").create_virtual_dataset("0", layout)


def a_claim_of_a_petabyte(file, _):
    file.create_dataset("layers/dense/vars/0", (1 << 47,), "f8", chunks=(1 << 20,))


def a_packed_gigabyte(file, _):
    file.create_dataset(
        "layers/dense/vars/0", data=np.zeros(128 << 20), compression="gzip", chunks=(1 << 20,)
    )


def an_unknown_filter(file, _):
    group = file.require_group("layers/dense/vars")
    layout = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    layout.set_chunk((4,))
    layout.set_filter(32123, h5py.h5z.FLAG_OPTIONAL)
    h5py.h5d.create(group.id, b"0", h5py.h5t.IEEE_F32LE, h5py.h5s.create_simple((4,)), layout)


def texts_and_references(file, _):
    file["layers/dense/vars/0"] = np.array(["a", "b"], dtype=object)
    file["layers/dense/vars/1"] = np.array([file["layers"].ref], dtype=h5py.ref_dtype)


def a_named_type(file, _):
    file["layers/dense/vars/0"] = np.dtype("f8")


def nothing_in_an_array(file, _):
    file["layers/dense/vars/0"] = h5py.Empty("f4")


def a_structure(file, _):
    file["layers/dense/vars/0"] = np.zeros(3, dtype=[("a", "f4"), ("b", "i8")])


def deep_groups(file, _):
    file.create_group("/".join("a" * 200))


def no_arrays(file, _):
    file.create_group("layers/dense/vars")


def names_of_layers_that_are_gone(file, _):
    file.attrs["layer_names"] = [b"dense", b"../../etc"]


def names_of_weights_that_are_gone(file, _):
    file.attrs["layer_names"] = [b"dense"]
    file.create_group("dense").attrs["weight_names"] = [b"dense/kernel:0"]


def names_that_are_numbers(file, _):
    file.attrs["layer_names"] = np.arange(5)


def a_name_that_is_a_number(file, _):
    file.attrs["layer_names"] = 7


def names_that_steer(file, _):
    file["\x1b]0;x\x07\u202e/vars/0"] = h5py.Empty("f4")


def a_pickle_as_text(file, _):
    file.attrs["layer_names"] = np.void(pickle.dumps(os.system))


HDF5 = [
    a_link_out, a_link_within, a_hard_link_to_itself, one_array_by_two_names, data_outside, virtual_data,
    a_claim_of_a_petabyte, a_packed_gigabyte, an_unknown_filter, texts_and_references, a_named_type, nothing_in_an_array,
    a_structure, deep_groups, no_arrays, names_of_layers_that_are_gone, names_of_weights_that_are_gone,
    names_that_are_numbers, a_name_that_is_a_number, names_that_steer, a_pickle_as_text,
]  # fmt: skip


@pytest.mark.parametrize("wrapped", [False, True], ids=["h5", "keras"])
@pytest.mark.parametrize("maker", HDF5, ids=lambda maker: maker.__name__)
def test_hdf5_that_leads_elsewhere_or_claims_too_much(tmp_path, maker, wrapped, tried):
    """Links, data in other files, filters, cycles, sizes without bytes and strange types are refused by name."""
    (tmp_path / "made").mkdir()
    path = tmp_path / "model.weights.h5"
    with h5py.File(path, "w") as file:
        maker(file, tmp_path / "made")
    if wrapped:
        zipped(tmp_path / "model.keras", zipfile.ZIP_STORED, [("model.weights.h5", path.read_bytes())])
        path = tmp_path / "model.keras"
    outcome = attack(path, tmp_path, memory=96 * MEGABYTE)
    assert outcome.error == "FormatError", outcome.message
    assert str(path) in outcome.message
    assert ("leads elsewhere" in outcome.message) == (maker in (a_link_out, a_link_within))
    assert not (tmp_path / "run").exists()
    tried("hostile")


def tell(act):
    """What an act returns, or None and what the error says."""
    try:
        return act(), ""
    except HoldfastError as error:
        return None, str(error)


def arrays(prefix):
    return {name: array.open().tobytes() for name, array in tensor_bundle.read(str(prefix)).items()}


def content(path):
    parts = reading.read(str(path), trust=False).parts
    return {
        (part, name): array.open().tobytes() for part, own in parts.items() for name, array in own.items()
    }


@pytest.mark.parametrize("name", ["weights.h5", "model.keras"])
def test_bent_files_of_keras(tmp_path, name, tried):
    """Whatever bit of a file of Keras' is another one, it is read or an error of ours; in an archive it is found."""
    data, whole = (OLD / name).read_bytes(), content(OLD / name)
    rng = random.Random(3)
    places = [rng.randrange(len(data)) for _ in range(150)] + [rng.randrange(2000) for _ in range(100)]
    path = tmp_path / name
    for number, place in enumerate(places):
        bent = bytearray(data)
        bent[place] ^= 1 << rng.randrange(8)
        path.write_bytes(bent)
        found, said = tell(lambda: content(path))
        assert found is None or name != "model.keras" or found == whole, place
        assert found is not None or str(path) in said, (place, number)
        tried("hostile")


@pytest.mark.parametrize("size", [0, 7, 100, 2000, 20_000])
@pytest.mark.parametrize("name", ["weights.h5", "whole.h5", "model.keras", "new.weights.h5"])
def test_cut_files_of_keras(tmp_path, name, size, tried):
    """A file of Keras' that was cut is refused with its name, and no run is made."""
    path = tmp_path / name
    path.write_bytes((OLD / name).read_bytes()[: size if size < 20_000 else -10])
    outcome = attack(path, tmp_path, memory=64 * MEGABYTE)
    assert outcome.error == "FormatError", outcome.message
    assert str(path) in outcome.message
    tried("hostile")


def test_a_hole_of_ten_terabytes_called_hdf5(tmp_path, tried):
    """A hole of ten terabytes behind the first bytes of an HDF5 file is refused."""
    path = tmp_path / "model.weights.h5"
    sparse(path, 10 << 40)
    with open(path, "r+b") as file:
        file.write(b"\x89HDF\r\n\x1a\n")
    outcome = attack(path, tmp_path, memory=32 * MEGABYTE)
    assert outcome.error == "FormatError"
    tried("hostile")


# -- .keras archives ---------------------------------------------------------------------------------------


LAMBDA = {
    "module": "keras.layers",
    "class_name": "Lambda",
    "config": {"function": {"class_name": "__lambda__", "config": {"code": "4wAAAAAAAAAA"}}},
}


def with_code_in_its_config(path, data, mark):
    config = {
        "module": "os",
        "class_name": "system",
        "config": {"command": f"touch {mark}"},
        "layers": [LAMBDA],
    }
    entries = [
        ("config.json", json.dumps(config).encode()),
        ("metadata.json", b"{}"),
        ("model.weights.h5", data),
    ]
    zipped(path, zipfile.ZIP_STORED, entries)


def test_the_structure_in_an_archive_is_not_built(tmp_path, tried):
    """Lambdas, classes and modules that a .keras archive names are text: the weights come in, and nothing runs."""
    path, mark = tmp_path / "model.keras", tmp_path / "exploded"
    with zipfile.ZipFile(OLD / "model.keras") as archive:
        with_code_in_its_config(path, archive.read("model.weights.h5"), mark)
    outcome = attack(path, tmp_path, memory=96 * MEGABYTE)
    assert outcome.error is None, outcome.message
    assert not mark.exists()
    tried("hostile")


def packed(path, data):
    zipped(path, zipfile.ZIP_DEFLATED, [("model.weights.h5", data)])


def a_bomb(path, _):
    zipped(path, zipfile.ZIP_DEFLATED, [("model.weights.h5", b"\0" * (200 << 20))])


def twice(path, data):
    with pytest.warns(UserWarning, match="Duplicate name"):
        zipped(path, zipfile.ZIP_STORED, [("model.weights.h5", data), ("model.weights.h5", data)])


def paths_as_names(path, data):
    zipped(path, zipfile.ZIP_STORED, [("../../model.weights.h5", data), ("/etc/cron.d/x", b"x")])


def weights_elsewhere(path, data):
    zipped(path, zipfile.ZIP_STORED, [("model.weights.h5", data)])
    bent = bytearray(path.read_bytes())
    place = bent.find(b"PK\x01\x02")
    bent[place + 42 : place + 46] = struct.pack("<I", 5)  # where its own header is said to be
    path.write_bytes(bent)


def larger_than_itself(path, data):
    zipped(path, zipfile.ZIP_STORED, [("model.weights.h5", data)])
    bent = bytearray(path.read_bytes())
    place = bent.find(b"PK\x01\x02")
    bent[place + 20 : place + 28] = b"\xfe\xff\xff\xff" * 2
    path.write_bytes(bent)


def many_members(path, data):
    zipped(
        path, zipfile.ZIP_STORED, [("model.weights.h5", data), *((f"assets/{n}", b"") for n in range(11_000))]
    )


def npz_inside(path, _):
    zipped(path, zipfile.ZIP_STORED, [("model.weights.npz", b"PK\x03\x04"), ("config.json", b"{}")])


ARCHIVES = [
    packed, a_bomb, twice, paths_as_names, weights_elsewhere, larger_than_itself, many_members, npz_inside,
]  # fmt: skip


@pytest.mark.parametrize("maker", ARCHIVES, ids=lambda maker: maker.__name__)
def test_archives_of_keras(tmp_path, maker, tried):
    """An archive that is packed, lies about its entries, or has none or two weights, is refused unpacked."""
    path = tmp_path / "model.keras"
    with zipfile.ZipFile(OLD / "model.keras") as archive:
        maker(path, archive.read("model.weights.h5"))
    outcome = attack(path, tmp_path, memory=64 * MEGABYTE)
    assert outcome.error in ("FormatError", "DamagedError"), outcome.message
    assert str(path) in outcome.message
    assert not (tmp_path / "run").exists()
    tried("hostile")


# -- TensorFlow's checkpoints ------------------------------------------------------------------------------


def bundle(folder):
    for file in (OLD / "tf").iterdir():
        shutil.copy(file, folder / file.name)
    return folder / "cp-0002.ckpt"


@pytest.mark.parametrize("suffix", ["index", "data-00000-of-00001"])
def test_every_bit_of_a_checkpoint_of_tensorflow(tmp_path, suffix, tried):
    """A flipped bit anywhere in an index is found, and one in an array that is read: never another value."""
    prefix = bundle(tmp_path)
    whole = arrays(prefix)
    path = tmp_path / f"cp-0002.ckpt.{suffix}"
    data = path.read_bytes()
    rng = random.Random(1)
    places = range(len(data)) if suffix == "index" else rng.sample(range(len(data)), 700)
    for place in places:
        bent = bytearray(data)
        bent[place] ^= 1 << rng.randrange(8)
        path.write_bytes(bent)
        found, said = tell(lambda: arrays(prefix))
        assert found in (None, whole), place
        assert found is not None or str(prefix) in said
        tried("bits")


def varint(number):
    out = bytearray()
    while number > 127:
        out.append(number & 127 | 128)
        number >>= 7
    return bytes([*out, number])


def field(number, value):
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    return varint(number << 3 | 2) + varint(len(value)) + value


def entry(extents=(2,), size=8, *, dtype=1, shard=0, start=0, more=b""):
    shape = b"".join(field(2, field(1, extent)) for extent in extents)
    numbers = field(3, shard) + field(4, start) + field(5, size)
    return field(1, dtype) + field(2, shape) + numbers + varint(6 << 3 | 5) + struct.pack("<I", 7) + more


def table(rows):
    """An index as TensorFlow writes it, with all checksums right."""

    def block(pairs):
        data = b"".join(varint(0) + varint(len(k)) + varint(len(v)) + k + v for k, v in pairs)
        data += struct.pack("<II", 0, 1)
        return data + b"\0" + struct.pack("<I", crc32c.masked(data + b"\0"))

    first = block(rows)
    handle = varint(0) + varint(len(first) - 5)
    second = block([(b"zz", handle)])
    place = varint(len(first)) + varint(len(second) - 5)
    end = (varint(0) + varint(0) + place).ljust(40, b"\0") + struct.pack("<Q", 0xDB4775248B80FB57)
    return first + second + end


HEADER = (b"", field(1, 1) + field(3, field(1, 1)))
NAME = b"a/kernel/.ATTRIBUTES/VARIABLE_VALUE"
INDICES = {
    "a shape of 2^60": table([HEADER, (NAME, entry((1 << 40, 1 << 20)))]),
    "a negative extent": table([HEADER, (NAME, entry(((1 << 64) - 1,)))]),
    "a thousand dimensions": table([HEADER, (NAME, entry((1,) * 1000, 4))]),
    "beyond the file": table([HEADER, (NAME, entry((1 << 30,), 1 << 32))]),
    "starting beyond the file": table([HEADER, (NAME, entry(start=1 << 62))]),
    "another size than its shape": table([HEADER, (NAME, entry((2,), 800))]),
    "an unknown dtype": table([HEADER, (NAME, entry(dtype=99))]),
    "a shard that is none": table([HEADER, (NAME, entry(shard=5))]),
    "slices": table([HEADER, (NAME, entry(more=field(7, b"")))]),
    "no header": table([(NAME, entry())]),
    "a header of a million shards": table([(b"", field(1, 1_000_000)), (NAME, entry())]),
    "no arrays": table([HEADER]),
    "names that are no text": table([HEADER, (b"\xff\xfe", entry())]),
    "names that steer": table([HEADER, (b"\x1b]0;x\x07/.ATTRIBUTES/VARIABLE_VALUE", entry((1 << 40,)))]),
    "a path as a name": table([HEADER, (b"../../x/.ATTRIBUTES/VARIABLE_VALUE", entry((1 << 40,)))]),
    "a group that does not end": table([HEADER, (NAME, varint(1 << 3 | 3))]),
    "a number without end": table([HEADER, (NAME, b"\xff" * 30)]),
    "an index of a graph": table([HEADER, (b"dense/kernel", entry())]),
    "nothing": b"",
    "zeros": bytes(5000),
    "the end alone": table([HEADER])[-48:],
}


@pytest.mark.parametrize("name", INDICES)
def test_indices_of_tensorflow(tmp_path, name, tried):
    """An index whose checksums are right and whose content is not is refused by name, before memory is taken."""
    prefix = tmp_path / "cp"
    (tmp_path / "cp.index").write_bytes(INDICES[name])
    (tmp_path / "cp.data-00000-of-00001").write_bytes(bytes(8))
    outcome = attack(prefix, tmp_path, memory=64 * MEGABYTE)
    assert outcome.error in ("FormatError", "DamagedError", "UsageError"), outcome.message
    assert str(prefix) in outcome.message
    assert not (tmp_path / "run").exists()
    tried("hostile")


def test_a_checkpoint_of_tensorflow_without_its_data(tmp_path, tried):
    """A data file that is missing, cut or a link is named, and no run is made."""
    prefix = bundle(tmp_path)
    data = tmp_path / "cp-0002.ckpt.data-00000-of-00001"
    whole = data.read_bytes()
    for what in ("cut", "link", "missing"):
        data.unlink()
        if what == "cut":
            data.write_bytes(whole[:100])
        elif what == "link":
            (tmp_path / "elsewhere").write_bytes(whole)
            data.symlink_to(tmp_path / "elsewhere")
        outcome = attack(prefix, tmp_path, memory=64 * MEGABYTE)
        assert outcome.error in ("DamagedError", "FormatError"), (what, outcome.message)
        assert data.name in outcome.message
        tried("hostile")
        data.unlink(missing_ok=True)
        data.write_bytes(whole)
