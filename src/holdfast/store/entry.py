"""One checkpoint in the list of its run: known by its name until somebody asks what its manifest says."""

from __future__ import annotations

from collections.abc import Callable

from holdfast import files
from holdfast.errors import DamagedError, FormatError, HoldfastError, StorageError
from holdfast.format.manifest import CHECKPOINT_FILE, READ_LIMIT_CHECKPOINT, Progress
from holdfast.format.names import CheckpointName
from holdfast.format.summary import Reader, Summary
from holdfast.policy.keep import Record


class Entry:
    """A checkpoint in a run: what its name says, and its manifest once somebody asks for more.

    Attributes:
        path: its directory.
        folder: the name of the directory.
        name: what that says.
        pinned, abandoned: its marks.

    """

    __slots__ = (
        "_fetch", "_problem", "_read", "_record", "_source", "_summary",
        "abandoned", "folder", "name", "path", "pinned",
    )  # fmt: skip

    def __init__(
        self,
        path: str,
        folder: str,
        name: CheckpointName,
        *,
        pinned: bool = False,
        abandoned: bool = False,
        summary: Summary | None = None,
        source: tuple[str, Reader] | None = None,
        fetch: Callable[[str, int], bytes] = files.read_file,
    ) -> None:
        self.path, self.folder, self.name = path, folder, name
        self.pinned, self.abandoned = pinned, abandoned
        self._source, self._fetch = source, fetch
        self._summary = summary
        self._problem: HoldfastError | None = None
        self._read = source is None
        self._record: Record | None = None

    def __repr__(self) -> str:
        return f"<Entry {self.path}>"

    def read(self) -> None:
        """Reads the manifest, unless that was done before; what is the matter with it becomes the `problem`.

        Raises:
            StorageError: it is far away, and does not say what it is. That is no reason to pass a checkpoint over.

        """
        if self._read or self._source is None:
            return
        identity, reader = self._source
        file = f"{self.path}/{CHECKPOINT_FILE}"
        distant = self._fetch is not files.read_file
        try:
            try:
                summary = reader.read(self._fetch(file, READ_LIMIT_CHECKPOINT), file)
            except DamagedError:
                if not distant:
                    raise
                # The way may be at fault.
                summary = reader.read(self._fetch(file, READ_LIMIT_CHECKPOINT), file)
        except HoldfastError as error:
            if distant and isinstance(error, StorageError):
                raise
            self._problem = error
        else:
            self._summary = summary
            if (summary.run, summary.name, summary.sequence) != (identity, self.folder, self.sequence):
                self._problem = FormatError(
                    f"{self.path} is foreign: its manifest says run {summary.run}, name {summary.name}; the run is "
                    f"{identity}. It is listed but never resumed from. Next: move it elsewhere, it opens by its path.",
                    path=self.path,
                    expected=identity,
                    found=summary.run,
                )
        self._read = True  # last: another thread may be asking

    @property
    def was_read(self) -> bool:
        return self._read

    @property
    def sequence(self) -> int:
        return self.name.sequence

    @property
    def summary(self) -> Summary | None:
        """What its manifest says, in short; None when it cannot be read."""
        if not self._read:
            self.read()
        return self._summary

    @summary.setter
    def summary(self, summary: Summary) -> None:
        self._summary, self._record = summary, None

    @property
    def problem(self) -> HoldfastError | None:
        """A damaged or foreign manifest, or what became known later. None for what is resumed from."""
        if not self._read:
            self.read()
        return self._problem

    @problem.setter
    def problem(self, error: HoldfastError) -> None:
        self.read()
        self._problem, self._record = error, None

    @property
    def foreign(self) -> bool:
        """Whether the manifest can be read, and something is the matter all the same."""
        return self.problem is not None and self._summary is not None

    @property
    def whole(self) -> bool:
        return self.problem is None

    @property
    def usable(self) -> bool:
        """Whole, and not abandoned: the mark is looked at first, since that needs no reading."""
        return not self.abandoned and self.whole

    @property
    def nan(self) -> list[str]:
        """Its NaN marks."""
        summary = self.summary
        return summary.nan if summary is not None else []

    @property
    def clean(self) -> bool:
        """Whole, not abandoned, and without a NaN mark."""
        return self.usable and not self.nan

    @property
    def size(self) -> int:
        """Bytes of all its files, as the manifest lists them."""
        summary = self.summary
        return summary.size if summary is not None else 0

    def record(self) -> Record:
        """What policies decide from."""
        made = self._record
        if made is None or made.pinned is not self.pinned or made.abandoned is not self.abandoned:
            made = self._record = self._make_record()
        return made

    def _make_record(self) -> Record:
        summary, name = self.summary or _UNREAD, self.name
        return Record(
            name=self.folder,
            sequence=name.sequence,
            epoch=name.epoch,
            step=name.step,
            batch=summary.progress.batch,
            metrics={key: value for key, value in summary.metrics.items() if isinstance(value, (int, float))},
            nan=bool(summary.nan),
            pinned=self.pinned,
            abandoned=self.abandoned,
            size=summary.size,
            whole=self.whole,
        )


_UNREAD = Summary(None, "", 0, "", Progress(), {}, [], 0)
