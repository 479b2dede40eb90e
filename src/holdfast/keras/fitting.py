"""One call of `fit`, seen as the loop of a run: what the callback does at each of Keras' moments.

on_train_begin        build, track, restore; say from which epoch `fit` goes on
on_epoch_begin        first of all callbacks: once more what is small, and the random streams
on_train_batch_begin  a boundary between two batches
on_epoch_end          last of all callbacks: the boundary between two epochs
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import keras

from holdfast import restoring
from holdfast.errors import UsageError
from holdfast.format.manifest import Manifest
from holdfast.keras import building, edge, numbering, pydatasets, rates
from holdfast.keras.company import Company
from holdfast.keras.feeding import Feed
from holdfast.keras.fingerprints import fingerprint_of
from holdfast.keras.measures import Measures
from holdfast.keras.memories import Memories
from holdfast.keras.model import STRUCTURE, structure
from holdfast.keras.rounds import ValidationRounds, rounds_of
from holdfast.keras.seeding import warn_of_order
from holdfast.keras.surroundings import Surroundings
from holdfast.log import logger
from holdfast.state import capture, streams

if TYPE_CHECKING:
    from holdfast.run import Run

_RESTART = (
    "The data given to fit can only begin an epoch anew, so nothing is saved in the middle of one: saves that come due "
    "there wait for its end, and a training that is ended there does that epoch again from its start. Next: give the "
    "data through run.batches(…) to save and continue at any batch."
)

_CUT = (
    "fit(steps_per_epoch=…) goes on through its data where the epoch before has ended; a training that is continued begins "
    "them at their start, so that its batches, and what it draws at random, may be others than those of an uninterrupted one. "
    "Next: leave it out, and give run.batches(…) data of the length of an epoch, dataset.take(…) say."
)


class Closer(keras.callbacks.Callback):  # type: ignore[misc] # Keras brings no types
    """The last of the callbacks: an epoch is over once all others have seen its end."""

    def __init__(self, fitting: Fitting) -> None:
        super().__init__()
        self._fitting = fitting

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:  # noqa: ARG002 (as Keras calls it)
        self._fitting.end_epoch(logs or {})


class Fitting:
    """The loop of a run while Keras runs it."""

    def __init__(self, run: Run, callback: Any, model: Any) -> None:
        self._run, self._callback, self._model = run, callback, model
        self._training, self._loop = run._training, run._loop
        self._around = around = Surroundings(callback, model)
        adapter = getattr(around.iterator, "data_adapter", None)
        self._feed = adapter if isinstance(adapter, Feed) else None
        self._rounds = rounds_of(around.iterator)
        self._validation = ValidationRounds(model)
        self._company = Company(self._others(adapter))
        self._first = True
        self._inside = False
        """Whether this epoch was interrupted and is continued, until its first batch."""
        self._offset = 0
        """Batches of this epoch that an earlier launch has trained."""
        self._done = 0
        """The batch that is being trained."""
        self._entered = False

    def _others(self, adapter: Any) -> list[Any]:
        callbacks = [] if self._around.callbacks is None else self._around.callbacks.callbacks
        plain = keras.callbacks.ProgbarLogger
        others = [one for one in callbacks if one is not self._callback and not isinstance(one, plain)]
        data = self._feed.dataset if self._feed is not None else getattr(adapter, "py_dataset", None)
        held = (data, self._around.validation_data)
        # Those that shuffle themselves between two epochs.
        others += [each for each in held if isinstance(each, keras.utils.PyDataset)]
        # A closer may be there of an earlier fit with the same list.
        others = [one for one in others if not isinstance(one, Closer)]
        others.append(self._validation)
        return others if self._rounds is None else [*others, self._rounds]

    # -- the training --------------------------------------------------------------------------

    def begin(self) -> None:
        """Restores the newest whole checkpoint, and lets `fit` go on from its epoch."""
        run, training, loop, model = self._run, self._training, self._loop, self._model
        run._usable()
        if loop.active == _FIT:  # an exception ended an earlier fit, and no callback was told
            loop.leave(early=True)
        goal = run._goal(_FIT, int((self._callback.params or {}).get("epochs") or 0))
        self._check_alone()
        self._check_data()
        building.build(model, self._around.iterator)
        pydatasets.forget_fetched(self._around.iterator)
        self._track()
        run._take_path()
        training.settle = lambda: edge.settle(model)
        training.extra = (lambda: {STRUCTURE: structure(model)}) if self._callback.entire else None
        self._put_first_and_last()
        self._entered = loop.enter("epochs", goal, call="fit", takes=self._takes, inside=self._around.inside)
        if self._entered:
            loop.active = _FIT
            if self._feed is None:
                with self._leaving():
                    loop.check_fingerprint(fingerprint_of(self._around.iterator))
        # fit takes 0 for "not given".
        model._initial_epoch = training.position.epoch if self._entered else goal

    def _takes(self, manifest: Manifest) -> bool:
        inside = manifest.progress.batch or manifest.progress.entered
        return not inside or (self._feed is not None and manifest.loader is not None)

    def _check_alone(self) -> None:
        callbacks = [] if self._around.callbacks is None else self._around.callbacks.callbacks
        if sum(isinstance(one, type(self._callback)) for one in callbacks) > 1:
            raise UsageError(
                "fit was given two of these callbacks; each would be the first and the last in the list, and restore the "
                "model. Next: leave one out; holdfast.keras.ModelCheckpoint saves to a second place."
            )

    def _check_data(self) -> None:
        iterator, feed = self._around.iterator, self._feed
        if feed is not None and feed.loop is not self._loop:
            raise UsageError(
                "fit was given the batches of one run and the callback of another. Next: run.batches(…) and "
                "Callback(run) of the same run."
            )
        if feed is not None and iterator.steps_per_epoch:
            raise UsageError(
                f"fit(steps_per_epoch={iterator.steps_per_epoch}) cuts the epochs of run.batches(…), so that its position could "
                f"not be told. Next: leave it out; or cut the data, with dataset.take({iterator.steps_per_epoch}) say.",
                found=iterator.steps_per_epoch,
            )
        if feed is None:
            warn_of_order(iterator)
            if getattr(iterator, "steps_per_epoch", None):
                logger.warning("%s", _CUT)
            return
        beside = [name for name, value in self._around.arguments.items() if value is not None]
        if beside:  # Keras would leave it out, and train on
            raise UsageError(
                f"fit was given {', '.join(f'{name}=' for name in beside)} beside run.batches(…), which hands out whole batches. "
                f"Next: put targets and the weights of the samples into the data, run.batches((x, y, weights), …); a weight "
                f"of a class is that of its samples, [class_weight[label] for label in y].",
                found=beside,
            )
        feed.iterator = iterator

    def _track(self) -> None:
        training = self._training
        tracked = {id(thing) for thing in training.things.values()}
        parts: dict[str, Any] = {"model": self._model}
        for name, thing in vars(self._model).items():
            if isinstance(thing, keras.optimizers.Optimizer):
                parts[re.sub(r"[^a-z0-9_]", "_", name.lower()).strip("_")] = thing
        parts |= {"metrics": Measures(self._model, self._is_inside), "callbacks": self._company}
        memories = Memories(self._model)
        if memories.named():
            parts["states"] = memories
        for name, thing in parts.items():
            if id(thing) in tracked:
                continue
            if name in training.things and not _alike(training.things[name], thing):
                raise UsageError(
                    f"run.track({name}=…) named something else than what this fit saves under that name. Next: leave it out, "
                    f"the callback tracks the model, its optimizer, metrics and callbacks; or give it another name.",
                    found=name,
                )
            training.track(name, thing)
            if isinstance(thing, keras.optimizers.Optimizer):
                said = rates.declared(thing, training.options.path)
                if said is not None:
                    training.declared[name] = said

    def _is_inside(self) -> bool:
        return self._training.position.batch > 0

    def _put_first_and_last(self) -> None:
        closer = Closer(self)
        closer.set_model(self._model)
        found = self._around.callbacks
        if found is None:
            raise UsageError(
                "This callback was called by something else than Keras' own CallbackList, so it cannot see the other "
                "callbacks. Next: model.fit(…, callbacks=[…]), or a loop of your own with run.epochs(…)."
            )
        others = [one for one in found.callbacks if one is not self._callback and not isinstance(one, Closer)]
        # A new list: the loop that has just called us goes on through the old one.
        found.callbacks = [self._callback, *others, closer]

    # -- epochs and batches ----------------------------------------------------------------------

    def begin_epoch(self, epoch: int) -> None:
        """Before all other callbacks."""
        with self._leaving():
            training = self._training
            self._done = self._offset = 0
            if self._first:
                self._model._initial_epoch = None  # else every later fit of this model would begin there
                self._check_start(epoch)
                self._company.note()
                self._inside = bool(training.position.batch)
                if training.origin is not None:
                    self._restore_again()
            if self._inside:
                self._go_on_inside()
            if self._rounds is not None:
                self._rounds.begin_epoch()
            training.begin_epoch(again=self._inside)
            self._first = False

    def _go_on_inside(self) -> None:
        """The rest of an epoch has fewer batches, with the numbers that they had."""
        self._offset = self._training.position.batch
        numbering.begin_at(self._around, self._offset)

    def _count_as_before(self) -> None:
        numbering.begin_anew(self._around, self._offset)
        self._offset = 0

    def _check_start(self, epoch: int) -> None:
        here = self._training.position.epoch
        if epoch != here:
            kinds = [type(one).__name__ for one in self._around.callbacks.callbacks]
            what = "BackupAndRestore" if "BackupAndRestore" in kinds else "initial_epoch"
            raise UsageError(
                f"fit begins at epoch {epoch}, and the run {self._run.path} stands at {here}. "
                f"Next: leave {what} out, the run knows where to go on.",
                expected=here,
                found=epoch,
            )

    def _restore_again(self) -> None:
        # In their on_train_begin others have forgotten what they knew, and may have drawn numbers.
        training = self._training
        restoring.restore_again(training)
        self._company.welcome()
        if not self._inside:
            self._model.reset_metrics()  # as fit has just done
            if training.restored_random:  # what was imported has none
                streams.restore(training.restored_random["streams"])

    def begin_batch(self, batch: int) -> None:
        """A boundary: all that was done for the batches before is done."""
        with self._leaving():
            training = self._training
            self._count(batch)
            if self._inside:
                # Only now: others have begun this epoch a second time, and the loader has drawn its order,
                # after which all that is small was restored once more.
                self._inside = False
                self._company.welcome()
                streams.restore(training.restored_random["streams"])
            elif batch and self._feed is not None:
                training.boundary(between=True)
            elif batch:
                training.pass_by(_RESTART)
            if batch == self._offset:  # others have begun the epoch
                self._look_at_rates()
            training.hand_out()
            self._done = batch

    def _look_at_rates(self) -> None:
        for thing in self._training.things.values():
            if isinstance(thing, keras.optimizers.Optimizer):
                rates.look_at(thing)

    def _count(self, done: int) -> None:
        position = self._training.position
        if done > position.batch:
            samples = self._feed.samples(done) if self._feed is not None else 0
            self._training.count_batch(samples, done - position.batch)

    def _count_last(self) -> None:
        done = self._done + int(getattr(self._model, "steps_per_execution", 1) or 1)
        known = getattr(self._around.iterator, "num_batches", None)
        self._count(min(done, int(known) + self._offset) if known else done)

    def begin_validation(self) -> None:
        """Before all other callbacks."""
        self._validation.begin()

    def end_epoch(self, logs: Mapping[str, Any]) -> None:
        """After all other callbacks."""
        with self._leaving():
            training, loop, model = self._training, self._loop, self._model
            self._count_last()
            self._look_at_rates()
            if self._offset:
                self._count_as_before()
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


def _alike(one: Any, other: Any) -> bool:
    kind = capture.kind_of(one)
    return kind == capture.kind_of(other) and (kind != "object" or type(one) is type(other))


def _is_number(value: Any) -> bool:
    return isinstance(value, bool | int | float) or getattr(value, "shape", None) == ()
