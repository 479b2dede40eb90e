"""Files of Keras 2 and 3 (.weights.h5, .keras, .h5, .hdf5): their arrays as parts. No code in them runs.

A model's structure is text beside the weights and is never made into layers here, so nothing that
it names is imported or called, lambdas least of all.
"""

from __future__ import annotations

import io
import json
import os
import zipfile
from typing import Any

from holdfast.errors import DamagedError, FormatError
from holdfast.exchange.hdf5 import Tree, import_h5py, reading
from holdfast.exchange.sorting import Sorted
from holdfast.payload.array import Array

WEIGHTS, LEGACY = "keras.Weights", "keras.LegacyWeights"
OPTIMIZER, LEGACY_OPTIMIZER = "keras.OptimizerState", "keras.LegacyOptimizerState"
INSIDE = "model.weights.h5"
MARK = "holdfast"
"""Under this name a file of Keras' says when and as what Holdfast's callback saved it."""
TOP = "top_level_model_weights"
_MOST_MEMBERS = 10_000
MALFORMED = (EOFError, ValueError, RuntimeError, OverflowError, KeyError, NotImplementedError)


def read(file: io.BufferedReader, path: str, *, archive: bool) -> Sorted:
    """The parts of a Keras file that is open already, and stays open while its arrays are read.

    Args:
        file: the open file.
        path: for messages.
        archive: whether it is a ZIP archive (.keras) rather than an HDF5 file.

    Raises:
        FormatError: it is no such file, or points elsewhere, or claims what it does not hold.
        DamagedError: a checksum of the archive tells that bytes changed.

    """
    whole = (0, os.fstat(file.fileno()).st_size, b"")
    start, size, comment = _find_weights(file, path) if archive else whole
    tree = Tree(file, start, size, path)
    legacy = next((group for group in ("model_weights", "") if _is_legacy(tree, group)), None)
    found = _sort_paths(tree) if legacy is None else _sort_layers(tree, legacy)
    _take_record(_comment(comment) if archive else tree.json("", MARK), found)
    if not found.parts:
        listing = ", ".join(list(tree.arrays)[:20]) or "none"
        raise FormatError(
            f"{path} holds no weights of a Keras model. Its arrays are: {listing}.",
            path=path,
            found=list(tree.arrays)[:20],
        )
    return found


def _comment(comment: bytes) -> Any:
    """What Holdfast's own callback says in the comment of an archive; None where another wrote one."""
    mark, _, text = comment.partition(b" ")
    if mark != MARK.encode():
        return None
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _take_record(record: Any, found: Sorted) -> None:
    """What Holdfast's own callback writes into such a file beside the weights: epoch and metrics."""
    if not isinstance(record, dict):
        return
    epoch, metrics = record.get("epoch"), record.get("metrics")
    if type(epoch) is int and 0 < epoch < 10**17:
        found.epoch = epoch
        found.lines.append(f"It says that {epoch} epochs were completed.")
    if isinstance(metrics, dict) and all(type(value) is float for value in metrics.values()):
        found.metrics = metrics


# -- .keras archives ---------------------------------------------------------------------------


def _find_weights(file: io.BufferedReader, path: str) -> tuple[int, int, bytes]:
    """Where in a .keras archive the weights lie; their checksum is compared on the way."""
    try:
        with zipfile.ZipFile(file) as archive:
            members = archive.infolist()
            if len(members) > _MOST_MEMBERS:
                raise FormatError(
                    f"{path} is an archive of {len(members):,} files, which Keras did not make.", path=path
                )
            inside = [member for member in members if member.filename == INSIDE]
            if len(inside) != 1:
                names = ", ".join(member.filename for member in members[:5])
                raise FormatError(
                    f"{path} is a ZIP archive, but no model that Keras saved: it has {len(inside) or 'no'} "
                    f"{INSIDE}. It holds: {names or 'nothing'}.",
                    path=path,
                )
            member = inside[0]
            size = os.fstat(file.fileno()).st_size
            if member.compress_type != zipfile.ZIP_STORED or member.file_size > size:
                raise FormatError(
                    f"{path} is a ZIP archive whose {INSIDE} is {'larger than itself' if member.file_size > size else 'packed'}; "
                    f"Keras stores it as it is. Nothing was unpacked. Next: unpack it, and import {INSIDE}.",
                    path=path,
                )
            if not _whole(archive, member):
                raise DamagedError(
                    f"{path} is damaged: the checksum of {INSIDE} in it is wrong. Nothing was imported. Next: copy it "
                    f"again.",
                    path=path,
                    file=os.path.basename(path),
                    block=None,
                    arrays=[],
                    expected=member.CRC,
                    found=None,
                )
            return _start_of(file, member, path), member.file_size, archive.comment
    except (zipfile.BadZipFile, *MALFORMED) as error:
        raise FormatError(
            f"{path} begins like a .keras archive but is cut or damaged: {error}. Next: copy it again.",
            path=path,
        ) from error


