"""The cage in which hostile things are opened: a forked child under limits, with a witness.

`confined` says how something ended in there, what memory it took, and what it touched.
"""

import contextlib
import dataclasses
import hashlib
import json
import os
import resource
import select
import signal
import stat
import sys
import sysconfig
import time
import traceback

from holdfast.errors import HoldfastError
from holdfast.format import sealed

# Where Python and its packages lie: reading there is importing.
_PYTHON = tuple(
    os.path.realpath(path) + os.sep
    for path in {
        sys.prefix, sys.base_prefix, sys.exec_prefix, *sysconfig.get_paths().values(),
        os.path.dirname(os.path.dirname(os.path.abspath(sealed.__file__))),
        *(path for path in sys.path if path and os.path.isdir(path)),
    }
)  # fmt: skip
_SYSTEM = (
    "/proc/self/",
    "/proc/",
    "/sys/",
    "/dev/null",
    "/usr/share/zoneinfo",
    "/etc/localtime",
    "/etc/passwd-",
)
_RUNS = {
    "os.system", "os.exec", "os.posix_spawn", "os.spawn", "os.fork", "os.forkpty", "subprocess.Popen", "pty.spawn",
    "pickle.find_class", "socket.connect", "socket.bind", "socket.getaddrinfo", "urllib.Request", "webbrowser.open",
}  # fmt: skip
_CHANGES = {
    "os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.symlink", "os.link", "os.truncate", "os.chmod", "os.chown",
    "os.utime", "os.setxattr", "shutil.rmtree", "shutil.move", "shutil.copyfile",
}  # fmt: skip
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


@dataclasses.dataclass
class Outcome:
    """How something ended in the cage.

    Attributes:
        value: what it returned (as JSON gives it back); None when it raised.
        error: the name of the class of what it raised, or None.
        message: its text.
        facts: `target_changed` of the error.
        trace: the traceback, for errors that are not ours.
        ours: whether the error is one of Holdfast's tree.
        peak: bytes of memory that it took beyond what was there before.
        seconds: processor time.
        outside: files that were opened outside the folder and Python's own.
        changed: changes to the file system.
        ran: what was executed, unpickled or connected to.
        modules: those that were imported.
    """

    value: object = None
    error: str | None = None
    message: str = ""
    facts: dict = dataclasses.field(default_factory=dict)
    trace: str = ""
    ours: bool = False
    peak: int = 0
    seconds: float = 0.0
    outside: list = dataclasses.field(default_factory=list)
    changed: list = dataclasses.field(default_factory=list)
    ran: list = dataclasses.field(default_factory=list)
    modules: list = dataclasses.field(default_factory=list)


def confined(act, *folders, address_space=2 << 30, cpu=60, wall=100):
    """Runs `act()` in a forked child and returns its `Outcome`; a child that does not end fails the test.

    Args:
        act: returns what JSON can hold.
        folders: what may be read.
        address_space: bytes of address space beyond what is mapped already.
        cpu: seconds of processor time after which the child is killed.
        wall: seconds after which it counts as hanging (at an open of a pipe, say).
    """
    ours, theirs = os.pipe()
    pid = os.fork()
    if pid == 0:
        with contextlib.suppress(BaseException):
            os.close(ours)
            _inside(act, folders, address_space, cpu, theirs)
        os._exit(70)
    os.close(theirs)
    data, deadline = b"", time.monotonic() + wall
    try:
        while True:
            ready, _, _ = select.select([ours], [], [], max(0, deadline - time.monotonic()))
            if not ready:
                os.kill(pid, signal.SIGKILL)
                raise AssertionError(f"still busy after {wall} s: it hangs, or works without bound")
            piece = os.read(ours, 1 << 20)
            if not piece:
                break
            data += piece
    finally:
        os.close(ours)
        _, status = os.waitpid(pid, 0)
    how = f"signal {os.WTERMSIG(status)}" if os.WIFSIGNALED(status) else f"exit {os.WEXITSTATUS(status)}"
    assert data, f"the child ended without a word: {how} (24 is SIGXCPU: too much work; 7 is SIGBUS)"
    return Outcome(**json.loads(data))


