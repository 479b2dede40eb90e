"""A small disk in memory, and the system calls of a process that uses it.

The disk holds one directory tree, as a frozen set, so that equal disks are equal. It answers the
calls that the store makes, as Linux does; `test_model_disk_is_like_a_real_one` holds it to that.
With `handles` a rename is two calls: the path is looked up, later the names change, and what is in
between does not matter to directories that were found: so a server of a network file system sees
the renames of a client that was cut off for a while, and so the kernel works on a busy machine.

A dead process is a mark on the disk as well, since that is where the others look for it.
"""

import contextlib
import errno
import os
import re
import stat
import types

from holdfast import files

RUN = "/run"
TOP = "d"  # the run's directory; others are d<process>:<first path>, files are f<process>:<first path>
_DEAD = "dead"


class Disk:
    """One disk, to be asked one call. `entries`: (directory, name) → (node, content or None)."""

    def __init__(self, frozen=frozenset()):
        self.entries = dict(frozen)

    @classmethod
    def of(cls, tree):
        """A disk with nested mappings of names to bytes or mappings."""
        disk = cls()

        def fill(parent, content):
            for name, value in content.items():
                node = f"{'f' if isinstance(value, bytes) else 'd'}:{parent}/{name}"
                disk.entries[parent, name] = (node, value if isinstance(value, bytes) else None)
                if not isinstance(value, bytes):
                    fill(node, value)

        fill(TOP, tree)
        return frozenset(disk.entries.items())

    def answer(self, process, call):
        """The disk after a call, and its answer: (errno, None) or (0, value)."""
        try:
            value = getattr(self, f"_{call[0]}")(process, *call[1:])
        except OSError as error:
            return frozenset(self.entries.items()), (error.errno, None)
        return frozenset(self.entries.items()), (0, value)

    # -- paths -----------------------------------------------------------------------------------

    def node(self, path):
        node = TOP
        for name in [part for part in path.split("/") if part]:
            if node[0] != "d":
                raise NotADirectoryError(errno.ENOTDIR, "")
            if (node, name) not in self.entries:
                raise FileNotFoundError(errno.ENOENT, "")
            node = self.entries[node, name][0]
        return node

    def _place(self, path):
        parent, _, name = path.rpartition("/")
        node = self.node(parent)
        if node[0] != "d":
            raise NotADirectoryError(errno.ENOTDIR, "")
        return node, name

    def _entry(self, path):
        place = self._place(path)
        if place not in self.entries:
            raise FileNotFoundError(errno.ENOENT, "")
        return place, self.entries[place]

    def names(self, node):
        return sorted(name for parent, name in self.entries if parent == node)

    # -- looking -----------------------------------------------------------------------------------

    def _highest(self, _process, pattern):
        """The highest number in the names at the top that match; 0 where none does."""
        return World.highest((name for parent, name in self.entries if parent == TOP), pattern)

    def _list(self, _process, path):
        node = self.node(path)
        if node[0] != "d":
            raise NotADirectoryError(errno.ENOTDIR, "")
        return tuple(self.names(node))

    def _scan(self, process, path):
        names = self._list(process, path)
        node = self.node(path)
        return tuple((name, self.entries[node, name][0][0] == "d") for name in names)

    def _kind(self, _process, path):
        try:
            return self.node(path)[0]
        except OSError:
            return ""

    def _read(self, _process, path):
        (_, (node, content)) = self._entry(path)
        if node[0] == "d":
            raise IsADirectoryError(errno.EISDIR, "")
        return content

    # -- changing ----------------------------------------------------------------------------------

    def _new(self, kind, process, path):
        """A name for a new node that no other one has, the same whatever led here."""
        node = f"{kind}{process}:{path}"
        while any(found == node for found, _ in self.entries.values()):
            node += "'"
        return node

    def _create(self, process, path, exclusive):
        place = self._place(path)
        if place in self.entries:
            if exclusive:
                raise FileExistsError(errno.EEXIST, "")
            if self.entries[place][0][0] == "d":
                raise IsADirectoryError(errno.EISDIR, "")
            return self.entries[place][0]
        node = self._new("f", process, path)
        self.entries[place] = (node, b"")
        return node

    def _write(self, _process, node, data):
        for place, (found, _) in self.entries.items():
            if found == node:
                self.entries[place] = (node, data)
                return

    def _mkdir(self, process, path):
        place = self._place(path)
        if place in self.entries:
            raise FileExistsError(errno.EEXIST, "")
        self.entries[place] = (self._new("d", process, path), None)

    def _unlink(self, _process, path):
        place, (node, _) = self._entry(path)
        if node[0] == "d":
            raise IsADirectoryError(errno.EISDIR, "")
        del self.entries[place]

    def _rmdir(self, _process, path):
        place, (node, _) = self._entry(path)
        if node[0] != "d":
            raise NotADirectoryError(errno.ENOTDIR, "")
        if self.names(node):
            raise OSError(errno.ENOTEMPTY, "")
        del self.entries[place]

    def _rename(self, process, source, target):
        self._swap(process, source, target, *self._find(process, source, target))

    def _find(self, _process, source, target):
        """The directories that the last names of two paths lie in."""
        return self._place(source)[0], self._place(target)[0]

    def _swap(self, _process, source, target, source_parent, target_parent):
        old = (source_parent, source.rpartition("/")[2])
        new = (target_parent, target.rpartition("/")[2])
        if old not in self.entries or not self._linked(target_parent):
            raise FileNotFoundError(errno.ENOENT, "")
        if old == new:
            return
        if self._lies_in(target_parent, self.entries[old][0]):
            raise OSError(errno.EINVAL, "")
        there = self.entries.get(new)
        if there is not None:
            ours, theirs = self.entries[old][0][0], there[0][0]
            if ours == "d" and theirs != "d":
                raise NotADirectoryError(errno.ENOTDIR, "")
            if ours != "d" and theirs == "d":
                raise IsADirectoryError(errno.EISDIR, "")
            if theirs == "d" and self.names(there[0]):
                raise OSError(errno.ENOTEMPTY, "")
        self.entries[new] = self.entries.pop(old)

    def _lies_in(self, node, above):
        while node not in (TOP, above):
            node = next(parent for (parent, _), (found, _) in self.entries.items() if found == node)
        return node == above

    def _linked(self, node):
        return node == TOP or any(found == node for found, _ in self.entries.values())

    # -- processes -----------------------------------------------------------------------------------

    def _die(self, _process, number):
        self.entries[_DEAD, number] = ("", None)

    def _alive(self, _process, number):
        return (_DEAD, number) not in self.entries

    # -- what is there -------------------------------------------------------------------------------

    def tree(self, node=TOP):
        """Nested mappings of names to bytes or mappings."""
        found = {}
        for name in self.names(node):
            child, content = self.entries[node, name]
            found[name] = self.tree(child) if child[0] == "d" else content
        return found

    def lines(self, node=TOP, indent="    "):
        found = []
        for name in self.names(node):
            child, content = self.entries[node, name]
            found.append(f"{indent}{name}{'/' if child[0] == 'd' else f' ({len(content)} bytes)'}")
            if child[0] == "d":
                found += self.lines(child, indent + "  ")
        return found


