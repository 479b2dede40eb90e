"""The managed loops: epochs, batches and steps.

A boundary is the moment a loop asks for its next item, before that is fetched: only then the
state is whole, and only then something is saved. All three are generators underneath, so that
leaving a loop by `break` or by an exception closes them at once, and is noticed.
"""

from __future__ import annotations

import os
import weakref
from collections.abc import Callable, Generator, Iterator
from types import FrameType
from typing import Any

from holdfast import restoring, resuming
from holdfast.errors import HoldfastError, UsageError
from holdfast.format.manifest import Goal, Manifest
from holdfast.log import logger
from holdfast.state import adapters, streams
from holdfast.state.slices import ArraySource
from holdfast.state.source import Skip, Source, compare_fingerprints, generic_source
from holdfast.training import Training


class Loop:
    """What a run's loops share: at most one is active, and one alone reaches its goal."""

    def __init__(self, training: Training) -> None:
        self.training = training
        self.active: str | None = None
        self.finished = False
        self.batches_entered = False
        self.again: Manifest | None = None
        """The manifest of an interrupted epoch, until its batches are entered again."""
        self.first_epoch = True
        self._pid = os.getpid()
        # Weak, so that leaving the batches by `break` ends them there and then.
        self._current: weakref.ref[Generator[tuple[int, Any], None, None]] | None = None
        self._warned: set[str] = set()
        self._assumed: list[str] = []
        """Generators that a resume took for untouched by the body's top, without knowing it."""

    # -- entering and leaving ------------------------------------------------------------------

    def enter(
        self,
        kind: str,
        goal: int,
        *,
        call: str | None = None,
        takes: Callable[[Manifest], bool] | None = None,
        inside: Callable[[FrameType | None], bool] | None = None,
    ) -> bool:
        """Opens the run, restores, says so; False when the run is complete already.

        Args:
            kind: "epochs" or "steps".
            goal: how many in total.
            call: what the user has called, if that was not ``run.epochs()`` or ``run.steps()``.
            takes: says of a checkpoint whether this loop can go on from there.
            inside: tells of a frame whether the loop runs there, where leaving it cannot be noticed.

        """
        training, called = self.training, call or f"run.{kind}()"
        if self.active is not None:
            raise UsageError(
                f"{called} was called inside run.{self.active}(): a run has one loop. "
                f"Next: for another phase make another Run, chained by init={{…}}."
            )
        if self.finished:
            raise UsageError(
                f"This run's loop has reached its goal in this process; {called} would be a second one. "
                f'Next: phases are runs of their own: Run("…/phase2", init={{"model": "{training.options.path}@best"}}).'
            )
        training.goal = Goal(kind, goal)
        training.ended = False
        training.raise_failure()
        manifest = resuming.resume(training, takes)
        before = manifest.goal if manifest is not None else None
        if before is not None and before.kind != kind:
            training.give_up()
            raise UsageError(
                f"{training.options.path} is a training by {before.kind} ({before.value:,} were asked for); {called} "
                f"would count on in another unit. Next: run.{before.kind}(…), or another run for this phase, with "
                f'init={{"model": "{training.options.path}@best"}}.',
                expected=before.kind,
                found=kind,
            )
        complete = _complete(manifest, training.goal, before)
        announce(training, manifest, complete=complete)
        if complete:
            training.stopped = manifest is not None and manifest.stopped
            training.record_end()
            training.note_end("complete already")
            self.finished = True
            return False
        self.active = kind
        self.first_epoch, self.batches_entered = True, False
        self.again = manifest if manifest is not None and manifest.progress.entered else None
        training.restart_counters()
        training.pace.enter()
        training.loader.ended = {}
        training.read_ahead()
        training.overlap.install(training.things)
        training.departure.enter(training.open().path, training.position.key())
        training.signals.inside = inside
        training.signals.install()
        return True

    def finish(self) -> None:
        """The goal is reached, or `stop` was called: everything is durable already."""
        training = self.training
        training.record_end()
        self.finished = True
        training.note_end("stopped" if training.stopped else "goal reached")
        training.end_if_asked()
        if training.position.step or training.position.epoch:
            training.check_metric(final=True)

    def leave(self, *, early: bool) -> None:
        """The loop is over; `early` when it was left by break or by an exception."""
        if self.active is None or os.getpid() != self._pid:
            return  # a forked child has no training: there is nothing to leave
        training = self.training
        self.active = None
        training.signals.restore()
        training.departure.leave()
        self._close_batches()
        if training.loader.source is not None:
            training.loader.source.close()
        training.overlap.settle()
        if not early or training.session is None:
            return
        if training.signals.impatient:
            logger.info("Stopped at once. A save that was under way is finished before the process ends.")
            return
        try:
            if training.saver is not None:
                training.saver.drain()
        except HoldfastError as error:  # the exception that is on its way is never replaced
            logger.error("The save in flight failed: %s", error)
            training.failure = error
        if training.ended:
            return
        training.note_end("left")
        name = training.newest_name()
        if name is None:
            logger.info(
                "The loop was left before its goal, and nothing was saved yet: the same command begins anew."
            )
            return
        logger.info(
            "The loop was left before its goal; nothing more was saved. Newest: %s. The same command continues from it.",
            name,
        )

    # -- the loops -------------------------------------------------------------------------------

    def epochs(self, goal: int) -> Iterator[int]:
        training = self.training
        if not self.enter("epochs", goal):
            return
        early = True
        try:
            while training.position.epoch < goal:
                self.batches_entered = False
                training.begin_epoch(again=self.again is not None)
                yield training.position.epoch
                self.again = None
                self._close_batches()
                training.count_epoch()
                training.stopped = training.stopping
                last = training.position.epoch >= goal or training.stopped
                training.boundary(epoch_end=True, last=last)
                if self.first_epoch and not last:
                    training.check_metric(final=False)
                self.first_epoch = False
                if training.stopped:
                    break
            early = False
            self.finish()
        except BaseException as error:
            early = early and not isinstance(error, SystemExit | KeyboardInterrupt)
            raise
        finally:
            self.leave(early=early)

    def steps(self, goal: int) -> Iterator[int]:
        training = self.training
        every = training.options.every
        if every.epochs is not None and every.steps is None and every.minutes is None and not every.paced:
            raise UsageError(
                f"every={every!r} never comes due in a loop without epochs. "
                f"Next: Every(steps=1000), Every(minutes=10), or Every(overhead=0.01).",
                found=repr(every),
            )
        if not self.enter("steps", goal):
            return
        early = True
        try:
            while training.position.step < goal:
                training.hand_out()
                yield training.position.step
                training.count_step()
                training.stopped = training.stopping
                last = training.position.step >= goal or training.stopped
                training.boundary(last=last, between=not last)
                if training.stopped:
                    break
            early = False
            self.finish()
        except BaseException as error:
            early = early and not isinstance(error, SystemExit | KeyboardInterrupt)
            raise
        finally:
            self.leave(early=early)

    def _close_batches(self) -> None:
        """Ends the batches of an epoch that somebody still holds in a variable."""
        current, self._current = self._current() if self._current is not None else None, None
        if current is not None:
            current.close()

    def batches(self, find: Callable[[], Source]) -> Iterator[tuple[int, Any]]:
        """(number, batch) for each batch of this epoch that is still to come, of the source that `find` gives."""
        own: list[Generator[tuple[int, Any], None, None]] = []
        own.append(self._batches(find, own))
        return own[0]

    def _batches(self, find: Callable[[], Source], own: list[Any]) -> Generator[tuple[int, Any], None, None]:
        source = self._enter_batches(find)
        self._current = weakref.ref(own.pop())
        training = self.training
        handed_out, ended = False, False
        try:
            items = self.start(source)
            while True:
                try:
                    batch = next(items)
                except StopIteration:
                    training.position.exhausted = ended = True
                    self._current = None
                    training.overlap.settle()
                    return
                training.hand_out()
                handed_out = True
                yield training.position.batch, batch
                del batch  # the loader's memory, not ours, while the next one is fetched
                handed_out = False
                training.count_batch(source.samples_out)
                length = source.length()
                training.position.exhausted = length is not None and training.position.batch >= length
                training.boundary(between=not training.position.exhausted)
        except BaseException:
            self._current = None
            raise
        finally:
            if handed_out:  # left by break: the batch in hand counts as done
                training.count_batch(source.samples_out)
            if not ended and os.getpid() == self._pid:
                try:
                    source.close()  # an epoch that came to its end leaves persistent workers alive
                finally:
                    training.overlap.settle()

    def _enter_batches(self, find: Callable[[], Source]) -> Source:
        if self.active != "epochs":
            raise UsageError(
                "run.batches() belongs into the body of `for epoch in run.epochs(…)`. "
                "Next: in a loop of your own iterate over the loader itself."
            )
        if self.batches_entered:
            raise UsageError(
                "run.batches() was called a second time in this epoch; its position could not be told apart. "
                "Next: iterate over other loaders (evaluation, say) directly."
            )
        self.batches_entered = True
        source = find()
        self.training.loader.source = source
        return source

    def check_fingerprint(self, here: dict[str, Any] | None) -> None:
        """Compares the facts about the data of this launch, as far as there are any, with those of the launch that saved.

        Raises:
            UsageError: they are other data.

        """
        training = self.training
        saved = training.loader.fingerprint
        if saved is None and training.origin is not None:
            saved = training.origin.loader
        training.loader.fingerprint = here
        if saved is None or here is None or saved == here or "loader" in training.options.changed:
            return
        errors, warnings = compare_fingerprints(saved, here)
        if errors:
            training.loader.fingerprint = saved
            raise UsageError(
                "The loader is not the one that this training was using:\n  "
                + "\n  ".join(errors)
                + "\n  Next: use the same data and sampler, or, if the change is meant, say changed=['loader'].",
                different=errors,
            )
        for warning in warnings:
            logger.warning("%s", warning)

    def start(self, source: Source, *, quiet: bool = False) -> Iterator[Any]:
        """The batches of this epoch that are still to come, in the order that it has.

        A `quiet` start is no boundary: nothing is saved before the first batch.
        """
        training = self.training
        self.check_fingerprint(source.fingerprint())
        position = training.position
        manifest, self.again = self.again, None
        random = training.restored_random if self.first_epoch else {}
        generators = source.generators()
        training.loader.carry(random, generators)
        if manifest is not None:
            streams.restore_generators(generators, random.get("generators", {}))
            restoring.restore_again(training)
        else:
            self._look_at(generators)
            known = {**random, "first": training.loader.first, "touched": training.loader.touched}
            assumed = streams.restore_untouched(generators, known, training.things.values())
            if random:
                self._assumed = assumed
        if manifest is None or position.batch == 0:
            if manifest is not None:
                streams.restore(random["streams"])
            training.loader.order = _order(generators)
            position.entered = True
            if not quiet:
                training.boundary()
            return source.start(None)
        training.loader.order = order = random["order"]
        state = random.get("loader")
        streams.restore(order["streams"])
        streams.restore_generators(generators, order["generators"])
        skip = Skip(position.batch, position.samples, state)
        items = source.start(skip)
        for warning in source.warnings(skip):
            logger.warning("%s", warning)
        streams.restore(random["streams"])
        streams.restore_generators(generators, random["generators"])
        return items

    def _look_at(self, generators: dict[str, Any]) -> None:
        """Learns, before an epoch's order is drawn, what the top of the body did to the loader's generators."""
        training, loader = self.training, self.training.loader
        for path, digest in streams.digests(generators).items():
            if path in loader.ended:
                loader.touched[path] = digest != loader.ended[path]
        assumed, self._assumed = self._assumed, []
        for path in [path for path in assumed if loader.touched.get(path)]:
            logger.warning(
                "The loader's %s is seeded between two epochs, which could not be known when this training was "
                "resumed after its first epoch: the order of that one epoch was another. Next: nothing; later "
                "resumes are exact.",
                path,
            )
        drawn = streams.drawn_from(generators, loader.ended, training.things.values())
        for path in [path for path in drawn if path not in self._warned]:
            self._warned.add(path)
            logger.warning(
                "The loader's %s is drawn from between two epochs, outside of run.batches(); a training that is "
                "resumed there cannot repeat that. Next: run.track(order_generator=…) with it, or seed it there.",
                path,
            )


