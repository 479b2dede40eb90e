"""Trains a small classifier of handwritten digits up to so many steps; started again, it goes on from where it was.

python train_torch.py 500
"""

import sys

import torch
from sklearn.datasets import load_digits
from torch import nn

import holdfast

steps = int(sys.argv[1])
digits = load_digits()
x, y = torch.tensor(digits.data, dtype=torch.float32) / 16, torch.tensor(digits.target)

run = holdfast.Run("runs/digits_torch", seed=0)
net = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Dropout(0.1), nn.Linear(32, 10))
opt = torch.optim.Adam(net.parameters())
run.track(model=net, optimizer=opt)

for step in run.steps(steps):
    batch = torch.randint(len(x), (64,))
    opt.zero_grad()
    loss = nn.functional.cross_entropy(net(x[batch]), y[batch])
    loss.backward()
    opt.step()
    if (step + 1) % 500 == 0:
        print(f"step {step + 1}: loss {loss.item():.4f}", flush=True)

net.eval()
accuracy = (net(x).argmax(1) == y).float().mean().item()
print(f"{run.progress.step} steps are done; accuracy {accuracy:.4f}")
run.close()
