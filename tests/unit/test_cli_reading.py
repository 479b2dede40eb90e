"""`ls`, `show`, `verify`, `diff` and `doctor` as a user sees them."""

import json
import os
import re

import pytest
from cli_runs import call, call_json, checkpoints, flip, make_run

import holdfast
from holdfast import Keep, doctor, meter
from holdfast.cli import progress, text

ESCAPE = "\x1b"


@pytest.fixture
def run(tmp_path):
    return make_run(tmp_path / "run")


# -- ls ------------------------------------------------------------------------------------------


def test_ls_shows_each_checkpoint_newest_last(run):
    """Each checkpoint has a line with epoch, step, size, metric, marks and why it is kept."""
    lines = call("ls", run).output.splitlines()
    assert lines[0].startswith(run[:60])
    assert lines[1].split()[:5] == ["SEQ", "EPOCH", "STEP", "AGE", "SIZE"]
    assert [line.split()[0] for line in lines[2:]] == ["1", "2", "3", "4"]
    assert "best" in lines[3]
    assert "0.9" in lines[3]
    assert "latest" in lines[5]
    assert "newest" in lines[5]


@pytest.mark.parametrize("columns", [20, 40, 60, 80, 120, 200])
def test_ls_fits_the_width(tmp_path, columns):
    """At 60 columns and more no line is longer than the terminal; wide ones show full names."""
    path = make_run(tmp_path / "run", note="n" * 300)
    output = call("ls", path, env={"COLUMNS": str(columns)}).output
    if columns >= 60:
        assert max(map(len, output.splitlines())) <= columns
    assert ("_epoch-0004_" in output) == (columns >= 150)
    assert ESCAPE not in output


def test_ls_marks(run):
    """Pinned, abandoned, NaN-marked and damaged checkpoints are marked as such."""
    paths = checkpoints(run)
    holdfast.open(paths[0]).pin()
    again = holdfast.Run(run, config={"lr": 0.1}, keep=Keep(last=None, metric="accuracy", mode="max"))
    again.resume()
    again.save(epoch=5, step=50, metrics={"accuracy": float("nan")}, wait=True)
    again.close()
    flip(os.path.join(paths[2], "checkpoint.json"), 100)
    rows = call_json("ls", run)["checkpoints"]
    assert [row["marks"] for row in rows] == [["pinned"], ["best"], ["damaged"], [], ["latest", "NaN"]]
    assert "digest" in rows[2]["problem"]
    output = call("ls", run).output
    assert "\n3: " in output
    assert rows[4]["metrics"] == {"accuracy": "nan"}


def test_ls_says_what_the_next_save_deletes(tmp_path):
    """What the run's Keep no longer holds is shown as going."""
    path = make_run(tmp_path / "run", epochs=3)
    run = holdfast.Run(path, config={"lr": 0.1}, keep=Keep(last=1))
    run.resume()
    run.close()
    rows = call_json("ls", path)["checkpoints"]
    assert [row["kept"] for row in rows] == [False, False, True]
    assert "goes: beyond" in call("ls", path).output


def test_ls_lists_the_runs_of_a_directory(tmp_path):
    """A directory lists its runs, also nested ones, with the newest progress, count and size."""
    make_run(tmp_path / "a", epochs=2)
    make_run(tmp_path / "deep" / "b", epochs=1)
    (tmp_path / "other").mkdir()
    runs = call_json("ls", tmp_path)["runs"]
    assert [(r["name"], r["epoch"], r["step"], r["checkpoints"]) for r in runs] == [
        ("a", 2, 20, 2),
        ("deep/b", 1, 10, 1),
    ]
    lines = call("ls", tmp_path).output.splitlines()
    assert len(lines) == 3
    assert call("ls", tmp_path / "other").exit_code == 4


def test_ls_of_something_else(tmp_path, run):
    """A checkpoint, a file and nothing each get a clear error, and the empty run a line."""
    assert "holdfast show" in call("ls", checkpoints(run)[0]).stderr
    (tmp_path / "file").write_text("x")
    assert call("ls", tmp_path / "file").exit_code == 6
    result = call("ls", tmp_path / "rum")
    assert (result.exit_code, "id you mean 'run'" in result.stderr) == (4, True)
    for path in checkpoints(run):
        os.rename(path, tmp_path / os.path.basename(path))
    assert "no checkpoint yet" in call("ls", run).output


def test_a_foreign_checkpoint_is_listed_as_such(tmp_path, run):
    """A checkpoint of another run is marked foreign, and verify tells it from damage."""
    other = make_run(tmp_path / "other", epochs=1)
    target = checkpoints(other)[0].replace("000001_", "000009_")
    os.rename(checkpoints(other)[0], target)
    os.rename(target, os.path.join(run, os.path.basename(target)))
    assert call_json("ls", run)["checkpoints"][-1]["marks"] == ["foreign"]
    result = call("verify", run)
    assert result.exit_code == 6
    assert "foreign  000009" in result.output


