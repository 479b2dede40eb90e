"""Small file systems, made, filled and unmounted in a process of their own, so that nothing stays mounted.

`apart` runs a function in a forked process that has a mount namespace of its own: what it mounts
goes with it, however it ends, and so do the loop devices. `Disk` is one file system in there.
"""

import contextlib
import ctypes
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import traceback

import pytest

_CLONE_NEWNS, _CLONE_NEWUSER = 0x00020000, 0x10000000
_MS_REC, _MS_PRIVATE = 16384, 1 << 18
_PR_SET_PDEATHSIG = 1
BALLAST = "ballast"


class MissingHere(Exception):
    """Something that this machine lacks; the test is skipped and says so."""


# -- the process of its own -----------------------------------------------------------------------------


def apart(body):
    """Runs `body()` in a process with mounts of its own; gives what it returned, raises what it raised.

    The result must be something that JSON holds.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    read, write = os.pipe()
    child = os.fork()
    if not child:
        os.close(read)
        answer = _answer(body)
        with os.fdopen(write, "w", encoding="utf-8") as pipe:
            json.dump(answer, pipe)
        os._exit(0)
    os.close(write)
    with os.fdopen(read, encoding="utf-8") as pipe:
        text = pipe.read()
    _, status = os.waitpid(child, 0)
    assert text, f"the process ended with {os.waitstatus_to_exitcode(status)} and said nothing"
    answer = json.loads(text)
    if "missing" in answer:
        pytest.skip(answer["missing"])
    if "failure" in answer:
        pytest.fail(answer["failure"], pytrace=False)
    return answer["result"]


def _answer(body):
    try:
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        _leave_mounts()
        answer = {"result": body()}
    except MissingHere as error:
        answer = {"missing": str(error)}
    except BaseException:
        answer = {"failure": traceback.format_exc()}
    with contextlib.suppress(OSError):
        sys.stdout.flush()
    return answer


def _leave_mounts():
    """A mount namespace; without root inside a user namespace, where tmpfs alone can be mounted."""
    libc, user, group = ctypes.CDLL(None, use_errno=True), os.getuid(), os.getgid()
    if libc.unshare(_CLONE_NEWNS if user == 0 else _CLONE_NEWNS | _CLONE_NEWUSER) != 0:
        why = os.strerror(ctypes.get_errno())
        raise MissingHere(f"no mount namespace can be made here ({why}): it takes root, or user namespaces")
    if user:
        for name, text in (("setgroups", "deny"), ("uid_map", f"0 {user} 1"), ("gid_map", f"0 {group} 1")):
            with open(f"/proc/self/{name}", "w", encoding="ascii") as file:
                file.write(text)
    if libc.mount(b"none", b"/", None, _MS_REC | _MS_PRIVATE, None) != 0:
        raise MissingHere(f"mounts cannot be made private here: {os.strerror(ctypes.get_errno())}")


# -- the file system -------------------------------------------------------------------------------------


def run(*words, **options):
    """Runs a command of the system; `MissingHere` with what it said when it fails."""
    if shutil.which(words[0], path=_PATH) is None:
        raise MissingHere(f"{words[0]} is not installed")
    environment = {**os.environ, "PATH": _PATH, "LC_ALL": "C"}
    done = subprocess.run(
        words, capture_output=True, text=True, check=False, env=environment, timeout=60, **options
    )
    if done.returncode:
        raise MissingHere(f"`{' '.join(words)}` failed: {' '.join(done.stderr.split())[:300]}")
    return done.stdout


_PATH = os.environ.get("PATH", "") + ":/usr/local/sbin:/usr/sbin:/sbin"
_MAKE = {
    "ext4": ("mkfs.ext4", "-q", "-F", "-b", "4096", "-m", "0", "-E", "lazy_itable_init=0"),
    "xfs": ("mkfs.xfs", "-q", "-f"),
    "btrfs": ("mkfs.btrfs", "-q", "-f", "--mixed"),
}
_SIZES = {"tmpfs": 24 << 20, "ext4": 32 << 20, "xfs": 320 << 20, "btrfs": 160 << 20}
KINDS = tuple(_SIZES)


class Disk:
    """One file system of a given kind.

    Args:
        place: a directory; the mount point and the image lie in it.
        kind: one of `KINDS`.
        size: bytes.
        make: further words for mkfs.
        options: further mount options.

    """

    def __init__(self, place, kind, size=None, *, make=(), options="", image=None):
        self.kind, self.size = kind, size or _SIZES[kind]
        self.path = os.path.join(place, kind)
        self._image = image or os.path.join(place, f"{kind}.image")
        self._options = options
        os.makedirs(self.path)
        if kind == "tmpfs":
            words = ",".join(filter(None, [f"size={self.size}", options]))
            run("mount", "-t", "tmpfs", "-o", words, "none", self.path)
            return
        if os.getuid() or "loop" not in _devices():
            raise MissingHere(f"{kind} on a loop device takes root and a kernel with loop devices")
        with open(self._image, "wb") as file:
            file.truncate(self.size)
        run(*_MAKE[kind], *make, self._image)
        self.mount()

    def mount(self):
        words = ",".join(filter(None, ["loop", self._options]))
        run("mount", "-t", self.kind, "-o", words, self._image, self.path)

    def unmount(self):
        run("umount", self.path)

    def check(self):
        """Repairs what an interrupted file system left, as a boot does."""
        subprocess.run(
            ["e2fsck", "-p", "-f", self._image], capture_output=True, check=False, env={"PATH": _PATH}
        )

    @property
    def device(self):
        """The loop device, such as ``loop0``."""
        with open("/proc/self/mounts", encoding="utf-8") as mounts:
            return next(os.path.basename(line.split()[0]) for line in mounts if line.split()[1] == self.path)

    @property
    def counts(self):
        """Whether what is deleted is free at once, and to the block."""
        return self.kind in ("tmpfs", "ext4")

    @property
    def free(self):
        """Bytes that a user may still write."""
        room = os.statvfs(self.path)
        return room.f_bavail * room.f_frsize

    def fill(self, leave):
        """Leaves so many bytes free, as nearly as the file system lets us; what is free then."""
        self.empty()
        with open(os.path.join(self.path, BALLAST), "wb") as file:
            step, size = 1 << 30, 0
            while step >= 4096:
                want = min(step, max(0, self.free - leave)) // 4096 * 4096
                try:
                    if want:
                        os.posix_fallocate(file.fileno(), size, want)
                        size += want
                    if self.free - leave < 4096:
                        break
                    if not want:
                        break
                except OSError:
                    step = min(step, want) // 2
        return self.free

    def fill_inodes(self, leave):
        """Leaves so many inodes free."""
        self.empty()
        place = os.path.join(self.path, f"{BALLAST}s")
        os.mkdir(place)
        for number in range(max(0, os.statvfs(self.path).f_favail - leave)):
            open(os.path.join(place, str(number)), "w", encoding="ascii").close()

    def empty(self):
        """Takes the ballast out, and waits for a file system that gives back its blocks later."""
        ballast = os.path.join(self.path, BALLAST)
        size = os.path.getsize(ballast) if os.path.exists(ballast) else 0
        before = self.free
        with contextlib.suppress(FileNotFoundError):
            os.unlink(ballast)
        shutil.rmtree(os.path.join(self.path, f"{BALLAST}s"), ignore_errors=True)
        for _ in range(500):
            if self.kind != "xfs" or self.free >= before + 0.9 * size:
                break
            time.sleep(0.01)


def _devices():
    with open("/proc/devices", encoding="ascii") as file:
        return set(re.findall(r"\d+ (\S+)", file.read()))
