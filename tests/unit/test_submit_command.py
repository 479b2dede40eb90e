"""`holdfast submit` as a user calls it: what it writes, what it says, what it refuses before anything is written."""

import contextlib
import json
import logging
import os
import re
import stat

import pytest
from cli_runs import make_run
from submit_cluster import submit

import holdfast
from holdfast import files
from holdfast.errors import StorageError
from holdfast.jobs import record


def told(result):
    assert result.exit_code == 0, result.stderr
    return result.stdout


def refused(result, words):
    assert result.exit_code == 2, result.output
    assert re.search(words, result.stderr), result.stderr
    assert "Next:" in result.stderr
    assert not os.path.exists("runs")


@contextlib.contextmanager
def warnings_in(caplog):
    """What is logged meanwhile, which reaches nobody by itself."""
    logger = logging.getLogger("holdfast")
    logger.addHandler(caplog.handler)
    try:
        yield
    finally:
        logger.removeHandler(caplog.handler)


# -- what is submitted ------------------------------------------------------------------------------


def test_an_array_is_what_comes_without_a_word(cluster):
    """Without a mode it is an array of ten tasks, one at a time, with logs by array and task that are appended to."""
    said = told(submit("-t", "10"))
    assert cluster.script.splitlines()[2:7] == [
        "#SBATCH --job-name=digits",
        "#SBATCH --array=1-10%1",
        "#SBATCH --output=%A-%a.out",
        "#SBATCH --open-mode=append",
        "#SBATCH -t 10",
    ]
    assert "job 100: 10 tasks, one after another, each for at most 10 min\n" in said
    assert "100-1.out … 100-10.out" in said
    assert "holdfast status runs/digits" in said


def test_the_run_keeps_what_was_submitted(cluster):
    """The script and submission.json lie in the run, which need not be there yet, and a fresh run may begin there."""
    told(
        submit(
            "--tasks",
            "3",
            "--mem=4G",
            "-H",
            "-t",
            "10",
            "--comment",
            "a b",
            command=("python", "train.py", "ü\n"),
        )
    )
    (kept,) = record.submissions("runs/digits")
    place = f"runs/digits/submitted/{kept.id}"
    assert sorted(os.listdir(place)) == ["script.sh", "submission.json"]
    with open(f"{place}/script.sh") as file:
        assert file.read() == cluster.script
    assert (kept.mode, kept.tasks, kept.numbers, kept.jobs) == ("array", 3, [1, 2, 3], ["100"])
    assert kept.command == ["python", "train.py", "ü\n"]
    assert {"mem": "4G", "hold": None, "time": "10", "comment": "a b"}.items() <= kept.options.items()
    assert kept.directory == os.getcwd()
    assert kept.output == os.path.join(os.getcwd(), "%A-%a.out")
    assert re.fullmatch(r"\d{8}T\d{6}Z-[a-z0-9]{4}", kept.id)
    make_run("runs/digits")
    assert len(holdfast.Run("runs/digits").checkpoints) > 0


def test_secrets_are_in_the_script_alone(cluster):
    """submission.json hides the values of options that are called a key, a token or a password; the script needs them."""
    told(submit("-t", "10", command=("python", "train.py", "--api-key", "s3cret", "--token=t0ken")))
    (kept,) = record.submissions("runs/digits")
    assert kept.command == ["python", "train.py", "--api-key", "***", "--token=***"]
    with open(f"runs/digits/submitted/{kept.id}/submission.json") as file:
        assert not {"s3cret", "t0ken"} & set(re.findall(r"\w+", file.read()))
    assert "--api-key s3cret --token=t0ken" in cluster.script


def test_a_chain_is_submitted_one_after_another(cluster):
    """--chain submits N jobs, each told its number and waiting for the end of the one before, however that comes."""
    said = told(submit("--chain", "3", "-t", "10"))
    words = [call["words"] for call in cluster.calls]
    assert [[word for word in each if "dependency" in word] for each in words] == [
        [],
        ["--dependency=afterany:100"],
        ["--dependency=afterany:101"],
    ]
    assert [each[-1] for each in words] == ["1", "2", "3"]
    assert "last=3" in cluster.script
    assert "--output=%j.out" in cluster.script
    assert "jobs 100 101 102" in said


