"""For all tests: runs that a test leaves open are closed after it, and faults that were tried are counted.

A test that tries faults takes the fixture `tried` and says how many of which kind; the figures of
all tests that passed stand at the end of the terminal, and `--figures PAGE` writes them into a page.
"""

import contextlib
import datetime
import logging
import platform
import sys

import pytest

KINDS = {
    "kills": "places in the write protocol, the take-over and the deletion where the process was killed",
    "errors": "system calls of the same that failed, fell short or were interrupted",
    "requests": "requests to an object store that failed, or after which the process was killed",
    "power": "contents of a disk that a power loss could leave",
    "bits": "single bits flipped",
    "harms": "other harms to a checkpoint's files (cut, longer, gone, swapped, foreign, zeroed)",
    "fuzz": "manifests, headers and skeletons made up or bent by a fuzzer",
    "trainings": "real trainings killed at a random moment and continued",
    "schedules": "orders of events between contenders for one run",
    "full": "places at which a real file system was full, over its quota or read-only",
    "hostile": "checkpoints made to harm whoever opens them",
    "safeguards": "safeguards taken out of the code, and fsyncs out of a recording, each missed by a test",
}
BEGIN, END = "<!-- figures: written by the tests, with --figures -->", "<!-- end of figures -->"
_TRIED = "faults tried"


def pytest_addoption(parser):
    group = parser.getgroup("holdfast")
    group.addoption(
        "--thorough", action="store_true", help="try many more random faults than an everyday run does"
    )
    group.addoption("--figures", metavar="PAGE", help="write how many faults were tried into this page")


@pytest.fixture
def tried(request):
    """Counts faults: `tried("bits", 8)`. They are added up over all tests that pass."""

    def count(kind, number=1):
        assert kind in KINDS, f"{kind} is none of {', '.join(KINDS)}"
        request.node.user_properties.append((_TRIED, (kind, number)))

    return count


@pytest.fixture
def thorough(request):
    """Whether many more faults than usual shall be tried."""
    return request.config.getoption("--thorough")


def pytest_terminal_summary(terminalreporter, config):
    figures = dict.fromkeys(KINDS, 0)
    for report in terminalreporter.stats.get("passed", []):
        for name, value in report.user_properties:
            if name == _TRIED and report.when == "call":
                figures[value[0]] += value[1]
    if not any(figures.values()):
        return
    terminalreporter.section("faults tried")
    for kind, number in figures.items():
        if number:
            terminalreporter.write_line(f"{number:>10,}  {KINDS[kind]}")
    page = config.getoption("--figures")
    if page and not terminalreporter.stats.get("failed") and not terminalreporter.stats.get("error"):
        thorough = ["--thorough"] if config.getoption("--thorough") else []
        _write(page, figures, " ".join(["pytest", *config.args, *thorough]))
        terminalreporter.write_line(f"These figures were written into {page}.")


def _write(page, figures, command):
    with open(page, encoding="utf-8") as file:
        before, rest = file.read().split(BEGIN)
    after = rest.split(END)[1]
    day = datetime.datetime.now(datetime.UTC).date().isoformat()
    system, python = f"{platform.system()} {platform.release()}", platform.python_version()
    lines = [
        f"`{command}`, {day}, {system}, Python {python}:",
        "",
        "| Tried | Faults |",
        "|---:|---|",
        *(f"| {number:,} | {KINDS[kind]} |" for kind, number in figures.items()),
    ]
    with open(page, "w", encoding="utf-8") as file:
        file.write("\n".join([before + BEGIN, "", *lines, "", END + after]))


@pytest.fixture(autouse=True)
def _keep_the_logger():
    """A test that left the library's logger silent would hide what later ones look for: it is the one that fails."""
    logger = logging.getLogger("holdfast")
    level = logger.level
    yield
    left, disabled = logger.level, logger.disabled
    # The first test to import the library sees it set the level.
    logger.setLevel(level or left)
    logger.disabled = False
    assert (left in {level, logging.INFO}, disabled) == (True, False), (
        f"the logger was left at {left}, disabled: {disabled}"
    )


@pytest.fixture(autouse=True)
def _close_runs():
    """A run left open would write its beats beside the next test."""
    yield
    module = sys.modules.get("holdfast.run")
    for run in list(module._open_runs.values()) if module else ():
        with contextlib.suppress(Exception):
            run.close()
    if module:
        module._open_runs.clear()
