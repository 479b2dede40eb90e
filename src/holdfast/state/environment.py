"""Where a checkpoint was made: host, user, job, commit, command, versions. Gathered once per launch."""

from __future__ import annotations

import contextlib
import os
import platform
import re
import shlex
import subprocess
import sys
from collections.abc import Iterable
from typing import Any

from holdfast.state import adapters

_SLURM = (
    "SLURM_JOB_ID",
    "SLURM_ARRAY_JOB_ID",
    "SLURM_ARRAY_TASK_ID",
    "SLURM_RESTART_COUNT",
    "SLURM_JOB_NODELIST",
)

# What decides whether two launches can be equal to the bit.
COMPARED = (
    *("python", "numpy", "torch", "jax", "tensorflow", "keras", "keras_backend"),
    *("cuda", "gpu", "threads", "machine"),
)


def gather() -> dict[str, Any]:
    """The facts as plain values; what cannot be found out is left out."""
    from holdfast import __version__

    found: dict[str, Any] = {
        "holdfast": __version__,
        "python": platform.python_version(),
        "machine": platform.machine(),
        "system": f"{platform.system()} {platform.release()}",
        "host": platform.node(),
        "pid": os.getpid(),
        "command": shlex.join([os.path.basename(sys.executable or "python"), *without_secrets(sys.argv)]),
        "directory": os.getcwd(),
    }
    with contextlib.suppress(Exception):  # no passwd entry in a container: a fact left out, not an error
        import getpass

        found["user"] = getpass.getuser()
    slurm = {name.removeprefix("SLURM_").lower(): os.environ[name] for name in _SLURM if name in os.environ}
    if slurm:
        found["slurm"] = slurm
    git = _git()
    if git:
        found["git"] = git
    if "numpy" in sys.modules:
        found.update(adapters.edge("numpy").environment())
    for _, edge in adapters.loaded_edges():
        found.update(edge.environment())
    return found


# --max-tokens and --eos-token are no secrets.
_SECRET = re.compile(
    r"(?i)--?(?:[\w-]*[-_])?(?:(?:api|access|secret)[-_]?key|secret|password|passwd|credentials?|"
    r"(?<!pad[-_])(?<!eos[-_])(?<!bos[-_])(?<!unk[-_])(?<!sep[-_])(?<!cls[-_])(?<!mask[-_])token)"
)
_LOGIN = re.compile(r"(?<=://)[^/\s@]+(?=@)")


def without_secrets(arguments: Iterable[str]) -> list[str]:
    """Command-line arguments as a checkpoint, which may be handed on, shows them.

    Hidden are the values of options that are called a key, a token, a secret or a password, and
    the user and password in a URL.
    """
    shown: list[str] = []
    hide = False
    for argument in arguments:
        name, equals, _ = argument.partition("=")
        secret = _SECRET.fullmatch(name) is not None
        if hide and not argument.startswith("--"):
            shown.append("***")
        elif secret and equals:
            shown.append(f"{name}=***")
        else:
            shown.append(_LOGIN.sub("***", argument))
        hide = secret and not equals
    return shown


def _git() -> dict[str, Any] | None:
    script = os.path.abspath(sys.argv[0]) if sys.argv and sys.argv[0] else os.getcwd()
    directory = script if os.path.isdir(script) else os.path.dirname(script)

    def ask(*words: str) -> str | None:
        try:
            done = subprocess.run(  # noqa: S603 (a fixed command)
                # A repository's own settings may name a program to run at each status.
                ["git", "-c", "core.fsmonitor=false", "-C", directory, *words],  # noqa: S607 (the user's own git)
                capture_output=True,
                text=True,
                timeout=5,
                check=False,
                env={**os.environ, "GIT_OPTIONAL_LOCKS": "0"},
            )
        except (OSError, subprocess.SubprocessError):
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    commit = ask("rev-parse", "HEAD")
    if not commit:
        return None
    return {"commit": commit, "dirty": bool(ask("status", "--porcelain", "--untracked-files=no"))}


def differences(saved: dict[str, Any], here: dict[str, Any]) -> list[str]:
    """Lines like ``torch 2.12.0 → 2.13.0`` for what may keep a resumed run from being equal to the bit."""
    return [
        f"{key} {saved[key]} → {here[key]}"
        for key in COMPARED
        if key in saved and key in here and saved[key] != here[key]
    ]