# -- show ----------------------------------------------------------------------------------------


def test_show_prints_the_card_and_the_arrays(run):
    """Into a pipe go the plain card, the arrays with dtype, shape and bytes, and the files."""
    output = call("show", f"{run}@seq=2").output
    with open(os.path.join(checkpoints(run)[1], "README.md"), encoding="utf-8") as file:
        assert output.startswith(file.read())
    assert "state/weights  F32      3x4     48" in output
    assert "checkpoint.json" in output
    assert ESCAPE not in output


def test_show_cuts_long_lists_of_arrays(tmp_path):
    """Of many arrays the first twenty are listed; --arrays lists all."""
    holdfast.save(tmp_path / "many", {"m": {f"a{n}": __import__("numpy").zeros(n + 1) for n in range(50)}})
    output = call("show", tmp_path / "many").output
    assert "and 30 more: --arrays" in output
    assert "m/a49" not in output
    assert "m/a49" in call("show", tmp_path / "many", "--arrays").output


def test_show_json_has_what_the_manifest_has(run):
    """--json gives config, metrics, environment, parts and every array."""
    content = call_json("show", run)
    assert content["config"] == {"lr": 0.1}
    assert content["metrics"]["accuracy"] == 0.8
    assert content["progress"]["epoch"] == 4
    assert content["environment"]["holdfast"] == holdfast.__version__
    (array,) = content["arrays"]
    assert (array["name"], array["dtype"], array["shape"], array["bytes"]) == (
        "state//weights",
        "F32",
        [3, 4],
        48,
    )


def test_show_with_a_damaged_card(run):
    """A damaged card is said on stderr, and one made anew is shown."""
    flip(os.path.join(checkpoints(run)[3], "README.md"), 3)
    result = call("show", run)
    assert result.exit_code == 0
    assert result.stdout.startswith("# 000004_")
    assert "warning" in result.stderr
    assert "README.md" in result.stderr


def test_a_hostile_card_cannot_steer_the_terminal(tmp_path):
    """Escape sequences in a note come out as replacement characters."""
    holdfast.save(tmp_path / "bad", {"m": {"x": 1}}, note="\x1b]0;owned\x07 \u202eevil")
    output = call("show", tmp_path / "bad").output
    assert "owned" in output
    assert not set(output) & {"\x1b", "\x07", "\u202e"}


# -- verify --------------------------------------------------------------------------------------


def test_verify_whole(run):
    """A whole run gets a line for each checkpoint, a count, and code 0."""
    result = call("verify", run)
    assert result.exit_code == 0
    assert result.output.count("whole    0000") == 4
    assert result.output.splitlines()[-1].endswith("read: all whole")
    assert call("verify", f"{run}@best").output.startswith("whole    000002")


def test_verify_nothing(tmp_path):
    """Of a run without a checkpoint nothing is called whole."""
    with holdfast.Run(tmp_path / "run") as empty:
        empty.resume()
    assert call("verify", tmp_path / "run").output == "No checkpoint yet: nothing to verify.\n"


@pytest.mark.parametrize("file", ["state.safetensors", "arrays.json", "README.md", "checkpoint.json"])
def test_verify_names_the_damage(run, file):
    """A flipped bit in any file of one checkpoint is found; the file is named and the code is 5."""
    flip(os.path.join(checkpoints(run)[1], file), 20)
    result = call("verify", run)
    assert result.exit_code == 5
    assert file in result.output
    assert result.output.count("whole    0000") == 3
    assert result.output.count("damaged  0000") == 1
    assert result.output.splitlines()[-2].endswith("1 not whole")
    assert result.output.splitlines()[-1].startswith(f"Next: holdfast verify {run} --repair --mirror PLACE")
    assert result.output.count("Next:") == 1
    content = call_json("verify", run)
    assert content["damaged"] == 1
    (row,) = [row for row in content["checkpoints"] if row["status"] != "whole"]
    assert row["problems"][0]["error"] == "DamagedError"
    assert call("verify", checkpoints(run)[1]).exit_code == 5


def test_verify_names_block_and_arrays(run):
    """Damage in a payload file is narrowed down to the block and the arrays in it."""
    flip(os.path.join(checkpoints(run)[0], "state.safetensors"))
    (problem,) = call_json("verify", f"{run}@seq=1")["checkpoints"][0]["problems"]
    assert (problem["file"], problem["block"]) == ("state.safetensors", 0)
    assert [name.replace("//", "/") for name in problem["arrays"]] == ["state/weights"]


