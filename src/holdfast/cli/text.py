"""Text for people: sizes, ages, tables that fit the width, and nothing that steers a terminal."""

from __future__ import annotations

import datetime
import re
import shutil
import sys
from collections.abc import Iterable, Mapping, Sequence

_CONTROL = re.compile(
    r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]"
)
GAP = "  "


def clean(text: str) -> str:
    """Text without control characters: a checkpoint's names and notes come from anybody."""
    return _CONTROL.sub("\ufffd", text)


def line_of(text: str) -> str:
    """`clean`, and on one line."""
    if text.isprintable() and "  " not in text:  # so it is nearly always
        return text.strip()
    return " ".join(clean(text).split())


def width() -> int:
    """Columns of the terminal (or of COLUMNS); 80 when there is none."""
    return shutil.get_terminal_size((80, 24)).columns


def on_terminal() -> bool:
    return sys.stdout.isatty()


def size(count: float) -> str:
    """Bytes in three digits: ``130 kB``, ``1.54 GB``."""
    value = float(count)
    if value < 1000:
        return f"{value:.0f} B"
    for unit in ("kB", "MB", "GB", "TB"):
        value /= 1000
        if value < 999.5 or unit == "TB":
            break
    return f"{value:.0f} {unit}" if value >= 99.5 else f"{value:.3g} {unit}"


def plural(count: int, word: str, many: str = "") -> str:
    """``1 array``, ``9 arrays``."""
    return f"{count:,} {word if count == 1 else many or f'{word}s'}"


def age(when: datetime.datetime, now: datetime.datetime) -> str:
    """How long ago, in one unit: ``40s``, ``5m``, ``3h``, ``12d``."""
    passed = max(0.0, (now - when).total_seconds())
    for limit, unit, length in ((60, "s", 1), (3600, "m", 60), (48 * 3600, "h", 3600)):
        if passed < limit:
            return f"{int(passed / length)}{unit}"
    return f"{int(passed / 86400)}d"


def shorten(text: str, limit: int) -> str:
    """At most `limit` characters; what is cut off the end is an ellipsis."""
    return text if len(text) <= limit else text[: max(0, limit - 1)].rstrip(" ,") + "…"


def shorten_middle(text: str, limit: int) -> str:
    """At most `limit` characters; beginning and end are kept, as names of arrays need both."""
    if len(text) <= limit:
        return text
    head = (limit - 1) // 2
    return f"{text[:head]}…{text[len(text) - (limit - 1 - head) :]}"


def table(
    columns: Sequence[str],
    rows: Iterable[Sequence[str]],
    *,
    right: Iterable[str] = (),
    flexible: Mapping[str, int] | None = None,
    limit: int | None = None,
) -> list[str]:
    """Lines of a table: a header, then one line for each row, no wider than the limit if it can be.

    Args:
        columns: their titles.
        rows: cells, already short; `clean` is applied.
        right: columns that are aligned to the right.
        flexible: column → least width; these give way, in this order, when the table is too wide.
            The last column is cut at its end, others in the middle.
        limit: columns of the terminal; by default `width()`.

    """
    # By columns, in which much is the same: a run may have very many checkpoints. Titles are names of metrics, too.
    cells = [_lines_of(column) for column in zip(columns, *rows, strict=True)]
    wide = [max(map(len, column)) for column in cells]
    surplus = sum(wide) + len(GAP) * (len(columns) - 1) - (limit or width())
    for name, least in (flexible or {}).items():
        place = columns.index(name)
        cut = max(0, min(surplus, wide[place] - max(least, len(name))))
        wide[place] -= cut
        surplus -= cut
    rightward = set(right)
    for place, name in enumerate(columns):
        column, room = cells[place], wide[place]
        if max(map(len, column)) > room:
            fit = shorten if place == len(columns) - 1 else shorten_middle
            column = [fit(cell, room) for cell in column]
        align = str.rjust if name in rightward else str.ljust
        cells[place] = [align(cell, room) for cell in column]
    return [GAP.join(row).rstrip() for row in zip(*cells, strict=True)]


def widths(columns: Sequence[str], cells: Iterable[Sequence[str]]) -> list[int]:
    """What each column of a table needs, its title included, before it gives way."""
    return [max(map(len, _lines_of([name, *column]))) for name, column in zip(columns, cells, strict=True)]


def _lines_of(texts: Iterable[str]) -> list[str]:
    texts = list(texts)
    together = "".join(texts)
    if together.isprintable() and " " not in together:
        return texts
    shown = {text: line_of(text) for text in set(texts)}
    return [shown[text] for text in texts]


def array_name(label: str) -> str:
    """``part/name`` for people: the names in nested values begin with a slash of their own."""
    return label.replace("//", "/", 1)
