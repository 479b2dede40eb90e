"""What contends for one run: the store's own code on a model disk, and what must hold throughout.

`load` makes a copy of the store's modules, with lines changed where a test wants to see what they
are for. `Contest` gives the processes that a test explores, and the properties.
"""

import contextlib
import functools
import importlib
import os
import re
import sys
import types

from explorer import Exploration
from modeldisk import RUN, TOP, Disk, World, is_dead

from holdfast.errors import LeaseError, NotFoundError, StorageError

# In the order of their imports.
_MODULES = (
    "files",
    "open_files",
    "store.holder",
    "store.watch",
    "store.publish",
    "store.book",
    "store.catalog",
)
_MODULES += ("store.retention", "store.lease")
_POLLS = {"range(50)": "range(2)", "_BLINKS = 20": "_BLINKS = 1"}  # tries that are alike
_CHECKPOINT = re.compile(r"(\d{6})_\w+")


def load(changes=()):
    """The store's modules anew, by their last names; `changes` are (module, code, other code)."""
    saved = {name: importlib.import_module(f"holdfast.{name}") for name in _MODULES}
    code = types.SimpleNamespace()
    try:
        for name in _MODULES:
            full = f"holdfast.{name}"
            module = types.ModuleType(full)
            module.__file__ = sys.modules[full].__file__
            with open(module.__file__, encoding="utf-8") as file:
                text = file.read()
            for old, new in _POLLS.items():
                text = text.replace(old, new)
            for where, old, new in changes:
                if where == name.rpartition(".")[2]:
                    assert text.count(old) == 1, f"{where} has changed: {old!r}"
                    text = text.replace(old, new)
            parent, _, last = full.rpartition(".")
            sys.modules[full] = module
            setattr(sys.modules[parent], last, module)
            exec(compile(text, module.__file__, "exec"), module.__dict__)
            setattr(code, last, module)
    finally:
        for name in _MODULES:
            parent, _, last = f"holdfast.{name}".rpartition(".")
            sys.modules[f"holdfast.{name}"] = saved[name]
            setattr(sys.modules[parent], last, saved[name])
    return code


class Live:
    """A tape that a disk answers at once: for one process that goes on alone."""

    def __init__(self, number, disk, limit=2000):
        self.number, self.disk, self.left = number, Disk(disk), limit
        self.facts, self.mistakes = {}, 100

    def do(self, *call):
        self.left -= 1
        assert self.left, "it goes on for ever"
        error, answer = self.disk.answer(self.number, call)[1]
        if error:
            raise OSError(error, os.strerror(error), str(call[1]))
        return answer

    def note(self, **facts):
        self.facts.update(facts)

    def milestone(self, *knowledge):
        pass


class Draft:
    """As much of a draft as publishing needs."""

    def __init__(self, files, directory):
        self.directory, self.name, self._files = directory, os.path.basename(directory), files
        files.make_new_directory(directory)
        for name in ("model", "checkpoint.json"):
            files.create_file(os.path.join(directory, name), b"whole")

    def discard(self):
        with contextlib.suppress(OSError):
            self._files.remove_tree(self.directory)