def test_a_single_task_is_told_as_one(cluster):
    """One task comes after no other, and a limit in Slurm's longer notation is told as it was given."""
    assert "job 100: 1 task, for at most 1:30:00\n" in told(submit("-t", "1:30:00", "--tasks", "1"))


def test_a_long_chain_is_told_in_one_line(cluster):
    """Of many jobs the first and the last number are told."""
    assert "submitted  jobs 100 … 129: one after another" in told(submit("-t", "1", "--chain", "30"))


def test_one_job_requeues_itself(cluster):
    """--requeue submits one job that may be requeued and tells the training to ask for it."""
    told(submit("--requeue", "-t", "10"))
    assert "\n#SBATCH --requeue\n" in cluster.script
    assert "\nexport HOLDFAST_CONTINUE=requeue\n" in cluster.script
    assert "array" not in "".join(line for line in cluster.script.splitlines() if line.startswith("#SBATCH"))


def test_nothing_around_beats_what_was_asked(cluster, monkeypatch):
    """Variables that sbatch would take for options, and those of a job in which it is called, do not reach it."""
    for name, value in {
        "SBATCH_TIMELIMIT": "99",
        "SBATCH_PARTITION": "kept",
        "SBATCH_ARRAY_INX": "1-99",
        "SBATCH_WAIT": "1",
        "SBATCH_MEM_PER_NODE": "9G",
        "SLURM_ARRAY_TASK_ID": "7",
        "SLURM_JOB_END_TIME": "1",
        "HOLDFAST_CONTINUE": "requeue",
        "HOLDFAST_DEBUG": "1",
    }.items():
        monkeypatch.setenv(name, value)
    told(submit("-t", "10", "--mem=1G"))
    seen = set(cluster.calls[0]["environ"])
    assert {"SBATCH_PARTITION", "HOLDFAST_DEBUG"} <= seen
    assert not {name for name in seen if name.startswith(("SBATCH", "SLURM"))} - {"SBATCH_PARTITION"}
    assert "HOLDFAST_CONTINUE" not in seen


def test_a_job_in_which_it_is_called_is_not_taken_over(cluster, monkeypatch):
    """From within a job, what that was given (its tasks, its memory) does not reach the new ones; where Slurm is found does."""
    for name, value in {"JOB_ID": "7", "NTASKS": "4", "MEM_PER_NODE": "9", "CONF": "/etc/slurm.conf"}.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    told(submit("-t", "10"))
    seen = {name for name in cluster.calls[0]["environ"] if name.startswith("SLURM")}
    assert seen == {"SLURM_CONF"}


def test_defaults_of_the_project_are_used(cluster):
    """What [tool.holdfast.slurm] says is submitted, and what the command line says wins."""
    with open("pyproject.toml", "w") as file:
        file.write('[tool.holdfast.slurm]\ntime = "01:00:00"\npartition = "gpu"\nchain = 2\nmodule = ["m"]\n')
    told(submit("-p", "short"))
    assert len(cluster.calls) == 2
    assert "#SBATCH --time=01:00:00" in cluster.script
    assert "gpu" not in cluster.script
    assert "module load m" in cluster.script
    told(submit("--tasks", "4"))
    assert "--array=1-4%1" in cluster.script


def test_print_writes_nothing_and_needs_no_slurm(cluster):
    """--print shows the script as it would be submitted, where there is no sbatch, too."""
    for name in ("sbatch", "scontrol"):
        cluster.remove(name)
    said = told(submit("--print", "-t", "10"))
    assert said.startswith("#!/bin/bash\n")
    assert not os.path.exists("runs")


def test_json_says_what_was_submitted(cluster):
    """--json tells the submission, its jobs, its logs and its script."""
    cluster.write("clusters", "")
    found = json.loads(told(submit("--json", "--chain=2", "-t", "10")))
    assert (found["mode"], found["tasks"], found["jobs"]) == ("chain", 2, ["100", "101"])
    assert [os.path.basename(path) for path in found["logs"]] == ["100.out", "101.out"]
    assert os.path.exists(found["path"])


