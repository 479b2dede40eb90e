"""The course of a rehearsal: straight, again, interrupted and resumed; then the ends are compared."""

from __future__ import annotations

import dataclasses
import os
import random
import shlex
import shutil
import tempfile
from collections.abc import Callable, Sequence
from typing import Any

from holdfast import files, stage
from holdfast.errors import HoldfastError, RehearsalError, UsageError
from holdfast.rehearsal import causes, points
from holdfast.rehearsal.ends import Ends, Odd, compare_series
from holdfast.rehearsal.launching import Launch, Launcher, last_lines
from holdfast.rehearsal.partings import Parting, odd_of, part
from holdfast.rehearsal.points import Interruption, Point
from holdfast.rehearsal.trails import Trail

STRAIGHT, AGAIN, INTERRUPTED = "straight", "again", "interrupted"


@dataclasses.dataclass
class Report:
    """What a rehearsal found.

    Attributes:
        command: the words of the command.
        directory: where the runs and the logs are; None when they have been removed.
        seed: what random places were drawn from.
        launches: all of them, in order.
        interruptions: where the training was interrupted.
        again: the two straight trainings compared; None with `once`.
        ends: the interrupted training compared with the straight one; None when two straight ones differ.
        partings: where they parted, for each run that did.
        causes: why, the likeliest first.
        left_out: streams and metrics that were not compared.

    """

    command: list[str]
    directory: str | None
    seed: int
    launches: list[Launch] = dataclasses.field(default_factory=list)
    interruptions: list[Interruption] = dataclasses.field(default_factory=list)
    again: Ends | None = None
    ends: Ends | None = None
    partings: list[Parting] = dataclasses.field(default_factory=list)
    causes: list[str] = dataclasses.field(default_factory=list)
    left_out: list[str] = dataclasses.field(default_factory=list)

    @property
    def deterministic(self) -> bool | None:
        """Whether two straight trainings are equal; None when that was not tried."""
        if self.again is None:
            return None
        return self.again.equal or self.again.odd_metrics() is not None

    @property
    def identical(self) -> bool:
        """Whether the interrupted training equals the straight one, bit for bit, at its end and on the way."""
        return self.ends is not None and self.ends.equal and not self.partings

    @property
    def compared(self) -> Ends | None:
        """The comparison that decides."""
        return self.ends if self.ends is not None else self.again


Told = Callable[[Launch, Trail, "Report"], None]


def rehearse(
    command: Sequence[str],
    *,
    directory: str | None = None,
    keep: bool = False,
    wanted: Sequence[Point] = (),
    times: int = 1,
    seed: int | None = None,
    signal: str = "KILL",
    once: bool = False,
    begin: Callable[[str, int], None] = lambda _series, _number: None,
    tick: Callable[[str], None] = lambda _home: None,
    tell: Told = lambda _launch, _trail, _report: None,
) -> Report:
    """Runs a command straight, again, and interrupted and resumed; compares the ends bit by bit.

    The user's own runs are neither written nor continued.

    Args:
        command: the program and its arguments.
        directory: where runs and logs go, a new or empty one; by default a temporary one.
        keep: leave it there even if all is equal.
        wanted: where to interrupt; by default in the middle of an epoch.
        times: how many interruptions, where `wanted` names no places but "random" or nothing.
        seed: of random places; by default another one each time.
        signal: KILL, TERM, USR1 or INT.
        once: leave the second straight training out.
        begin: told before each launch.
        tick: called now and then while a launch runs, with its directory.
        tell: told after each launch.

    Raises:
        RehearsalError: the command failed by itself.
        UsageError: it makes no Run, or never gets to the places to interrupt it at.

    """
    home = _directory(directory)
    report = Report(list(command), home, random.randrange(1 << 32) if seed is None else seed)  # noqa: S311
    rehearsal = _Rehearsal(report, home, keep, begin, tick, tell)
    try:
        with rehearsal.launcher.guarded():
            rehearsal.play(_points(wanted, times), signal, once=once)
        if report.identical and not keep and directory is None:
            shutil.rmtree(home)
            report.directory = None
    except BaseException as error:
        # What failed can be looked at; who pressed Ctrl-C wants nothing to stay.
        if directory is None and not (isinstance(error, RehearsalError) or rehearsal.worth_keeping(error)):
            shutil.rmtree(home, ignore_errors=True)
        raise
    return report


def _directory(directory: str | None) -> str:
    if directory is None:
        return os.path.realpath(tempfile.mkdtemp(prefix="holdfast-rehearsal-"))
    place = os.path.realpath(os.path.expanduser(directory))
    if os.path.lexists(place) and (not os.path.isdir(place) or os.listdir(place)):
        raise UsageError(
            f"{place} exists and is not an empty directory; nothing was written. Next: --dir with a new one.",
            path=place,
        )
    files.make_directory(place)
    return place


def _points(wanted: Sequence[Point], times: int) -> list[Point]:
    named = [point for point in wanted if point.unit in ("step", "epoch")]
    if named and times != 1:
        raise UsageError(
            "--times counts places that are chosen for you; --kill-at with a number names one. "
            "Next: --kill-at once for each place, or --kill-at random --times N.",
            found=times,
        )
    if named:
        return list(wanted)
    return list(wanted or [Point("middle")]) * times


