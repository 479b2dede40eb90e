"""The lease under every order of events: the store's own code on a model disk, state by state.

Two or three processes run the code of the store as it is; every look at the disk and every change is
a step, and every order of steps is tried, with a crash possible before each. In all states: of those
who hold the run one alone can write, what is visible is whole, nothing is lost or twice there, and a
later start takes the run, finds everything, and clears up.

Without a safeguard of the protocol the same exploration must find what goes wrong. Five parts were
found to be more than safety needs, while the listings are those of one moment:

- In `_create`, giving way to a newer lease that the same listing shows. `O_EXCL` and the two looks
  for a higher lease do the same later; it matters where a listing is behind, which a unit test shows.
- In `_sweep`, keeping *leases* of higher numbers: whoever saw one gives up at the second look.
- Deleting the older leases only after the second look: the own lease is higher already.
- In `delete`, the look at the pins before the rename: the one after it brings a pinned checkpoint
  back. Without the first it would be out of sight for a moment, which a unit test shows.
- Emptying the directory before the release is written: a later start would do it.
"""

import collections
import errno
import os
import random

import pytest
from lease_actors import Contest, load
from modeldisk import Disk, World

WHOLE = {"model": b"whole", "checkpoint.json": b"whole"}
OLD = {"000001_old": WHOLE}
TWO = {**OLD, "000002_new": WHOLE}


def holds(facts):
    return "holds" in facts


class Scene:
    """Some processes and a disk; `held` says that the first one holds the run when the others come."""

    def __init__(self, *processes, tree=None, held=False, mutant=(), **options):
        contest = Contest(load(mutant), **options)
        scripts = [contest.script(*process) for process in processes]
        first = [(0, holds)] if held else []
        self.exploration = contest.explore(scripts, tree, first=first)


FULL, PUBLISH, TURN, STAY = ("trainer",), ("trainer", 1, 0), ("trainer", 0, 0), ("trainer", 0, 0, 0)
PIN, KILL = ("pinner", "000001_old"), ("killer", 1)
# Who sees whether another lives makes no mistakes.
SEEN = {"tree": OLD, "together": True, "mistakes": 0}

SCENES = {
    "two start": ((FULL, FULL), {"tree": OLD}),
    "two start, renames in two": ((FULL, FULL), {"tree": OLD, "handles": True}),
    "three start": ((STAY, STAY, STAY), {}),
    "a sleeper and one": ((FULL, PUBLISH), {"tree": OLD, "held": True, "handles": True, "mistakes": 2}),
    "a sleeper and two": ((FULL, STAY, STAY), {"tree": OLD, "held": True, "handles": True}),
    "a deletion, a pin and a start": ((FULL, PIN, TURN), {"tree": TWO, "held": True}),
    "a holder that dies, seen by two": ((FULL, KILL, TURN, TURN), {**SEEN, "held": True}),
    "two start that see each other, one dies": ((FULL, KILL, FULL), SEEN),
}
MORE_SCENES = {
    "two start, wrong twice": ((FULL, FULL), {"tree": OLD, "mistakes": 2, "handles": True}),
    "three turns": ((TURN, TURN, TURN), {}),
    "a sleeper and two that publish": (
        (FULL, PUBLISH, PUBLISH),
        {"tree": OLD, "held": True, "handles": True},
    ),
    "a deletion, a pin and a start, renames in two": (
        (FULL, PIN, TURN),
        {"tree": TWO, "held": True, "handles": True},
    ),
}


def explore(scene, tried):
    processes, options = scene
    exploration = Scene(*processes, **options).exploration.run()
    if exploration.states < 200_000:
        exploration.each_alone(lambda facts: None if facts else "it ended without a word")
    print(f"{exploration.states:,} states, {exploration.steps:,} steps")
    assert exploration.states > 1000
    tried("schedules", exploration.states)


