"""The pages are true: their code runs, their links resolve, and what they name exists.

A page's blocks run in order, in a process and a temporary directory of their own, and share one
namespace. What a reader need not see stands in comments of the page:

    <!-- prepare          Python that runs at this place
    …
    -->
    <!-- raises: NAME --> the next Python block must raise this error
    <!-- exits: N -->     the next commands must end with this code
    <!-- skip: WHY -->    the next block is not run
"""

from __future__ import annotations

import builtins
import difflib
import json
import os
import re
import subprocess
import sys
import traceback
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
FRONT = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md"]
PAGES = sorted((ROOT / "docs").glob("*.md"))
RUNNABLE = [FRONT[0], FRONT[1], *PAGES]
EVERY_PAGE = [*FRONT, *sorted((ROOT / "docs").rglob("*.md"))]

# Commands that are not run here, and why. `make` targets are only looked up in the Makefile.
NOT_RUN = {
    r"git clone\b": "needs the network",
    r"(python3? -m )?pip install\b": "needs the network, and would change this environment",
    r"rsync\b": "may be missing; `cp -r` beside it is run",
    r"ssh\b|scp\b": "needs another machine",
    r"sbatch\b|squeue\b|scontrol\b|scancel\b": "needs Slurm; the batch script itself is run by bash",
    r"python -m benchmarks\b": "takes minutes; `make bench` runs it",
}

TRAIN = """\
import argparse
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
import holdfast
from holdfast import Every, Keep, Probe

parser = argparse.ArgumentParser()
parser.add_argument("--run", default="runs/digits")
parser.add_argument("--epochs", type=int, default=3)
parser.add_argument("--lr", type=float, default=0.05)
args = parser.parse_args()
run = holdfast.Run(args.run, config={"lr": args.lr}, note="stand-in", seed=0, every=Every(epochs=1, steps=5),
                   keep=Keep(last=3, best=1, metric="val_accuracy", mode="max"))
x = torch.randn(256, 64, generator=torch.Generator().manual_seed(1))
loader = DataLoader(TensorDataset(x, x.argmax(1) % 10), batch_size=32, shuffle=True)
net = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Dropout(0.1), nn.Linear(128, 10))
opt = torch.optim.SGD(net.parameters(), lr=args.lr, momentum=0.9)
sched = torch.optim.lr_scheduler.StepLR(opt, 10)
run.track(model=net, optimizer=opt, scheduler=sched, probe=Probe(net, x[:4]))
for epoch in run.epochs(args.epochs):
    run.state["loss"] = 0.0
    for a, b in run.batches(loader):
        opt.zero_grad()
        loss = nn.functional.cross_entropy(net(a), b)
        loss.backward()
        opt.step()
        run.state["loss"] += loss.item()
    sched.step()
    run.log(loss=run.state["loss"], val_accuracy=epoch / 10)
run.close()
"""

# Pages that speak of a run which is already there begin with one.
WITH_A_RUN = """\
import pathlib, subprocess, sys
pathlib.Path("train.py").write_text(TRAIN)
subprocess.run([sys.executable, "train.py"], check=True)
"""


# -- reading a page ------------------------------------------------------------------------------

FENCE = re.compile(
    r"^(?P<indent> *)(?P<ticks>`{3,}) *(?P<word>[\w+-]*)[^\n`]*\n(?P<body>.*?)^(?P=indent)(?P=ticks) *$",
    re.M | re.S,
)
COMMENT = re.compile(r"^<!-- *(?P<word>prepare|raises|exits|skip)\b:?(?P<text>.*?)-->", re.M | re.S)


