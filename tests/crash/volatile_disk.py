"""A disk that forgets: records the system calls of a scenario, and says what a power loss could leave.

What the model allows is more than any one file system does; a protocol that survives it relies on
POSIX alone, not on the order in which a journal happens to commit.

- *Data.* What was written to a file since its last fsync may be there or not, each write by itself and
  in any order, and torn at sectors of 512 bytes. The size may be any that the file had since then;
  what no write filled reads as zeros (ext4 and xfs with delayed allocation leave just that).
- *Names.* A name made, moved or removed since the last fsync of its directory may be as before or as
  after, each by itself. An fsync of a file says nothing of its name (ext4, xfs and btrfs do more than
  POSIX asks here), and an fsync of a directory nothing of its own name in its parent.
- *Renames.* One rename is in one piece: ext4, xfs and btrfs commit both names in one transaction, and an
  NFS server has made it durable before it answers. That is the model `JOURNAL`. File systems without
  a journal (ext2, FAT, ext4 without one) write two directories as two blocks: the model `BLOCKS` lets
  the halves of a rename or an exchange *between two directories* be lost one by one, so that
  both names may be there, or none. Within one directory a rename stays in one piece even there: without
  that no file could ever be replaced, and Holdfast promises nothing for such a disk.
- *Reuse.* Blocks of deleted files are not handed to others: no promise depends on it.
"""

import contextlib
import dataclasses
import fcntl
import functools
import itertools
import math
import os
import stat
import threading

import xxhash

from holdfast import files

SECTOR = 512
JOURNAL, BLOCKS = "journal", "blocks"
ROOT = 0


# -- what is recorded --------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Names:
    """Names that appear (an inode), change or disappear (None), by one system call."""

    text: str
    changes: tuple  # of (directory, name, inode or None)


@dataclasses.dataclass(frozen=True)
class Write:
    text: str
    inode: int
    offset: int
    data: bytes

    @property
    def sectors(self):
        return (self.offset + len(self.data) - 1) // SECTOR - self.offset // SECTOR + 1 if self.data else 0


@dataclasses.dataclass(frozen=True)
class Resize:
    text: str
    inode: int
    size: int


@dataclasses.dataclass(frozen=True)
class Sync:
    text: str
    inode: int


@dataclasses.dataclass(frozen=True)
class Note:
    """What the program has just told its caller: from here on it must be true after a power loss."""

    text: str
    facts: dict


@dataclasses.dataclass
class Tape:
    """The recording: the disk at its start (all durable), then every call."""

    entries: dict  # directory → {name: inode}
    contents: dict  # file → bytes
    links: dict  # symbolic link → target
    told: dict = dataclasses.field(default_factory=dict)  # what is true from the start
    calls: list = dataclasses.field(default_factory=list)

    def without(self, *indices):
        """The same calls as a program would have made them that leaves some out."""
        calls = [call for index, call in enumerate(self.calls) if index not in indices]
        return dataclasses.replace(self, calls=calls)


