"""The public names are frozen, documented, and the errors are what scripts may rely on."""

import copy
import inspect
import pickle
import subprocess
import sys

import pytest

import holdfast
import holdfast.keras
import holdfast.torch
from holdfast import errors

NAMES = [
    "Checkpoint",
    "CheckpointError",
    "DamagedError",
    "Every",
    "FormatError",
    "HoldfastError",
    "Keep",
    "LeaseError",
    "Mirror",
    "MismatchError",
    "NotFoundError",
    "Preempted",
    "Probe",
    "ProbeError",
    "RehearsalError",
    "Run",
    "SlurmError",
    "StorageError",
    "UntrustedError",
    "UsageError",
    "open",
    "restore",
    "save",
]
MEMBERS = {
    "Run": "batches best checkpoints close epochs latest log path progress resume save state steps stop track",
    "Checkpoint": "arrays config created environment load manifest metrics name note parts pin progress read restore "
    "saved sequence total_bytes unpin verify",
    "Keep": "best budget budget_bytes every_epochs last metric mode",
    "Mirror": "keep limit limit_bytes path required",
    "Every": "due epochs explain interval minutes mtbf overhead paced steps",
    "Probe": "check run",
}
PARAMETERS = {
    "Run": "path config note seed every keep mirrors init fresh changed on_nan overlap staging wait",
    "Run.save": "self epoch step metrics wait",
    "Run.epochs": "self goal",
    "Run.steps": "self goal",
    "Run.batches": "self loader batch_size shuffle",
    "Run.track": "self things",
    "Run.log": "self metrics",
    "Checkpoint.load": "self parts arrays",
    "Checkpoint.restore": "self targets strict",
    "Checkpoint.verify": "self progress",
    "open": "reference",
    "restore": "reference targets strict",
    "save": "path parts note config extra",
    "Keep": "last best metric mode every_epochs budget",
    "Mirror": "url keep limit required",
    "Every": "epochs steps minutes overhead mtbf",
}
EXIT_CODES = {
    "HoldfastError": 1,
    "UsageError": 2,
    "CheckpointError": 3,
    "NotFoundError": 4,
    "DamagedError": 5,
    "FormatError": 6,
    "MismatchError": 7,
    "UntrustedError": 8,
    "ProbeError": 9,
    "StorageError": 10,
    "LeaseError": 11,
    "RehearsalError": 12,
    "SlurmError": 13,
}
PARENTS = {
    "UsageError": (errors.HoldfastError, ValueError),
    "NotFoundError": (errors.CheckpointError, FileNotFoundError),
    "DamagedError": (errors.CheckpointError,),
    "StorageError": (errors.HoldfastError, OSError),
    "LeaseError": (errors.HoldfastError,),
    "Preempted": (SystemExit,),
}


def test_names():
    """The names of the package are these, and each can be had."""
    assert holdfast.__all__ == NAMES
    assert set(dir(holdfast)) >= {*NAMES, "keras", "torch"}
    assert all(getattr(holdfast, name) is not None for name in NAMES)
    with pytest.raises(AttributeError, match="module 'holdfast' has no attribute 'load'"):
        _ = holdfast.load
    assert holdfast.torch.__all__ == ["load_model", "save_model", "trainable"]
    assert holdfast.keras.__all__ == [
        *("Callback", "ModelCheckpoint", "latest_checkpoint", "load_model", "load_weights", "save_model"),
        "save_weights",
    ]


@pytest.mark.parametrize("name", MEMBERS)
def test_members(name):
    """The public members of each class are these."""
    found = {member for kind in getattr(holdfast, name).__mro__[:-1] for member in vars(kind)}
    assert sorted(member for member in found if not member.startswith("_")) == MEMBERS[name].split()


@pytest.mark.parametrize("name", PARAMETERS)
def test_parameters(name):
    """Every call takes these parameters, in this order."""
    thing = holdfast
    for word in name.split("."):
        thing = getattr(thing, word)
    assert list(inspect.signature(thing).parameters) == PARAMETERS[name].split()


