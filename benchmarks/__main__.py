"""Measures Holdfast beside its peers and the machine's limits, and prints one table.

Repetitions are interleaved: every row is measured once, then every row again, so that a slow
minute of the machine touches all of them. Each measurement runs in a process of its own.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import shlex
import sys
import tempfile
from collections.abc import Sequence

from benchmarks import machine, page, table
from benchmarks.children import Failed
from benchmarks.sizes import FULL, QUICK
from benchmarks.topics import Bench, Topic


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--quick", action="store_true", help="small states, one repetition: does it run?")
    parser.add_argument(
        "--only", action="append", metavar="TOPIC", help="one topic (save, load, …); may be repeated"
    )
    parser.add_argument("--repetitions", type=int, metavar="N", help="measurements of each row (5)")
    parser.add_argument("--directory", metavar="DIR", help="where to write; default: the working directory")
    parser.add_argument("--write", metavar="PAGE", help="put the results between the markers of this page")
    options = parser.parse_args(arguments)
    size = QUICK if options.quick else FULL
    if options.repetitions:
        size = dataclasses.replace(size, repetitions=options.repetitions, starts=options.repetitions)
    with tempfile.TemporaryDirectory(prefix=".benchmarks-", dir=options.directory or os.getcwd()) as place:
        bench = Bench(place, size)
        known = [key for key, _ in bench.topics()]
        unknown = set(options.only or ()) - set(known)
        if unknown:
            parser.error(f"no topic {', '.join(sorted(unknown))}; there are {', '.join(known)}")
        facts = machine.facts(place)
        lines: list[tuple[str, ...]] = []
        failed = False
        for key, make in bench.topics():
            if options.only and key not in options.only:
                continue
            try:
                topic = make()
            except Failed as failure:
                topic = Topic(key, f"{key}: could not be prepared", [], 0)
                print(f"{key}: {failure}", file=sys.stderr)
                failed = True
            rows = measure(bench, topic)
            failed = failed or any(row.failure for row in rows if row.role == "holdfast")
            lines += table.lines(topic, rows)
            bench.clear()
    command = "python -m benchmarks" + "".join(
        f" {shlex.quote(word)}"
        for word in _telling(list(arguments if arguments is not None else sys.argv[1:]))
    )
    results = "\n".join(
        [
            f"Measured by `{command}`, {size.repetitions} interleaved repetitions.",
            "",
            *(f"- {name}: {fact}" for name, fact in facts.items()),
            "",
            table.markdown(lines),
        ]
    )
    print(results)
    if options.write:
        page.insert(options.write, results)
    return 1 if failed else 0


def _telling(arguments: list[str]) -> list[str]:
    """The arguments without the directory, which is a fact about this machine only."""
    kept, skip = [], False
    for word in arguments:
        if not skip and not word.startswith("--directory"):
            kept.append(word)
        skip = word == "--directory"
    return kept


def measure(bench: Bench, topic: Topic) -> list[table.Row]:
    """Measures every case of a topic in turn, as often as it asks; says where it is on stderr."""
    rows = [table.Row(case.who, case.role, case.nbytes) for case in topic.cases]
    for repetition in range(topic.repetitions):
        for case, row in zip(topic.cases, rows, strict=True):
            if row.failure is not None:
                continue
            print(
                f"\r\033[K{topic.key} {repetition + 1}/{topic.repetitions}: {case.who}",
                end="",
                file=sys.stderr,
                flush=True,
            )
            try:
                row.samples.append(case.measure(repetition))
            except Failed as failure:
                text = str(failure).strip()
                row.failure = text.splitlines()[-1]
                print(f"\n{text}", file=sys.stderr)
    print("\r\033[K", end="", file=sys.stderr, flush=True)
    return rows


if __name__ == "__main__":
    sys.exit(main())
