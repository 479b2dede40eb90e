"""Makes the golden run of the present format: `python tests/golden/make_golden.py`.

What it wrote for an older version stays in the repository for ever, and is never made again.
"""

import collections
import datetime
import shutil
import sys
from pathlib import Path

import numpy as np
import torch

import holdfast
from holdfast import Every, Keep, training
from holdfast.format.fields import VERSION

HOME = Path(__file__).parent


class Small(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = torch.nn.Linear(4, 3)
        self.head = torch.nn.Linear(4, 3)
        self.head.weight = self.body.weight
        self.register_buffer("halves", torch.arange(5, dtype=torch.bfloat16))
        self.register_buffer("phase", torch.tensor([1 + 2j, -0.5j], dtype=torch.complex128))
        self.register_buffer("flag", torch.tensor(data=True))
        self.register_buffer("nothing", torch.empty(0, 7, dtype=torch.int16))
        with torch.no_grad():
            self.body.weight.copy_(torch.arange(12).reshape(3, 4) / 8)
            self.body.bias.copy_(torch.tensor([1.0, -2.0, 0.25]))
            self.head.bias.copy_(torch.tensor([0.0, 3.0, float.fromhex("0x1p-140")]))


def values() -> dict:
    """One of each kind that a skeleton holds."""
    return {
        "none": None,
        "numbers": [True, 3, 2**70, 1.5, float("inf"), 1 - 2j],
        "text": "żółw / ~",
        "bytes": b"\x00\xff",
        "tuple": (1, (2, "three")),
        "keys": {1: "one", "1": "text", (2, 3): None},
        "ordered": collections.OrderedDict(a=1),
        "counter": collections.Counter({30: 1}),
        "queue": collections.deque([1, 2], maxlen=4),
        "set": {1, 2},
        "when": datetime.datetime(2026, 11, 23, 8, 31, 7, tzinfo=datetime.UTC),
        "span": datetime.timedelta(days=1, seconds=2),
        "scalar": np.float32(0.1),
        "array": np.arange(6, dtype=np.uint16).reshape(2, 3),
        "times": np.array(["2026-11-23"], "datetime64[D]"),
        "tensor": torch.tensor([1, 2, 3]),
        "dtype": torch.float16,
    }


def main() -> None:
    place = HOME / f"v{VERSION[0]}.{VERSION[1]}"
    if place.exists():
        sys.exit(f"{place} exists; golden runs are never made again")
    facts = {"holdfast": holdfast.__version__, "numpy": np.__version__, "torch": str(torch.__version__)}
    training.environment.gather = lambda: dict(facts)  # nothing of one machine belongs into the repository
    run = holdfast.Run(
        place, config={"lr": 0.5}, note="the golden run", every=Every(steps=1),
        keep=Keep(last=None, metric="loss", mode="min"),
    )  # fmt: skip
    net = Small()
    opt = torch.optim.SGD(net.parameters(), lr=0.5, momentum=0.9)
    run.track(model=net, optimizer=opt)
    run.state.update(values())
    for step in run.steps(2):
        net.body(torch.ones(1, 4)).sum().backward()
        opt.step()
        run.log(loss=1.0 / (step + 1))
    run.close()
    for debris in place.glob("lease-*"):
        debris.unlink()
    for link in ("latest", "best"):
        (place / link).unlink()
    shutil.rmtree(place / ".writing-000001", ignore_errors=True)


if __name__ == "__main__":
    main()
