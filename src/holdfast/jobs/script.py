"""The batch script that `holdfast submit` writes: the text alone, nothing is asked or written here.

What must hold in it, and why:

- The command runs in the background, with `wait`. A bash without traps dies of the SIGTERM that Slurm
  sends to all of a job, or of the SIGUSR1 of ``--signal=B:USR1``, and Slurm kills what a batch script leaves
  behind at once, in the middle of a save. A trap does not run while bash waits for a command in the foreground.
- `wait` ends when a trap has run, with a code that is not the command's; so it is asked again, and bash
  still knows the code of a command that has ended meanwhile.
- There is no `set -u`: the scripts behind `module` and `conda` do not stand it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Literal

from holdfast.jobs.quoting import join, quote
from holdfast.jobs.words import Option, directive

Mode = Literal["array", "requeue", "chain"]

NOTHING_TO_DO = 0
"""What `holdfast status --gate` ends with when the training is complete."""
GO_ON = 1
"""… when the training is to begin. Whatever else goes wrong means the same to the script."""
HOPELESS = 20
"""… when several jobs in a row failed without having saved anything."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
    """What is submitted.

    Attributes:
        submission: its name.
        run: the run's absolute path.
        directory: where the command runs, absolute.
        command: its words.
        options: of sbatch, in order.
        mode: how the training goes on when a job ends.
        tasks: how many jobs: of the array, or of the chain; 1 with "requeue".
        modules, conda, setup: what comes before the command.
        python: the interpreter that asks whether there is anything to do.
        written: when, in words.

    """

    submission: str
    run: str
    directory: str
    command: tuple[str, ...]
    options: tuple[Option, ...]
    mode: Mode
    tasks: int
    modules: tuple[str, ...] = ()
    conda: str | None = None
    setup: tuple[str, ...] = ()
    python: str
    written: str


def render(plan: Plan) -> str:
    """The script. `UsageError` when an option cannot be written in one."""
    blocks = [_head(plan), _SIGNALS, _prepare(plan), _environment(plan), _gate(plan), _RUN]
    return "\n".join(blocks)


def command_line(command: Sequence[str]) -> str:
    """The line that says what is run."""
    return f"command=({join(command)})"


def _head(plan: Plan) -> str:
    lines = [
        "#!/bin/bash",
        f"# Written by holdfast submit, {plan.written}: submission {plan.submission}.",
        *(directive(option) for option in plan.options),
        "",
        f"run={quote(plan.run)}",
        f"record={quote(f'{plan.run}/submitted/{plan.submission}/ended')}",
        command_line(plan.command),
    ]
    if plan.mode == "array":
        lines += ["number=$SLURM_ARRAY_TASK_ID last=$SLURM_ARRAY_TASK_MAX"]
    elif plan.mode == "chain":
        lines += [f"number=${{1:-1}} last={plan.tasks}"]
    else:
        lines += ["number=1 last=1"]
    return "\n".join([*lines, ""])


_SIGNALS = """\
# A signal goes to the command. Before that runs it ends the job, except USR2, which only asks for a save.
pid= signalled=
pass_on() {
    signalled=$1
    if [ -n "$pid" ]; then
        kill -s "$1" "$pid" 2>/dev/null
    elif [ "$1" != USR2 ]; then
        exit 75
    fi
}
trap 'pass_on TERM' TERM
trap 'pass_on USR1' USR1
trap 'pass_on USR2' USR2

# How the job ended is noted for holdfast status, whatever Slurm still knows of it then.
began=$(date +%s) doing=setup
finish() {
    code=$?
    trap '' TERM USR1 USR2
    printf '%s %s %s %s %s %s %s\\n' "$number" "$SLURM_JOB_ID" "${SLURM_RESTART_COUNT:-0}" "$began" "$(date +%s)" \\
        "$code" "$doing" >>"$record"
    # 75: it was interrupted and its place is saved. That is no failure where another job goes on from there.
    if [ "$code" = 75 ] && [ "$number" -lt "$last" ]; then
        echo "holdfast: job $number of $last was interrupted, its place is saved; the next one continues." >&2
        exit 0
    fi
    exit "$code"
}
trap finish EXIT
"""


def _prepare(plan: Plan) -> str:
    lines = []
    lines += [f"module load {quote(module)}" for module in plan.modules]
    if plan.conda is not None:
        lines += ['eval "$(conda shell.bash hook)"', f"conda activate {quote(plan.conda)}"]
    lines += plan.setup
    return "\n".join(
        [
            "# What fails before the command ends the job.",
            "set -e",
            "trap 'echo \"holdfast: the job cannot begin: $BASH_COMMAND failed\" >&2' ERR",
            f"cd {quote(plan.directory)}",
            *lines,
            "set +e",
            "trap - ERR",
            "",
        ]
    )


def _environment(plan: Plan) -> str:
    lines = [f"export HOLDFAST_SUBMISSION={quote(plan.submission)}", 'export HOLDFAST_RUN="$run"']
    if plan.mode == "requeue":
        lines += [
            "# After its last save the training asks Slurm to start this job again.",
            "export HOLDFAST_CONTINUE=requeue",
        ]
    else:
        lines += ["unset HOLDFAST_CONTINUE"]
    return "\n".join([*lines, _TIME_LIMIT])


_TIME_LIMIT = """\
# The end of this job, in seconds since 1970; Slurm itself tells it from version 23.02 on.
if [ -z "$SLURM_JOB_END_TIME" ]; then
    # By the task's number: one task of an array has the number of the whole array for its own.
    job=${SLURM_ARRAY_JOB_ID:+${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID}
    end=$(SLURM_TIME_FORMAT=%s timeout 10 squeue --noheader --jobs="${job:-$SLURM_JOB_ID}" --format=%e 2>/dev/null)
    [[ $end =~ ^[0-9]+$ ]] && export SLURM_JOB_END_TIME=$end
fi
"""


def _gate(plan: Plan) -> str:
    return f"""\
# Is there anything to do? Asked without loading a framework; if the asking goes wrong, there is.
doing=gate
{quote(plan.python)} -P -m holdfast status --gate "$run"
case $? in
    {NOTHING_TO_DO}) exit 0 ;;
    {HOPELESS}) exit 1 ;;
esac
"""


_RUN = """\
doing=command
"${command[@]}" &
pid=$!
while
    signalled=
    wait "$pid"
    code=$?
    [ -n "$signalled" ]
do :; done
exit "$code"
"""