class Contest:
    """Processes that contend for one run, and what must hold.

    Args:
        code: the store's modules, from `load`.
        handles: whether a rename may be cut in two (see `modeldisk`).
        together: whether all processes can see whether the others live. Otherwise each takes a
            living one for dead as soon as it looks, so many times as `mistakes` says, which is
            earlier than any clock would let it.

    """

    def __init__(self, code=None, *, handles=False, together=False, mistakes=1):
        self.code = code = code or load()
        self.world = world = World(handles=handles)
        self.together, self.mistakes = together, mistakes
        self._left = {}  # of each disk: what a later start leaves at the top
        code.files.system = world.system
        for module in vars(code).values():
            if hasattr(module, "os"):
                module.os = world.os
        code.holder.process_start = self._start_of
        code.lease.myself = code.watch.myself = self._myself
        self._judge, code.watch.judge = code.holder.judge, self._mistake
        code.lease.threading = types.SimpleNamespace(
            Lock=contextlib.nullcontext,
            Event=_Event,
            Thread=lambda **_: types.SimpleNamespace(start=_nothing),
        )
        code.retention.time = types.SimpleNamespace(sleep=_nothing)
        code.catalog.read_manifest = self._manifest
        code.retention.glob = types.SimpleNamespace(escape=str, glob=self._glob)
        code.holder.encode = code.lease.encode = functools.cache(code.holder.encode)
        code.holder.decode = functools.cache(code.holder.decode)
        # What a process asks of a listing, instead of the listing: it knows no more than that.
        code.watch.highest_lease = code.lease.highest_lease = lambda run: world.do(
            "highest", "lease-(\\d{6})"
        )
        self._mark("Watch", code.lease, lambda *_, **__: ())
        self._mark("__init__", code.lease.Lease, lambda _lease, _run, me: (me.generation,))
        self._mark("_enter", code.lease.Lease, lambda lease, _: _node(lease))
        self._mark_end("wait_until_free", code.watch.Watch, lambda watch: ())
        self._mark_end("_empty", code.lease, lambda *_: _progress(sys._getframe(2)))
        self._mark_end("_sweep", code.lease.Lease, lambda lease, _: _node(lease))
        self._mark("release", code.lease.Lease, lambda lease: (*_node(lease), bool(sys.exc_info()[0])))

    def _mark(self, name, owner, knowledge):
        """Calling `name` is a milestone, since all that matters from there on is passed to it."""
        real = getattr(owner, name)

        def marked(*args, **options):
            tape = self.world.tape
            tape.milestone(name, tape.mistakes, *knowledge(*args, **options))
            return real(*args, **options)

        setattr(owner, name, marked)

    def _mark_end(self, name, owner, knowledge):
        """Coming back from `name` is a milestone, since only what it returned matters from there on."""
        real = getattr(owner, name)

        def marked(*args):
            found = real(*args)
            tape = self.world.tape
            tape.milestone(name, tape.mistakes, found, *knowledge(*args))
            return found

        setattr(owner, name, marked)

    def _start_of(self, pid):
        if pid == self.world.tape.number:
            return str(pid)
        return str(pid) if self.world.do("alive", pid) else None

    def _myself(self, generation):
        number = self.world.tape.number
        return self.code.holder.Holder(
            generation=generation,
            host="h",
            pid=number,
            boot_id="boot" if self.together else f"boot{number}",
            pid_namespace=1,
            process_start=str(number),
            token=str(number),
        )

    def _mistake(self, holder, me, held):
        life = self._judge(holder, me, held)
        tape = self.world.tape
        if life == "unknown" and holder.pid != tape.number:
            if tape.mistakes:
                tape.mistakes -= 1
            else:
                life = "alive"
        return life

    def _manifest(self, path):
        self.world.do("read", f"{os.path.relpath(path, RUN)}/checkpoint.json")
        return types.SimpleNamespace(files={"model": types.SimpleNamespace(size=5)})

    def _glob(self, pattern):
        first, last = os.path.relpath(pattern, RUN).split("/")
        assert first == ".writing-*"
        found = [name for name in self.code.watch.names_in(RUN) if name.startswith(first[:-1])]
        return [name for name in found if self.world.os.path.lexists(f"{RUN}/{name}/{last}")]

    # -- processes -------------------------------------------------------------------------------

    def acquire(self, tape):
        self.code.lease._held, tape.mistakes = set(), getattr(tape, "mistakes", self.mistakes)
        lease = self.code.lease.Lease.acquire(
            RUN, stale_after=0, clock=lambda: 0.0, sleep=_nothing, say=_nothing
        )
        tape.note(held=lease.generation, holds=lease.generation)
        tape.milestone("acquired", *_node(lease))
        return lease

    def script(self, kind, *args):
        return getattr(self, kind)(*args)

    def trainer(self, publishes=True, deletes=True, releases=True):
        """Acquires; publishes the next checkpoint; deletes the oldest; releases."""

        def train(tape):
            try:
                lease = self.acquire(tape)
            except LeaseError:
                tape.note(refused=True)
                return
            try:
                there = checkpoints_in(self.code.watch.names_in(RUN))
                if publishes:
                    number = max([int(name[:6]) for name in there], default=0) + 1
                    draft = Draft(self.code.files, f"{lease.writing}/{number:06d}_by{tape.number}")
                    self.code.publish.publish(draft, RUN)
                    tape.note(published=number)
                    tape.milestone("published", there[:1], *_node(lease))
                if deletes and there:
                    self.code.retention.delete(RUN, there[0], lease.writing)
                    tape.note(deleted=there[0])
            except LeaseError:
                tape.note(lost=True)
            except StorageError as error:
                if not isinstance(error.__cause__, FileNotFoundError):
                    raise
                tape.note(lost=True)  # its directory was taken away
            if releases:
                lease.release()
                tape.note(holds=0)

        return train

    def starter(self, tape):
        """Acquires and releases: what a later start does."""
        lease = self.acquire(tape)
        tape.note(held=lease.generation)
        lease.release()
        tape.note(holds=0)

    def pinner(self, name):
        def pin(tape):
            try:
                self.code.retention.pin(RUN, name)
            except NotFoundError:
                tape.note(gone=name)
            else:
                tape.note(pinned=name)

        return pin

    def killer(self, number):
        def kill(tape):
            tape.do("die", number)
            tape.note(killed=number)

        return kill

    # -- properties ------------------------------------------------------------------------------

    def explore(self, scripts, tree=None, **options):
        disk = Disk.of(tree or {})
        return Exploration(
            scripts,
            self.world,
            disk,
            check_disk=self.check_disk,
            check_state=self.check_state,
            check_step=check_step,
            **options,
        )

    def check_disk(self, frozen):
        """What is visible is whole and has a number of its own; a later start finds all of it, and clears up."""
        disk = Disk(frozen)
        there = checkpoints_in(disk.names(TOP))
        for name in there:
            found = disk.tree(disk.node(name))
            if found != {"model": b"whole", "checkpoint.json": b"whole"}:
                return f"{name} is visible and not whole: {found}"
        if len({name[:6] for name in there}) < len(there):
            return f"two checkpoints of one number: {there}"
        used = max(leases_in(disk.names(TOP)), default=0)
        live = Live(99, [item for item in frozen if item[0][0] != "dead"])
        for number in range(1, 9):
            live.disk.entries["dead", number] = ("", None)
        with self.world.entered(live):
            self.starter(live)
        if live.facts["held"] <= used:
            return f"the later start got {live.facts['held']}, and {used} was used"
        left = set(live.disk.names(TOP)) - {f"lease-{live.facts['held']:06d}", "pins"}
        if not set(there) <= left:
            return f"lost at a later start: {sorted(set(there) - left)}"
        if len(checkpoints_in(left)) < len(left):
            return f"debris after a later start: {sorted(left)}"
        self._left[frozen] = left
        return None

    def check_state(self, frozen, points):
        """Numbers are used once; of those who hold one alone can write; what was pinned is found by a later start."""
        highest = max(leases_in(name for parent, name in dict(frozen) if parent == TOP), default=0)
        for fact in ("held", "published"):
            values = [point.facts[fact] for point in points if fact in point.facts]
            if len(set(values)) < len(values):
                return f"{fact} twice: {values}"
        for point in points:
            if "failed" in point.facts:
                return f"ended by {point.facts['failed']}"
            if "lost" in point.facts and point.facts["held"] >= highest:
                return f"lease {point.facts['held']} is the highest, and its holder was stopped"
            if "pinned" in point.facts and point.facts["pinned"] not in self._left[frozen]:
                return f"{point.facts['pinned']} was pinned and is lost"
        holding = [
            point.facts["holds"]
            for number, point in enumerate(points, 1)
            if point.facts.get("holds") and not (self.together and is_dead(frozen, number))
        ]
        if self.together and len(holding) > 1:
            return f"a living holder was taken over: {holding}"
        if len(holding) > 1:
            entries = dict(frozen)
            able = [number for number in holding if (TOP, f".writing-{number:06d}") in entries]
            if len(able) > 1:
                return f"more than one can write: {able}"
        return None


