"""The screen of `holdfast status`: lines of text, made from what is known, the time and the width alone."""

from __future__ import annotations

import datetime
import math
import os
import sys
from collections.abc import Sequence

import click

from holdfast.cli import text
from holdfast.durations import about
from holdfast.format import card
from holdfast.jobs.course import Series
from holdfast.jobs.standing import Standing
from holdfast.jobs.tasks import Task, counts

_COLUMN = 11
_BAR = _SPARK = 24
_BLOCKS, _PLAIN_BLOCKS = "▁▂▃▄▅▆▇█", "_.-=+*#@"
_ROWS = 20
_STATES = {"waiting": "to come"}


def screen(standing: Standing, place: str, now: float) -> list[str]:
    """How a training stands, in lines no wider than the terminal.

    Args:
        standing: what is known.
        place: the run as the user named it.
        now: seconds since the epoch.

    """
    note = f": {text.line_of(standing.note)}" if standing.note else ""
    lines = [text.shorten(f"{text.line_of(place)}{note}", text.width())]
    facts = [
        ("progress", _progress(standing)),
        *((series.name, _course(series, standing)) for series in standing.series),
        *_saves(standing, now),
        *_outlook(standing, now),
        ("lease", _lease(standing)),
        *_jobs(standing, now),
    ]
    column = max(_COLUMN, min(2 + max(len(text.line_of(name)) for name, _ in facts), 20))
    for name, value in facts:
        head = text.shorten_middle(text.line_of(name), column - 2)
        lines += click.wrap_text(
            text.line_of(value), max(text.width(), 40), f"{head:{column}}", " " * column
        ).splitlines()
    return [*lines, *_table(standing.tasks, now)]


# -- the training -------------------------------------------------------------------------------


def _progress(standing: Standing) -> str:
    place, goal = standing.place, standing.goal
    if place is None:
        return "nothing saved yet" if goal is None else f"nothing saved yet, of {goal[1]:,} {goal[0]}"
    batch = f", batch {place.batch:,}" if place.batch else ""
    kind = goal[0] if goal is not None else "epochs" if place.epoch else "steps"
    done = place.epoch if kind == "epochs" else place.step
    said = f"{kind[:-1]} {done:,}{f' of {goal[1]:,}' if goal is not None else ''}{batch}"
    if kind == "epochs":
        said += f", step {place.step:,}"
    if standing.complete:
        return f"complete{' (it was stopped)' if standing.stopped else ''}: {said}"
    fraction = standing.fraction
    return said if fraction is None else f"{_bar(fraction)} {math.floor(100 * fraction)} %  {said}"


def _bar(fraction: float) -> str:
    full, empty = ("█", "░") if _fancy() else ("#", ".")
    count = math.floor(fraction * _BAR)
    return full * count + empty * (_BAR - count)


def _fancy() -> bool:
    """Whether the output takes more than ASCII."""
    try:
        _BLOCKS.encode(sys.stdout.encoding or "ascii")
    except (UnicodeEncodeError, LookupError):
        return False
    return True


