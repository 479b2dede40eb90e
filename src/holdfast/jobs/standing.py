"""How a training stands: what its run holds, what its jobs do, and what follows from both. Reads only."""

from __future__ import annotations

import dataclasses
import math
import os
import shutil
import time
from collections.abc import Sequence

from holdfast.errors import FormatError, NotFoundError, SlurmError, UsageError
from holdfast.format.manifest import Manifest
from holdfast.jobs import group as groups
from holdfast.jobs import record
from holdfast.jobs.course import Pace, Place, Series, pace, rows_of, series
from holdfast.jobs.launches import Launch, goal_of, launches
from holdfast.jobs.record import Ended, Submission
from holdfast.jobs.tasks import Known, Task, judge
from holdfast.policy.keep import Keep
from holdfast.slurm import commands
from holdfast.slurm.commands import Record
from holdfast.store import book, catalog, sources
from holdfast.store.holder import Holder, myself
from holdfast.store.holder import judge as judge_holder
from holdfast.store.watch import holder_of

RECENT = 8 << 20
"""Bytes of the history that are read, from its end."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Standing:
    """Everything that `holdfast status` shows. Times are seconds since the epoch; None where unknown.

    Attributes:
        run: the run's absolute path.
        place: the progress of the newest checkpoint; None before there is one.
        goal: ``("epochs", 20)``.
        complete, stopped: whether the goal is reached, and whether it was by `stop`.
        newest, size, saved: the checkpoint that a launch resumes from, its bytes, and when it was saved.
        next_save: when the next one is to be expected.
        remaining: seconds of training to the goal, from the newest checkpoint.
        finish: when the goal is to be expected, while a job runs.
        more_tasks: how many more jobs that takes, beyond the one that runs.
        holder: who holds the lease, and whether it lives, in one word of `store.holder.Life`.
        slurm: "" where it was not asked; "answered"; or what is the matter with it.
        tasks: the jobs that belong together, in order.

    """

    run: str
    note: str = ""
    created: str = ""
    place: Place | None = None
    goal: tuple[str, int] | None = None
    complete: bool = False
    stopped: bool = False
    newest: str | None = None
    size: int = 0
    saved: float | None = None
    next_save: float | None = None
    metric: str | None = None
    mode: str | None = None
    series: Sequence[Series] = ()
    pace: Pace | None = None
    remaining: float | None = None
    finish: float | None = None
    more_tasks: int | None = None
    holder: Holder | None = None
    life: str = ""
    submission: Submission | None = None
    slurm: str = ""
    tasks: Sequence[Task] = ()

    @property
    def fraction(self) -> float | None:
        """How much of the goal is done, from 0 to 1."""
        if self.goal is None:
            return None
        return self.place.fraction(self.goal) if self.place is not None else 0.0

    @property
    def running(self) -> Task | None:
        """The job that runs now."""
        return next((task for task in self.tasks if task.state == "running"), None)


def stand(path: str, *, now: float | None = None) -> Standing:
    """How the training of a run stands.

    Raises:
        NotFoundError: there is no run, and none was submitted.
        UsageError: it is a checkpoint.
        StorageError: it cannot be read.

    """
    now = time.time() if now is None else now
    run = sources.local(path, "holdfast status")
    submissions = record.submissions(run)
    if not catalog.is_run(run):
        if not submissions:
            _refuse(run)
        return _jobs(Standing(run=run), submissions, [], now)
    about = book.read_run(run)
    newest = next(catalog.newest(catalog.scan(run)), None)
    events = book.read_events(run, RECENT)
    began = launches(events)
    manifest = catalog.read_manifest(newest.path) if newest is not None else None
    keep = catalog.run_keep(run) or Keep()
    rows = rows_of(events) or _rows_of(manifest)
    holder = holder_of(run)
    holder = holder if holder is not None and not holder.released else None
    goal = _goal(about, began)
    standing = Standing(
        run=run,
        note=about.note,
        created=about.created,
        place=_place(manifest),
        goal=goal,
        complete=_complete(manifest, about, goal),
        stopped=manifest is not None and manifest.stopped,
        newest=newest.folder if newest is not None else None,
        size=newest.size if newest is not None else 0,
        saved=newest.name.created.timestamp() if newest is not None else None,
        metric=keep.metric,
        mode=keep.mode,
        series=series(rows, keep.metric),
        pace=pace(events),
        holder=holder,
        life=judge_holder(holder, myself(0), {holder.token}) if holder is not None else "",
    )
    return _expect(_jobs(standing, submissions, began, now), began, now)


def _refuse(run: str) -> None:
    if catalog.is_checkpoint(run):
        raise UsageError(f"{run} is a checkpoint, not a run. Next: holdfast show {run}", path=run)
    if os.path.exists(run) and not os.path.isdir(run):
        raise FormatError(f"{run} is a file; a run is a directory.", path=run)
    catalog.resolve(run)  # raises, with the nearest names
    raise NotFoundError(f"There is no run {run}.", path=run, candidates=[])


def _place(manifest: Manifest | None) -> Place | None:
    if manifest is None:
        return None
    return Place(manifest.progress.epoch, manifest.progress.step, manifest.progress.batch)


def _rows_of(manifest: Manifest | None) -> list[tuple[int, int, dict[str, object]]]:
    """The rows that a checkpoint carries, where the run's own history has none."""
    rows = []
    for row in manifest.history if manifest is not None else ():
        epoch, step = row.get("epoch"), row.get("step")
        if isinstance(epoch, int) and isinstance(step, int):
            metrics = {name: value for name, value in row.items() if name not in ("epoch", "step")}
            rows.append((epoch, step, metrics))
    return rows


