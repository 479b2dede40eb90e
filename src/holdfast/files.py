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
        _forget(path)
        return None
    try:
        entries = list(os.scandir(path))
    except FileNotFoundError:
        return None
    except NotADirectoryError:
        _forget(path)
        return None
    inner = []
    for entry in entries:
        if entry.is_dir(follow_symlinks=False):
            inner.append(entry.path)
        else:
            _forget(entry.path)
    return inner


def remove_empty_directory(path: Path) -> None:
    """Deletes a directory that must be empty; one that is already gone is not an error."""
    with translated(path, "delete"), contextlib.suppress(FileNotFoundError):
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
        except BaseException:
            # This call made it, so it may go: a mark that failed would count all the same.
            with contextlib.suppress(OSError):
                _forget(path)
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
            _write_all(fd, b"\n" + data if torn else data)
        finally:
            os.close(fd)


def _write_all(fd: int, data: Buffer) -> None:
    view = memoryview(data).cast("B")
    while view:
        view = view[_moved(system.write(fd, view)) :]


def _moved(count: int) -> int:
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
        _forget(scratch)
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
            done = 0
            while done < len(data):
                done += _moved(system.pwrite(self._fd, memoryview(data)[done:], done))
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
                done = _moved(system.pwrite(self._fd, data, offset))
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


class PartialFile:
    """A file of known size that an earlier process may have begun: what is there is read, and checked, first.

    A file whose sync failed is deleted: what a second look finds in memory may never have reached the disk.
    `direct` asks for O_DIRECT, for what is written from memory and to places that are aligned.
    """

    def __init__(self, path: Path, size: int, *, direct: bool = False) -> None:
        self.path, self.size = os.fspath(path), size
        self._direct = -1
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK
        with translated(path, "create"):
            self._fd = system.open(path, flags)
            if not stat.S_ISREG(os.fstat(self._fd).st_mode):
                os.close(self._fd)
                raise OSError(errno.EINVAL, "it is no regular file")
            self.begun = os.fstat(self._fd).st_size
            """Bytes that were there."""
            self.found = 0
            if direct:
                with contextlib.suppress(OSError):
                    self._direct = system.open(path, os.O_WRONLY | os.O_NOFOLLOW | os.O_DIRECT)

    def read(self, into: memoryview, offset: int) -> bool:
        """Fills `into` with what is there; False where the file ends before."""
        if offset + len(into) > self.begun:
            return False
        with translated(self.path, "read"):
            return read_into(self._fd, into, offset) == len(into)

    def write(self, data: memoryview, offset: int) -> None:
        with translated(self.path, "write"):
            done = self._write_direct(data, offset) if self._direct >= 0 else 0
            while done < len(data):
                done += _moved(system.pwrite(self._fd, data[done:], offset + done))

    def _write_direct(self, data: memoryview, offset: int) -> int:
        """Writes as much as goes around the page cache; gives how much that was."""
        end = len(data) - len(data) % DIRECT_ALIGNMENT
        done = 0
        while done < end and not (offset + done) % DIRECT_ALIGNMENT:
            try:
                done += _moved(system.pwrite(self._direct, data[done:end], offset + done))
            except OSError as error:
                if error.errno != errno.EINVAL:
                    raise
                break  # the memory is not aligned
        return done

    def finish(self) -> None:
        """Cuts off what is too much and makes the data durable."""
        try:
            with translated(self.path, "sync"):
                system.truncate(self._fd, self.size)
                system.fsync(self._fd)
        except BaseException:
            with contextlib.suppress(OSError):
                _forget(self.path)
            raise

    def close(self) -> None:
        if self._direct >= 0:
            os.close(self._direct)
            self._direct = -1
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def read_into(fd: int, into: memoryview, offset: int) -> int:
    """Fills `into` from byte `offset` on; gives how many bytes there were. The error is the system's own."""
    done = 0
    while done < len(into):
        count = os.preadv(fd, [into[done:]], offset + done)
        if not count:
            break
        done += count
    return done


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
        # A link of that name, which somebody else has put there, is removed and not followed.
        with contextlib.suppress(OSError):
            _forget(path)
        fd = system.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_DIRECT)
    except OSError:
        remove_file(path)
        return False
    try:
        with mmap.mmap(-1, DIRECT_ALIGNMENT) as page, memoryview(page) as view:
            return system.pwrite(fd, view, 0) == DIRECT_ALIGNMENT
    except OSError:
        return False
    finally:
        os.close(fd)
        # One that stayed would be taken for a part of the checkpoint.
        remove_file(path)


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
                _write_all(self._fd, view)
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
