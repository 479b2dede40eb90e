"""`holdfast submit`: a training as jobs of Slurm that continue one another."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from holdfast.cli import text
from holdfast.cli.options import command, json_option, print_json

if TYPE_CHECKING:
    from holdfast.jobs.record import Submission
    from holdfast.jobs.script import Plan

_WORDS = "holdfast.sbatch"
_FEW = 5


class _Submit(click.Command):
    """Takes its own options, and leaves all others before -- to sbatch, as they were written."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        split = args.index("--") if "--" in args else len(args)
        own, words = _sort(args[:split], self._arities())
        ctx.meta[_WORDS] = tuple(words)
        return super().parse_args(ctx, [*own, "--", *args[split + 1 :]])

    def _arities(self) -> dict[str, bool]:
        """Each option of our own → whether a value follows it."""
        found = {"-h": False, "--help": False}
        for parameter in self.params:
            if isinstance(parameter, click.Option):
                found |= dict.fromkeys(parameter.opts, not parameter.is_flag)
        return found


def _sort(words: Sequence[str], arities: dict[str, bool]) -> tuple[list[str], list[str]]:
    """Our own options with their values, and what sbatch gets."""
    own: list[str] = []
    others: list[str] = []
    rest = list(words)
    while rest:
        word = rest.pop(0)
        name, equals, _ = word.partition("=")
        if name not in arities:
            others.append(word)
            continue
        own.append(word)
        if arities[name] and not equals and rest:
            own.append(rest.pop(0))
    return own, others


@command("submit", cls=_Submit, options_metavar="--run RUN [OPTIONS] [SBATCH OPTIONS] --")
@click.argument("words", metavar="COMMAND...", nargs=-1, type=click.UNPROCESSED)
@click.option("--run", "run", metavar="RUN", required=True, help="The run that the command writes.")
@click.option("--tasks", metavar="N", type=int, help="An array of N tasks, one after another (default: 10).")
@click.option("--chain", metavar="N", type=int, help="N jobs, each waiting for the end of the one before.")
@click.option("--requeue", is_flag=True, help="One job that lets Slurm start it again.")
@click.option("--module", "modules", metavar="M", multiple=True, help="A module to load; may be repeated.")
@click.option("--conda", metavar="ENV", help="A conda environment to activate.")
@click.option(
    "--setup", metavar="LINE", multiple=True, help="A shell line before the command; may be repeated."
)
@click.option("--print", "only_print", is_flag=True, help="Only show the script; nothing is written.")
@click.option("--allow-local", is_flag=True, help="Allow places like /tmp, which other nodes do not see.")
@json_option
@click.pass_context
def submit_command(
    ctx: click.Context,
    words: tuple[str, ...],
    run: str,
    tasks: int | None,
    chain: int | None,
    requeue: bool,
    modules: tuple[str, ...],
    conda: str | None,
    setup: tuple[str, ...],
    only_print: bool,
    allow_local: bool,
    as_json: bool,
) -> None:
    """Submit COMMAND to Slurm as jobs that continue one training, one at a time.

    All options of sbatch are passed on; those of a project may stand in [tool.holdfast.slurm] of its
    pyproject.toml. The script is kept in RUN/submitted/.
    """
    from holdfast.jobs import defaults, submitting
    from holdfast.jobs.script import render

    here = os.getcwd()
    request = submitting.Request(
        run=run,
        command=words,
        words=ctx.meta[_WORDS],
        tasks=tasks,
        chain=chain,
        requeue=requeue,
        modules=modules,
        conda=conda,
        setup=setup,
        allow_local=allow_local,
    )
    plan = submitting.make_plan(request, defaults.find(here), here=here)
    if only_print:
        script = render(plan)
        if as_json:
            print_json({**_content(plan, None), "script": script})
        else:
            sys.stdout.flush()
            sys.stdout.buffer.write(os.fsencode(script))
        return
    submission = submitting.submit(plan, sys.argv[1:])
    if as_json:
        print_json(_content(plan, submission))
    else:
        _print(plan, submission, run)


def _content(plan: Plan, submission: Submission | None) -> dict[str, Any]:
    from holdfast.jobs import record, submitting

    place = record.folder(plan.run, plan.submission)
    return {
        "run": plan.run,
        "submission": plan.submission,
        "mode": plan.mode,
        "tasks": plan.tasks,
        "directory": plan.directory,
        "jobs": submission.jobs if submission else [],
        "logs": submitting.log_files(plan, submission.jobs) if submission else [],
        "path": os.path.join(place, record.SCRIPT_FILE) if submission else None,
        "script": None,
    }


def _print(plan: Plan, submission: Submission, run: str) -> None:
    import shlex

    from holdfast.jobs import record, submitting
    from holdfast.jobs.words import values

    limit = values(plan.options).get("time")
    limit = f"{limit} min" if limit and limit.isdecimal() else limit
    each = f", each for at most {limit}" if limit else ""
    jobs = submission.jobs
    if plan.mode == "array" and plan.tasks == 1:
        what = f"{jobs[0]}: 1 task{each.replace('each ', '')}"
    elif plan.mode == "array":
        what = f"{jobs[0]}: {text.plural(plan.tasks, 'task')}, one after another{each}"
    elif plan.mode == "chain":
        numbers = " ".join(jobs) if len(jobs) <= _FEW else f"{jobs[0]} … {jobs[-1]}"
        what = f"{numbers}: one after another{each}"
    else:
        what = f"{jobs[0]}: started again until the training is complete{each}"
    logs = submitting.log_files(plan, jobs) or [submitting.log_form(plan)]
    shown = [os.path.relpath(path) if path.startswith(os.getcwd() + os.sep) else path for path in logs]
    facts = [
        ("submitted", f"job {what}" if len(jobs) == 1 else f"jobs {what}"),
        ("logs" if len(shown) > 1 else "log", shown[0] if len(shown) == 1 else f"{shown[0]} … {shown[-1]}"),
        ("script", os.path.join(record.folder(run, plan.submission), record.SCRIPT_FILE)),
        ("look", f"holdfast status {shlex.quote(run)}"),
    ]
    for name, value in facts:
        click.echo(f"{name:11}{text.line_of(value)}")
