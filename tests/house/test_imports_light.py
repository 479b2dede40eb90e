"""What an import costs: nothing that a process does not use."""

import subprocess
import sys

import pytest

HEAVY = (
    "numpy",
    "torch",
    "tensorflow",
    "keras",
    "jax",
    "click",
    "rich",
    "msgspec",
    "xxhash",
    "asyncio",
    "subprocess",
)


def loaded_after(code, names):
    """Which of the modules a fresh interpreter has loaded after `code`."""
    script = f"{code}\nimport sys\nprint(*[name for name in {names!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return done.stdout.split()


def test_import_is_light():
    """`import holdfast` loads no framework, no NumPy, and nothing of the command line."""
    assert loaded_after("import holdfast", HEAVY) == []


def test_import_loads_few_modules():
    """`import holdfast` loads two modules of ours: the package and its errors."""
    script = "import sys, holdfast\nprint(*sorted(m for m in sys.modules if m.startswith('holdfast')))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["holdfast", "holdfast.errors"]


@pytest.mark.parametrize("name", ["Run", "Checkpoint", "open", "save", "Every", "Keep", "Probe"])
def test_names_bring_no_framework(name):
    """The first use of a public name loads neither a framework nor the command line."""
    heavy = ("torch", "tensorflow", "keras", "jax", "click", "rich")
    assert loaded_after(f"import holdfast; holdfast.{name}", heavy) == []


def test_reading_a_manifest_needs_no_numpy():
    """What `holdfast ls` reads checkpoints with loads no NumPy."""
    assert loaded_after("import holdfast.store.catalog", ("numpy", "torch")) == []
