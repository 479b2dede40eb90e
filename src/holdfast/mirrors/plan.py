"""What goes to a mirror, what leaves it, what waits for it, what is taken from it: decisions without clock or disk."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import NamedTuple

from holdfast.policy.keep import Keep, Record, best_of, decide

HELD = 2
"""Checkpoints whose deletion waits for a mirror that lags and is not required."""
_FIRST_PAUSE, _LONGEST_PAUSE = 5.0, 600.0  # seconds


def keep_of(own: Keep | None, run: Keep) -> Keep:
    """What a mirror keeps: as the run does, or by its own Keep, which ranks by the run's metric unless it names one."""
    if own is None:
        return run
    if own.metric is None and run.metric is not None:  # the best stays in a mirror, whatever else does
        return dataclasses.replace(own, best=run.best, metric=run.metric, mode=run.mode)
    return own


def lacking(keep: Keep, local: Iterable[Record], there: Iterable[Record]) -> list[str]:
    """The names that a mirror should hold and does not: the best, then the newest first.

    The best so far belongs to where the training stands: a run that comes back from its mirror compares later
    ones with it. So it is there before anything newer.

    Args:
        keep: the mirror's own.
        local: the run's checkpoints.
        there: the mirror's.

    """
    present = {record.name for record in there}
    mine = {record.name: record for record in local}
    # What the run knows of a checkpoint counts more: a mark that was made there comes later.
    records = [*mine.values(), *(record for record in there if record.name not in mine)]
    wanted = [
        verdict.record
        for verdict in decide(keep, records)
        if verdict.kept
        and verdict.record.name in mine
        and verdict.record.name not in present
        and verdict.record.whole
        and not verdict.record.abandoned
    ]
    best = best_of(keep, records)
    wanted.sort(
        key=lambda record: (best is not None and record.name == best.name, record.sequence), reverse=True
    )
    return [record.name for record in wanted]


def leaving(keep: Keep, there: Sequence[Record]) -> list[str]:
    """The names that leave a mirror, the oldest first.

    It is asked of what lies in the mirror alone: so what counts as a newer one is there already, and the newest
    clean one, the best and the pinned ones never leave.
    """
    return [verdict.record.name for verdict in decide(keep, there) if not verdict.kept]


@dataclasses.dataclass(frozen=True, slots=True)
class Standing:
    """How far a mirror is: the highest sequence of its clean checkpoints, the names of all, and what it waits for.

    `copying` is on its way at this moment; `lacking` are the names that are still to come.
    """

    newest: int = 0
    names: frozenset[str] = frozenset()
    lacking: frozenset[str] = frozenset()
    copying: str | None = None
    required: bool = False


def held_back(doomed: Sequence[Record], standings: Iterable[Standing]) -> set[str]:
    """The names, of those that the run's retention would delete, that some mirror still waits for.

    A required mirror holds back all that is newer than what it has; any other one at most two: the one that is
    being copied, and the newest.
    """
    held: set[str] = set()
    for standing in standings:
        missed = [
            record.name
            for record in sorted(doomed, key=lambda record: record.sequence, reverse=True)
            if record.whole
            and record.name not in standing.names
            and (
                record.sequence > standing.newest
                or record.name in standing.lacking
                or record.name == standing.copying
            )
        ]
        missed.sort(key=lambda name: name != standing.copying)
        held.update(missed if standing.required else missed[:HELD])
    return held


@dataclasses.dataclass(frozen=True, slots=True)
class Offer:
    """A checkpoint that mirrors hold and the run does not; `places` are indices of mirrors."""

    record: Record
    created: str
    places: tuple[int, ...]


def offers(
    highest: int,
    abandoned: Collection[str],
    rewound: str | None,
    mirrors: Mapping[int, Sequence[tuple[Record, str]]],
) -> list[Offer]:
    """What a run that is behind its mirrors can go on from, best first.

    An offer is newer than all that the run has, damaged and abandoned ones included: so what a rewind left
    behind is not brought back. What a rewind went behind without knowing of it is told by its time.

    Args:
        highest: the highest number among the run's own checkpoints; 0 where it has none.
        abandoned: names that the run has marked as abandoned, whether they are there or not.
        rewound: when the run was rewound last (UTC, ISO 8601).
        mirrors: for each mirror its checkpoints, with the times at which they were made.

    """
    found: dict[str, Offer] = {}
    for place, there in mirrors.items():
        for record, created in there:
            if not record.whole or record.abandoned or record.name in abandoned or record.sequence <= highest:
                continue
            if rewound is not None and created <= rewound:
                continue
            known = found.get(record.name)
            places = (*known.places, place) if known is not None else (place,)
            found[record.name] = Offer(record, created, places)
    ordered = sorted(found.values(), key=lambda offer: (offer.record.sequence, offer.created), reverse=True)
    clean = [offer for offer in ordered if offer.record.clean]
    # A run that has something of its own does not go on from NaN.
    return clean + [offer for offer in ordered if not offer.record.clean] if not highest else clean


class Marks(NamedTuple):
    """Names that are to be marked in a mirror as pinned and as abandoned, and those that are abandoned no more."""

    pinned: set[str]
    abandoned: set[str]
    revived: set[str]


def marks(
    local: Sequence[Record],
    abandoned: Collection[str],
    rewound: str | None,
    there: Sequence[tuple[Record, str | None]],
) -> Marks:
    """What the run abandoned is abandoned in its mirrors; a pin is taken over, and taken away there by hand alone.

    Args:
        local: the run's own checkpoints.
        abandoned, rewound: as in `offers`.
        there: those of the mirror, with the times at which they were made.

    """
    here = {record.name: record for record in local}
    highest = max((record.sequence for record in local), default=0)
    names = {record.name for record, _ in there}
    unknown = {
        record.name
        for record, created in there
        if rewound is not None
        and record.name not in here
        and record.sequence > highest
        and created is not None
        and created <= rewound
    }
    return Marks(
        pinned={name for name in names if name in here and here[name].pinned},
        abandoned={name for name in names if name in abandoned} | unknown,
        revived={name for name in names if name in here and name not in abandoned},
    )


def pause(failures: int) -> float:
    """Seconds until a mirror that has failed so many times in a row is tried again."""
    return min(_LONGEST_PAUSE, _FIRST_PAUSE * 2.0 ** min(failures - 1, 10)) if failures else 0.0


class Throttle:
    """Keeps a copy to so many bytes per second.

    Args:
        limit: bytes per second; None for no limit.

    """

    def __init__(self, limit: int | None) -> None:
        self._limit = limit
        self._free_at = 0.0

    def delay(self, size: int, now: float) -> float:
        """Seconds to wait after `size` bytes more; `now` is the clock's reading."""
        if self._limit is None:
            return 0.0
        self._free_at = max(self._free_at, now) + size / self._limit
        return self._free_at - now
