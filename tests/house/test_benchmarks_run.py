"""The benchmarks run end to end; how fast anything is, is never asserted."""

import json
import logging
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the benchmarks measure memory as Linux does")


@pytest.fixture(scope="module")
def quick(tmp_path_factory):
    """(directory, process) of one quick run, which also writes its results into a page."""
    place = tmp_path_factory.mktemp("benchmarks")
    page = place / "page.md"
    page.write_text("before\n\n" + _markers("old results") + "\nafter\n")
    command = [sys.executable, "-m", "benchmarks", "--quick", "--directory", str(place), "--write", str(page)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    return page, done


def _markers(content):
    from benchmarks.page import BEGIN, END

    return f"{BEGIN}\n\n{content}\n\n{END}"


@pytest.fixture(autouse=True)
def _importable(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT))


@pytest.fixture(autouse=True)
def _heard():
    """What the benchmarks silence for their own process is heard again by the tests after them."""
    logger = logging.getLogger("holdfast")
    level = logger.level
    yield
    logger.setLevel(level or logging.INFO)


def _tables(text):
    """Title → (headings, rows) of what is printed between two titles."""
    found, headings, current = {}, [], None
    lines = text.partition("What is aimed at:")[0].splitlines()
    for before, line in zip(["", *lines], lines, strict=False):
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if not line.startswith("| ") or cells[0].startswith(":-"):
            continue
        if not before.startswith("| "):
            headings = cells
        elif not any(cells[1:]):
            current = found[cells[0]] = (headings, [])
        else:
            current[1].append(cells)
    return found


def test_every_row_is_printed(quick):
    """Each topic has its rows, with Holdfast, its limit and its peers, and each has figures or says why not."""
    tables = _tables(quick[1].stdout)
    assert len(tables) == 23
    for title, (headings, rows) in tables.items():
        timed = "against the limit" in headings
        assert rows, title
        if timed:
            assert rows[0][0].startswith("limit"), title
        if not title.startswith("**Speed by"):
            assert any("Holdfast" in row[0] for row in rows), title
        for row in rows:
            assert any(re.search(r" (ms|s|GB/s|MB|kB)\b", cell) for cell in row[1:]) or (
                "not possible here" in row and "(" in row[0]
            ), row
    names = "\n".join(row[0] for _, rows in tables.values() for row in rows)
    for peer in (
        "torch.save + fsync",
        "torch.load(mmap=True)",
        "safetensors",
        "torch DCP",
        "torch DCP async_save, staged in a thread",
        "torch_checkpointing",
        "no saves",
        "numpy",
        "cp -r + sync",
    ):
        assert peer in names


def test_targets_are_computed(quick):
    """Under the tables stands for each target what was found and whether that meets it."""
    text = quick[1].stdout.partition("What is aimed at:")[2]
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if "|" in line
    ]
    assert rows[0] == ["target", "found", "met"]
    assert len(rows) > 20
    assert {row[2] for row in rows[2:]} <= {"yes", "**no**", "-"}
    keys = {row[0].partition(":")[0] for row in rows[2:]}
    assert {"save", "load", "load-cold", "stall", "loop", "memory", "ls", "trainable"} <= keys


def test_results_are_written_between_the_markers(quick):
    """`--write` replaces what stands between the markers, with the facts and the command, and no more."""
    page, done = quick
    text = page.read_text()
    assert text.startswith("before\n")
    assert text.endswith("\nafter\n")
    assert "old results" not in text
    assert "`python -m benchmarks --quick" in text
    for fact in ("date:", "processor:", "memory:", "file system:", "versions:"):
        assert f"- {fact}" in text
    assert done.stdout.strip() in text


def test_nothing_is_left_behind(quick):
    """All that was measured is cleared away; only the figure stands beside the page."""
    assert sorted(os.listdir(quick[0].parent)) in (["page.md"], ["page.md", "scaling.svg"])


