"""Submitting a training: what was asked becomes a script, is looked at, and handed to sbatch."""

from __future__ import annotations

import dataclasses
import os
import re
import socket
import sys
from collections.abc import Mapping, Sequence

from holdfast.errors import HoldfastError, NotFoundError, SlurmError, UsageError
from holdfast.jobs import record, refusals, rivals
from holdfast.jobs.defaults import Defaults
from holdfast.jobs.naming import fill, task_numbers
from holdfast.jobs.script import Mode, Plan, render
from holdfast.jobs.words import Option, last, merge, read_options, values
from holdfast.log import logger
from holdfast.session import check_place
from holdfast.slurm import sbatch
from holdfast.state.environment import without_secrets
from holdfast.store import book, catalog, sources

TASKS = 10
"""Tasks of an array when nobody says how many: those that are not needed end at once."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Request:
    """What `holdfast submit` was asked for; None and empty where nothing was said."""

    run: str
    command: tuple[str, ...]
    words: tuple[str, ...] = ()
    tasks: int | None = None
    chain: int | None = None
    requeue: bool = False
    modules: tuple[str, ...] = ()
    conda: str | None = None
    setup: tuple[str, ...] = ()
    allow_local: bool = False


def make_plan(
    request: Request,
    defaults: Defaults,
    *,
    here: str,
    environ: Mapping[str, str] = os.environ,
    name: str | None = None,
) -> Plan:
    """What is to be submitted, looked at from all sides; asks Slurm for a time limit if none was given.

    Args:
        request: of the user.
        defaults: of the project.
        here: the current directory.
        environ: of this process.
        name: of the submission; a new one by default.

    Raises:
        UsageError: it cannot work; nothing was written.

    """
    given = read_options(request.words)
    mode, tasks = _mode(request, defaults, given)
    options = merge(defaults.options, given)
    sources.local(request.run, "holdfast submit", "the run's directory here; its script names the mirrors")
    run = os.path.abspath(os.path.join(here, os.path.expanduser(request.run)))
    chdir = last(options, "chdir")
    directory = os.path.abspath(os.path.join(here, chdir.value if chdir and chdir.value else "."))
    modules, conda = request.modules or defaults.modules, request.conda or defaults.conda
    setup = request.setup or defaults.setup
    refusals.check_options(options, mode=mode, tasks_given=request.tasks is not None)
    refusals.check_command(request.command, directory, prepared=bool(modules or conda or setup))
    if not os.path.isdir(directory):
        raise UsageError(f"There is no directory {directory}. Next: correct --chdir.", path=directory)
    refusals.check_log_places(options, directory)
    if not request.allow_local and not defaults.allow_local:
        refusals.check_places(run, directory, environ)
    check_place(run)
    refusals.check_time(options, environ)
    warning = refusals.signal_warning(options, request.command)
    if warning:
        logger.warning("%s", warning)
    _warn_if_complete(run)
    array = last(options, "array")
    if mode == "array" and array is not None:
        numbers = task_numbers(array.value or "")
        tasks = len(numbers)
    return Plan(
        submission=name or record.new_name(),
        run=run,
        directory=directory,
        command=request.command,
        options=tuple(_complete(options, mode, tasks, run)),
        mode=mode,
        tasks=tasks,
        modules=modules,
        conda=conda,
        setup=setup,
        python=sys.executable,
        written=book.now().replace("T", " ").partition(".")[0] + " UTC",
    )


def _mode(request: Request, defaults: Defaults, given: Sequence[Option]) -> tuple[Mode, int]:
    asked = [
        (name, count)
        for name, count in (("tasks", request.tasks), ("chain", request.chain))
        if count is not None
    ]
    if request.requeue:
        asked.append(("requeue", 1))
    if len(asked) > 1:
        raise UsageError(
            f"{' and '.join(f'--{name}' for name, _ in asked)} are different ways to continue one training. "
            f"Next: keep one of them.",
            found=[name for name, _ in asked],
        )
    if not asked and last(given, "array") is not None:
        return "array", 1
    name, count = asked[0] if asked else defaults.mode or ("tasks", TASKS)
    if count < 1:
        raise UsageError(f"--{name} {count}: expected at least 1.", found=count)
    modes: dict[str, Mode] = {"tasks": "array", "chain": "chain", "requeue": "requeue"}
    return modes[name], count


def _complete(options: Sequence[Option], mode: Mode, tasks: int, run: str) -> list[Option]:
    """The options with what this way of continuing needs, and with names for job and log."""
    chosen = values(options)
    added = []
    if "job-name" not in chosen:
        added.append(_long("job-name", re.sub(r"[^\w.+-]+", "_", os.path.basename(run)) or "training"))
    if mode == "array" and "array" not in chosen:
        added.append(_long("array", f"1-{tasks}%1"))
    if "output" not in chosen:
        added.append(_long("output", "%A-%a.out" if mode == "array" else "%j.out"))
    if "open-mode" not in chosen:
        # Else a job that is started again empties its log.
        added.append(_long("open-mode", "append"))
    if mode == "requeue" and "requeue" not in chosen:
        added.append(Option("requeue", None, ("--requeue",)))
    return [*added, *options]


def _long(name: str, value: str) -> Option:
    return Option(name, value, (f"--{name}={value}",))


def _warn_if_complete(run: str) -> None:
    if not catalog.is_run(run):
        return
    try:
        reached = book.read_run(run).reached
    except NotFoundError:
        return
    if reached:
        logger.warning(
            "%s is complete (%s %s); it goes on only if the command asks for more.",
            run,
            reached.get("value"),
            reached.get("kind"),
        )


def log_files(plan: Plan, jobs: Sequence[str]) -> list[str]:
    """The names of the log files, where they can be told: one of each job."""
    form = log_form(plan)
    named = values(plan.options).get("job-name") or ""
    if plan.mode != "array":
        return [name for job in jobs if (name := fill(form, job=job, name=named))]
    numbers = numbers_of(plan)
    return [name for number in numbers if (name := fill(form, array=jobs[0], task=number, name=named))]


def log_form(plan: Plan) -> str:
    output = values(plan.options).get("output") or ""
    return os.path.join(plan.directory, output)


def numbers_of(plan: Plan) -> list[int]:
    """The task numbers of an array; empty for other modes."""
    return task_numbers(values(plan.options).get("array") or "") if plan.mode == "array" else []


def submit(plan: Plan, argv: Sequence[str], *, environ: Mapping[str, str] = os.environ) -> record.Submission:
    """Writes the script and hands it to sbatch: all jobs, or none.

    Raises:
        UsageError: there is no sbatch here, or the script cannot be written so.
        SlurmError: sbatch refused; what it said is in the message, and nothing is left behind.
        StorageError: the run cannot be written; or, after jobs were queued, what was submitted cannot be
            written down.

    """
    text = render(plan)
    if not sbatch.available():
        raise UsageError(
            "There is no sbatch here. Next: call holdfast submit on a login node of the cluster; --print shows the script "
            "anywhere."
        )
    for line in (refusals.limit_warning(plan.options, environ), *_on_rivals(plan)):
        if line is not None:
            logger.warning("%s", line)
    fresh = not os.path.lexists(plan.run)
    visible = sbatch.environment(values(plan.options), environ)
    jobs: list[str] = []
    try:
        path = record.write_script(plan.run, plan.submission, text)
        for number in range(1, (plan.tasks if plan.mode == "chain" else 1) + 1):
            after = [f"--dependency=afterany:{jobs[-1]}"] if jobs else []
            arguments = [str(number)] if plan.mode == "chain" else []
            jobs.append(sbatch.submit(path, after, environ=visible, arguments=arguments))
    except BaseException as error:
        _take_back(plan, jobs, error, fresh=fresh)
        raise
    submission = record.Submission(
        id=plan.submission,
        created=book.now(),
        user=os.environ.get("USER", ""),
        host=socket.gethostname(),
        directory=plan.directory,
        argv=without_secrets(argv),
        command=without_secrets(plan.command),
        options=dict(values(plan.options)),
        mode=plan.mode,
        tasks=plan.tasks,
        numbers=numbers_of(plan),
        jobs=jobs,
        output=log_form(plan),
    )
    try:
        record.write_submission(plan.run, submission)
    except HoldfastError:
        logger.warning("Submitted all the same: %s. holdfast status will not know of it.", " ".join(jobs))
        raise
    return submission


def _on_rivals(plan: Plan) -> list[str]:
    """Words on what else would write the run; none where the jobs wait for others anyway."""
    return [] if last(plan.options, "dependency") is not None else rivals.warnings(plan.run)


def _take_back(plan: Plan, jobs: Sequence[str], error: BaseException, *, fresh: bool) -> None:
    """After a failure: no job of this submission stays, and no file; the run's directory only if it was there."""
    if isinstance(error, SlurmError) and error.facts.get("code") is None and not error.facts.get("missing"):
        # The job may be queued, and would miss its script's folder.
        logger.warning(
            "It may be queued all the same%s: look with squeue --me, and cancel what is too much. Its script stays in %s.",
            f" (after {' '.join(jobs)})" if jobs else "",
            record.folder(plan.run, plan.submission),
        )
        return
    if jobs:
        try:
            sbatch.cancel(jobs)
        except HoldfastError as failure:
            logger.warning("Queued before that, and not cancelled: %s (%s)", " ".join(jobs), failure)
            return
        logger.warning("Cancelled again: %s, which were queued before that.", " ".join(jobs))
    record.withdraw(plan.run, plan.submission, fresh=fresh)
