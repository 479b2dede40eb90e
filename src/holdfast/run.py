"""`Run`: one training, however often it is interrupted."""

from __future__ import annotations

import contextlib
import functools
import os
import signal
import sys
from collections.abc import Iterable, Mapping
from typing import Any, Literal

from holdfast import loop, resuming, stage
from holdfast.checkpoint import Checkpoint
from holdfast.drafting import check_note, encode_config
from holdfast.errors import HoldfastError, NotFoundError, UsageError
from holdfast.format import names
from holdfast.format.manifest import Progress
from holdfast.lastly import at_exit
from holdfast.log import logger
from holdfast.mirrors.mirror import Mirror, checked
from holdfast.objects import urls
from holdfast.policy.every import DEFAULT, Every
from holdfast.policy.keep import Keep, parse_size
from holdfast.position import Options, Position
from holdfast.state import adapters, capture, garbage, streams
from holdfast.state.probe import Probe
from holdfast.store import catalog
from holdfast.store.entry import Entry
from holdfast.training import Training


class Run:
    """Keeps a training's place in a directory; nothing is touched on disk before it is used.

    Args:
        path: the run's directory; made at first use.
        config: a mapping of settings, compared at resume; a difference is a `UsageError` that shows it.
        note: a sentence for the cards.
        seed: seeds every random stream now, at each launch.
        every: when to save by itself; default: each epoch, and after 10 minutes; Every(overhead=0.01): as
            often as that share of the training's time allows.
        keep: which checkpoints stay; default: the last three.
        mirrors: other places for its checkpoints: directories, or `Mirror(…)`; see docs/mirrors.md.
        init: part → reference of a checkpoint that it starts from, while this run has none.
        fresh: names like "scheduler" or "optimizer.lr" that keep this launch's values, once.
        changed: keys of `config` that may differ, and "loader".
        on_nan: "mark" a checkpoint with NaN or infinite parameters, or "raise" instead of saving it.
        overlap: copies parameters and optimizer state beside the next forward and backward, where nothing but
            the tracked torch optimizers writes them; see "Saving beside the next step" in docs/getting-started.md.
        staging: bytes (or "2 GB") of memory for the copy that is written in the background; default:
            what the state needs, at most a quarter of what is free; 0 holds the training instead.
        wait: seconds to wait for a living process that holds this run.

    Raises:
        UsageError: an argument cannot work; the message says what would.

    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        config: Mapping[str, Any] | None = None,
        note: str = "",
        seed: int | None = None,
        every: Every = DEFAULT,
        keep: Keep | None = None,
        mirrors: Iterable[str | os.PathLike[str] | Mirror] = (),
        init: Mapping[str, str] | None = None,
        fresh: Iterable[str] = (),
        changed: Iterable[str] = (),
        on_nan: Literal["mark", "raise"] = "mark",
        overlap: bool = False,
        staging: int | str | None = None,
        wait: float = 0,
    ) -> None:
        if (
            "@" in os.path.basename(os.fspath(path))
            and names.parse_reference(os.fspath(path)).which != "newest"
        ):
            raise UsageError(
                f"{path!r} names a checkpoint of a run; a Run takes the run's own path.", found=path
            )
        if not os.fspath(path):
            raise UsageError(
                'Run(""): expected the path of a directory, like Run("runs/digits").', found=os.fspath(path)
            )
        if on_nan not in ("mark", "raise"):
            raise UsageError(f"on_nan={on_nan!r}: expected 'mark' or 'raise'.", found=on_nan)
        if not isinstance(overlap, bool):
            raise UsageError(f"overlap={overlap!r}: expected True or False.", found=overlap)
        for name, value, kind in (("every", every, Every), ("keep", keep or Keep(), Keep)):
            if not isinstance(value, kind):
                raise UsageError(
                    f"{name}={value!r}: expected {kind.__name__}(…), like {kind.__name__}({_EXAMPLES[name]}).",
                    found=value,
                )
        sources: Any = init
        if sources is not None and not (
            isinstance(sources, Mapping)
            and all(isinstance(where, str | os.PathLike) for where in sources.values())
        ):
            raise UsageError(
                f'init={init!r}: expected a mapping like {{"model": "runs/base@best"}}.', found=init
            )
        _check_text_and_wait(note, wait)
        refuse_several_processes()
        if urls.is_url(os.fspath(path)):
            shown = urls.redacted(os.fspath(path))
            raise UsageError(
                f"Run({shown!r}): a run trains in a directory, which an object store may mirror. "
                f'Next: Run("runs/digits", mirrors=[{shown!r}]).',
                path=shown,
            )
        asked = place = os.path.abspath(os.path.expanduser(os.fspath(path)))
        places = checked(mirrors, place)
        rehearsed = stage.current()
        if rehearsed is not None:
            place = rehearsed.place(asked, stage.RUNS)
        self._training = Training(
            Options(
                path=place,
                config=encode_config(config),
                note=note,
                seed=seed,
                every=every,
                keep=keep or Keep(),
                # What is rehearsed writes nothing but its own.
                mirrors=places if rehearsed is None else (),
                init=dict(init or {}),
                fresh=_names("fresh", fresh),
                changed=_names("changed", changed),
                on_nan=on_nan,
                overlap=overlap,
                staging=_staging(staging),
                wait=wait,
            )
        )
        self._loop = loop.Loop(self._training)
        self._resumed = False
        self._closed = False
        self._pid = os.getpid()
        if rehearsed is not None:
            from holdfast.cue import Cue

            self._training.cue = Cue(rehearsed, place, asked)
        if seed is not None:
            streams.seed(seed)
            self._training.seeded = {name for name, _ in adapters.loaded_edges()}

    def __repr__(self) -> str:
        return f"<holdfast.Run {self.path}>"

    # -- what is tracked -------------------------------------------------------------------------

    def track(self, **things: Any) -> None:
        """Tracks things that can be restored in place: models, optimizers, schedulers, scalers, loaders, …

        Anything with ``state_dict`` and ``load_state_dict``, `holdfast.torch.trainable(net)`,
        `numpy.random.Generator`, `random.Random`, `torch.Generator`; `probe=Probe(net, batch)`.

        Raises:
            UsageError: a plain value would keep its first content for ever: it belongs into `run.state`.

        """
        self._usable()
        if self._loop.active is not None:
            raise UsageError(
                "run.track() inside the loop comes too late. Next: track before the loop is entered."
            )
        if self._resumed:
            raise UsageError(
                "run.track() after run.resume() comes too late: what it names was not restored. "
                "Next: track before run.resume()."
            )
        for name, thing in things.items():
            if name == "probe":
                if not isinstance(thing, Probe):
                    raise UsageError(
                        f"track(probe=…) takes a Probe, like Probe(net, sample_batch), not a {type(thing).__name__}.",
                        found=type(thing).__name__,
                    )
                self._training.probe = thing
                continue
            names.check_part_name(name)
            if capture.kind_of(thing) is None:
                raise _untrackable(name, thing)
            self._training.track(name, thing)

    @property
    def state(self) -> dict[Any, Any]:
        """What the loop accumulates: always saved, restored by content, the same object throughout."""
        return self._training.state

    @state.setter
    def state(self, _value: Any) -> None:
        raise UsageError(
            "run.state stays the same object, so that it can be restored. "
            'Next: run.state["name"] = …, or run.state.update({…}).'
        )

    # -- managed loops -----------------------------------------------------------------------------

    def epochs(self, goal: int) -> Iterable[int]:
        """The epochs that are still to do, up to `goal` in total; resumes by itself.

        Raises (from the loop):
            Preempted: SIGTERM or SIGUSR1 came, and the place is saved.
            StorageError: a save failed.
        """
        return self._guarded("epochs", goal)

    def steps(self, goal: int) -> Iterable[int]:
        """The steps that are still to do, up to `goal` in total, for loops without epochs."""
        return self._guarded("steps", goal)

    def batches(self, loader: Any, *, batch_size: int | None = None, shuffle: bool = True) -> loop.Batches:
        """The batches of this epoch; after a resume those that were not done, without fetching the others.

        The result is sized, and ``.numbered()`` gives pairs with true batch numbers. Where Keras is imported,
        its `fit` takes it as data.

        Args:
            loader: a loader, a data set, a list of batches; with `batch_size` an array, or a nested value
                of arrays of one length.
            batch_size: samples in a batch that is cut out of arrays.
            shuffle: draw the order anew in each epoch; for arrays and a Keras PyDataset.

        """
        self._usable()
        find = functools.partial(loop.source_of, loader, batch_size, shuffle=shuffle)
        if adapters.is_loaded("keras"):
            found: loop.Batches = adapters.edge("keras").batches(self._loop, find)
            return found
        return loop.Batches(self._loop, find)

    def log(self, **metrics: Any) -> None:
        """Metrics of the next boundary: numbers, or arrays of one element."""
        self._usable()
        self._training.journal.log(metrics)

    def stop(self) -> None:
        """Makes this epoch (or step) the last one: it is finished and saved, and the run is complete."""
        self._usable()
        if self._loop.active is None:
            raise UsageError(
                "run.stop() belongs into a managed loop; in a loop of your own, leave it and close the run."
            )
        self._training.stopping = True

    def _guarded(self, kind: Literal["epochs", "steps"], goal: int) -> loop.Numbers:
        self._usable()
        number = self._goal(kind, goal)
        self._take_path()
        return loop.Numbers(self._loop, kind, number)

    def _goal(self, kind: str, goal: int) -> int:
        if isinstance(goal, bool) or not hasattr(goal, "__index__") or goal < 0:
            raise UsageError(
                f"run.{kind}({goal!r}): expected how many {kind} in total, like run.{kind}(20).", found=goal
            )
        return int(goal)

    # -- a loop of one's own -------------------------------------------------------------------------

    def resume(self) -> Progress:
        """Restores the newest whole checkpoint; zeros on a fresh run. ``progress.epoch`` is the next index."""
        self._usable()
        if self._loop.active is not None:
            raise UsageError(
                f"run.{self._loop.active}() has resumed already; run.resume() is for loops of your own."
            )
        self._take_path()
        manifest = resuming.resume(self._training)
        loop.announce(self._training, manifest, complete=False)
        self._training.read_ahead()
        self._resumed = True
        return self.progress

    def save(
        self,
        epoch: int | None = None,
        step: int | None = None,
        metrics: Mapping[str, Any] | None = None,
        wait: bool = False,
    ) -> None:
        """Saves at once, or, inside a managed loop, at the next boundary.

        Args:
            epoch, step: completed ones so far; what is left out stays. Only outside a managed loop.
            metrics: numbers that rank this checkpoint.
            wait: return when it is durable, and raise its own failure.

        """
        self._usable()
        training = self._training
        if self._loop.active is not None:
            if epoch is not None or step is not None or metrics is not None or wait:
                raise UsageError(
                    f"Inside run.{self._loop.active}() the progress is known, so run.save() takes no arguments: it saves at "
                    f"the next boundary. Next: run.save(), and run.log(…) for metrics."
                )
            training.ask_for_save()
            return
        self._take_path()
        fresh = training.session is None
        session = training.open()
        mirrored = training.mirroring is not None and training.mirroring.holds_some
        if (
            (session.entries or mirrored)
            and not self._resumed
            and training.origin is None
            and not self._loop.finished
        ):
            if fresh:
                training.give_up()
            raise UsageError(
                f"{self.path} has checkpoints, and this launch has not resumed from them: saving now would bury them under "
                f"a new start. Next: progress = run.resume(), or another directory."
            )
        self._advance(epoch, step)
        if fresh:
            training.record_launch()
        self._resumed = True
        if training.cue is not None:
            training.cue.own_save(training)
        training.save_now(metrics or {}, wait=wait)

    def _advance(self, epoch: int | None, step: int | None) -> None:
        position = self._training.position
        for name, value, now in (("epoch", epoch, position.epoch), ("step", step, position.step)):
            if value is None:
                continue
            if isinstance(value, bool) or not hasattr(value, "__index__"):
                raise UsageError(f"run.save({name}={value!r}): expected a whole number.", found=value)
            if value >= _MOST:
                raise UsageError(
                    f"run.save({name}={value}): expected at most {_MOST - 1:,}; names of checkpoints hold no more.",
                    expected=_MOST - 1,
                    found=value,
                )
            if value < now:
                raise UsageError(
                    f"run.save({name}={value}): the run stands at {name} {now}; progress never goes backwards. "
                    f"{name} counts completed {name}s (index + 1). Next: `holdfast rewind` to continue from an older "
                    f"checkpoint.",
                    expected=now,
                    found=value,
                )
        new_step = position.step if step is None else int(step)
        if epoch is not None:
            self._training.position = Position(epoch=int(epoch), step=new_step)
        else:
            position.step = new_step

    def close(self) -> None:
        """Waits until everything is durable, releases the run, and raises what failed."""
        if self._closed or os.getpid() != self._pid:
            return
        try:
            self._training.close()
        finally:
            # After Ctrl-C the run is still open: what is in flight is finished at exit.
            self._closed = self._training.closed
            if self._closed and _open_runs.get(self.path) is self:
                del _open_runs[self.path]

    def __enter__(self) -> Run:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: Any) -> None:
        if error is None:
            self.close()
            return
        try:
            self.close()
        except HoldfastError as failure:  # the exception that is on its way is never replaced
            logger.error("Closing %s failed as well: %s", self.path, failure)

    # -- looking -------------------------------------------------------------------------------------

    @property
    def path(self) -> str:
        """The run's directory, absolute."""
        return self._training.options.path

    @property
    def progress(self) -> Progress:
        """Where the training stands now."""
        return self._training.position.freeze()

    @property
    @garbage.paused()
    def checkpoints(self) -> list[Checkpoint]:
        """The whole checkpoints, oldest first."""
        return [
            Checkpoint(entry.path, summary=entry.summary)
            for entry in self._scan()
            if entry.whole and entry.summary is not None
        ]

    @property
    def latest(self) -> Checkpoint | None:
        """The newest whole clean checkpoint; None when there is none yet."""
        for entry in catalog.newest(self._scan()):
            with contextlib.suppress(NotFoundError):  # deleted since the scan
                return Checkpoint(entry.path, self.path)
        return None

    @property
    @garbage.paused()
    def best(self) -> Checkpoint | None:
        """The best checkpoint by the metric of `keep`; None when there is none yet."""
        keep = self._training.options.keep
        if keep.metric is None:
            raise UsageError(
                "run.best needs a metric to rank by. "
                'Next: Run(…, keep=Keep(best=1, metric="val_accuracy", mode="max")).'
            )
        from holdfast.store import retention

        entries = self._scan()
        record = retention.best_record(keep, entries)
        return next((Checkpoint(e.path) for e in entries if record and e.folder == record.name), None)

    def _scan(self) -> list[Entry]:
        if self._training.saver is not None:
            self._training.saver.drain()
        return catalog.scan(self.path) if catalog.is_run(self.path) else []

    # -- one run per path in a process -----------------------------------------------------------------

    def _usable(self) -> None:
        if self._closed:
            raise UsageError(f"The run {self.path} is closed. Next: make a new Run on the same path.")
        if os.getpid() != self._pid:
            raise UsageError("This run belongs to the parent process; a forked child must not write it.")

    def _take_path(self) -> None:
        other = _open_runs.get(self.path)
        if other is not None and other is not self:
            logger.info("%s: an earlier Run of this process on the same path is closed.", self.path)
            other.close()
        refuse_several_processes()
        self._training.seed_late()
        _open_runs[self.path] = self


