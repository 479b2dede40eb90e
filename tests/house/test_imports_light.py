"""What the library costs a process: imports only what is used, and leaves what it borrows as it was."""

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


@pytest.mark.parametrize("enabled", [True, False])
def test_the_collector_is_left_as_it_was(tmp_path, enabled):
    """Saving, loading and failing leave the garbage collector switched as they found it."""
    import gc

    import holdfast

    before = gc.isenabled()
    (gc.enable if enabled else gc.disable)()
    try:
        path = tmp_path / "state"
        holdfast.save(path, {"numbers": {"a": 1}})
        assert gc.isenabled() is enabled
        assert holdfast.open(path).load() == {"numbers": {"a": 1}}
        assert gc.isenabled() is enabled
        with pytest.raises(holdfast.NotFoundError):
            holdfast.open(path).load(parts=["other"])
        with pytest.raises(holdfast.UsageError):
            holdfast.save(path, {"numbers": object()})
        assert gc.isenabled() is enabled
    finally:
        (gc.enable if before else gc.disable)()