class _Rehearsal:
    """One rehearsal under way."""

    def __init__(
        self,
        report: Report,
        home: str,
        keep: bool,
        begin: Callable[[str, int], None],
        tick: Callable[[str], None],
        tell: Told,
    ) -> None:
        self.report, self.keep = report, keep
        self.launcher = Launcher(report.command, home, tick)
        self._begin, self._tell = begin, tell

    def worth_keeping(self, error: BaseException) -> bool:
        return isinstance(error, HoldfastError) and not isinstance(error, UsageError)

    def play(self, wanted: Sequence[Point], signal: str, *, once: bool) -> None:
        report = self.report
        first = self._straight(STRAIGHT, {})
        runs = first.runs()
        if not runs:
            raise UsageError(
                f"The command ended well and made no holdfast.Run: {shlex.join(report.command)}. There is nothing to "
                f"rehearse. Next: make the training resumable first (docs/getting-started.md).",
                found=report.command,
            )
        shapes = {run: first.shape(run) for run in runs}
        report.interruptions = points.choose(shapes, wanted, signal, report.seed)
        marks = points.marks(report.interruptions, shapes)
        straight = [first]
        odd = Odd()
        if not once:
            second = self._straight(AGAIN, marks)
            report.again = compare_series(first, second, Odd())
            if not report.deterministic:
                report.causes = causes.explain_straight(first, second, report.again)
                return
            odd = odd_of(first, second, report.again)
            straight.append(second)
            if not self.keep:  # the trail is enough from here on
                for kind in (stage.RUNS, stage.SAVES):
                    files.remove_tree(os.path.join(second.home, kind))
        other = self._interrupted(marks, first)
        report.ends = compare_series(first, other, odd)
        self._explain(straight, other, odd, once=once)

    def _explain(self, straight: list[Trail], other: Trail, odd: Odd, *, once: bool) -> None:
        report = self.report
        if report.ends is None:
            return
        report.left_out = sorted({name for end in report.ends.ends for name in end.left_out})
        # Until its first interruption the interrupted training is a straight one, too.
        before = Trail(other.home, [line for line in other.events if line["launch"] == 1])
        found = [part([before, *straight], other, run, odd) for run in other.runs()]
        report.partings = [parted for parted in found if parted is not None]
        if report.identical:
            return
        report.causes = causes.explain_interrupted(report.ends, report.partings, other, straight_once=once)

    def _straight(self, series: str, marks: dict[str, Any]) -> Trail:
        launch = self._launch(series, 1, None, marks)
        self._check(launch)
        return Trail.read(self.launcher.series(series))

    def _interrupted(self, marks: dict[str, Any], first: Trail) -> Trail:
        home = self.launcher.series(INTERRUPTED)
        number = 0
        for one in self.report.interruptions:
            number += 1
            durable = len(Trail.read(home).of("checkpoint", one.run)) if one.unit == "save" else 0
            launch = self._launch(INTERRUPTED, number, one.plan(durable), marks)
            if launch.signal is None:
                self._check(launch)
                self._never_came(one, launch, first, Trail.read(home))
        number += 1
        launch = self._launch(INTERRUPTED, number, None, marks)
        self._check(launch)
        trail = Trail.read(home)
        self._check_resumed(trail)
        return trail

    def _launch(
        self, series: str, number: int, interrupt: dict[str, Any] | None, marks: dict[str, Any]
    ) -> Launch:
        self._begin(series, number)
        launch = self.launcher.launch(series, number, interrupt=interrupt, marks=marks)
        self.report.launches.append(launch)
        self._tell(launch, Trail.read(self.launcher.series(series)), self.report)
        return launch

    def _check(self, launch: Launch) -> None:
        if launch.code == 0:
            return
        how = f"exit code {launch.code}" if launch.code > 0 else f"signal {-launch.code}"
        which = {
            STRAIGHT: "The command failed by itself, before anything was interrupted",
            AGAIN: "The command failed when it was run a second time",
            INTERRUPTED: "The launch that should have resumed failed",
        }[launch.series]
        shown = "\n".join(f"  {line}" for line in last_lines(launch.log))
        raise RehearsalError(
            f"{which} ({how}). Its last lines ({launch.log}):\n{shown}",
            code=launch.code,
            log=launch.log,
            launch=launch,
        )

    def _never_came(self, one: Interruption, launch: Launch, first: Trail, trail: Trail) -> None:
        self._check_path(first.runs()[one.run], trail, launch)
        raise RehearsalError(
            f"The launch ended before it could be interrupted ({one}): it went another way than the straight training. "
            f"Next: look at {launch.log}; run without --once to see whether the script is deterministic.",
            code=launch.code,
            log=launch.log,
            launch=launch,
        )

    def _check_resumed(self, trail: Trail) -> None:
        """A script that names its run by the time, say, begins anew at each launch: the ends would be equal."""
        launches = [launch for launch in self.report.launches if launch.series == INTERRUPTED]
        for one, launch, later in zip(self.report.interruptions, launches[:-1], launches[1:], strict=True):
            self._check_path(trail.runs(launch.number)[one.run], trail, later)

    def _check_path(self, path: str, trail: Trail, launch: Launch) -> None:
        made = trail.runs(launch.number).values()
        if path not in made:
            raise RehearsalError(
                f"A launch did not take up {path}: it made {', '.join(made) or 'no run'}. A run is continued by its path. "
                f"Next: give the run the same path at each launch. Its log: {launch.log}",
                code=launch.code,
                log=launch.log,
                launch=launch,
            )
