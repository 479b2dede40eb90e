"""A disk that stops, fails or falls short at one chosen call, and processes to try it in.

Every change to a disk is one call of `files.system`. The classes below number these calls, in the
order in which they arrive, and do something at one of them. Calls of several threads come one after
the other, so that a number means one state of the disk: what lies there *after* call 7 is what lies
there *before* call 8.

Each fault is tried in a process of its own. A zygote, which has imported everything and has no
threads, forks them: a launch then costs milliseconds. Tests talk to it through `Zygote`.
"""

import contextlib
import errno
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import traceback

from holdfast import files

SECONDS = 90  # a process that takes longer hangs: its alarm ends it

_NUMBERS = [
    (re.compile(r"\d{6,}_epoch-\d+_step-\d+_\d{8}T\d{6}Z"), "CHECKPOINT"),
    (re.compile(r"(lease-|\.writing-|\.swept-)\d{6}"), r"\1G"),
    (re.compile(r"\.writing-[0-9a-z-]+_\d+_\d+_\d+_[0-9a-f]{8}"), ".writing-PROCESS"),
]


def role(path):
    """What a file is, whatever the numbers and times in its name."""
    for pattern, word in _NUMBERS:
        path = pattern.sub(word, path)
    return path


def path_of(fd):
    return os.readlink(f"/proc/self/fd/{fd}").removesuffix(" (deleted)")


class Numbered(files.System):
    """Numbers the calls from 1 on; `turn` sees each and makes it, or does not.

    Attributes:
        place: what comes before it is left out of the roles.
        trace: the calls so far, as (name, role).

    """

    exchanges = True

    def __init__(self, place):
        self.place, self.trace = place, []
        self._lock = threading.RLock()

    def call(self, name, *args):
        with self._lock:
            target = args[1] if name in ("rename", "symlink", "exchange") else args[0]
            path = path_of(target) if isinstance(target, int) else os.fspath(target)
            self.trace.append((name, role(os.path.relpath(path, self.place))))
            return self.turn(len(self.trace), name, *args)

    def turn(self, number, name, *args):
        return self.make(name, *args)

    def make(self, name, *args):
        """The true call."""
        if name == "exchange" and not self.exchanges:
            raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
        return getattr(files.System, name)(self, *args)


def _number(name):
    def method(self, *args):
        return self.call(name, *args)

    setattr(Numbered, name, method)


CALLS = [name for name in vars(files.System) if not name.startswith("_")]  # a new one is tried, too
WRITES = ("write", "pwrite")
for _name in CALLS:
    _number(_name)


def part_of(data, size):
    """The first `size` bytes; where there are pages, whole pages, as direct I/O wants them."""
    view = memoryview(data).cast("B")
    return view[: size - size % 4096 if size > 4096 else size]


