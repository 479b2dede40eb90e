"""Checkpoints to another place and back: `push` and `pull`, beside programs that copy."""

from __future__ import annotations

import shutil
import subprocess
import time
from collections.abc import Callable, Iterator

import numpy as np

import holdfast
from benchmarks import contenders, limits
from benchmarks.bench import Bench
from benchmarks.children import Failed, Sample
from benchmarks.memory import measured
from benchmarks.sizes import Size
from benchmarks.topic import Case, Rows, Target, Topic, ratio
from holdfast.pulling import Pull
from holdfast.pushing import Push

_PUSH, _PULL = "**Holdfast** push (verified, durable)", "**Holdfast** pull (verified, durable)"


# -- in a measuring process ------------------------------------------------------------------------


def begin_run(path: str, size: Size) -> Sample:
    """A run with one checkpoint in two payload files, one twice as large as the other, as with momentum."""
    contenders.quietly()
    random = np.random.default_rng(0)
    with holdfast.Run(path) as run:
        run.track(model=_Array(random.integers(0, 255, size.copied // 3, np.uint8)))
        run.resume()
        run.state["moments"] = random.integers(0, 255, size.copied - size.copied // 3, np.uint8)
        run.save(step=1, wait=True)
    return Sample(0.0, facts={"nbytes": limits.bytes_in(path)})


class _Array:
    def __init__(self, content: object) -> None:
        self.content = content

    def state_dict(self) -> dict[str, object]:
        return {"content": self.content}

    def load_state_dict(self, state: dict[str, object]) -> None:
        self.content = state["content"]


def push(run: str, target: str) -> Sample:
    contenders.quietly()
    limits.warm(run)
    task = Push(run, target)
    return _copied(task, task.go)


def pull(source: str, run: str) -> Sample:
    contenders.quietly()
    limits.warm(source)
    task = Pull(source, run)
    return _copied(task, task.go)


def _copied(task: Push | Pull, go: Callable[[], None]) -> Sample:
    seconds, extra = measured(go)
    if [item.status for item in task.items] != ["copied"]:
        raise Failed(f"not copied: {task.items}")
    return Sample(seconds, extra)


def program(words: list[str], source: str, target: str, durable: bool) -> Sample:
    """A program that copies a folder; what makes the copy durable is timed along with it where that is asked for."""
    if shutil.which(words[0]) is None:
        return Sample(None, facts={"note": f"{words[0]} is not installed"})
    limits.warm(source)
    started = time.perf_counter()
    subprocess.run([*words, source, target], check=True)
    if durable:
        for path in limits.files_in(target):
            limits.sync(path)
    return Sample(time.perf_counter() - started)


# -- the topics -----------------------------------------------------------------------------------


def topics(bench: Bench) -> Iterator[Topic]:
    run, there = bench.path("copied"), bench.path("there")
    nbytes = bench.run(begin_run, run, bench.size).facts["nbytes"]
    bench.kept.add("copied")
    text = f"{nbytes / 2**30:.2g} GiB, warm, to a directory on the same disk"
    yield Topic(
        "mirrors",
        f"Push: {text}",
        [
            *bench.write_limits(nbytes, few=True),
            Case(_PUSH, "holdfast", lambda _: bench.cleared(push, run, there), nbytes),
            *_programs(bench, run, there, nbytes),
        ],
        bench.size.repetitions,
        targets=[_at_most(_PUSH, "cp -r + sync")],
    )
    yield Topic(
        "mirrors",
        f"Pull: {text}",
        [
            *bench.write_limits(nbytes, few=True),
            Case(_PULL, "holdfast", lambda _: bench.cleared(pull, run, there), nbytes),
            *_programs(bench, run, there, nbytes),
        ],
        bench.size.repetitions,
        targets=[_at_most(_PULL, "cp -r + sync")],
    )
    bench.kept.discard("copied")


def _programs(bench: Bench, source: str, target: str, nbytes: int) -> list[Case]:
    ways = {
        "cp -r + sync": (["cp", "-r"], True),
        "cp -r (not durable)": (["cp", "-r"], False),
        "rsync -a + sync": (["rsync", "-a"], True),
    }
    return [
        Case(
            who,
            "peer",
            lambda _, words=words, durable=durable: bench.cleared(  # type: ignore[misc]
                program, words, source, target, durable
            ),
            nbytes,
        )
        for who, (words, durable) in ways.items()
    ]


def _at_most(ours: str, other: str, bound: float = 1.1) -> Target:
    def value(rows: Rows) -> float | None:
        return ratio(rows.seconds(ours), rows.seconds(other))

    return Target(
        f"{ours.removeprefix('**Holdfast** ')}: at most {bound:g}x the time of {other}", value, bound
    )
