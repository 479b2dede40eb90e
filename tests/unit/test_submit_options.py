"""Options of sbatch and defaults of a project: taken as they were written, known where something is decided."""

import math

import pytest

from holdfast.errors import UsageError
from holdfast.jobs import defaults
from holdfast.jobs.naming import fill, limit_seconds, task_numbers
from holdfast.jobs.words import directive, last, merge, read_options


def names(*words):
    return [(option.name, option.value) for option in read_options(words)]


@pytest.mark.parametrize(
    ("words", "found"),
    [
        (["--mem=4G", "--time", "10"], [("mem", "4G"), ("time", "10")]),
        (["-p", "gpu", "-t10", "-N2"], [("partition", "gpu"), ("time", "10"), ("nodes", "2")]),
        (["-Hk"], [("hold", None), ("no-kill", None)]),
        (["-HJ", "name"], [("hold", None), ("job-name", "name")]),
        (["--exclusive", "--hold"], [("exclusive", None), ("hold", None)]),
        (["--arr", "1-3%1"], [("array", "1-3%1")]),
        (["--site-only=x", "--other", "y"], [("site-only", "x"), ("other", "y")]),
        (["--nice=-5", "--comment=a b"], [("nice", "-5"), ("comment", "a b")]),
    ],
)
def test_options_are_read_as_sbatch_reads_them(words, found):
    """Long and short options, with =, a space or nothing before the value, abbreviated or unknown, are told apart."""
    assert names(*words) == found


def test_options_are_passed_on_as_they_were_written():
    """What the user wrote for sbatch stands in the script in the same words."""
    options = read_options(["-p", "gpu", "--gres=gpu:a100:2", "--mem", "4G", "--signal=B:USR1@60"])
    assert [directive(option) for option in options] == [
        "#SBATCH -p gpu",
        "#SBATCH --gres=gpu:a100:2",
        "#SBATCH --mem 4G",
        "#SBATCH --signal=B:USR1@60",
    ]


def test_a_word_that_belongs_to_no_option_is_refused():
    """A command that is not behind -- is refused, with what to write."""
    with pytest.raises(UsageError, match=r"put the command behind --"):
        read_options(["--mem=1G", "a", "train.py"])


def test_a_line_break_in_an_option_is_refused():
    """An option whose value has a line break cannot stand in a script, and is refused."""
    with pytest.raises(UsageError, match=r"--comment has a line break"):
        directive(read_options(["--comment=a\n#SBATCH --time=9"])[0])


def test_the_last_of_an_option_counts_and_the_command_line_wins():
    """Of an option that is given twice the last one counts, and defaults give way to what is given."""
    merged = merge(
        read_options(["-p", "cpu", "--mem=1G", "--requeue"]),
        read_options(["--partition=gpu", "--no-requeue"]),
    )
    assert [(option.name, option.value) for option in merged] == [
        ("mem", "1G"),
        ("partition", "gpu"),
        ("no-requeue", None),
    ]
    assert last(read_options(["-t", "1", "-t", "2"]), "time").value == "2"


# -- [tool.holdfast.slurm] -----------------------------------------------------------------------


def write(folder, text, name="pyproject.toml"):
    (folder / name).write_text(text)
    return defaults.find(str(folder))


def test_defaults_are_found_upward(tmp_path):
    """The nearest file with the table counts; files without it are passed over; holdfast.toml goes first."""
    below = tmp_path / "a" / "b"
    below.mkdir(parents=True)
    assert defaults.find(str(below)) == defaults.Defaults()
    write(tmp_path, '[tool.holdfast.slurm]\npartition = "far"\n')
    write(below, "[tool.black]\nline-length = 100\n")
    found = defaults.find(str(below))
    assert (found.file, found.options[0].value) == (str(tmp_path / "pyproject.toml"), "far")
    write(below, '[tool.holdfast.slurm]\npartition = "near"\n')
    assert (
        write(below, '[tool.holdfast.slurm]\npartition = "first"\n', "holdfast.toml").options[0].value
        == "first"
    )


