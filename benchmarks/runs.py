"""Starting, and runs with very many checkpoints: listing, finding, saving into, resuming."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch

import holdfast
from benchmarks import children, contenders, longrun
from benchmarks.bench import Bench
from benchmarks.children import Sample
from benchmarks.memory import measured
from benchmarks.topic import Case, Rows, Target, Topic

_COMMAND = "import sys; from holdfast.cli.main import main; sys.exit(main())"


# -- in a measuring process ------------------------------------------------------------------------


def begin_run(path: str, keep: int = 1) -> Sample:
    """A run with one small checkpoint, to be multiplied."""
    contenders.quietly()
    run, _ = _small_run(path, keep)
    run.resume()
    run.save(epoch=1, metrics={"loss": 1.0, "val_accuracy": 0.5}, wait=True)
    run.close()
    return Sample(0.0)


def resume(path: str, keep: int) -> Sample:
    """Taking over a run and restoring its newest checkpoint."""
    contenders.quietly()
    run, net = _small_run(path, keep)
    seconds, extra = measured(run.resume)
    if float(net.weight.detach().mean()) != 1.0:
        raise ValueError(f"{path} was not resumed")
    run.close()
    return Sample(seconds, extra, {"epoch": run.progress.epoch})


def save(path: str, keep: int) -> Sample:
    """A small save into a run that is full: its policy deletes one checkpoint for it."""
    contenders.quietly()
    run, _ = _small_run(path, keep)
    progress = run.resume()
    epoch = progress.epoch + 1
    metrics = {"loss": 0.0, "val_accuracy": 0.0}
    run.save(epoch=epoch, metrics=metrics, wait=True)
    seconds, extra = measured(lambda: run.save(epoch=epoch + 1, metrics=metrics, wait=True))
    run.close()
    return Sample(seconds, extra)


def _small_run(path: str, keep: int) -> tuple[holdfast.Run, Any]:
    net = torch.nn.Linear(64, 10)
    torch.nn.init.constant_(net.weight, 0.0 if os.path.exists(path) else 1.0)
    run = holdfast.Run(
        path,
        config={"lr": 0.1, "batch_size": 64},
        keep=holdfast.Keep(last=keep, best=1, metric="val_accuracy", mode="max"),
    )
    run.track(model=net, optimizer=torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9))
    return run, net


# -- the topics -----------------------------------------------------------------------------------


def starting(bench: Bench) -> Iterator[Topic]:
    cases = [
        Case("limit: a bare interpreter", "limit", python("pass")),
        Case("**Holdfast** import holdfast", "holdfast", python("import holdfast")),
        Case("**Holdfast** import holdfast, holdfast.Run", "holdfast", python("import holdfast; holdfast.Run")),
        Case("import numpy", "peer", python("import numpy")),
        Case("import safetensors", "peer", python("import safetensors")),
        Case("**Holdfast** holdfast --help", "holdfast", command("--help")),
    ]  # fmt: skip

    def added(rows: Rows) -> float | None:
        return rows.ours - rows.limit if rows.ours and rows.limit else None

    targets = [
        Target("import holdfast adds at most 40 ms to a bare interpreter", added, 0.04, unit="s"),
        _within("**Holdfast** holdfast --help", 0.15),
    ]
    yield Topic("import", "Starting", cases, bench.size.starts, targets=targets)


def listing(bench: Bench) -> Iterator[Topic]:
    path = _long_run(bench)
    found = "import holdfast; print(holdfast.open({!r}).name)"
    rows = {
        "**Holdfast** holdfast ls": command("ls", path),
        "**Holdfast** holdfast ls --json": command("ls", "--json", path),
        "**Holdfast** holdfast.open(RUN), the newest": python(found.format(path)),
        "**Holdfast** holdfast.open(RUN@best)": python(found.format(f"{path}@best")),
        "**Holdfast** holdfast.open(RUN@epoch=1)": python(found.format(f"{path}@epoch=1")),
    }
    yield Topic(
        "ls",
        f"Looking into a run of {bench.size.checkpoints:,} checkpoints, the start of a process included",
        [
            Case("limit: a bare interpreter", "limit", python("pass")),
            *(Case(who, "holdfast", measure) for who, measure in rows.items()),
        ],
        bench.size.repetitions,
        targets=[_within(who) for who in rows],
    )


def resuming(bench: Bench) -> Iterator[Topic]:
    path, short = _long_run(bench), bench.path("short")
    bench.run(begin_run, short)
    count = bench.size.checkpoints
    yield Topic(
        "resume",
        f"Resuming a run of {count:,} checkpoints",
        [
            Case("limit: the same with 1 checkpoint", "limit", lambda _: bench.run(resume, short, 1)),
            Case("**Holdfast** run.resume()", "holdfast", lambda _: bench.run(resume, path, count)),
        ],
        bench.size.repetitions,
        targets=[_within("**Holdfast** run.resume()")],
    )
    who = "**Holdfast** run.save(wait=True), which deletes one"
    yield Topic(
        "resume",
        f"Saving into a run of {count:,} checkpoints",
        [
            Case("limit: the same with 1 checkpoint", "limit", lambda _: bench.run(save, short, 1)),
            Case(who, "holdfast", lambda _: bench.run(save, path, count)),
        ],
        bench.size.repetitions,
        targets=[_within(who)],
    )


def _within(who: str, bound: float = 0.5) -> Target:
    return Target(f"{who.removeprefix('**Holdfast** ')}: at most {bound:g} s", lambda rows: rows.seconds(who), bound, unit="s")  # fmt: skip


def _long_run(bench: Bench) -> str:
    """The run with many checkpoints; made once for all topics that look into it."""
    path = bench.path("long-run")
    if not os.path.exists(path):
        bench.run(begin_run, path, bench.size.checkpoints)
        longrun.multiply(path, bench.size.checkpoints)
    return path


# -- processes that are started -------------------------------------------------------------------


def timed(words: list[str]) -> Sample:
    started = time.perf_counter()
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    seconds = time.perf_counter() - started
    if done.returncode:
        raise children.Failed(f"{' '.join(words)} ended with code {done.returncode}: {done.stderr[-500:]}")
    return Sample(seconds)


def python(code: str) -> Callable[[int], Sample]:
    return lambda _: timed([sys.executable, "-c", code])


def command(*arguments: str) -> Callable[[int], Sample]:
    return lambda _: timed([sys.executable, "-c", _COMMAND, *arguments])
