"""The only door to the disk: what creates, syncs, renames or deletes goes through here.

Every change to the file system is one call of a method of `system`, so a test can count
them, stop the process at each, or make each fail. Nothing here retries a failed fsync: after
one, the kernel may have dropped the dirty pages, and a second call would report success.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import stat
import sys
from collections.abc import Iterator

from holdfast.errors import FormatError, NotFoundError, StorageError, storage_error

Path = str | os.PathLike[str]
Buffer = bytes | bytearray | memoryview

DIRECT_ALIGNMENT = 4096
_NO_DIRECTORY_SYNC = {errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EBADF}


class System:
    """The system calls that change something, one method each."""

    def open(self, path: Path, flags: int) -> int:
        return os.open(path, flags | os.O_CLOEXEC, 0o666)

    def pwrite(self, fd: int, data: Buffer, offset: int) -> int:
        return os.pwrite(fd, data, offset)

    def write(self, fd: int, data: Buffer) -> int:
        return os.write(fd, data)

    def truncate(self, fd: int, size: int) -> None:
        os.ftruncate(fd, size)

    def fsync(self, fd: int) -> None:
        if sys.platform == "darwin":
            import fcntl

            fcntl.fcntl(fd, fcntl.F_FULLFSYNC)
        else:
            os.fsync(fd)

    def mkdir(self, path: Path) -> None:
        os.mkdir(path)

    def rename(self, source: Path, target: Path) -> None:
        os.rename(source, target)

    def exchange(self, one: Path, other: Path) -> None:
        _exchange(os.fsencode(one), os.fsencode(other))

    def unlink(self, path: Path) -> None:
        os.unlink(path)

    def rmdir(self, path: Path) -> None:
        os.rmdir(path)

    def symlink(self, target: str, path: Path) -> None:
        os.symlink(target, path)


system = System()


@contextlib.contextmanager
def translated(path: Path, operation: str) -> Iterator[None]:
    """Turns an `OSError` of the block into a `StorageError` that names path and operation."""
    try:
        yield
    except StorageError:
        raise
    except OSError as error:
        raise storage_error(error, path, operation) from error


# -- directories ---------------------------------------------------------------------------


def make_directory(path: Path) -> None:
    """Creates `path` and its missing parents; each new name is durable when this returns."""
    path = os.path.abspath(path)
    missing: list[str] = []
    while not os.path.isdir(path):
        missing.append(path)
        parent = os.path.dirname(path)
        if parent == path:
            break
        path = parent
    for directory in reversed(missing):
        with translated(directory, "create the directory"):
            with contextlib.suppress(FileExistsError):
                system.mkdir(directory)
            if not os.path.isdir(directory):
                raise NotADirectoryError(errno.ENOTDIR, "a file of that name is in the way", directory)
        sync_directory(os.path.dirname(directory))


def make_new_directory(path: Path) -> None:
    """Creates one directory that must not exist yet (the caller syncs its parent)."""
    with translated(path, "create the directory"):
        system.mkdir(path)


def sync_directory(path: Path) -> bool:
    """Makes the names in a directory durable. False where the file system has no such call."""
    with translated(path, "open the directory"):
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        system.fsync(fd)
    except OSError as error:
        if error.errno in _NO_DIRECTORY_SYNC:
            return False
        raise storage_error(error, path, "sync the directory") from error
    finally:
        os.close(fd)
    return True


def remove_tree(path: Path) -> None:
    """Deletes a directory with all that is in it; what is already gone is not an error.

    Symbolic links are removed, never followed.
    """
    with translated(path, "delete"):
        if os.path.islink(path):
            _forget(path)
            return
        try:
            entries = list(os.scandir(path))
        except FileNotFoundError:
            return
        except NotADirectoryError:
            _forget(path)
            return
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                remove_tree(entry.path)
            else:
                _forget(entry.path)
        with contextlib.suppress(FileNotFoundError):
            system.rmdir(path)


def remove_file(path: Path) -> None:
    """Deletes a file; one that is already gone is not an error."""
    with translated(path, "delete"):
        _forget(path)


def _forget(path: Path) -> None:
    with contextlib.suppress(FileNotFoundError):
        system.unlink(path)


# -- small files ---------------------------------------------------------------------------


def create_file(path: Path, data: bytes, *, sync: bool = True) -> None:
    """Writes a new file; an existing one is an error (`StorageError` with EEXIST)."""
    with translated(path, "write"):
        fd = system.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
        try:
            _write_all(fd, data)
            if sync:
                system.fsync(fd)
        finally:
            os.close(fd)


def append(path: Path, data: bytes) -> None:
    """Appends in one call; not synced, since nothing is decided from what is appended."""
    with translated(path, "append to"):
        fd = system.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        try:
            _write_all(fd, data)
        finally:
            os.close(fd)


def _write_all(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[system.write(fd, view) :]


def rename(source: Path, target: Path) -> None:
    """Moves within a file system, atomically. The error is the system's own: callers read it."""
    system.rename(source, target)


def exchange(one: Path, other: Path) -> None:
    """Swaps two names atomically; `OSError` (ENOSYS, EINVAL) where the system cannot."""
    system.exchange(one, other)


def point_link(path: Path, target: str, scratch: Path) -> None:
    """Makes `path` a symbolic link to `target`, replacing an older link atomically."""
    with translated(path, "link"):
        _forget(scratch)
        system.symlink(target, scratch)
        system.rename(scratch, path)


