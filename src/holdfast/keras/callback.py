"""`holdfast.keras.Callback`: `fit`, made resumable."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import keras

from holdfast.errors import UsageError
from holdfast.keras.fitting import Fitting
from holdfast.keras.seeding import seed_as_before

if TYPE_CHECKING:
    from holdfast.run import Run


class Callback(keras.callbacks.Callback):  # type: ignore[misc] # Keras brings no types
    """Saves what `fit` trains, and goes on from there: ``model.fit(…, callbacks=[holdfast.keras.Callback(run)])``.

    The epochs of `fit` are those of the run, in total. Whatever its place in the list, this callback is
    called before the others; epochs are saved after all others have seen their end.

    Args:
        run: the run that `fit` is saved in. Its `every`, `keep`, probe, `init`, `fresh` and signals are as
            in a loop of one's own; `run.state`, `run.log` and `run.stop` may be used by other callbacks.
        entire: save the structure beside the weights, so that `holdfast.keras.load_model` opens each
            checkpoint without this script.

    Raises (from `fit`):
        UsageError: something differs from the launch that saved; the message says what to do.
        Preempted: SIGTERM or SIGUSR1 came, and the place is saved.
        StorageError: a save failed.

    """

    def __init__(self, run: Run, *, entire: bool = False) -> None:
        super().__init__()
        if not (hasattr(run, "track") and hasattr(run, "epochs")):
            raise UsageError(
                f'Callback({run!r}): expected a run, like Callback(holdfast.Run("runs/digits")).', found=run
            )
        self.run, self.entire = run, entire
        seed_as_before(run)
        self._fitting: Fitting | None = None

    def on_train_begin(self, logs: Any = None) -> None:  # noqa: ARG002
        """Restores the newest whole checkpoint."""
        self._fitting = Fitting(self.run, self, self.model)
        self._fitting.begin()

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:  # noqa: ARG002
        """Brings back what other callbacks have forgotten, and the random streams."""
        self._current().begin_epoch(epoch)

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:  # noqa: ARG002
        """Saves what is due between two batches."""
        self._current().begin_batch(batch)

    def on_test_begin(self, logs: Any = None) -> None:  # noqa: ARG002
        """Brings a shuffled validation set to the order that comes next."""
        if self._fitting is not None:  # else somebody evaluates, without a fit around it
            self._fitting.begin_validation()

    def on_train_end(self, logs: Any = None) -> None:  # noqa: ARG002
        """Lets other callbacks end a training that was complete before."""
        self._current().end()

    def _current(self) -> Fitting:
        if self._fitting is None:
            raise UsageError(
                "This callback is called outside of fit. Next: model.fit(…, callbacks=[Callback(run)])."
            )
        return self._fitting
