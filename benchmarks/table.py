"""Measurements as tables: ratios first, absolute figures beside them; then what was aimed at."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.topic import Column, Row, Rows, Target, Topic


def seconds(value: float) -> str:
    return f"{value * 1000:.0f} ms" if value < 1 else f"{value:.2f} s"


def megabytes(value: float) -> str:
    if abs(value) < 100e3:
        return f"{value / 1e3:,.0f} kB"
    return f"{value / 1e6:,.0f} MB" if abs(value) >= 10e6 else f"{value / 1e6:.1f} MB"


def spread(row: Row, _: Rows) -> str:
    """The median and the least and most; instead of it why there is none."""
    if row.seconds is None:
        return row.failure or "not possible here"
    if len(row.times) == 1:
        return seconds(row.seconds)
    return f"{seconds(row.seconds)} ({seconds(min(row.times))} to {seconds(max(row.times))})"


def _times(row: Row, other: float | None) -> str:
    return f"{row.seconds / other:.2f}x" if row.seconds is not None and other else ""


TIMES = (
    Column("against the limit", lambda row, rows: _times(row, rows.limit)),
    Column("against Holdfast", lambda row, rows: _times(row, rows.ours)),
    Column("median (least to most)", spread),
    Column(
        "rate",
        lambda row, _: f"{row.nbytes / row.seconds / 1e9:.2f} GB/s" if row.nbytes and row.seconds else "",
    ),
    Column("extra memory", lambda row, _: megabytes(row.extra) if row.extra is not None else ""),
)


def lines(topic: Topic, rows: Rows) -> list[tuple[str, ...]]:
    """A topic's lines of a table: its title, then one for each row."""
    columns = topic.columns or TIMES
    title = (f"**{topic.title}**", *("" for _ in columns))
    return [title, *((row.label, *(column.show(row, rows) for column in columns)) for row in rows)]


def tables(measured: Sequence[tuple[Topic, Rows]]) -> str:
    """All topics; those with the same columns stand in one table, at the place of its first."""
    groups: dict[tuple[Column, ...], list[tuple[str, ...]]] = {}
    notes: dict[tuple[Column, ...], list[str]] = {}
    for topic, rows in measured:
        if topic.hidden:
            continue
        columns = topic.columns or TIMES
        groups.setdefault(columns, []).extend(lines(topic, rows))
        notes.setdefault(columns, []).extend(f"- {topic.key}: {note}" for note in topic.notes)
    texts = []
    for columns, group in groups.items():
        texts.append(markdown(("", *(column.heading for column in columns)), group))
        if notes[columns]:
            texts.append("\n".join(notes[columns]))
    return "\n\n".join(texts)


def markdown(header: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    """A Markdown table that also reads well as plain text; all but the first column to the right."""
    everything = [header, *rows]
    widths = [max(3, *(len(line[column]) for line in everything)) for column in range(len(header))]

    def show(line: Sequence[str]) -> str:
        cells = [line[0].ljust(widths[0])]
        cells += [cell.rjust(width) for cell, width in zip(line[1:], widths[1:], strict=True)]
        return f"| {' | '.join(cells)} |"

    rule = (
        f"| :{'-' * (widths[0] - 1)} | " + " | ".join(f"{'-' * (width - 1)}:" for width in widths[1:]) + " |"
    )
    return "\n".join([show(header), rule, *map(show, rows)])


def targets(measured: Sequence[tuple[Topic, Rows]]) -> str:
    """What is aimed at, what was found, and whether it is met; nothing when no topic has targets."""
    found = []
    for topic, rows in measured:
        for target in topic.targets:
            value = target.value(rows)
            if value is None:
                found.append((f"{topic.key}: {target.text}", "not measured", "-"))
            else:
                verdict = "yes" if target.met(value) else "**no**"
                found.append((f"{topic.key}: {target.text}", _told(value, target), verdict))
    return markdown(("target", "found", "met"), found) if found else ""


def _told(value: float, target: Target) -> str:
    if target.unit == "MB":
        return megabytes(value)
    if target.unit == "s":
        return seconds(value)
    if target.unit == "%":
        return f"{value:.1f} %"
    return f"{value:.2f}x" if target.unit == "x" else f"{value:g}"
