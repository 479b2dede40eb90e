"""Fixtures of the exactness tests: a fast place for runs, and the comparison of straight and resumed."""

import json
import logging
import os
import shutil
import subprocess
import sys
import tempfile

import pytest

HERE = os.path.dirname(os.path.abspath(__file__))
MEMORY = "/dev/shm"


@pytest.fixture
def place():
    """A directory for runs; in memory where that is possible, since nothing here is about the disk."""
    directory = tempfile.mkdtemp(prefix="holdfast-exact-", dir=MEMORY if os.access(MEMORY, os.W_OK) else None)
    yield directory
    shutil.rmtree(directory, ignore_errors=True)


@pytest.fixture
def assert_exact(place):
    """Runs a training straight, then continues it from checkpoints of every kind; all ends are equal."""
    import trainings as t

    def check(training, cuts=None):
        straight = t.launch(training, f"{place}/straight")
        saving = t.launch(training, f"{place}/saving", thorough=True)
        assert t.differences(straight, saving) == [], "saving changed the training"
        places = t.places(f"{place}/saving")
        for number in choose(places) if cuts is None else cuts(places):
            target = f"{place}/cut-{number}"
            t.copy_until(f"{place}/saving", target, number)
            end = t.launch(training, target, 1000 + number)
            assert t.differences(straight, end) == [], f"resumed at {places[number]}"
            shutil.rmtree(target)
        shutil.rmtree(f"{place}/straight")
        shutil.rmtree(f"{place}/saving")
        return straight

    return check


def choose(places):
    """One checkpoint of each kind, of the second epoch where it has one; for loops of steps a few."""
    found = {}
    for number, progress in places.items():
        if progress.exhausted:
            kind = "after the last batch"
        elif progress.batch > 1:
            kind = f"in the middle of epoch {progress.epoch}"
        elif progress.batch:
            kind = "after the first batch"
        else:
            kind = "at the first batch" if progress.entered else "between epochs"
        if progress.epoch <= 1 or kind not in found:
            found[kind] = number
    numbers = list(places)
    return sorted(
        {*found.values(), numbers[0]} if len(found) > 1 else {numbers[0], numbers[len(numbers) // 2]}
    )


@pytest.fixture
def said():
    """Warnings of the library."""
    lines = []

    class Listener(logging.Handler):
        def emit(self, record):
            if record.levelno >= logging.WARNING:
                lines.append(record.getMessage())

    listener = Listener()
    logging.getLogger("holdfast").addHandler(listener)
    yield lines
    logging.getLogger("holdfast").removeHandler(listener)


@pytest.fixture
def in_processes(place):
    """Carries out orders for `trainings.py` in processes of their own; gives their exit codes."""

    def act(orders, **environment):
        path = f"{place}/orders.json"
        with open(path, "w", encoding="utf-8") as file:
            json.dump(orders, file)
        done = subprocess.run(
            [sys.executable, f"{HERE}/trainings.py", path],
            cwd=HERE,
            env={**os.environ, **environment},
            capture_output=True,
            text=True,
            timeout=240,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout.splitlines()[-1]), done.stderr

    return act