def _goal(about: book.RunBook, began: Sequence[Launch]) -> tuple[str, int] | None:
    """The goal of the last launch; of runs that did not write that down, the highest asked for."""
    last = next((launch.goal for launch in reversed(began) if launch.goal is not None), None)
    if last is not None:
        return last
    asked = [goal for goal in map(goal_of, (*about.goals.values(), about.reached)) if goal is not None]
    return max(asked, key=lambda goal: goal[1], default=None)


def _complete(manifest: Manifest | None, about: book.RunBook, goal: tuple[str, int] | None) -> bool:
    """Whether the last goal is reached by the checkpoint that a launch resumes from."""
    if manifest is None or about.reached is None:
        return False
    if manifest.stopped or goal is None:
        return True
    return (manifest.progress.epoch if goal[0] == "epochs" else manifest.progress.step) >= goal[1]


# -- jobs ---------------------------------------------------------------------------------------


def _jobs(
    standing: Standing, submissions: Sequence[Submission], began: Sequence[Launch], now: float
) -> Standing:
    del now
    found = groups.newest(submissions, began)
    if found is None:
        return standing
    ended = record.ends(standing.run, found.submission.id) if found.submission is not None else []
    records, slurm = _ask(found, ended)
    holder = standing.holder

    def alive(job: str, task: int | None) -> bool:
        if holder is None or standing.life in ("dead", "released"):
            return False
        return holder.slurm_job == job if task is None else holder.slurm_task == str(task)

    known = groups.known_of(
        found,
        ended=ended,
        launches=began,
        records=records,
        answered=slurm == "answered",
        alive=alive,
    )
    tasks = _skip(known)
    return dataclasses.replace(standing, submission=found.submission, slurm=slurm, tasks=tasks)


def _skip(known: Sequence[Known]) -> list[Task]:
    """Each judged; one that left no trace before another that did is not still to come."""
    tasks = [judge(one) for one in known]
    traced = [place for place, task in enumerate(tasks) if task.state not in ("waiting", "unknown")]
    last = max(traced, default=-1)
    return [
        dataclasses.replace(task, state="unknown", why="nothing is known of it")
        if place < last and task.state == "waiting" and known[place].record is None
        else task
        for place, task in enumerate(tasks)
    ]


def _ask(found: groups.Group, ended: Sequence[Ended]) -> tuple[list[Record], str]:
    """What Slurm says of a group, and whether it does."""
    if shutil.which("scontrol") is None:
        return [], "there is no scontrol here; what follows is what the run itself holds"
    asked: list[commands.Question] = []
    try:
        # All at once: a controller that does not answer is waited for only once.
        for number in groups.questions(found, ended):
            asked.append(commands.ask_for_job(number))  # noqa: PERF401 (those that were begun must be ended)
        return [one for question in asked for one in commands.read_jobs(question)], "answered"
    except SlurmError as error:
        return [], f"{str(error).partition(' Next:')[0]} What follows is what the run itself holds"
    finally:
        for question in asked:
            question.give_up()


# -- what is to be expected -----------------------------------------------------------------------


def _expect(standing: Standing, began: Sequence[Launch], now: float) -> Standing:
    speed, place, goal = standing.pace, standing.place, standing.goal
    runs = _runs(standing)
    next_save = None
    if runs and speed is not None and speed.interval is not None and standing.saved is not None:
        next_save = standing.saved + speed.interval
    if standing.complete or speed is None or goal is None or place is None:
        return dataclasses.replace(standing, next_save=None if standing.complete else next_save)
    remaining = speed.seconds_to(goal, place)
    if remaining is None:
        return dataclasses.replace(standing, next_save=next_save)
    # While it runs, it has got on since its last save.
    finish = max(now, (standing.saved or now) + remaining) if runs else None
    left = finish - now if finish is not None else remaining
    return dataclasses.replace(
        standing,
        next_save=next_save,
        remaining=remaining,
        finish=finish,
        more_tasks=_more_tasks(standing, began, left, now),
    )


def _runs(standing: Standing) -> bool:
    if standing.tasks:
        return standing.running is not None
    return standing.holder is not None and standing.life in ("alive", "ours", "unknown")


def _more_tasks(standing: Standing, began: Sequence[Launch], left: float, now: float) -> int | None:
    """Jobs that so much training takes, beyond the one that runs; None outside of Slurm, or if none tells how long one is."""
    if not standing.tasks:
        return None
    running = standing.running
    each = None
    if running is not None and running.ends is not None and running.began is not None:
        each = running.ends - running.began
        left -= max(0.0, running.ends - now)
    else:
        spans = [launch.limit - launch.began for launch in began if launch.job and launch.limit]
        each = spans[-1] if spans else None
    if left <= 0:
        return 0
    return math.ceil(left / each) if each and each > 0 else None
