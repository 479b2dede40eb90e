"""`holdfast import` and `holdfast export`: other formats."""

from __future__ import annotations

import click

from holdfast.cli.options import command


@command("import")
@click.argument("source", metavar="SOURCE")
@click.argument("run", metavar="RUN")
@click.option("--trust", is_flag=True, help="Allow a source that runs code when it is opened (a pickle).")
@click.option(
    "--epoch", type=click.IntRange(min=0), help="How many epochs were completed, where SOURCE does not say."
)
def import_command(source: str, run: str, trust: bool, epoch: int | None) -> None:
    """Turn a checkpoint of another format into the first one of a new run.

    SOURCE is a file of torch, safetensors or Keras, or the prefix of a TensorFlow checkpoint.

    A file that would run code when it is opened is refused without --trust.
    """
    from holdfast.exchange import import_file

    import_file(source, run, trust=trust, epoch=epoch)  # says itself what it made of it


@command("export")
@click.argument("reference", metavar="REF")
@click.argument("target", metavar="TARGET")
@click.option("--part", metavar="NAME", help="Write this part alone, such as model.")
@click.option("--overwrite", is_flag=True, help="Replace a file that is already there.")
@click.option(
    "--like", metavar="MODEL.keras", help="For Keras' files: a file of a model of the same structure."
)
def export_command(reference: str, target: str, part: str | None, overwrite: bool, like: str | None) -> None:
    """Write a checkpoint as one file: *.pth (.pt, .ckpt, .bin), *.safetensors, *.weights.h5 or *.keras."""
    from holdfast.exchange import export_file

    export_file(reference, target, part=part, overwrite=overwrite, like=like)  # says itself what it wrote
