"""The program: its commands (each loaded when it is called), its errors and its exit codes."""

from __future__ import annotations

import os
import sys
from typing import Any, NoReturn

import click

from holdfast.cli.text import clean
from holdfast.errors import HoldfastError, nearest, storage_error

INTERRUPTED = 130  # 128 + SIGINT, as a shell says it
PIPE_CLOSED = 141  # 128 + SIGPIPE

# name → (module, one line of help): so that `holdfast --help` loads none of them.
COMMANDS = {
    "ls": ("listing", "List the checkpoints of a run, or the runs in a directory."),
    "show": ("showing", "Show a checkpoint's card, its arrays and its files."),
    "verify": ("verifying", "Read every byte of a checkpoint or a run; name what is damaged."),
    "diff": ("differing", "Compare two checkpoints bit by bit."),
    "prune": ("pruning", "Say what would be deleted and why; --yes deletes it."),
    "pin": ("pinning", "Keep a checkpoint whatever the policy says."),
    "unpin": ("pinning", "Hand a pinned checkpoint back to the policy."),
    "rewind": ("rewinding", "Let a run continue from an older checkpoint."),
    "push": ("carrying", "Copy a run's checkpoints to another place."),
    "pull": ("carrying", "Take a run's checkpoints from another place."),
    "import": ("exchanging", "Turn a checkpoint of another format into one of a run."),
    "export": ("exchanging", "Write a checkpoint in another format."),
    "submit": ("submitting", "Submit a training to Slurm, as jobs that continue one another."),
    "status": ("standing", "Show how a training stands: progress, jobs, what is to come."),
    "rehearse": ("rehearsing", "Rehearse a script: straight and interrupted, compared."),
    "doctor": ("doctoring", "Examine versions, storage, save cost and Slurm."),
}


def load(name: str) -> click.Command:
    """The command of this name; imports its module."""
    import importlib

    module = importlib.import_module(f"holdfast.cli.{COMMANDS[name][0]}")
    command: click.Command = getattr(module, f"{name}_command")
    return command


class _PipeClosed(Exception):  # noqa: N818 (no error to whom it concerns)
    """Nobody reads our output any more."""


class Program(click.Group):
    """A group whose commands are loaded at their first use, and whose errors end in exit codes."""

    @property
    def commands(self) -> dict[str, click.Command]:
        """All commands; asking for them loads them all."""
        return {name: load(name) for name in COMMANDS}

    @commands.setter
    def commands(self, _: object) -> None:
        """There are no others: click's own constructor sets an empty mapping."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 (click's signature)
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        return load(cmd_name) if cmd_name in COMMANDS else None

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in COMMANDS.items()])

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if os.environ.get("HOLDFAST_REHEARSAL"):
            from holdfast import stage

            # A script that is rehearsed means its rehearsed runs by their names, here as well.
            paths = [stage.found(word) if word[:1] not in "-@" else word for word in args[1:]]
            args = [*args[:1], *paths]
        return super().parse_args(ctx, args)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and args[0] not in COMMANDS and not args[0].startswith("-"):
            near = nearest(args[0], COMMANDS)
            raise click.UsageError(
                f"There is no command {args[0]!r}.{f' {near[0].upper()}{near[1:]}' if near else ''} "
                f"Commands are: {', '.join(COMMANDS)}.",
                ctx,
            )
        return super().resolve_command(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except BrokenPipeError as error:
            raise _PipeClosed from error  # click itself would make it a failure

    def main(self, *args: Any, **more: Any) -> NoReturn:
        """Runs the program and ends the process: 0, or the exit code of what went wrong."""
        state = more.setdefault("obj", {"debug": bool(os.environ.get("HOLDFAST_DEBUG"))})
        more["standalone_mode"] = False
        try:
            code = super().main(*args, **more)
            sys.stdout.flush()
        except click.ClickException as error:
            error.show()
            code = error.exit_code
        except (click.Abort, KeyboardInterrupt):
            _say("interrupted")
            code = INTERRUPTED
        except (BrokenPipeError, _PipeClosed):
            # Who read the output has seen enough; what is still buffered must not fail at exit.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            code = PIPE_CLOSED
        except HoldfastError as error:
            code = _report(error, debug=state["debug"])
        except OSError as error:
            translated = storage_error(error, error.filename or "the storage", "use")
            translated.__cause__ = error
            code = _report(translated, debug=state["debug"])
        sys.exit(code if isinstance(code, int) else 0)


def _report(error: HoldfastError, *, debug: bool) -> int:
    if debug:
        import traceback

        traceback.print_exception(error)
    else:
        _say(f"error: {clean(str(error))}")
    return error.exit_code


def _say(line: str) -> None:
    click.echo(f"holdfast: {line}", err=True)


def _version(ctx: click.Context, _: click.Parameter, value: bool) -> None:
    if value:
        from holdfast import __version__

        click.echo(f"holdfast {__version__}")
        ctx.exit()


def _debug(ctx: click.Context, _: click.Parameter, value: bool) -> None:
    if value:
        ctx.obj["debug"] = True


@click.group(
    cls=Program,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="REF names a checkpoint: a path, RUN (the newest clean one), RUN@best, RUN@latest, RUN@step=4690, "
    "RUN@epoch=3, RUN@seq=12 or RUN@-2; or a URL in the place of the path, s3://bucket/run@best. Each command has --help.",
)
@click.option(
    "--version", is_flag=True, is_eager=True, expose_value=False, callback=_version, help="Show the version."
)
@click.option(
    "--debug", is_flag=True, expose_value=False, callback=_debug, help="Show the traceback of an error."
)
def main() -> None:
    """Look at, check, compare and look after the checkpoints of trainings."""
