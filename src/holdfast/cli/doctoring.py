"""`holdfast doctor`: what decides whether and how fast trainings are saved here."""

from __future__ import annotations

import dataclasses

import click

from holdfast.cli import text
from holdfast.cli.options import command, json_option, print_json
from holdfast.cost import Choice, SaveCost, suggested_interval
from holdfast.doctor import Report, Storage, examine
from holdfast.durations import about, exact


@command("doctor")
@click.argument("place", metavar="[RUN]", default=".")
@click.option("--no-write", is_flag=True, help="Leave out the test write (up to 256 MiB, removed at once).")
@json_option
def doctor_command(place: str, no_write: bool, as_json: bool) -> None:
    """Examine versions, storage, save cost and Slurm, for a run or for any directory."""
    report = examine(place, write=not no_write)
    if as_json:
        content = dataclasses.asdict(report)
        content["storage"]["write_speed"] = report.storage.write_speed
        content["suggested_interval"] = suggested_interval(report.cost) if report.cost else None
        print_json(content)
        return
    for name, value in _facts(report):
        click.echo(click.wrap_text(text.clean(value), text.width(), f"{name:15} ", " " * 16))
    for suggestion in report.suggestions:
        click.echo()
        click.echo(click.wrap_text(text.clean(suggestion), text.width(), "- ", "  "))


def _facts(report: Report) -> list[tuple[str, str]]:
    versions = ", ".join(f"{name} {version or 'not installed'}" for name, version in report.versions.items())
    storage = report.storage
    facts = [
        ("versions", versions),
        ("system", f"{report.system}, {text.plural(report.cores, 'core')}"),
        ("directory", storage.path),
        ("file system", storage.type),
        ("directory sync", _works(storage.directory_sync, "new names are durable", "not supported")),
        ("direct I/O", _works(storage.direct_io, "works", "not supported; writes go through the page cache")),
        ("free", f"{text.size(storage.free)} of {text.size(storage.total)}{_quota(storage)}"),
    ]
    if storage.write_speed is not None:
        took = f"{text.size(storage.write_bytes or 0)} in {about(storage.write_seconds or 0)}"
        facts.append(("write speed", f"{text.size(storage.write_speed)}/s durable ({took}, one thread)"))
    if report.run is not None:
        facts.append(("held by", report.holder or "nobody"))
        facts.append(("saves", _saves(report.cost)))
    if report.cost is not None:
        facts.append(("cost of a save", _cost(report.cost)))
        facts += [
            ("this run uses" if choice.used else "", _choice(choice, report.cost))
            for choice in report.intervals
        ]
    facts.append(("Slurm", _slurm(report.slurm)))
    return facts


def _saves(cost: SaveCost | None) -> str:
    if cost is None:
        return "none in its history yet"
    held = f"{about(cost.held_seconds)}, at most {about(cost.longest_held_seconds)}"
    return (
        f"{text.size(cost.bytes)} in {about(cost.seconds)}; the training is held {held} (last {cost.saves})"
    )


def _cost(cost: SaveCost) -> str:
    parts = f"it stands still for {about(cost.stall_seconds)}"
    if cost.slowdown_seconds is not None:
        parts += f", and its steps beside a write take {about(cost.slowdown_seconds)} longer in all"
    return f"{about(cost.cost_seconds)} of the training: {parts}; a write takes {about(cost.write_seconds)}"


def _choice(choice: Choice, cost: SaveCost) -> str:
    """Such as ``every 41 s: 0.41 s a save / overhead 0.01 (mtbf 24h alone would give 4 min 26 s; a write takes 1.2 s)``."""
    named = {"overhead": f"overhead {choice.overhead}", "mtbf": f"mtbf {choice.mtbf}"}
    save = f"{about(cost.cost_seconds)} a save"
    why = {
        "overhead": f"{save} / {named['overhead']}",
        "mtbf": f"√(2 · {save} · {named['mtbf']})",
        "write": "a write takes as long",
    }.get(choice.term, "the least")
    others = [
        f"{name} alone would give {exact(choice.terms[term])}"
        for term, name in named.items()
        if term in choice.terms and term != choice.term
    ]
    if choice.term != "write":
        others.append(f"a write takes {about(choice.terms['write'])}")
    return f"{choice.every}: every {exact(choice.seconds)}: {why} ({'; '.join(others)})"


def _works(works: bool | None, yes: str, no: str) -> str:
    return "not tried" if works is None else yes if works else no


def _quota(storage: Storage) -> str:
    quota = storage.quota
    if quota is None or quota.limit is None:
        return "; no quota known"
    return f"; quota {text.size(quota.used)} of {text.size(quota.limit)} used"


def _slurm(seen: dict[str, str]) -> str:
    facts = {name: value for name, value in seen.items() if name != "sbatch"}
    if facts:
        return ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in facts.items())
    return f"not in a job; {seen['sbatch']}" if "sbatch" in seen else "not seen"
