"""`holdfast import` and `holdfast export`: other formats."""

from __future__ import annotations

import click

from holdfast.cli.options import command


@command("import")
@click.argument("source", metavar="SOURCE")
@click.argument("run", metavar="RUN")
@click.option("--trust", is_flag=True, help="Allow a source that runs code when it is opened (a pickle).")
def import_command(source: str, run: str, trust: bool) -> None:
    """Turn a checkpoint of another format into the first one of a new run.

    A file that would run code when it is opened is refused without --trust.
    """
    from holdfast.exchange import import_file

    import_file(source, run, trust=trust)  # says itself what it made of it


@command("export")
@click.argument("reference", metavar="REF")
@click.argument("target", metavar="TARGET")
@click.option("--part", metavar="NAME", help="Write this part alone, such as model.")
@click.option("--overwrite", is_flag=True, help="Replace a file that is already there.")
def export_command(reference: str, target: str, part: str | None, overwrite: bool) -> None:
    """Write a checkpoint as one file: *.pth (.pt, .ckpt, .bin) or *.safetensors."""
    from holdfast.exchange import export_file

    export_file(reference, target, part=part, overwrite=overwrite)  # says itself what it wrote
