"""One call of `fit`, seen as the loop of a run: what the callback does at each of Keras' moments.

on_train_begin        build, track, restore; say from which epoch `fit` goes on
on_epoch_begin        first of all callbacks: once more what is small, and the random streams
on_train_batch_begin  a boundary between two batches
on_epoch_end          last of all callbacks: the boundary between two epochs
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import keras

from holdfast import resuming
from holdfast.errors import UsageError
from holdfast.format.manifest import Manifest
from holdfast.keras import building, edge
from holdfast.keras.company import Company
from holdfast.keras.measures import Measures
from holdfast.keras.surroundings import Surroundings
from holdfast.state import capture, streams

if TYPE_CHECKING:
    from holdfast.run import Run

_RESTART = (
    "The data given to fit can only begin an epoch anew, so nothing is saved in the middle of one: saves that come due "
    "there wait for its end, and a training that is ended there does that epoch again from its start. Next: give the "
    "data through run.batches(…) to save and continue at any batch."
)


class Fitting:
    """The loop of a run while Keras runs it."""

    def __init__(self, run: Run, callback: Any, model: Any) -> None:
        self._run, self._callback, self._model = run, callback, model
        self._training, self._loop = run._training, run._loop
        self._around = Surroundings(callback, model)
        self._company = Company(self._others())
        self._first = True
        self._done = 0
        """Batches of this epoch that are trained."""
        self._entered = False

    def _others(self) -> list[Any]:
        if self._around.callbacks is None:
            return []
        plain = keras.callbacks.ProgbarLogger
        return [
            other
            for other in self._around.callbacks.callbacks
            if other is not self._callback and not isinstance(other, plain)
        ]

    # -- the training --------------------------------------------------------------------------

    def begin(self) -> None:
        """Restores the newest whole checkpoint, and lets `fit` go on from its epoch."""
        run, training, loop, model = self._run, self._training, self._loop, self._model
        run._usable()
        if loop.active == _FIT:  # an exception ended an earlier fit, and no callback was told
            loop.leave(early=True)
        goal = run._goal(_FIT, int((self._callback.params or {}).get("epochs") or 0))
        building.build(model, self._around.iterator)
        self._track()
        run._take_path()
        training.settle = lambda: edge.settle(model)
        self._put_first_and_last()
        self._entered = loop.enter("epochs", goal, call="fit", takes=self._takes, inside=self._around.inside)
        if self._entered:
            loop.active = _FIT
        # fit takes 0 for "not given".
        model._initial_epoch = training.position.epoch if self._entered else goal

    def _takes(self, manifest: Manifest) -> bool:
        return not manifest.progress.batch

    def _track(self) -> None:
        training = self._training
        tracked = {id(thing) for thing in training.things.values()}
        parts = {"model": self._model}
        for name, thing in vars(self._model).items():
            if isinstance(thing, keras.optimizers.Optimizer):
                parts[name.lstrip("_")] = thing
        for name, thing in parts.items():
            if id(thing) in tracked:
                continue
            if name in training.things and capture.kind_of(training.things[name]) != capture.kind_of(thing):
                raise UsageError(
                    f"run.track({name}=…) named something else than what this fit trains. Next: leave it out, the callback "
                    f"tracks the model and its optimizer; or give it another name.",
                    found=name,
                )
            training.track(name, thing)
        training.track("metrics", Measures(self._model))
        training.track("callbacks", self._company)

    def _put_first_and_last(self) -> None:
        from holdfast.keras.callback import Closer

        closer = Closer(self)
        closer.set_model(self._model)
        found = self._around.callbacks
        if found is None:
            raise UsageError(
                "This callback was called by something else than Keras' own CallbackList, so it cannot see the other "
                "callbacks. Next: model.fit(…, callbacks=[…]), or a loop of your own with run.epochs(…)."
            )
        others = [one for one in found.callbacks if one is not self._callback]
        # A new list: the loop that has just called us goes on through the old one.
        found.callbacks = [self._callback, *others, closer]

    # -- epochs and batches ----------------------------------------------------------------------

    def begin_epoch(self, epoch: int) -> None:
        """Before all other callbacks."""
        with self._leaving():
            training = self._training
            self._done = 0
            if self._first:
                self._model._initial_epoch = None  # else every later fit of this model would begin there
                self._check_start(epoch)
                self._company.note()
                if training.origin is not None:
                    self._restore_again()
            training.begin_epoch(again=False)
            self._first = False

    def _check_start(self, epoch: int) -> None:
        here = self._training.position.epoch
        if epoch != here:
            raise UsageError(
                f"fit begins at epoch {epoch}, and the run {self._run.path} stands at {here}. "
                f"Next: leave initial_epoch out, the run knows where to go on.",
                expected=here,
                found=epoch,
            )

    def _restore_again(self) -> None:
        # In their on_train_begin others have forgotten what they knew, and may have drawn numbers.
        training = self._training
        resuming.restore_again(training)
        self._company.welcome()
        self._model.reset_metrics()  # as fit has just done
        streams.restore(training.restored_random["streams"])

    def begin_batch(self, batch: int) -> None:
        """A boundary: all that was done for the batches before is done."""
        with self._leaving():
            self._count(batch)
            if batch:
                self._training.pass_by(_RESTART)
            self._training.hand_out()
            self._done = batch

    def _count(self, done: int) -> None:
        if done > self._training.position.batch:
            self._training.count_batch(0, done - self._training.position.batch)

    def _count_last(self) -> None:
        iterator = self._around.iterator
        done = self._done + int(getattr(self._model, "steps_per_execution", 1) or 1)
        known = getattr(iterator, "num_batches", None)
        self._count(min(done, int(known)) if known else done)

    def end_epoch(self, logs: Mapping[str, Any]) -> None:
        """After all other callbacks."""
        with self._leaving():
            training, loop, model = self._training, self._loop, self._model
            self._count_last()
            training.journal.log({name: value for name, value in logs.items() if _is_number(value)})
            training.count_epoch()
            training.stopped = training.stopping or bool(model.stop_training)
            model.stop_training = training.stopped
            goal = training.goal.value if training.goal is not None else 0
            last = training.position.epoch >= goal or training.stopped
            training.boundary(epoch_end=True, last=last)
            if loop.first_epoch and not last:
                training.check_metric(final=False)
            loop.first_epoch = False
            if last:
                loop.finish()
                loop.leave(early=False)

    def end(self) -> None:
        """Before all other callbacks: what a complete run restored is theirs again, and they may end it."""
        self._model._initial_epoch = None
        if not self._entered:
            self._company.welcome()
        self._loop.leave(early=True)

    @contextlib.contextmanager
    def _leaving(self) -> Iterator[None]:
        """An exception out of one of our moments ends the loop."""
        try:
            yield
        except BaseException as error:
            self._loop.leave(early=not isinstance(error, SystemExit | KeyboardInterrupt))
            raise


_FIT = "fit"


def _is_number(value: Any) -> bool:
    return isinstance(value, bool | int | float) or getattr(value, "shape", None) == ()