def test_a_complete_run_is_only_warned_of(cluster):
    """A run that has reached its goal may be submitted again: the command may ask for more."""
    run = holdfast.Run("runs/digits")
    for _ in run.steps(2):
        run.state["n"] = 1
    run.close()
    result = submit("-t", "10")
    assert result.exit_code == 0
    assert len(cluster.calls) == 1


# -- what is refused --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["-p", "endless"], r"no time limit: no --time, and the partition endless has no DefaultTime"),
        (["-p", "nowhere"], r"no time limit"),
        (["-t", "UNLIMITED"], r"no time limit: -t UNLIMITED"),
        (["--time=infinite"], r"no time limit: --time=infinite"),
        (["--time=0-00:00"], r"no time limit: --time=0-00:00"),
        (["-t", "1", "--array=1-5"], r"several tasks at a time.*--array=1-5%1"),
        (["-t", "1", "--array", "1-5%2"], r"several tasks at a time.*--array=1-5%1"),
        (["-t", "1", "--array=1-5%1", "--chain", "2"], r"--array=1-5%1 and --chain are two ways"),
        (["-t", "1", "-a", "1-5%1", "--requeue"], r"-a 1-5%1 and --requeue are two ways"),
        (["-t", "1", "-a", "1-5%1", "--tasks", "2"], r"-a 1-5%1 and --tasks are two ways"),
        (["-t", "1", "--chain", "2", "--requeue"], r"--chain and --requeue are different ways"),
        (["-t", "1", "--requeue", "--no-requeue"], r"contradict one another"),
        (
            ["-t", "1", "--output=log.txt"],
            r"all tasks of the array would write this one file.*--output=%A-%a.txt",
        ),
        (["-t", "1", "-e", "x/%A.err"], r"--error=%A-%a.err"),
        (["-t", "1", "--output=%%a.txt"], r"all tasks of the array would write this one file"),
        (
            ["-t", "1", "-o", "logs/%A-%a.out"],
            r"-o logs/%A-%a.out: there is no directory .*/logs, .*Next: mkdir -p .*/logs",
        ),
        (["-t", "1", "--requeue", "--error=train.py/%j"], r"there is no directory .*/train.py"),
        (["-t", "1", "--wrap", "python x"], r"--wrap python x cannot be passed on"),
        (["-t", "1", "-W"], r"-W cannot be passed on.*holdfast status RUN --watch"),
        (["-t", "1", "--chdir=nowhere"], r"There is no (file|directory)"),
        (["train.py"], r"put the command behind --"),
    ],
)
def test_what_cannot_work_is_refused(cluster, words, message):
    """Options that cannot work, or not with one another, are refused before anything is written, with a remedy."""
    refused(submit(*words), message)
    assert cluster.calls == []


@pytest.mark.parametrize("words", [["--tasks", "0"], ["--chain", "-1"]])
def test_at_least_one_job(cluster, words):
    """No jobs at all are refused."""
    result = submit("-t", "1", *words)
    assert (result.exit_code, os.path.exists("runs")) == (2, False)


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ([], r"There is no command to run"),
        (["no-such-program"], r"There is no program no-such-program in the search path.*--module"),
        (["./train.py"], r"cannot be executed.*python \./train\.py"),
        (["./gone"], r"There is no program"),
        (["/usr", "x"], r"cannot be executed"),
        (["python", "gone.py"], r"There is no file .*gone\.py"),
        (["python3.11", "-u", "-W", "error", "gone.py"], r"There is no (file|program) "),
    ],
)
def test_a_command_that_is_not_there_is_refused(cluster, command, message):
    """A program that is not there or cannot be executed, or a script that is not there, is refused."""
    refused(submit("-t", "1", command=command), message)


@pytest.mark.parametrize(
    "command",
    [
        ["python", "train.py"],
        ["python", "-m", "anything"],
        ["python", "-c", "1"],
        ["python", "-Wignore", "train.py", "gone.py"],
        ["sh", "gone.sh"],
    ],
)
def test_commands_that_may_work_are_submitted(cluster, command):
    """Modules, programs in words and other interpreters are taken as they are."""
    told(submit("-t", "1", command=command))


