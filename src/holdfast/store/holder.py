"""Who holds a run's lease: the identity in a lease file, and what it proves about its life.

A lease file is one JSON object padded with spaces to a fixed length, so that its writer can
replace it in place. A reader may meet a mixture of two beats; what it cannot parse says only
that somebody is there.
"""

from __future__ import annotations

import dataclasses
import errno
import functools
import json
import os
import socket
import sys
import time
import uuid
from collections.abc import Collection, Sequence
from typing import Any, Literal

from holdfast import files
from holdfast.errors import FormatError, NotFoundError, StorageError

Life = Literal["released", "dead", "alive", "ours", "unknown"]

_LIMIT = 1 << 16
_UNIT = 512
_VANISHED = {errno.ENOENT, errno.ESTALE}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Holder:
    """One process that acquired a lease. All that a damaged file did not tell has its default."""

    generation: int
    host: str = ""
    user: str = ""
    pid: int = 0
    boot_id: str = ""
    pid_namespace: int = 0  # inode; 0 means unknown, and then a pid proves nothing
    process_start: str = ""  # clock ticks after the boot; empty where the system does not tell
    slurm_cluster: str = ""
    slurm_job: str = ""
    slurm_task: str = ""  # of the job array
    slurm_restart: int = 0
    acquired: str = ""  # UTC, ISO 8601
    token: str = ""  # of this one acquisition
    beat: int = 0
    released: bool = False

    def describe(self) -> str:
        """Words like ``pid 4242 on node7 (Slurm job 1234), since 2026-11-23 08:31:07 UTC``."""
        if not self.pid:
            return f"a process that cannot be named ({lease_name(self.generation)} is unreadable)"
        owner = f" of {self.user}" if self.user and self.user != _user() else ""
        job = self.slurm_job + (f", array task {self.slurm_task}" if self.slurm_task else "")
        job += f", restart {self.slurm_restart}" if self.slurm_restart else ""
        slurm = f" (Slurm job {job})" if self.slurm_job else ""
        since = self.acquired.replace("T", " ").removesuffix("Z")
        return f"pid {self.pid}{owner} on {self.host}{slurm}, since {since} UTC"


def lease_name(generation: int) -> str:
    return f"lease-{generation:06d}"


def myself(generation: int) -> Holder:
    """The identity of this process, at the moment it acquires."""
    return Holder(
        generation=generation,
        host=socket.gethostname(),
        user=_user(),
        pid=os.getpid(),
        boot_id=_boot_id(),
        pid_namespace=_pid_namespace(),
        process_start=process_start(os.getpid()) or "",
        slurm_cluster=os.environ.get("SLURM_CLUSTER_NAME", ""),
        slurm_job=os.environ.get("SLURM_JOB_ID", ""),
        slurm_task=os.environ.get("SLURM_ARRAY_TASK_ID", ""),
        slurm_restart=_whole_number(os.environ.get("SLURM_RESTART_COUNT")),
        acquired=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        token=uuid.uuid4().hex,
    )


# -- the file --------------------------------------------------------------------------------


