"""Which checkpoints of a run stay and which go: a decision over records, without a disk.

Whatever is asked for, the newest clean checkpoint, the best and the pinned ones stay. Clean
means whole, without a NaN mark, and not abandoned by a rewind; only clean ones are counted
and ranked.
"""

from __future__ import annotations

import dataclasses
import math
import numbers
import operator
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from holdfast.errors import UsageError

_UNITS = {"": 0, "k": 1, "m": 2, "g": 3, "t": 4, "p": 5}
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*(?:([kmgtp])(i)?)?b", re.IGNORECASE)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Keep:
    """Which checkpoints to keep; the newest clean, the best and the pinned ones stay in any case.

    Attributes:
        last: so many of the newest clean ones; None keeps all.
        best: so many of the best by `metric`; 1 when only `metric` and `mode` are given.
        metric: the name of a logged value.
        mode: ``"min"`` or ``"max"``, whichever is better.
        every_epochs: also each one taken at the end of every so many epochs.
        budget: bytes that all checkpoints together may take, as a number or like ``"200 GB"``
            or ``"1.5 TiB"``. The oldest go first; those that stay in any case may exceed it.

    Raises:
        UsageError: a value makes no sense, or one of best, metric and mode misses the others.

    """

    last: int | None = 3
    best: int | None = None
    metric: str | None = None
    mode: str | None = None
    every_epochs: int | None = None
    budget: int | float | str | None = None

    def __post_init__(self) -> None:
        _check_count("last", self.last, " or None, which keeps all (the newest one always stays)")
        _check_count("best", self.best, "")
        _check_count("every_epochs", self.every_epochs, "")
        metric: object = self.metric
        if metric is not None and not (isinstance(metric, str) and metric):
            raise _wrong("metric", metric, "the name of a logged value, such as 'val_accuracy'")
        if self.mode not in (None, "min", "max"):
            raise _wrong("mode", self.mode, "'min' or 'max'")
        if (self.metric is None) != (self.mode is None) or (self.best and self.metric is None):
            given = ", ".join(
                f"{name}={value!r}"
                for name, value in (("best", self.best), ("metric", self.metric), ("mode", self.mode))
                if value is not None
            )
            raise UsageError(
                f"Keep({given}): a best needs a metric and a mode, since nothing else tells what is better. "
                f"Write Keep(best={self.best or 1}, metric={self.metric or 'val_accuracy'!r}, "
                f"mode={self.mode or 'max'!r}).",
                found=given,
            )
        if self.metric is not None and self.best is None:
            object.__setattr__(self, "best", 1)
        if self.budget is not None:
            parse_size(self.budget)

    @property
    def budget_bytes(self) -> int | None:
        """The budget in bytes."""
        return None if self.budget is None else parse_size(self.budget)


class Record(NamedTuple):
    """What is known of one checkpoint and decides whether it stays.

    `epoch` counts completed epochs and `batch` the batches done in the one after them; `size`
    is in bytes; `whole` is False for what is damaged or cannot be read.
    """

    name: str
    sequence: int
    epoch: int
    step: int
    batch: int
    metrics: Mapping[str, float]
    nan: bool
    pinned: bool
    abandoned: bool
    size: int
    whole: bool = True

    @property
    def clean(self) -> bool:
        """Whether a run may resume from it: whole, no NaN, not abandoned."""
        return self.whole and not self.nan and not self.abandoned


class Verdict(NamedTuple):
    """Whether one checkpoint stays, and why or why not, in words for people."""

    record: Record
    kept: bool
    reasons: tuple[str, ...]


def decide(keep: Keep, records: Iterable[Record], *, prune: bool = False) -> list[Verdict]:
    """One verdict for each record, in the order of their sequence.

    Deleting what goes and deciding again lets nothing more go. Damaged and abandoned records
    are left where they are and are not counted, but take part of the budget.

    Args:
        keep: the policy.
        records: all checkpoints of one run.
        prune: lets abandoned records go too, unless they are pinned.

    """
    ordered = sorted(records, key=lambda record: (record.sequence, record.name))
    stays: dict[str, list[str]] = {record.name: [] for record in ordered}
    clean = [record for record in ordered if record.clean]
    marked = [record for record in ordered if record.nan and record.whole and not record.abandoned]
    safe = {record.name for record in ordered if record.pinned}

    if clean:
        newest = clean[-1]
        latest = all(record.abandoned or record.sequence <= newest.sequence for record in ordered)
        stays[newest.name].append("newest" if latest else "newest clean")
        safe.add(newest.name)
    for record in clean if keep.last is None else clean[-keep.last :]:
        stays[record.name].append("all are kept" if keep.last is None else f"last {keep.last}")
    for place, record in enumerate(rank(keep, ordered)[: keep.best], start=1):
        stays[record.name].append(f"{_place(place)}{_score(keep, record)}")
        safe.add(record.name)
    for record in clean:
        if (
            keep.every_epochs
            and record.batch == 0
            and record.epoch > 0
            and record.epoch % keep.every_epochs == 0
        ):
            every = "epoch" if keep.every_epochs == 1 else f"{keep.every_epochs} epochs"
            stays[record.name].append(f"every {every}")
    if marked:
        stays[marked[-1].name].append("newest marked NaN")
        if not clean:  # It is all there is to go on from.
            safe.add(marked[-1].name)
    for record in ordered:
        if record.pinned:
            stays[record.name].append("pinned")
        if not record.whole:
            stays[record.name].append("damaged: see `holdfast verify`")
        elif record.abandoned and not prune:
            stays[record.name].append("abandoned by rewind")

    over = _over_budget(keep, [record for record in ordered if stays[record.name]], safe)
    verdicts = []
    for record in ordered:
        reasons = stays[record.name]
        if record.name in over:
            verdicts.append(Verdict(record, kept=False, reasons=(f"over the budget of {_budget(keep)}",)))
        elif reasons:
            verdicts.append(Verdict(record, kept=True, reasons=tuple(reasons)))
        else:
            verdicts.append(Verdict(record, kept=False, reasons=(_why_it_goes(keep, record),)))
    return verdicts


