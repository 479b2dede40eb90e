"""`Run(overlap=True)`: whether a save may copy behind the training, and what shows that it may.

Between a boundary and the next optimizer step nothing but that step may write the arrays that are
copied late. Whether that is so cannot be known of somebody else's loop, so it is earned: the first save
between two batches copies at once, and what it saw is compared where the step begins. After that every
save looks at samples of each array, at the boundary and once all is copied.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Collection, Hashable, Mapping, Sequence
from typing import Any, Protocol

from holdfast.errors import CheckpointError
from holdfast.log import logger
from holdfast.state import adapters
from holdfast.state.known import Known
from holdfast.state.part import PartState

_SHOWN = 3  # names in a notice


class Late(Protocol):
    """What a framework's edge finds: arrays that only tracked optimizers write."""

    names: list[str]
    places: Collection[tuple[str, str]]
    """(part, name) of each."""

    @property
    def key(self) -> Hashable:
        """Equal for two saves that found the same arrays."""

    def digests(self) -> list[int]:
        """One for each array, of all its bytes."""

    def samples(self, turn: int) -> list[Hashable]:
        """One for each array, of a few of its bytes; which, depends on `turn`."""


@dataclasses.dataclass(frozen=True, slots=True)
class Behind:
    """What a save copies behind the training: (part, name) of the arrays, and what raises `TornCopyError` where they changed.

    That is called once all is copied.
    """

    arrays: Collection[tuple[str, str]]
    confirm: Callable[[], None]


class TornCopyError(CheckpointError):
    """An array was written to while it was copied behind the training: the copy is not published."""


@dataclasses.dataclass(frozen=True)
class _Trial:
    """What the arrays were at a boundary, until an optimizer steps."""

    late: Late
    key: Hashable
    digests: list[int]
    samples: list[Hashable]
    written: int

    @property
    def void(self) -> bool:
        """Whether something was restored meanwhile: then a change says nothing."""
        from holdfast.payload import pending

        return pending.written() != self.written


class Overlap:
    """The state of this for one training. All but `before_step` is called by the training thread.

    Args:
        known: what earlier saves have found out.
        wanted: whether the caller asked for it; without, all of this does nothing.

    """

    def __init__(self, known: Known, *, wanted: bool) -> None:
        self._known, self._on = known, wanted
        self._looked = False
        self._earned: Hashable = None
        self._trial: _Trial | None = None
        self._turn = 0
        self._hooks: list[Any] = []
        self._pid = os.getpid()

    def install(self, things: Mapping[str, Any]) -> None:
        """A loop begins: from here on optimizers wait for what is still being copied."""
        if self._on and not self._hooks:
            hooks = [edge.before_step(things, self.before_step) for _, edge in adapters.loaded_edges()]
            self._hooks = [hook for hook in hooks if hook is not None]

    def remove(self) -> None:
        """The run is closed: nothing is copied any more."""
        self._trial = None
        while self._hooks:
            self._hooks.pop().remove()

    # -- at a save -----------------------------------------------------------------------------

    def begin(
        self, things: Mapping[str, Any], states: Mapping[str, PartState], *, between: bool
    ) -> Behind | None:
        """What this save may copy late; None when that is nothing.

        Args:
            things: what is tracked.
            states: what is saved.
            between: whether this is a boundary between two batches or steps.

        """
        if not self._on or not (between or not self._looked):
            return None
        late = _find(things, states, self._known)
        if late is None and not self._looked:
            logger.warning(
                "overlap=True has nothing to overlap: no tracked torch optimizer owns arrays of this run that could be "
                "copied behind the training. Each save holds the training for one copy of the state, as without it."
            )
        self._looked = True
        if late is None or not between:
            return None
        key = late.key
        if key != self._earned:
            self._try(late, key)
            return None
        self._turn += 1
        turn, before = self._turn, late.samples(self._turn)

        def confirm() -> None:
            changed = _changed(late, before, late.samples(turn))
            if changed:
                raise TornCopyError(
                    f"{_shown(changed)} changed while it was copied behind the training.", arrays=changed
                )

        return Behind(late.places, confirm)

    def _try(self, late: Late, key: Hashable) -> None:
        from holdfast.payload import pending

        if self._trial is None or self._trial.key != key or self._trial.void:
            self._trial = _Trial(late, key, late.digests(), late.samples(0), pending.written())

    # -- between saves -------------------------------------------------------------------------

    def before_step(self) -> None:
        """An optimizer, of whomever, is about to write: waits for what is still being copied."""
        from holdfast.payload import pending

        pending.settle()
        trial = self._trial
        if trial is None or os.getpid() != self._pid:
            return
        changed = [] if trial.void else _changed(trial.late, trial.digests, trial.late.digests())
        self._trial = None
        if changed:
            self._switch_off(changed, "before an optimizer's step began")
        elif not trial.void:
            self._earned = trial.key

    def look(self) -> None:
        """A boundary between two batches: what changed although no optimizer stepped?"""
        trial = self._trial
        if trial is None:
            return
        changed = [] if trial.void else _changed(trial.late, trial.samples, trial.late.samples(0))
        if trial.void or changed:
            self._trial = None
        if changed:
            self._switch_off(changed, "with no step of a torch optimizer before that")

    def settle(self) -> None:
        """The training does something else than the next batch: nothing is copied behind it any more."""
        from holdfast.payload import pending

        try:
            pending.settle()
        except BaseException:
            pending.spoil()
            raise
        finally:
            self._trial = None

    def torn(self, name: str, error: TornCopyError) -> None:
        """A save was given up because its copy was torn."""
        self._on = False
        logger.warning(
            "Something else than the tracked optimizers writes parameters: %s changed while %s was being copied behind "
            "the training, so that checkpoint was not published. overlap is off for the rest of this run, and the next "
            "boundary saves.",
            _shown(error.facts["arrays"]),
            name,
        )

    def _switch_off(self, changed: list[str], when: str) -> None:
        self._on = False
        logger.warning(
            "Something else than the tracked optimizers writes parameters: %s changed between a save and the next one, %s. "
            "overlap is off for this run: each save holds the training for one copy of the state. What was saved is right.",
            _shown(changed),
            when,
        )


def _find(things: Mapping[str, Any], states: Mapping[str, PartState], known: Known) -> Late | None:
    """What is late; of one framework, since one training's optimizers are."""
    return next(
        (late for _, edge in adapters.loaded_edges() if (late := edge.late(things, states, known))), None
    )


def _changed(late: Late, before: Sequence[Hashable], after: Sequence[Hashable]) -> list[str]:
    return [name for name, one, other in zip(late.names, before, after, strict=True) if one != other]


def _shown(names: list[str]) -> str:
    return ", ".join(names[:_SHOWN]) + (f" and {len(names) - _SHOWN:,} more" if len(names) > _SHOWN else "")
