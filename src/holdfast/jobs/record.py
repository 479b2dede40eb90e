"""What is kept of a submission in its run: ``RUN/submitted/<name>/`` with three files.

``script.sh`` is the batch script, ``submission.json`` says what was asked and which jobs it became, and
to ``ended`` each job adds a line when it ends. All are new files of the submission's own, so no lease is
needed; nothing that a training does depends on them.
"""

from __future__ import annotations

import contextlib
import datetime
import os
import secrets
from collections.abc import Iterable
from typing import Any

import msgspec

from holdfast import files
from holdfast.errors import FormatError, HoldfastError, NotFoundError
from holdfast.slurm.commands import Record
from holdfast.store.catalog import SUBMITTED

SCRIPT_FILE, SUBMISSION_FILE, ENDED_FILE = "script.sh", "submission.json", "ended"
_LIMIT = 1 << 20
_ENDED_LIMIT, _LINE_LIMIT = 1 << 20, 1000
_LETTERS = "abcdefghjkmnpqrstuvwxyz23456789"  # none that is taken for another


class Submission(msgspec.Struct, kw_only=True):
    """The content of `submission.json`.

    Attributes:
        id: its name.
        created: UTC, ISO 8601.
        directory: where the command runs.
        argv: the words of `holdfast submit`.
        command: those behind --.
        options: of sbatch: name → value, null for one without.
        mode: "array", "requeue" or "chain".
        tasks: how many jobs at most, one after another; the numbers of an array's tasks in `numbers`.
        jobs: the array's or the job's number; of a chain, all.
        output: the form of the log files' names, absolute.

    """

    format: str = "holdfast-submission"
    version: tuple[int, int] = (1, 0)
    id: str
    created: str
    user: str = ""
    host: str = ""
    directory: str
    argv: list[str]
    command: list[str]
    options: dict[str, str | None] = {}
    mode: str
    tasks: int
    numbers: list[int] = []
    jobs: list[str] = []
    output: str = ""

    def owns(self, job: Record) -> bool:
        """Whether a job of a number of its own is its own: another cluster, or a later time, may have given that to another."""
        return not job.command or f"/{SUBMITTED}/{self.id}/" in job.command


class Ended(msgspec.Struct, frozen=True):
    """One line of `ended`: a job that came to its end by itself. Times in seconds since the epoch.

    Attributes:
        number: of the task in the array, or of the job in the chain.
        job: its number in Slurm.
        doing: "setup", "gate" or "command": what it did last.

    """

    number: int
    job: str
    restart: int
    began: int
    ended: int
    code: int
    doing: str

    @property
    def failed(self) -> bool:
        """Whether something is wrong with it, other than that it was interrupted."""
        return self.code not in (0, 75)

    @property
    def was_asked(self) -> bool:
        """Whether it was a signal that asks for the end which ended it: SIGTERM, SIGUSR1, SIGUSR2, SIGINT."""
        return self.code in (143, 138, 140, 130)


def new_name(now: datetime.datetime | None = None) -> str:
    """A name that sorts by time and is nobody else's."""
    now = now or datetime.datetime.now(datetime.UTC)
    return f"{now:%Y%m%dT%H%M%SZ}-{''.join(secrets.choice(_LETTERS) for _ in range(4))}"


def folder(run: str, name: str) -> str:
    return os.path.join(run, SUBMITTED, name)


def write_script(run: str, name: str, text: str) -> str:
    """Writes the script; its path. The run's directory is made if there is none. Raises `StorageError`."""
    files.make_directory(os.path.join(run, SUBMITTED))
    place = folder(run, name)
    files.make_new_directory(place)
    path = os.path.join(place, SCRIPT_FILE)
    files.create_file(path, os.fsencode(text))
    files.sync_directory(place)
    return path


def write_submission(run: str, submission: Submission) -> None:
    """Writes down what was submitted. Raises `StorageError`."""
    path = os.path.join(folder(run, submission.id), SUBMISSION_FILE)
    data = msgspec.json.format(msgspec.json.encode(_printable(msgspec.to_builtins(submission))), indent=2)
    files.create_file(path, data + b"\n")
    files.sync_directory(os.path.dirname(path))


def _printable(value: Any) -> Any:
    """Without halves of characters, which a file name may have and JSON has not."""
    if isinstance(value, str):
        return value.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
    if isinstance(value, dict):
        return {_printable(key): _printable(item) for key, item in value.items()}
    return [_printable(item) for item in value] if isinstance(value, (list, tuple)) else value


def withdraw(run: str, name: str, *, fresh: bool) -> None:
    """Removes what `write_script` made, where nothing came of it; with `fresh` the run's directory, too, if it is empty."""
    files.remove_tree(folder(run, name))
    for directory in (os.path.join(run, SUBMITTED), *([run] if fresh else [])):
        with contextlib.suppress(OSError):
            if not os.listdir(directory):
                files.remove_empty_directory(directory)


def submissions(run: str) -> list[Submission]:
    """Those of a run, oldest first; what cannot be read is left out."""
    try:
        listing = sorted(os.listdir(os.path.join(run, SUBMITTED)))
    except OSError:
        return []
    found = []
    for name in listing:
        with contextlib.suppress(HoldfastError):
            found.append(read_submission(run, name))
    return sorted(found, key=lambda submission: (submission.created, submission.id))


def read_submission(run: str, name: str) -> Submission:
    """What was written down of one. Raises `NotFoundError`, `FormatError` or `StorageError`."""
    path = os.path.join(folder(run, name), SUBMISSION_FILE)
    try:
        return msgspec.json.decode(files.read_file(path, _LIMIT), type=Submission)
    except msgspec.MsgspecError as error:
        raise FormatError(f"{path} is not as holdfast submit writes it: {error}.", path=path) from error


def ends(run: str, name: str) -> list[Ended]:
    """The jobs of a submission that came to an end by themselves, in that order."""
    path = os.path.join(folder(run, name), ENDED_FILE)
    try:
        return list(_read_ends(files.read_lines(path, _ENDED_LIMIT, _LINE_LIMIT)))
    except (NotFoundError, FormatError):
        return []


def _read_ends(lines: Iterable[bytes]) -> Iterable[Ended]:
    for line in lines:
        words = line.decode("ascii", "replace").split()
        numbers = [int(word) if word.isdecimal() and len(word) < 12 else None for word in words[:6]]
        if len(words) == 7 and None not in numbers:
            number, job, restart, began, ended, code = (value or 0 for value in numbers)
            yield Ended(number, str(job), restart, began, ended, code, words[6])