class Recorder(files.System):
    """Does every call, and notes it down. Calls of several threads come in the order of the tape."""

    def __init__(self, root):
        unknown = {name for name in vars(files.System) if name[0] != "_"} - vars(Recorder).keys()
        assert not unknown, f"calls that would not be recorded: {unknown}"
        self.root = os.path.realpath(root)
        self._turn = threading.RLock()
        self._inodes = {}  # the system's number, used again after a deletion → ours, never used again
        self._counter = itertools.count(ROOT)
        self.tape = Tape({}, {}, {})
        self._register(self.root)

    def note(self, **facts):
        with self._turn:
            self.tape.calls.append(Note(f"told: {facts}", facts))

    def _register(self, path):
        inode, mode = self._number(path), os.lstat(path).st_mode
        if stat.S_ISDIR(mode):
            self.tape.entries[inode] = {
                name: self._register(os.path.join(path, name)) for name in sorted(os.listdir(path))
            }
        elif stat.S_ISLNK(mode):
            self.tape.links[inode] = os.readlink(path)
        else:
            with open(path, "rb") as file:
                self.tape.contents[inode] = file.read()
        return inode

    def _number(self, path):
        """A new number for what has just been made at a path."""
        number = self._inodes[os.lstat(path).st_ino] = next(self._counter)
        return number

    def _place(self, path):
        directory, name = os.path.split(os.path.abspath(path))
        return self._inodes[os.stat(directory).st_ino], name

    def _show(self, path):
        directory, name = os.path.split(os.path.abspath(path))
        return os.path.relpath(os.path.join(os.path.realpath(directory), name), self.root)

    def _log(self, kind, text, *values):
        self.tape.calls.append(kind(text, *values))

    def _born(self, call, path):
        number = self._number(path)
        self._log(Names, f"{call} {self._show(path)}", ((*self._place(path), number),))
        return number

    def _of(self, fd):
        """Number and path of what a descriptor is open on; None outside the recorded folder."""
        number = self._inodes.get(os.fstat(fd).st_ino)
        return (
            None
            if number is None
            else (number, os.path.relpath(os.readlink(f"/proc/self/fd/{fd}"), self.root))
        )

    def open(self, path, flags):
        with self._turn:
            new = flags & os.O_CREAT and not os.path.lexists(path)
            fd = super().open(path, flags)
            if new:
                self.tape.contents[self._born("create", path)] = b""
            return fd

    def pwrite(self, fd, data, offset):
        with self._turn:
            done = super().pwrite(fd, data, offset)
            self._written(fd, data, offset, done)
            return done

    def write(self, fd, data):
        with self._turn:
            appends = fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_APPEND
            offset = os.fstat(fd).st_size if appends else os.lseek(fd, 0, os.SEEK_CUR)
            done = super().write(fd, data)
            self._written(fd, data, offset, done)
            return done

    def _written(self, fd, data, offset, done):
        inode, path = self._of(fd)
        self._log(Write, f"write {path} {offset}+{done}", inode, offset, bytes(data[:done]))

    def truncate(self, fd, size):
        with self._turn:
            super().truncate(fd, size)
            inode, path = self._of(fd)
            self._log(Resize, f"truncate {path} {size}", inode, size)

    def fsync(self, fd):
        with self._turn:
            super().fsync(fd)
            found = self._of(fd)
            if found is not None:
                self._log(Sync, f"fsync {found[1]}", found[0])

    def mkdir(self, path):
        with self._turn:
            super().mkdir(path)
            self.tape.entries[self._born("mkdir", path)] = {}

    def symlink(self, target, path):
        with self._turn:
            super().symlink(target, path)
            self.tape.links[self._born("symlink", path)] = target

    def rename(self, source, target):
        with self._turn:
            inode = self._inodes[os.lstat(source).st_ino]
            text = f"rename {self._show(source)} → {self._show(target)}"
            super().rename(source, target)
            self._log(Names, text, ((*self._place(source), None), (*self._place(target), inode)))

    def exchange(self, one, other):
        with self._turn:
            first, second = (self._inodes[os.lstat(path).st_ino] for path in (one, other))
            super().exchange(one, other)
            text = f"exchange {self._show(one)} ↔ {self._show(other)}"
            self._log(Names, text, ((*self._place(one), second), (*self._place(other), first)))

    def unlink(self, path):
        with self._turn:
            super().unlink(path)
            self._log(Names, f"unlink {self._show(path)}", ((*self._place(path), None),))

    def rmdir(self, path):
        with self._turn:
            super().rmdir(path)
            self._log(Names, f"rmdir {self._show(path)}", ((*self._place(path), None),))


# -- what a power loss leaves --------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Variable:
    """One thing that a power loss decides. The first option is *lost*, the last of `options` *done*."""

    key: tuple
    text: str
    options: tuple
    tears: tuple = ()

    def describe(self, value):
        if value == self.options[-1]:
            return f"kept   {self.text}"
        if value == self.options[0]:
            return f"LOST   {self.text}"
        return f"{value!r:6.40} {self.text}"


