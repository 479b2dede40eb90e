"""`holdfast pin` and `holdfast unpin`."""

from __future__ import annotations

import click

from holdfast.checkpoint import open_checkpoint
from holdfast.cli import text
from holdfast.cli.options import command


@command("pin")
@click.argument("reference", metavar="REF")
def pin_command(reference: str) -> None:
    """Keep a checkpoint whatever the policy says. A training may be running."""
    checkpoint = open_checkpoint(reference)
    checkpoint.pin()
    click.echo(f"pinned {text.clean(checkpoint.path)}")


@command("unpin")
@click.argument("reference", metavar="REF")
def unpin_command(reference: str) -> None:
    """Hand a pinned checkpoint back to the policy; the next save or prune may delete it."""
    checkpoint = open_checkpoint(reference)
    checkpoint.unpin()
    click.echo(f"unpinned {text.clean(checkpoint.path)}")
