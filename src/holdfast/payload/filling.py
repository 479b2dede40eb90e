"""Copying arrays into blocks: large arrays are split, small ones gathered, floats looked at."""

from __future__ import annotations

import threading
from bisect import bisect_right
from typing import Literal

import numpy as np

from holdfast.errors import UsageError
from holdfast.format import dtypes
from holdfast.payload.array import Bytes, HostArray
from holdfast.payload.layout import Layout, PlannedFile, Segment

# Small enough to be in the second-level cache still when it is looked at after copying.
TILE = 256 * 1024

Turn = Literal["early", "late", "mixed"]
"""Whether a block holds no bytes of late arrays, nothing else, or both."""


class _Shared:
    """An array that several blocks need, opened by the first of them, dropped by the last."""

    __slots__ = ("left", "lock", "view")

    def __init__(self, uses: int) -> None:
        self.left = uses
        self.view: Bytes | None = None
        self.lock = threading.Lock()


class _Source:
    """A file, and those of its arrays that several blocks need."""

    __slots__ = ("plan", "shared")

    def __init__(self, plan: PlannedFile, block: int) -> None:
        self.plan = plan
        self.shared: dict[int, _Shared] = {}
        for index, (start, stop, array, *_) in enumerate(plan.segments):
            if not isinstance(array, HostArray):
                uses = (stop - 1) // block - start // block + 1
                if uses > 1:
                    self.shared[index] = _Shared(uses)