def test_a_run_that_is_ended_clears_up(tmp_path):
    """SIGTERM ends the benchmarks without leaving what they wrote, which is gigabytes."""
    command = [sys.executable, "-m", "benchmarks", "--quick", "--directory", str(tmp_path)]
    with subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as run:
        for _ in iter(lambda: run.stderr.read(1), "/"):  # the first repetition is told: there are files
            pass
        run.terminate()
        run.communicate()
    assert run.returncode == 128 + signal.SIGTERM
    assert os.listdir(tmp_path) == []


def test_a_page_without_markers_is_left_alone(tmp_path):
    """A page that has no place for results is not changed, and the error shows the markers."""
    from benchmarks import page

    path = tmp_path / "page.md"
    path.write_text("text")
    with pytest.raises(page.MarkersError, match="results: begin"):
        page.insert(str(path), "results")
    assert path.read_text() == "text"


def test_topics_that_were_measured_alone_have_their_own_place(tmp_path):
    """What `--only` measures replaces nothing but the results of the same topics."""
    from benchmarks import page

    path = tmp_path / "page.md"
    begin, end = page.markers(["loop"])
    path.write_text(f"{_markers('all')}\n\n{begin}\n\nold\n\n{end}\n")
    page.insert(str(path), "new", ["loop"])
    assert path.read_text() == f"{_markers('all')}\n\n{begin}\n\nnew\n\n{end}\n"
    with pytest.raises(page.MarkersError, match="--only save"):
        page.insert(str(path), "new", ["save"])


def test_the_long_run_is_a_run(tmp_path):
    """A run multiplied from one checkpoint has as many whole ones as were asked for, all different."""
    pytest.importorskip("torch")
    from benchmarks import longrun, runs

    from holdfast.store import catalog

    path = str(tmp_path / "run")
    runs.begin_run(path)
    longrun.multiply(path, 5)
    entries = catalog.scan(path)
    assert [entry.sequence for entry in entries] == [1, 2, 3, 4, 5]
    assert all(entry.clean for entry in entries)
    assert len({json.dumps(entry.summary.metrics) for entry in entries}) == 5


def _row(who, *seconds, role="limit", **more):
    from benchmarks.children import Sample
    from benchmarks.topic import Row

    return Row(who, role, 10**9, [Sample(value) for value in seconds], **more)


def test_only_the_fastest_variant_is_shown():
    """Of the ways to reach a limit (threads, direct or buffered) the one with the lowest median is shown."""
    from benchmarks.children import Sample
    from benchmarks.table import lines
    from benchmarks.topic import Topic, shown

    slow, fast, none = _row("limit", 2.0, 2.0, 9.0), _row("limit", 1.0, 1.0, 9.0), _row("limit")
    ours = _row("us", role="holdfast")
    ours.samples = [Sample(2.0, 5_000_000), Sample(3.0, 5_000_000), Sample(1.0, 5_000_000)]
    assert shown([slow, fast, none]) == [fast]
    found = lines(Topic("k", "Title", [], 1), shown([slow, fast, none, ours]))
    assert found[2] == ("us", "2.00x", "1.00x", "2.00 s (1.00 s to 3.00 s)", "0.50 GB/s", "5.0 MB")


def test_slow_variants_are_dropped_early():
    """After a round only the three fastest ways go on, and one that was dropped is never the limit."""
    from benchmarks.topic import drop_slow_variants, shown

    rows = [_row("limit", seconds) for seconds in (5.0, 1.0, 3.0, 2.0, 4.0)]
    drop_slow_variants([*rows, _row("us", 9.0, role="holdfast")])
    assert [row.dropped for row in rows] == [True, False, False, False, True]
    for row in rows:
        if not row.dropped:
            row.samples += _row("limit", 8.0, 8.0).samples
    assert not shown(rows)[0].dropped