def pytest_generate_tests(metafunc):
    """A thorough run explores larger scenes, too; each takes minutes."""
    if metafunc.function is test_every_order:
        scenes = {**SCENES, **(MORE_SCENES if metafunc.config.getoption("--thorough") else {})}
        metafunc.parametrize("scene", scenes.values(), ids=[name.replace(" ", "-") for name in scenes])


def test_every_order(scene, tried):
    """In every order of events one alone can write, nothing is lost, and a later start finds all of it."""
    explore(scene, tried)


# -- each safeguard is needed ---------------------------------------------------------------------

LEASE_EXCLUSIVE = (
    "open_files",
    "files.system.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL)",
    "files.system.open(path, os.O_RDWR | os.O_CREAT)",
)
FIRST_LOOK = ("lease", "        if self._outrun():\n            return False\n        older", "        older")
SECOND_LOOK = (
    "lease",
    "        if self._outrun():\n            return False\n        for path in older",
    "        for path in older",
)
RENAME_AWAY = (
    "lease",
    'path = _take_out_of_use(path, f"{path}.swept-{self.generation:06d}")',
    "pass",
)
MADE_ONCE = (
    "lease",
    "        files.make_new_directory(self.writing)\n",
    "        with contextlib.suppress(StorageError):\n            files.make_new_directory(self.writing)\n",
)
ONLY_LOWER = (
    "lease",
    "if 0 < writing_number(name) < self.generation and",
    "if 0 < writing_number(name) != self.generation and",
)
CHILDREN_RENAMED = ("lease", "if not name.endswith(_GONE):", "if False:")
LATE_ONES_LEFT = ("lease", "files.remove_empty_directory(path)", "files.remove_tree(path)")
PINS_AFTER_THE_LOOK = (
    (
        "lease",
        "        there = names_in(path)\n",
        "        retention.bring_back(run, path)\n        there = names_in(path)\n",
    ),
    ("lease", "    retention.bring_back(run, path)\n    try:", "    try:"),
)
BROUGHT_BACK = ("lease", "    retention.bring_back(run, path)\n", "")
WHOLE_ONES_ONLY = ("retention", "if _is_whole(trash) and not", "if not")
OWN_TRASH = (
    "retention",
    "            files.rename(source, trash)\n        except FileNotFoundError:",
    "            files.remove_tree(source)\n        except FileNotFoundError:",
)
SECOND_PINS = (
    "retention",
    "    if name in catalog.marks(run, PINS):\n        with",
    "    if False:\n        with",
)
ALIVE = ("holder", 'return "dead" if holder.pid == me.pid else "alive"', 'return "dead"')
RELEASED = ("lease", "dataclasses.replace(self._identity, released=True)", "self._identity")
OWN_DRAFTS = (
    "publish",
    "        files.rename(draft.directory, final)\n    except OSError as error:\n        draft.discard()\n",
    (
        "        files.make_new_directory(final)\n"
        "        for name in os.listdir(draft.directory):\n"
        "            files.rename(os.path.join(draft.directory, name), os.path.join(final, name))\n"
        "    except OSError as error:\n        draft.discard()\n"
    ),
)
OLDER_LEASES = ("lease", "        for path in older:\n", "        for path in ():\n")
ONCE_MORE = (
    "lease",
    "                done.update((name, os.path.basename(path)))\n",
    (
        "                done.update((name, os.path.basename(path)))\n"
        "            return [os.path.join(self.run, n) for n in names if 0 < lease_number(n) < self.generation]\n"
    ),
)

