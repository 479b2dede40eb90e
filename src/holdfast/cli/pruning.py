"""`holdfast prune`: what would be deleted and why; with --yes it is."""

from __future__ import annotations

import dataclasses
import errno
import gc
import os
import shlex
from collections.abc import Mapping, Sequence
from typing import Any

import click

from holdfast import doctor, files
from holdfast.cli import text
from holdfast.cli.options import command, json_option, print_json
from holdfast.errors import NotFoundError, StorageError, UsageError
from holdfast.log import logger
from holdfast.mirrors import arrivals
from holdfast.policy.keep import Keep, Verdict
from holdfast.session import Session
from holdfast.store import book, catalog, retention, sources
from holdfast.store.catalog import ABANDONED, PINS
from holdfast.store.entry import Entry
from holdfast.store.holder import judge, myself
from holdfast.store.lease import holder_of
from holdfast.store.watch import writing_number


@command("prune")
@click.argument("run", metavar="RUN")
@click.option("--keep-last", metavar="N|all", help="Keep the newest N clean checkpoints.")
@click.option("--best", type=click.IntRange(min=1), metavar="N", help="Keep the best N by --metric.")
@click.option("--metric", metavar="NAME", help="The logged value that tells what is better.")
@click.option(
    "--mode", type=click.Choice(["min", "max"]), help="Whether a lower or a higher metric is better."
)
@click.option(
    "--every-epochs", type=click.IntRange(min=1), metavar="N", help="Keep each N-th epoch's end, too."
)
@click.option("--budget", metavar="SIZE", help="Bytes that all together may take, such as '200 GB'.")
@click.option("--yes", is_flag=True, help="Delete it. Without this, nothing is changed.")
@json_option
def prune_command(run: str, yes: bool, as_json: bool, **given: Any) -> None:
    """Say what would be deleted and why; --yes deletes it.

    The policy is the run's own Keep; each option replaces that part of it. Checkpoints that a
    rewind abandoned go as well. The newest clean, the best and the pinned ones always stay.
    """
    gc.disable()  # as in `holdfast ls`: nothing that is made here is garbage before the end
    place = sources.local(run, "holdfast prune")
    if not catalog.is_run(place):
        raise NotFoundError(f"{place} is not a run: it has no {book.RUN_FILE}.", path=place, candidates=[])
    keep = _policy(catalog.run_keep(place) or Keep(), given)
    if yes:
        entries = catalog.scan(place)
        debris = debris_in(place, entries)
        try:
            session = Session.open(place, wait=0, say=logger.info)
        except StorageError as error:
            raise _explained(error, place, retention.verdicts(keep, entries, prune=True)) from error
        try:
            # What dead writers left was swept when the lease was taken; this removes the rest.
            verdicts = retention.verdicts(keep, session.entries, prune=True)
            deleted = _delete(session, verdicts, keep, debris)
        finally:
            session.close()
    else:
        entries = catalog.scan(place)
        debris, deleted = debris_in(place, entries), None
        verdicts = retention.verdicts(keep, entries, prune=True)
    _report(place, verdicts, debris, deleted, as_json=as_json)


def _explained(error: StorageError, run: str, verdicts: Sequence[Verdict]) -> StorageError:
    """On a disk without room for a lease, what can be deleted without one: a folder, by hand."""
    first = next((verdict.record.name for verdict in verdicts if not verdict.kept), None)
    if error.errno not in (errno.ENOSPC, errno.EDQUOT) or first is None:
        return error
    return StorageError(
        f"{error.message} There is not even room for a lease. Next: if nothing is writing the run, "
        f"rm -r {shlex.quote(os.path.join(run, first))} (it would go anyway), then the same command again.",
        **error.facts,
    )


def _policy(own: Keep, given: Mapping[str, Any]) -> Keep:
    changes: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    last = changes.pop("keep_last", None)
    if last is not None:
        if last != "all" and not (last.isdecimal() and int(last) > 0):
            raise UsageError(f"--keep-last {last}: expected a positive whole number, or all.", found=last)
        changes["last"] = None if last == "all" else int(last)
    if "metric" in changes and "mode" not in changes and changes["metric"] != own.metric:
        raise UsageError(
            f"--metric {changes['metric']}: add --mode min or --mode max.", found=changes["metric"]
        )
    return dataclasses.replace(own, **changes)


# -- what goes ---------------------------------------------------------------------------------


