"""`holdfast status`: how a training stands, on one screen."""

from __future__ import annotations

import dataclasses
import sys
import time
from typing import TYPE_CHECKING, Any

import click

from holdfast.cli.options import command, json_option, print_json
from holdfast.errors import UsageError
from holdfast.store import sources

if TYPE_CHECKING:
    from holdfast.jobs.standing import Standing

_SECONDS = 5.0


class _Status(click.Command):
    """`--watch` may stand without a number, also before RUN."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        words = []
        for word, after in zip(args, [*args[1:], ""], strict=True):
            bare = word == "--watch" and not after.replace(".", "", 1).isdecimal()
            words.append(f"--watch={_SECONDS:g}" if bare else word)
        return super().parse_args(ctx, words)


@command("status", cls=_Status)
@click.argument("place", metavar="RUN")
@click.option(
    "--watch",
    metavar="[SECONDS]",
    type=click.FloatRange(min=0.1),
    help="Show it again and again, every 5 s by default; Ctrl-C ends.",
)
@click.option(
    "--gate",
    is_flag=True,
    help="Only tell a job that submit wrote whether it has anything to do (0: no, 1: yes, 20: hopeless).",
)
@json_option
@click.pass_context
def status_command(ctx: click.Context, place: str, watch: float | None, gate: bool, as_json: bool) -> None:
    """Show how a training stands: progress, metrics, pace, its jobs in Slurm and their logs.

    Nothing is written and no lease is taken. Without Slurm the part about jobs is left out.
    """
    if gate:
        _gate(ctx, place)
    if as_json and watch is not None:
        raise UsageError("--json prints one object, --watch goes on. Next: leave one of them out.")
    from holdfast.jobs.standing import stand

    if as_json:
        print_json(content(stand(place)))
    elif watch is not None:
        _watch(place, watch)
    else:
        click.echo("\n".join(_lines(place)))


def _gate(ctx: click.Context, place: str) -> None:

    from holdfast.jobs import gate

    code, line = gate.look(sources.local(place, "holdfast status"))
    if line:
        click.echo(f"holdfast: {line}", err=True)
    ctx.exit(code)


def _lines(place: str) -> list[str]:
    from holdfast.cli.screen import screen
    from holdfast.jobs.standing import stand

    return screen(stand(place), place, time.time())


def _watch(place: str, seconds: float) -> None:
    """Draws it until Ctrl-C; the last picture stays."""
    lines = _lines(place)  # what is wrong with the run is told before the screen is taken
    try:
        if sys.stdout.isatty():
            from rich.console import Console
            from rich.live import Live
            from rich.text import Text

            with Live(Text(), console=Console(), screen=True, auto_refresh=False) as live:
                while True:
                    live.update(Text("\n".join(lines), no_wrap=True), refresh=True)
                    time.sleep(seconds)
                    lines = _lines(place)
        while True:
            click.echo("\n".join([*lines, ""]))
            time.sleep(seconds)
            lines = _lines(place)
    except KeyboardInterrupt:
        if sys.stdout.isatty():
            click.echo("\n".join(lines))


def content(standing: Standing) -> dict[str, Any]:
    """What --json prints."""
    from holdfast.jobs.tasks import counts

    place, goal, speed, holder = standing.place, standing.goal, standing.pace, standing.holder
    submission = standing.submission
    return {
        "run": standing.run,
        "note": standing.note,
        "created": standing.created or None,
        "complete": standing.complete,
        "stopped": standing.stopped,
        "goal": {"kind": goal[0], "value": goal[1]} if goal else None,
        "epoch": place.epoch if place else None,
        "step": place.step if place else None,
        "batch": place.batch if place else None,
        "fraction": standing.fraction,
        "checkpoint": standing.newest,
        "size": standing.size if standing.newest else None,
        "saved": _time(standing.saved),
        "next_save": _time(standing.next_save),
        "series": [dataclasses.asdict(series) for series in standing.series],
        "steps_per_second": speed.steps if speed else None,
        "epochs_per_second": speed.epochs if speed else None,
        "save_interval": speed.interval if speed else None,
        "remaining": standing.remaining,
        "finish": _time(standing.finish),
        "more_tasks": standing.more_tasks,
        "holder": holder.describe() if holder else None,
        "holder_life": standing.life or None,
        "submission": submission.id if submission else None,
        "mode": submission.mode if submission else None,
        "slurm": standing.slurm or None,
        "counts": counts(standing.tasks),
        "tasks": [
            {
                **dataclasses.asdict(task),
                "began": _time(task.began),
                "ended": _time(task.ended),
                "ends": _time(task.ends),
                "log": task.log or None,
            }
            for task in standing.tasks
        ],
    }


def _time(when: float | None) -> str | None:
    import datetime

    if when is None:
        return None
    moment = datetime.datetime.fromtimestamp(when, datetime.UTC)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")