def sparkline(values: Sequence[float | None], limit: int = _SPARK) -> str:
    """Values as a line of blocks, the newest last; several share a block where there are many. None is a gap."""
    blocks = _BLOCKS if _fancy() else _PLAIN_BLOCKS
    count = min(limit, len(values))
    means = []
    for place in range(count):
        piece = values[place * len(values) // count : (place + 1) * len(values) // count]
        finite = [value for value in piece if value is not None]
        means.append(math.fsum(value / len(finite) for value in finite) if finite else None)
    finite = [mean for mean in means if mean is not None]
    if not finite:
        return ""
    low, high = min(finite), max(finite)
    span = high / 2 - low / 2  # of huge values the difference itself may overflow

    def block(mean: float | None) -> str:
        if mean is None:
            return "!"
        share = (mean / 2 - low / 2) / span if span > 0 else 0.5
        return blocks[min(int(share * len(blocks)), len(blocks) - 1)]

    return "".join(map(block, means))


def _course(series: Series, standing: Standing) -> str:
    value = series.values[-1]
    said = f"{sparkline(series.values)}  {'not finite' if value is None else card.number(value)}"
    best = series.best(standing.mode) if series.name == standing.metric else None
    if best is not None:
        epoch, step, value = best
        said += f", best {card.number(value)} at {f'epoch {epoch}' if epoch else f'step {step}'}"
    return said


def _saves(standing: Standing, now: float) -> list[tuple[str, str]]:
    if standing.saved is None:
        return []
    said = f"{_ago(now - standing.saved)}, {text.size(standing.size)}"
    if standing.next_save is not None:
        left = standing.next_save - now
        patience = max(60.0, (standing.pace.interval if standing.pace else None) or 0.0)
        due = "is due" if -left < patience else f"was due {_ago(-left)}"
        said += f"; the next one {f'in about {_span(left)}' if left > 0 else due}"
    return [("saved", said)]


def _outlook(standing: Standing, now: float) -> list[tuple[str, str]]:
    speed = standing.pace
    facts = []
    if speed is not None and not standing.complete and (speed.steps or speed.epochs):
        paces = [f"{_figure(speed.steps)} steps/s"] if speed.steps else []
        if speed.epochs:
            paces.insert(0, f"{_figure(speed.epochs * 3600)} epochs/h")
        facts.append(("pace", ", ".join(paces)))
    if standing.remaining is None:
        return facts
    if standing.finish is not None and standing.finish <= now:
        expected = f"{_ago(now - standing.finish)}, {_clock(standing.finish, now)}"
        return [*facts, ("complete", f"at any moment: it was expected {expected}")]
    if standing.finish is not None:
        said = f"in about {_span(standing.finish - now)}, {_clock(standing.finish, now)}"
    else:
        said = f"after about {_span(standing.remaining)} more of training"
    if standing.more_tasks:
        said += f"; {text.plural(standing.more_tasks, 'more job')} of this length"
    elif standing.more_tasks == 0 and standing.running is not None:
        said += "; the job that runs is enough"
    return [*facts, ("complete", said)]


def _figure(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _lease(standing: Standing) -> str:
    if standing.holder is None:
        return "held by nobody"
    life = {"dead": ", which has ended: the next launch takes over", "unknown": ""}.get(standing.life, "")
    return f"held by {standing.holder.describe()}{life}"


# -- its jobs -----------------------------------------------------------------------------------


def _jobs(standing: Standing, now: float) -> list[tuple[str, str]]:
    facts = []
    if standing.slurm not in ("", "answered"):
        facts.append(("Slurm", standing.slurm))
    task = standing.running
    if task is not None:
        said = f"{task.job} {'is ending' if task.why == 'ending' else 'runs'}"
        if task.ends is not None:
            said += f", {_span(max(0.0, task.ends - now))} left, until {_clock(task.ends, now)}"
        if task.restarts:
            said += f"; started again {text.plural(task.restarts, 'time')}"
        facts.append(("now", said))
    if standing.tasks:
        found = counts(standing.tasks)
        submission = f" (submission {standing.submission.id})" if standing.submission is not None else ""
        facts.append(
            (
                "jobs",
                ", ".join(f"{count} {_STATES.get(state, state)}" for state, count in found.items())
                + submission,
            )
        )
    return facts


def _table(tasks: Sequence[Task], now: float) -> list[str]:
    if not tasks:
        return []
    groups = _together(tasks)
    hidden = 0
    if len(groups) > _ROWS:
        # All that went wrong, and the newest of the others.
        plain = [place for place, group in enumerate(groups) if group[0].state in ("done", "unknown")]
        drop = set(plain[: len(groups) - _ROWS])
        hidden = sum(len(groups[place]) for place in drop)
        groups = [group for place, group in enumerate(groups) if place not in drop]
    numbered = tasks[0].number is not None
    rows = [_row(group, now, numbered=numbered) for group in groups]
    lines = text.table(
        ["TASK" if numbered else "JOB", "STATE", "BEGAN", "TOOK", "LOG", "WHY"],
        rows,
        right=["TASK", "TOOK"],
        flexible={"WHY": 18, "LOG": 20},
    )
    more = [f"{hidden} more before them, done"] if hidden else []
    return ["", *lines, *more]


def _together(tasks: Sequence[Task]) -> list[list[Task]]:
    """Those to come in one row, and so those of which nothing is known."""
    groups: list[list[Task]] = []
    for task in tasks:
        last = groups[-1][-1] if groups else None
        same = last is not None and (last.state, last.why) == (task.state, task.why)
        if same and task.state in ("waiting", "unknown") and not task.restarts:
            groups[-1].append(task)
        else:
            groups.append([task])
    return groups


def _row(group: Sequence[Task], now: float, *, numbered: bool) -> list[str]:
    task = group[0]
    names = [str(one.number) if numbered else one.job for one in group]
    over = task.ended if task.ended is not None else now
    took = _span(over - task.began) if task.began is not None and task.state != "waiting" else ""
    alone = len(group) == 1
    log = task.log if alone and task.state != "waiting" else ""
    return [
        names[0] if alone else f"{names[0]}-{names[-1]}",
        _STATES.get(task.state, task.state),
        _clock(task.began, now) if task.began is not None and alone else "",
        took if alone else "",
        _short(log),
        "; ".join([task.why] * bool(task.why) + [f"restarts: {task.restarts}"] * bool(task.restarts)),
    ]


def _short(path: str) -> str:
    """Relative, where that is shorter."""
    if not path:
        return ""
    near = os.path.relpath(path)
    return near if len(near) < len(path) else path


# -- time ---------------------------------------------------------------------------------------


def _span(seconds: float) -> str:
    """``40 s``, ``12 min``, ``3.5 h``, ``2.1 d``: no fractions of seconds."""
    return about(max(0, round(seconds)))


def _ago(seconds: float) -> str:
    return f"{_span(seconds)} ago"


def _clock(when: float, now: float) -> str:
    """The time of day, here; with its date when that is not today."""
    moment = datetime.datetime.fromtimestamp(when).astimezone()
    today = datetime.datetime.fromtimestamp(now).astimezone().date()
    return f"{moment:%H:%M}" if moment.date() == today else f"{moment:%Y-%m-%d %H:%M}"
