"""What is measured: for each topic the machine's limit, Holdfast, and its peers."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from benchmarks import children, longrun, tasks
from benchmarks.children import Sample
from benchmarks.contenders import LOADERS, SAVERS
from benchmarks.limits import thread_counts, writer_counts
from benchmarks.sizes import Size


@dataclass(frozen=True, slots=True)
class Case:
    """Something to measure several times.

    Attributes:
        who: the row; cases of the same `who` are variants, of which the fastest is shown.
        role: "limit", "holdfast" or "peer".
        measure: takes the number of the repetition.
        nbytes: what is moved, for a rate; 0 where a rate says nothing.

    """

    who: str
    role: str
    measure: Callable[[int], Sample]
    nbytes: int = 0


@dataclass(frozen=True, slots=True)
class Topic:
    key: str
    title: str
    cases: list[Case]
    repetitions: int


class Bench:
    """Makes the topics in a directory of their own, one at a time; each is cleared away after it."""

    def __init__(self, place: str, size: Size) -> None:
        self.place, self.size = place, size
        self.context = children.start()
        self.run(tasks.nothing)

    def run(self, task: Callable[..., Sample], *arguments: Any) -> Sample:
        return children.run(self.context, task, *arguments)

    def path(self, name: str) -> str:
        return os.path.join(self.place, name)

    def clear(self) -> None:
        """Empties the directory, and lets the disk come to rest."""
        for name in os.listdir(self.place):
            path = self.path(name)
            if os.path.isdir(path) and not os.path.islink(path):
                shutil.rmtree(path)
            else:
                os.unlink(path)
        os.sync()

    # -- the topics ----------------------------------------------------------------------------

    def topics(self) -> Iterator[tuple[str, Callable[[], Topic]]]:
        yield "save", self.saving
        yield "load", self.loading
        yield "stall", self.stalling
        yield "save-arrays", self.saving_arrays
        yield "load-arrays", self.loading_arrays
        yield "import", self.importing
        yield "ls", self.listing
        yield "resume", self.resuming

    def saving(self) -> Topic:
        facts = self._once(tasks.save, "holdfast").facts
        nbytes = facts["nbytes"]
        cases = self._write_limits(nbytes)
        for who, contender in SAVERS.items():
            cases.append(
                Case(
                    f"{contender.name}{'' if who in ('holdfast', 'dcp') else ' + fsync'}",
                    _role(who),
                    lambda _, who=who: self._once(tasks.save, who),  # type: ignore[misc]
                    nbytes,
                )
            )
        return Topic(
            "save", f"Durable blocking save, {_state(self.size, nbytes)}", cases, self.size.repetitions
        )

    def loading(self) -> Topic:
        wanted: dict[str, Any] = {}
        for who in SAVERS:
            wanted[who] = self.run(tasks.save, who, self.path(f"load-{who}"), self.size).facts
        nbytes = wanted["holdfast"]["nbytes"]
        file = self.path("load-torch")
        cases = [
            Case(
                "limit: read from the page cache",
                "limit",
                lambda _, threads=threads: self.run(tasks.raw_read, file, threads),  # type: ignore[misc]
                nbytes,
            )
            for threads in thread_counts()
        ]
        for who, contender in LOADERS.items():
            source = who.removesuffix("-mmap")

            def measure(_: int, who: str = who, source: str = source) -> Sample:
                sample = self.run(tasks.restore, who, self.path(f"load-{source}"), self.size)
                if sample.facts["fingerprint"] != wanted[source]["fingerprint"]:
                    raise children.Failed(f"{who} loaded other values than were saved")
                return sample

            cases.append(Case(contender.loading, _role(who), measure, nbytes))
        title = f"Warm load into a live network and optimizer, {_state(self.size, nbytes)}"
        return Topic("load", title, cases, self.size.repetitions)

    def stalling(self) -> Topic:
        nbytes = self._once(tasks.save, "holdfast").facts["nbytes"]
        cases = [
            Case(
                "limit: memcpy of the state",
                "limit",
                lambda _, threads=threads: self.run(tasks.raw_copy, nbytes, threads),  # type: ignore[misc]
                nbytes,
            )
            for threads in thread_counts()
        ]
        for who, role, task, earlier in (
            ("**Holdfast** run.save, every save after the first", "holdfast", tasks.stall, 1),
            ("**Holdfast** run.save, the first", "holdfast", tasks.stall, 0),
            ("torch DCP async_save, after the first", "peer", tasks.stall_distributed, 1),
        ):

            def measure(_: int, task: Callable[..., Sample] = task, earlier: int = earlier) -> Sample:
                sample = self.run(task, self.path("stall"), self.size, earlier)
                self.clear()
                return sample

            cases.append(Case(who, role, measure, nbytes))
        title = f"How long a background save holds the training, {_state(self.size, nbytes)}"
        return Topic("stall", title, cases, self.size.repetitions)

    def saving_arrays(self) -> Topic:
        nbytes = self.size.arrays * 1024
        cases = self._write_limits(nbytes)
        for who, contender in SAVERS.items():
            cases.append(
                Case(
                    f"{contender.name}{'' if who in ('holdfast', 'dcp') else ' + fsync'}",
                    _role(who),
                    lambda _, who=who: self._once(tasks.save_arrays, who),  # type: ignore[misc]
                    nbytes,
                )
            )
        return Topic(
            "save-arrays",
            f"Durable save of {self.size.arrays:,} arrays of 1 KiB",
            cases,
            self.size.repetitions,
        )

    def loading_arrays(self) -> Topic:
        nbytes = self.size.arrays * 1024
        for who in SAVERS:
            self.run(tasks.save_arrays, who, self.path(f"arrays-{who}"), self.size)
        file = self.path("arrays-torch")
        cases = [
            Case(
                "limit: read from the page cache",
                "limit",
                lambda _: self.run(tasks.raw_read, file, 1),
                nbytes,
            )
        ]
        for who, contender in LOADERS.items():
            path = self.path(f"arrays-{who.removesuffix('-mmap')}")
            cases.append(
                Case(
                    contender.loading,
                    _role(who),
                    lambda _, who=who, path=path: self.run(tasks.load_arrays, who, path, self.size),  # type: ignore[misc]
                    nbytes,
                )
            )
        title = f"Load of {self.size.arrays:,} arrays of 1 KiB"
        return Topic("load-arrays", title, cases, self.size.repetitions)

    def importing(self) -> Topic:
        cases = [
            Case("limit: a bare interpreter", "limit", _python("pass")),
            Case("**Holdfast** import holdfast", "holdfast", _python("import holdfast")),
            Case("**Holdfast** import holdfast, holdfast.Run", "holdfast", _python("import holdfast; holdfast.Run")),
            Case("import numpy", "peer", _python("import numpy")),
            Case("import safetensors", "peer", _python("import safetensors")),
            Case("**Holdfast** holdfast --help", "holdfast", _command("--help")),
        ]  # fmt: skip
        return Topic("import", "Starting", cases, self.size.starts)

    def listing(self) -> Topic:
        run = self._long_run()
        cases = [
            Case("limit: a bare interpreter", "limit", _python("pass")),
            Case("**Holdfast** holdfast ls", "holdfast", _command("ls", run)),
            Case("**Holdfast** holdfast ls --json", "holdfast", _command("ls", "--json", run)),
            Case("**Holdfast** the same in Python", "holdfast", lambda _: self.run(tasks.scan, run)),
        ]
        return Topic("ls", f"Listing {self.size.checkpoints:,} checkpoints", cases, self.size.repetitions)

    def resuming(self) -> Topic:
        run, short = self._long_run(), self.path("short")
        self.run(tasks.begin_run, short)
        cases = [
            Case("limit: the same with 1 checkpoint", "limit", lambda _: self.run(tasks.resume, short)),
            Case("**Holdfast** run.resume()", "holdfast", lambda _: self.run(tasks.resume, run)),
        ]
        title = f"Resuming a run of {self.size.checkpoints:,} checkpoints"
        return Topic("resume", title, cases, self.size.repetitions)

    # -- what they share -------------------------------------------------------------------------

    def _once(self, task: Callable[..., Sample], who: str) -> Sample:
        """One save, with nothing on the disk before and after."""
        sample = self.run(task, who, self.path("saved"), self.size)
        self.clear()
        return sample

    def _write_limits(self, nbytes: int) -> list[Case]:
        def case(threads: int, direct: bool) -> Case:
            def measure(_: int) -> Sample:
                sample = self.run(tasks.raw_write, self.path("raw"), nbytes, threads, direct)
                self.clear()
                return sample

            return Case("limit: raw write + fsync", "limit", measure, nbytes)

        return [case(threads, direct) for direct in (True, False) for threads in writer_counts()]

    def _long_run(self) -> str:
        path = self.path("long")
        self.run(tasks.begin_run, path)
        longrun.multiply(path, self.size.checkpoints)
        return path


def _role(who: str) -> str:
    return "holdfast" if who == "holdfast" else "peer"


def _state(size: Size, nbytes: int) -> str:
    return f"GPT-2 ({size.layers} layers, width {size.width}) with AdamW, {nbytes / 1e9:.2g} GB"


def _timed(command: list[str]) -> Sample:
    started = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    seconds = time.perf_counter() - started
    if done.returncode:
        raise children.Failed(f"{' '.join(command)} ended with code {done.returncode}: {done.stderr[-500:]}")
    return Sample(seconds)


def _python(code: str) -> Callable[[int], Sample]:
    return lambda _: _timed([sys.executable, "-c", code])


def _command(*arguments: str) -> Callable[[int], Sample]:
    code = "import sys; from holdfast.cli.main import main; sys.exit(main())"
    return lambda _: _timed([sys.executable, "-c", code, *arguments])