def encode(holder: Holder) -> bytes:
    """The lease file's content; one length for all beats of a holder."""
    # Counted from the first beat, with room for the last, so that no beat changes the size.
    first = len(_line(dataclasses.replace(holder, beat=0, released=False)))
    size = -(-(first + 64) // _UNIT) * _UNIT
    return _line(holder).ljust(size - 1) + b"\n"


def _line(holder: Holder) -> bytes:
    return json.dumps(dataclasses.asdict(holder), separators=(",", ":")).encode("ascii")


def decode(data: bytes, generation: int) -> Holder:
    """The holder that a lease file names; a nameless one (`pid` 0) when the bytes make no sense."""
    nameless = Holder(generation=generation)
    try:
        values = json.loads(data)
    except (ValueError, RecursionError):
        return nameless
    if not isinstance(values, dict):
        return nameless
    known: dict[str, Any] = {}
    for field in dataclasses.fields(Holder):
        value = values.get(field.name, field.default)
        if field.name == "generation":
            value = generation
        elif type(value) is not type(field.default):
            return nameless
        known[field.name] = value
    return Holder(**known) if known["pid"] > 0 else nameless


def read_holder(run: str, generation: int) -> tuple[Holder, bytes] | None:
    """A lease file's holder and its raw bytes; None when the file is gone."""
    path = os.path.join(run, lease_name(generation))
    try:
        data = files.read_file(path, _LIMIT)
    except NotFoundError:
        return None
    except FormatError:
        # A link, a folder, something huge: somebody's, but nothing that names a holder.
        data = b""
    except StorageError as error:
        if error.errno in _VANISHED:
            return None
        raise
    return decode(data, generation), data


def signature() -> str:
    """A part of a name that tells of this process: who finds what it left can see whether it still lives."""
    me = myself(0)
    return f"{me.boot_id}_{me.pid_namespace}_{me.pid}_{me.process_start}"


def signed(fields: Sequence[str]) -> Holder | None:
    """The process that such a name, split at its underscores, tells of; None where it tells of none."""
    if len(fields) != 4 or not (fields[1] + fields[2]).isdigit():
        return None
    boot, namespace, pid, start = fields
    return Holder(generation=0, boot_id=boot, pid_namespace=int(namespace), pid=int(pid), process_start=start)


# -- is it alive? ------------------------------------------------------------------------------


def judge(holder: Holder, me: Holder, held: Collection[str]) -> Life:
    """What the identity alone proves; ``unknown`` means that only the beat can tell.

    Args:
        holder: who is named by the lease.
        me: the contender.
        held: the tokens of the leases that this very process holds.

    """
    if holder.released:
        return "released"
    if not holder.pid:
        return "unknown"
    job = (holder.slurm_cluster, holder.slurm_job, holder.slurm_task)
    same_job = holder.slurm_job and job == (me.slurm_cluster, me.slurm_job, me.slurm_task)
    if same_job and me.slurm_restart > holder.slurm_restart:
        # Slurm ends every process of a job before it starts the job again.
        return "dead"
    if not holder.boot_id or not holder.pid_namespace:
        return "unknown"
    if (holder.boot_id, holder.pid_namespace) != (me.boot_id, me.pid_namespace):
        return "unknown"
    if holder.pid == me.pid and holder.token in held:
        return "ours"
    start = process_start(holder.pid)
    if start is None:
        return "dead"
    if not start or not holder.process_start:
        return "unknown"
    if start != holder.process_start:
        return "dead"
    # The same process without the token: it exec'ed, and the program that held is gone.
    return "dead" if holder.pid == me.pid else "alive"


def process_start(pid: int) -> str | None:
    """When a process of this pid namespace started, in clock ticks after the boot.

    None: there is no such process. Empty: it is there, but the system does not tell.
    """
    if not _exists(pid):
        return None
    if not _proc_is_ours():
        return ""
    try:
        with open(f"/proc/{pid}/stat", "rb") as stat:
            # The name in parentheses may hold anything; the numbers follow the last one.
            fields = stat.read().rpartition(b")")[2].split()
        threads = len(os.listdir(f"/proc/{pid}/task"))
    except OSError:
        # Hidden (hidepid, no /proc), or it has just ended.
        return "" if _exists(pid) else None
    if len(fields) < 20:
        return ""
    if fields[0] in (b"Z", b"X") and threads <= 1:
        return None  # Ended, and not yet waited for by its parent.
    return fields[19].decode("ascii")


def _proc_is_ours() -> bool:
    """Whether /proc shows this process's own pid namespace: a new one may still see that of its parent."""
    try:
        return os.readlink("/proc/self") == str(os.getpid())
    except OSError:
        return False


def _exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return True


def _whole_number(text: str | None) -> int:
    return int(text) if text and text.isdecimal() and len(text) < 10 else 0


def _user() -> str:
    import pwd

    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:  # A container often has no entry for its user.
        return str(os.getuid())


@functools.cache
def _boot_id() -> str:
    if sys.platform == "darwin":
        return _mac_boot_id()
    try:
        with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as boot:
            return boot.read().strip()
    except OSError:
        return ""


def _mac_boot_id() -> str:
    import ctypes

    value = ctypes.create_string_buffer(64)
    size = ctypes.c_size_t(len(value))
    failed = ctypes.CDLL(None).sysctlbyname(b"kern.bootsessionuuid", value, ctypes.byref(size), None, 0)
    return "" if failed else value.value.decode("ascii")


def _pid_namespace() -> int:
    if sys.platform == "darwin":
        return 1  # There is only one.
    try:
        return os.stat("/proc/self/ns/pid").st_ino
    except OSError:
        return 0