class Killing(Numbered):
    """Ends the process at one call: before it, after it, or when half of its bytes are written.

    The call is a number, for "middle" among the writes alone; or a pair (name, end of the role).
    """

    def __init__(self, place, which, moment):
        super().__init__(place)
        self.which, self.moment, self._writes = which, moment, 0

    def turn(self, number, name, *args):
        self._writes += name in WRITES
        counted = self._writes if self.moment == "middle" else number
        if isinstance(self.which, tuple):
            hit = name == self.which[0] and self.trace[-1][1].endswith(self.which[1])
        else:
            hit = counted == self.which and (self.moment != "middle" or name in WRITES)
        if not hit:
            return self.make(name, *args)
        if self.moment == "middle":
            self.make(name, args[0], part_of(args[1], len(args[1]) // 2), *args[2:])
        elif self.moment == "after":
            with contextlib.suppress(OSError):  # a call that fails by itself, as unlinking what is not there
                self.make(name, *args)
        os.kill(os.getpid(), signal.SIGKILL)
        signal.pause()  # the signal is on its way
        return None


ONCE = {"ENOSPC", "EDQUOT", "EIO", "EACCES", "EINTR"}
FOR_GOOD = {"EIO for good": "EIO", "EROFS for good": "EROFS", "ENOSPC for good": "ENOSPC"}
SHORT = {"half", "one byte", "nothing"}
FAULTS = (*sorted(ONCE), *FOR_GOOD, *sorted(SHORT))


class Failing(Numbered):
    """Fails at one call: once, with all that come later, or by writing less than asked for.

    For what falls short `number` counts the writes alone, and "half" and "nothing" stand for all
    later writes to that file, too.

    Attributes:
        struck: the number of the call that failed, among all; None when it never came.
        again: files that were synced a second time after a sync had failed.
        lost: the inodes of the files whose sync failed.

    """

    def __init__(self, place, number, fault):
        super().__init__(place)
        self.number, self.fault = number, fault
        self.healed = False
        self.struck, self.again, self.lost = None, [], set()
        self._short, self._writes = None, 0

    def turn(self, number, name, *args):
        if self.healed:
            return self.make(name, *args)
        if name == "fsync":
            status = os.fstat(args[0])
            if (status.st_dev, status.st_ino) in self.lost:
                self.again.append(path_of(args[0]))
        if self.fault in SHORT:
            return self._fall_short(name, *args)
        hit = number == self.number
        later = number > self.number
        if hit or (later and self.fault in FOR_GOOD):
            self._strike(hit, name, args)
            code = getattr(errno, FOR_GOOD.get(self.fault, self.fault))
            raise OSError(code, os.strerror(code))
        return self.make(name, *args)

    def _strike(self, hit, name, args):
        if hit:
            self.struck = len(self.trace)
        if name == "fsync" and not os.path.isdir(path_of(args[0])):
            status = os.fstat(args[0])
            self.lost.add((status.st_dev, status.st_ino))

    def _fall_short(self, name, *args):
        if name not in WRITES:
            return self.make(name, *args)
        self._writes += 1
        status = os.fstat(args[0])
        file = (status.st_dev, status.st_ino)
        hit = self._writes == self.number
        if hit:
            self._strike(hit, name, args)
            self._short = file
        if not hit and (file != self._short or self.fault == "one byte"):
            return self.make(name, *args)
        if self.fault == "nothing":
            return 0
        size = 1 if self.fault == "one byte" else -(-len(args[1]) // 2)
        return self.make(name, args[0], part_of(args[1], size), *args[2:])


# -- reading ---------------------------------------------------------------------------------------

READS = [
    "listdir",
    "scandir",
    "open",
    "read",
    "pread",
    "preadv",
    "stat",
    "lstat",
    "fstat",
    "readlink",
    "statvfs",
]


class FailingReads:
    """Makes the n-th look at something under a place fail; what `files.system` does is not one.

    Used as a context manager, in a process that is thrown away after it.
    """

    def __init__(self, place, number=0, code=errno.EIO, lasting=False):
        self.place, self.number, self.code, self.lasting = os.path.realpath(place), number, code, lasting
        self.trace, self.struck = [], None
        self._own = threading.local()
        self._real = {name: getattr(os, name) for name in READS}
        self._lock = threading.Lock()

    def __enter__(self):
        for name in READS:
            setattr(os, name, self._wrapped(name))
        return self

    def __exit__(self, *_):
        for name, real in self._real.items():
            setattr(os, name, real)

    def _wrapped(self, name):
        real = self._real[name]

        def look(*args, **options):
            if getattr(self._own, "busy", False) or not self._counts(name, args):
                return real(*args, **options)
            with self._lock:
                self.trace.append((name, role(os.path.relpath(self._path(args[0]), self.place))))
                number = len(self.trace)
                fails = number == self.number or (self.lasting and self.number and number > self.number)
                if number == self.number:
                    self.struck = self.trace[-1]
            if fails:
                raise OSError(self.code, os.strerror(self.code), args[0] if args else None)
            return real(*args, **options)

        return look

    def _counts(self, name, args):
        if name == "open" and (args[1] & (os.O_WRONLY | os.O_RDWR)):
            return False
        self._own.busy = True
        try:
            path = self._path(args[0] if args else ".")
        except OSError:
            return False
        finally:
            self._own.busy = False
        return path == self.place or path.startswith(self.place + "/")

    def _path(self, target):
        if isinstance(target, int):
            return self._real["readlink"](f"/proc/self/fd/{target}")
        return os.path.abspath(os.fsdecode(target))


# -- processes -------------------------------------------------------------------------------------


def child(work, *arguments, said=os.devnull, leave=False):
    """Runs `work(*arguments)` in a forked process and waits for it.

    Returns:
        `{"value"}`, or `{"trace"}` of an exception, or neither; and `{"signal", "code"}`.

    Args:
        work: called there; what it returns comes back.
        said: a file that gets its stderr.
        leave: ends it as an interpreter ends, instead of at once.

    """
    reading, writing = os.pipe()
    pid = os.fork()
    if not pid:
        os.close(reading)
        signal.alarm(SECONDS)
        fd = os.open(said, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        os.dup2(fd, 2)
        os.close(fd)
        try:
            answer = {"value": work(*arguments)}
        except BaseException:
            answer = {"trace": traceback.format_exc()}
        with open(writing, "w") as file:
            json.dump(answer, file)
        if leave:
            raise Leave
        os._exit(0)
    os.close(writing)
    with open(reading) as file:
        text = file.read()
    status = os.waitpid(pid, 0)[1]
    answer = json.loads(text) if text else {}
    answer["signal"] = os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0
    answer["code"] = os.WEXITSTATUS(status) if os.WIFEXITED(status) else None
    return answer


class Leave(BaseException):
    """Takes a forked process out of everything, to the interpreter's own end."""


def prepared(kind, place):
    """Makes what a scenario begins with, in `place`/kept; gives a function that puts a copy of it at `place`/now."""
    now, kept = os.path.join(place, "now"), os.path.join(place, "kept")
    os.mkdir(now)
    scenario = kind(now)
    succeed(child(scenario.prepare))
    if kind.kill is not None:

        def die():
            files.system = Killing(now, kind.kill, "middle")
            scenario.act()

        assert child(die)["signal"] == signal.SIGKILL, f"{kind.__name__}: the call {kind.kill} did not come"
    scenario.check_prepared()
    os.rename(now, kept)

    def renew():
        shutil.rmtree(now, ignore_errors=True)
        shutil.copytree(kept, now, symlinks=True)
        return scenario

    return renew


def succeed(answer):
    """What a child returned; its traceback as an `AssertionError` where it failed."""
    if "value" in answer:
        return answer["value"]
    if answer["signal"] == signal.SIGALRM:
        raise AssertionError(f"it hangs: {SECONDS} seconds were not enough")
    raise AssertionError(answer.get("trace") or f"it ended with {answer}")


def serve(modules, answers):
    """The zygote: answers each line of stdin, a job as JSON, with a line to the descriptor `answers`."""
    import gc
    import importlib
    import pkgutil

    import holdfast.run
    from holdfast.state import environment
    from holdfast.store import lease

    for package in ("exchange", "format", "payload", "policy", "state", "store"):
        folder = os.path.join(os.path.dirname(holdfast.__file__), package)
        for _, name, _ in pkgutil.iter_modules([folder], f"holdfast.{package}."):
            importlib.import_module(name)
    # Beats would come between the calls that are numbered; looking for a commit takes two processes.
    lease.BEAT_SECONDS = 1e6
    environment._git = lambda: None
    for name in modules:
        module = importlib.import_module(name)
        if name.endswith("scenarios"):
            module.warm()
    gc.freeze()  # a collection in a child would copy every page
    with open(answers, "w") as out:
        for line in sys.stdin:
            job = json.loads(line)
            module, name = job.pop("job").split(":")
            try:
                answer = {"value": getattr(importlib.import_module(module), name)(**job)}
            except Exception:
                answer = {"trace": traceback.format_exc()}
            json.dump(answer, out)
            out.write("\n")
            out.flush()


class Zygote:
    """The process that forks the others; `ask` gives it a job, "module:function", and waits for the answer."""

    def __init__(self, *modules):
        here = os.path.dirname(os.path.abspath(__file__))
        reading, writing = os.pipe()
        code = (
            f"import sys; sys.path.insert(0, {here!r}); import disk_faults\n"
            f"try: disk_faults.serve({modules!r}, {writing})\n"
            f"except disk_faults.Leave: pass"
        )
        self._process = subprocess.Popen(
            [sys.executable, "-c", code],
            stdin=subprocess.PIPE,
            text=True,
            pass_fds=[writing],
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        os.close(writing)
        self._answers = open(reading)

    def ask(self, job, **arguments):
        self._process.stdin.write(json.dumps({"job": job, **arguments}) + "\n")
        self._process.stdin.flush()
        line = self._answers.readline()
        assert line, "the zygote has ended"
        answer = json.loads(line)
        assert "trace" not in answer, answer["trace"]
        return answer["value"]

    def close(self):
        self._process.stdin.close()
        self._process.wait()
        self._answers.close()