@pytest.mark.parametrize("name", [*NAMES, "torch"])
def test_everything_is_documented(name):
    """Every public class and function, and each of their members, has a docstring or stands in that of its class."""
    thing = getattr(holdfast, name)
    assert thing.__doc__, name
    members = vars(thing).items() if inspect.isclass(thing) else ()
    if name == "torch":
        members = [(word, getattr(thing, word)) for word in thing.__all__]
    for member, value in members:
        if member.startswith("_") or not (inspect.isroutine(value) or isinstance(value, property)):
            continue
        attributes = thing.__doc__.partition("Attributes:")[2].replace(",", ":")
        assert value.__doc__ or f" {member}:" in attributes or f"`{member}`" in thing.__doc__, (
            f"{name}.{member}"
        )


def test_error_classes():
    """Each error has an exit code of its own and the parents that scripts catch it by."""
    found = {
        name: kind
        for name, kind in vars(errors).items()
        if inspect.isclass(kind) and issubclass(kind, errors.HoldfastError)
    }
    assert {name: kind.exit_code for name, kind in found.items()} == EXIT_CODES
    assert len(set(EXIT_CODES.values())) == len(EXIT_CODES)
    for name, parents in PARENTS.items():
        assert issubclass(getattr(holdfast, name), parents)
        assert all(issubclass(getattr(holdfast, name), parent) for parent in parents)
    assert all(getattr(holdfast, name) is kind for name, kind in found.items())


@pytest.mark.parametrize("name", EXIT_CODES)
def test_errors_survive_pickling(name):
    """An error keeps its message, its facts and its type through pickle and copy, as process pools need."""
    kind = getattr(holdfast, name)
    error = kind("runs/a is damaged.", path="runs/a", block=3, errno=28)
    for twin in (pickle.loads(pickle.dumps(error)), copy.copy(error), copy.deepcopy(error)):
        assert type(twin) is kind
        assert str(twin) == "runs/a is damaged." == twin.message
        assert (twin.path, twin.block, dict(twin.facts)) == ("runs/a", 3, dict(error.facts))
    with pytest.raises(AttributeError, match=f"{name} carries no 'colour'"):
        _ = error.colour
    assert not hasattr(error, "__wrapped__")


def test_errors_of_the_system_carry_errno():
    """A `StorageError` and a `NotFoundError` can be told by `errno`, as any OSError."""
    import errno

    assert holdfast.StorageError("full", errno=errno.ENOSPC).errno == errno.ENOSPC
    missing = holdfast.NotFoundError("nothing", path="runs/a")
    assert (missing.errno, missing.filename) == (errno.ENOENT, "runs/a")


def test_changed_target():
    """A `DamagedError` can be made one that says that live objects were overwritten, once."""
    error = holdfast.DamagedError("runs/a is damaged.", file="model.safetensors")
    assert error.target_changed is False
    changed = error.changed_target()
    assert changed.target_changed is True
    assert changed.file == "model.safetensors"
    assert str(changed) == (
        "runs/a is damaged. The objects being restored were already partly overwritten: do not use them."
    )
    assert error.target_changed is False


def test_preempted():
    """`Preempted` ends a script with code 75 and passes `except Exception`."""
    script = "import holdfast\ntry:\n    raise holdfast.Preempted('saved')\nexcept Exception:\n    pass"
    done = subprocess.run([sys.executable, "-c", script], check=False)
    assert done.returncode == 75
    twin = pickle.loads(pickle.dumps(holdfast.Preempted("saved", 3)))
    assert (str(twin), twin.code) == ("saved", 3)


def test_nearest():
    """The nearest name is proposed, and none when nothing is near."""
    assert errors.nearest("val_acc", ["loss", "val_accuracy"]) == "did you mean 'val_accuracy'?"
    assert errors.nearest("x", ["loss", "val_accuracy"]) == ""