_EXAMPLES = {"every": "epochs=1, minutes=10", "keep": 'last=3, best=1, metric="val_accuracy", mode="max"'}
_MOST = 10**18  # names of checkpoints have room for 18 digits
_open_runs: dict[str, Run] = {}


def _names(keyword: str, value: Iterable[str]) -> tuple[str, ...]:
    if isinstance(value, str):
        raise UsageError(f"{keyword}={value!r}: expected a list, like {keyword}=[{value!r}].", found=value)
    return tuple(value)


def _staging(value: Any) -> int | None:
    if value is None or (type(value) is int and value == 0):
        return value
    try:
        return parse_size(value)
    except UsageError as error:
        raise UsageError(
            f"staging={value!r}: expected bytes, such as 2_000_000_000 or '2 GB', or 0 to hold the training instead.",
            found=value,
        ) from error


def _check_text_and_wait(note: Any, wait: Any) -> None:
    check_note(note)
    if isinstance(wait, bool) or not isinstance(wait, int | float) or not wait >= 0:
        raise UsageError(
            f"wait={wait!r}: expected seconds to wait for a process that holds the run, like wait=60.",
            found=wait,
        )


def _untrackable(name: str, thing: Any) -> UsageError:
    kind = type(thing).__name__
    array = adapters.array_framework(type(thing)) is not None
    if array or isinstance(thing, (bool, int, float, str, bytes, list, tuple, dict, set, type(None))):
        return UsageError(
            f"track({name}=…): a {kind} cannot be restored in place; the variable would keep its first value for ever. "
            f"Next: keep it in the run's state: run.state[{name!r}] = …",
            found=kind,
        )
    return UsageError(
        f"track({name}=…): a {kind} has no state_dict and load_state_dict. Next: give it both, or keep its "
        f"values in run.state[{name!r}].",
        found=kind,
    )


