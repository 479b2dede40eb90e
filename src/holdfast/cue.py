"""A run that is rehearsed: when it is saved, when it is interrupted, and what is noted of it.

The run calls these at its own moments. Saves are asked for, at boundaries, exactly as a script asks
for them; a signal is sent by the process to itself. Neither changes what is trained.

The plan's `interrupt`, for this launch, or null: `run` (the run's name), `signal`, and when. `unit` is

    "step"   after `at` steps, in the body of the loop; saved after `save` steps
    "epoch"  after `at` epochs, before their end is saved; saved after `save` epochs
    "save"   when run.save() is called for the `at`-th time in this launch; the earlier ones are durable

`marks` has for each run the `unit` and the numbers (`at`) where it is saved besides, so that two
trainings can be compared there.
"""

from __future__ import annotations

import os
import signal
from typing import Any

from holdfast import trail, witness
from holdfast.format.manifest import Manifest
from holdfast.stage import Stage
from holdfast.state import streams, tree


class Cue:
    """Belongs to one run of one rehearsed process."""

    def __init__(self, stage: Stage, path: str, asked: str) -> None:
        self._stage = stage
        self._name = os.path.basename(path)
        interrupt = stage.plan.get("interrupt")
        self._interrupt = interrupt if interrupt and interrupt["run"] == self._name else None
        self._marks = stage.plan.get("marks", {}).get(self._name)
        self._waiting = False
        self._saves = 0
        self._owner = os.getpid()
        stage.note("run", run=self._name, path=asked, pid=os.getpid(), directory=os.getcwd())

    def note(self, event: str, /, **facts: Any) -> None:
        self._stage.note(event, run=self._name, **facts)

    # -- moments of the run ------------------------------------------------------------------------

    def resumed(self, training: Any, manifest: Manifest | None) -> None:
        """The launch begins to train: fresh, or from a checkpoint."""
        goal, position = training.goal, training.position
        self.note(
            "loop",
            kind=goal.kind if goal is not None else "own",
            goal=goal.value if goal is not None else None,
            resumed=manifest.name if manifest is not None else None,
            streams=_streams(),
            **_place(position),
        )

    def boundary(self, training: Any, *, epoch_end: bool, last: bool) -> None:
        """The loop asks for its next item: saves that the plan wants are asked for now."""
        position = training.position
        if epoch_end:
            self.note("epoch", **_place(position))
        if last:
            self.note("end", **_place(position))  # written by the last boundary, before its save
        interrupt = self._interrupt
        marked = self._marked(training, epoch_end=epoch_end)
        if epoch_end or marked:
            # No due save shall be postponed because another is still being written: both trainings
            # are to be saved at the same places.
            training.need_saver().drain()
        if epoch_end and interrupt is not None and interrupt["unit"] == "epoch":
            if position.epoch == interrupt["save"]:
                training.ask_for_save()
                self._waiting = True
            elif position.epoch == interrupt["at"]:
                self._send(training)
        elif interrupt is not None and interrupt["unit"] == "step" and position.step == interrupt["save"]:
            if self._mid_epoch(training, interrupt):
                training.ask_for_save()
                self._waiting = True
        elif marked:
            training.ask_for_save()

    def _mid_epoch(self, training: Any, interrupt: dict[str, Any]) -> bool:
        # The boundaries before and after the end of an epoch have the same step; the later one is meant.
        return not training.position.exhausted and training.position.epoch == interrupt.get(
            "epoch", training.position.epoch
        )

    def _marked(self, training: Any, *, epoch_end: bool) -> bool:
        marks, position, interrupt = self._marks, training.position, self._interrupt
        if marks is None:
            return False
        if marks["unit"] == "epoch":
            now = position.epoch if epoch_end else -1
        else:
            now = position.step if not position.exhausted else -1
        # What is trained between the save and the interruption shall be lost.
        return now in marks["at"] and (interrupt is None or now < interrupt["save"])

    def hand_out(self, training: Any) -> None:
        """A batch or a step goes to the loop's body."""
        self._settle(training)
        interrupt = self._interrupt
        if (
            interrupt is not None
            and interrupt["unit"] == "step"
            and training.position.step == interrupt["at"]
        ):
            self._send(training)

    def begin_epoch(self, training: Any) -> None:
        """The body of an epoch is about to run."""
        self._settle(training)

    def own_save(self, training: Any) -> None:
        """`run.save` was called in a loop of the user's own, and nothing is saved yet."""
        self._saves += 1
        self.note("own", call=self._saves, **_place(training.position))
        interrupt = self._interrupt
        if interrupt is not None and interrupt["unit"] == "save" and self._saves == interrupt["at"]:
            training.need_saver().drain()
            self._send(training)

    def saving(self, training: Any) -> None:
        """The state is about to be captured: the script's own variables are noted beside it."""
        found = witness.look(training.things, (training, training.state))
        self.note("variables", found=found, **_place(training.position))

    def published(self, path: str) -> None:
        """A checkpoint is durable. Called in the saver's thread."""
        self.note("checkpoint", **trail.describe(path))

    # -- what happens then -----------------------------------------------------------------------------

    def _settle(self, training: Any) -> None:
        """Waits for the save that a resume shall find."""
        if self._waiting:
            self._waiting = False
            training.need_saver().drain()

    def _send(self, training: Any) -> None:
        interrupt, self._interrupt = self._interrupt, None
        if interrupt is None or os.getpid() != self._owner:
            return
        number = signal.Signals[f"SIG{interrupt['signal']}"]
        self.note("signal", signal=number.name, pid=os.getpid(), **_place(training.position))
        group = os.getpgrp()
        # As when a node fails, or Ctrl-C is pressed: loader workers, and the shell that started us, get
        # it as well; who rehearses never does.
        if number in (signal.SIGKILL, signal.SIGINT) and group != self._stage.plan["outside"]:
            os.killpg(group, number)
        else:
            os.kill(os.getpid(), number)


def _place(position: Any) -> dict[str, Any]:
    return {
        "epoch": position.epoch,
        "step": position.step,
        "batch": position.batch,
        "entered": position.entered,
    }


def _streams() -> Any:
    return trail.compact(tree.encode(streams.capture(), "streams"))