def source_of(loader: Any, batch_size: int | None, *, shuffle: bool) -> Source:
    """Where the batches come from: cut out of arrays with a batch size, else a framework's loader, or any other."""
    if batch_size is not None:
        return ArraySource(loader, batch_size, shuffle=shuffle)
    framework = adapters.home_framework(type(loader))
    found: Source | None = (
        adapters.edge(framework).source(loader, shuffle=shuffle) if framework is not None else None
    )
    return found if found is not None else generic_source(loader)


def _order(generators: dict[str, Any]) -> dict[str, Any]:
    return {"streams": streams.capture(), "generators": streams.capture_generators(generators)}


def _complete(manifest: Manifest | None, goal: Goal, before: Goal | None) -> bool:
    if manifest is None:
        return False
    reached = manifest.progress.epoch if goal.kind == "epochs" else manifest.progress.step
    if reached >= goal.value:
        return True
    return manifest.stopped and before is not None and before.kind == goal.kind and goal.value <= before.value


def announce(training: Training, manifest: Manifest | None, *, complete: bool) -> None:
    path = training.open().path
    goal = training.goal
    asked = f" of {goal.value} {goal.kind}" if goal is not None else ""
    if manifest is None:
        logger.info("%s: new run%s.", path, f", {goal.value} {goal.kind}" if goal is not None else "")
        return
    progress = manifest.progress
    place = f"epoch {progress.epoch}, step {progress.step}" + (
        f", batch {progress.batch}" if progress.batch else ""
    )
    if complete:
        why = "it was stopped" if manifest.stopped else "the goal is reached"
        logger.info("%s: complete at %s%s (%s); restored %s.", path, place, asked, why, manifest.name)
    else:
        logger.info("%s: resumed from %s (%s%s).", path, manifest.name, place, asked)


class Numbers:
    """The epochs or steps that are still to do; each iteration enters the loop anew."""

    def __init__(self, loop: Loop, kind: str, goal: int) -> None:
        self._loop, self._kind, self._goal = loop, kind, goal

    def __iter__(self) -> Iterator[int]:
        return self._loop.epochs(self._goal) if self._kind == "epochs" else self._loop.steps(self._goal)


class Batches:
    """The batches of this epoch that are still to come; sized, and numbered on request."""

    def __init__(self, loop: Loop, find: Callable[[], Source]) -> None:
        self._loop, self._find = loop, find

    def __iter__(self) -> Iterator[Any]:
        for _, batch in self._loop.batches(self._find):
            yield batch
            del batch

    def __len__(self) -> int:
        """How many batches this epoch has still to hand out."""
        length = self._find().length()
        if length is None:
            raise TypeError("this loader does not tell its length")
        done = self._loop.training.position.batch if self._loop.active == "epochs" else 0
        return max(0, length - done)

    def numbered(self) -> Iterator[tuple[int, Any]]:
        """(number, batch), counted from the start of the epoch: true numbers after a resume as well."""
        return self._loop.batches(self._find)
