"""One checkpoint: opening, checking, loading, restoring; and saving one without a run."""

from __future__ import annotations

import contextlib
import errno
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar, cast

from holdfast import files, stage
from holdfast.errors import (
    DamagedError,
    FormatError,
    HoldfastError,
    NotFoundError,
    StorageError,
    UsageError,
    nearest,
)
from holdfast.format import names, sealed
from holdfast.format.manifest import CHECKPOINT_FILE, Manifest, Progress
from holdfast.format.summary import Summary, summarize
from holdfast.format.table import ARRAYS_FILE, READ_LIMIT_ARRAYS, Arrays, PayloadRecord, decode_arrays
from holdfast.state import adapters, capture, garbage, tree
from holdfast.state.part import Plan, SavedPart
from holdfast.store import catalog, retention

_T = TypeVar("_T")
_FRAMEWORKS = adapters.ARRAYS
_MOST_LOOKS = 20_000_000  # at arrays, to name those in damaged blocks


class Restored(dict[str, Any]):
    """The plain values of a restored checkpoint; with ``strict=False`` also what did not fit."""

    missing: Sequence[str] = ()
    unexpected: Sequence[str] = ()
    different: Sequence[str] = ()


class Checkpoint:
    """A published, immutable snapshot. Reading it takes no lease and creates nothing.

    Attributes:
        path: the directory.
        name: its name, such as ``000012_epoch-0005_step-00004690_20261123T083107Z``.
        sequence: its number in the run.
        progress: completed epochs, steps, and batches and samples in the current epoch.
        metrics: what was logged since the boundary before it.
        created: when it was saved (UTC, ISO 8601).
        config, note, environment: as recorded at the save.
        parts: the names of its parts.

    """

    def __init__(self, path: str, reference: str | None = None, *, summary: Summary | None = None) -> None:
        self.path = os.path.abspath(path)
        self._reference = reference
        # With a summary, as one of thousands, it is read as a whole when somebody asks for more.
        self._summary = summary
        self._read = catalog.read_manifest(self.path) if summary is None else None
        self._arrays: Arrays | None = None
        self._looks = 0

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
        self._read, self._summary, self._arrays = manifest, None, None

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

    def arrays(self) -> Arrays:
        """The content of `arrays.json`, checked against `checkpoint.json`."""
        if self._arrays is None:
            path = os.path.join(self.path, ARRAYS_FILE)
            listed = self._manifest.files.get(ARRAYS_FILE)
            if listed is None:
                raise FormatError(
                    f"{self.path}: {CHECKPOINT_FILE} does not list {ARRAYS_FILE}.", path=self.path
                )
            data = self._read_small(ARRAYS_FILE, READ_LIMIT_ARRAYS, text=True)
            arrays = decode_arrays(data, path)
            unlisted = {name for name in self._manifest.files if name.endswith(".safetensors")} - set(
                arrays.files
            )
            for name in [*arrays.files, *sorted(unlisted)]:
                own, record = self._manifest.files.get(name), arrays.files.get(name)
                digest = _digest_of(record) if record is not None else None
                if own is None or record is None or own.size != record.size or own.digest != digest:
                    raise DamagedError(
                        f"{self.path}: {CHECKPOINT_FILE} and {ARRAYS_FILE} disagree about {name}: they do not belong "
                        f"together. Next: holdfast verify {self.path}",
                        path=self.path,
                        file=name,
                        block=None,
                        arrays=[],
                        expected=own.digest if own else None,
                        found=digest,
                    )
            self._arrays = arrays
        return self._arrays

    def _read_small(self, name: str, limit: int, *, text: bool = False) -> bytes:
        listed = self._manifest.files[name]
        with self._expecting(name):
            data = files.read_file(os.path.join(self.path, name), min(limit, listed.size), text=text)
        self._compare(name, len(data), sealed.digest(data))
        return data

    def _check_small(self, name: str) -> None:
        """Reads a file piece by piece, so that its size costs no memory."""
        import xxhash

        digest = xxhash.xxh3_128()
        with self._expecting(name):
            size = files.digest_file(os.path.join(self.path, name), self._manifest.files[name].size, digest)
        self._compare(name, size, digest.hexdigest())

    @contextlib.contextmanager
    def _expecting(self, name: str) -> Iterator[None]:
        """Turns what is wrong with the file of that name as a whole into damage."""
        expected = self._manifest.files[name].digest
        try:
            yield
        except NotFoundError:
            if not os.path.isdir(self.path):
                raise
            raise self._damaged(name, f"{name} is missing", expected, None) from None
        except FormatError as error:  # longer than it was written, or no regular file
            text = f"{name} is not the file that was written: {error}"
            raise self._damaged(name, text, expected, None) from error

    def _compare(self, name: str, size: int, found: str) -> None:
        listed = self._manifest.files[name]
        if found != listed.digest:
            text = f"{name} has {size:,} bytes with digest {found}; {listed.size:,} with {listed.digest} were written"
            raise self._damaged(name, text, listed.digest, found)

    def _damaged(self, name: str, text: str, expected: str | None, found: str | None) -> DamagedError:
        return DamagedError(
            f"{self.path} is damaged: {text}. Next: holdfast verify {self.path}, or use an older checkpoint.",
            path=self.path,
            file=name,
            block=None,
            arrays=[],
            expected=expected,
            found=found,
        )

    def saved(self, name: str) -> SavedPart:
        """A part as `arrays.json` describes it; `NotFoundError` names the nearest."""
        parts = self.arrays().parts
        if name not in parts:
            near = nearest(name, parts)
            raise NotFoundError(
                f"{self.path} has no part {name!r}{f'; {near}' if near else '.'} It has: {', '.join(parts)}.",
                path=self.path,
                candidates=list(parts),
            )
        outline = self._manifest.parts.get(name, {}).get("outline")
        made_by = outline.get("class") if isinstance(outline, dict) else None
        return SavedPart.of(name, parts[name], self.path, made_by if isinstance(made_by, str) else "")

    def read(self, plan: Plan, progress: Callable[[int], None] | None = None) -> None:
        """Reads and checks what a plan asks for, then finishes it."""
        batches = plan.small.sealed()
        if plan.requests or batches:
            from holdfast.payload import reader

            reader.read(
                self.path,
                self._records(),
                plan.requests,
                batches=batches,
                names=self._names_in,
                progress=progress,
                block_size=self.arrays().block_size,
            )
        plan.finish()

    def _check_files(self, parts: Iterable[str]) -> None:
        """Compares the sizes of the files that some parts lie in, before memory is taken for what they hold."""
        from holdfast.payload import damage

        used = {
            chunk.file
            for name in parts
            for entry in self.saved(name).entries.values()
            for chunk in entry.chunks
            if chunk.bytes[0] < chunk.bytes[1]
        }
        for file, record in self.arrays().files.items():
            with contextlib.suppress(OSError):  # what is missing, or no file, is the reader's to tell
                size = os.lstat(os.path.join(self.path, file)).st_size
                if file in used and size != record.size:
                    raise damage.wrong_size(self.path, file, record.size, size)

    def _records(self) -> dict[str, Any]:
        from holdfast.payload import reader

        return {
            name: reader.FileRecord(name, record.size, [bytes.fromhex(block) for block in record.blocks])
            for name, record in self.arrays().files.items()
        }

    def _names_in(self, file: str, start: int, stop: int) -> list[str]:
        """The arrays in some bytes of a file; none any more once much time went into such questions."""
        if self._looks > _MOST_LOOKS:
            return []
        self._looks += sum(len(part.arrays) for part in self.arrays().parts.values())
        return [
            f"{part_name}/{name}"
            for part_name, part in self.arrays().parts.items()
            for name, entry in part.arrays.items()
            if any(c.file == file and c.bytes[0] < stop and start < c.bytes[1] for c in entry.chunks)
        ]

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
            self._check_files(wanted)
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
            self._check_files([*targets, *others])
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
        problems = self._look_again()
        if self._read is None:
            return problems
        for name in self._manifest.files:
            if name.endswith(".safetensors"):
                continue
            try:
                self._check_small(name)
            except HoldfastError as error:
                problems.append(error)
        with files.translated(self.path, "list"):
            present = os.listdir(self.path)
        surplus = set(present) - set(self._manifest.files) - {CHECKPOINT_FILE}
        problems += [
            self._damaged(name, f"{name} does not belong to it", None, name) for name in sorted(surplus)
        ]
        try:
            for name in self.arrays().parts:
                self.saved(name).leaves()
            records = self._records()
        except HoldfastError as error:
            known = {problem.message for problem in problems}
            return problems if error.message in known else [*problems, error]
        from holdfast.payload import reader

        return problems + list(
            reader.verify(
                self.path,
                records,
                names=self._names_in,
                progress=progress,
                block_size=self.arrays().block_size,
            )
        )

    def _look_again(self) -> list[HoldfastError]:
        """What became of checkpoint.json since it was read; when it was replaced, that one counts."""
        try:
            current = catalog.read_manifest(self.path)
        except NotFoundError:
            if not os.path.isdir(self.path):
                raise
            return [self._damaged(CHECKPOINT_FILE, f"{CHECKPOINT_FILE} is missing", None, None)]
        except FormatError as error:
            text = f"{CHECKPOINT_FILE} is not the file that was written: {error}"
            return [self._damaged(CHECKPOINT_FILE, text, None, str(error))]
        except HoldfastError as error:
            return [error]
        if self._read is None:
            self._take(current)
        own = self._manifest
        if (current.run, current.name, current.sequence) != (own.run, own.name, own.sequence):
            text = f"{CHECKPOINT_FILE} is that of another checkpoint, {current.name}"
            return [self._damaged(CHECKPOINT_FILE, text, own.name, current.name)]
        if current != own:
            self._take(current)
        return []

    def total_bytes(self) -> int:
        """Bytes of all files that the manifest lists."""
        return self._summary.size if self._summary is not None else summarize(self._manifest).size

    def pin(self) -> None:
        """Keeps this checkpoint whatever the policy says. Takes no lease."""
        retention.pin(self._run_directory(), os.path.basename(self.path))

    def unpin(self) -> None:
        """Hands this checkpoint back to the policy."""
        retention.unpin(self._run_directory(), os.path.basename(self.path))

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


def _digest_of(record: PayloadRecord) -> str:
    return sealed.digest(b"".join(bytes.fromhex(block) for block in record.blocks))


_UNASKED = names.RESERVED_PARTS - {"state"}


@garbage.paused()
def open_checkpoint(reference: str | os.PathLike[str]) -> Checkpoint:
    """A checkpoint by reference: a path, ``RUN``, ``RUN@best``, ``RUN@step=4690``, ``RUN@-2``, …

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
