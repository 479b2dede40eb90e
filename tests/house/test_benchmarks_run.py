"""The benchmarks run end to end; how fast anything is, is never asserted."""

import json
import os
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


def test_every_row_is_printed(quick):
    """Each topic has its limit, Holdfast and its peers, and every row has a time."""
    lines = [line for line in quick[1].stdout.splitlines() if line.startswith("| ")][2:]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    titles = [row[0] for row in rows if not row[3]]
    assert len(titles) == 8
    topics = {title: [] for title in titles}
    for row in rows:
        if row[0] in topics:
            current = topics[row[0]]
        else:
            current.append(row)
    for title, found in topics.items():
        assert found[0][0].startswith("limit"), title
        assert any("Holdfast" in row[0] for row in found), title
        assert all(" ms" in row[3] or " s" in row[3] for row in found), found
    peers = "\n".join(row[0] for row in rows)
    for peer in (
        "torch.save + fsync",
        "torch.load(mmap=True)",
        "safetensors",
        "torch DCP",
        "async_save",
        "numpy",
    ):
        assert peer in peers


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
    table = [line for line in done.stdout.splitlines() if line.startswith("|")]
    assert "\n".join(table) in text


def test_nothing_is_left_behind(quick):
    """All that was measured is cleared away."""
    assert os.listdir(quick[0].parent) == ["page.md"]


def test_a_page_without_markers_is_left_alone(tmp_path):
    """A page that has no place for results is not changed, and the error shows the markers."""
    from benchmarks import page

    path = tmp_path / "page.md"
    path.write_text("text")
    with pytest.raises(page.MarkersError, match="results: begin"):
        page.insert(str(path), "results")
    assert path.read_text() == "text"


def test_the_long_run_is_a_run(tmp_path):
    """A run multiplied from one checkpoint has as many whole ones as were asked for, all different."""
    pytest.importorskip("torch")
    from benchmarks import longrun, tasks

    from holdfast.store import catalog

    path = str(tmp_path / "run")
    tasks.begin_run(path)
    longrun.multiply(path, 5)
    entries = catalog.scan(path)
    assert [entry.sequence for entry in entries] == [1, 2, 3, 4, 5]
    assert all(entry.clean for entry in entries)
    assert len({json.dumps(entry.summary.metrics) for entry in entries}) == 5


def test_only_the_fastest_variant_is_shown():
    """Of the ways to reach a limit (threads, direct or buffered) the one with the lowest median is shown."""
    from benchmarks.children import Sample
    from benchmarks.table import Row, fastest, lines
    from benchmarks.topics import Topic

    slow = Row("limit", "limit", 10**9, [Sample(2.0), Sample(2.0), Sample(9.0)])
    fast = Row("limit", "limit", 10**9, [Sample(1.0), Sample(1.0), Sample(9.0)])
    none = Row("limit", "limit", 10**9, [Sample(None)])
    ours = Row("us", "holdfast", 10**9, [Sample(2.0, 5_000_000), Sample(3.0, 1), Sample(1.0, 2)])
    assert fastest([slow, fast, none]) == [fast]
    found = lines(Topic("k", "Title", [], 1), [slow, fast, none, ours])
    assert found[2] == ("us", "2.00x", "1.00x", "2.00 s (1.00 s to 3.00 s)", "0.50 GB/s", "5 MB")
