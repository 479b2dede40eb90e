"""The only door to the disk: what creates, syncs, renames or deletes goes through here.

Every change to the file system is one call of a method of `system`, so a test can count
them, stop the process at each, or make each fail. Nothing here retries a failed fsync: after
one, the kernel may have dropped the dirty pages, and a second call would report success.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import sys
from collections.abc import Iterator

from holdfast.errors import FormatError, NotFoundError, StorageError, storage_error

Path = str | os.PathLike[str]
Buffer = bytes | bytearray | memoryview

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
            # XFS answers 0 for a directory whose changes went with a log that was shut down; a look at the
            # inode fails then. See tests/crash/test_full_disks.py::test_nothing_is_synced_to_a_disk_that_is_gone.
            os.fstat(fd)

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
    """Creates `path` and its missing parents; when this returns, their names are durable.

    So are those of the folders that were there: a launch that was killed, or ``mkdir -p`` in a job
    script, may have made them a moment ago.
    """
    path = os.path.abspath(path)
    missing: list[str] = []
    while not os.path.isdir(path):
        missing.append(path)
        parent = os.path.dirname(path)
        if parent == path:
            break
        path = parent
    _settle(path)
    for directory in reversed(missing):
        with translated(directory, "create the directory"):
            with contextlib.suppress(FileExistsError):
                system.mkdir(directory)
            if not os.path.isdir(directory):
                raise NotADirectoryError(errno.ENOTDIR, "a file of that name is in the way", directory)
        sync_directory(os.path.dirname(directory))


_settled: set[tuple[str, int]] = set()  # folders whose names this process has synced, and all above them


def _settle(path: str) -> None:
    """Syncs the names of a folder and of those above it, up to the mount point; once per process."""
    path = os.path.realpath(path)
    seen = set()
    while True:
        with translated(path, "look at"):
            here, above = os.stat(path), os.stat(os.path.dirname(path))
        if (path, here.st_ino) in _settled:
            break
        seen.add((path, here.st_ino))
        if here.st_dev != above.st_dev or here.st_ino == above.st_ino:  # the root is its own parent
            break
        path = os.path.dirname(path)
        try:
            sync_directory(path)
        except StorageError as error:
            # Who may not read a folder cannot sync it.
            if error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS):
                raise
    _settled.update(seen)


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

    Symbolic links are removed, never followed. However deep it is, nothing here recurses.
    """
    waiting: list[tuple[str, bool]] = [(os.fspath(path), False)]  # and whether only the directory is left
    while waiting:
        top, emptied = waiting.pop()
        with translated(top, "delete"):
            if emptied:
                with contextlib.suppress(FileNotFoundError):
                    system.rmdir(top)
                continue
            inner = _empty(top)
            if inner is not None:
                waiting.append((top, True))
                waiting += [(directory, False) for directory in reversed(inner)]


def _empty(path: str) -> list[str] | None:
    """Deletes all but directories in a directory, and returns those; None for what is none, which goes too."""
    if os.path.islink(path):
        forget(path)
        return None
    try:
        entries = list(os.scandir(path))
    except FileNotFoundError:
        return None
    except NotADirectoryError:
        forget(path)
        return None
    inner = []
    for entry in entries:
        if entry.is_dir(follow_symlinks=False):
            inner.append(entry.path)
        else:
            forget(entry.path)
    return inner


def remove_empty_directory(path: Path) -> None:
    """Deletes a directory that must be empty; one that is already gone is not an error."""
    with translated(path, "delete"), contextlib.suppress(FileNotFoundError):
        system.rmdir(path)


def remove_file(path: Path) -> None:
    """Deletes a file; one that is already gone is not an error."""
    with translated(path, "delete"):
        forget(path)


def forget(path: Path) -> None:
    with contextlib.suppress(FileNotFoundError):
        system.unlink(path)


# -- small files ---------------------------------------------------------------------------


def create_file(path: Path, data: bytes, *, sync: bool = True) -> None:
    """Writes a new file; an existing one is an error (`StorageError` with EEXIST)."""
    with translated(path, "write"):
        fd = system.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
        try:
            write_all(fd, data)
            if sync:
                system.fsync(fd)
        except BaseException:
            # This call made it, so it may go: a mark that failed would count all the same.
            with contextlib.suppress(OSError):
                forget(path)
            raise
        finally:
            os.close(fd)


def sync_file(path: Path) -> None:
    """Makes a file durable that other code wrote by its name, and has closed."""
    fd = open_for_reading(path)
    try:
        with translated(path, "sync"):
            system.fsync(fd)
    finally:
        os.close(fd)


