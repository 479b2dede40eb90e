"""A training without a framework, so that it starts at once: exact, as long as a test needs, with a word on each step.

Its sum at the end shows each step that was left out or done twice. That trainings with frameworks are the
same in Slurm is shown by the examples.
"""

import argparse
import atexit
import os
import time

import numpy as np

import holdfast
from holdfast import Every

parser = argparse.ArgumentParser()
parser.add_argument("steps", type=int)
# What a test does to it, it does before a restart.
parser.add_argument("--pause", type=float, default=0.0 if "SLURM_RESTART_COUNT" in os.environ else 0.05)
parser.add_argument("--every", type=int, default=10**9)
parser.add_argument("--wait", type=float, default=0.0)
parser.add_argument("--hold", help="after ten steps it goes on once this file is there")
parser.add_argument(
    "--linger", type=float, default=0.0, help="seconds that it takes to end once a signal came"
)
parser.add_argument("--run", default="run")
parser.add_argument("--mirror")
parser.add_argument("--fail-at", type=int, default=-1)
args = parser.parse_args()
mirrors = [args.mirror] if args.mirror else []
run = holdfast.Run(args.run, seed=0, every=Every(steps=args.every), wait=args.wait, mirrors=mirrors)
run.state["sum"] = np.zeros(8)
if args.linger:
    atexit.register(time.sleep, args.linger)  # runs before that of the run, which was registered earlier

print(f"process {os.getpid()}", flush=True)
for step in run.steps(args.steps):
    run.state["sum"] = run.state["sum"] * 0.9 + np.random.standard_normal(8)
    print(f"did {step}", flush=True)
    if step == args.fail_at:
        raise ArithmeticError("this step fails")
    while step >= 10 and args.hold and not os.path.exists(args.hold):
        time.sleep(0.1)
    time.sleep(args.pause)
run.close()
print(f"done: {run.state['sum'].tolist()}", flush=True)