def steps_of(text: str) -> list[dict[str, Any]]:
    """What a page runs, in order: Python blocks, commands, and hidden preparations."""
    fences = list(FENCE.finditer(text))
    # A comment inside a block is part of that block.
    comments = [c for c in COMMENT.finditer(text) if not any(f.start() < c.start() < f.end() for f in fences)]
    steps: list[dict[str, Any]] = []
    pending: dict[str, str] = {}
    for found in sorted([*fences, *comments], key=lambda match: match.start()):
        line = text.count("\n", 0, found.start()) + 1
        if found.re is COMMENT:
            if found["word"] == "prepare":
                head = found["text"].partition("\n")[0]
                assert not head.strip(), f"line {line}: preparation starts on its own line"
                steps.append({"kind": "python", "line": line, "text": found["text"]})
            else:
                pending[found["word"]] = found["text"].strip()
            continue
        options, pending = pending, {}
        body = "".join(row.removeprefix(found["indent"]) for row in found["body"].splitlines(keepends=True))
        kind = {
            "python": "python",
            "py": "python",
            "bash": "shell",
            "sh": "shell",
            "shell": "shell",
            "console": "shell",
        }.get(found["word"])
        if kind is None or "skip" in options:
            continue
        if kind == "shell":
            body = commands_of(body, console=found["word"] == "console")
            if not body:
                continue
        text_of_step = body if kind == "shell" else "\n" + body
        steps.append({"kind": kind, "line": line, "text": text_of_step, **options})
    assert not pending, f"a comment at the end belongs to no block: {pending}"
    return steps


def commands_of(body: str, *, console: bool) -> str:
    """The lines of a block that are run: all of a script, otherwise those not listed above."""
    if console:
        lines, going_on = [], False
        for row in body.splitlines():
            if row.startswith("$ ") or (going_on and row.startswith("> ")) or going_on:
                lines.append(row[2:] if row.startswith(("$ ", "> ")) else row)
                going_on = row.endswith("\\")
        body = "\n".join(lines) + "\n"
    if body.startswith("#!"):
        return body
    logical = re.sub(r"\\\n", "\\\\\0", body).splitlines()
    kept = [row.replace("\0", "\n") for row in logical if is_run(row)]
    return "\n".join(kept) + "\n" if any(row.strip() and not row.startswith("#") for row in kept) else ""


def is_run(command: str) -> bool:
    command = command.strip()
    if re.match(r"make\b", command):
        return False
    return not any(re.match(pattern, command) for pattern in NOT_RUN)


# -- running it, in a process of its own ---------------------------------------------------------


def drive(page: str, steps: list[dict[str, Any]]) -> None:
    """Runs a page's steps in the working directory; ends the process at the first that fails."""
    names: dict[str, Any] = {"__name__": "__main__", "TRAIN": TRAIN}
    for step in steps:
        print(f"-- {page}:{step['line']}", flush=True)
        if step["kind"] == "python":
            _python(page, step, names)
        else:
            done = subprocess.run(["bash", "-euo", "pipefail", "-c", step["text"]], check=False)
            expected = int(step.get("exits", 0))
            if done.returncode != expected:
                sys.exit(
                    f"{page}:{step['line']}: exit code {done.returncode}, expected {expected}\n{step['text']}"
                )


def _python(page: str, step: dict[str, Any], names: dict[str, Any]) -> None:
    import holdfast

    expected = step.get("raises")
    kind = getattr(holdfast, expected, None) or getattr(builtins, expected) if expected else ()
    try:
        exec(compile("\n" * (step["line"] - 1) + step["text"], page, "exec"), names)
    except kind as error:
        print(f"{type(error).__name__}: {error}")
        return
    except BaseException:
        traceback.print_exc()
        sys.exit(f"{page}:{step['line']}: the block failed")
    if expected:
        sys.exit(f"{page}:{step['line']}: {expected} was expected, and nothing was raised")


def run_page(page: Path, directory: Path, before: str = "") -> None:
    steps = steps_of(page.read_text(encoding="utf-8"))
    if before and any(word in step["text"] for step in steps for word in ("runs/digits", "train.py")):
        steps.insert(0, {"kind": "python", "line": 1, "text": before})
    if not steps:
        return
    (directory / "steps.json").write_text(json.dumps([str(page.relative_to(ROOT)), steps]))
    home = directory / "home"
    home.mkdir()
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "HOME": str(home),
        "OMP_NUM_THREADS": "1",
        "TF_NUM_INTRAOP_THREADS": "1",
        "TF_NUM_INTEROP_THREADS": "1",
        "PYTHONWARNINGS": "default",
    }
    done = subprocess.run(
        [sys.executable, __file__, "../steps.json"],
        cwd=_empty(directory / "here"),
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-6000:]


