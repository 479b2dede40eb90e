"""A file that some other tool wrote, read as far as it can be believed, without running its code."""

from __future__ import annotations

import contextlib
import io
import os
import re
import stat
import struct
import zipfile
from collections.abc import Callable, Iterator
from typing import Any

from holdfast import files
from holdfast.errors import (
    DamagedError,
    FormatError,
    MismatchError,
    NotFoundError,
    UntrustedError,
)
from holdfast.exchange import extent
from holdfast.format import safetensors

_SAFETENSORS = ".safetensors"
_HDF5, _ZIP, _LEGACY = b"\x89HDF\r\n\x1a\n", b"PK\x03\x04", b"\x80"
# What Python raises over an archive whose lists say what cannot be (RuntimeError: a password).
_MALFORMED = (EOFError, ValueError, RuntimeError, OverflowError, struct.error)
_BYTEARRAY = re.compile(rb"c(?:__builtin__|builtins)\nbytearray\n")
_PICKLED_GLOBAL = re.compile(r"GLOBAL (\S+) was not an allowed")


def read(path: str, *, trust: bool) -> Any:
    """The content of a torch file, or of a safetensors file (a mapping of names to payload arrays).

    Tensors of torch files are mapped where that is possible; do not change it meanwhile.

    Raises:
        NotFoundError: there is no such file.
        FormatError: it is something else, or was cut; the message says what it looks like.
        DamagedError: its own checksums tell that bytes changed.
        UntrustedError: to read it would run code; the message names it.
        MismatchError: with `trust`, a class in it cannot be imported.

    """
    first = head(path)
    if path.endswith(_SAFETENSORS) or (first[8:9] == b"{" and first[5:8] == bytes(3)):
        return _read_safetensors(path)
    if first.startswith(_ZIP):
        _check_archive(path)
    elif not first.startswith(_LEGACY):
        raise FormatError(
            f"{path} is no file of torch.save and no safetensors file: {guess(first)}.", path=path
        )
    return _read_torch(path, trust=trust, archive=first.startswith(_ZIP))


def head(path: str) -> bytes:
    """The first bytes of a file; a directory, or what is no file, is refused with what to do."""
    if os.path.isdir(path):
        raise FormatError(
            f"{path} is a directory; what can be imported is one file (.pth, .pt, .ckpt, .bin, .safetensors, .weights.h5, "
            f".keras, .h5), or a TensorFlow checkpoint by its prefix. "
            f'Next: a Holdfast run or checkpoint needs no import: Run(…, init={{"model": {path!r}}}).',
            path=path,
        )
    if not os.path.exists(path):
        raise NotFoundError(f"There is no file {path}.", path=path, candidates=[])
    with opened(path) as file:
        return file.read(512)


@contextlib.contextmanager
def opened(path: str) -> Iterator[io.BufferedReader]:
    """A regular file; opening a pipe or a device does not wait for somebody at its other end."""
    with files.translated(path, "read"):
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        with os.fdopen(fd, "rb") as file:
            if not stat.S_ISREG(os.fstat(fd).st_mode):
                raise FormatError(f"{path} is no regular file; what can be imported is one file.", path=path)
            yield file


def guess(head: bytes) -> str:
    """What a file is that nobody here reads, in a few words."""
    text = head.lstrip().lower()
    if not head:
        return "it is empty"
    if head.startswith(_HDF5):
        return "it is an HDF5 file"
    if text.startswith(b"version https://git-lfs"):
        return "it is a Git LFS pointer. Next: git lfs pull"
    if text.startswith((b"<!doctype", b"<html", b"<?xml")):
        return "it is a web page, so its download went wrong. Next: download it again"
    return f"it begins with {head[:16]!r}"


# -- safetensors ---------------------------------------------------------------------------


def _read_safetensors(path: str) -> dict[str, Any]:
    from holdfast.payload.array import LazyArray

    with opened(path) as file:
        size = os.fstat(file.fileno()).st_size
        prefix = file.read(8)
        length = safetensors.header_size(prefix, size, path)
        entries = safetensors.parse_header(prefix + file.read(length - 8), size, path)

    def reads(start: int, stop: int) -> Callable[[], Any]:
        return lambda: _read_bytes(path, start, stop)

    return {
        name: LazyArray(entry.dtype, entry.shape, entry.stop - entry.start, reads(entry.start, entry.stop))
        for name, entry in entries.items()
    }


def _read_bytes(path: str, start: int, stop: int) -> Any:
    """An array's bytes, read and not mapped: a file that gets shorter meanwhile is an error, not the end."""
    import numpy as np

    data = np.empty(stop - start, np.uint8)
    with opened(path) as file:
        file.seek(start)
        if file.readinto(data.data) != len(data):
            raise DamagedError(
                f"{path} became shorter while it was read. Nothing was imported. Next: copy it again.",
                path=path,
                file=os.path.basename(path),
                block=None,
                arrays=[],
                expected=stop,
                found=os.fstat(file.fileno()).st_size,
            )
    return data


# -- torch files ---------------------------------------------------------------------------