PIN_AND_START = ((FULL, PIN, TURN), {"tree": TWO, "held": True})
PIN_AND_START_HANDLES = ((FULL, PIN, TURN), {"tree": TWO, "held": True, "handles": True})
MUTANTS = {
    "a lease is made once": ([LEASE_EXCLUSIVE], SCENES["three start"], "File exists"),
    "a lease and a directory are made once": (
        [LEASE_EXCLUSIVE, MADE_ONCE],
        SCENES["three start"],
        "held twice|can write",
    ),
    "the look before the sweep, and a directory made once": (
        [FIRST_LOOK, MADE_ONCE],
        SCENES["three start"],
        "can write",
    ),
    "the look before the sweep": ([FIRST_LOOK], SCENES["three start"], "File exists"),
    "the look after the directory": ([SECOND_LOOK], SCENES["two start"], "can write"),
    "the rename away": ([RENAME_AWAY], SCENES["two start"], "can write|others hold"),
    "a second look into the run while sweeping": ([ONCE_MORE], SCENES["a sleeper and two"], "others hold"),
    "only lower directories": ([ONLY_LOWER], SCENES["two start"], "its holder was stopped"),
    "children are renamed": ([CHILDREN_RENAMED], SCENES["two start, renames in two"], "not whole"),
    "what comes late is left": ([LATE_ONES_LEFT], PIN_AND_START_HANDLES, "pinned and is lost"),
    "pins are read after the look": (PINS_AFTER_THE_LOOK, PIN_AND_START_HANDLES, "pinned and is lost"),
    "what was pinned comes back": ([BROUGHT_BACK], PIN_AND_START, "pinned and is lost"),
    "only whole ones come back": ([WHOLE_ONES_ONLY], PIN_AND_START, "not whole"),
    "trash in the own directory": ([OWN_TRASH], SCENES["two start"], "not whole|changed"),
    "pins after the rename": ([SECOND_PINS], PIN_AND_START, "pinned and is lost"),
    "one rename publishes": ([OWN_DRAFTS], SCENES["two start"], "not whole"),
    "the living are left alone": ([ALIVE], SCENES["a holder that dies, seen by two"], "taken over"),
    "older leases are deleted": ([OLDER_LEASES], SCENES["two start"], "debris"),
}


@pytest.mark.parametrize("mutant", MUTANTS.values(), ids=[name.replace(" ", "-") for name in MUTANTS])
def test_without_a_safeguard_it_goes_wrong(mutant):
    """Without any one safeguard of the protocol some order of events breaks what must hold."""
    changes, (processes, options), wrong = mutant
    with pytest.raises(AssertionError, match=wrong):
        Scene(*processes, mutant=changes, **options).exploration.run(limit=1_000_000)


# -- the model is like what it models -------------------------------------------------------------


class RealDisk:
    """Makes the same calls on a real directory."""

    def __init__(self, path):
        self.path, self.open, self.handles = path, {}, {}

    def answer(self, call):
        try:
            return 0, getattr(self, f"_{call[0]}")(*call[1:])
        except OSError as error:
            return error.errno, None

    def _at(self, path):
        return os.path.join(self.path, path)

    def _list(self, path):
        return tuple(sorted(os.listdir(self._at(path))))

    def _scan(self, path):
        return tuple(sorted((e.name, e.is_dir(follow_symlinks=False)) for e in os.scandir(self._at(path))))

    def _highest(self, pattern):
        return World.highest(os.listdir(self.path), pattern)

    def _kind(self, path):
        path = self._at(path)
        return "d" if os.path.isdir(path) else "f" if os.path.isfile(path) else ""

    def _read(self, path):
        with open(self._at(path), "rb") as file:
            return file.read()

    def _create(self, path, exclusive):
        self.open[path] = os.open(self._at(path), os.O_RDWR | os.O_CREAT | exclusive)

    def _write(self, node, data):
        fd = self.open[node.partition(":")[2].rstrip("'")]
        os.pwrite(fd, data, 0)
        os.ftruncate(fd, len(data))

    def _mkdir(self, path):
        os.mkdir(self._at(path))

    def _unlink(self, path):
        os.unlink(self._at(path))

    def _rmdir(self, path):
        os.rmdir(self._at(path))

    def _rename(self, source, target):
        os.rename(self._at(source), self._at(target))

    def _find(self, source, target):
        parents = [os.path.dirname(self._at(path)) for path in (source, target)]
        self.handles[source, target] = tuple(os.open(parent, os.O_DIRECTORY) for parent in parents)

    def _swap(self, source, target, *_nodes):
        here, there = self.handles.pop((source, target))
        try:
            names = os.path.basename(source), os.path.basename(target)
            os.rename(*names, src_dir_fd=here, dst_dir_fd=there)
        finally:
            os.close(here)
            os.close(there)

    def _alive(self, number):
        return True

    def tree(self, path=""):
        found = {}
        for name in sorted(os.listdir(self._at(path))):
            inner = os.path.join(path, name)
            found[name] = self.tree(inner) if os.path.isdir(self._at(inner)) else self._read(inner)
        return found

    def close(self):
        for fd in self.open.values():
            os.close(fd)


