"""Trains a small classifier on handwritten digits; kill it at any time and start it again.

    python examples/digits_torch.py --run runs/digits

The model is 64-128-10 (784-128-10 for MNIST): SGD with momentum 0.9, cross-entropy, batches of 64.
"""

import argparse

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import holdfast
from holdfast import Every, Keep, Probe


def load_data(name: str):
    """(training set, validation set) of UCI digits, or of MNIST where torchvision can fetch it."""
    if name == "mnist":
        try:
            from torchvision import datasets
        except ImportError as error:
            raise SystemExit(f"--data mnist needs torchvision, which fetches it: {error}") from error
        sets = [datasets.MNIST("data", train=train, download=True) for train in (True, False)]
        pairs = [(s.data.float().div(255).flatten(1), s.targets) for s in sets]
        return [TensorDataset(x, y) for x, y in pairs]
    from sklearn.datasets import load_digits

    x, y = load_digits(return_X_y=True)
    x, y = torch.tensor(x, dtype=torch.float32) / 16, torch.tensor(y)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    return [TensorDataset(x[part], y[part]) for part in (order[:1500], order[1500:])]


@torch.no_grad()
def accuracy(net, dataset) -> float:
    net.eval()
    x, y = dataset.tensors
    result = (net(x).argmax(1) == y).float().mean().item()
    net.train()
    return result


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--run", default="runs/digits", help="the run's directory")
    parser.add_argument("--data", choices=["digits", "mnist"], default="digits")
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--lr", type=float, default=0.05)
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--every-steps", type=int, default=None, help="save every so many steps as well")
    args = parser.parse_args()

    run = holdfast.Run(
        args.run,
        config={"data": args.data, "lr": args.lr, "batch_size": 64},
        note=f"a {'784' if args.data == 'mnist' else '64'}-128-10 classifier",
        seed=0,
        every=Every(epochs=1, steps=args.every_steps, minutes=10),
        keep=Keep(last=3, best=1, metric="val_accuracy", mode="max"),
    )
    train, valid = load_data(args.data)
    net = nn.Sequential(
        nn.Linear(train.tensors[0].shape[1], 128), nn.ReLU(), nn.Dropout(0.1), nn.Linear(128, 10)
    )
    opt = torch.optim.SGD(net.parameters(), lr=args.lr, momentum=0.9)
    sched = torch.optim.lr_scheduler.CosineAnnealingLR(opt, T_max=args.epochs)
    loader = DataLoader(train, batch_size=64, shuffle=True, num_workers=args.workers)
    run.track(model=net, optimizer=opt, scheduler=sched)
    run.track(probe=Probe(net, valid.tensors[0][:8]))

    for epoch in run.epochs(args.epochs):
        run.state["loss"] = 0.0
        for x, y in run.batches(loader):
            opt.zero_grad()
            loss = nn.functional.cross_entropy(net(x), y)
            loss.backward()
            opt.step()
            run.state["loss"] += loss.item()
        sched.step()
        run.log(loss=run.state["loss"] / len(loader), val_accuracy=accuracy(net, valid))
        print(f"epoch {epoch + 1}: loss {run.state['loss'] / len(loader):.4f}", flush=True)

    best = run.best
    best.restore({"model": net})
    print(f"best: {best.name}, accuracy {accuracy(net, valid):.4f}")
    run.close()


if __name__ == "__main__":
    main()