def _whole(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> bool:
    try:
        with archive.open(member) as stream:
            while stream.read(1 << 20):
                pass
    except zipfile.BadZipFile:
        return False
    return True


def _start_of(file: io.BufferedReader, member: zipfile.ZipInfo, path: str) -> int:
    """The first byte of a stored member: behind its own header, whose lengths are its own, too."""
    file.seek(member.header_offset)
    header = file.read(30)
    if header[:4] != b"PK\x03\x04":
        raise FormatError(
            f"{path}: there is no member at byte {member.header_offset:,} of the archive.", path=path
        )
    lengths = int.from_bytes(header[26:28], "little") + int.from_bytes(header[28:30], "little")
    return member.header_offset + 30 + lengths


# -- what lies where ----------------------------------------------------------------------------


def _sort_paths(tree: Tree) -> Sorted:
    """Keras 3 and late Keras 2: a group for each layer, by its place in the model."""
    found = Sorted()
    own: dict[str, Array] = {}
    optimizer: dict[str, Array] = {}
    counts = 0
    for name, array in tree.arrays.items():
        if name.startswith("metrics/"):  # what Keras 2 kept of the last epoch's sums
            counts += 1
        elif name.startswith("optimizer/"):
            optimizer[name] = array
        else:
            # Keras 2.13 alone called the layers so.
            own[name.replace("_layer_checkpoint_dependencies/", "layers/")] = array
    if counts:
        found.left_out.append(f"{counts} sums and counts of metrics, which begin anew in each epoch.")
    if own:
        found.add("model", own, WEIGHTS, f"The weights ({len(own)} arrays)")
    if optimizer:
        found.add("optimizer", optimizer, OPTIMIZER, f"The state of the optimizer ({len(optimizer)} arrays)")
        _note_iterations(optimizer.get("optimizer/vars/0"), found)
    return found


def _is_legacy(tree: Tree, group: str) -> bool:
    return group in tree.groups and tree.texts(group, "layer_names") is not None


def _sort_layers(tree: Tree, group: str) -> Sorted:
    """Keras 2 (and ``model.save("….h5")`` of Keras 3): layers by name, listed in the model's order."""
    found = Sorted()
    start = f"{group}/" if group else ""
    weights: dict[str, Array] = {}
    layers = [*(tree.texts(group, "layer_names") or []), TOP]
    for layer in layers:
        place = f"{start}{layer}"
        if place not in tree.groups:
            if layer == TOP:
                continue
            raise _missing(tree, place)
        for name in tree.texts(place, "weight_names") or []:
            # What stands before the first slash is the layer, whatever it was called.
            own = f"{layer.replace('/', '.')}/{_plain_name(name).removeprefix(f'{layer}/')}"
            weights[_unused(own, weights)] = _array(tree, f"{place}/{name}")
    if weights:
        found.add(
            "model", weights, LEGACY, f"The weights ({len(weights)} arrays of {len(layers) - 1} layers)"
        )
    names = tree.texts("optimizer_weights", "weight_names") if "optimizer_weights" in tree.groups else None
    if names:
        state: dict[str, Array] = {}
        for name in names:
            state[_unused(_plain_name(name), state)] = _array(tree, f"optimizer_weights/{name}")
        found.add("optimizer", state, LEGACY_OPTIMIZER, f"The state of the optimizer ({len(state)} arrays)")
        _note_iterations(next(iter(state.values())), found)
    return found


def _plain_name(name: str) -> str:
    """``dense/kernel:0`` is an output of a graph that is gone; ``dense/kernel`` is the weight."""
    head, colon, tail = name.rpartition(":")
    return head if colon and tail.isdigit() else name


def _unused(name: str, taken: dict[str, Array]) -> str:
    number, found = 2, name
    while found in taken:
        found, number = f"{name}_{number}", number + 1
    return found


def _array(tree: Tree, place: str) -> Array:
    if place not in tree.arrays:
        raise _missing(tree, place)
    return tree.arrays[place]


def _missing(tree: Tree, place: str) -> FormatError:
    return FormatError(
        f"{tree.path} lists {place!r} and does not hold it. Next: copy it again, or import an older one.",
        path=tree.path,
        found=place,
    )


def _note_iterations(array: Array | None, found: Sorted) -> None:
    """The first number of an optimizer's state is how many steps it made."""
    if array is None or array.dtype not in ("I32", "I64") or array.shape not in ((), (1,)):
        return
    steps = int.from_bytes(array.open().tobytes(), "little", signed=True)
    if 0 <= steps < 10**17:
        found.step = steps
        found.lines.append(f"The optimizer made {steps} steps, which was taken as the number of steps done.")


def write(file: str, arrays: list[tuple[str, str, Any]]) -> None:
    """Writes a new .weights.h5 file: (place, dtype, array) each, as Keras 3 would."""
    h5py = import_h5py(file)
    with reading(file), h5py.File(file, "w") as opened:
        for place, dtype, array in arrays:
            made = opened.create_dataset(place, data=array)
            if dtype == "BF16":
                made.attrs["dtype"] = "bfloat16"
