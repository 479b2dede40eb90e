"""Measures Holdfast beside its peers and the machine's limits, and prints one table.

Repetitions are interleaved: every row is measured once, then every row again, so that a slow
minute of the machine touches all of them. Each measurement runs in a process of its own.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import shlex
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence

from benchmarks import (
    arrays,
    buckets,
    fitting,
    footprint,
    loading,
    looping,
    machine,
    mirrors,
    page,
    partial,
    runs,
    saving,
    scaling,
    stalling,
    table,
)
from benchmarks.bench import Bench
from benchmarks.children import Failed
from benchmarks.sizes import FULL, QUICK, Size
from benchmarks.topic import Row, Rows, Topic, drop_slow_variants, shown

TOPICS: dict[str, Callable[[Bench], Iterator[Topic]]] = {
    "save": saving.topics,
    "load": loading.topics,
    "load-cold": loading.cold_topics,
    "stall": stalling.topics,
    "loop": looping.topics,
    "fit": fitting.topics,
    "memory": footprint.topics,
    "save-arrays": arrays.save_topics,
    "load-arrays": arrays.load_topics,
    "trainable": partial.topics,
    "import": runs.starting,
    "ls": runs.listing,
    "resume": runs.resuming,
    "scaling": scaling.topics,
    "mirrors": mirrors.topics,
    "buckets": buckets.topics,
}


def main(arguments: Sequence[str] | None = None) -> int:
    words = list(arguments if arguments is not None else sys.argv[1:])
    options = _parse(words)
    size = QUICK if options.quick else FULL
    if options.repetitions:
        size = dataclasses.replace(size, repetitions=options.repetitions, starts=options.repetitions)
    chosen = [key for key in TOPICS if not options.only or key in options.only]
    with tempfile.TemporaryDirectory(prefix=".benchmarks-", dir=options.directory or os.getcwd()) as place:
        bench = Bench(place, size)
        facts = machine.facts(place)
        started = time.monotonic()
        measured, failed = measure(bench, chosen)
        facts["measured in"] = f"{(time.monotonic() - started) / 60:.1f} minutes"
    results = "\n".join(
        [
            f"Measured by `{_command(words)}`, {_repetitions(size)}.",
            "",
            *(f"- {name}: {fact}" for name, fact in facts.items()),
            "",
            table.tables(measured),
            "",
            *(f"![Rates beside the machine's limits]({name})\n" for name in bench.figures if options.write),
            "What is aimed at:",
            "",
            *(
                ["The states of a quick run are too small for it to say anything about speed.", ""]
                if options.quick
                else []
            ),
            table.targets(measured) or "nothing in these topics",
        ]
    )
    print(results)
    if options.write:
        page.insert(options.write, results, options.only or ())
        for name, draw in bench.figures.items():
            page.draw(options.write, name, draw)
    return 1 if failed else 0


def _parse(words: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--quick", action="store_true", help="small states, one repetition: does it run?")
    parser.add_argument(
        "--only", action="append", metavar="TOPIC", help=f"may be repeated; one of {', '.join(TOPICS)}"
    )
    parser.add_argument("--repetitions", type=int, metavar="N", help="measurements of each row (5)")
    parser.add_argument("--directory", metavar="DIR", help="where to write; default: the working directory")
    parser.add_argument(
        "--write",
        metavar="PAGE",
        help="put the results between the markers of this page (those of --only have their own), figures beside it",
    )
    options = parser.parse_args(words)
    unknown = set(options.only or ()) - set(TOPICS)
    if unknown:
        parser.error(f"no topic {', '.join(sorted(unknown))}; there are {', '.join(TOPICS)}")
    return options


def measure(bench: Bench, chosen: Sequence[str]) -> tuple[list[tuple[Topic, Rows]], bool]:
    """All rows of the topics, and whether a row of Holdfast, or a whole topic, failed."""
    measured: list[tuple[Topic, Rows]] = []
    failed = False
    for key in chosen:
        started = time.monotonic()
        try:
            for topic in TOPICS[key](bench):
                rows = shown(measure_topic(topic))
                if topic.close is not None:
                    topic.close(rows)
                failed = failed or any(row.failure for row in rows if row.role == "holdfast")
                measured.append((topic, rows))
        except Failed as failure:
            print(f"{key}: {failure}", file=sys.stderr)
            measured.append((Topic(key, f"{key}: could not be prepared", [], 0), Rows()))
            failed = True
        bench.clear()
        print(f"{key}: {time.monotonic() - started:.0f} s", file=sys.stderr)
    return measured, failed


def measure_topic(topic: Topic) -> list[Row]:
    """Measures every case of a topic in turn, as often as it asks; says where it is on stderr."""
    rows = [Row(case.who, case.role, case.nbytes) for case in topic.cases]
    for repetition in range(topic.repetitions):
        for case, row in zip(topic.cases, rows, strict=True):
            if row.failure is not None or row.dropped:
                continue
            place = f"{topic.key} {repetition + 1}/{topic.repetitions}: {case.who}"
            print(f"\r\033[K{place}", end="", file=sys.stderr, flush=True)
            try:
                row.samples.append(case.measure(repetition))
            except Failed as failure:
                text = str(failure).strip()
                row.failure = text.splitlines()[-1]
                print(f"\n{text}", file=sys.stderr)
        drop_slow_variants(rows)
    print("\r\033[K", end="", file=sys.stderr, flush=True)
    return rows


def _command(words: list[str]) -> str:
    """The command without the directory, which is a fact about this machine only."""
    kept, skip = [], False
    for word in words:
        if not skip and not word.startswith("--directory"):
            kept.append(word)
        skip = word == "--directory"
    return "python -m benchmarks" + "".join(f" {shlex.quote(word)}" for word in kept)


def _repetitions(size: Size) -> str:
    return f"{size.repetitions} interleaved repetition{'s' if size.repetitions > 1 else ''}"


if __name__ == "__main__":
    # Ended from outside, it still clears up: what it writes are gigabytes.
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    sys.exit(main())
