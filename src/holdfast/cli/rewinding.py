"""`holdfast rewind`: continue from an older checkpoint."""

from __future__ import annotations

import dataclasses

import click

from holdfast import rewinding
from holdfast.cli import text
from holdfast.cli.options import command, json_option, print_json
from holdfast.cli.progress import reading
from holdfast.store import catalog, sources


@command("rewind")
@click.argument("run", metavar="RUN")
@click.argument("reference", metavar="REF")
@click.option(
    "--wait", type=click.FloatRange(min=0), default=0.0, metavar="SECONDS", help="Wait for a living writer."
)
@json_option
def rewind_command(run: str, reference: str, wait: float, as_json: bool) -> None:
    """Let a run continue from an older checkpoint, such as @epoch=3 or @-2.

    All newer ones are marked abandoned, none is deleted: to undo it, rewind to a newer one, or
    delete the marks in RUN/abandoned. `holdfast prune` deletes what is abandoned.
    """
    place = sources.local(run, "holdfast rewind")
    total = 0
    if catalog.is_run(place):
        total = rewinding.find_in(place, catalog.scan(place), reference).size
    with reading("checking", total) as progress:
        done = rewinding.rewind(place, reference, wait=wait, progress=progress)
    if as_json:
        print_json(dataclasses.asdict(done))
        return
    for name in done.abandoned:
        click.echo(f"abandoned  {name}")
    if done.revived:
        click.echo(f"revived    {done.target}")
    if done.goal_cleared:
        click.echo("The run was complete; its goal counts as not reached.")
    click.echo(f"The next launch resumes from {done.target}.")
    if done.abandoned:
        click.echo(
            f"Back to the newest: holdfast rewind {text.clean(run)} @seq={int(done.abandoned[-1].partition('_')[0])}"
        )