def is_dead(frozen, number):
    return ((_DEAD, number), ("", None)) in frozen


# -- the store on such a disk --------------------------------------------------------------------


def _inside(path):
    """A path relative to the run; what is elsewhere is not for this disk."""
    path = os.fspath(path)
    assert path == RUN or path.startswith(RUN + "/"), path
    return path[len(RUN) + 1 :]


class World:
    """What code takes for the system once it is bound to it; `tape` is the process that runs now."""

    def __init__(self, *, handles=False):
        self.handles = handles
        self.tape = None
        self.os, self.system = _Os(self), _System(self)

    def do(self, *call):
        return self.tape.do(*call)

    @staticmethod
    def highest(names, pattern):
        found = (re.fullmatch(pattern, name) for name in names)
        return max((int(match[1]) for match in found if match), default=0)

    @contextlib.contextmanager
    def entered(self, tape):
        """Lets one process run."""
        self.tape = tape
        try:
            yield
        finally:
            self.tape = None


class _Os:
    """The module `os` for this disk: what looks at it becomes a call, all else is the real one."""

    def __init__(self, world):
        self._world, self.path = world, _Path(world)

    def __getattr__(self, name):
        return getattr(os, name)

    def getpid(self):
        return self._world.tape.number

    def listdir(self, path):
        return list(self._world.do("list", _inside(path)))

    def scandir(self, path):
        return [_Entry(path, *item) for item in self._world.do("scan", _inside(path))]

    def open(self, path, flags):
        if flags & os.O_DIRECTORY:
            return _Descriptor()  # the run's own directory, which is always there, to be synced
        return _Descriptor(self._world.do("read", _inside(path)))

    def stat(self, path):
        kind = self.path._kind(path) if path.startswith(RUN) else "d"
        if not kind:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)
        # One number for all: nothing is above the run, as far as syncing what is above goes.
        return types.SimpleNamespace(
            st_dev=1, st_ino=1, st_mode=stat.S_IFDIR if kind == "d" else stat.S_IFREG
        )

    def fstat(self, fd):
        return types.SimpleNamespace(st_mode=stat.S_IFREG, st_size=len(fd.content))

    def read(self, fd, _size):
        content, fd.content = fd.content, b""
        return content

    def close(self, fd):
        pass


class _Path:
    def __init__(self, world):
        self._world = world

    def __getattr__(self, name):
        return getattr(os.path, name)

    def _kind(self, path):
        return "d" if path == RUN else self._world.do("kind", _inside(path))

    def isdir(self, path):
        return self._kind(path) == "d"

    def isfile(self, path):
        return self._kind(path) == "f"

    def exists(self, path):
        return bool(self._kind(path))

    lexists = exists

    def getsize(self, path):
        return len(self._world.do("read", _inside(path)))

    def realpath(self, path):
        return path

    def islink(self, path):
        return False  # nothing here makes one


class _Descriptor(int):
    """An open file: one that is read has its content, one that is written its node."""

    def __new__(cls, content=b"", node=""):
        self = super().__new__(cls, 3)
        self.content, self.node = content, node
        return self


class _Entry:
    def __init__(self, parent, name, is_directory):
        self.path, self.name, self._is_directory = f"{parent}/{name}", name, is_directory

    def is_dir(self, *, follow_symlinks):
        return self._is_directory


class _System(files.System):
    """The changes, each a call. A sync changes nothing that another process could see."""

    def __init__(self, world):
        self._world = world

    def open(self, path, flags):
        return _Descriptor(node=self._world.do("create", _inside(path), flags & os.O_EXCL))

    def pwrite(self, fd, data, offset):
        self._world.do("write", fd.node, bytes(data))
        return len(data)

    def write(self, fd, data):
        return self.pwrite(fd, data, 0)

    def truncate(self, fd, size):
        pass

    def fsync(self, fd):
        pass

    def mkdir(self, path):
        self._world.do("mkdir", _inside(path))

    def rename(self, source, target):
        paths = _inside(source), _inside(target)
        if not self._world.handles:
            self._world.do("rename", *paths)
            return
        self._world.do("swap", *paths, *self._world.do("find", *paths))

    def unlink(self, path):
        self._world.do("unlink", _inside(path))

    def rmdir(self, path):
        self._world.do("rmdir", _inside(path))