def test_verify_finds_missing_files(run):
    """A checkpoint without a payload file, or without its manifest, is damaged."""
    os.remove(os.path.join(checkpoints(run)[0], "state.safetensors"))
    os.remove(os.path.join(checkpoints(run)[1], "checkpoint.json"))
    result = call("verify", run)
    assert result.exit_code == 5
    assert result.output.count("damaged  0000") == 2


# -- diff ----------------------------------------------------------------------------------------


def test_diff_of_equal_states(tmp_path):
    """Two equal trainings are said to be equal with what was compared; --exit-code gives 0."""
    one, other = make_run(tmp_path / "one", seed=3), make_run(tmp_path / "other", seed=3)
    result = call("diff", one, other, "--exit-code")
    assert result.exit_code == 0
    assert "Equal, bit for bit: 1 array (48 bytes) and " in result.output
    assert "random streams and progress" in result.output
    assert call_json("diff", one, other)["equal"] is True


def test_diff_of_different_states(run):
    """Different states are shown with arrays and values; the code is 1 only with --exit-code."""
    result = call("diff", f"{run}@seq=1", f"{run}@seq=2", "--exit-code")
    assert result.exit_code == 1
    assert "DIFFERENT: 1 of 1 array" in result.output
    assert "11 of 12" in result.output
    assert "state/loss" in result.output
    assert call("diff", f"{run}@seq=1", f"{run}@seq=2").exit_code == 0
    content = call_json("diff", f"{run}@seq=1", f"{run}@seq=2")
    assert content["array_differences"][0]["max_abs"] == 11.0
    assert content["equal"] is False


def test_diff_shows_where_long_texts_part(tmp_path):
    """Of two long texts the place where they part is shown, not their equal beginning."""
    for name in ("a", "b"):
        holdfast.save(tmp_path / name, {"m": {"text": "same " * 50 + name * 3}})
    output = call("diff", tmp_path / "a", tmp_path / "b").output
    assert "aaa" in output
    assert "bbb" in output
    assert max(map(len, output.splitlines()[4:])) <= 80


def test_diff_limits_its_lists(tmp_path):
    """Twenty of a kind are shown, with the count of the others; --all shows all."""
    for name, value in (("a", 0), ("b", 1)):
        holdfast.save(tmp_path / name, {"m": {f"v{n}": value for n in range(30)}})
    assert "and 10 more: --all" in call("diff", tmp_path / "a", tmp_path / "b").output
    assert "m/v29" in call("diff", tmp_path / "a", tmp_path / "b", "--all").output


# -- doctor --------------------------------------------------------------------------------------


def test_doctor_tells_the_facts(run, monkeypatch):
    """Versions, storage, speed, save cost and Slurm each have a line, in 80 columns."""
    monkeypatch.setattr(doctor, "TEST_BYTES", 1 << 20)
    output = call("doctor", run, env={"COLUMNS": "80"}).output
    for word in ("versions", "file system", "direct I/O", "free", "write speed", "held by", "saves", "Slurm"):
        assert f"\n{word}" in f"\n{output}"
    assert max(len(line) for line in output.splitlines() if not line.startswith("directory ")) <= 80
    content = call_json("doctor", run, "--no-write")
    assert content["cost"]["saves"] == 4
    assert content["storage"]["write_speed"] is None


# -- progress and text ---------------------------------------------------------------------------


def test_long_reads_say_lines_in_a_log(capsys, monkeypatch):
    """Without a terminal a long read says a plain line now and then, never more than the total."""
    monkeypatch.setattr(meter, "LINE_SECONDS", 0.0)
    with progress.reading("verify", 1 << 30) as tell:
        tell(1 << 29)
        tell(1 << 30)
    half, end = capsys.readouterr().err.splitlines()
    assert re.fullmatch(r"holdfast: verify: 50% \(537 MB of 1\.07 GB\), [\d.]+ [kMGT]?B/s, \S+ s left", half)
    assert re.fullmatch(r"holdfast: verify: 100% \(1\.07 GB of 1\.07 GB\), [\d.]+ [kMGT]?B/s", end)
    with progress.reading("verify", 1000) as tell:
        tell(1000)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("count", "expected"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1 kB"),
        (130_201, "130 kB"),
        (1_537_000_000, "1.54 GB"),
        (999_600, "1 MB"),
        (5e15, "5000 TB"),
    ],
)
def test_sizes_have_three_digits(count, expected):
    """Sizes are short, and never 1000 of a unit that has a larger one."""
    assert text.size(count) == expected


def test_json_is_strict(run):
    """The output of --json parses without NaN and is one object."""
    for words in (["ls", run], ["show", run], ["verify", run], ["prune", run], ["diff", run, run]):
        content = json.loads(call(*words, "--json").stdout, parse_constant=lambda word: pytest.fail(word))
        assert isinstance(content, dict)
