"""One checkpoint: opening, checking, loading, restoring; and saving one without a run."""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeVar, cast

from holdfast import stage
from holdfast.content import Content, look_again
from holdfast.errors import (
    DamagedError,
    FormatError,
    HoldfastError,
    NotFoundError,
    StorageError,
    UsageError,
)
from holdfast.format import names
from holdfast.format.manifest import CHECKPOINT_FILE, Manifest, Progress
from holdfast.format.summary import Summary, summarize
from holdfast.format.table import Arrays
from holdfast.objects import urls
from holdfast.state import adapters, capture, garbage, tree
from holdfast.state.part import Plan, SavedPart
from holdfast.store import catalog, retention, sources

_T = TypeVar("_T")
_FRAMEWORKS = adapters.ARRAYS


class Restored(dict[str, Any]):
    """The plain values of a restored checkpoint; with ``strict=False`` also what did not fit."""

    missing: Sequence[str] = ()
    unexpected: Sequence[str] = ()
    different: Sequence[str] = ()


class Checkpoint:
    """A published, immutable snapshot. Reading it takes no lease and creates nothing.

    Attributes:
        path: the directory, or the URL.
        name: its name, such as ``000012_epoch-0005_step-00004690_20261123T083107Z``.
        sequence: its number in the run.
        progress: completed epochs, steps, and batches and samples in the current epoch.
        metrics: what was logged since the boundary before it.
        created: when it was saved (UTC, ISO 8601).
        config, note, environment: as recorded at the save.
        parts: the names of its parts.

    """

    def __init__(self, path: str, reference: str | None = None, *, summary: Summary | None = None) -> None:
        self.path = sources.absolute(path)
        self._reference = reference
        # With a summary, as one of thousands, it is read as a whole when somebody asks for more.
        self._summary = summary
        self._read = catalog.read_manifest(self.path) if summary is None else None
        self._held: Content | None = None

    def __repr__(self) -> str:
        return f"<holdfast.Checkpoint {self.path}>"

    @property
    def manifest(self) -> Manifest:
        """All that `checkpoint.json` says, as it stands there."""
        return self._manifest

    @property
    def _manifest(self) -> Manifest:
        if self._read is None:
            self._take(catalog.read_manifest(self.path))
        return cast("Manifest", self._read)

    def _take(self, manifest: Manifest) -> None:
        self._read, self._summary, self._held = manifest, None, None

    @property
    def _known(self) -> Manifest | Summary:
        """What says its name, its metrics and when it was made."""
        return self._summary or self._manifest

    @property
    def name(self) -> str:
        return self._known.name

    @property
    def sequence(self) -> int:
        return self._known.sequence

    @property
    def progress(self) -> Progress:
        return self._known.progress

    @property
    def metrics(self) -> dict[str, Any]:
        return self._mapping("metrics", self._known.metrics)

    @property
    def created(self) -> str:
        return self._known.created

    @property
    def config(self) -> Any:
        return self._plain(self._manifest.config)

    @property
    def note(self) -> str:
        return self._manifest.note

    @property
    def environment(self) -> dict[str, Any]:
        return self._mapping("environment", self._manifest.environment)

    @property
    def parts(self) -> list[str]:
        return list(self._manifest.parts)

    def _mapping(self, name: str, value: Any) -> dict[str, Any]:
        found = self._plain(value)
        if not isinstance(found, dict):
            raise FormatError(
                f"{self.path}: {CHECKPOINT_FILE} holds no mapping under {name!r}.", path=self.path
            )
        return found

    def _plain(self, value: Any) -> Any:
        def no_array(framework: str, name: str) -> Any:
            raise FormatError(f"{self.path}: {CHECKPOINT_FILE} holds the {framework} array {name!r}.")

        return tree.decode(value, no_array, self.path)

    # -- reading ---------------------------------------------------------------------------

    @property
    def _content(self) -> Content:
        """Its files, as they are to be by the manifest that is known now."""
        manifest = self._manifest
        if self._held is None:
            self._held = Content(sources.source_of(self.path), manifest)
        return self._held

    def arrays(self) -> Arrays:
        """The content of `arrays.json`, checked against `checkpoint.json`."""
        return self._content.arrays()

    def saved(self, name: str) -> SavedPart:
        """A part as `arrays.json` describes it; `NotFoundError` names the nearest."""
        return self._content.saved(name)

    def read(self, plan: Plan, progress: Callable[[int], None] | None = None) -> None:
        """Reads and checks what a plan asks for, then finishes it."""
        self._content.read(plan, progress)

    def _read_small(self, name: str, limit: int) -> bytes:
        return self._content.small(name, limit)

    def load(self, parts: Iterable[str] | None = None, arrays: str | None = None) -> dict[str, Any]:
        """The values of parts, with new arrays on the CPU, every block checked.

        Args:
            parts: which ones; by default what was tracked, and `state`.
            arrays: "torch", "numpy", "jax" or "tensorflow"; by default the framework that saved them. What NumPy lacks
                (bfloat16, float8) comes as unsigned integers of that width.

        Raises:
            DamagedError: a byte is not as written; names file, block and arrays.
            NotFoundError: no such part.

        """
        if arrays is not None and arrays not in _FRAMEWORKS:
            raise UsageError(f"arrays={arrays!r}: expected one of {', '.join(_FRAMEWORKS)}.", found=arrays)

        def load() -> dict[str, Any]:
            wanted = (
                list(parts) if parts is not None else [n for n in self.arrays().parts if n not in _UNASKED]
            )
            self._content.check_sizes(wanted)
            plan = Plan()
            finishes = {name: plan.value(self.saved(name), arrays) for name in wanted}
            self.read(plan)
            return {name: finish() for name, finish in finishes.items()}

        return self._retrying(load)

    def restore(self, targets: Any, *, strict: bool = True) -> Restored:
        """Restores parts in place, on whatever device they are; returns the plain values.

        Every structural check comes before the first byte is written into a target.

        Args:
            targets: part name → model, optimizer, scheduler, array, mapping of arrays, …
            strict: with False, what fits is restored and the result's `missing`, `unexpected` and
                `different` say what does not.

        Raises:
            MismatchError: it does not fit; nothing was changed.
            DamagedError: a byte is not as written; `target_changed` says whether targets were touched.

        """
        if not isinstance(targets, Mapping) or not targets:
            raise UsageError(
                'restore() takes a mapping of part names to what they are restored into, like {"model": net}.',
                found=type(targets).__name__,
            )

        def restore() -> Restored:
            plan = Plan()
            for name, target in targets.items():
                capture.plan_restore(target, self.saved(name), plan, targets)
            if strict:
                plan.check_fit(self.path)
            others = [
                name
                for name, part in self.arrays().parts.items()
                if name not in targets and name not in _UNASKED and part.kind == "value"
            ]
            self._content.check_sizes([*targets, *others])
            for name in others:  # that they are values at all is found out before the first byte, too
                self.saved(name).value(lambda *_: None)
            finishes = {name: plan.value(self.saved(name)) for name in others}
            self.read(plan)
            result = Restored({name: finish() for name, finish in finishes.items()})
            result.missing, result.unexpected, result.different = (
                plan.missing,
                plan.unexpected,
                plan.different,
            )
            return result

        return self._retrying(restore)

    @garbage.paused()
    def _retrying(self, act: Callable[[], _T]) -> _T:
        """Looks again when the checkpoint was deleted or replaced meanwhile: that is no damage."""
        for _ in range(3):
            try:
                return act()
            except (NotFoundError, StorageError, DamagedError) as error:
                if not self._moved_on(error):
                    raise
                time.sleep(0.01)
        return act()

    def _moved_on(self, error: HoldfastError) -> bool:
        """Whether the reference means another checkpoint by now; if so, this one becomes that one."""
        stale = isinstance(error, StorageError) and error.errno == errno.ESTALE
        if isinstance(error, StorageError) and urls.is_url(self.path):
            return False  # the store or the way to it: asking more of it only takes longer
        if catalog.is_checkpoint(self.path):
            try:
                current = Checkpoint(self.path, self._reference)
            except HoldfastError:  # its own manifest is what is wrong now: the first error says more
                return stale
        elif self._reference is not None:
            current = open_checkpoint(self._reference)
        else:
            return False
        if current.path == self.path and current.manifest == self._read:
            return stale
        self.path = current.path
        self._take(current.manifest)
        return True

    # -- checking, pinning -------------------------------------------------------------------

    def verify(self, progress: Callable[[int], None] | None = None) -> list[HoldfastError]:
        """Reads every byte of every file; the list of what is damaged is empty when it is whole."""
        current, problems = look_again(self.path, self._read)
        if current is None:
            return problems
        if current is not self._read:
            self._take(current)
        return problems + self._content.verify(progress)

    def total_bytes(self) -> int:
        """Bytes of all files that the manifest lists."""
        return self._summary.size if self._summary is not None else summarize(self._manifest).size

    def pin(self) -> None:
        """Keeps this checkpoint whatever the policy says. Takes no lease."""
        self._marks().pin(self._run_directory(), os.path.basename(self.path))

    def unpin(self) -> None:
        """Hands this checkpoint back to the policy."""
        self._marks().unpin(self._run_directory(), os.path.basename(self.path))

    def _marks(self) -> Any:
        """What pins and unpins where this one lies."""
        if not urls.is_url(self.path):
            return retention
        from holdfast.store import distant

        return distant

    def _run_directory(self) -> str:
        parent, base = os.path.split(self.path)
        if self._manifest.run is None or not catalog.is_run(parent):
            raise UsageError(
                f"{self.path} lies in no run; only a run's checkpoints are pinned.", path=self.path
            )
        # The manifest's own name may be a path to anywhere.
        if names.parse_checkpoint_name(base) is None or self._manifest.name != base:
            raise FormatError(
                f"{self.path} is foreign: its manifest calls it {self._manifest.name!r}; only a run's own checkpoints "
                f"are pinned.",
                path=self.path,
                expected=base,
                found=self._manifest.name,
            )
        return parent


_UNASKED = names.RESERVED_PARTS - {"state"}


@garbage.paused()
def open_checkpoint(reference: str | os.PathLike[str]) -> Checkpoint:
    """A checkpoint by reference: a path, ``RUN``, ``RUN@best``, ``RUN@step=4690``, ``RUN@-2``, …

    A URL may stand in the place of the path: ``s3://bucket/digits@best``. What is asked for is read from there, and
    nothing else.

    Raises:
        NotFoundError: nothing there; the message lists what is.
        FormatError, DamagedError: it is there, but is no whole checkpoint.

    """
    text = stage.found(os.fspath(reference))
    for _ in range(3):
        path = catalog.resolve(text)
        try:
            return Checkpoint(path, text)
        except NotFoundError:  # deleted between the two lines: the reference means another one now
            if catalog.is_checkpoint(path):
                raise
    return Checkpoint(catalog.resolve(text), text)


def restore(
    reference: str | os.PathLike[str], targets: Mapping[str, Any], *, strict: bool = True
) -> Restored:
    """`open(reference).restore(targets)`: the safe way to say ``load_state_dict(torch.load(path))``."""
    return open_checkpoint(reference).restore(targets, strict=strict)