class Filling:
    """Fills the blocks of a layout, from several threads at once, each block once.

    Attributes:
        looks: whether floats are looked at while they are copied, and in the cache. Else `look` does it later,
            since somebody waits for the copy.

    """

    def __init__(self, layout: Layout, block: int) -> None:
        self.looks = True
        self._block = block
        self._sources = [_Source(plan, block) for plan in layout.files]
        self._found: set[tuple[int, int]] = set()  # (file, segment) that hold a NaN or an infinity

    def turns(self, file: int) -> list[Turn]:
        """For each block of a file, when its bytes may be copied."""
        source, block = self._sources[file], self._block
        count = -(-source.plan.size // block)
        late = [segment.late for segment in source.plan.segments]
        if not any(late) or all(late):
            return ["late" if any(late) else "early"] * count
        holds = {False: bytearray(count), True: bytearray(count)}
        for segment in source.plan.segments:
            first, last = segment.start // block, (segment.stop - 1) // block
            holds[segment.late][first : last + 1] = b"\1" * (last - first + 1)
        # Nothing changes a header: where late arrays are, it is copied with them, and no block is early for its sake.
        return [
            ("mixed" if late else "early") if early else "late"
            for early, late in zip(holds[False], holds[True], strict=True)
        ]

    def fill(self, file: int, number: int, target: Bytes, late: bool | None = None) -> None:
        """Copies the bytes of one block; its arrays' errors are raised as they are, with a note.

        With `late` only those of late arrays and of the header (True), or only the others (False).
        """
        source = self._sources[file]
        base = number * self._block
        end = min(base + self._block, source.plan.size)
        header = source.plan.header[base:end]
        if late is not False:
            target[: len(header)] = np.frombuffer(header, np.uint8)
        segments = source.plan.segments
        index = bisect_right(source.plan.stops, base)
        run: list[Bytes] = []
        first, length = index, 0
        while index < len(segments):
            start, stop, array, _, _, _, behind, _ = segment = segments[index]
            if start >= end:
                break
            if late is not None and behind is not late:
                if run:
                    self._gather(file, first, run, target, base)
                index += 1
                run, first, length = [], index, 0
                continue
            if stop - start < TILE and start >= base and stop <= end:
                try:
                    view = array.open()
                except BaseException as error:
                    _note(error, segment)
                    raise
                if len(view) != stop - start:
                    raise _resized(segment, view)
                run.append(view)
                length += stop - start
                index += 1
                if length >= TILE:
                    self._gather(file, first, run, target, base)
                    run, first, length = [], index, 0
                continue
            if run:
                self._gather(file, first, run, target, base)
            self._copy(file, index, target, base, end)
            index += 1
            run, first, length = [], index, 0
        if run:
            self._gather(file, first, run, target, base)

    def look(self, file: int, number: int, filled: Bytes) -> None:
        """Looks at the floats of a block that holds all its bytes."""
        plan, base = self._sources[file].plan, number * self._block
        end = min(base + self._block, plan.size)
        segments = plan.segments
        first = index = bisect_right(
            plan.stops, base
        )  # first: of small neighbours that were not looked at yet
        while index < len(segments) and segments[index].start < end:
            start, stop = segments[index].start, segments[index].stop
            small = stop - start < TILE and start >= base and stop <= end
            if not small or stop - segments[first].start > TILE:
                self._look_at_many(file, first, index, filled, base)
                first = index
            if not small:
                self._look_at_one(file, index, filled[max(start, base) - base : min(stop, end) - base])
                first = index + 1
            index += 1
        self._look_at_many(file, first, index, filled, base)

    def nonfinite(self) -> list[tuple[str, str]]:
        """Names of checked arrays with a NaN or an infinity, in the order of the files."""
        return [
            name
            for file, index in sorted(self._found)
            for name in self._sources[file].plan.segments[index].checked
        ]

    def release(self) -> None:
        """Lets go of arrays that a failed save has still open."""
        for source in self._sources:
            for shared in source.shared.values():
                shared.view = None

    # -- many small arrays ----------------------------------------------------------------------

    def _gather(self, file: int, first: int, run: list[Bytes], target: Bytes, base: int) -> None:
        """Copies whole neighbouring arrays in one call, then looks at them."""
        source = self._sources[file]
        segments = source.plan.segments
        last = first + len(run)
        offset = segments[first].start - base
        np.concatenate(run, out=target[offset : segments[last - 1].stop - base])
        if self.looks:
            self._look_at_many(file, first, last, target, base)

    def _look_at_many(self, file: int, first: int, last: int, target: Bytes, base: int) -> None:
        """Looks at small neighbours dtype by dtype."""
        segments = self._sources[file].plan.segments
        index = first
        while index < last:
            kind, begin = segments[index].watch, index
            while index < last and segments[index].watch is kind:
                index += 1
            if kind is None or finite(
                target[segments[begin].start - base : segments[index - 1].stop - base], kind
            ):
                continue
            for number in range(begin, index):
                if not finite(target[segments[number].start - base : segments[number].stop - base], kind):
                    self._found.add((file, number))

    # -- one large array ------------------------------------------------------------------------

    def _copy(self, file: int, index: int, target: Bytes, base: int, end: int) -> None:
        source = self._sources[file]
        segment = source.plan.segments[index]
        begin, stop = max(segment.start, base), min(segment.stop, end)
        shared = source.shared.get(index)
        view = self._open(segment, shared)
        piece, place = view[begin - segment.start : stop - segment.start], target[begin - base : stop - base]
        kind = segment.watch
        if kind is None or not self.looks or (file, index) in self._found:
            np.copyto(place, piece)
        else:
            for tile in range(0, len(piece), TILE):
                fresh = place[tile : tile + TILE]
                np.copyto(fresh, piece[tile : tile + TILE])
                if not finite(fresh, kind):
                    self._found.add((file, index))
                    np.copyto(place[tile:], piece[tile:])
                    break
        if shared is not None:
            with shared.lock:
                shared.left -= 1
                if not shared.left:
                    shared.view = None

    def _look_at_one(self, file: int, index: int, data: Bytes) -> None:
        kind = self._sources[file].plan.segments[index].watch
        if kind is None or (file, index) in self._found:
            return
        if not all(finite(data[tile : tile + TILE], kind) for tile in range(0, len(data), TILE)):
            self._found.add((file, index))

    def _open(self, segment: Segment, shared: _Shared | None) -> Bytes:
        try:
            if shared is None:
                view = segment.array.open()
            else:
                with shared.lock:
                    if shared.view is None:
                        shared.view = segment.array.open()
                    view = shared.view
        except BaseException as error:
            _note(error, segment)
            raise
        if view.dtype != np.uint8 or view.shape != (segment.stop - segment.start,):
            raise _resized(segment, view)
        return view


def finite(data: Bytes, kind: dtypes.NonFinite) -> bool:
    """Whether no element is NaN or infinite.

    Exponents of ones are the largest integers of either sign, so two maxima tell: exact, without
    scratch memory, and at the speed of the cache.

    Args:
        data: whole elements.
        kind: what `dtypes.nonfinite` says of their dtype.

    """
    signed = data.view(f"{kind.order}i{kind.width}")
    if kind.lowest:
        return bool(signed.min() > -(1 << (8 * kind.width - 1)))
    if kind.signed is not None and signed.max() >= kind.signed:
        return False
    return kind.unsigned is None or bool(data.view(f"{kind.order}u{kind.width}").max() < kind.unsigned)


def _note(error: BaseException, segment: Segment) -> None:
    error.add_note(f"while the array {segment.part}/{segment.name} was being copied")


def _resized(segment: Segment, view: Bytes) -> UsageError:
    return UsageError(
        f"The array {segment.part}/{segment.name} brought {view.dtype} {list(view.shape)} when it was copied; planned "
        f"were {segment.stop - segment.start:,} bytes in one dimension. It changed while it was being saved.",
        array=f"{segment.part}/{segment.name}",
        expected=segment.stop - segment.start,
        found=view.nbytes,
    )
