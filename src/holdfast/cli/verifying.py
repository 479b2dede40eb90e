"""`holdfast verify`: every byte of a checkpoint, or of all checkpoints of a run."""

from __future__ import annotations

import os
from typing import Any

import click

from holdfast import mirrored
from holdfast.checkpoint import Checkpoint, open_checkpoint
from holdfast.cli import text
from holdfast.cli.options import command, json_option, print_json
from holdfast.cli.progress import Progress, reading
from holdfast.errors import DamagedError, HoldfastError, NotFoundError, UsageError
from holdfast.store import catalog
from holdfast.store.entry import Entry


@command("verify")
@click.argument("reference", metavar="REF|RUN")
@click.option("--repair", is_flag=True, help="Take what is damaged in a run from its mirrors.")
@click.option("--mirror", "mirrors", metavar="DIR", multiple=True, help="A mirror to repair from.")
@json_option
@click.pass_context
def verify_command(
    ctx: click.Context, reference: str, repair: bool, mirrors: tuple[str, ...], as_json: bool
) -> None:
    """Read every byte of a checkpoint, or of all checkpoints of a run; name what is damaged.

    With --repair, the damaged blocks of a run's checkpoints are taken from the mirrors that it was last started
    with, or from DIR, and it is read again. Ends with exit code 5 when anything is damaged in the end.
    """
    path = os.path.abspath(os.path.expanduser(reference))
    rows: list[dict[str, Any]] = []
    if catalog.is_run(path):
        entries = catalog.scan(path)
        with reading(os.path.basename(path), sum(entry.size for entry in entries)) as progress:
            for entry in entries:
                row = _row(entry.path, entry.size, _look(entry, progress), foreign=entry.foreign)
                rows.append(row)
                if not as_json:
                    _print(rows[-1])
    else:
        checkpoint = open_checkpoint(reference)
        with reading(checkpoint.name, checkpoint.total_bytes()) as progress:
            rows.append(_row(checkpoint.path, checkpoint.total_bytes(), checkpoint.verify(progress)))
        if not as_json:
            _print(rows[-1])
    bad = [row for row in rows if row["problems"] and row["status"] != "gone"]
    if repair:
        if not catalog.is_run(path):
            raise UsageError(f"{path} is no run; --repair takes a run.", path=path)
        _repair(path, [row for row in bad if row["status"] == "damaged"], mirrors, quiet=as_json)
        bad = [row for row in bad if row["problems"]]
    if as_json:
        print_json({"damaged": len(bad), "checkpoints": [_json(row) for row in rows]})
    elif not rows:
        click.echo("No checkpoint yet: nothing to verify.")
    elif catalog.is_run(path):
        total = sum(row["size"] for row in rows)
        click.echo(
            f"{text.plural(len(rows), 'checkpoint')}, {text.size(total)} read: "
            f"{f'{len(bad)} not whole' if bad else 'all whole'}"
        )
    ctx.exit(_exit_code([problem for row in bad for problem in row["problems"]]))


def _repair(run: str, rows: list[dict[str, Any]], mirrors: tuple[str, ...], *, quiet: bool) -> None:
    """Repairs the checkpoints of these rows, and reads them again."""
    if not rows:
        return

    def say(line: str) -> None:
        click.echo(f"holdfast: {text.clean(line)}", err=True)

    done = mirrored.repair_run(run, [row["name"] for row in rows], mirrors, say)
    entries = {entry.folder: entry for entry in catalog.scan(run)}
    for row in rows:
        result = done[row["name"]]
        if isinstance(result, HoldfastError):
            row["problems"].append(result)
            if not quiet:
                click.echo(f"not repaired: {text.clean(row['name'])}: {text.clean(str(result))}")
            continue
        entry = entries[row["name"]]
        problems = _look(entry, lambda _: None)
        row.update(_row(entry.path, entry.size, problems, foreign=entry.foreign), repaired=result.files)
        if not quiet:
            click.echo(
                f"repaired {text.clean(row['name'])}: {', '.join(map(text.clean, result.files))}; "
                f"{text.size(result.fetched)} fetched"
            )


def _look(entry: Entry, progress: Progress) -> list[HoldfastError]:
    problems = [] if entry.problem is None else [entry.problem]
    if entry.summary is None:
        return problems
    try:
        return problems + Checkpoint(entry.path).verify(progress)
    except HoldfastError as error:
        return [*problems, error]


def _row(path: str, size: int, problems: list[HoldfastError], *, foreign: bool = False) -> dict[str, Any]:
    status = "whole"
    if problems:
        gone = not os.path.lexists(path)
        damaged = any(isinstance(problem, (DamagedError, NotFoundError)) for problem in problems)
        status = "gone" if gone else "damaged" if damaged else "foreign" if foreign else "unread"
    return {
        "name": os.path.basename(path),
        "path": path,
        "size": size,
        "status": status,
        "problems": problems,
    }


def _print(row: dict[str, Any]) -> None:
    click.echo(f"{row['status']:8} {text.clean(row['name'])}  {text.size(row['size'])}")
    if row["status"] == "gone":
        click.echo("         deleted while it was being read, which is no damage")
        return
    for problem in row["problems"]:
        click.echo(f"         {text.clean(str(problem))}")


def _json(row: dict[str, Any]) -> dict[str, Any]:
    problems = [
        {
            "error": type(problem).__name__,
            "message": str(problem),
            "file": problem.facts.get("file"),
            "block": problem.facts.get("block"),
            "arrays": problem.facts.get("arrays", []),
        }
        for problem in row["problems"]
    ]
    return {**row, "problems": problems}


def _exit_code(problems: list[HoldfastError]) -> int:
    if not problems:
        return 0
    if any(isinstance(problem, (DamagedError, NotFoundError)) for problem in problems):
        return DamagedError.exit_code
    return problems[0].exit_code
