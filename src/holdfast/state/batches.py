"""Small arrays that a restore makes or fills together: what is paid for each of them is what they cost.

A row stands for each: cheap to make, and all that is kept of it until the block that holds its
bytes was found right. Then its framework takes the rows of that block out of it in a few calls.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from operator import itemgetter
from typing import TYPE_CHECKING, Any, NamedTuple

from holdfast.format.table import ArrayEntry
from holdfast.state import adapters

if TYPE_CHECKING:
    from holdfast.payload.array import Bytes
    from holdfast.payload.reader import Batch
    from holdfast.state.part import SavedPart

# Above, a copy out of the block costs more than a destination of its own.
SMALL = 16 << 10


class Row(NamedTuple):
    """A saved array, and where it goes: into a live array, or into a mapping under its name.

    Start and stop count from byte 0 of the file.
    """

    start: int
    stop: int
    entry: ArrayEntry
    name: str
    part: SavedPart
    into: Any


class Batches:
    """The rows of a plan, by file, by framework, and by whether the arrays are there already.

    Args:
        explain: the error to raise for one that came while the arrays of a row were made.

    """

    def __init__(self, explain: Callable[[Row, str, Exception], Exception]) -> None:
        self._explain = explain
        self._rows: dict[tuple[str, str, bool], list[Row]] = {}
        self._rows_by_dtype: dict[tuple[str, str, str, bool], list[Row] | None] = {}
        self._aliases: list[tuple[Row, Row]] = []

    @property
    def nbytes(self) -> int:
        return sum(row.stop - row.start for rows in self._rows.values() for row in rows)

    def make(
        self, part: SavedPart, arrays: Iterable[tuple[str, str]], into: dict[str, Any]
    ) -> list[tuple[str, str]]:
        """Notes new arrays, given as (framework, name), that come into a mapping; returns those that are not small."""
        others: list[tuple[str, str]] = []
        entries = part.entries
        for framework, name in arrays:
            entry = entries.get(name)
            rows = None if entry is None else self._rows_for(entry, framework, live=False)
            if entry is None or rows is None:
                others.append((framework, name))
            else:
                start, stop = entry.chunks[0].bytes
                rows.append(Row(start, stop, entry, name, part, into))
        return others

    def fill(self, part: SavedPart, name: str, framework: str, live: Any) -> bool:
        """Notes a live array of the saved dtype and shape, contiguous; False if it is not small."""
        entry = part.entry(name)
        rows = self._rows_for(entry, framework, live=True)
        if rows is None:
            return False
        start, stop = entry.chunks[0].bytes
        rows.append(Row(start, stop, entry, name, part, live))
        return True

    def _rows_for(self, entry: ArrayEntry, framework: str, *, live: bool) -> list[Row] | None:
        """Where the row of an array belongs; None for one that is read by itself."""
        chunks = entry.chunks
        if len(chunks) != 1:
            return None
        [chunk] = chunks
        start, stop = chunk.bytes
        if not 0 < stop - start <= SMALL or not (chunk.shape is None or chunk.shape == entry.shape):
            return None
        key = (chunk.file, framework, entry.dtype, live)
        if key not in self._rows_by_dtype:
            known = entry.dtype in adapters.edge(framework).BATCHED
            self._rows_by_dtype[key] = (
                self._rows.setdefault((chunk.file, framework, live), []) if known else None
            )
        return self._rows_by_dtype[key]

    def sealed(self) -> list[Batch]:
        """What the reader takes. Arrays that were one (aliases) are made once."""
        batches = []
        for (file, framework, live), rows in self._rows.items():
            rows.sort(key=itemgetter(0, 1))
            batches.append(self._batch(file, framework, rows if live else self._distinct(rows), live=live))
        return batches

    def _distinct(self, rows: list[Row]) -> list[Row]:
        found: list[Row] = []
        made: dict[ArrayEntry, Row] = {}
        for row in rows:
            first = made.setdefault(row.entry, row)
            if first is row:
                found.append(row)
            else:
                self._aliases.append((first, row))
        return found

    def _batch(self, file: str, framework: str, rows: list[Row], *, live: bool) -> Batch:
        from holdfast.payload.reader import Batch

        edge = adapters.edge(framework)

        def place(first: int, last: int, data: Bytes, base: int) -> None:
            mine = rows[first:last]
            if live:
                edge.fill(data, base, mine)
                return
            try:
                made = edge.unpack(data, base, mine)
            except (MemoryError, RuntimeError, ValueError) as error:
                raise self._explain(mine[0], framework, error) from error
            for row, array in zip(mine, made, strict=True):
                row.into[row.name] = array

        def label(index: int) -> str:
            return f"{rows[index].part.name}/{rows[index].name}"

        return Batch(file, [row[0] for row in rows], [row[1] for row in rows], place, label)

    def finish(self) -> None:
        """Gives every alias the array that was made; call it once all bytes are there."""
        for first, row in self._aliases:
            row.into[row.name] = first.into[first.name]
