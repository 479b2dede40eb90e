"""A training that takes as long as a test needs: small, exact, and with a word on each step for the log."""

import argparse
import atexit
import os
import time

import torch

import holdfast
from holdfast import Every

parser = argparse.ArgumentParser()
parser.add_argument("steps", type=int)
parser.add_argument("--pause", type=float, default=0.05)
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
net = torch.nn.Linear(8, 4)
opt = torch.optim.Adam(net.parameters())
run.track(model=net, optimizer=opt)
if args.linger:
    atexit.register(time.sleep, args.linger)  # runs before that of the run, which was registered earlier


for step in run.steps(args.steps):
    loss = net(torch.randn(16, 8)).pow(2).mean()
    opt.zero_grad()
    loss.backward()
    opt.step()
    print(f"did {step}", flush=True)
    if step == args.fail_at:
        raise ArithmeticError("this step fails")
    while step >= 10 and args.hold and not os.path.exists(args.hold):
        time.sleep(0.1)
    time.sleep(args.pause)
run.close()
print("the training is over", flush=True)