def same(call, model, real):
    """Whether a model's answer is the real one; nodes have names in the model alone."""
    nodes = call[0] in ("create", "find")
    return model == real or (nodes and model[0] == real[0] == 0)


def build(path, tree):
    for name, content in tree.items():
        place = os.path.join(path, name)
        if isinstance(content, dict):
            os.mkdir(place)
            build(place, content)
        else:
            with open(place, "wb") as file:
                file.write(content)


@pytest.mark.parametrize(
    "scene", ["two start, renames in two", "a sleeper and two", "a deletion, a pin and a start"]
)
def test_orders_on_a_real_disk(scene, tmp_path):
    """What the store does in the model is done to a real directory, which answers every call alike."""
    (processes, options), seen = SCENES[scene], collections.Counter()
    exploration = Scene(*processes, **{**options, "held": False}).exploration
    for seed in range(60):
        calls, end = exploration.walk(random.Random(seed))
        place = tmp_path / str(seed)
        place.mkdir()
        build(place, options["tree"])
        real = RealDisk(str(place))
        for number, call, model in calls:
            found = real.answer(call)
            assert same(call, model, found), f"seed {seed}: process {number}: {call}: {model}, really {found}"
            seen[call[0]] += 1
        assert real.tree() == Disk(end).tree(), f"seed {seed}"
        real.close()
    assert min(seen[name] for name in ("list", "scan", "highest", "read", "create", "write", "mkdir")) > 60


PLACES = ["a", "b", "c", "a/x", "a/y", "b/x", "a/x/z"]


@pytest.mark.parametrize("seed", range(4))
def test_model_disk_is_like_a_real_one(seed, tmp_path):
    """Calls at random are answered by the model disk as Linux answers them, error for error."""
    chance, counted = random.Random(seed), collections.Counter()
    for number in range(40):
        place = tmp_path / str(number)
        place.mkdir()
        real, frozen, waiting = RealDisk(str(place)), Disk.of({}), []
        for step in range(60):
            call = some_call(chance, waiting)
            if call[0] == "find" and call[1:] in real.handles:
                continue
            frozen, model = Disk(frozen).answer(1, call)
            found = real.answer(call)
            assert same(call, model, found), (
                f"seed {seed}, disk {number}, call {step}: {call}: {model}, really {found}"
            )
            if call[0] == "find" and not model[0]:
                waiting.append((*call[1:], *model[1]))
            counted[call[0], model[0]] += 1
        assert Disk(frozen).tree() == real.tree()
        real.close()
    for expected in [("rename", errno.ENOTEMPTY), ("swap", errno.ENOENT), ("create", errno.EEXIST)]:
        assert counted[expected] > 0, expected


def some_call(chance, waiting):
    kinds = [
        "list",
        "scan",
        "kind",
        "read",
        "unlink",
        "rmdir",
        "mkdir",
        "mkdir",
        "create",
        "rename",
        "find",
        "swap",
    ]
    kind, path = chance.choice(kinds), chance.choice(PLACES)
    if kind == "swap" and waiting:
        return ("swap", *waiting.pop(chance.randrange(len(waiting))))
    if kind in ("rename", "find", "swap"):
        others = [p for p in PLACES if not p.startswith(path + "/") and not path.startswith(p + "/")]
        return ("find" if kind == "swap" else kind, path, chance.choice(others))
    if kind == "create":
        return "create", path, chance.choice([0, os.O_EXCL])
    return kind, path
