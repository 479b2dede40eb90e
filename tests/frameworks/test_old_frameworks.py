"""Frameworks that are too old beside a training that does not need them."""

import os
import subprocess
import sys

import pytest

pytest.importorskip("torch")

OLD = {
    "keras 2": {"keras": '__version__ = "2.15.0"'},
    "tensorflow 2.10": {"tensorflow": '__version__ = "2.10.1"'},
    "a module that only has the name": {"keras": "", "tensorflow": ""},
}
TRAINING = """
import sys
for name in sys.argv[2:]:
    __import__(name)
import torch, holdfast
for _ in range(2):
    net = torch.nn.Linear(4, 2)
    opt = torch.optim.SGD(net.parameters(), lr=0.1)
    run = holdfast.Run(sys.argv[1], seed=1)
    run.track(model=net, optimizer=opt)
    for epoch in run.epochs(2):
        for batch in run.batches([torch.ones(3, 4)] * 3):
            opt.zero_grad()
            net(batch).sum().backward()
            opt.step()
    print(run.latest.progress.step)
    run.close()
kind = type("Model", (), {"__module__": sys.argv[2] + ".models"})
try:
    holdfast.Run(sys.argv[1] + "-2").track(model=kind())
except holdfast.errors.UsageError as error:
    print(error)
"""


@pytest.mark.parametrize("modules", OLD.values(), ids=OLD)
def test_an_old_framework_beside_a_training_does_no_harm(tmp_path, modules):
    """A torch training saves and resumes although such a module is imported; a thing of it is refused with the versions."""
    for name, text in modules.items():
        (tmp_path / f"{name}.py").write_text(text)
    done = subprocess.run(
        [sys.executable, "-c", TRAINING, str(tmp_path / "run"), *modules],
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    first, again, refusal = done.stdout.splitlines()
    assert first == again == "6"
    name = next(iter(modules))
    assert f"is too old for Holdfast, which needs {name} " in refusal
    assert "Next: pip install" in refusal
