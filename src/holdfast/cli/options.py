"""What the commands share: their class, `--json` and `--debug`, and how JSON is written."""

from __future__ import annotations

import inspect
import json
import math
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import click

_F = TypeVar("_F", bound=Callable[..., Any])


def command(
    name: str, cls: type[click.Command] = click.Command, **settings: Any
) -> Callable[[Callable[..., Any]], click.Command]:
    """A command of the program; it takes `--debug` too, wherever the user puts it."""

    def make(function: Callable[..., Any]) -> click.Command:
        made = cls(
            name,
            callback=function,
            help=inspect.cleandoc(function.__doc__ or ""),
            params=[*getattr(function, "__click_params__", ())][::-1],
            **settings,
        )
        made.params.append(
            click.Option(
                ["--debug"],
                is_flag=True,
                expose_value=False,
                callback=_debug,
                help="Show the traceback of an error.",
            )
        )
        return made

    return make


def _debug(ctx: click.Context, _: click.Parameter, value: bool) -> None:
    if value:
        ctx.obj["debug"] = True


def json_option(function: _F) -> _F:
    """`--json`: one JSON object on stdout, its keys as `docs/scripting.md` says."""
    return click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead.")(function)


def print_json(content: Mapping[str, Any]) -> None:
    import msgspec

    plain = _plain(content)
    try:
        data = msgspec.json.encode(plain)
    except (msgspec.MsgspecError, TypeError, OverflowError, UnicodeEncodeError):
        data = b"\xff"
    # The quick way does not escape: text outside ASCII, which may steer a terminal, is not left to it.
    if data.isascii():
        click.echo(msgspec.json.format(data.decode(), indent=2))
    else:
        click.echo(json.dumps(plain, indent=2, allow_nan=False, default=str))


_AS_IT_IS = frozenset({str, int, bool, type(None)})


def _plain(value: Any) -> Any:
    # JSON has no NaN: non-finite numbers are the strings "nan", "inf" and "-inf".
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if isinstance(value, Mapping):
        return {
            (key if type(key) is str else str(key)): item if type(item) in _AS_IT_IS else _plain(item)
            for key, item in value.items()
        }
    if isinstance(value, (list, tuple)):
        return [item if type(item) in _AS_IT_IS else _plain(item) for item in value]
    return value if isinstance(value, (str, int, float, type(None))) else str(value)