def _over_budget(keep: Keep, kept: list[Record], safe: set[str]) -> set[str]:
    """The names of the oldest that must go for the rest to fit."""
    over: set[str] = set()
    budget = keep.budget_bytes
    if budget is None:
        return over
    total = sum(record.size for record in kept)
    for record in kept:
        if total <= budget:
            break
        if record.name in safe or not record.whole or record.abandoned:
            continue
        over.add(record.name)
        total -= record.size
    return over


def _why_it_goes(keep: Keep, record: Record) -> str:
    if record.abandoned:
        return "abandoned by rewind"
    return "marked NaN, and not the newest such" if record.nan else f"beyond last {keep.last}"


def rank(keep: Keep, records: Iterable[Record]) -> list[Record]:
    """The clean records that have the metric, best first; of equals the older comes first."""
    return [record for *_, record in sorted(_ranked(keep, records), key=_PLACE)]


def best_of(keep: Keep, records: Iterable[Record]) -> Record | None:
    """The best clean record; None without a metric, or while no record has it."""
    best = min(_ranked(keep, records), key=_PLACE, default=None)
    return None if best is None else best[2]


_PLACE = operator.itemgetter(0, 1)


def _ranked(keep: Keep, records: Iterable[Record]) -> Iterator[tuple[Any, int, Record]]:
    """The records that are ranked, behind what ranks them: the least is the best."""
    sign = 1 if keep.mode == "min" else -1
    for record in records:
        if record.clean and (value := _value(keep, record.metrics)) is not None:
            yield sign * value, record.sequence, record


def is_new_best(keep: Keep, records: Iterable[Record], metrics: Mapping[str, Any], nan: bool = False) -> bool:
    """Whether a checkpoint with these metrics would be among the best; a tie would not."""
    value = None if nan else _value(keep, metrics)
    if value is None or keep.best is None:
        return False
    ranked = rank(keep, records)
    if len(ranked) < keep.best:
        return True
    worst = _value(keep, ranked[keep.best - 1].metrics)
    return worst is None or (value < worst if keep.mode == "min" else value > worst)


def _value(keep: Keep, metrics: Mapping[str, Any]) -> Any:
    """The metric as a number that can be compared, or None."""
    value = metrics.get(keep.metric) if keep.metric is not None else None
    if type(value) is float:  # nearly always; the question below takes its time
        return value if math.isfinite(value) else None
    if not isinstance(value, numbers.Real):
        return None
    if isinstance(value, numbers.Integral):
        return int(value)
    return float(value) if math.isfinite(value) else None


def _place(place: int) -> str:
    if place == 1:
        return "best "
    ending = "th" if place % 100 in (11, 12, 13) else {1: "st", 2: "nd", 3: "rd"}.get(place % 10, "th")
    return f"{place}{ending} best "


def _score(keep: Keep, record: Record) -> str:
    value = _value(keep, record.metrics)
    shown = str(value) if isinstance(value, int) else f"{value:.6g}"
    return f"{keep.metric} ({keep.mode}) {shown}"


# -- checks ------------------------------------------------------------------------------------


def _wrong(argument: str, value: object, expected: str) -> UsageError:
    return UsageError(f"Keep({argument}={value!r}): expected {expected}.", argument=argument, found=value)


def _check_count(argument: str, value: object, more: str) -> None:
    if value is None or (isinstance(value, int) and not isinstance(value, bool) and value > 0):
        return
    raise _wrong(argument, value, f"a positive whole number{more}")


def parse_size(budget: object) -> int:
    """Bytes of a number or of a text like ``"200 GB"`` or ``"1.5 TiB"``; anything else is a `UsageError`."""
    size: float = 0
    if isinstance(budget, str) and (match := _SIZE.fullmatch(budget.strip())):
        base = 1024 if match[3] else 1000
        size = float(match[1]) * base ** _UNITS[(match[2] or "").lower()]
    elif isinstance(budget, int | float) and not isinstance(budget, bool):
        size = budget
    if not 0 < size < math.inf:
        raise _wrong("budget", budget, "bytes, such as 200_000_000_000, or a size like '200 GB' or '1.5 TiB'")
    return int(size)


def _budget(keep: Keep) -> str:
    if isinstance(keep.budget, str):
        return keep.budget.strip()
    size = float(keep.budget or 0)
    for unit in ("bytes", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.4g} {unit}"
        size /= 1000
    return f"{size:.4g} TB"
