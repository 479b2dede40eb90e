"""Saves of a run: one in flight, written behind the training; its failure reaches the caller."""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from holdfast.drafting import draft_of
from holdfast.errors import CheckpointError, HoldfastError, LeaseError
from holdfast.format import card
from holdfast.format.manifest import Manifest
from holdfast.format.names import parse_checkpoint_name
from holdfast.format.safetensors import BLOCK
from holdfast.format.summary import summarize
from holdfast.log import logger
from holdfast.mirrors.mirroring import Mirroring
from holdfast.overlap import Behind, TornCopyError
from holdfast.policy.keep import Keep
from holdfast.session import Session
from holdfast.state.known import Known
from holdfast.state.part import PartState
from holdfast.storage import Room
from holdfast.store import book, catalog, retention
from holdfast.store.entry import Entry
from holdfast.store.publish import Draft, publish

_FELT = 256 << 20  # bytes of staging memory; fewer are there in an instant


@dataclasses.dataclass(slots=True)
class _Flight:
    entry: Entry
    ticket: Any = None
    deleted: list[str] = dataclasses.field(default_factory=list)
    remarked: bool = False
    """Whether somebody abandoned a checkpoint by hand, or took such a mark away."""
    durable: float = 0.0
    """When it was, on the monotonic clock."""