def append(path: Path, data: bytes) -> None:
    """Appends in one call; not synced, since nothing is decided from what is appended.

    A last line that a kill cut off is ended first, so that it does not swallow the next. Links are
    not followed, and a pipe that nobody reads is an error, not a wait.
    """
    with translated(path, "append to"):
        fd = system.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_NONBLOCK)
        try:
            status = os.fstat(fd)
            if not stat.S_ISREG(status.st_mode):
                raise OSError(errno.EINVAL, "it is no regular file")
            torn = status.st_size and os.pread(fd, 1, status.st_size - 1) != b"\n"
            write_all(fd, b"\n" + data if torn else data)
        finally:
            os.close(fd)


def write_all(fd: int, data: Buffer) -> None:
    view = memoryview(data).cast("B")
    while view:
        view = view[moved(system.write(fd, view)) :]


def moved(count: int) -> int:
    """The bytes that a call wrote. None is no error to the system, and trying for ever is no answer."""
    if count < 1:
        raise OSError(errno.EIO, "the system wrote nothing and gave no reason")
    return count


def rename(source: Path, target: Path) -> None:
    """Moves within a file system, atomically. The error is the system's own: callers read it."""
    system.rename(source, target)


def exchange(one: Path, other: Path) -> None:
    """Swaps two names atomically; `OSError` (ENOSYS, EINVAL) where the system cannot."""
    system.exchange(one, other)


def point_link(path: Path, target: str, scratch: Path) -> None:
    """Makes `path` a symbolic link to `target`, replacing an older link atomically."""
    with translated(path, "link"):
        forget(scratch)
        system.symlink(target, scratch)
        system.rename(scratch, path)


_SMALL = 1 << 16


def read_file(path: Path, limit: int, *, text: bool = False) -> bytes:
    """A regular file's bytes. Links are not followed; more than `limit` bytes is a `FormatError`.

    With `text`, so is a zero byte: a file of nothing but a hole costs no memory then.
    """
    fd = open_for_reading(path)
    try:
        # Most are small, and there are very many: they are not asked for their size first.
        first, more = os.read(fd, _SMALL), os.read(fd, 1)
        if not more and len(first) <= limit and not (text and b"\0" in first):
            return first
        return _read_on(fd, first + more, path, limit, text=text)
    except OSError as error:
        raise storage_error(error, path, "read") from error
    finally:
        os.close(fd)


def _read_on(fd: int, piece: bytes, path: Path, limit: int, *, text: bool) -> bytes:
    size = max(os.fstat(fd).st_size, len(piece))
    pieces: list[bytes] = []
    done = 0
    while size <= limit and piece:
        if text and b"\0" in piece:
            raise FormatError(
                f"{os.fspath(path)} is no text: byte {done + piece.index(0):,} is zero.",
                path=os.fspath(path),
            )
        pieces.append(piece)
        done += len(piece)
        size = max(size, done)  # somebody may be adding to it
        piece = os.read(fd, max(1, min(size + 1, 1 << 24)))
    if size > limit:
        raise FormatError(
            f"{os.fspath(path)} has {size:,} bytes; such a file has at most {limit:,}.",
            path=os.fspath(path),
            expected=limit,
            found=size,
        )
    return b"".join(pieces)


def read_lines(path: Path, limit: int, longest: int) -> Iterator[bytes]:
    """The whole lines among the last `limit` bytes of a regular file; those beyond `longest` are left out."""
    fd = open_for_reading(path)
    with translated(path, "read"), os.fdopen(fd, "rb") as file:
        skipping = file.seek(max(0, os.fstat(fd).st_size - limit)) > 0
        while line := file.readline(longest):
            ended = line.endswith(b"\n")
            if ended and not skipping:
                yield line
            skipping = not ended


def bytes_on_disk(directory: Path) -> int:
    """What the files of a directory take there; holes take nothing. What cannot be looked at is left out."""
    total = 0
    with contextlib.suppress(OSError), os.scandir(directory) as entries:
        for entry in entries:
            with contextlib.suppress(OSError):
                total += entry.stat(follow_symlinks=False).st_blocks * 512
    return total


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
        if error.errno == errno.ENXIO:
            raise _no_regular_file(path) from error  # a socket, or a device that is not there
        raise storage_error(error, path, "open") from error
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise _no_regular_file(path)
    except OSError as error:
        os.close(fd)
        raise storage_error(error, path, "look at") from error
    except BaseException:
        os.close(fd)
        raise
    return fd


def _no_regular_file(path: Path) -> FormatError:
    return FormatError(
        f"{os.fspath(path)} is not a regular file; a checkpoint holds only regular files.",
        path=os.fspath(path),
    )


_AT_FDCWD = -100
_RENAME_EXCHANGE = 2


def _exchange(one: bytes, other: bytes) -> None:
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)
    if not hasattr(libc, "renameat2"):
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
    if libc.renameat2(_AT_FDCWD, one, _AT_FDCWD, other, _RENAME_EXCHANGE) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
