"""Files that stay open while they are filled: block by block, as a stream, or over and over again.

As in `files`, whose doors they go through: each change to the file system is one call of `files.system`.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat

from holdfast import files
from holdfast.files import Buffer, Path

DIRECT_ALIGNMENT = 4096


class PayloadFile:
    """A new file of known size, written block by block, from several threads at once.

    `direct` asks for O_DIRECT; then every buffer starts at a multiple of 4096 bytes in memory
    and in the file, and is padded to one: `finish` cuts the padding off.
    """

    def __init__(self, path: Path, size: int, *, direct: bool) -> None:
        self.path, self.size, self.direct = os.fspath(path), size, direct
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL
        with files.translated(path, "create"):
            self._fd = files.system.open(path, flags | os.O_DIRECT if direct else flags)

    def write(self, data: memoryview, offset: int) -> None:
        with files.translated(self.path, "write"):
            while data:
                done = files.moved(files.system.pwrite(self._fd, data, offset))
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
        with files.translated(self.path, "sync"):
            files.system.truncate(self._fd, self.size)
            files.system.fsync(self._fd)

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
        with files.translated(path, "create"):
            self._fd = files.system.open(path, flags)
            if not stat.S_ISREG(os.fstat(self._fd).st_mode):
                os.close(self._fd)
                raise OSError(errno.EINVAL, "it is no regular file")
            self.begun = os.fstat(self._fd).st_size
            """Bytes that were there."""
            self.found = 0
            if direct:
                with contextlib.suppress(OSError):
                    self._direct = files.system.open(path, os.O_WRONLY | os.O_NOFOLLOW | os.O_DIRECT)

    def read(self, into: memoryview, offset: int) -> bool:
        """Fills `into` with what is there; False where the file ends before."""
        if offset + len(into) > self.begun:
            return False
        with files.translated(self.path, "read"):
            return read_into(self._fd, into, offset) == len(into)

    def write(self, data: memoryview, offset: int) -> None:
        with files.translated(self.path, "write"):
            done = self._write_direct(data, offset) if self._direct >= 0 else 0
            while done < len(data):
                done += files.moved(files.system.pwrite(self._fd, data[done:], offset + done))

    def _write_direct(self, data: memoryview, offset: int) -> int:
        """Writes as much as goes around the page cache; gives how much that was."""
        end = len(data) - len(data) % DIRECT_ALIGNMENT
        done = 0
        while done < end and not (offset + done) % DIRECT_ALIGNMENT:
            try:
                done += files.moved(files.system.pwrite(self._direct, data[done:end], offset + done))
            except OSError as error:
                if error.errno != errno.EINVAL:
                    raise
                break  # the memory is not aligned
        return done

    def finish(self) -> None:
        """Cuts off what is too much and makes the data durable."""
        try:
            with files.translated(self.path, "sync"):
                files.system.truncate(self._fd, self.size)
                files.system.fsync(self._fd)
        except BaseException:
            with contextlib.suppress(OSError):
                files.forget(self.path)
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
    """Whether the file system of `directory` takes O_DIRECT writes: tried once per file files.system."""
    if not hasattr(os, "O_DIRECT"):
        return False
    with files.translated(directory, "look at"):
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
            files.forget(path)
        fd = files.system.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_DIRECT)
    except OSError:
        files.remove_file(path)
        return False
    try:
        with mmap.mmap(-1, DIRECT_ALIGNMENT) as page, memoryview(page) as view:
            return files.system.pwrite(fd, view, 0) == DIRECT_ALIGNMENT
    except OSError:
        return False
    finally:
        os.close(fd)
        # One that stayed would be taken for a part of the checkpoint.
        files.remove_file(path)


class StreamFile:
    """A new file for code that wants something with `write`, such as torch.save.

    The first failure is kept in `failure`, and what comes after it is swallowed: writers in other
    languages try again while they unwind, and end the process when that fails too.
    """

    def __init__(self, path: Path) -> None:
        self.path = os.fspath(path)
        self.failure: OSError | None = None
        with files.translated(path, "create"):
            self._fd = files.system.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL)

    def write(self, data: Buffer) -> int:
        view = memoryview(data).cast("B")
        size = len(view)
        if self.failure is None:
            try:
                files.write_all(self._fd, view)
            except OSError as error:
                self.failure = error
                raise
        return size

    def flush(self) -> None:
        """Nothing is held back here."""

    def finish(self) -> None:
        """Makes the data durable; raises the first failure, whatever became of it meanwhile."""
        with files.translated(self.path, "write"):
            if self.failure is not None:
                raise self.failure
            files.system.fsync(self._fd)

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


class BeatFile:
    """A small file that its writer rewrites through one descriptor, whatever happens to its name."""

    def __init__(self, path: Path, data: bytes) -> None:
        self.path = os.fspath(path)
        with files.translated(path, "create"):
            self._fd = files.system.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL)
            try:
                files.write_all(self._fd, data)
                files.system.fsync(self._fd)
            except OSError:
                os.close(self._fd)
                # This call made it, so it may go: an empty one would look like a writer's.
                with contextlib.suppress(OSError):
                    files.forget(path)
                raise

    def rewrite(self, data: bytes, *, sync: bool = False) -> None:
        """Replaces the content; a reader may see a mixture, so `data` keeps one length."""
        with files.translated(self.path, "write"):
            done = 0
            while done < len(data):
                done += files.moved(files.system.pwrite(self._fd, memoryview(data)[done:], done))
            files.system.truncate(self._fd, len(data))
            if sync:
                files.system.fsync(self._fd)

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