def test_a_program_may_come_with_the_environment(cluster):
    """A program that a module or an environment brings need not be here."""
    told(submit("-t", "1", "--module", "tools", command=["no-such-program", "x"]))


@pytest.mark.parametrize("place", ["/tmp/OWN", "/var/tmp/OWN", "/dev/shm/OWN", "$TMPDIR/x"])
def test_local_places_are_refused(cluster, tmp_path, monkeypatch, place):
    """A run where other nodes may not see it is refused unless --allow-local says that this is the only machine."""
    monkeypatch.setenv("TMPDIR", str(tmp_path / "scratch"))
    place = place.replace("$TMPDIR", str(tmp_path / "scratch")).replace("OWN", f"holdfast-{os.getpid()}")
    result = submit("-t", "1", run=place, local=False)
    assert result.exit_code == 2
    assert re.search(r"The run .* lies in .*--allow-local", result.stderr)
    assert not os.path.exists(place)


def test_a_place_that_holds_something_else_is_refused(cluster):
    """A directory that is no run and not empty is not submitted to."""
    os.makedirs("runs/digits")
    with open("runs/digits/thesis.tex", "w"):
        pass
    result = submit("-t", "1")
    assert result.exit_code == 2
    assert "thesis.tex" in result.stderr
    assert os.listdir("runs/digits") == ["thesis.tex"]


def test_a_time_limit_may_come_from_elsewhere(cluster, monkeypatch):
    """A DefaultTime of the partition, or SBATCH_TIMELIMIT, is a time limit."""
    told(submit())
    monkeypatch.setenv("SBATCH_TIMELIMIT", "10")
    told(submit("-p", "endless"))
    assert "SBATCH_TIMELIMIT" in cluster.calls[-1]["environ"]


@pytest.mark.parametrize(
    ("words", "longer"),
    [
        (["-t", "1:00:01"], True),
        (["-t", "1:00:00"], False),
        (["-t", "1-0"], True),
        (["-t", "61"], True),
        (["-t", "60", "-p", "endless"], False),
        (["-t", "61", "-p", "short,endless"], False),
        (["-t", "later"], False),
    ],
)
def test_a_limit_that_the_partition_does_not_allow_is_warned_of(cluster, caplog, words, longer):
    """A job that asks for more than its partition's MaxTime would wait for ever; a warning tells both."""
    with warnings_in(caplog):
        told(submit(*words))
    said = "is more than the partition short allows (01:00:00)" in caplog.text
    assert said is longer


def test_jobs_that_would_meet_are_warned_of(cluster, caplog):
    """While earlier jobs for the run are queued, or somebody writes it, new ones are submitted with a word on what will happen."""
    with warnings_in(caplog):
        told(submit("-t", "1"))
        assert not caplog.text
        cluster.write("job-100", "JobId=101 ArrayJobId=100 ArrayTaskId=2-10%1 JobName=x\n JobState=PENDING\n")
        told(submit("-t", "1", "--dependency=singleton"))
        assert not caplog.text
        told(submit("-t", "1"))
        assert "jobs of an earlier submission are still queued (100_2-10%1)" in caplog.text
        assert "Next: scancel 100" in caplog.text
        caplog.clear()
        cluster.write("job-100", "JobId=101 ArrayJobId=100 ArrayTaskId=2 JobName=x\n JobState=COMPLETED\n")
        run = holdfast.Run("runs/digits")
        for _ in run.steps(2):
            told(submit("-t", "1"))
            assert f"is held by pid {os.getpid()}" in caplog.text
            caplog.clear()
        run.close()
        told(submit("-t", "1", "--comment=after"))
        assert "held by" not in caplog.text


def test_without_sbatch_nothing_is_submitted(cluster):
    """Where there is no sbatch, submit says so and writes nothing."""
    cluster.remove("sbatch")
    refused(submit("-t", "1"), r"There is no sbatch here")


def test_what_sbatch_says_is_passed_on(cluster):
    """sbatch's own words are told, with the exit code of SlurmError, and nothing is left in the run."""
    cluster.write("refuse", "")
    result = submit("-t", "1")
    assert result.exit_code == 13
    assert "Invalid account" in result.stderr
    assert not os.path.exists("runs/digits")