def test_defaults_say_all_that_the_command_line_can(tmp_path):
    """The table takes sbatch's options, flags, numbers, TOML's own times, modules, conda, setup lines and words of a site."""
    found = write(
        tmp_path,
        '[tool.holdfast.slurm]\ntime = 01:30:00\nmem = "4G"\nnodes = 2\nexclusive = true\nhold = false\ntasks = 4\n'
        'module = ["cuda/12"]\nconda = "ml"\nsetup = "ulimit -c 0"\nsbatch = ["--site=x"]\nallow-local = true\n',
    )
    assert [option.shown for option in found.options] == [
        "--time=01:30:00",
        "--mem=4G",
        "--nodes=2",
        "--exclusive",
        "--site=x",
    ]
    assert (found.mode, found.modules, found.conda, found.setup) == (
        ("tasks", 4),
        ("cuda/12",),
        "ml",
        ("ulimit -c 0",),
    )
    assert found.allow_local


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('partitoin = "gpu"', r"did you mean 'partition'"),
        ('wrap = "x"', r"has a key 'wrap'"),
        ("tasks = 0", r"tasks = 0: expected a whole number from 1 on"),
        ("tasks = 2\nchain = 3", r"tasks and chain, which exclude one another"),
        ("mem = [1]", r"mem = \[1\]: expected a text, a number, true or false"),
        ("module = [1]", r"module = \[1\]: expected a list of texts"),
        ('requeue = "yes"', r"requeue = 'yes': expected true or false"),
    ],
)
def test_a_wrong_default_is_named(tmp_path, text, words):
    """A key that is not known, or of the wrong kind, is a UsageError that names the file, the key and what is near."""
    with pytest.raises(UsageError, match=words) as caught:
        write(tmp_path, f"[tool.holdfast.slurm]\n{text}\n")
    assert str(tmp_path / "pyproject.toml") in str(caught.value)


@pytest.mark.parametrize("text", ["[tool.holdfast.slurm\n", "tool.holdfast.slurm = 3\n"])
def test_a_broken_file_is_named(tmp_path, text):
    """A file that is no TOML, or has no table there, is a UsageError that names it."""
    with pytest.raises(UsageError, match=r"pyproject\.toml"):
        write(tmp_path, text)


# -- numbers and names ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("spec", "numbers"),
    [
        ("1-3%1", [1, 2, 3]),
        ("5", [5]),
        ("1,3,7-11:2%1", [1, 3, 7, 9, 11]),
        ("a", []),
        ("", []),
        ("1-9:0", []),
    ],
)
def test_the_tasks_of_an_array(spec, numbers):
    """The numbers that --array means are those that sbatch gives."""
    assert task_numbers(spec) == numbers


def test_the_names_of_logs():
    """A log's name has the numbers that Slurm puts in, and is empty where only Slurm knows it."""
    assert fill("/logs/%A-%a.out", array="12", task=3) == "/logs/12-3.out"
    assert fill("%4a_%j", job="77", task=5) == "0005_77"
    assert fill("%x-%N.out", job="77") == ""
    assert fill("%x-%j.out", job="77", name="a %b") == "a %b-77.out"
    assert fill("100%%-%j", job="77") == "100%-77"
    assert fill("50%", job="77") == ""


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("90", 5400),
        ("90:30", 5430),
        ("1:30:00", 5400),
        ("1-12", 129600),
        ("2-01:30", 178200),
        ("1-12:00:01", 129601),
        ("0:30", 30),
        ("UNLIMITED", math.inf),
        ("infinite", math.inf),
        ("-1", math.inf),
        ("0", math.inf),
        ("00:00:00", math.inf),
        ("", None),
        ("later", None),
        ("1:2:3:4", None),
    ],
)
def test_time_limits_are_read_as_slurm_reads_them(text, seconds):
    """All of Slurm's notations mean what they mean to it; none of them, and zero, are no limit."""
    assert limit_seconds(text) == seconds