def debris_in(run: str, entries: Sequence[Entry]) -> list[str]:
    """Paths of what ended processes left: unfinished saves, test files, marks of what is gone."""
    names = {entry.folder for entry in entries}
    with files.translated(run, "list"):
        listing = sorted(os.listdir(run))
    active = _active_generation(run)
    found = [
        os.path.join(run, name)
        for name in listing
        if name.startswith(doctor.TEST_FILE)
        or (0 < writing_number(name) != active)
        or (0 < arrivals.number(name) != active)
    ]
    for kind in (PINS, ABANDONED):
        found += [os.path.join(run, kind, name) for name in sorted(catalog.marks(run, kind) - names)]
    return found


def _active_generation(run: str) -> int:
    """The generation whose holder may still be writing; 0 when none is."""
    holder = holder_of(run)
    if holder is None or judge(holder, myself(holder.generation), ()) in ("released", "dead"):
        return 0
    return holder.generation


def _delete(session: Session, verdicts: Sequence[Verdict], keep: Keep, debris: Sequence[str]) -> list[str]:
    deleted = []
    for verdict in verdicts:
        name = verdict.record.name
        if verdict.kept:
            continue
        session.lease.check()
        if retention.delete(session.path, name, session.writing):
            deleted.append(name)
            book.note_event(session.path, "delete", name=name, reason=f"prune: {'; '.join(verdict.reasons)}")
            for kind in (PINS, ABANDONED):
                retention.unmark(session.path, kind, name)
    for path in debris:
        session.lease.check()
        if path != session.writing and not _marks_what_is_there(session.path, path):
            files.remove_tree(path)
    gone = set(deleted)
    left = [entry for entry in session.entries if entry.folder not in gone]
    newest = next(catalog.newest(left), None)
    best = retention.best_record(keep, left) if keep.metric is not None else None
    retention.point_links(
        session.path, session.writing, newest.folder if newest else None, best.name if best else None
    )
    return deleted


def _marks_what_is_there(run: str, path: str) -> bool:
    """Whether a path is the mark of a checkpoint that was published after the look for debris."""
    directory, name = os.path.split(path)
    return os.path.basename(directory) in (PINS, ABANDONED) and catalog.is_checkpoint(os.path.join(run, name))


# -- what is said --------------------------------------------------------------------------------


def _report(
    run: str, verdicts: Sequence[Verdict], debris: Sequence[str], deleted: list[str] | None, *, as_json: bool
) -> None:
    going = [verdict for verdict in verdicts if not verdict.kept]
    gone = set(deleted or ())
    freed = sum(v.record.size for v in going if deleted is None or v.record.name in gone)
    debris = [os.path.relpath(path, run) for path in debris]
    if as_json:
        print_json(
            {
                "run": run,
                "done": deleted is not None,
                "delete": [_verdict(verdict) for verdict in going],
                "keep": [_verdict(verdict) for verdict in verdicts if verdict.kept],
                "debris": debris,
                "deleted": deleted or [],
                "bytes": freed,
            }
        )
        return
    rows = [
        [
            "keep"
            if verdict.kept
            else "delete"
            if deleted is None
            else "deleted"
            if verdict.record.name in gone
            else "left",
            str(verdict.record.sequence),
            str(verdict.record.epoch),
            str(verdict.record.step),
            text.size(verdict.record.size),
            ", ".join(verdict.reasons),
        ]
        for verdict in verdicts
    ]
    columns = ["", "SEQ", "EPOCH", "STEP", "SIZE", "WHY"]
    click.echo("\n".join(text.table(columns, rows, right=columns[1:5], flexible={"WHY": 20})))
    for name in debris:
        click.echo(f"{'delete' if deleted is None else 'deleted'}  debris: {text.clean(name)}")
    if deleted is not None:
        click.echo(f"Deleted {text.plural(len(deleted), 'checkpoint')}, {text.size(freed)}.")
    elif going or debris:
        click.echo(
            f"Nothing was changed. With --yes, {text.plural(len(going), 'checkpoint')} would go, {text.size(freed)}."
        )
    else:
        click.echo("Nothing to delete.")


def _verdict(verdict: Verdict) -> dict[str, Any]:
    record = verdict.record
    return {
        "name": record.name,
        "sequence": record.sequence,
        "epoch": record.epoch,
        "step": record.step,
        "size": record.size,
        "reasons": list(verdict.reasons),
    }
