"""A training without a framework, so that it starts at once; its end shows each step that was left out or done twice."""

import argparse
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
args = parser.parse_args()
run = holdfast.Run("run", every=Every(steps=args.every), wait=args.wait)
run.state["random"], run.state["sum"] = np.random.default_rng(0), np.zeros(8)
print(f"process {os.getpid()}", flush=True)
for step in run.steps(args.steps):
    run.state["sum"] = run.state["sum"] * 0.9 + run.state["random"].standard_normal(8)
    print(f"did {step}", flush=True)
    time.sleep(args.pause)
run.close()
print(f"done: {run.state['sum'].tolist()}", flush=True)
