"""One launch of the user's command: its own process group, its output in a file, its end in a record."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import select
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import FrameType
from typing import Any

from holdfast import files, stage
from holdfast.errors import UsageError
from holdfast.rehearsal.trails import Trail
from holdfast.store.holder import process_start

_TICK = 0.1  # seconds between two looks at whether somebody wants us to end


@dataclasses.dataclass(frozen=True)
class Launch:
    """A launch that has ended.

    Attributes:
        series: "straight", "again" or "interrupted".
        number: of this launch in its series, from 1.
        code: its exit code; -9 and the like after a signal, as `subprocess` says it.
        seconds: how long it took.
        log: the file with what it printed.
        signal: the trail's line about the signal that it sent itself, or None.

    """

    series: str
    number: int
    code: int
    seconds: float
    log: str
    signal: Mapping[str, Any] | None


class Launcher:
    """Starts the command, one launch at a time; a signal that wants us to end, ends the launch first."""

    def __init__(self, command: Sequence[str], home: str, tick: Callable[[str], None]) -> None:
        self.command, self.home = list(command), home
        self._tick = tick
        self._busy = False
        self._stop: BaseException | None = None

    def series(self, name: str) -> str:
        """The directory of a series of launches."""
        return os.path.join(self.home, name)

    def launch(
        self, series: str, number: int, *, interrupt: Mapping[str, Any] | None, marks: Mapping[str, Any]
    ) -> Launch:
        """Runs the command until it ends, by itself or by the interruption.

        Raises:
            UsageError: there is no such program.

        """
        place = self.series(series)
        if number == 1:
            stage.prepare(place)
        plan = {"series": place, "launch": number, "outside": os.getpgrp()}
        plan.update({"interrupt": interrupt, "marks": marks})
        plan_file, log = os.path.join(place, f"plan-{number}.json"), os.path.join(place, f"log-{number}.txt")
        files.create_file(plan_file, json.dumps(plan).encode("ascii"), sync=False)
        files.create_file(log, b"", sync=False)
        started = time.monotonic()
        self._busy = True
        try:
            code = self._run(place, plan_file, log)
        finally:
            self._busy = False
        self._raise_stop()
        return Launch(
            series, number, code, time.monotonic() - started, log, Trail.read(place).signal_of(number)
        )

    def _run(self, place: str, plan_file: str, log: str) -> int:
        self._raise_stop()
        environment = {**os.environ, stage.VARIABLE: plan_file, "PYTHONUNBUFFERED": "1"}
        with open(log, "ab") as output:
            try:
                process = subprocess.Popen(  # noqa: S603 (the user's own command is what this is for)
                    self.command,
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    env=environment,
                    start_new_session=True,
                )
            except OSError as error:
                raise UsageError(
                    f"The command cannot be started: {error.strerror}: {self.command[0]}. "
                    f"Next: holdfast rehearse -- python train.py …",
                    found=self.command,
                ) from error
        try:
            while self._stop is None:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(_TICK)
                    break
                self._tick(place)
            else:
                _kill(process.pid)
            process.wait()
            # A shell may end before the training that it started has saved.
            self._wait_for_all(Trail.read(place).pids(), process.pid)
        finally:
            _kill(process.pid)  # what is left: loader workers, things in the background
            process.wait()
        return process.returncode

    def _wait_for_all(self, pids: Sequence[int], session: int) -> None:
        """Waits for those processes that belong to the session that we started."""
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                if os.getsid(pid) == session:
                    self._wait_for(pid)

    def _wait_for(self, pid: int) -> None:
        if not hasattr(os, "pidfd_open"):
            while process_start(pid) is not None and self._stop is None:
                time.sleep(_TICK)
            return
        fd = os.pidfd_open(pid)
        try:
            while self._stop is None and not select.select([fd], [], [], _TICK)[0]:
                pass
        finally:
            os.close(fd)

    # -- being asked to end --------------------------------------------------------------------

    @contextlib.contextmanager
    def guarded(self) -> Iterator[None]:
        """While this lasts, Ctrl-C, SIGTERM and SIGHUP end the launch under way, then raise."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {
            number: signal.signal(number, self._note)
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
        }
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _note(self, number: int, _: FrameType | None) -> None:
        # An exception raised while a process is being started would leave that process alone.
        self._stop = KeyboardInterrupt() if number == signal.SIGINT else SystemExit(128 + number)
        if not self._busy:
            self._raise_stop()

    def _raise_stop(self) -> None:
        stop, self._stop = self._stop, None
        if stop is not None:
            raise stop


def _kill(group: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(group, signal.SIGKILL)


def last_lines(log: str, count: int = 20) -> list[str]:
    """The end of what a launch printed."""
    with open(log, "rb") as file:
        file.seek(0, os.SEEK_END)
        file.seek(max(0, file.tell() - (1 << 16)))
        return file.read().decode("utf-8", "replace").splitlines()[-count:]
