"""`holdfast verify`: every byte of a checkpoint, or of all checkpoints of a run."""

from __future__ import annotations

import os
from typing import Any

import click

from holdfast import mending, mirrored
from holdfast.checkpoint import Checkpoint, open_checkpoint
from holdfast.cli import text
from holdfast.cli.options import command, json_option, print_json
from holdfast.cli.progress import Progress, reading
from holdfast.errors import DamagedError, HoldfastError, NotFoundError, UsageError
from holdfast.objects import urls
from holdfast.store import book, catalog, sources
from holdfast.store.entry import Entry


@command("verify")
@click.argument("reference", metavar="REF|RUN")
@click.option(
    "--repair", is_flag=True, help="Take what is damaged in a run, or in a mirror of it, from the others."
)
@click.option(
    "--mirror", "mirrors", metavar="PLACE", multiple=True, help="A mirror, or the run, to repair from."
)
@json_option
@click.pass_context
def verify_command(
    ctx: click.Context, reference: str, repair: bool, mirrors: tuple[str, ...], as_json: bool
) -> None:
    """Read every byte of a checkpoint, or of all checkpoints of a run; name what is damaged.

    With --repair, the damaged blocks of a run's checkpoints are taken from the mirrors that it was last started
    with, or from PLACE, and it is read again. A mirror is repaired the same way: --mirror names its run. Ends with
    exit code 5 when anything is damaged in the end.
    """
    path = sources.absolute(reference)
    rows: list[dict[str, Any]] = []
    whole_run = catalog.is_run(path)
    if repair and whole_run and urls.is_url(path):
        mending.run_among(mirrors, path)  # before all of it is read
    if whole_run:
        entries = catalog.scan(path)
        with reading(
            _base(path), sum(entry.size for entry in entries), distant=urls.is_url(path)
        ) as progress:
            for entry in entries:
                row = _row(entry.path, entry.size, _look(entry, progress), foreign=entry.foreign)
                rows.append(row)
                if not as_json:
                    _print(rows[-1])
    else:
        checkpoint = open_checkpoint(reference)
        size = checkpoint.total_bytes()
        with reading(checkpoint.name, size, distant=urls.is_url(checkpoint.path)) as progress:
            rows.append(_row(checkpoint.path, size, checkpoint.verify(progress)))
        if not as_json:
            _print(rows[-1])
    bad = [row for row in rows if row["problems"] and row["status"] != "gone"]
    if repair:
        if not whole_run:
            raise UsageError(f"{path} is no run; --repair takes a run.", path=path)
        _repair(path, [row for row in bad if row["status"] == "damaged"], mirrors, quiet=as_json)
        bad = [row for row in bad if row["problems"]]
    if as_json:
        print_json({"damaged": len(bad), "checkpoints": [_json(row) for row in rows]})
    elif not rows:
        click.echo("No checkpoint yet: nothing to verify.")
    elif whole_run:
        total = sum(row["size"] for row in rows)
        click.echo(
            f"{text.plural(len(rows), 'checkpoint')}, {text.size(total)} read: "
            f"{f'{len(bad)} not whole' if bad else 'all whole'}"
        )
    if not as_json and not repair and any(row["status"] == "damaged" for row in bad):
        click.echo(f"Next: {_advice(path if whole_run else os.path.dirname(bad[0]['path']), mirrors)}")
    ctx.exit(_exit_code([problem for row in bad for problem in row["problems"]]))


def _advice(run: str, mirrors: tuple[str, ...]) -> str:
    """What to do about damage in a run, or in a checkpoint that lies in no run."""
    if not catalog.is_run(run):
        return "put a copy of it in its place, or use an older checkpoint."
    command = f"holdfast verify {run} --repair"
    try:
        known = [str(entry.get("url")) for entry in book.read_run(run).mirrors or ()]
    except HoldfastError:
        known = []
    # The run.json of a mirror is that of its run.
    if urls.is_url(run) or (not mirrors and os.path.realpath(run) in map(os.path.realpath, known)):
        return f"{command} --mirror RUN, where RUN is the directory of the run that it mirrors."
    if mirrors or known:
        given = "".join(f" --mirror {mirror}" for mirror in mirrors)
        return f"{command}{given}, which takes what is damaged from its mirrors."
    return f"{command} --mirror PLACE, where there is a copy of it; or use an older checkpoint."


def _base(path: str) -> str:
    return path.rstrip("/").rpartition("/")[2]


def _repair(run: str, rows: list[dict[str, Any]], mirrors: tuple[str, ...], *, quiet: bool) -> None:
    """Repairs the checkpoints of these rows, and reads them again."""
    if not rows:
        return

    def say(line: str) -> None:
        click.echo(f"holdfast: {text.clean(line)}", err=True)

    distant = urls.is_url(run)
    if distant:
        broken = {row["name"]: _files(row["problems"]) for row in rows}
        done = mending.repair_mirror(run, broken, mirrors, say)
    else:
        done = mirrored.repair_run(run, [row["name"] for row in rows], mirrors, say)
    entries = {entry.folder: entry for entry in catalog.scan(run)}
    for row in rows:
        result = done[row["name"]]
        if isinstance(result, HoldfastError):
            row["problems"].append(result)
            if not quiet:
                click.echo(f"not repaired: {text.clean(row['name'])}: {text.clean(_said(result))}")
            continue
        entry = entries[row["name"]]
        problems = _look(entry, lambda _: None)
        row.update(_row(entry.path, entry.size, problems, foreign=entry.foreign), repaired=result.files)
        if not quiet:
            click.echo(
                f"repaired {text.clean(row['name'])}: {', '.join(map(text.clean, result.files))}; "
                f"{text.size(result.fetched)} {'sent' if distant else 'fetched'}"
            )


def _files(problems: list[HoldfastError]) -> set[str]:
    """The files that problems are about; none where some problem is about more than a file."""
    files = [problem.facts.get("file") for problem in problems]
    return {file for file in files if file} if all(files) else set()


def _said(problem: HoldfastError) -> str:
    """What a problem says, without the advice to do what was just done."""
    message = str(problem)
    for advice in (" Next: holdfast verify", " Next: `holdfast verify"):
        message = message.partition(advice)[0]
    return message


def _look(entry: Entry, progress: Progress) -> list[HoldfastError]:
    problems = [] if entry.problem is None else [entry.problem]
    if entry.summary is None:
        return problems
    try:
        return problems + Checkpoint(entry.path, summary=entry.summary).verify(progress)
    except HoldfastError as error:
        return [*problems, error]


def _row(path: str, size: int, problems: list[HoldfastError], *, foreign: bool = False) -> dict[str, Any]:
    status = "whole"
    if problems:
        gone = not (catalog.is_checkpoint(path) if urls.is_url(path) else os.path.lexists(path))
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
        click.echo(f"         {text.clean(_said(problem))}")


def _json(row: dict[str, Any]) -> dict[str, Any]:
    problems = [
        {
            "error": type(problem).__name__,
            "message": _said(problem),
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