@pytest.mark.parametrize(
    ("value", "at_least", "verdict"),
    [(0.94, True, "**no**"), (0.95, True, "yes"), (0.95, False, "yes"), (0.96, False, "**no**"), (None, True, "-")],
)  # fmt: skip
def test_a_target_says_whether_it_is_met(value, at_least, verdict):
    """A target is met on the right side of its bound and on it, and says when nothing was measured."""
    from benchmarks.table import targets
    from benchmarks.topic import Rows, Target, Topic

    target = Target("claim", lambda _: value, 0.95, at_least)
    assert f" {verdict} |" in targets([(Topic("k", "t", [], 1, targets=[target]), Rows())])


def test_a_peer_that_is_not_installed_has_a_row(tmp_path, monkeypatch):
    """Without torch_checkpointing its rows say so, and nothing fails."""
    pytest.importorskip("torch")
    import importlib.util

    from benchmarks import background, looping, saving, stalling
    from benchmarks.sizes import QUICK

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    path = str(tmp_path / "saved")
    for sample in (
        saving.save("torch_checkpointing", path, QUICK),
        stalling.stall(background.TorchCheckpointing, path, QUICK, "cpu"),
        looping.train(background.TorchCheckpointing, path, QUICK),
    ):
        assert sample.seconds is None
        assert sample.facts["note"] == "torch_checkpointing is not installed"


def test_the_figure_is_the_same_for_the_same_rates(tmp_path):
    """Drawn twice, the figure has the same bytes, its words as text, and is small."""
    pytest.importorskip("matplotlib")
    from benchmarks import plot

    curves = {who: [("1 MiB", 1e9), ("4 MiB", 2e9)] for who in (plot.SAVE, plot.LOAD, plot.WRITE, plot.READ)}
    for name in ("one.svg", "two.svg"):
        plot.draw(str(tmp_path / name), curves, curves)
    one, two = ((tmp_path / name).read_bytes() for name in ("one.svg", "two.svg"))
    assert one == two
    assert b"Holdfast, durable save</text>" in one
    assert len(one) < 60_000
    assert sorted(os.listdir(tmp_path)) == ["one.svg", "two.svg"]


def test_without_matplotlib_the_old_figure_stays(tmp_path, capsys):
    """Where nothing can draw, the figure stays as it was, and a line says so."""
    from benchmarks import page

    def make(path):
        raise ImportError("No module named 'matplotlib'")

    (tmp_path / "scaling.svg").write_text("old")
    page.draw(str(tmp_path / "page.md"), "scaling.svg", make)
    assert (tmp_path / "scaling.svg").read_text() == "old"
    assert "scaling.svg was not drawn: No module named 'matplotlib'" in capsys.readouterr().err


def test_a_cold_file_is_cold(tmp_path):
    """Before a cold read no page of the file is in the page cache, and before a warm one all are."""
    from benchmarks import limits

    from holdfast import storage

    path = tmp_path / "file"
    path.write_bytes(b"x" * (1 << 20))
    if storage.file_system_type(str(tmp_path)) in ("tmpfs", "ramfs", "overlay"):
        pytest.skip("this file system keeps its files in memory, or lies upon another")
    limits.chill(str(path))
    with open(path, "rb") as file:
        assert limits.resident(file.fileno()) == 0
    limits.warm(str(path))
    with open(path, "rb") as file:
        assert limits.resident(file.fileno()) == 1


def test_every_way_of_writing_writes_everything(tmp_path, monkeypatch):
    """Each way writes all bytes, in one file or several, and leaves nothing; one that fails has no time."""
    from benchmarks import limits

    size = (120 << 20) + 123
    synced = []
    fsync = os.fsync
    monkeypatch.setattr(os, "fsync", lambda fd: (synced.append(os.fstat(fd)), fsync(fd)))
    for way in limits.WAYS:
        synced.clear()
        if limits.write(str(tmp_path / "raw"), size, way) is None:
            assert way.direct  # the file system of the tests may lack it
            continue
        files = [known.st_size for known in synced[:-1]]
        assert sum(files) == size
        assert len(files) == way.files
        assert os.listdir(tmp_path) == []
    monkeypatch.setattr(os, "open", lambda *_: (_ for _ in ()).throw(OSError(22, "no")))
    assert limits.write(str(tmp_path / "raw"), size, limits.WAYS[0]) is None