def _check_archive(path: str) -> None:
    """Looks into the ZIP archive, and compares the checksums that torch.load itself does not look at."""
    try:
        with opened(path) as file, zipfile.ZipFile(file) as archive:
            size = os.fstat(file.fileno()).st_size
            members = archive.infolist()
            packed = [member for member in members if member.compress_type != zipfile.ZIP_STORED]
            if packed or sum(member.file_size for member in members) > size:
                raise FormatError(
                    f"{path} is a ZIP archive, but torch.save did not make it: "
                    f"{f'{packed[0].filename} is compressed' if packed else 'its entries are larger than itself'}. "
                    f"Nothing was unpacked.",
                    path=path,
                )
            names = {name.partition("/")[2] for name in archive.namelist()}
            if "data.pkl" not in names:
                raise FormatError(
                    f"{path} is a ZIP archive, but torch.save did not make it: it holds "
                    f"{', '.join(sorted(archive.namelist())[:5])}, …",
                    path=path,
                )
            if "constants.pkl" in names:
                raise FormatError(
                    f"{path} is a TorchScript archive (torch.jit.save): a program, not a state. Next: "
                    f"torch.save(torch.jit.load(path).state_dict(), …), and import that.",
                    path=path,
                )
            broken = [member.filename for member in members if not _whole(archive, member)]
    except (zipfile.BadZipFile, *_MALFORMED) as error:
        raise FormatError(
            f"{path} begins like a file of torch.save but is cut or damaged: {error}. Next: copy it again.",
            path=path,
        ) from error
    # torch can be told to write no checksums; then none of them fits.
    if broken and len(broken) < len(members):
        raise DamagedError(
            f"{path} is damaged: the checksum of {', '.join(broken[:5])} in it is wrong (torch.load does not look at "
            f"it). Nothing was imported. Next: copy it again.",
            path=path,
            file=os.path.basename(path),
            block=None,
            arrays=broken,
            expected=None,
            found=None,
        )


def _whole(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> bool:
    try:
        with archive.open(member) as file:
            while file.read(1 << 20):
                pass
    except (zipfile.BadZipFile, *_MALFORMED):
        return False
    return True


def _refuse_bytearrays(path: str) -> None:
    """Torch's careful reader lets a pickle make a bytearray of any size, and fills it with zeros at once."""
    window = b""
    with opened(path) as file:
        while piece := file.read(1 << 20):
            window = window[-64:] + piece
            if b"bytearray\n" in window and _BYTEARRAY.search(window):
                raise UntrustedError(
                    f"{path} makes a bytearray, which may be larger than all memory; nothing was read. Next: if you "
                    f"trust whoever made it, use trust=True (--trust); or save it again with bytes or a tensor.",
                    path=path,
                    names=["builtins.bytearray"],
                )


def _read_torch(path: str, *, trust: bool, archive: bool) -> Any:
    import pickle

    import torch

    if not trust:
        _refuse_bytearrays(path)
    try:
        with _harmless(torch):
            content = torch.load(path, map_location="cpu", mmap=archive, weights_only=not trust)
        if not trust:
            extent.check(content, path, os.stat(path).st_size)
        return content
    except pickle.UnpicklingError as error:
        found = _PICKLED_GLOBAL.findall(str(error))
        if trust or not found:
            raise _unreadable(path, error) from error
        raise _untrusted(path, _code_in(torch, path, archive=archive) or found) from error
    except (AttributeError, ImportError) as error:
        raise _unimportable(path, error) from error
    except (
        RuntimeError, ValueError, KeyError, IndexError, TypeError, EOFError, MemoryError, OverflowError, struct.error,
    ) as error:  # fmt: skip
        raise _unreadable(path, error) from error


def _code_in(torch: Any, path: str, *, archive: bool) -> list[str]:
    """All that an archive names and that is not known to be harmless."""
    if not archive or not hasattr(torch.serialization, "get_unsafe_globals_in_checkpoint"):
        return []
    with _harmless(torch):
        return sorted(torch.serialization.get_unsafe_globals_in_checkpoint(path))


@contextlib.contextmanager
def _harmless(torch: Any) -> Iterator[None]:
    """In the block, NumPy's numbers and a script's arguments are no code: they often lie beside weights."""
    import argparse
    import types

    import numpy as np

    if not hasattr(torch.serialization, "safe_globals"):
        yield
        return
    scalar = np.float64(0).__reduce__()[0]
    rebuild = np.zeros(1).__reduce__()[0]
    kinds = {type(np.dtype(code)) for code in "?bBhHiIlLqQefdFD"}
    old = [
        (scalar, "numpy.core.multiarray.scalar"),
        (rebuild, "numpy.core.multiarray._reconstruct"),
        (scalar, "numpy._core.multiarray.scalar"),
        (rebuild, "numpy._core.multiarray._reconstruct"),
    ]
    known = [*old, np.ndarray, np.dtype, *kinds, argparse.Namespace, types.SimpleNamespace]
    with torch.serialization.safe_globals(known):
        yield


def _untrusted(path: str, found: list[str]) -> UntrustedError:
    return UntrustedError(
        f"{path} cannot be read without running code that it names: {', '.join(found[:10])}"
        f"{', …' if len(found) > 10 else ''}. Nothing was run. Next: if you trust whoever made it, use trust=True "
        f"(--trust); or save it again with state_dicts, numbers and strings only.",
        path=path,
        names=found,
    )


def _unimportable(path: str, error: Exception) -> MismatchError:
    return MismatchError(
        f"{path} holds objects of a class that cannot be imported here: {error}. Next: put the folder with that "
        f"code on PYTHONPATH. If the class is in __main__, it was defined in the training script itself: there, "
        f"save net.state_dict() instead of the network, and import that.",
        path=path,
        missing=[str(error)],
        unexpected=[],
        different=[],
    )


def _unreadable(path: str, error: Exception) -> FormatError:
    reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    if "weights only load failed" in reason.lower():
        # torch's advice is to run the code in it; what is wrong stands behind that.
        reason = str(error).partition("WeightsUnpickler error:")[2].strip().splitlines()[:1]  # type: ignore[assignment]
        reason = reason[0] if reason else "it is no pickle that torch.save made"
    return FormatError(
        f"{path} is no file that torch.save wrote, or it was cut: {reason} Next: copy it again.", path=path
    )