def _inside(act, folders, address_space, cpu, pipe):
    import torch

    torch.set_num_threads(1)
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    outcome = Outcome()
    allowed = tuple(os.path.abspath(folder) for folder in folders)
    watch = _watch(outcome, allowed)
    before_modules = set(sys.modules)
    with contextlib.suppress(OSError), open("/proc/self/clear_refs", "w") as refs:
        refs.write("5")  # the peak begins anew
    start, mapped = _status("VmRSS"), _status("RssFile")
    size = _status("VmSize") + address_space
    resource.setrlimit(resource.RLIMIT_AS, (size, resource.RLIM_INFINITY))
    spent = resource.getrusage(resource.RUSAGE_SELF)
    already = int(spent.ru_utime + spent.ru_stime)
    resource.setrlimit(resource.RLIMIT_CPU, (already + cpu, already + cpu + 5))
    began = time.process_time()
    watch[0] = True
    try:
        outcome.value = act()
    except BaseException as error:
        watch[0] = False
        outcome.error = type(error).__name__
        outcome.ours = isinstance(error, HoldfastError)
        outcome.message = str(error)[: 1 << 20]
        outcome.facts = {
            "target_changed": bool(getattr(error, "facts", {}).get("target_changed")),
            "length": len(str(error)),
            "code": error.code if isinstance(error, SystemExit) else None,
        }
        outcome.trace = traceback.format_exc()[-4000:]
    watch[0] = False
    outcome.seconds = time.process_time() - began
    # After a fork, pages of libraries come back into the count as they are touched: no memory of anybody's.
    outcome.peak = _status("VmHWM") - start - max(0, _status("RssFile") - mapped)
    outcome.modules = sorted(set(sys.modules) - before_modules)
    resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    data = json.dumps(dataclasses.asdict(outcome), default=repr).encode()
    while data:
        data = data[os.write(pipe, data) :]
    os._exit(0)


def _status(key):
    with open("/proc/self/status", encoding="ascii") as status:
        for line in status:
            if line.startswith(f"{key}:"):
                return int(line.split()[1]) << 10
    raise AssertionError(key)


def _watch(outcome, allowed):
    on = [False]

    def inside(path):
        name = os.path.abspath(os.fsdecode(path))
        return any(name == folder or name.startswith(folder + os.sep) for folder in allowed)

    def note(event, arguments):
        if not on[0]:
            return
        on[0] = False
        try:
            if event == "open":
                path, mode, flags = arguments
                if isinstance(path, int) or path is None:
                    return
                name = os.path.abspath(os.fsdecode(path))
                real = os.path.join(os.path.realpath(os.path.dirname(name)), os.path.basename(name))
                if (flags or 0) & _WRITES or (isinstance(mode, str) and set(mode) & set("wax+")):
                    outcome.changed.append([event, name])
                if not inside(name) and not f"{real}/".startswith(_PYTHON) and not name.startswith(_SYSTEM):
                    outcome.outside.append(name)
            elif event in ("os.listdir", "os.scandir"):
                path = arguments[0]
                name = (
                    os.path.abspath(os.fsdecode(path)) if isinstance(path, (str, bytes, os.PathLike)) else "."
                )
                parents = {os.path.dirname(folder) for folder in allowed}
                if (
                    not inside(name)
                    and name not in parents
                    and not f"{os.path.realpath(name)}/".startswith(_PYTHON)
                ):
                    outcome.outside.append(f"{name}/")
            elif event in _CHANGES:
                # Of a link that is made, the second is its place.
                made = event in ("os.symlink", "os.link")
                outcome.changed.append([event, str(arguments[1 if made else 0])])
            elif event in _RUNS:
                outcome.ran.append([event, repr(arguments)[:200]])
            elif event == "exec":
                file = getattr(arguments[0], "co_filename", "?")
                known = os.path.realpath(file).startswith(_PYTHON) or file.startswith(
                    ("<frozen", "<string>", "<attrs")
                )
                if not known:
                    outcome.ran.append([event, file])
        finally:
            on[0] = True

    sys.addaudithook(note)
    return on


def snapshot(folder):
    """All names below a folder with what they are: to see that nothing was changed."""
    found = {}
    for directory, names, files in os.walk(folder):
        for name in [*names, *files]:
            path = os.path.join(directory, name)
            info = os.lstat(path)
            text = ""
            if stat.S_ISLNK(info.st_mode):
                text = os.readlink(path)
            elif stat.S_ISREG(info.st_mode) and info.st_size < 8 << 20:
                with open(path, "rb") as file:
                    text = hashlib.sha256(file.read()).hexdigest()
            found[path] = (stat.S_IFMT(info.st_mode), 0 if stat.S_ISDIR(info.st_mode) else info.st_size, text)
    return found


def on_disk(*paths):
    """Bytes that files, and all below folders, take on the disk."""
    total = 0
    for path in paths:
        names = (
            [os.path.join(d, f) for d, _, fs in os.walk(path) for f in fs] if os.path.isdir(path) else [path]
        )
        total += sum(os.lstat(name).st_blocks * 512 for name in names)
    return total
