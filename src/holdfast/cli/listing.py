"""`holdfast ls`: the checkpoints of a run, or the runs in a directory."""

from __future__ import annotations

import datetime
import gc
import os
from collections.abc import Collection, Sequence
from typing import Any

import click

from holdfast import files, mirrored
from holdfast.cli import text
from holdfast.cli.options import command, json_option, print_json
from holdfast.errors import FormatError, HoldfastError, NotFoundError, UsageError
from holdfast.format import card
from holdfast.format.summary import Summary
from holdfast.objects import urls
from holdfast.policy.keep import Keep, Verdict
from holdfast.store import book, catalog, retention, sources
from holdfast.store.entry import Entry

_DEPTH = 3  # levels below a directory in which runs are looked for
_WIDE = 150  # columns from which full names are shown
_SHORT = 20  # columns in which most reasons can be told


@command("ls")
@click.argument("place", metavar="[RUN]", default=".")
@json_option
def ls_command(place: str, as_json: bool) -> None:
    """List the checkpoints of a run, newest last; or the runs in a directory.

    EPOCH is the count of completed epochs; `3+15` means 15 batches into the next one. Why a
    checkpoint is kept follows from the Keep that the run was last started with.
    """
    # What is made here lives until the end: collecting it over and over is half of the time.
    gc.disable()
    path = sources.absolute(place)
    if catalog.is_run(path):
        _list_run(path, place, as_json=as_json)
    elif catalog.is_checkpoint(path):
        raise UsageError(f"{path} is a checkpoint, not a run. Next: holdfast show {place}", path=path)
    elif urls.is_url(path):
        found = _distant_runs(path)
        if not found:
            catalog.resolve(path)  # raises, and says what is near
        _list_runs(path, found, as_json=as_json)
    elif os.path.isdir(path):
        _list_runs(path, _find_runs(path), as_json=as_json)
    elif os.path.exists(path):
        raise FormatError(f"{path} is a file; a run is a directory.", path=path)
    else:
        catalog.resolve(path)  # raises, with the nearest names
        raise NotFoundError(f"There is no run {path}.", path=path, candidates=[])


# -- a run -------------------------------------------------------------------------------------


def _list_run(run: str, place: str, *, as_json: bool) -> None:
    entries = catalog.scan(run)
    known = catalog.run_keep(run)
    keep = known or Keep()
    verdicts = {verdict.record.name: verdict for verdict in retention.verdicts(keep, entries)}
    about = book.read_run(run)
    history = about.mirrors and not urls.is_url(run)  # that is not copied into a bucket
    marks = marks_of(entries, keep, mirrored.names_in_mirrors(run) if history else frozenset())
    if as_json:
        print_json(
            {
                "run": {
                    "path": run,
                    "id": about.id,
                    "created": about.created,
                    "note": about.note,
                    "keep": about.keep,
                    "reached": about.reached,
                },
                "checkpoints": [_row_json(entry, marks, verdicts) for entry in entries],
            }
        )
        return
    note = f": {text.line_of(about.note)}" if about.note else ""
    click.echo(text.shorten(f"{text.line_of(place)}{note}", text.width()))
    if not entries:
        click.echo("no checkpoint yet")
        return
    click.echo("\n".join(_table(entries, keep, marks, verdicts)))
    for entry in entries:
        if entry.problem is not None:
            click.echo(f"{entry.sequence}: {text.clean(str(entry.problem))}")


def marks_of(entries: Sequence[Entry], keep: Keep, in_mirrors: Collection[str] = ()) -> dict[str, list[str]]:
    """Name → its marks, of: latest, best, pinned, NaN, abandoned, damaged, foreign, mirrored."""
    latest = next((entry for entry in reversed(entries) if entry.usable), None)
    best = retention.best_record(keep, entries) if keep.metric is not None else None
    found = {}
    for entry in entries:
        summary = entry.summary
        marks = (
            (entry is latest, "latest"),
            (best is not None and best.name == entry.folder, "best"),
            (entry.pinned, "pinned"),
            (summary is not None and summary.nan, "NaN"),
            (entry.abandoned, "abandoned"),
            (summary is None, "damaged"),
            (summary is not None and not entry.whole, "foreign"),
            (entry.folder in in_mirrors, "mirrored"),
        )
        found[entry.folder] = [mark for holds, mark in marks if holds]
    return found


def _row_json(entry: Entry, marks: dict[str, list[str]], verdicts: dict[str, Verdict]) -> dict[str, Any]:
    name, summary = entry.folder, entry.summary
    verdict = verdicts[name]
    return {
        "name": name,
        "path": entry.path,
        "sequence": entry.sequence,
        "epoch": entry.name.epoch,
        "step": entry.name.step,
        "batch": summary.progress.batch if summary else None,
        "created": summary.created if summary else None,
        "size": entry.size,
        "metrics": card.plain(summary.metrics) if summary else {},
        "marks": marks[name],
        "kept": verdict.kept,
        "reasons": list(verdict.reasons),
        "problem": str(entry.problem) if entry.problem else None,
    }


