"""What a project says once about its jobs: the table `[tool.holdfast.slurm]`.

It stands in `holdfast.toml` or `pyproject.toml`, of the current directory or of the nearest one above
that has it. Its keys are the long options of sbatch and those of `holdfast submit`.
"""

from __future__ import annotations

import dataclasses
import datetime
import os
from typing import Any

from holdfast import files
from holdfast.errors import NotFoundError, UsageError, nearest
from holdfast.jobs.words import NAMES, Option, option_of, read_options

FILES = ("holdfast.toml", "pyproject.toml")
_LIMIT = 1 << 20
_NOT_OURS = frozenset({"wrap", "help", "version", "usage", "parsable", "test-only", "wait", "array"})


@dataclasses.dataclass(frozen=True, kw_only=True)
class Defaults:
    """The table of a project.

    Attributes:
        file: where it was found; None without one.
        options: for sbatch.
        mode: ``("tasks", 10)``, ``("chain", 4)`` or ``("requeue", 1)``; None if it does not say.
        modules, setup: of the environment; `conda` is None without one.

    """

    file: str | None = None
    options: tuple[Option, ...] = ()
    mode: tuple[str, int] | None = None
    modules: tuple[str, ...] = ()
    conda: str | None = None
    setup: tuple[str, ...] = ()
    allow_local: bool = False


def find(directory: str) -> Defaults:
    """The defaults that count in a directory.

    Raises:
        UsageError: a file is no TOML, or its table holds what is not known or not of the right kind.

    """
    while True:
        for name in FILES:
            path = os.path.join(directory, name)
            table = _table(path)
            if table is not None:
                return read_table(table, path)
        parent = os.path.dirname(directory)
        if parent == directory:
            return Defaults()
        directory = parent


def _table(path: str) -> dict[str, Any] | None:
    import tomllib

    try:
        content: Any = tomllib.loads(files.read_file(path, _LIMIT).decode("utf-8"))
    except NotFoundError:
        return None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} is not valid TOML: {error}. Next: correct it.", path=path) from error
    for key in ("tool", "holdfast", "slurm"):
        content = content.get(key) if isinstance(content, dict) else None
    if content is not None and not isinstance(content, dict):
        raise UsageError(
            f"{path}: tool.holdfast.slurm is not a table. Next: write [tool.holdfast.slurm].", path=path
        )
    return content


def read_table(table: dict[str, Any], path: str) -> Defaults:
    """What the table says. `UsageError` names the key that is wrong, and the nearest one that is known."""
    own = {"tasks", "chain", "module", "conda", "setup", "sbatch", "allow-local", "requeue"}
    options: list[Option] = []
    known: dict[str, Any] = {}
    modes: list[tuple[str, int]] = []
    for key, value in table.items():
        if key in _NOT_OURS or key not in own | NAMES:
            near = nearest(key, sorted((own | NAMES) - _NOT_OURS))
            raise UsageError(
                f"{path}: [tool.holdfast.slurm] has a key {key!r}, which is no option of sbatch that can be set "
                f"there and none of holdfast submit{f'; {near}' if near else '.'} Next: correct it; an option that only "
                f'your cluster knows goes into sbatch = ["--{key}=…"].',
                path=path,
                found=key,
            )
        if key in ("tasks", "chain"):
            if type(value) is not int or value < 1:
                raise _wrong(path, key, "a whole number from 1 on", value)
            modes.append((key, value))
        elif key == "requeue":
            if _flag(path, key, value):
                modes.append((key, 1))
        elif key in ("module", "setup", "sbatch"):
            known[key] = _texts(path, key, value)
        elif key == "conda":
            if not isinstance(value, str):
                raise _wrong(path, key, "a text", value)
            known[key] = value
        elif key == "allow-local":
            known[key] = _flag(path, key, value)
        else:
            option = option_of(key, _plain(path, key, value))
            options += [option] if option is not None else []
    if len(modes) > 1:
        raise UsageError(
            f"{path}: [tool.holdfast.slurm] has {' and '.join(name for name, _ in modes)}, which exclude one another. "
            f"Next: keep one.",
            path=path,
        )
    return Defaults(
        file=path,
        options=(*options, *read_options(known.get("sbatch", ()))),
        mode=modes[0] if modes else None,
        modules=known.get("module", ()),
        conda=known.get("conda"),
        setup=known.get("setup", ()),
        allow_local=known.get("allow-local", False),
    )


def _plain(path: str, key: str, value: Any) -> str | bool | float:
    if isinstance(value, datetime.time):  # time = 01:00:00 without quotes is one, to TOML
        return value.isoformat()
    if isinstance(value, (str, bool, int, float)):
        return value
    raise _wrong(path, key, "a text, a number, true or false", value)


def _texts(path: str, key: str, value: Any) -> tuple[str, ...]:
    found = (value,) if isinstance(value, str) and key != "sbatch" else value
    if not isinstance(found, (list, tuple)) or not all(isinstance(item, str) for item in found):
        raise _wrong(path, key, "a list of texts", value)
    return tuple(found)


def _flag(path: str, key: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise _wrong(path, key, "true or false", value)
    return value


def _wrong(path: str, key: str, expected: str, value: Any) -> UsageError:
    return UsageError(
        f"{path}: [tool.holdfast.slurm] {key} = {value!r}: expected {expected}.",
        path=path,
        expected=expected,
        found=value,
    )
