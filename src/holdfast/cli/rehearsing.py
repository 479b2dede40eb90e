"""`holdfast rehearse`: the user's own command, straight and interrupted, compared bit by bit."""

from __future__ import annotations

import dataclasses
import shlex
import sys
import time
from typing import TYPE_CHECKING, Any

import click

from holdfast.cli import text
from holdfast.cli.differing import print_differences, values_content
from holdfast.cli.options import command, json_option, print_json
from holdfast.durations import about
from holdfast.rehearsal import points
from holdfast.rehearsal.trails import Place

if TYPE_CHECKING:
    from holdfast.rehearsal.course import Report
    from holdfast.rehearsal.ends import Ends
    from holdfast.rehearsal.launching import Launch
    from holdfast.rehearsal.partings import Parting
    from holdfast.rehearsal.trails import Trail

_NAMES = {"straight": "straight", "again": "straight again"}
_COLUMN = 15
_FIRST = 5  # differences shown of each kind


@command("rehearse", context_settings={"allow_interspersed_args": False})
@click.argument("words", metavar="COMMAND...", nargs=-1, required=True, type=click.UNPROCESSED)
@click.option(
    "--kill-at",
    "places",
    metavar="WHERE",
    multiple=True,
    help="Where to interrupt: step=N, epoch=N or random; several times for several places. "
    "Without it: in the middle of an epoch.",
)
@click.option(
    "--times",
    metavar="N",
    type=click.IntRange(1),
    default=1,
    help="Interrupt N times, at places chosen for you.",
)
@click.option("--seed", metavar="N", type=click.IntRange(0), help="What random places are drawn from.")
@click.option(
    "--signal",
    type=click.Choice(points.SIGNALS),
    default="KILL",
    help="What interrupts: KILL (nothing is saved any more), TERM, USR1 or INT.",
)
@click.option("--once", is_flag=True, help="Do not run it straight a second time.")
@click.option(
    "--dir", "directory", metavar="DIR", help="Where runs and logs go; default: a temporary directory."
)
@click.option("--keep", is_flag=True, help="Leave the temporary directory there, even if all is equal.")
@json_option
@click.pass_context
def rehearse_command(
    ctx: click.Context,
    words: tuple[str, ...],
    places: tuple[str, ...],
    times: int,
    seed: int | None,
    signal: str,
    once: bool,
    directory: str | None,
    keep: bool,
    as_json: bool,
) -> None:
    """Rehearse COMMAND: run it straight, twice; interrupt it and resume it; compare the ends bit by bit.

    The script needs no change. Its runs are put elsewhere and begin anew; your own are not touched.
    Other files that it writes, it writes as always.
    """
    from holdfast.rehearsal.course import rehearse

    wanted = [points.parse_point(place) for place in places]
    stage = _Scene(quiet=as_json)
    stage.say(f"{shlex.join(words)}")
    report = rehearse(
        words,
        directory=directory,
        keep=keep,
        wanted=wanted,
        times=times,
        seed=seed,
        signal=signal,
        once=once,
        begin=stage.begin,
        tick=stage.tick,
        tell=stage.tell,
    )
    if as_json:
        print_json(_content(report))
    else:
        if any(point.unit == "random" for point in wanted) and seed is None:
            click.echo(f"The places were drawn with --seed {report.seed}.")
        _print(report)
    ctx.exit(0 if report.identical else 1)


class _Scene:
    """Lines about the launches as they begin and end; on a terminal the one under way is shown."""

    def __init__(self, *, quiet: bool) -> None:
        self._quiet = quiet
        self._live = sys.stderr.isatty() and not quiet
        self._series, self._number = "", 0
        self._started = self._shown = time.monotonic()

    def say(self, line: str) -> None:
        if not self._quiet:
            click.echo(line)
            sys.stdout.flush()

    def begin(self, series: str, number: int) -> None:
        self._series, self._number = series, number
        self._started = time.monotonic()
        self.tick("")

    def tick(self, home: str) -> None:
        from holdfast.rehearsal.trails import latest

        now = time.monotonic()
        if self._live and (not home or now - self._shown > 0.5):
            self._shown = now
            place = latest(home) if home else None
            passed = about(now - self._started) if home else "…"
            shown = f"{_label(self._series, self._number)}{f'{place}  ' if place else ''}{passed}"
            click.echo(f"\r\033[K{text.shorten(shown, text.width() - 1)}", err=True, nl=False)

    def tell(self, launch: Launch, trail: Trail, report: Report) -> None:
        if self._live:
            click.echo("\r\033[K", err=True, nl=False)
        what = _outcome(launch, trail, report)
        self.say(f"{_label(launch.series, launch.number)}{what}  ({about(launch.seconds)})")


def _label(series: str, number: int) -> str:
    name = _NAMES.get(series, "interrupted" if number == 1 else "resumed")
    return name.ljust(_COLUMN)


def _outcome(launch: Launch, trail: Trail, report: Report) -> str:
    runs = trail.runs(launch.number)
    if launch.series != "interrupted":
        return ", ".join(_size(trail, run) for run in runs) or "no run"
    said = []
    if launch.number > 1 and report.interruptions:
        run = report.interruptions[launch.number - 2].run
        said.append(_of(run, trail) + points.told(trail.resumed_at(run, launch.number)))
    if launch.signal is not None:
        place = Place(launch.signal["epoch"], launch.signal["step"], launch.signal["batch"])
        run = launch.signal["run"]
        said.append(f"{_of(run, trail)}{launch.signal['signal']} after {place}")
    elif launch.code == 0:
        said.append("to the end")
    if launch.code and launch.signal is None:
        said.append(f"exit code {launch.code}")
    return ", ".join(said)