def read_file(path: Path, limit: int) -> bytes:
    """A regular file's bytes. Links are not followed; more than `limit` bytes is a `FormatError`."""
    fd = open_for_reading(path)
    try:
        with translated(path, "read"):
            size = os.fstat(fd).st_size
            if size > limit:
                raise FormatError(
                    f"{os.fspath(path)} has {size:,} bytes; such a file has at most {limit:,}.",
                    path=os.fspath(path),
                    expected=limit,
                    found=size,
                )
            pieces = []
            while piece := os.read(fd, max(1, min(size + 1, 1 << 24))):
                pieces.append(piece)
            return b"".join(pieces)
    finally:
        os.close(fd)


def open_for_reading(path: Path) -> int:
    """A descriptor of a regular file; a link, a pipe or a directory is a `FormatError`."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except FileNotFoundError as error:
        raise NotFoundError(f"There is no file {os.fspath(path)}.", path=os.fspath(path)) from error
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.EMLINK):
            raise FormatError(
                f"{os.fspath(path)} is a symbolic link; a checkpoint holds only regular files.",
                path=os.fspath(path),
            ) from error
        raise storage_error(error, path, "open") from error
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise FormatError(
            f"{os.fspath(path)} is not a regular file; a checkpoint holds only regular files.",
            path=os.fspath(path),
        )
    return fd


class BeatFile:
    """A small file that its writer rewrites through one descriptor, whatever happens to its name."""

    def __init__(self, path: Path, data: bytes) -> None:
        self.path = os.fspath(path)
        with translated(path, "create"):
            self._fd = system.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL)
            try:
                _write_all(self._fd, data)
                system.fsync(self._fd)
            except OSError:
                os.close(self._fd)
                # This call made it, so it may go: an empty one would look like a writer's.
                with contextlib.suppress(OSError):
                    _forget(path)
                raise

    def rewrite(self, data: bytes, *, sync: bool = False) -> None:
        """Replaces the content; a reader may see a mixture, so `data` keeps one length."""
        with translated(self.path, "write"):
            system.pwrite(self._fd, data, 0)
            system.truncate(self._fd, len(data))
            if sync:
                system.fsync(self._fd)

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


# -- payload files -------------------------------------------------------------------------


class PayloadFile:
    """A new file of known size, written block by block, from several threads at once.

    `direct` asks for O_DIRECT; then every buffer starts at a multiple of 4096 bytes in memory
    and in the file, and is padded to one: `finish` cuts the padding off.
    """

    def __init__(self, path: Path, size: int, *, direct: bool) -> None:
        self.path, self.size, self.direct = os.fspath(path), size, direct
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL
        with translated(path, "create"):
            self._fd = system.open(path, flags | os.O_DIRECT if direct else flags)

    def write(self, data: memoryview, offset: int) -> None:
        with translated(self.path, "write"):
            while data:
                done = system.pwrite(self._fd, data, offset)
                offset += done
                data = data[done:]
                if data and self.direct and done % DIRECT_ALIGNMENT:
                    self._leave_direct()

    def _leave_direct(self) -> None:
        # A short write left us off the alignment; the rest goes through the page cache.
        import fcntl

        fcntl.fcntl(self._fd, fcntl.F_SETFL, fcntl.fcntl(self._fd, fcntl.F_GETFL) & ~os.O_DIRECT)
        self.direct = False

    def finish(self) -> None:
        """Cuts the padding off and makes the data durable."""
        with translated(self.path, "sync"):
            system.truncate(self._fd, self.size)
            system.fsync(self._fd)

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


_direct_by_device: dict[int, bool] = {}


def direct_io_works(directory: Path) -> bool:
    """Whether the file system of `directory` takes O_DIRECT writes: tried once per file system."""
    if not hasattr(os, "O_DIRECT"):
        return False
    with translated(directory, "look at"):
        device = os.stat(directory).st_dev
    known = _direct_by_device.get(device)
    if known is None:
        known = _direct_by_device[device] = _try_direct(os.path.join(directory, ".direct-io"))
    return known


def _try_direct(path: str) -> bool:
    import mmap

    try:
        fd = system.open(path, os.O_WRONLY | os.O_CREAT | os.O_DIRECT)
    except OSError:
        with contextlib.suppress(OSError):
            _forget(path)
        return False
    try:
        with mmap.mmap(-1, DIRECT_ALIGNMENT) as page, memoryview(page) as view:
            return system.pwrite(fd, view, 0) == DIRECT_ALIGNMENT
    except OSError:
        return False
    finally:
        os.close(fd)
        with contextlib.suppress(OSError):
            _forget(path)


_AT_FDCWD = -100
_RENAME_EXCHANGE = 2


def _exchange(one: bytes, other: bytes) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if not hasattr(libc, "renameat2"):
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
    if libc.renameat2(_AT_FDCWD, one, _AT_FDCWD, other, _RENAME_EXCHANGE) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))


# -- files that other writers fill ---------------------------------------------------------------


class StreamFile:
    """A new file for code that wants something with `write`, such as torch.save.

    The first failure is kept in `failure`, and what comes after it is swallowed: writers in other
    languages try again while they unwind, and end the process when that fails too.
    """

    def __init__(self, path: Path) -> None:
        self.path = os.fspath(path)
        self.failure: OSError | None = None
        with translated(path, "create"):
            self._fd = system.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL)

    def write(self, data: Buffer) -> int:
        view = memoryview(data).cast("B")
        size = len(view)
        if self.failure is None:
            try:
                while view:
                    view = view[system.write(self._fd, view) :]
            except OSError as error:
                self.failure = error
                raise
        return size

    def flush(self) -> None:
        """Nothing is held back here."""

    def finish(self) -> None:
        """Makes the data durable; raises the first failure, whatever became of it meanwhile."""
        with translated(self.path, "write"):
            if self.failure is not None:
                raise self.failure
            system.fsync(self._fd)

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
