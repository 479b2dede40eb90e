"""Keras' `fit`, saved after each epoch: Holdfast's callback beside the two of Keras that do the same together."""

from __future__ import annotations

import glob
import os
import statistics
import time
from collections.abc import Iterator
from importlib.util import find_spec
from typing import Any

from benchmarks import limits, memory, table
from benchmarks.bench import Bench
from benchmarks.children import Sample
from benchmarks.sizes import Size
from benchmarks.topic import Case, Column, Row, Rows, Target, Topic

_ALONE = "no saves"
_OURS = "**Holdfast** Callback"
_THEIRS = "BackupAndRestore + ModelCheckpoint"
_EPOCHS = 6


def train(who: str, place: str, size: Size) -> Sample:
    """Trains some epochs, each saved, then begins again in a new model; the seconds of the former.

    Facts: "epochs": seconds of each, the first left out; "held": seconds from the end of an epoch's last batch
    to the first batch of the next; "written": bytes in the files of one save;
    "resume": seconds from the beginning of the second `fit` to its first batch.
    """
    if not (find_spec("keras") and find_spec("tensorflow")):
        return Sample(None, facts={"note": "Keras and TensorFlow are not installed"})
    os.environ.update(KERAS_BACKEND="tensorflow", TF_CPP_MIN_LOG_LEVEL="3", CUDA_VISIBLE_DEVICES="")
    import keras

    memory.keep_freed()
    keras.utils.set_random_seed(4)
    clock = _clock(keras)
    started = time.perf_counter()
    _fit(keras, who, place, size, clock, _EPOCHS)
    seconds = time.perf_counter() - started
    written = sum(limits.bytes_in(path) for path in glob.glob(f"{place}*"))
    saves = {_ALONE: 0, _OURS: 3, _THEIRS: _EPOCHS + 1}[who]
    facts: dict[str, Any] = {
        "epochs": clock.epochs[1:],
        "held": clock.held,
        "written": written / saves if saves else None,
    }
    again = _clock(keras)
    _fit(keras, who, place, size, again, _EPOCHS + 1)
    facts["resume"] = again.first if who != _ALONE else None
    return Sample(seconds, facts=facts)


def _clock(keras: Any) -> Any:
    class Clock(keras.callbacks.Callback):
        """Times epochs from begin to begin, so that a save between two of them belongs to the one before."""

        def __init__(self) -> None:
            super().__init__()
            self.epochs: list[float] = []
            self.held: list[float] = []
            self.ended: float | None = None
            self.first: float | None = None

        def on_train_begin(self, logs: Any = None) -> None:
            self.began = self.mark = time.perf_counter()

        def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
            self.ended = time.perf_counter()

        def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
            if batch == 0 and self.ended is not None:
                self.held.append(time.perf_counter() - self.ended)
            if self.first is None:
                self.first = time.perf_counter() - self.began
            if batch == 0:
                now = time.perf_counter()
                self.epochs.append(now - self.mark)
                self.mark = now

    return Clock()


def _fit(keras: Any, who: str, place: str, size: Size, clock: Any, epochs: int) -> None:
    from sklearn.datasets import load_digits

    digits = load_digits()
    dense, width = keras.layers.Dense, size.width
    model = keras.Sequential(
        [keras.layers.Input((64,)), *(dense(width, activation="relu") for _ in range(size.layers)), dense(10)]
    )
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile("adam", loss, metrics=["accuracy"])
    x, y = digits.data.astype("float32") / 16, digits.target
    model.fit(x, y, epochs=epochs, verbose=0, callbacks=[clock, *_callbacks(keras, who, place)])


def _callbacks(keras: Any, who: str, place: str) -> list[Any]:
    if who == _OURS:
        import holdfast

        return [holdfast.keras.Callback(holdfast.Run(f"{place}-run"))]
    if who == _THEIRS:
        return [
            keras.callbacks.BackupAndRestore(f"{place}-backup", delete_checkpoint=False),
            keras.callbacks.ModelCheckpoint(f"{place}-{{epoch:02d}}.keras"),
        ]
    return []


def topics(bench: Bench) -> Iterator[Topic]:
    roles = {_ALONE: "limit", _OURS: "holdfast", _THEIRS: "peer"}
    cases = [
        Case(who, role, lambda _, who=who: bench.cleared(train, who, bench.path("fit"), bench.size))  # type: ignore[misc]
        for who, role in roles.items()
    ]
    yield Topic(
        "fit",
        f"Keras' fit, {bench.size.layers} dense layers of {bench.size.width} with Adam, TensorFlow, a save each epoch",
        cases,
        bench.size.repetitions,
        columns=COLUMNS,
        targets=[
            Target("an epoch takes at most 1.05 of that with Keras' own callbacks", _against_others, 1.05),
        ],
    )


def _epoch(row: Row) -> float | None:
    times = [seconds for sample in row.samples for seconds in sample.facts.get("epochs", [])]
    return statistics.median(times) if times else None


def _against_others(rows: Rows) -> float | None:
    ours, theirs = rows.of(_OURS), rows.of(_THEIRS)
    mine, other = (_epoch(row) if row is not None else None for row in (ours, theirs))
    return mine / other if mine and other else None


def _epoch_text(row: Row, _: Rows) -> str:
    value = _epoch(row)
    return table.seconds(value) if value is not None else ""


def _held_text(row: Row, _: Rows) -> str:
    times = [seconds for sample in row.samples for seconds in sample.facts.get("held", [])]
    return table.seconds(statistics.median(times)) if times else ""


def _longer_text(row: Row, rows: Rows) -> str:
    alone = rows.of(_ALONE)
    mine, bare = _epoch(row), _epoch(alone) if alone is not None else None
    return "" if mine is None or bare is None or row is alone else table.seconds(max(0.0, mine - bare))


def _written_text(row: Row, _: Rows) -> str:
    written = row.fact("written")
    return table.megabytes(written) if written else ""


def _resume_text(row: Row, _: Rows) -> str:
    value = row.fact("resume")
    return table.seconds(value) if value is not None else ""


COLUMNS = (
    Column("epoch: median", _epoch_text),
    Column("longer by", _longer_text),
    Column("between two epochs", _held_text),
    Column("written per save", _written_text),
    Column("from fit to the first batch, resuming", _resume_text),
)
