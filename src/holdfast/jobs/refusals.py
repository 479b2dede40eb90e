"""What `holdfast submit` refuses, because it cannot work or would harm: each with its reason and a remedy."""

from __future__ import annotations

import math
import os
import re
import shlex
import shutil
from collections.abc import Mapping, Sequence

from holdfast.errors import SlurmError, UsageError
from holdfast.jobs.naming import limit_seconds, tells_apart
from holdfast.jobs.words import Option, last, values
from holdfast.slurm import sbatch

_LOCAL = ("/tmp", "/var/tmp", "/dev/shm", "/run")  # noqa: S108 (nothing is written there)
_PYTHON = re.compile(r"python(\d+(\.\d+)*)?\Z")
# Options of the interpreter whose value is the next word.
_WITH_VALUE = frozenset({"-W", "-X", "--check-hash-based-pycs"})
_NO_FILE = frozenset({"-m", "-c", "-", "-h", "-V", "--help", "--version"})


def check_options(options: Sequence[Option], *, mode: str, tasks_given: bool) -> None:
    """Refuses options that make no sense here, or with one another."""
    _check_unwanted(options)
    array = last(options, "array")
    if array is not None:
        if mode != "array" or tasks_given:
            asked = {"requeue": "--requeue", "chain": "--chain"}.get(mode, "--tasks")
            raise UsageError(
                f"{array.shown} and {asked} are two ways to continue one training. Next: keep one of them: --tasks N "
                f"is --array=1-N%1.",
                found=array.shown,
            )
        _check_array(array)
    if mode == "requeue" and last(options, "no-requeue") is not None:
        raise UsageError(
            "--requeue and --no-requeue contradict one another. Next: leave one out.", found="--no-requeue"
        )
    if mode == "array":
        for name in ("output", "error"):
            _check_log(last(options, name))


def _check_unwanted(options: Sequence[Option]) -> None:
    remedies = {
        "wrap": "put the command behind --: holdfast submit --run RUN … -- python train.py",
        "wait": "leave it out, and look with holdfast status RUN --watch",
        "test-only": "holdfast submit --print shows the script; sbatch --test-only takes it",
        "parsable": "use --json",
        "usage": "sbatch --usage",
        "version": "sbatch --version",
    }
    for option in options:
        if option.name in remedies:
            raise UsageError(
                f"{option.shown} cannot be passed on: holdfast submit writes a script and hands it to sbatch. Next: "
                f"{remedies[option.name]}.",
                found=option.shown,
            )


def _check_array(option: Option) -> None:
    spec = option.value or ""
    several = not spec.isdecimal()
    if several and not re.search(r"%0*1\Z", spec):
        raise UsageError(
            f"{option.shown} would run several tasks at a time, and one training is written by one process. Next: "
            f"--array={spec.partition('%')[0] or '1-10'}%1.",
            found=spec,
        )


def _check_log(option: Option | None) -> None:
    if option is None or option.value is None or option.value == "/dev/null":
        return
    if not tells_apart(option.value):
        raise UsageError(
            f"{option.shown}: all tasks of the array would write this one file. Next: --{option.name}=%A-%a"
            f"{os.path.splitext(option.value)[1] or '.out'}.",
            found=option.value,
        )


def check_log_places(options: Sequence[Option], directory: str) -> None:
    """Refuses a log in a directory that is not there: Slurm makes none, and the job fails without a word."""
    for name in ("output", "error"):
        option = last(options, name)
        place = (
            os.path.dirname(os.path.join(directory, option.value)) if option and option.value else directory
        )
        if option is None or "%" in place or os.path.isdir(place):
            continue
        raise UsageError(
            f"{option.shown}: there is no directory {place}, and Slurm makes none for a log: the jobs would fail without a "
            f"word. Next: mkdir -p {shlex.quote(place)}",
            path=place,
        )


_NO_LIMIT = (
    'Next: --time=01:00:00, say, or time = "01:00:00" in [tool.holdfast.slurm]. Short jobs start sooner, and the '
    "next one continues."
)


def check_time(options: Sequence[Option], environ: Mapping[str, str]) -> None:
    """Refuses a job without a time limit: the last save is planned from it. Asks Slurm if it must."""
    option = last(options, "time")
    given = option.value if option is not None else environ.get("SBATCH_TIMELIMIT")
    if given and limit_seconds(given) == math.inf:
        shown = option.shown if option is not None else f"SBATCH_TIMELIMIT={given}"
        raise UsageError(
            f"There is no time limit: {shown} asks for none, and the last save is planned from it. {_NO_LIMIT}",
            found=given,
        )
    if option is not None or given:
        return
    names = _partitions(options, environ)
    try:
        known = sbatch.partitions()
    except SlurmError as error:
        raise UsageError(
            f"There is no time limit: no --time, and whether the partition has one is not known here ({error}) {_NO_LIMIT}",
            found=None,
        ) from error
    names = names or [part.name for part in known if part.default]
    without = [part.name for part in known if part.name in names and not part.default_time]
    if without or not any(part.name in names for part in known):
        where = f"the partition {(without or names or ['of the cluster'])[0]}"
        raise UsageError(
            f"There is no time limit: no --time, and {where} has no DefaultTime. {_NO_LIMIT}", found=None
        )


