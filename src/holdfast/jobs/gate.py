"""Whether a job that `holdfast submit` wrote has anything to do: asked before a framework is loaded.

A script may compute its goal from the number of its task (``run.epochs(500 * task)``), so that a goal is
reached does not say that the next task has nothing to do. Two tasks that asked for the same goal do.
"""

from __future__ import annotations

import datetime
import os
from collections.abc import Mapping, Sequence
from typing import Any

from holdfast.errors import NotFoundError
from holdfast.jobs import record
from holdfast.jobs.record import Ended
from holdfast.jobs.script import GO_ON, HOPELESS, NOTHING_TO_DO
from holdfast.store import book, catalog

FAILURES = 3
"""So many failed jobs in a row, without a checkpoint between them, and the next one does not begin."""


def look(run: str, environ: Mapping[str, str] = os.environ) -> tuple[int, str]:
    """What the script is told, and the line that says why; it is empty where the training is to begin.

    Raises:
        HoldfastError: the run cannot be read. The training begins then, and says what is the matter.

    """
    submission = environ.get("HOLDFAST_SUBMISSION", "")
    if not submission:
        return GO_ON, ""
    # What did not begin tells nothing of the training.
    ended = [end for end in record.ends(run, submission) if end.doing != "gate"]
    try:
        newest = next(catalog.newest(catalog.scan(run)), None)
        about = book.read_run(run)
    except NotFoundError:
        newest = about = None
    if about is not None and newest is not None and newest.clean:
        manifest = catalog.read_manifest(newest.path)
        done = {"epochs": manifest.progress.epoch, "steps": manifest.progress.step}
        found = repeated_goal(about.goals, submission)
        # What is reached is read off the checkpoint: after a rewind it is not reached any more.
        if found is not None:
            kind, value, tasks = found
            before = manifest.goal
            stopped = (
                manifest.stopped and before is not None and before.kind == kind and value <= before.value
            )
            if done[kind] >= value or stopped:
                why = f"{value} {kind} are reached" if done[kind] >= value else "it was stopped"
                asked = f"tasks {' and '.join(tasks[-2:])} asked for no more"
                return NOTHING_TO_DO, f"{run}: complete: {why}, and {asked}. Nothing to do."
    if hopeless(ended, newest.name.created if newest is not None else None):
        codes = ", ".join(str(end.code) for end in ended[-FAILURES:])
        line = (
            f"{run}: the last {FAILURES} jobs failed (exit codes {codes}) and no checkpoint was saved meanwhile, so this "
            f"one does not begin. Next: read their logs (holdfast status {run} names them), then submit again."
        )
        return HOPELESS, line
    return GO_ON, ""


def repeated_goal(goals: Mapping[str, Any], submission: str) -> tuple[str, int, list[str]] | None:
    """The highest goal that tasks of a submission asked for, if two or more of them did, and who did."""
    asked: dict[tuple[str, int], list[str]] = {}
    for task, goal in goals.items():
        if not isinstance(goal, dict) or goal.get("job") != submission:
            continue
        kind, value = goal.get("kind"), goal.get("value")
        if kind in ("epochs", "steps") and type(value) is int:
            asked.setdefault((kind, value), []).append(task)
    if not asked or len({kind for kind, _ in asked}) > 1:
        return None
    highest = max(asked, key=lambda goal: goal[1])
    return (*highest, asked[highest]) if len(asked[highest]) > 1 else None


def hopeless(ended: Sequence[Ended], saved: datetime.datetime | None) -> bool:
    """Whether the last jobs all failed, and none of them saved anything.

    Args:
        ended: in order.
        saved: when the newest checkpoint was.

    """
    latest = ended[-FAILURES:]
    if len(latest) < FAILURES or not all(end.failed and not end.was_asked for end in latest):
        return False
    return saved is None or saved.timestamp() < latest[0].began
