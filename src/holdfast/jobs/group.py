"""Which jobs belong together, and what is known of each: those of a submission, or those that a user queued."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence

from holdfast.jobs.launches import Launch, moment
from holdfast.jobs.naming import fill, task_numbers
from holdfast.jobs.record import Ended, Submission
from holdfast.jobs.tasks import Known
from holdfast.slurm.commands import Record

MOST = 20
"""So many single jobs are asked for, and shown."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Group:
    """Jobs that continue one another.

    Attributes:
        array: the number of the array; empty for single jobs.
        jobs: the numbers of single jobs, in order.
        submission: None for jobs that were queued by other means.

    """

    array: str = ""
    jobs: tuple[str, ...] = ()
    submission: Submission | None = None


def newest(submissions: Sequence[Submission], launches: Sequence[Launch]) -> Group | None:
    """The jobs that a training was given last; None without any."""
    submission = submissions[-1] if submissions else None
    last = next((launch for launch in reversed(launches) if launch.job), None)
    if submission is not None:
        created = moment(submission.created) or 0.0
        own = last is None or {last.job, last.array} & set(submission.jobs)
        if own or last is None or last.began <= created:
            if submission.mode == "array":
                return Group(array=submission.jobs[0] if submission.jobs else "", submission=submission)
            return Group(jobs=tuple(submission.jobs), submission=submission)
    if last is None:
        return None
    if last.array:
        return Group(array=last.array)
    singles = dict.fromkeys(launch.job for launch in launches if launch.job and not launch.array)
    return Group(jobs=tuple(singles)[-MOST:])


def questions(group: Group, ended: Sequence[Ended]) -> list[str]:
    """The numbers that Slurm is to be asked for."""
    if group.array:
        return [group.array]
    if group.submission is None:
        return list(group.jobs[-1:])
    # What is known to have ended is asked for no more, except the last of them: it may be queued again.
    over = {end.job for end in ended if end.job != ended[-1].job}
    return [job for job in group.jobs if job not in over][:MOST]


def known_of(
    group: Group,
    *,
    ended: Sequence[Ended],
    launches: Sequence[Launch],
    records: Sequence[Record],
    answered: bool,
    alive: Callable[[str, int | None], bool],
) -> list[Known]:
    """What is known of each job of a group, in the order in which they run.

    Args:
        group: of jobs.
        ended: the lines that its scripts wrote.
        launches: of the training, all of them.
        records: of Slurm.
        answered: whether Slurm answered.
        alive: whether the run is held by a job, by its number, or by a task of the array.

    """
    form = group.submission.output if group.submission is not None else ""
    name = (group.submission.options.get("job-name") if group.submission is not None else None) or ""
    if group.array:
        return _of_array(group, form, name, ended, launches, records, answered, alive)
    asked = set(questions(group, ended)) if answered else ()
    by_job = {record.id: record for record in records}
    last_end = {end.job: end for end in ended}
    last_launch = {launch.job: launch for launch in launches}
    single = group.submission is None or group.submission.mode != "chain"
    return [
        Known(
            number=None if single else number,
            job=job,
            log=_log(by_job.get(job), last_launch.get(job), fill(form, job=job, name=name)),
            record=by_job.get(job),
            answered=job in asked,
            ended=last_end.get(job),
            launch=last_launch.get(job),
            alive=alive(job, None),
        )
        for number, job in enumerate(group.jobs, start=1)
    ]


def _of_array(
    group: Group,
    form: str,
    name: str,
    ended: Sequence[Ended],
    launches: Sequence[Launch],
    records: Sequence[Record],
    answered: bool,
    alive: Callable[[str, int | None], bool],
) -> list[Known]:
    own = [record for record in records if record.array == group.array]
    by_task: dict[int, Record] = {}
    for record in own:
        for number in task_numbers(record.task):
            by_task[number] = record
    last_end = {end.number: end for end in ended}
    last_launch = {
        launch.task: launch for launch in launches if launch.array == group.array and launch.task is not None
    }
    numbers = list(group.submission.numbers) if group.submission is not None else []
    numbers = sorted({*numbers, *by_task, *last_end, *last_launch})
    return [
        Known(
            number=number,
            job=f"{group.array}_{number}",
            log=_log(
                _one_task(by_task, number),
                last_launch.get(number),
                fill(form, array=group.array, task=number, name=name),
            ),
            record=by_task.get(number),
            answered=answered,
            ended=last_end.get(number),
            launch=last_launch.get(number),
            alive=alive("", number),
            array_known=bool(own),
        )
        for number in numbers
    ]


def _one_task(by_task: Mapping[int, Record], number: int) -> Record | None:
    """A record of that task alone: one of several that wait has no log's name."""
    record = by_task.get(number)
    return record if record is not None and record.task == str(number) else None


def _log(record: Record | None, launch: Launch | None, name: str) -> str:
    if record is not None and record.output and "%" not in record.output:
        return record.output
    return (launch.output if launch is not None else "") or name