def _partitions(options: Sequence[Option], environ: Mapping[str, str]) -> list[str]:
    """The partitions that are asked for by name."""
    chosen = values(options).get("partition") or environ.get("SBATCH_PARTITION")
    return chosen.split(",") if chosen else []


def limit_warning(options: Sequence[Option], environ: Mapping[str, str]) -> str | None:
    """Words on a time limit that no partition asked for allows; None when there is nothing to say. Asks Slurm."""
    option = last(options, "time")
    asked = limit_seconds(option.value or "") if option is not None else None
    if option is None or asked is None:
        return None
    try:
        known = sbatch.partitions()
    except SlurmError:
        return None
    names = _partitions(options, environ)
    chosen = [part for part in known if (part.name in names if names else part.default)]
    if not chosen or any(asked <= (limit_seconds(part.max_time) or math.inf) for part in chosen):
        return None
    return (
        f"{option.shown} is more than the partition {chosen[0].name} allows ({chosen[0].max_time}): the jobs may wait for "
        f"ever. Next: a shorter --time; the next job continues."
    )


def check_command(command: Sequence[str], directory: str, *, prepared: bool) -> None:
    """Refuses a program or a script that is not there.

    Args:
        command: its words.
        directory: where it will run.
        prepared: whether modules, conda or setup lines come first: they may bring the program.

    """
    if not command or not command[0]:
        raise UsageError(
            "There is no command to run. Next: put it behind --: holdfast submit --run RUN … -- python train.py."
        )
    for word in command:
        if "\0" in word:
            raise UsageError("An argument holds a NUL character, which no program can get.", found=word)
    program = command[0]
    if os.sep in program:
        _check_program(os.path.join(directory, program), program)
    elif not prepared and shutil.which(program) is None:
        raise UsageError(
            f"There is no program {program} in the search path. Next: name it by its path; or, if a module or an "
            f"environment brings it in the job, say so with --module, --conda or --setup.",
            found=program,
        )
    script = _script_of(command)
    if script is not None and not os.path.exists(os.path.join(directory, script)):
        raise UsageError(
            f"There is no file {os.path.join(directory, script)}, which the command would run. Next: correct its name, "
            f"or submit from the directory that it is in.",
            found=script,
        )


def _check_program(path: str, program: str) -> None:
    if not os.path.exists(path):
        raise UsageError(f"There is no program {path}. Next: correct its name.", found=program)
    if os.path.isdir(path) or not os.access(path, os.X_OK):
        raise UsageError(
            f"{path} cannot be executed. Next: chmod +x {program}, or name its interpreter: python {program}.",
            found=program,
        )


def _script_of(command: Sequence[str]) -> str | None:
    """The file that a python is told to run; None if it is none, or is told something else."""
    words = list(command)
    if not _PYTHON.match(os.path.basename(words[0])):
        return None
    words.pop(0)
    while words:
        word = words.pop(0)
        if word in _WITH_VALUE and words:
            words.pop(0)
        elif word in _NO_FILE or word.startswith(("-m", "-c")):
            return None
        elif not word.startswith("-"):
            return word
    return None


def check_places(run: str, directory: str, environ: Mapping[str, str]) -> None:
    """Refuses places that are likely to be on this machine alone."""
    scratch = environ.get("TMPDIR", "")
    local = [*_LOCAL, *([scratch] if os.path.isabs(scratch) and os.path.normpath(scratch) != "/" else [])]
    for what, path in (("The run", run), ("The directory", directory)):
        real = os.path.realpath(path)
        found = next((place for place in local if _is_below(real, os.path.realpath(place))), None)
        if found is not None:
            raise UsageError(
                f"{what} {path} lies in {found}, which other nodes do not see, or see as a place of their own. Next: use a "
                f"directory that all nodes share; if this is the only machine, say --allow-local.",
                path=path,
                found=found,
            )


def _is_below(path: str, place: str) -> bool:
    return path == place or path.startswith(os.path.join(place, ""))


def signal_warning(options: Sequence[Option], command: Sequence[str]) -> str | None:
    """Words on a --signal that reaches nobody; None when there is nothing to say."""
    option = last(options, "signal")
    if option is None or option.value is None or os.path.basename(command[0]) == "srun":
        return None
    if "B" in option.value.partition(":")[0] and ":" in option.value:
        return None
    return (
        f"{option.shown} reaches only what srun starts, so nothing here. The save before the time limit needs no signal; "
        f"if you want one, write --signal=B:{option.value.rpartition(':')[2]}."
    )