def test_a_script_that_cannot_be_written_leaves_nothing_behind(cluster, monkeypatch):
    """On a full disk nothing is submitted, and neither a directory nor half a script stays."""

    def refuse(path, data):
        with open(path, "wb") as file:
            file.write(data[:10])
        raise StorageError("Cannot write: No space left on device.", errno=28, path=path, operation="write")

    monkeypatch.setattr(files, "create_file", refuse)
    assert submit("-t", "1").exit_code == 10
    assert cluster.calls == []
    assert not os.path.exists("runs/digits")


def test_a_chain_is_submitted_whole_or_not_at_all(cluster):
    """When sbatch refuses a later job of a chain, those before it are cancelled, and it is said."""
    cluster.write("limit", "2")
    result = submit("-t", "1", "--chain", "4")
    assert result.exit_code == 13
    assert "QOSMaxSubmitJobPerUserLimit" in result.stderr
    assert (cluster.folder / "cancelled").read_text() == "100 101\n"
    assert not os.path.exists("runs/digits")


def test_a_directory_that_is_there_stays_there(cluster):
    """After sbatch refused, an empty directory that the user made for the run is still there, and empty."""
    os.makedirs("runs/digits")
    cluster.write("refuse", "")
    assert submit("-t", "1").exit_code == 13
    assert os.listdir("runs/digits") == []


@pytest.mark.parametrize("answer", ["exec /bin/sleep 30", "echo Submitted; exit 0"])
def test_an_sbatch_that_does_not_tell_keeps_the_script(cluster, monkeypatch, answer):
    """When sbatch hangs or tells no number, the job may be queued: its script stays, and it is said where to look."""
    (cluster.folder / "sbatch").write_text(f"#!/bin/sh\n{answer}\n")
    monkeypatch.setattr("holdfast.slurm.sbatch.PATIENCE", 0.5)
    result = submit("-t", "1")
    assert result.exit_code == 13
    assert len(os.listdir("runs/digits/submitted")) == 1


@pytest.mark.parametrize(
    "lines",
    [
        ["Welcome", "", "101"],
        ["101;lab", "Your balance is 1000 hours.", ""],
        ["Submitted batch job 101"],
        ["Submitted batch job 101 on cluster lab", "7 jobs are yours"],
    ],
)
def test_the_number_is_found_among_other_words(cluster, lines):
    """A wrapper around sbatch may say more, before or after, or keep --parsable to itself."""
    words = "\n".join(["#!/bin/sh", *(f"echo '{line}'" for line in lines), ""])
    (cluster.folder / "sbatch").write_text(words)
    assert json.loads(told(submit("--json", "-t", "1")))["jobs"] == ["101"]


def test_odd_names_of_runs(cluster):
    """The name of the job is the run's, without what sbatch could not take in a name."""
    told(submit("-t", "1", run="runs/it's \n#ü-1.0"))
    assert "\n#SBATCH --job-name=it_s_ü-1.0\n" in cluster.script


def test_a_run_that_is_there_stays_as_it_was(cluster):
    """After sbatch refused, a run that was there has what it had."""
    make_run("runs/digits")
    before = sorted(os.listdir("runs/digits"))
    cluster.write("refuse", "")
    assert submit("-t", "1").exit_code == 13
    assert sorted(os.listdir("runs/digits")) == before


def test_a_signal_that_reaches_nobody_is_warned_of(cluster, caplog):
    """--signal without B: is passed on, and a warning says that only what srun starts would get it."""
    with warnings_in(caplog):
        told(submit("-t", "1", "--signal=USR1@60"))
        assert "--signal=USR1@60 reaches only what srun starts" in caplog.text
        caplog.clear()
        told(submit("-t", "1", "--signal=B:USR1@60"))
        told(submit("-t", "1", "--signal=USR1@60", command=["sh", "x"]))
        assert "write --signal=B:USR1@60" in caplog.text


def test_a_script_is_a_plain_file(cluster):
    """The script that is kept can be read by whoever can read the run."""
    told(submit("-t", "1"))
    (kept,) = record.submissions("runs/digits")
    mode = os.stat(f"runs/digits/submitted/{kept.id}/script.sh").st_mode
    assert stat.S_ISREG(mode)
    assert mode & 0o400
