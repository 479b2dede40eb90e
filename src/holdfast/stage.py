"""A process that is rehearsed: its runs lie elsewhere, and it leaves a trail.

`holdfast rehearse` starts the user's own command with one variable in its environment, the path of a
plan. Then every run that the script makes, and every checkpoint that it saves by name, lies in the
directory of this series of launches, and what the script refers to is looked up there first; the
user's own runs are not written. A process without that variable pays for one look at `os.environ`.

    series/places/NAME      a symbolic link to the run that the script named: NAME stands for it here
    series/runs/NAME        the run itself
    series/saved/, saves/   the same for `holdfast.save`
    series/trail.jsonl      what happened, one JSON object a line
"""

from __future__ import annotations

import functools
import json
import logging
import os
from typing import Any

from holdfast import files
from holdfast.format import names
from holdfast.log import logger
from holdfast.objects import urls

VARIABLE = "HOLDFAST_REHEARSAL"
TRAIL = "trail.jsonl"
RUNS, SAVES = "runs", "saves"
_LINKS = {RUNS: "places", SAVES: "saved"}
_LIMIT = 16 << 20


class Stage:
    """What a rehearsed process was told, and where its things are.

    Attributes:
        home: the directory of this series of launches.
        launch: the number of this launch in it, from 1.
        plan: what the launcher wrote; `holdfast.rehearsal.launching` says what is in it.

    """

    def __init__(self, plan: dict[str, Any]) -> None:
        self.home: str = plan["series"]
        self.launch: int = plan["launch"]
        self.plan = plan

    # -- where things lie ----------------------------------------------------------------------

    def place(self, path: str, kind: str) -> str:
        """Where a run (or a checkpoint saved by name) of the script lies; the same at each launch."""
        real = _real(path)
        if self._inside(real):
            return real
        base = os.path.basename(real) or "run"
        links = os.path.join(self.home, _LINKS[kind])
        number = 1
        while True:
            name = base if number == 1 else f"{base}-{number}"
            try:
                files.system.symlink(real, os.path.join(links, name))
            except FileExistsError:  # ours of an earlier launch, or another run of that name
                if os.readlink(os.path.join(links, name)) != real:
                    number += 1
                    continue
            return os.path.join(self.home, kind, name)

    def find(self, reference: str) -> str:
        """The reference with the place that stands for what the script names; others as they are."""
        parsed = names.parse_reference(reference)
        place = _real(parsed.place)
        if self._inside(place):
            return reference
        rest: list[str] = []
        while True:
            for kind in _LINKS:
                name = self._known(place, kind)
                if name is not None:
                    selector = reference[len(parsed.place) :]
                    return os.path.join(self.home, kind, name, *rest) + selector
            place, base = os.path.split(place)
            if not base:
                return reference
            rest.insert(0, base)

    def _known(self, real: str, kind: str) -> str | None:
        base, links = os.path.basename(real), os.path.join(self.home, _LINKS[kind])
        number = 1
        while base:
            name = base if number == 1 else f"{base}-{number}"
            try:
                if os.readlink(os.path.join(links, name)) == real:
                    return name
            except OSError:  # no such link: the script has named none of that name
                return None
            number += 1
        return None

    def _inside(self, real: str) -> bool:
        return real.startswith(os.path.realpath(self.home) + os.sep)

    def owns(self, path: str) -> bool:
        """Whether a path lies in the rehearsal's own directory."""
        return self._inside(_real(path))

    # -- what happened ---------------------------------------------------------------------------

    def note(self, event: str, /, **facts: Any) -> None:
        """Adds a line to the trail. It outlives the process, not the machine: so it need not be synced."""
        line = json.dumps({"event": event, "launch": self.launch, **facts}, default=repr)
        files.append(os.path.join(self.home, TRAIL), line.encode("ascii") + b"\n")


class _Warnings(logging.Handler):
    """Notes what the library warns of."""

    def __init__(self, stage: Stage) -> None:
        super().__init__(logging.WARNING)
        self._stage = stage

    def emit(self, record: logging.LogRecord) -> None:
        self._stage.note("warning", text=record.getMessage())


def current() -> Stage | None:
    """The stage of this process; None, as nearly always, when it is not rehearsed."""
    path = os.environ.get(VARIABLE)
    return _open(path) if path else None


@functools.cache
def _open(path: str) -> Stage:
    stage = Stage(json.loads(files.read_file(path, _LIMIT)))
    logger.addHandler(_Warnings(stage))
    return stage


def found(reference: str) -> str:
    """A reference as this process should understand it."""
    stage = current()
    return reference if stage is None or urls.is_url(reference) else stage.find(reference)


def prepare(home: str) -> None:
    """Makes the directory of a series of launches."""
    for name in (*_LINKS, *_LINKS.values()):
        files.make_directory(os.path.join(home, name))


def _real(path: str) -> str:
    return os.path.realpath(os.path.expanduser(path))