def _of(run: str, trail: Trail) -> str:
    """Which run is meant, where there are several."""
    return f"{text.clean(run)}: " if len(trail.runs()) > 1 else ""


def _size(trail: Trail, run: str) -> str:
    shape = trail.shape(run)
    counts = [
        text.plural(len(shape.epochs), "epoch") if shape.epochs else "",
        text.plural(shape.steps, "step") if shape.steps else "",
        text.plural(len(shape.saves), "save") if shape.saves else "",
    ]
    return f"{text.clean(run)}: {', '.join(filter(None, counts)) or 'nothing trained'}"


# -- what was found -----------------------------------------------------------------------------


def _print(report: Report) -> None:
    click.echo()
    compared = report.compared
    if compared is None:
        return
    if report.identical:
        _print_equal(report, compared)
    else:
        _print_different(report, compared)
    if report.directory is not None:
        click.echo(f"Runs and logs are in {report.directory}")


def _print_equal(report: Report, compared: Ends) -> None:
    arrays = sum(end.found.arrays for end in compared.ends)
    values = sum(end.found.values for end in compared.ends)
    size = sum(end.found.bytes for end in compared.ends)
    parts = dict.fromkeys(part for end in compared.ends for part in end.found.parts)
    names = ["random streams" if part == "random" else part for part in parts]
    times = len(report.interruptions)
    click.echo(f"Bit-identical: interrupted {_times(times)} and resumed, it ends as the straight training:")
    click.echo(f"{text.plural(arrays, 'array')} ({text.size(size)}) and {text.plural(values, 'value')}")
    click.echo(f"of {', '.join([*names, 'progress', 'metrics and their history'])}.")
    if report.left_out:
        click.echo(_left_out(report))
    if report.deterministic is None:
        click.echo("It was run straight only once (--once).")


def _times(count: int) -> str:
    return {1: "once", 2: "twice"}.get(count, f"{count} times")


def _left_out(report: Report) -> str:
    return (
        f"Not compared, since two launches never agree on them and nothing depends on them: "
        f"{', '.join(report.left_out)}."
    )


def _print_different(report: Report, compared: Ends) -> None:
    if report.ends is None:
        click.echo("NOT DETERMINISTIC: two straight trainings differ already, so it was not interrupted.")
        sides = ("straight", "straight again")
    elif compared.equal:
        click.echo(
            "DIFFERENT on the way: interrupted and resumed, it ends as the straight training, bit for bit,"
        )
        click.echo("but a checkpoint before the end is another.")
        sides = ("straight", "interrupted")
    else:
        click.echo("DIFFERENT: interrupted and resumed, it does not end as the straight training.")
        sides = ("straight", "interrupted")
    for end in compared.ends:
        if end.equal:
            continue
        click.echo(f"\n{text.clean(end.path)}")
        print_differences(end.found, end.records, sides, _FIRST)
        if end.found.equal and not end.records:
            click.echo("What is tracked is equal, bit for bit.")
        for variable in end.untracked:
            click.echo(f"Not tracked, and not the same at the end: {text.clean(str(variable))}")
    for names, side in ((compared.only_left, sides[0]), (compared.only_right, sides[1])):
        for name in names:
            click.echo(f"\n{text.clean(name)}: only in the {side} training")
    for parted in report.partings:
        click.echo()
        click.echo(text.clean(_parted(parted)))
    for cause in report.causes:
        click.echo()
        click.echo(text.clean(cause))
    click.echo()


def _parted(parted: Parting) -> str:
    before = f"still equal at {parted.before}, " if parted.before is not None else ""
    names = [text.array_name(difference.name) for difference in parted.differences]
    shown = ", ".join(names[:_FIRST]) + (f" and {len(names) - _FIRST} more" if len(names) > _FIRST else "")
    resumed = f"; the launch went on {points.told(parted.resumed)}" if parted.launch > 1 else ""
    return f"They parted: {before}different at {parted.at}{resumed}. There differ {shown}."


def _content(report: Report) -> dict[str, Any]:
    compared = report.compared
    return {
        "identical": report.identical,
        "deterministic": report.deterministic,
        "command": report.command,
        "directory": report.directory,
        "seed": report.seed,
        "launches": [
            {
                "series": launch.series,
                "number": launch.number,
                "exit_code": launch.code,
                "seconds": round(launch.seconds, 3),
                "log": launch.log if report.directory is not None else None,
                "signal": launch.signal["signal"] if launch.signal is not None else None,
                "step": launch.signal["step"] if launch.signal is not None else None,
            }
            for launch in report.launches
        ],
        "interruptions": [dataclasses.asdict(one) for one in report.interruptions],
        "runs": [
            {
                "name": end.name,
                "path": end.path,
                "identical": end.equal,
                "left": end.found.left,
                "right": end.found.right,
                "arrays": end.found.arrays,
                "bytes": end.found.bytes,
                "values": end.found.values,
                "array_differences": [dataclasses.asdict(d) for d in end.found.array_differences],
                "value_differences": values_content([*end.found.value_differences, *end.records]),
                "only_left": end.found.only_left,
                "only_right": end.found.only_right,
                "untracked": [variable.key for variable in end.untracked],
            }
            for end in (compared.ends if compared is not None else [])
        ],
        "only_left": compared.only_left if compared is not None else [],
        "only_right": compared.only_right if compared is not None else [],
        "partings": [
            {
                "run": parted.run,
                "before": list(parted.before[:3]) if parted.before is not None else None,
                "at": list(parted.at[:3]),
                "resumed": list(parted.resumed[:3]) if parted.resumed is not None else None,
                "launch": parted.launch,
                "differing": [difference.name for difference in parted.differences],
                "variables": [variable.key for variable in parted.variables],
            }
            for parted in report.partings
        ],
        "causes": report.causes,
        "left_out": report.left_out,
    }
