"""Holdfast keeps a machine-learning training from losing its place.

    import holdfast

    run = holdfast.Run("runs/digits", keep=holdfast.Keep(last=3, best=1, metric="val_accuracy", mode="max"))
    run.track(model=net, optimizer=opt)
    for epoch in run.epochs(20):
        for x, y in run.batches(loader):
            ...
        run.log(val_accuracy=accuracy(net))

Kill it at any instant; the same command continues it, to the bit. Importing this imports no
framework and no NumPy: each name below is loaded at its first use.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from holdfast.errors import (
    CheckpointError,
    DamagedError,
    FormatError,
    HoldfastError,
    LeaseError,
    MismatchError,
    NotFoundError,
    Preempted,
    ProbeError,
    RehearsalError,
    SlurmError,
    StorageError,
    UntrustedError,
    UsageError,
)

if TYPE_CHECKING:
    from holdfast.checkpoint import Checkpoint, restore
    from holdfast.checkpoint import open_checkpoint as open  # noqa: A004 (holdfast.open, as io.open)
    from holdfast.drafting import save
    from holdfast.mirrors.mirror import Mirror
    from holdfast.policy.every import Every
    from holdfast.policy.keep import Keep
    from holdfast.run import Run
    from holdfast.state.probe import Probe

__version__ = "0.1.0"

__all__ = [
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

_PACKAGES = ("keras", "torch")
_HOMES = {
    "Checkpoint": ("checkpoint", "Checkpoint"),
    "Every": ("policy.every", "Every"),
    "Keep": ("policy.keep", "Keep"),
    "Mirror": ("mirrors.mirror", "Mirror"),
    "Probe": ("state.probe", "Probe"),
    "Run": ("run", "Run"),
    "open": ("checkpoint", "open_checkpoint"),
    "restore": ("checkpoint", "restore"),
    "save": ("drafting", "save"),
}


def __getattr__(name: str) -> Any:
    if name in _PACKAGES:
        import importlib

        return importlib.import_module(f"holdfast.{name}")
    if name not in _HOMES:
        raise AttributeError(f"module 'holdfast' has no attribute {name!r}")
    import importlib

    module, attribute = _HOMES[name]
    found = getattr(importlib.import_module(f"holdfast.{module}"), attribute)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return [*__all__, *_PACKAGES]