def _tears(sectors):
    """Masks of kept sectors: a write that ended early, began late, has a hole, or is only its middle."""
    whole, middle = (1 << sectors) - 1, 1 << sectors // 2
    masks = {1, whole >> 1, whole ^ 1, whole ^ middle, middle, 1 << (sectors - 1), (1 << sectors // 2) - 1}
    return tuple(sorted(masks - {0, whole}))


class Disk:
    """What is durable and what is not, after the calls so far."""

    def __init__(self, tape, model):
        self._tape, self._model = tape, model
        self._durable = {inode: dict(names) for inode, names in tape.entries.items()}
        self._contents = dict(tape.contents)
        self._names = []  # pending: (key, text, changes), in order
        self._data = {}  # file → pending writes and sizes, in order
        self._split = {}  # number of a call → its halves
        self._count = 0

    def take(self, call):
        self._count += 1
        if type(call) is Names:
            self._take_names(call)
        elif type(call) is Sync:
            self._sync(call.inode)
        elif type(call) is not Note:
            self._data.setdefault(call.inode, []).append((self._count, call))

    def _take_names(self, call):
        pieces = [call.changes]
        if self._model == BLOCKS and len({directory for directory, _, _ in call.changes}) > 1:
            pieces = [(change,) for change in call.changes]
            self._split[self._count] = len(pieces)
        for piece in pieces:
            half = f" (the half in /{piece[0][1]})" if len(pieces) > 1 else ""
            self._names.append(((self._count, piece[0][:2]), call.text + half, piece))

    def _sync(self, inode):
        if inode in self._contents:
            pending = self._data.pop(inode, [])
            self._contents[inode] = _content(self._contents[inode], pending, None, None)
            return
        pending, self._names = self._names, []
        for item in pending:
            if any(directory == inode for directory, _, _ in item[2]):
                self._apply(item[2], self._durable)
                # An older change of the same name, in the other directory, can do nothing any more.
                gone = {change[:2] for change in item[2]}
                self._names = [
                    (key, text, left)
                    for key, text, changes in self._names
                    if (left := tuple(change for change in changes if change[:2] not in gone))
                ]
            else:
                self._names.append(item)

    @staticmethod
    def _apply(changes, entries):
        for directory, name, inode in changes:
            if inode is None:
                entries[directory].pop(name, None)
            else:
                entries[directory][name] = inode

    def variables(self):
        """All that is undecided, of what can be reached by a name."""
        reachable = self._reachable()
        found = [
            Variable(key, text, (False, True))
            for key, text, changes in self._names
            if any(directory in reachable for directory, _, _ in changes)
        ]
        for inode in sorted(self._data.keys() & reachable):
            sizes = [len(self._contents[inode])]
            for number, call in self._data[inode]:
                if type(call) is Write:
                    whole = (1 << call.sectors) - 1
                    found.append(Variable((number, inode), call.text, (0, whole), _tears(call.sectors)))
                    sizes.append(max(sizes[-1], call.offset + len(call.data)))
                else:
                    sizes.append(call.size)
            possible = (*dict.fromkeys(size for size in sizes if size != sizes[-1]), sizes[-1])
            if len(possible) > 1:
                found.append(Variable(("size", inode), f"the size of that file, {sizes[-1]}", possible))
        return found

    def _reachable(self):
        later = {}
        for _, _, changes in self._names:
            for directory, _, inode in changes:
                later.setdefault(directory, set()).add(inode)
        found, ahead = set(), [ROOT]
        while ahead:
            inode = ahead.pop()
            if inode is not None and inode not in found:
                found.add(inode)
                ahead += [*self._durable.get(inode, {}).values(), *later.get(inode, ())]
        return found

    def splits(self, choice):
        """Whether a choice keeps one half of a rename and loses the other."""
        halves = {}
        for key, _, _ in self._names:
            halves.setdefault(key[0], []).append(bool(choice.get(key)))
        # A half that is not pending any more is durable.
        return any(
            not all(found) and (any(found) or len(found) < self._split.get(number, 0))
            for number, found in halves.items()
        )

    def image(self, choice):
        """The tree that a choice (variable key → option) leaves: {path: bytes, link target, or None for a folder}."""
        entries = {inode: dict(names) for inode, names in self._durable.items()}
        for key, _, changes in self._names:
            if choice.get(key):
                self._apply(changes, entries)
        found = {}
        self._walk("", ROOT, entries, choice, found, ())
        return found

    def _walk(self, prefix, inode, entries, choice, found, above):
        for name, child in entries[inode].items():
            path = prefix + name
            if child in above or child == inode:
                continue  # two halves of renames made a circle; no fsck would leave it
            if child in entries:
                found[path] = None
                self._walk(f"{path}/", child, entries, choice, found, (*above, inode))
            elif child in self._tape.links:
                found[path] = self._tape.links[child]
            else:
                pending = self._data.get(child)
                found[path] = self._contents[child]
                if pending:
                    found[path] = _content(found[path], pending, choice, choice.get(("size", child)))


def _content(data, pending, choice, size):
    """A file after some of its pending calls; after all of them where `choice` is None."""
    buffer, last = bytearray(data), len(data)
    for number, call in pending:
        if type(call) is Resize:
            last = call.size
            if choice is None:
                del buffer[last:]
            continue
        end = call.offset + len(call.data)
        last = max(last, end)
        kept = (1 << call.sectors) - 1 if choice is None else choice.get((number, call.inode), 0)
        if not kept:
            continue
        buffer.extend(bytes(max(0, end - len(buffer))))
        for sector in range(call.sectors):
            if kept >> sector & 1:
                start = max(call.offset, (call.offset // SECTOR + sector) * SECTOR)
                stop = min(end, (call.offset // SECTOR + sector + 1) * SECTOR)
                buffer[start:stop] = call.data[start - call.offset : stop - call.offset]
    size = last if size is None else size
    return bytes(buffer[:size]) + bytes(max(0, size - len(buffer)))


def choices(variables, limit, random):
    """Choices to try: all of them where they are few, else the telling ones and then random ones."""
    keys = [variable.key for variable in variables]
    lost, done = ([variable.options[end] for variable in variables] for end in (0, -1))
    if math.prod(len(variable.options) for variable in variables) <= limit:
        tried = itertools.product(*(variable.options for variable in variables))
    else:
        tried = itertools.islice(_telling(variables, lost, done), limit // 2)
        tried = itertools.chain(tried, (_drawn(variables, random) for _ in range(limit - limit // 2)))
    torn = (
        [*base[:i], tear, *base[i + 1 :]]
        for i, variable in enumerate(variables)
        for tear in variable.tears
        for base in (done, lost)
    )
    for values in itertools.chain(tried, itertools.islice(torn, limit)):
        yield dict(zip(keys, values, strict=True))


def _telling(variables, lost, done):
    yield lost
    yield done
    for i, variable in enumerate(variables):
        for value in variable.options:
            yield [*done[:i], value, *done[i + 1 :]]
            yield [*lost[:i], value, *lost[i + 1 :]]
    for i in range(len(variables)):
        yield [*done[:i], *lost[i:]]
    for i, j in itertools.combinations(range(len(variables)), 2):
        for base, other in ((done, lost), (lost, done)):
            pair = list(base)
            pair[i], pair[j] = other[i], other[j]
            yield pair


def _drawn(variables, random):
    share = random.choice((0.1, 0.5, 0.9))
    values = []
    for variable in variables:
        if variable.tears and random.random() < 0.1:
            values.append(random.randrange(1, variable.options[-1]))
        elif len(variable.options) > 2 and random.random() < 0.3:
            values.append(random.choice(variable.options))
        else:
            values.append(variable.options[-1] if random.random() < share else variable.options[0])
    return values


# -- images ------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Crash:
    """One image that a power loss could leave, what was told before it, and how it came about."""

    image: dict
    digest: bytes
    told: dict
    cause: str


def crashes(tape, model, random, *, limit, hidden, twins, chosen=lambda digest: True):
    """Every image worth a look, each once for all that had been told until then.

    Of the model `BLOCKS` only those that `JOURNAL` does not have: some rename is lost by half.

    Args:
        tape: the recording.
        model: `JOURNAL` or `BLOCKS`.
        random: a seeded `random.Random`.
        limit: how many choices are tried at one place; below it all of them.
        hidden: says of a path that no reader looks there.
        twins: at one place, how many images that look alike to every reader are given out.
        chosen: says of an image's digest whether it is wanted.

    """
    disk, told, seen = Disk(tape, model), tape.told, set()
    for number, call in enumerate([*tape.calls, None]):
        # All that could be left here is left after the next call as well, as that one may be lost,
        # unless it is an fsync or the program has told something.
        last = call is None or type(call) in (Sync, Note)
        variables = disk.variables()
        alike = {}
        for choice in choices(variables, limit if last else 2, random):
            if model == BLOCKS and not disk.splits(choice):
                continue
            image = disk.image(choice)
            digest = digest_of(image)
            if digest in seen or not chosen(digest):
                continue
            view = digest_of({path: data for path, data in image.items() if not hidden(path)})
            alike[view] = alike.get(view, 0) + 1
            if alike[view] > twins:
                continue
            seen.add(digest)
            yield Crash(image, digest, told, _cause(tape, number, variables, choice, model))
        if call is not None:
            disk.take(call)
            if type(call) is Note:
                told, seen = {**told, **call.facts}, set()


def _cause(tape, number, variables, choice, model):
    place = (
        f"after call {number} of {len(tape.calls)} ({tape.calls[number - 1].text})"
        if number
        else "at the start"
    )
    decided = [f"  {variable.describe(choice[variable.key])}" for variable in variables]
    return "\n".join([f"Power lost {place}, model {model}; of what was not synced:", *decided])


def digest_of(image):
    pieces = (
        (
            path.encode("utf-8", "surrogateescape"),
            _digest(data) if data.__class__ is bytes else repr(data).encode(),
        )
        for path, data in sorted(image.items())
    )
    return xxhash.xxh3_128_digest(b"\0".join(itertools.chain.from_iterable(pieces)))


@functools.lru_cache(maxsize=1 << 14)
def _digest(data):
    return xxhash.xxh3_128_digest(data)


def materialise(image, root):
    """Makes an image real in a new folder."""
    os.mkdir(root)
    for path, data in image.items():  # a folder comes before what is in it
        full = os.path.join(root, path)
        if data is None:
            os.mkdir(full)
        elif data.__class__ is str:
            os.symlink(data, full)
        else:
            fd = os.open(full, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
            with contextlib.closing(os.fdopen(fd, "wb", buffering=0)) as file:
                file.write(data)
