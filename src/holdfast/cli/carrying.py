"""`holdfast push` and `holdfast pull`: a run's checkpoints to another place, and back."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import click

from holdfast import stage
from holdfast.cli import text
from holdfast.cli.options import command, json_option, print_json
from holdfast.cli.progress import reading
from holdfast.errors import DamagedError, FormatError, StorageError
from holdfast.mirrors.transfer import JOBS, Item
from holdfast.objects import urls
from holdfast.pulling import Pull
from holdfast.pushing import Push

_F = TypeVar("_F", bound=Callable[..., Any])

_TOLD = {
    "there": "there already",
    "gone": "deleted meanwhile, which is no damage",
    "foreign": "of another run: passed over",
}


def _options(function: _F) -> _F:
    for option in (
        click.option(
            "--jobs",
            type=click.IntRange(min=1, max=64),
            default=JOBS,
            show_default=True,
            metavar="N",
            help="Blocks of 16 MiB on their way at a time.",
        ),
        click.option("--dry-run", is_flag=True, help="Say what would be copied. Nothing is changed."),
        click.option(
            "--only",
            metavar="WHICH",
            multiple=True,
            help="best, latest, newest, step=N, epoch=N, seq=N, -N or a checkpoint's name; may be repeated.",
        ),
    ):
        function = option(function)
    return function


@command("push")
@click.argument("run", metavar="RUN")
@click.argument("url", metavar="URL")
@_options
@json_option
@click.pass_context
def push_command(
    ctx: click.Context,
    run: str,
    url: str,
    only: tuple[str, ...],
    dry_run: bool,
    jobs: int,
    as_json: bool,
) -> None:
    """Copy a run's checkpoints to URL: a directory, s3://BUCKET/PREFIX, gs://… or az://….

    All whole ones, unless --only says which. What is there with the same digests is not sent, each block is checked on
    its way, nothing is ever deleted there. Interrupted, the same command goes on where it was.
    """
    if stage.current() is not None and not dry_run:
        click.echo("holdfast: this is a rehearsal: nothing is pushed", err=True)
        dry_run = True
    push = Push(run, url, _words(only))
    ctx.exit(_carry(push, push.run, push.url, dry_run=dry_run, jobs=jobs, as_json=as_json))


@command("pull")
@click.argument("url", metavar="URL")
@click.argument("run", metavar="RUN")
@_options
@click.option(
    "--wait", type=click.FloatRange(min=0), default=0.0, metavar="SECONDS", help="Wait for a living writer."
)
@json_option
@click.pass_context
def pull_command(
    ctx: click.Context,
    url: str,
    run: str,
    only: tuple[str, ...],
    dry_run: bool,
    jobs: int,
    wait: float,
    as_json: bool,
) -> None:
    """Take a run's checkpoints from URL: a directory, s3://BUCKET/PREFIX, gs://… or az://….

    RUN may be new, or be the same run and lack some. All whole ones come, unless --only says which; the one that a
    training resumes from comes first. Each block is checked. Interrupted, the same command goes on where it was.
    """
    pull = Pull(url, run, _words(only))
    ctx.exit(_carry(pull, pull.url, pull.run, dry_run=dry_run, jobs=jobs, as_json=as_json, wait=wait))


def _words(only: tuple[str, ...]) -> list[str]:
    return [word for words in only for word in words.split(",") if word]


def _carry(
    what: Push | Pull, source: str, target: str, *, dry_run: bool, jobs: int, as_json: bool, **more: Any
) -> int:
    waiting = what.waiting
    quiet = as_json or dry_run

    def ended(item: Item) -> None:
        if not quiet:
            _print(item)

    for item in what.items if not quiet else ():
        if item.status not in ("waiting", "there"):
            _print(item)
    if not dry_run:
        moved: deque[bool] = deque(maxlen=1)
        verb = "pushing" if isinstance(what, Push) else "pulling"
        try:
            total, distant = sum(item.size for item in waiting), urls.is_url(what.url)
            with reading(verb, total, distant=distant) as progress:

                def tell(count: int) -> None:
                    moved.append(True)
                    progress(count)

                what.go(jobs, tell, ended, **more)
        except (KeyboardInterrupt, StorageError):
            if moved:
                click.echo(
                    "holdfast: what was copied stays; the same command goes on where it was.", err=True
                )
            raise
    if as_json:
        print_json(_json(what, source, target, dry_run=dry_run))
    else:
        if dry_run:
            for item in what.items:
                _print(item)
        _summarize(what, source, target, dry_run=dry_run)
    return _exit_code(what.items)


def _print(item: Item) -> None:
    status = {"waiting": "to copy", "other": "differs"}.get(item.status, item.status)
    size = f"  {text.size(item.size)}" if item.size else ""
    told = f"  ({_TOLD[item.status]})" if item.status in _TOLD else ""
    if item.status == "copied" and item.found:
        told = f"  ({text.size(item.found)} of it were there from before)"
    click.echo(f"{status:8} {text.clean(item.name)}{size}{told}")
    if item.problem is not None and item.status in ("damaged", "other"):
        click.echo(f"         {text.clean(str(item.problem))}")


def _summarize(what: Push | Pull, source: str, target: str, *, dry_run: bool) -> None:
    items = what.items
    copied, there = _with(items, "waiting" if dry_run else "copied"), _with(items, "there")
    bad = _with(items, "damaged", "other")
    size = sum(item.size for item in copied)
    moved = "would be copied" if dry_run else "copied"
    parts = [f"{text.plural(len(copied), 'checkpoint')} {moved} ({text.size(size)})"] if copied else []
    if not copied:
        parts.append("nothing to copy" if items else "no checkpoint to copy")
    if there:
        parts.append(f"{len(there)} there already")
    if bad:
        parts.append(f"{len(bad)} not copied")
    parts += [f"{len(found)} {status}" for status in ("gone", "foreign") if (found := _with(items, status))]
    if what.abandoned:
        parts.append(f"{what.abandoned} abandoned by a rewind passed over")
    click.echo(f"{text.clean(source)} → {text.clean(target)}: {', '.join(parts)}.")


def _with(items: Sequence[Item], *statuses: str) -> list[Item]:
    return [item for item in items if item.status in statuses]


def _json(what: Push | Pull, source: str, target: str, *, dry_run: bool) -> dict[str, Any]:
    return {
        "source": source,
        "target": target,
        "dry_run": dry_run,
        "abandoned": what.abandoned,
        "checkpoints": [
            {
                "name": item.name,
                "size": item.size,
                "status": item.status,
                "sent": item.sent,
                "found": item.found,
                "problem": str(item.problem) if item.problem is not None else None,
            }
            for item in what.items
        ],
    }


def _exit_code(items: Sequence[Item]) -> int:
    if _with(items, "damaged"):
        return DamagedError.exit_code
    return FormatError.exit_code if _with(items, "other") else 0
