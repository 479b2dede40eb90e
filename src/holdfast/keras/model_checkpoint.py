"""`ModelCheckpoint` as TensorFlow 2.0 to 2.15 and Keras 3 have it, with saves that are whole or not there."""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Mapping
from typing import Any

import keras
import numpy as np

from holdfast.errors import UsageError
from holdfast.keras import monitoring, saves, weights
from holdfast.log import logger


class ModelCheckpoint(keras.callbacks.Callback):  # type: ignore[misc]
    """Saves the model, or its weights, at the end of epochs or after batches.

    It takes what ``tf.keras.callbacks.ModelCheckpoint`` of TensorFlow 2.0 to 2.15 and
    ``keras.callbacks.ModelCheckpoint`` of Keras 3 take, and decides as they do when to save, what is
    the best, and what the file is called. Other than theirs:

    - An existing file or folder is replaced at once: a kill or a full disk at any moment leaves the
      old one whole, or the new one.
    - The best so far is remembered: with `save_best_only`, a restarted script saves only what is
      better than what lies there. Delete the file to begin anew.
    - A NaN is never the best. (With Keras, a first value that is NaN is never improved on.)

    Args:
        filepath: where, with ``{epoch}``, ``{batch}`` and the names of metrics in braces. With
            `save_weights_only` a name ending in ``.weights.h5`` is such a file, and any other, like
            ``cp.ckpt``, a Holdfast checkpoint (a folder) with weights and optimizer. Without, it
            ends in ``.keras`` or ``.h5``.
        monitor, mode, save_best_only, initial_value_threshold: what is the best, as in Keras.
        verbose: 1 says what is done.
        save_weights_only: the weights and the optimizer's state, or the whole model.
        save_freq: "epoch", or a number of batches.
        period: with ``save_freq="epoch"``, every so many epochs, counted from where `fit` began.
        options: taken for TensorFlow's sake, and not used.
        load_weights_on_restart: True loads the newest of what `filepath` means before the training.

    """

    def __init__(
        self,
        filepath: str | os.PathLike[str],
        monitor: str = "val_loss",
        verbose: int = 0,
        save_best_only: bool = False,
        save_weights_only: bool = False,
        mode: str = "auto",
        save_freq: str | int = "epoch",
        initial_value_threshold: float | None = None,
        *,
        period: int = 1,
        options: Any = None,  # noqa: ARG002 (an option of TensorFlow's writer)
        load_weights_on_restart: bool = False,
    ) -> None:
        super().__init__()
        self.filepath = os.fspath(filepath)
        self.monitor, self.mode, self.verbose = monitor, mode, verbose
        self.save_best_only, self.save_weights_only = save_best_only, save_weights_only
        self.save_freq, self.period = save_freq, period
        self.load_weights_on_restart = load_weights_on_restart
        self.best: Any = initial_value_threshold
        if mode not in ("auto", "min", "max"):
            warnings.warn(f"ModelCheckpoint mode {mode!r} is unknown, fallback to auto mode.", stacklevel=2)
            self.mode = "auto"
        if save_freq != "epoch" and not isinstance(save_freq, int):
            raise UsageError(
                f"save_freq={save_freq!r}: expected 'epoch' or a number of batches.", found=save_freq
            )
        if type(period) is not int or period < 1:
            raise UsageError(f"period={period!r}: expected a number of epochs, 1 or more.", found=period)
        self._form = saves.form_of(self.filepath, weights_only=save_weights_only)
        self._way: str | None = None
        self._recalled = False
        self._epoch = 0
        self._epochs_waiting = self._batches_waiting = 0
        self._last_batch: int | None = None
        self._sequences = saves.Sequences()

    # -- when Keras calls --------------------------------------------------------------------------

    def on_train_begin(self, logs: Any = None) -> None:  # noqa: ARG002
        """Loads the newest of what is there, where that was asked for."""
        if not self.load_weights_on_restart:
            return
        newest = saves.newest_of(self.filepath)
        if newest is not None:
            weights.load_weights(self.model, newest)

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:  # noqa: ARG002
        self._epoch = epoch

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        if self.save_freq == "epoch":
            return
        # Keras counts from 0 in each epoch, and leaves numbers out where steps are executed together.
        before = self._last_batch
        self._batches_waiting += batch + 1 if before is None or batch <= before else batch - before
        self._last_batch = batch
        if self._batches_waiting >= int(self.save_freq):
            self._batches_waiting = 0
            self._save(self._epoch, batch, logs or {})

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        self._epochs_waiting += 1
        if self.save_freq == "epoch" and self._epochs_waiting >= self.period:
            self._epochs_waiting = 0
            self._save(epoch, None, logs or {})

    # -- what is decided ---------------------------------------------------------------------------

    def _direction(self) -> str:
        if self._way is None:
            self._way = monitoring.direction(self.model, self.monitor, self.mode)
        return self._way

    def _save(self, epoch: int, batch: int | None, logs: Mapping[str, Any]) -> None:
        path = self._path(epoch, batch, logs)
        if not self._is_wanted(epoch, logs, path):
            return
        saves.write(self.model, path, self._form, self._record(epoch, batch, logs, path))
        if self.verbose > 0:
            say(f"\nEpoch {epoch + 1}: finished saving model to {path}")

    def _path(self, epoch: int, batch: int | None, logs: Mapping[str, Any]) -> str:
        own = {} if batch is None or "batch" in logs else {"batch": batch + 1}
        try:
            return self.filepath.format(epoch=epoch + 1, **own, **logs)
        except KeyError as error:
            raise UsageError(
                f"filepath={self.filepath!r} names {error}, which this save does not know. It knows: epoch, "
                f"{', '.join([*own, *logs])}. Next: monitor it (validation_data=… for what begins with val_), or take it out.",
                found=self.filepath,
                expected=["epoch", *own, *logs],
            ) from error

    def _is_wanted(self, epoch: int, logs: Mapping[str, Any], path: str) -> bool:
        if not self.save_best_only:
            self._tell(f"\nEpoch {epoch + 1}: saving model to {path}")
            return True
        current = logs.get(self.monitor)
        if current is None:
            warnings.warn(f"Can save best model only with {self.monitor} available.", stacklevel=2)
            return True
        if (isinstance(current, np.ndarray) or keras.ops.is_tensor(current)) and len(current.shape) > 0:
            warnings.warn(
                f"Can save best model only when `monitor` is a scalar value. Received: {current}. Falling back to "
                f"`save_best_only=False`.",
                stacklevel=2,
            )
            return True
        self._recall()
        before = "None" if self.best is None else f"{self.best:.5f}"
        if not monitoring.is_better(current, self.best, self._direction()):
            self._tell(f"\nEpoch {epoch + 1}: {self.monitor} did not improve from {before}")
            return False
        self._tell(
            f"\nEpoch {epoch + 1}: {self.monitor} improved from {before} to {current:.5f}, saving model to {path}"
        )
        self.best = None if math.isnan(float(current)) else current
        return True

    def _tell(self, text: str) -> None:
        if self.verbose > 0:
            say(text)

    # -- what outlives the process -----------------------------------------------------------------

    def _recall(self) -> None:
        """Takes up the best that earlier processes saved under these names; once, before the first decision."""
        if self._recalled:
            return
        self._recalled = True
        way = self._direction()
        unknown = None
        for path, record in saves.matching(self.filepath):
            best = record.best if record is not None else None
            value = (
                best.get("value")
                if best and (best.get("metric"), best.get("mode")) == (self.monitor, way)
                else None
            )
            if not monitoring.is_number(value):
                unknown = path
            elif monitoring.is_better(value, self.best, way):
                self.best = value
                logger.info(
                    "%s = %.5f of %s is the best so far: only what is better is saved. (Delete it to begin anew.)",
                    self.monitor,
                    value,
                    path,
                )
        if unknown is not None and self.best is None and unknown == self.filepath:
            logger.warning(
                "%s does not say what %s it had; the first epoch replaces it. Next time pass initial_value_threshold=….",
                unknown,
                self.monitor,
            )

    def _record(self, epoch: int, batch: int | None, logs: Mapping[str, Any], path: str) -> saves.Record:
        best = None
        if self.save_best_only and self.best is not None:
            best = {
                "metric": self.monitor,
                "mode": self._direction(),
                "value": float(self.best),
                "name": os.path.basename(path),
            }
        return saves.Record(
            sequence=self._sequences.next_in(os.path.dirname(os.path.abspath(path))),
            # In the middle of an epoch that one is not completed.
            epoch=epoch + 1 if batch is None else epoch,
            metrics={name: float(value) for name, value in logs.items() if _is_scalar(value)},
            best=best,
        )


def _is_scalar(value: Any) -> bool:
    return isinstance(value, (int, float, np.generic)) or np.ndim(value) == 0


def say(text: str) -> None:
    """Prints as Keras does: to stdout, or to absl's log where interactive logging is off."""
    if keras.utils.is_interactive_logging_enabled():
        print(text, flush=True)  # noqa: T201
    else:
        from absl import logging

        logging.info(text)