class Saver:
    """Snapshots at once, writes in the background, publishes in order.

    `poll`, `drain` and `save` raise the failure of an earlier save, once; after that the run is
    as it was before that save.
    """

    def __init__(
        self, session: Session, keep: Keep, *, on_nan: str, staging: int | None, known: Known | None = None
    ) -> None:
        self._known = known
        self._session, self._keep, self._on_nan, self._staging = session, keep, on_nan, staging
        self._flight: _Flight | None = None
        self.mirroring: Mirroring | None = None
        """The run's mirrors, which some deletions wait for."""
        self._held: list[str] = []
        """Checkpoints that retention would delete and a mirror waits for, the oldest first."""
        self._room = Room(self._spare)
        self._spared: list[str] = []
        """Those of them that were deleted for want of room, until the session knows of it."""
        self._last: Manifest | None = None
        """What was published last."""
        self._warned_unchanged: set[str] = set()
        self.last_publish = time.monotonic()
        self.published: Callable[[str], None] | None = None
        """Told the path of each checkpoint that is durable, before anything is deleted."""
        self.landed: Callable[[float], None] | None = None
        """Told when a save was durable, by the training thread, once that takes note of it."""
        self.torn: Callable[[str, TornCopyError], None] | None = None
        """Told of a save that was given up because late arrays changed, instead of its raising."""

    @property
    def busy(self) -> bool:
        """Whether a save is being written at this moment."""
        return self._flight is not None and not self._flight.ticket.done

    def poll(self) -> None:
        """Takes note of a finished save; raises its failure, and a `LeaseError` once the run is lost."""
        if self._flight is not None and self._flight.ticket.done:
            self._collect()
        if self._session.lease.overtaken:
            self._session.lease.check()

    def drain(self) -> None:
        """Waits for the save in flight; raises its failure."""
        if self._flight is not None:
            self._collect()

    def _collect(self) -> None:
        flight = self._flight
        if flight is None:
            return
        session = self._session
        try:
            flight.ticket.wait()
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            self._flight = None
            session.remove({flight.entry.folder})
            self._note_spared()
            if not isinstance(error, TornCopyError) or self.torn is None:
                raise
            self.torn(flight.entry.folder, error)
            return
        self._flight = None
        self.last_publish = time.monotonic()
        session.touch(None if flight.remarked else flight.entry)  # a NaN may have been found in it
        session.remove(set(flight.deleted))
        self._note_spared()
        if self.landed is not None:
            self.landed(flight.durable)

    def prepare(self, states: Mapping[str, PartState]) -> None:
        """Makes staging memory for these parts behind the training, where growing it would be felt."""
        from holdfast.payload import layout, staging, threads

        # As they will lie in the files: what is tied lies there once.
        planned = layout.plan({part: state.arrays for part, state in states.items()})
        blocks = sum(-(-file.size // BLOCK) for file in planned.files)
        wanted = min(blocks * BLOCK, self._staging_for(states))
        if wanted > max(_FELT, staging.pool.size):
            threads.submit("publish", lambda: staging.pool.prepare(wanted // BLOCK))

    def save(
        self,
        states: Mapping[str, PartState],
        manifest: Manifest,
        reason: str,
        facts: Mapping[str, Any] | None = None,
        behind: Behind | None = None,
        extra: Mapping[str, bytes] | None = None,
    ) -> None:
        """Copies the state, then hands it to the background; waits for an earlier save first.

        Returns when every array may change again, but for those that are copied behind the training. The
        history is told the reason and the facts.
        """
        self.drain()
        from holdfast.payload import threads

        started = time.monotonic()
        session = self._session
        session.lease.check()
        with session.telling_loss():
            draft = self._room.write(
                lambda: draft_of(
                    session.writing,
                    manifest.name,
                    states,
                    staging=self._staging_for(states),
                    extra=extra,
                    behind=behind,
                    known=self._known,
                    room=self._room,
                )
            )
            self._note_spared()
            draft.begin()
            draft.wait_early()
        held = time.monotonic() - started
        name = parse_checkpoint_name(manifest.name)
        if name is None:  # made by this process two calls ago
            raise CheckpointError(f"{manifest.name!r} is no checkpoint name.")
        session.last_sequence = max(session.last_sequence, name.sequence)
        path = f"{session.path}/{manifest.name}"
        entry = Entry(path, manifest.name, name, summary=summarize(manifest))
        before = list(session.entries)
        gathering = _gathering(states)
        watched = {part: part in gathering for part, state in states.items() if state.watch}

        flight = _Flight(entry)

        def finish() -> None:
            with session.telling_loss():
                self._finish(flight, draft, manifest, before, watched, reason, started, held, facts or {})

        try:
            flight.ticket = threads.submit("publish", finish)
            session.add(entry, self._keep)
            self._flight = flight
        except BaseException:  # Ctrl-C between two of these lines
            if flight.ticket is None:
                draft.discard()
            else:
                self._flight = flight
            raise

    def _spare(self) -> bool:
        """Deletes the oldest checkpoint that a mirror holds back, for want of room; False where there is none.

        Called by whichever thread meets the full disk, one at a time.
        """
        while self._held:
            name, *self._held = self._held
            logger.warning(
                "There is no room for the next checkpoint: %s is deleted, although a mirror does not have it yet.",
                name,
            )
            if self._remove(name, "no room; a mirror was waiting for it"):
                self._spared.append(name)
                return True
        return False

    def _note_spared(self) -> None:
        """Takes those out of the session that were deleted for want of room; the training thread alone does that."""
        spared, self._spared = self._spared, []
        self._session.remove(set(spared))

    def delete_held(self) -> None:
        """Deletes what was held back for mirrors that have caught up since."""
        if self.mirroring is None or not self._held:
            return
        entries = self._session.entries
        doomed = [verdict for verdict in retention.verdicts(self._keep, entries) if not verdict.kept]
        held = self.mirroring.held_back([verdict.record for verdict in doomed])
        self._delete(
            [
                (verdict.record.name, "; ".join(verdict.reasons))
                for verdict in doomed
                if verdict.record.name in self._held and verdict.record.name not in held
            ]
        )

    def _delete(self, doomed: Iterable[tuple[str, str]]) -> None:
        self._session.remove({name for name, reason in doomed if self._remove(name, reason)})

    def _remove(self, name: str, reason: str) -> bool:
        session = self._session
        if not retention.delete(session.path, name, session.writing):
            return False
        book.note_event(session.path, "delete", name=name, reason=reason)
        return True

    def _staging_for(self, states: Mapping[str, PartState]) -> int:
        from holdfast.payload import staging

        total = sum(array.nbytes for state in states.values() for array in state.arrays.values())
        # Header, and up to a block of padding for each payload file, come on top of the arrays.
        total += (len(states) + 1) * 2 * BLOCK
        return staging.limit(total, self._staging)

    def _finish(
        self,
        flight: _Flight,
        draft: Draft,
        manifest: Manifest,
        before: list[Entry],
        watched: dict[str, bool],
        reason: str,
        started: float,
        held: float,
        facts: Mapping[str, Any],
    ) -> None:
        """What happens behind the training: write, publish, then everything that may come after."""
        session, entry = self._session, flight.entry
        manifest = draft.complete(manifest, card.render, self._check_nan)
        path = publish(draft, session.path)
        flight.durable = time.monotonic()
        entry.summary = summarize(manifest)
        if self.published is not None:
            self.published(path)
        if self.mirroring is not None:
            self.mirroring.hand_over()
        self._warn_unchanged(manifest, before, watched)
        self._last = manifest
        try:
            book.note_event(
                session.path,
                "save",
                name=manifest.name,
                reason=reason,
                bytes=entry.size,
                held_seconds=round(held + draft.waited, 4),
                seconds=round(flight.durable - started, 4),
                **facts,
                **({"overlapped": True} if draft.overlapped else {}),
                **({"nan": manifest.nan[:10]} if manifest.nan else {}),
            )
            self._retain(flight, [one for one in (*before, entry) if one.folder not in self._spared])
        except LeaseError:
            raise
        except HoldfastError as error:
            logger.warning("%s was saved; cleaning up after it failed: %s", manifest.name, error)

    def _check_nan(self, manifest: Manifest) -> None:
        if not manifest.nan:
            return
        shown = ", ".join(manifest.nan[:5]) + (", …" if len(manifest.nan) > 5 else "")
        if self._on_nan == "raise":
            raise CheckpointError(
                f"NaN or infinity in {shown} at epoch {manifest.progress.epoch}, step {manifest.progress.step}; this "
                f"state was not saved (on_nan='raise'). Next: look at the learning rate and the data, and "
                f"start again: the run continues from its newest clean checkpoint.",
                arrays=manifest.nan,
            )
        logger.warning(
            "NaN or infinity in %s: %s is marked, never counts as best, and is not resumed from while "
            "a clean one exists.",
            shown,
            manifest.name,
        )

    def _warn_unchanged(self, manifest: Manifest, before: list[Entry], watched: dict[str, bool]) -> None:
        earlier = self._newest_clean(before)
        if earlier is None or earlier.progress.step >= manifest.progress.step:
            return
        gathered = _payload_of("grads", manifest) != _payload_of("grads", earlier)
        for part, gathering in watched.items():
            if gathering and gathered:
                continue
            own = _payload_of(part, manifest)
            if own and own == _payload_of(part, earlier) and part not in self._warned_unchanged:
                self._warned_unchanged.add(part)
                logger.warning(
                    "Nothing in the part %r changed between step %d and step %d. Is it the object that is being "
                    "trained? A network re-created after run.track (in a notebook cell, say) must be tracked again.",
                    part,
                    earlier.progress.step,
                    manifest.progress.step,
                )

    def _newest_clean(self, before: list[Entry]) -> Manifest | None:
        """The manifest of the newest clean checkpoint; it is read again where another process has written it."""
        entry = next((entry for entry in reversed(before) if entry.clean), None)
        if entry is None or (self._last is not None and self._last.name == entry.folder):
            return self._last if entry is not None else None
        try:
            return catalog.read_manifest(entry.path)
        except HoldfastError:  # deleted by somebody, say: there is nothing to compare with
            return None

    def _retain(self, flight: _Flight, entries: list[Entry]) -> None:
        session = self._session
        pinned = catalog.marks(session.path, catalog.PINS)
        if not os.path.isdir(os.path.join(session.path, catalog.PINS)):
            # Nothing here takes that folder away: one that is not found says nothing about its marks.
            pinned |= {entry.folder for entry in entries if entry.pinned}
        abandoned = catalog.marks(session.path, catalog.ABANDONED)
        for entry in entries:
            flight.remarked |= entry.abandoned != (entry.folder in abandoned)
            entry.pinned, entry.abandoned = entry.folder in pinned, entry.folder in abandoned
        best = None
        if self._keep.metric is not None:
            record = retention.best_record(self._keep, entries)
            best = record.name if record else None
        retention.point_links(session.path, session.writing, entries[-1].folder, best)
        verdicts = retention.verdicts(self._keep, entries)
        doomed = [verdict.record for verdict in verdicts if not verdict.kept]
        held = self.mirroring.held_back(doomed) if self.mirroring is not None else set()
        self._held = [record.name for record in doomed if record.name in held]
        for verdict in verdicts:
            if verdict.kept or verdict.record.name in held:
                continue
            if retention.delete(session.path, verdict.record.name, session.writing):
                flight.deleted.append(verdict.record.name)
                book.note_event(
                    session.path, "delete", name=verdict.record.name, reason="; ".join(verdict.reasons)
                )


def _gathering(states: Mapping[str, PartState]) -> set[str]:
    """The parts that may well stand still while gradients are gathered over several batches."""
    if "grads" not in states:
        return set()
    owners = {name.partition("/")[0] for name in states["grads"].arrays}
    return owners | {name for name, state in states.items() if state.kind.endswith(".Optimizer")}


def _payload_of(part: str, manifest: Manifest) -> list[str]:
    """The digests of a part's own payload files."""
    return [
        record.digest
        for name, record in manifest.files.items()
        if name == f"{part}.safetensors" or (name.startswith(f"{part}-") and name.endswith(".safetensors"))
    ]
