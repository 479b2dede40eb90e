"""Slurm's own commands, asked with a limit of time: a controller that hangs must not hang a training.

Answers are read from `scontrol`, which every node of a cluster has, with or without accounting.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence

from holdfast.errors import SlurmError

PATIENCE = 5.0
"""Seconds after which a command counts as not answered; with the controller down it would try for 20."""

RUNNING = frozenset({"RUNNING", "SUSPENDED", "STOPPED", "CONFIGURING", "SIGNALING", "STAGE_OUT", "RESIZING"})
ENDING = frozenset({"COMPLETING"})
WAITING = frozenset({"PENDING", "REQUEUED", "REQUEUE_FED", "REQUEUE_HOLD", "SPECIAL_EXIT", "RESV_DEL_HOLD"})
ENDED = frozenset(
    [
        "BOOT_FAIL",
        "CANCELLED",
        "COMPLETED",
        "DEADLINE",
        "FAILED",
        "NODE_FAIL",
        "OUT_OF_MEMORY",
        "PREEMPTED",
        "REVOKED",
        "TIMEOUT",
    ]
)
_UNKNOWN_JOB = "Invalid job id"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Record:
    """What the controller knows of one job. Times are seconds since the epoch, None where there is none.

    Attributes:
        id: its own number.
        name: as the user called it.
        array: the number of its job array, or empty.
        task: its number in the array; several, like ``4-10%1``, while they wait.
        state: one word of `RUNNING`, `ENDING`, `WAITING` or `ENDED`.
        reason: why it waits, or why it ended.
        restarts: how often it was started again.
        requeue: whether it may be.
        start: when it began, or is expected to.
        end: when it ended, or when its time will be over.
        preempt: when it was told that others take its place.
        exit_code: like ``75:0``, the second number being a signal.
        command: its script, with arguments; empty where Slurm does not tell.
        output: the file of its standard output.
        errors: the file of its standard error.

    """

    id: str
    name: str = ""
    array: str = ""
    task: str = ""
    state: str
    reason: str = ""
    restarts: int = 0
    requeue: bool = False
    start: float | None = None
    end: float | None = None
    preempt: float | None = None
    exit_code: str = ""
    command: str = ""
    output: str = ""
    errors: str = ""

    @property
    def shown(self) -> str:
        """The number as Slurm's commands take it: ``4242``, or ``4240_3``."""
        return f"{self.array}_{self.task}" if self.array and self.task else self.id


class Question:
    """One command under way; nobody has to wait for its answer."""

    def __init__(
        self,
        words: Sequence[str],
        *,
        environ: Mapping[str, str] | None = None,
        patience: float | None = None,
    ) -> None:
        """Starts the command; `environ` is what it sees, `patience` is in seconds."""
        self.words = tuple(words)
        self._patience = PATIENCE if patience is None else patience
        self._until = time.monotonic() + self._patience
        program = shutil.which(words[0])
        if program is None:
            raise SlurmError(f"There is no command {words[0]} here.", command=words[0], missing=True)
        if environ is None:
            # Times as plain seconds; and no format of the user's own.
            formats = {"SLURM_TIME_FORMAT": "%s", "SQUEUE_FORMAT": "", "SLURM_CLUSTERS": ""}
            environ = {name: value for name, value in {**os.environ, **formats}.items() if value}
        try:
            self._process = subprocess.Popen(  # noqa: S603 (one of Slurm's commands)
                [program, *words[1:]],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                errors="replace",
                env=environ,
                # What a signal to the training's group, or Ctrl-C, asks for is not asked of this.
                start_new_session=True,
            )
        except OSError as error:
            raise SlurmError(f"{words[0]} cannot be started: {error.strerror}.", command=words[0]) from error

    @property
    def ready(self) -> bool:
        """Whether `answer` returns, or raises, at once."""
        return self._process.poll() is not None or time.monotonic() >= self._until

    def answer(self) -> str:
        """What the command printed; waits for it.

        Raises:
            SlurmError: it failed (`code`, `said`), or did not answer in time.

        """
        process = self._process
        left = max(0.0, self._until - time.monotonic())
        try:
            # What has answered is heard, however late somebody looks.
            printed, said = process.communicate(timeout=left if process.poll() is None else max(left, 1.0))
        except subprocess.TimeoutExpired:
            self.give_up()
            raise SlurmError(
                f"{self.words[0]} gave no answer for {self._patience:.0f} s. Next: look whether Slurm's controller is up "
                f"(scontrol ping).",
                command=self.words[0],
            ) from None
        except BaseException:
            self.give_up()
            raise
        if process.returncode:
            said = (said.strip() or printed.strip()).replace("\n", "; ")
            raise SlurmError(
                f"{self.words[0]} failed with exit code {process.returncode}: {said or 'it said nothing'}.",
                command=self.words[0],
                code=process.returncode,
                said=said,
            )
        return printed

    def give_up(self) -> None:
        """Ends the command, with all that it has started: a site's own script around it, say."""
        if self._process.poll() is None:
            with contextlib.suppress(OSError):
                os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        for pipe in (self._process.stdout, self._process.stderr):
            if pipe is not None:
                pipe.close()


