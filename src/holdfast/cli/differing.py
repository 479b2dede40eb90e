"""`holdfast diff`: two checkpoints compared bit by bit."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import click

from holdfast.checkpoint import open_checkpoint
from holdfast.cli import text
from holdfast.cli.options import command, json_option, print_json
from holdfast.cli.progress import reading
from holdfast.comparison import ABSENT, ArrayDifference, Comparison, ValueDifference, bytes_to_read, compare
from holdfast.format import card
from holdfast.objects import urls

_SHOWN = 20  # of each kind
# They differ between any two checkpoints, so a person is not told.
_EXPECTED = ("name", "run", "sequence", "created", "environment/pid", "environment/git/dirty")
_VALUE = 28  # columns for a value


@command("diff")
@click.argument("left", metavar="REF_A")
@click.argument("right", metavar="REF_B")
@click.option(
    "--exit-code", is_flag=True, help="End with 1 when the states differ, with 0 when they are equal."
)
@click.option("--all", "everything", is_flag=True, help=f"List all differences, not only {_SHOWN} of a kind.")
@json_option
@click.pass_context
def diff_command(
    ctx: click.Context, left: str, right: str, exit_code: bool, everything: bool, as_json: bool
) -> None:
    """Compare two checkpoints bit by bit: arrays, plain values, random streams, progress.

    Time, host, run, command, config and metrics are metadata: they are shown and do not count.
    """
    a, b = open_checkpoint(left), open_checkpoint(right)
    distant = urls.is_url(a.path) or urls.is_url(b.path)
    with reading("diff", bytes_to_read(a, b), distant=distant) as progress:
        found = compare(a, b, progress)
    if as_json:
        print_json(_content(found))
    else:
        for side, checkpoint in (("A", a), ("B", b)):
            at = checkpoint.progress
            into = f", {text.plural(at.batch, 'batch', 'batches')} into the next epoch" if at.batch else ""
            click.echo(f"{side}  {text.clean(checkpoint.path)}")
            click.echo(f"   epoch {at.epoch}, step {at.step:,}{into}")
        limit = None if everything else _SHOWN
        _print_state(found, limit)
        _print_metadata(found, limit)
    ctx.exit(1 if exit_code and not found.equal else 0)


def _print_state(found: Comparison, limit: int | None) -> None:
    compared = f"{text.plural(found.arrays, 'array')} ({found.bytes:,} bytes) and {text.plural(found.values, 'value')}"
    click.echo()
    if found.equal:
        names = ["random streams" if part == "random" else part for part in found.parts]
        click.echo(f"Equal, bit for bit: {compared}")
        click.echo(f"of {', '.join(names)} and progress.")
        return
    click.echo(
        f"DIFFERENT: {len(found.array_differences):,} of {text.plural(found.arrays, 'array')} and "
        f"{len(found.value_differences):,} of {text.plural(found.values, 'value')}"
        f"{_only(found)}."
    )
    print_differences(found, [], ("A", "B"), limit, more=": --all")


def print_differences(
    found: Comparison,
    records: list[ValueDifference],
    sides: tuple[str, str],
    limit: int | None,
    more: str = "",
) -> None:
    """Tables of what differs: arrays, names that one side lacks, plain values and other records."""
    if found.array_differences:
        click.echo()
        rows = [_array_row(difference) for difference in found.array_differences[:limit]]
        columns = ["ARRAY", "ELEMENTS THAT DIFFER", "MAX ABS", "MAX REL"]
        for line in text.table(columns, rows, right=columns[1:], flexible={"ARRAY": 20}):
            click.echo(line)
        _more(len(found.array_differences), limit, more)
    for side, names in ((sides[0], found.only_left), (sides[1], found.only_right)):
        if names:
            click.echo(f"\nOnly in {side}:")
            for name in names[:limit]:
                click.echo(f"  {text.clean(text.array_name(name))}")
            _more(len(names), limit, more)
    values = [*found.value_differences, *records]
    if values:
        click.echo()
        _print_values("VALUE", values, limit, sides, more)


def _only(found: Comparison) -> str:
    count = len(found.only_left) + len(found.only_right)
    return f"; {text.plural(count, 'name')} only on one side" if count else ""


def _array_row(difference: ArrayDifference) -> list[str]:
    name = text.array_name(difference.name)
    if difference.differing is None:
        return [name, f"{difference.left} → {difference.right}", "", ""]
    differing = f"{difference.differing:,} of {difference.elements:,}"
    if difference.nonfinite:
        differing += f" ({difference.nonfinite:,} NaN or inf)"
    return [name, differing, _figure(difference.max_abs), _figure(difference.max_rel)]


def _figure(value: float | None) -> str:
    return "" if value is None else f"{value:.3g}"


def _print_metadata(found: Comparison, limit: int | None) -> None:
    told = [difference for difference in found.metadata if difference.name not in _EXPECTED]
    if told:
        click.echo("\nMetadata that differs (it does not count):")
        _print_values("METADATA", told, limit, ("A", "B"), ": --all")


def _print_values(
    title: str, differences: list[ValueDifference], limit: int | None, sides: tuple[str, str], more: str
) -> None:
    rows = [
        [difference.name, *_pair(difference.left, difference.right)] for difference in differences[:limit]
    ]
    one, other = (side.upper() for side in sides)
    for line in text.table([title, one, other], rows, flexible={title: 20, one: 12, other: 12}):
        click.echo(line)
    _more(len(differences), limit, more)


def _more(count: int, limit: int | None, more: str) -> None:
    if limit is not None and count > limit:
        click.echo(f"… and {count - limit:,} more{more}")


def _pair(left: Any, right: Any) -> tuple[str, str]:
    """Both values, each in one short line; of long ones the place where they part."""
    one, other = _line(left), _line(right)
    if max(len(one), len(other)) <= _VALUE:
        return one, other
    letters = enumerate(zip(one, other, strict=False))
    start = next((i for i, (x, y) in letters if x != y), min(len(one), len(other)))
    start = 0 if start < _VALUE // 2 else start - 6
    return _window(one, start), _window(other, start)


def _line(value: Any) -> str:
    if value is ABSENT:
        return "(absent)"
    plain = card.plain(value)
    return text.line_of(plain if isinstance(plain, str) else json.dumps(plain, default=str))


def _window(line: str, start: int) -> str:
    count = f" ({len(line):,} characters)" if len(line) > 200 else ""
    shown = f"{'…' if start else ''}{line[start:]}"
    return text.shorten(shown, _VALUE - len(count)) + count


def values_content(differences: list[ValueDifference]) -> list[dict[str, Any]]:
    """Differing values for JSON; a side that lacks the value lacks the key."""
    return [
        {
            "name": difference.name,
            **({} if difference.left is ABSENT else {"left": card.plain(difference.left)}),
            **({} if difference.right is ABSENT else {"right": card.plain(difference.right)}),
        }
        for difference in differences
    ]


def _content(found: Comparison) -> dict[str, Any]:
    return {
        "equal": found.equal,
        "left": found.left,
        "right": found.right,
        "parts": found.parts,
        "arrays": found.arrays,
        "bytes": found.bytes,
        "values": found.values,
        "array_differences": [dataclasses.asdict(difference) for difference in found.array_differences],
        "value_differences": values_content(found.value_differences),
        "only_left": found.only_left,
        "only_right": found.only_right,
        "metadata": values_content(found.metadata),
    }