class _Event:
    def __init__(self):
        self._set = False

    def set(self):
        self._set = True

    def is_set(self):
        return self._set


def _nothing(*_args):
    pass


def _progress(sweep):
    """What is left of a sweep, from its frame: the name at hand is done with."""
    left, name, done = (sweep.f_locals[local] for local in ("left", "name", "done"))
    return (*_node(sweep.f_locals["self"]), left[left.index(name) :], sorted(done))


def _node(lease):
    return lease.generation, lease._file._fd.node


def checkpoints_in(names):
    return sorted(name for name in names if _CHECKPOINT.fullmatch(name))


def leases_in(names):
    return [int(name[6:]) for name in names if name.startswith("lease-")]


def check_step(before, after, points, index):
    """Nothing goes or comes but by the highest who holds, and lease numbers rise.

    What was pinned while it was being deleted may come back at any time, even where the pinning
    process gave up waiting for that.
    """
    names, later = ({name for parent, name in dict(frozen) if parent == TOP} for frozen in (before, after))
    if max(leases_in(names), default=0) > max(leases_in(later), default=0):
        return f"the highest lease is gone: {leases_in(names)} became {leases_in(later)}"
    there, left = set(checkpoints_in(names)), set(checkpoints_in(later))
    changed = there ^ left
    trash = {name.removesuffix(".trash") for _, name in dict(before) if str(name).endswith(".trash")}
    if changed and not changed <= left & trash:
        mine = points[index].facts.get("holds")
        others = [point.facts.get("holds") or 0 for n, point in enumerate(points) if n != index]
        if not mine or max(others, default=0) > mine:
            return f"process {index + 1} (lease {mine}) changed {changed}; others hold {others}"
    return None