def run(*words: str) -> str:
    """What a command prints; waits for it, at most `PATIENCE` seconds. Raises `SlurmError`."""
    return Question(words).answer()


def ask_for_job(number: str) -> Question:
    """Asks for one job; `read_job` reads the answer."""
    return Question(("scontrol", "show", "job", number))


def read_job(question: Question, number: str) -> Record | None:
    """The job that was asked for; None when the controller does not know it (any more)."""
    try:
        records = read_records(question.answer())
    except SlurmError as error:
        if _UNKNOWN_JOB in error.facts.get("said", ""):
            return None
        raise
    # Of an array that is asked for by its number come all tasks, of which one may have that number itself.
    own = [record for record in records if record.id == number]
    return own[0] if own else None


def job(number: str) -> Record | None:
    """What the controller says of one job; None when it does not know it (any more). Raises `SlurmError`."""
    return read_job(ask_for_job(number), number)


def read_jobs(question: Question) -> list[Record]:
    """All tasks of the array, or the one job, that was asked for; empty when the controller does not know it."""
    try:
        return read_records(question.answer())
    except SlurmError as error:
        if _UNKNOWN_JOB in error.facts.get("said", ""):
            return []
        raise


def jobs(number: str) -> list[Record]:
    """All tasks of an array, or one job; empty when the controller does not know it. Raises `SlurmError`."""
    return read_jobs(ask_for_job(number))


def requeue(address: str) -> None:
    """Lets Slurm end a job (`Job.address`) and start it again. Raises `SlurmError`."""
    run("scontrol", "requeue", address)


def settings() -> dict[str, str]:
    """The controller's configuration, as `scontrol show config` prints it. Raises `SlurmError`."""
    return read_settings(run("scontrol", "show", "config"))


# -- reading -----------------------------------------------------------------------------------

_PAIR = re.compile(r"(?:^|(?<=\s))([A-Za-z][\w:/.-]*)=")
# Their values are anybody's words, up to the end of the line.
_WHOLE_LINE = ("JobName", "Comment", "AdminComment", "Command", "WorkDir", "StdErr", "StdIn", "StdOut")


def read_records(text: str) -> list[Record]:
    """The jobs in the lines that `scontrol show job` prints."""
    found: list[dict[str, str]] = []
    for line in text.splitlines():
        fields = _fields(line)
        if line.startswith("JobId=") and fields:
            found.append(fields)
        elif found:
            for name, value in fields.items():
                found[-1].setdefault(name, value)
    return [_record(fields) for fields in found if fields.get("JobState")]


def _fields(line: str) -> dict[str, str]:
    fields: dict[str, str] = {}
    text = line.strip()
    while found := _PAIR.match(text):
        name, rest = found[1], text[found.end() :]
        following = None if name in _WHOLE_LINE else _PAIR.search(rest)
        fields[name] = rest[: following.start()].strip() if following else rest.strip()
        text = rest[following.start() :] if following else ""
    return fields


def _record(fields: dict[str, str]) -> Record:
    array = fields.get("ArrayJobId", "")
    return Record(
        id=fields["JobId"],
        name=fields.get("JobName", ""),
        array=array,
        task=fields.get("ArrayTaskId", "") if array else "",
        state=fields["JobState"].split()[0],
        reason="" if fields.get("Reason") == "None" else fields.get("Reason", ""),
        restarts=int(fields.get("Restarts", "0")) if fields.get("Restarts", "0").isdecimal() else 0,
        requeue=fields.get("Requeue") == "1",
        start=_moment(fields.get("StartTime")),
        end=_moment(fields.get("EndTime")),
        preempt=_moment(fields.get("PreemptTime")),
        exit_code=fields.get("ExitCode", ""),
        command="" if fields.get("Command") == "(null)" else fields.get("Command", ""),
        output=fields.get("StdOut", ""),
        errors=fields.get("StdErr", ""),
    )


def _moment(text: str | None) -> float | None:
    return float(text) if text and text.isdecimal() else None


def read_settings(text: str) -> dict[str, str]:
    """Names and values of `scontrol show config`."""
    pairs = (line.partition("=") for line in text.splitlines() if "=" in line)
    return {name.strip(): value.strip() for name, _, value in pairs}
