"""What Slurm's commands print is read as it is meant, and a controller that hangs hangs nobody."""

import time

import pytest

from holdfast.errors import SlurmError
from holdfast.slurm import commands
from holdfast.slurm.job import here

RUNNING = """\
JobId=12 ArrayJobId=11 ArrayTaskId=1 ArrayTaskThrottle=1 JobName=a b JobState=FAILED
   UserId=ada(1000) GroupId=ada(1000) MCS_label=N/A
   JobState=RUNNING Reason=None Dependency=(null)
   Requeue=1 Restarts=2 BatchFlag=1 Reboot=0 ExitCode=0:0
   StartTime=1795724325 EndTime=1795724505 Deadline=N/A
   PreemptEligibleTime=1795724325 PreemptTime=None
   Socks/Node=* NtasksPerN:B:S:C=0:0:*:* CoreSpec=*
   Comment=JobState=FAILED Requeue=0
   Command=/data/ada/my job.sh --requeue=no
   WorkDir=/data/ada
   StdErr=/data/ada/11-1.err
   StdOut=/data/ada/of JobState=X.out
   Power=

"""
WAITING = """\
JobId=11 ArrayJobId=11 ArrayTaskId=2-10%1 ArrayTaskThrottle=1 JobName=digits
   JobState=PENDING Reason=JobArrayTaskLimit Dependency=(null)
   Requeue=0 Restarts=0 BatchFlag=1 Reboot=0 ExitCode=0:0
   StartTime=Unknown EndTime=Unknown Deadline=N/A
"""


def test_a_job_is_read_whatever_words_its_user_chose():
    """Names, comments and paths that look like fields of a job change nothing that is read of it."""
    (record,) = commands.read_records(RUNNING)
    assert (record.id, record.array, record.task, record.shown) == ("12", "11", "1", "11_1")
    assert (record.state, record.reason, record.restarts, record.requeue) == ("RUNNING", "", 2, True)
    assert (record.start, record.end, record.preempt) == (1795724325.0, 1795724505.0, None)
    assert record.name == "a b JobState=FAILED"
    assert (record.output, record.errors) == ("/data/ada/of JobState=X.out", "/data/ada/11-1.err")


def test_of_an_array_each_task_is_a_record():
    """The tasks that wait are one record, those that run have one each, and unknown times are None."""
    waiting, running = commands.read_records(WAITING + "\n" + RUNNING)
    assert (waiting.task, waiting.state, waiting.reason) == ("2-10%1", "PENDING", "JobArrayTaskLimit")
    assert (waiting.start, waiting.end) == (None, None)
    assert running.state == "RUNNING"


@pytest.mark.parametrize(
    "text", ["", "No jobs in the system\n", "JobId=\n", "   JobState=RUNNING\n", "=\n\x00"]
)
def test_nonsense_is_no_job(text):
    """What does not tell of a job is no record."""
    assert commands.read_records(text) == []


def test_a_job_has_its_own_record_among_its_arrays(scontrol):
    """An array that is asked for by the number of one of its tasks answers with all; that one is taken."""
    scontrol(f"cat <<'END'\n{RUNNING}{WAITING}END\n")
    found = commands.job("11")
    assert found is not None and found.state == "PENDING"
    assert commands.job("13") is None


def test_a_job_that_is_not_known_is_none(scontrol):
    """An unknown number is an answer, every other failure an error with the command's own words."""
    scontrol("echo 'slurm_load_jobs error: Invalid job id specified' >&2; exit 1")
    assert commands.job("7") is None
    assert commands.jobs("7") == []
    scontrol("echo 'Unable to contact slurm controller (connect failure)' >&2; exit 1")
    with pytest.raises(
        SlurmError, match=r"scontrol failed with exit code 1: Unable to contact slurm controller"
    ):
        commands.job("7")


def test_a_command_that_hangs_is_given_up(scontrol, monkeypatch):
    """A controller that does not answer costs a training no more than the time that it is given."""
    monkeypatch.setattr(commands, "PATIENCE", 0.2)
    scontrol("exec sleep 60")
    with pytest.raises(SlurmError, match=r"scontrol gave no answer .* Next: .*scontrol ping"):
        commands.run("scontrol", "show", "job", "7")


def test_what_a_command_started_is_given_up_with_it(scontrol, monkeypatch):
    """A script of the site's around a command, which hangs in what it calls, hangs nobody, either."""
    monkeypatch.setattr(commands, "PATIENCE", 0.2)
    scontrol("sleep 60\necho never")
    began = time.monotonic()
    with pytest.raises(SlurmError, match=r"scontrol gave no answer"):
        commands.run("scontrol", "show", "job", "7")
    # The suite would notice a hang by its own limit; so this only tells the two apart.
    assert time.monotonic() - began < 50


def test_an_answer_stays_there_until_somebody_looks(scontrol, monkeypatch):
    """A command that has answered in time is heard however late it is looked at: boundaries may be hours apart."""
    monkeypatch.setattr(commands, "PATIENCE", 0.1)
    scontrol(f"cat <<'END'\n{RUNNING}END\n")
    question = commands.ask_for_job("12")
    question._process.wait(30)
    time.sleep(0.15)
    assert question.ready
    found = commands.read_job(question, "12")
    assert found is not None and found.state == "RUNNING"


def test_without_slurm_there_is_one_clear_error(monkeypatch, tmp_path):
    """A machine without Slurm's commands says so, and the error can be told apart."""
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SlurmError, match="There is no command scontrol here") as caught:
        commands.settings()
    assert caught.value.missing is True


def test_settings_are_pairs():
    """Each setting of the controller is a name and a value."""
    found = commands.read_settings(
        "Configuration data as of now\nKillWait                = 30 sec\nX = a = b\n"
    )
    assert found == {"KillWait": "30 sec", "X": "a = b"}


def test_the_job_is_read_off_the_environment():
    """Outside of Slurm there is no job; inside, array, restart and step are known."""
    assert here({}) is None
    assert here({"SLURM_JOB_ID": "x"}) is None
    plain = here({"SLURM_JOB_ID": "41", "SLURM_CLUSTER_NAME": "lab"})
    assert plain is not None and str(plain) == "Slurm job 41"
    task = here(
        {
            "SLURM_JOB_ID": "42",
            "SLURM_ARRAY_JOB_ID": "40",
            "SLURM_ARRAY_TASK_ID": "2",
            "SLURM_RESTART_COUNT": "1",
            "SLURM_STEP_ID": "0",
            "SLURM_JOB_END_TIME": "1795724505",
        }
    )
    assert task is not None and str(task) == "Slurm job 40_2, restart 1"
    assert task.end == 1795724505


def test_a_job_is_addressed_alone():
    """By its own number, which is right even where its array was inherited; only the last task shares that with its array."""
    inside = {"SLURM_ARRAY_JOB_ID": "40", "SLURM_ARRAY_TASK_ID": "2"}
    for number, address in (("42", "42"), ("40", "40_2")):
        job = here({"SLURM_JOB_ID": number, **inside})
        assert job is not None and job.address == address