def _table(
    entries: Sequence[Entry], keep: Keep, marks: dict[str, list[str]], verdicts: dict[str, Verdict]
) -> list[str]:
    now = datetime.datetime.now(datetime.UTC)
    limit = text.width()
    summaries = [entry.summary for entry in entries]
    metrics = _metrics(summaries, keep)[: limit // 2]
    numbers = ["SEQ", "EPOCH", "STEP", "AGE", "SIZE"]
    columns = {
        "SEQ": [str(entry.name.sequence) for entry in entries],
        "EPOCH": [
            _epoch(entry.name.epoch, summary) for entry, summary in zip(entries, summaries, strict=True)
        ],
        "STEP": [str(entry.name.step) for entry in entries],
        "AGE": [text.age(entry.name.created, now) for entry in entries],
        "SIZE": [text.size(summary.size) if summary else "" for summary in summaries],
        "MARKS": [" ".join(marks[entry.folder]) for entry in entries],
        "NAME": [entry.folder for entry in entries],
        "KEPT AS": _closing([verdicts[entry.folder] for entry in entries], keep),
    }
    values = [[card.number(s.metrics.get(name)) if s else "" for s in summaries] for name in metrics]
    last = ["MARKS", "NAME", "KEPT AS"] if limit >= _WIDE else ["MARKS", "KEPT AS"]
    # The metric that decides is shown at any width; of the others as many as fit beside a short reason.
    while len(metrics) > 1:
        cells = [*(columns[name] for name in numbers), *values, *(columns[name] for name in last)]
        wide = text.widths([*numbers, *metrics, *last], cells)
        if sum(wide) - max(0, wide[-1] - _SHORT) + len(text.GAP) * (len(wide) - 1) <= limit:
            break
        metrics, values = metrics[:-1], values[:-1]
    few = len(metrics) <= 1
    return text.table(
        [*numbers, *metrics, *last],
        zip(*(columns[name] for name in numbers), *values, *(columns[name] for name in last), strict=True),
        right=[*numbers, *metrics],
        flexible={"KEPT AS": 10, **dict.fromkeys(metrics, 8), "MARKS": 6} if few else {"KEPT AS": _SHORT},
    )


def _epoch(epoch: int, summary: Summary | None) -> str:
    batch = summary.progress.batch if summary else 0
    return f"{epoch}+{batch}" if batch else str(epoch)


def _closing(verdicts: Sequence[Verdict], keep: Keep) -> list[str]:
    """Why each is kept, or goes: for most of them it is the same."""
    known: dict[tuple[bool, tuple[str, ...]], str] = {}
    for verdict in verdicts:
        if (verdict.kept, verdict.reasons) not in known:
            why = ", ".join(_brief(reason, keep) for reason in verdict.reasons)
            known[verdict.kept, verdict.reasons] = why if verdict.kept else f"goes: {why}"
    return [known[verdict.kept, verdict.reasons] for verdict in verdicts]


def _metrics(summaries: Sequence[Summary | None], keep: Keep) -> list[str]:
    """The names of the metrics, the one that decides first."""
    names = dict.fromkeys(key for summary in summaries if summary for key in summary.metrics)
    first = [keep.metric] if keep.metric in names and keep.metric is not None else []
    return [*first, *(name for name in names if name not in first)]


def _brief(reason: str, keep: Keep) -> str:
    """A reason without the figure that stands in the metric's own column."""
    if keep.metric is not None and f"best {keep.metric} " in reason:
        return reason.partition(f" {keep.metric} ")[0]
    return reason.partition(": see ")[0]


# -- a directory -------------------------------------------------------------------------------


def _list_runs(directory: str, found: Collection[str], *, as_json: bool) -> None:
    runs = [_run_summary(path, directory) for path in sorted(found)]
    if as_json:
        print_json({"directory": directory, "runs": runs})
        return
    if not runs:
        raise NotFoundError(
            f"{directory} is no run and holds none (looked {_DEPTH} levels deep).",
            path=directory,
            candidates=[],
        )
    now = datetime.datetime.now(datetime.UTC)
    rows = []
    for run in runs:
        newest = datetime.datetime.fromisoformat(run["saved"]) if run["saved"] else None
        rows.append(
            [
                run["name"],
                "" if run["epoch"] is None else str(run["epoch"]),
                "" if run["step"] is None else str(run["step"]),
                text.age(newest, now) if newest else "",
                str(run["checkpoints"]),
                text.size(run["size"]),
                run["problem"] or ("complete" if run["complete"] else "") or run["note"],
            ]
        )
    columns = ["RUN", "EPOCH", "STEP", "AGE", "CHECKPOINTS", "SIZE", "NOTE"]
    for line in text.table(columns, rows, right=columns[1:6], flexible={"NOTE": 12, "RUN": 16}):
        click.echo(line)


def _distant_runs(url: str) -> list[str]:
    """The URLs of the runs below a URL."""
    from holdfast.store import distant

    return distant.runs(url, _DEPTH)


def _find_runs(directory: str) -> list[str]:
    found = []
    level = [directory]
    for _ in range(_DEPTH):
        below = []
        for parent in level:
            with files.translated(parent, "list"):
                children = [
                    entry.path
                    for entry in os.scandir(parent)
                    if not entry.name.startswith(".") and entry.is_dir(follow_symlinks=False)
                ]
            for child in children:
                if not os.access(child, os.R_OK | os.X_OK):
                    continue
                if catalog.is_run(child):
                    found.append(child)
                elif not catalog.is_checkpoint(child):
                    below.append(child)
        level = below
    return found


def _run_summary(run: str, directory: str) -> dict[str, Any]:
    summary: dict[str, Any] = {
        "name": run[len(directory) :].lstrip("/"), "path": run, "epoch": None, "step": None, "saved": None,
        "checkpoints": 0, "size": 0, "complete": False, "note": "", "problem": None,
    }  # fmt: skip
    try:
        about, entries = book.read_run(run), catalog.scan(run)
    except HoldfastError as error:
        summary["problem"] = str(error)
        return summary
    newest = next(catalog.newest(entries), None)
    summary.update(
        checkpoints=len(entries),
        size=sum(entry.size for entry in entries),
        complete=about.reached is not None,
        note=about.note,
    )
    if newest is not None:
        summary.update(epoch=newest.name.epoch, step=newest.name.step, saved=newest.name.created.isoformat())
    return summary