def refuse_several_processes() -> None:
    """Training on several processes has no support yet: a run would be torn."""
    world = os.environ.get("WORLD_SIZE", "1")
    size = int(world) if world.isdigit() else 1
    for _, edge in adapters.loaded_edges():
        size = max(size, edge.process_group_size())
    if size > 1:
        raise UsageError(
            f"This is one of {size} processes (WORLD_SIZE={world}); this version of Holdfast saves trainings of one "
            f"process. Next: use it in a single-process script, or unset WORLD_SIZE if that is what this is.",
            found=size,
        )


def _close_all() -> None:
    """At exit: what is in flight becomes durable; a failure nobody saw ends the process with its code."""
    code = 0
    for run in list(_open_runs.values()):
        if run._pid != os.getpid():
            continue
        try:
            run.close()
        except HoldfastError as error:
            logger.error("%s: %s", run.path, error)
            code = error.exit_code
        except KeyboardInterrupt:
            logger.error(
                "%s: Ctrl-C stopped the closing; the next launch clears away what is left.", run.path
            )
            code = 128 + signal.SIGINT
        except BaseException as error:
            logger.error("%s: %s: %s", run.path, type(error).__name__, error)
            code = 1
    if code:
        # An exception raised here would be printed and the exit code would stay 0.
        with contextlib.suppress(Exception):
            sys.stdout.flush()
        with contextlib.suppress(Exception):
            sys.stderr.flush()
        os._exit(code)


def _forget_in_child() -> None:
    _open_runs.clear()


at_exit(_close_all)
os.register_at_fork(after_in_child=_forget_in_child)