def _empty(directory: Path) -> Path:
    directory.mkdir()
    return directory


def own(page: Path) -> str:
    """Whether the page prepares for itself what it needs."""
    return "" if "<!-- prepare" in page.read_text(encoding="utf-8") else WITH_A_RUN


@pytest.mark.parametrize("page", RUNNABLE, ids=lambda page: page.name)
def test_page_runs(page: Path, tmp_path: Path) -> None:
    """Every Python block and every command of a page runs, in the page's order."""
    run_page(page, tmp_path, own(page))


def test_a_block_that_fails_fails_the_page(tmp_path: Path) -> None:
    """A wrong value, an error that does not come, and a failing command are each noticed."""
    for number, text in enumerate(
        (
            "```python\nassert 1 == 2\n```\n",
            "<!-- raises: UsageError -->\n```python\nx = 1\n```\n",
            "```bash\nfalse\n```\n",
        )
    ):
        page = ROOT / "docs" / "none.md"
        steps = steps_of(text)
        assert len(steps) == 1
        (tmp_path / "steps.json").write_text(json.dumps([page.name, steps]))
        done = subprocess.run(
            [sys.executable, __file__, "steps.json"], cwd=tmp_path, capture_output=True, check=False
        )
        assert done.returncode != 0, number


# -- what the pages name ---------------------------------------------------------------------------


def without_blocks(text: str) -> str:
    return FENCE.sub("", text)


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    found: set[str] = set()
    for heading in re.findall(r"^#{1,6} +(.+?) *#*$", without_blocks(page.read_text(encoding="utf-8")), re.M):
        plain = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading)
        slug = re.sub(r"[^\w\- ]", "", plain.lower()).replace(" ", "-")
        count = sum(1 for other in found if other == slug or re.fullmatch(rf"{re.escape(slug)}-\d+", other))
        found.add(f"{slug}-{count}" if count else slug)
    return found


@pytest.mark.parametrize("page", EVERY_PAGE, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_resolve(page: Path) -> None:
    """Every link between pages and files points to something that is there, heading included."""
    text = re.sub(r"`[^`\n]*`", "", without_blocks(page.read_text(encoding="utf-8")))
    broken = []
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        place = (page.parent / path).resolve() if path else page
        if not place.exists() or (anchor and anchor not in anchors(place)):
            broken.append(target)
    assert not broken


@pytest.mark.parametrize("page", EVERY_PAGE, ids=lambda page: str(page.relative_to(ROOT)))
def test_named_tests_exist(page: Path) -> None:
    """Every test file, test function and example that a page names is there."""
    text = page.read_text(encoding="utf-8")
    missing = []
    for path, name in re.findall(r"\b((?:tests|examples|benchmarks|src)/[\w./-]*\w/?)(?:::(\w+))?", text):
        place = ROOT / path
        if not place.exists() or (
            name and not re.search(rf"def {name}\b", place.read_text(encoding="utf-8"))
        ):
            missing.append(f"{path}::{name}" if name else path)
    for target, name in re.findall(r"\[`(test_\w+)`\]\(([^)]+)\)", text):
        place = (page.parent / name.partition("#")[0]).resolve()
        if not place.is_file() or not re.search(rf"def {target}\b", place.read_text(encoding="utf-8")):
            missing.append(f"{name}::{target}")
    assert not missing


def test_make_targets_exist() -> None:
    """Every `make` command of a page is a target of the Makefile."""
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.M))
    named = {
        word
        for page in EVERY_PAGE
        for words in re.findall(r"(?:^|`|\$ )make((?: [a-z]+)+)", page.read_text(encoding="utf-8"), re.M)
        for word in words.split()
    }
    assert {"demo", "test", "check"} <= named <= targets


def test_every_page_is_reached_from_the_readme() -> None:
    """The README links every page of docs/, and the design records are linked from their list."""
    front = FRONT[0].read_text(encoding="utf-8")
    assert not [page.name for page in PAGES if f"](docs/{page.name}" not in front]
    design = ROOT / "docs" / "design"
    listed = (design / "README.md").read_text(encoding="utf-8")
    assert not [
        page.name
        for page in design.glob("*.md")
        if page.name != "README.md" and f"]({page.name})" not in listed
    ]


