"""A pretended cluster for tests of `holdfast submit` and `status`: sbatch and scontrol as small scripts."""

import json
import sys

from cli_runs import call

PARTITIONS = """\
PartitionName=short Default=YES DefaultTime=00:05:00 MaxTime=01:00:00 State=UP
PartitionName=endless Default=NO DefaultTime=NONE MaxTime=UNLIMITED State=UP
"""
_SBATCH = """\
#!{python}
import json, os, sys
folder = {folder!r}
if os.path.exists(folder + "/refuse"):
    sys.stderr.write("sbatch: error: Batch job submission failed: Invalid account\\n")
    sys.exit(1)
calls = folder + "/sbatch.jsonl"
number = 100 + (len(open(calls).readlines()) if os.path.exists(calls) else 0)
limit = folder + "/limit"
if os.path.exists(limit) and number - 100 >= int(open(limit).read()):
    sys.stderr.write("sbatch: error: QOSMaxSubmitJobPerUserLimit\\n")
    sys.exit(1)
script = sys.argv[sys.argv.index("--") + 1]
told = {{"words": sys.argv[1:], "script": open(script).read(), "environ": dict(os.environ)}}
open(calls, "a").write(json.dumps(told) + "\\n")
print(number if not os.path.exists(folder + "/clusters") else f"{{number}};lab")
"""
_SCONTROL = """\
#!/bin/sh
PATH=/usr/bin:/bin
case "$2" in
    partition) cat {folder}/partitions ;;
    job) cat {folder}/job-$3 2>/dev/null || {{ echo "slurm_load_jobs error: Invalid job id specified" >&2; exit 1; }} ;;
esac
"""


class Cluster:
    """What the pretended commands were told, and what they answer."""

    def __init__(self, folder):
        self.folder = folder
        self.write("partitions", PARTITIONS)
        self._program("sbatch", _SBATCH.format(python=sys.executable, folder=str(folder)))
        self._program("scontrol", _SCONTROL.format(folder=folder))
        self._program("scancel", f'#!/bin/sh\necho "$@" >>{folder}/cancelled\n')

    def _program(self, name, text):
        (self.folder / name).write_text(text)
        (self.folder / name).chmod(0o755)

    def write(self, name, text):
        (self.folder / name).write_text(text)

    def remove(self, name):
        (self.folder / name).unlink()

    @property
    def calls(self):
        path = self.folder / "sbatch.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    @property
    def script(self):
        return self.calls[-1]["script"]


def submit(*words, run="runs/digits", command=("python", "train.py"), local=True):
    """Calls `holdfast submit`; tests lie in /tmp, which is allowed unless they say otherwise."""
    allow = ["--allow-local"] if local else []
    return call("submit", "--run", run, *allow, *words, "--", *command)
