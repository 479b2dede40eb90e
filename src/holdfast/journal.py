"""The metrics of a training: logged, ranked by, and kept as rows of the history."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from typing import Any

from holdfast.errors import UsageError
from holdfast.format.manifest import HISTORY_ROWS
from holdfast.log import logger
from holdfast.state import tree
from holdfast.store import book
from holdfast.store.entry import Entry

_ROWS_AT_ONCE = 1000


class Journal:
    """What was logged since the last boundary, and the rows before.

    Attributes:
        history: the last rows, as each checkpoint carries them.

    """

    def __init__(self, metric: str | None) -> None:
        self.history: list[dict[str, Any]] = []
        self._metric = metric
        self._pending: dict[str, Any] = {}
        self._logged: set[str] = set()
        self._unwritten: list[dict[str, Any]] = []
        self._checked = False

    def log(self, metrics: Mapping[str, Any]) -> None:
        """Takes numbers for the next boundary."""
        for name, value in metrics.items():
            self._pending[name] = _number(name, value)
        self._logged.update(metrics)

    def take(self, run: str, epoch: int, step: int) -> dict[str, Any]:
        """The metrics logged since the previous boundary; they become a row of the history."""
        metrics, self._pending = self._pending, {}
        if metrics:
            place, encoded = {"epoch": epoch, "step": step}, encode_metrics(metrics)
            row = {**place, **encoded, **place}  # whoever logs an epoch: the row has its own
            self.history = [*self.history, row][-HISTORY_ROWS:]
            self._unwritten.append({"time": book.now(), "event": "metrics", **place, "metrics": encoded})
            if len(self._unwritten) >= _ROWS_AT_ONCE:
                self.write(run)
        return metrics

    def write(self, run: str) -> None:
        """Writes the rows that history.jsonl does not have yet."""
        rows, self._unwritten = self._unwritten, []
        if rows:
            book.note_events(run, rows)

    def check_once(self, entries: Sequence[Entry]) -> None:
        """The warning of `check`, once."""
        if not self._checked:
            self._checked = True
            self.check(entries, final=False)

    def check(self, entries: Sequence[Entry], *, final: bool) -> None:
        """Warns of a metric that Keep ranks by and nobody logs; at the end it is a `UsageError`."""
        metric = self._metric
        if metric is None or metric in self._logged or any(metric in row for row in self.history):
            return
        if any(entry.summary is not None and metric in entry.summary.metrics for entry in reversed(entries)):
            return
        logged = sorted(self._logged)
        near = difflib.get_close_matches(metric, logged, n=1, cutoff=0.3)
        text = (
            f"keep=Keep(metric={metric!r}), but no such metric was logged"
            f"{f'; did you mean {near[0]!r}?' if near else '.'} Logged were: {', '.join(logged) or 'none'}. "
            f"Next: run.log({metric}=…) in each epoch, or name another metric."
        )
        if final:
            raise UsageError(text, expected=metric, found=logged)
        logger.warning("%s", text)


def encode_metrics(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """Metrics as a checkpoint and its history hold them."""
    return {name: tree.encode(value, f"metric {name}") for name, value in metrics.items()}


def _number(name: str, value: Any) -> Any:
    """A metric as a Python number; arrays of one element are taken for their element."""
    if isinstance(value, (bool, int, float)) and type(value).__module__ == "builtins":
        return value
    if not hasattr(value, "item") and getattr(value, "shape", None) == () and hasattr(value, "numpy"):
        value = value.numpy()  # TensorFlow's
    item = getattr(value, "item", None)
    if callable(item) and getattr(value, "size", 1) is not None:
        try:
            plain = item()
        except (ValueError, RuntimeError, TypeError) as error:
            raise UsageError(
                f"run.log({name}=…): a metric is one number, this {type(value).__name__} is not: {error}.",
                found=name,
            ) from error
        if isinstance(plain, (bool, int, float)):
            return plain
    raise UsageError(
        f"run.log({name}={value!r}): a metric is a number, not a {type(value).__name__}. "
        f"Next: keep other things in run.state.",
        found=type(value).__name__,
    )