def test_every_command_is_in_the_readme() -> None:
    """The README's table of commands and the command line know the same commands."""
    from holdfast.cli.main import COMMANDS

    named = set(re.findall(r"`holdfast ([a-z]+)", without_blocks(FRONT[0].read_text(encoding="utf-8"))))
    assert named == set(COMMANDS)


def test_every_promise_names_tests() -> None:
    """Each of the nine promises has a section that names at least one test function."""
    text = (ROOT / "docs" / "promises.md").read_text(encoding="utf-8")
    sections = re.split(r"^## (P\d)\b", text, flags=re.M)
    bodies = dict(zip(sections[1::2], sections[2::2], strict=True))
    assert list(bodies) == [f"P{number}" for number in range(1, 10)]
    assert not [
        name for name, body in bodies.items() if "test_" not in body or "**Not promised.**" not in body
    ]


def test_three_lines_added_two_changed() -> None:
    """Between the plain loop and the resumable one, three lines are new and two are changed."""
    blocks = [
        step["text"].splitlines()
        for step in steps_of((ROOT / "docs" / "getting-started.md").read_text(encoding="utf-8"))
        if step["kind"] == "python" and "for epoch in" in step["text"]
    ]
    before, after = blocks[:2]
    counts = {"insert": 0, "replace": 0, "delete": 0}
    for kind, a, b, c, d in difflib.SequenceMatcher(None, before, after, autojunk=False).get_opcodes():
        if kind == "replace":
            assert b - a == d - c
            counts[kind] += b - a
        elif kind != "equal":
            counts[kind] += max(b - a, d - c)
    assert counts == {"insert": 3, "replace": 2, "delete": 0}


def test_the_python_names_of_the_pages_exist() -> None:
    """Every `holdfast.NAME`, module or public name, and every method of `run` that a page names is there."""
    import holdfast
    import holdfast.torch

    missing = []
    for page in EVERY_PAGE:
        if "design" in page.parts:
            continue  # records of decisions may speak of what was not built
        text = page.read_text(encoding="utf-8")
        for name in re.findall(r"\bholdfast\.torch\.([a-z]\w+)\b", text):
            if name not in holdfast.torch.__all__:
                missing.append(f"{page.name}: holdfast.torch.{name}")
        for name in re.findall(r"(?<![\w/.-])holdfast\.([A-Za-z]\w+)\b(?!/)", text):
            if name not in (*holdfast.__all__, "torch", "toml") and not find_spec(f"holdfast.{name}"):
                missing.append(f"{page.name}: holdfast.{name}")
        for name in re.findall(r"(?<![\w/.])run\.([a-z]\w+)\b", text):
            if name != "json" and not hasattr(holdfast.Run, name):
                missing.append(f"{page.name}: run.{name}")
    assert not missing


# Each with a class of one character, so that this file does not match itself.
PLACES = r"/[w]ork/|/[h]ome/\w|/[r]oot/|/[U]sers/\w|/opt/[p]ypi|/opt/[w]heels"
HOSTS = r"pypi[.]org|pythonhosted[.]org|download[.]pytorch|-[i]ndex-url|[a]rtifactory"


def test_no_file_names_this_machine() -> None:
    """No line of a file of the repository names a path of one machine, or a package registry."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"],
        cwd=ROOT,
        capture_output=True,
        check=False,
    )
    if listed.returncode:
        pytest.skip("this is not a git repository, so nobody knows which files are tracked")
    pattern = re.compile(f"{PLACES}|{HOSTS}".encode())
    found = []
    for name in filter(None, listed.stdout.decode().split("\0")):
        place = ROOT / name
        if place.is_file() and place.suffix != ".safetensors":
            rows = place.read_bytes().splitlines()
            found += [f"{name}:{number}" for number, row in enumerate(rows, 1) if pattern.search(row)]
    assert not found


if __name__ == "__main__":
    drive(*json.loads(Path(sys.argv[1]).read_text()))
