"""`holdfast show`: what a checkpoint is."""

from __future__ import annotations

import math
from typing import Any

import click

from holdfast.checkpoint import Checkpoint, open_checkpoint
from holdfast.cli import text
from holdfast.cli.options import command, json_option, print_json
from holdfast.errors import FormatError, HoldfastError
from holdfast.format import card, dtypes
from holdfast.format.manifest import CARD_FILE, CHECKPOINT_FILE, READ_LIMIT_CHECKPOINT
from holdfast.state.tree import WRONG_CONTENT
from holdfast.store.sources import source_of

_SHOWN = 20  # arrays
_RENDERED = 256 * 1024  # of a card; to lay out more takes too long


@command("show")
@click.argument("reference", metavar="REF")
@click.option("--arrays", "all_arrays", is_flag=True, help=f"List all arrays, not only the first {_SHOWN}.")
@json_option
def show_command(reference: str, all_arrays: bool, as_json: bool) -> None:
    """Show a checkpoint's card, its arrays and its files."""
    checkpoint = open_checkpoint(reference)
    arrays = _arrays(checkpoint)
    if as_json:
        print_json(_content(checkpoint, arrays))
        return
    _print_card(_card(checkpoint))
    click.echo()
    total = sum(array["bytes"] for array in arrays)
    click.echo(f"{text.plural(len(arrays), 'array')}, {text.size(total)}:")
    shown = arrays if all_arrays else arrays[:_SHOWN]
    rows = [
        [
            text.array_name(array["name"]),
            array["dtype"],
            "x".join(map(str, array["shape"])) or "scalar",
            f"{array['bytes']:,}",
        ]
        for array in shown
    ]
    for line in text.table(
        ["ARRAY", "DTYPE", "SHAPE", "BYTES"],
        rows,
        right=["SHAPE", "BYTES"],
        flexible={"ARRAY": 20, "DTYPE": 8},
    ):
        click.echo(line)
    if len(shown) < len(arrays):
        click.echo(f"… and {len(arrays) - len(shown):,} more: --arrays")
    click.echo()
    click.echo(f"{text.plural(len(checkpoint.manifest.files) + 1, 'file')} in {text.clean(checkpoint.path)}:")
    sizes = {CHECKPOINT_FILE: source_of(checkpoint.path).size(CHECKPOINT_FILE)}
    sizes.update((name, file.size) for name, file in checkpoint.manifest.files.items())
    files = [[name, f"{size:,}"] for name, size in sizes.items()]
    for line in text.table(["FILE", "BYTES"], files, right=["BYTES"], flexible={"FILE": 20}):
        click.echo(line)


def _card(checkpoint: Checkpoint) -> str:
    """README.md as it was saved; where that is damaged, the same made anew, and a warning."""
    if CARD_FILE not in checkpoint.manifest.files:
        return _new_card(checkpoint)
    try:
        return checkpoint._read_small(CARD_FILE, READ_LIMIT_CHECKPOINT).decode("utf-8", "replace")
    except HoldfastError as error:
        click.echo(f"holdfast: warning: {text.clean(str(error))}", err=True)
        return _new_card(checkpoint)


def _new_card(checkpoint: Checkpoint) -> str:
    try:
        return card.render(checkpoint.manifest)
    except WRONG_CONTENT as error:
        raise FormatError(
            f"{checkpoint.path}: its {CHECKPOINT_FILE} holds something else than the format says "
            f"({type(error).__name__}: {error}). Next: holdfast show --json, which shows it as it is.",
            path=checkpoint.path,
        ) from error


def _print_card(content: str) -> None:
    content = text.clean(content)
    if not text.on_terminal() or len(content) > _RENDERED:
        click.echo(content.rstrip("\n"))
        return
    from rich.console import Console
    from rich.markdown import Markdown

    Console(width=min(text.width(), 120)).print(Markdown(content, hyperlinks=False))


def _arrays(checkpoint: Checkpoint) -> list[dict[str, Any]]:
    return [
        {
            "name": f"{part_name}/{name}",
            "dtype": entry.dtype,
            "shape": list(entry.shape),
            "bytes": dtypes.item_size(entry.dtype) * math.prod(entry.shape),
            "files": sorted({chunk.file for chunk in entry.chunks}),
        }
        for part_name, part in checkpoint.arrays().parts.items()
        for name, entry in part.arrays.items()
    ]


def _content(checkpoint: Checkpoint, arrays: list[dict[str, Any]]) -> dict[str, Any]:
    import msgspec

    manifest = checkpoint.manifest
    plain = card.plain(msgspec.to_builtins(manifest, str_keys=True))
    return {
        "path": checkpoint.path,
        "size": checkpoint.total_bytes(),
        **{
            key: plain[key]
            for key in (
                "name", "run", "sequence", "created", "progress", "metrics", "best", "goal", "stopped", "nan",
                "note", "config", "declared", "fresh", "init", "loader", "parts", "environment", "files", "history",
            )
        },
        "arrays": arrays,
    }  # fmt: skip
