"""One training in this process: where it stands, what is captured, and what a boundary does."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import socket
import time
from collections.abc import Callable, Mapping
from typing import Any

from holdfast import continuation, departure, hyperparameters, snapshot
from holdfast.errors import HoldfastError, Preempted, StorageError, UsageError
from holdfast.format.manifest import Goal
from holdfast.journal import Journal
from holdfast.log import logger
from holdfast.mirrors import arrivals, fetching, mirroring
from holdfast.mirrors.mirroring import Mirroring
from holdfast.overlap import Overlap, TornCopyError
from holdfast.pace import Pace
from holdfast.policy.every import Since
from holdfast.policy.keep import Keep, is_new_best
from holdfast.position import LoaderState, Options, Position
from holdfast.saving import Saver
from holdfast.session import Session
from holdfast.signals import Signals
from holdfast.state import adapters, capture, environment, streams, tree
from holdfast.state.known import Known
from holdfast.store import book, catalog
from holdfast.store.book import RunBook
from holdfast.store.lease import Lease

_GENERATORS = {"torch.Generator", "tensorflow.Generator", "numpy.Generator", "random.Random"}


class Training:
    """What `Run` and its loops share. Used by one thread, beside the saver's own."""

    def __init__(self, options: Options) -> None:
        self.options = options
        self.things: dict[str, Any] = {}
        self.declared: hyperparameters.Declared = {}
        self.flags: dict[str, dict[str, bool]] = {}
        """What trains, and which modules are in training mode, as it was at `track`."""
        self.state: dict[Any, Any] = {}
        self.probe: Any = None
        self.position = Position()
        self.loader = LoaderState()
        self.top: dict[str, Any] | None = None
        """The streams and tracked generators where the present epoch's body began."""
        self.signals = Signals()
        self.session: Session | None = None
        self.saver: Saver | None = None
        self.mirroring: Mirroring | None = None
        """The mirrors, while the run is open; None where it has none."""
        self.goal: Goal | None = None
        self.stopping = False
        self.stopped = False
        self.journal = Journal(options.keep.metric)
        self.pace = Pace(options.every, time.monotonic)
        self.departure = departure.Departure(self.signals, self.pace, self._closing_seconds)
        self.known = Known()
        self.overlap = Overlap(self.known, wanted=options.overlap)
        self.applied: dict[str, Any] = {}
        self.init_record: Any = None
        self.origin: Any = None
        """The manifest that was restored last; None on a fresh run."""
        self.torn = False
        """True after a restore failed half-way: nothing may be saved until one succeeds."""
        self.restored_random: dict[str, Any] = {}
        """The random part of the checkpoint that was restored last."""
        self.failure: BaseException | None = None
        """A failure that has not reached the caller yet."""
        self.ended = False
        """True once a signal has ended the loop; its line has been said."""
        self._since = Since(0, 0, 0.0)
        self._counted_from = time.monotonic()
        self._postponed: str | None = None
        self._explicit = False
        self._told_why = False
        self._last_saved: tuple[int, int, int] | None = None
        self.stepped: dict[str, Any] = {}
        """The optimizers that stepped since the last batch was handed out, and what they left behind."""
        self._hooks: dict[str, Any] = {}
        self.outlines: dict[str, dict[str, Any]] = {}
        self._environment: Any = None
        self._prepared = False
        self._pid = os.getpid()
        self.seeded: set[str] | None = None
        """The frameworks that Run(seed=…) has seeded; None without a seed."""
        self.closed = False
        self.settle: Callable[[], None] | None = None
        """Called before the state is looked at: where a framework keeps it apart while it trains."""
        self.extra: Callable[[], Mapping[str, bytes]] | None = None
        """Gives further small files for each checkpoint: the structure of a model, say."""
        self.cue: Any = None
        """What `holdfast rehearse` does at this training's moments; None in every other process."""

    # -- tracking ----------------------------------------------------------------------------

    def track(self, name: str, thing: Any) -> None:
        """Takes a thing under a name; declared hyperparameters are noted as they stand now."""
        self.things[name] = thing
        self.outlines.pop(name, None)
        self._release_hook(name)
        self.declared.pop(name, None)
        self.flags.pop(name, None)
        declared = hyperparameters.declare(thing)
        if declared is not None:
            self.declared[name] = declared
        framework = adapters.home_framework(type(thing))
        if framework is not None:
            edge = adapters.edge(framework)
            self.flags[name] = edge.flags(thing)
            hook = edge.on_step(thing, lambda mark: self.stepped.__setitem__(name, mark))
            if hook is not None:
                self._hooks[name] = hook

    def _release_hook(self, name: str) -> None:
        hook = self._hooks.pop(name, None)
        if hook is not None:
            hook.remove()

    def release_hooks(self) -> None:
        for name in list(self._hooks):
            self._release_hook(name)

    # -- opening -----------------------------------------------------------------------------

    def open(self) -> Session:
        """The session of this run, opened at first use."""
        if self.closed:
            raise UsageError(f"The run {self.options.path} is closed. Next: make a new Run on the same path.")
        if self.session is None:
            identify = self._look_at_mirrors if self.options.mirrors else None
            session = Session.open(
                self.options.path, wait=self.options.wait, say=logger.warning, identify=identify
            )
            if self.mirroring is None:
                self._look_for_unfinished(session)
            self.session = session
            if self.mirroring is not None:
                session.last_sequence = max(session.last_sequence, self.mirroring.highest)
        return self.session

    def _look_for_unfinished(self, session: Session) -> None:
        try:
            arrivals.look_for_unfinished(session.path, empty=not session.entries)
        except UsageError:
            with contextlib.suppress(StorageError):
                session.close()
            raise

    def _look_at_mirrors(self, lease: Lease, own: RunBook | None) -> RunBook | None:
        options = self.options
        states, adopted = fetching.look(options.path, own, lease.token, options.mirrors, options.keep)
        self.mirroring = Mirroring(options.path, lease, states)
        return adopted

    def record_launch(self) -> None:
        """Writes into run.json what this launch says; called once it is accepted."""
        session = self.open()
        session.book.keep = _plain_keep(self.options.keep)
        session.book.note = self.options.note
        session.book.config = self.options.config
        facts: dict[str, Any] = {"pid": os.getpid(), "host": socket.gethostname(), **departure.facts()}
        if self.goal is not None:
            facts["goal"] = {"kind": self.goal.kind, "value": self.goal.value}
            task, belongs = departure.goal_key()
            session.book.goals[task] = {**facts["goal"], "job": belongs}
        if self.mirroring is not None or session.book.mirrors:
            session.book.mirrors = self.mirroring.records() if self.mirroring is not None else None
        session.book.restarts = continuation.count_launch(session.book.restarts, self.position.key())
        session.write_book()
        book.note_event(session.path, "launch", **facts)

    def give_up(self) -> None:
        """A launch that was refused holds nothing: the lease is released, the run is as it was."""
        session, self.session, self.saver = self.session, None, None
        mirroring, self.mirroring = self.mirroring, None
        if mirroring is not None:
            mirroring.stop()
        if session is not None:
            try:
                session.close()
            except StorageError as error:  # why it is given up is what the caller must hear
                logger.error("Closing %s: %s", self.options.path, error)

    def read_ahead(self) -> None:
        """A loop begins: what a ranking needs is read behind it."""
        if self.session is not None and self.options.keep.metric is not None:
            self.session.read_ahead()

    def need_saver(self) -> Saver:
        if self.saver is None:
            session = self.open()
            options = self.options
            self.saver = Saver(
                session, options.keep, on_nan=options.on_nan, staging=options.staging, known=self.known
            )
            self.saver.landed, self.saver.torn = self.pace.land, self._note_torn
            self.saver.mirroring = self.mirroring
            if self.cue is not None:
                self.saver.published = self.cue.published
        if self.mirroring is not None:
            self.mirroring.report()
        return self.saver

    def raise_failure(self) -> None:
        """Raises a failure that has not reached the caller yet."""
        failure, self.failure = self.failure, None
        if failure is not None:
            raise failure

    def seed_late(self) -> None:
        """Seeds frameworks that were imported after Run(seed=…)."""
        if self.seeded is None or self.options.seed is None:
            return
        for name, edge in adapters.loaded_edges():
            if name not in self.seeded:
                self.seeded.add(name)
                edge.seed(self.options.seed)
                logger.warning(
                    "%s was imported after Run(seed=…) and is seeded only now; what it drew before (initial weights, say) "
                    "differs between launches. Next: import it before the Run is made.",
                    name,
                )

    def restart_counters(self) -> None:
        """What `Every` counts from: the last save, or the start."""
        self._since = Since(0, 0, 0.0)
        self._counted_from = time.monotonic()
        self._postponed = None

    def note_saved(self) -> None:
        """Marks the present progress as saved (after a save or a restore)."""
        self._last_saved = self.position.key()
        self.restart_counters()

    # -- boundaries --------------------------------------------------------------------------

    def count_batch(self, samples: int, number: int = 1) -> None:
        """Counts batches that are done; `samples` are those of the epoch so far."""
        self.position.batch += number
        self.position.step += number
        self.position.samples = samples
        self._since = Since(self._since.epochs, self._since.steps + number, 0.0)

    def count_step(self) -> None:
        self.position.step += 1
        self._since = Since(self._since.epochs, self._since.steps + 1, 0.0)

    def count_epoch(self) -> None:
        position = self.position
        self.position = Position(epoch=position.epoch + 1, step=position.step)
        self._since = Since(self._since.epochs + 1, self._since.steps, 0.0)
        self.loader.order = None
        if self.loader.source is not None:
            self.loader.ended = streams.digests(self.loader.source.generators())

    def begin_epoch(self, again: bool) -> None:
        """The epoch's body is about to run; `again` when it was interrupted and entered before.

        Its top then draws what it drew the first time.
        """
        own = {name: thing for name, thing in self.things.items() if capture.kind_of(thing) in _GENERATORS}
        if again:
            top = self.restored_random.get("top") or {**self.restored_random["order"], "generators": {}}
            streams.restore(top["streams"])
            streams.restore_generators(own, top["generators"])
        self.top = {"streams": streams.capture(), "generators": streams.capture_generators(own)}
        if self.cue is not None:
            self.cue.begin_epoch(self)

    def hand_out(self) -> None:
        """A batch or a step goes to the loop's body."""
        self.stepped.clear()
        if self.cue is not None:
            self.cue.hand_out(self)

    def ask_for_save(self) -> None:
        self._explicit = True

    def take_metrics(self) -> dict[str, Any]:
        session = self.open()
        return self.journal.take(session.path, self.position.epoch, self.position.step)

    def check_metric(self, *, final: bool) -> None:
        """Warns of a metric that Keep ranks by and nobody logs; at the end that is an error."""
        entries = self.session.entries if self.session is not None else []
        self.journal.check(entries, final=final)

    def boundary(self, *, epoch_end: bool = False, last: bool = False, between: bool = False) -> None:
        """The loop asks for its next batch, epoch or step: failures are raised, due saves made.

        Only where another batch or step follows one (`between`) may a save copy behind the training.

        Raises:
            Preempted, KeyboardInterrupt: a signal asked for the end, and the place is saved.

        """
        if os.getpid() != self._pid:
            raise UsageError(
                "This loop belongs to the parent process; a forked child must not go on with it. "
                "Next: leave the child with os._exit, or use subprocess."
            )
        self.pace.reach(None if epoch_end else self.position.step)
        self.departure.reach(
            "between" if between else "epoch" if epoch_end else "end" if self.position.batch else "start"
        )
        if self.cue is not None:
            self.cue.boundary(self, epoch_end=epoch_end, last=last)
        self.overlap.look()
        if not between:
            self.overlap.settle()
        saver = self.need_saver()
        saver.poll()
        if not self._prepared and self.stepped:  # an optimizer has its state only after its first step
            self._prepared = True
            snapshot.prepare_staging(self, saver)
        metrics = self.take_metrics()
        asked = self.departure.reason(self.position.key()) if not last else None
        best = self._is_new_best(metrics)
        snapshot_asked, self.signals.snapshot_asked = self.signals.snapshot_asked, False
        explicit, self._explicit = self._explicit or snapshot_asked, False
        moved = self.position.key() != self._last_saved
        due = (self.departure.due(self.position.key()) or self._due(epoch_end=epoch_end)) if moved else None
        if last:
            if moved or metrics or self.stopped:
                self._save("stopped" if self.stopped else "goal reached", metrics, probing=True)
            saver.drain()
        elif asked is not None:
            saver.drain()
            if moved and self.departure.has_time_for_a_save(asked):
                self._save(asked, metrics, probing=epoch_end)
            saver.drain()
        elif explicit or best:
            # A new best not beside the next step: a copy that is torn is made again later, without these metrics.
            self._save(
                "asked for" if explicit else "new best", metrics, probing=True, between=between and not best
            )
        elif due is not None:
            every = self.options.keep.every_epochs
            milestone = epoch_end and every is not None and self.position.epoch % every == 0
            if saver.busy and not milestone:
                self._postponed = due  # merged with whatever comes due until then
            else:
                self._save(due, metrics, probing=epoch_end, between=between)
        if asked is not None:
            self._end_by(asked)
        self.pace.go_on()
        self.departure.go_on()

    def pass_by(self, why: str) -> None:
        """A moment between two batches from which the training could not be continued: nothing is saved.

        What is due or asked for waits for the end of the epoch, and `why` is said once.

        Raises:
            Preempted, KeyboardInterrupt: a signal asked for the end; the newest checkpoint is durable.

        """
        self.pace.reach(self.position.step)
        saver = self.need_saver()
        saver.poll()
        asked = self.departure.signal  # the time limit is planned for where an epoch ends
        # One that the end of the last epoch postponed has not come due here.
        due = self._postponed is None and self._due(epoch_end=False) is not None
        due = due or self._explicit or self.signals.snapshot_asked
        if (due or asked is not None) and not self._told_why:
            self._told_why = True
            logger.warning("%s", why)
        if asked is not None:
            saver.drain()
            self._end_by(asked)
        self.pace.go_on()

    def end_if_asked(self) -> None:
        """Ends the process that a signal asked to end while the last save was written."""
        if self.departure.signal is not None:
            self._end_by(self.departure.signal, complete=True)

    def _due(self, *, epoch_end: bool) -> str | None:
        if self._postponed is not None:
            return self._postponed
        now, published = time.monotonic(), self.need_saver().last_publish
        taken = now - self._counted_from
        since = Since(self._since.epochs, self._since.steps, min(taken, now - published), taken)
        return self.options.every.due(since, epoch_end, self.pace.interval)

    def _is_new_best(self, metrics: Mapping[str, Any]) -> bool:
        keep = self.options.keep
        if keep.metric is None or keep.metric not in metrics or self.session is None:
            return False
        return is_new_best(keep, self.session.ranking(keep), metrics)

    def _end_by(self, asked: str, *, complete: bool = False) -> None:
        name = self.newest_name() or "no checkpoint"
        self.ended = True
        self.signals.restore(ending=asked != "SIGINT")
        if asked == "SIGINT":
            self.note_end(departure.CTRL_C)
            logger.info("Ctrl-C: %s is saved; the same command continues from there.", name)
            raise KeyboardInterrupt
        logger.info("%s: %s is saved; ending with exit code 75.", asked, name)
        launches = (self.open().book.restarts or {}).get("times", 0)
        requeued = not complete and self.departure.requeue(self._last_saved, launches, self._bring_mirrors)
        self.note_end(asked, **({"requeued": True} if requeued else {}))
        raise Preempted(f"{asked}: {name} is saved")

    def _closing_seconds(self, earlier: Mapping[str, float]) -> float:
        return self.mirroring.closing_seconds(earlier) if self.mirroring is not None else 0.0

    def _bring_mirrors(self, at_most: float) -> None:
        if self.mirroring is not None:
            self.mirroring.wait(mirroring.SIGNAL_SECONDS, at_most)

    def note_end(self, why: str, **facts: Any) -> None:
        """Tells the history why a loop ended."""
        if self.session is not None:
            self.journal.write(self.session.path)
            book.note_event(self.session.path, "end", why=why, **facts, **departure.facts())

    def newest_name(self) -> str | None:
        """The name of the newest checkpoint, for messages; None while there is none."""
        entries = self.session.entries if self.session is not None else []
        found = next(catalog.newest(entries), None)
        return found.folder if found is not None else None

    # -- saving ------------------------------------------------------------------------------

    def save_now(self, metrics: Mapping[str, Any], *, wait: bool) -> None:
        """A save outside a managed loop, at once."""
        saver = self.need_saver()
        saver.poll()
        self.journal.log(metrics)
        self._save("asked for", self.take_metrics(), probing=True)
        if wait:
            saver.drain()

    def _save(self, reason: str, metrics: Mapping[str, Any], *, probing: bool, between: bool = False) -> None:
        if self.torn:
            raise UsageError(
                f"The last restore of {self.options.path} failed half-way, so the objects of this process may be a "
                f"mixture; nothing is saved until a restore succeeds. Next: start the script again."
            )
        saver, session = self.need_saver(), self.open()
        saver.drain()
        facts = self.pace.facts()
        self.pace.begin_save()
        if self.goal is not None and self.goal.kind == "steps":
            self.journal.check_once(session.entries)
        if self.cue is not None:
            self.cue.saving(self)
        if self.settle is not None:
            self.settle()
        record = self.probe.run() if self.probe is not None and probing else None
        states = snapshot.capture_parts(self, record)
        manifest = snapshot.describe(self, session, states, metrics, record)
        behind = self.overlap.begin(self.things, states, between=between)
        saver.save(states, manifest, reason, facts, behind, self.extra() if self.extra is not None else None)
        self.journal.write(session.path)
        self.pace.hand_over()
        self.note_saved()

    def _note_torn(self, name: str, error: TornCopyError) -> None:
        self.overlap.torn(name, error)
        self._postponed = "in place of a torn copy"

    def restore_flags(self) -> None:
        """Sets the flags that the loop had changed when the checkpoint was saved."""
        for name, flags in self.restored_random.get("flags", {}).items():
            framework = adapters.home_framework(type(self.things[name])) if name in self.things else None
            if framework is not None:
                adapters.edge(framework).set_flags(self.things[name], flags)

    def environment(self) -> Any:
        """The facts about this launch, gathered once."""
        if self._environment is None:
            facts = environment.gather()
            if self.options.seed is not None:
                facts["seed"] = self.options.seed
            self._environment = tree.encode(facts, "environment")
        return self._environment

    # -- ends --------------------------------------------------------------------------------

    def record_end(self) -> None:
        session = self.open()
        if self.goal is not None:
            session.book.reached = {"kind": self.goal.kind, "value": self.goal.value, "stopped": self.stopped}
            session.write_book()

    def close(self) -> None:
        """Waits for the save in flight, releases the lease; raises what failed."""
        self.signals.restore()
        failures: list[BaseException] = [] if self.failure is None else [self.failure]
        if self.saver is not None:
            try:
                self.saver.drain()
            except KeyboardInterrupt:
                raise  # still open: the save in flight must not lose its directory
            except BaseException as error:
                failures.append(error)
        interrupted = self._close_mirrors(failures)
        session, self.session, self.saver, self.failure = self.session, None, None, None
        if session is not None:
            self.journal.write(session.path)
        self.closed = True
        self.release_hooks()
        self.overlap.remove()
        self.known.forget()
        if session is not None:
            try:
                session.close()
            except HoldfastError as error:
                failures.append(error)
        for later in failures[1:]:
            logger.error("Closing %s: %s", self.options.path, later)
        if interrupted is not None:
            raise interrupted
        if failures:
            raise failures[0]

    def _close_mirrors(self, failures: list[BaseException]) -> KeyboardInterrupt | None:
        """Waits for the mirrors, as long as is sensible; Ctrl-C ends the wait, and closing goes on."""
        mirrors, saver, session = self.mirroring, self.saver, self.session
        self.mirroring = None
        if mirrors is None or session is None:
            return None
        interrupted = None
        try:
            if session.lease.overtaken:
                mirrors.stop()
            else:
                mirrors.close(mirroring.SIGNAL_SECONDS if self.ended else mirroring.CLOSE_SECONDS)
                if saver is not None:
                    saver.delete_held()
                if session.book.mirrors is not None and session.book.mirrors != mirrors.records():
                    session.book.mirrors = mirrors.records()
                    session.write_book()
                mirrors.leave()
        except KeyboardInterrupt as error:
            logger.warning("Ctrl-C: the mirrors of %s are not waited for.", session.path)
            interrupted = error
        except HoldfastError as error:
            failures.append(error)
        return interrupted


def _plain_keep(keep: Keep) -> dict[str, Any]:
    return {
        field.name: getattr(keep, field.name)
        for field in dataclasses.fields(keep)
        if getattr(keep, field.name) is not None or field.name == "last"
    }
