"""What a foreign file is, by its first bytes, and who reads it into parts."""

from __future__ import annotations

import io
import os
import zipfile

from holdfast.errors import FormatError
from holdfast.exchange import keras_files, source, tensor_bundle, tensorflow_files
from holdfast.exchange.sorting import Sorted, sort

HDF5, ZIP = b"\x89HDF\r\n\x1a\n", b"PK\x03\x04"


def read(path: str, *, trust: bool) -> Sorted:
    """The parts in a file of torch, safetensors or Keras, or in a TensorFlow checkpoint given by its prefix.

    Raises:
        NotFoundError, FormatError, DamagedError, UntrustedError, MismatchError: as the readers say.

    """
    if not os.path.isfile(path) or path.endswith(".index"):
        prefix = tensor_bundle.find_prefix(path)
        if prefix is not None:
            return tensorflow_files.read(prefix)
    head = source.head(path)
    if head.startswith(HDF5) or (head.startswith(ZIP) and _is_keras(path)):
        return keras_files.read(_open(path), path, archive=head.startswith(ZIP))
    if path.endswith((".keras", ".h5", ".hdf5")):
        raise FormatError(
            f"{path} is called as Keras calls its files, and is none: {source.guess(head)}.", path=path
        )
    return sort(source.read(path, trust=trust), path)


def _is_keras(path: str) -> bool:
    """Whether an archive is Keras' rather than torch's: by its suffix, or by what lies in it."""
    if path.endswith(".keras"):
        return True
    try:
        with source.opened(path) as file, zipfile.ZipFile(file) as archive:
            return keras_files.INSIDE in archive.namelist()
    except (zipfile.BadZipFile, OSError, *keras_files.MALFORMED):
        return False  # torch's reader says what is wrong with it


def _open(path: str) -> io.BufferedReader:
    with source.opened(path) as file:
        return open(os.dup(file.fileno()), "rb")
