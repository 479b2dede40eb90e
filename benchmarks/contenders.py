"""Holdfast and its peers, each with the same verbs; every save is durable when it returns."""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import logging
import os
import tempfile
import warnings
from typing import Any

import safetensors.torch
import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint import state_dict as dcp_state

import holdfast
from holdfast.log import logger


def sync(path: str) -> None:
    """Makes a file, or all files of a directory, durable, and their names as well."""
    inside = [os.path.join(path, name) for name in os.listdir(path)] if os.path.isdir(path) else []
    for each in [*inside, path, os.path.dirname(path)]:
        fd = os.open(each, os.O_RDONLY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)


class Holdfast:
    """Verified: every byte that is loaded was checked."""

    note = ""
    name = loading = "**Holdfast** (verified)"

    def save(self, path: str, net: Any, optimizer: Any) -> None:
        holdfast.save(path, {"model": net, "optimizer": optimizer})

    def restore(self, path: str, net: Any, optimizer: Any) -> None:
        holdfast.restore(path, {"model": net, "optimizer": optimizer})

    def save_arrays(self, path: str, arrays: dict[str, Any]) -> None:
        holdfast.save(path, {"arrays": arrays})

    def load_arrays(self, path: str) -> Any:
        return holdfast.open(path).load()["arrays"]


class TorchSave:
    """`torch.save` of the two state_dicts, then fsync of the file and its directory."""

    note = ""
    name = "torch.save + fsync"
    loading = "torch.load"
    mmap = False

    def save(self, path: str, net: Any, optimizer: Any) -> None:
        torch.save({"model": net.state_dict(), "optimizer": optimizer.state_dict()}, path)
        sync(path)

    def restore(self, path: str, net: Any, optimizer: Any) -> None:
        state = torch.load(path, weights_only=True, mmap=self.mmap)
        net.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])

    def save_arrays(self, path: str, arrays: dict[str, Any]) -> None:
        torch.save(arrays, path)
        sync(path)

    def load_arrays(self, path: str) -> Any:
        return torch.load(path, weights_only=True, mmap=self.mmap)


class TorchMmap(TorchSave):
    """The same file, memory-mapped when it is loaded; its pages count as memory."""

    loading = "torch.load(mmap=True)"
    mmap = True


class Safetensors:
    """One file with the arrays of both; the rest of the optimizer's state is left out."""

    note = ""
    name = "safetensors + fsync"
    loading = "safetensors"

    def save(self, path: str, net: Any, optimizer: Any) -> None:
        # A tied parameter once: the library refuses to store it under both names.
        arrays = {f"model.{name}": value.detach() for name, value in net.named_parameters()}
        for key, own in optimizer.state_dict()["state"].items():
            arrays |= {f"optimizer.{key}.{field}": value for field, value in own.items()}
        safetensors.torch.save_file(arrays, path)
        sync(path)

    def restore(self, path: str, net: Any, optimizer: Any) -> None:
        arrays = safetensors.torch.load_file(path)
        model = {name[6:]: value for name, value in arrays.items() if name.startswith("model.")}
        net.load_state_dict(model, strict=False)
        state: dict[int, dict[str, Any]] = {}
        for name, value in arrays.items():
            part, _, rest = name.partition(".")
            if part == "optimizer":
                key, _, field = rest.partition(".")
                state.setdefault(int(key), {})[field] = value
        optimizer.load_state_dict({**optimizer.state_dict(), "state": state})

    def save_arrays(self, path: str, arrays: dict[str, Any]) -> None:
        safetensors.torch.save_file(arrays, path)
        sync(path)

    def load_arrays(self, path: str) -> Any:
        return safetensors.torch.load_file(path)


class Distributed:
    """torch.distributed.checkpoint in one process, as its documentation uses it."""

    note = ""
    name = loading = "torch DCP"

    def save(self, path: str, net: Any, optimizer: Any) -> None:
        model, state = dcp_state.get_state_dict(net, optimizer)
        self.save_arrays(path, {"model": model, "optimizer": state})

    def restore(self, path: str, net: Any, optimizer: Any) -> None:
        model, state = dcp_state.get_state_dict(net, optimizer)
        both = {"model": model, "optimizer": state}
        dcp.load(both, checkpoint_id=path, no_dist=True)
        dcp_state.set_state_dict(
            net, optimizer, model_state_dict=both["model"], optim_state_dict=both["optimizer"]
        )

    def save_arrays(self, path: str, arrays: dict[str, Any]) -> None:
        dcp.save(arrays, checkpoint_id=path, no_dist=True)
        sync(path)

    def load_arrays(self, path: str) -> Any:
        reader = dcp.FileSystemReader(path)
        known = reader.read_metadata().state_dict_metadata
        arrays = {name: torch.empty(entry.size) for name, entry in known.items()}
        dcp.load(arrays, storage_reader=reader, no_dist=True)
        return arrays


class Absent(RuntimeError):  # noqa: N818 (a fact about this environment)
    """A peer that is not installed; the message says so."""


def direct_io_note(directory: str) -> str:
    """Why torch_checkpointing saves without its direct I/O in this directory; "" where that works.

    On ext4 and xfs it fails: the last write of a file is no multiple of the block size.
    """
    from torch_checkpointing import CheckpointManager
    from torch_checkpointing.config import SyncCheckpointSaverConfig

    with tempfile.TemporaryDirectory(dir=directory) as place:
        manager = CheckpointManager(CheckpointManager.Config(save=SyncCheckpointSaverConfig()))
        try:
            manager.save(os.path.join(place, "tried"), {"arrays": {"tensor": torch.zeros(1021)}})
        except OSError:
            return "its direct I/O off, with which it cannot save here"
        finally:
            with contextlib.suppress(OSError):
                manager.close()
    return ""


def torch_checkpointing(directory: str, *, background: bool) -> tuple[Any, str]:
    """Its manager, set up for a file system, and what there is to say about the set-up.

    Raises:
        Absent: it is not installed.

    """
    if importlib.util.find_spec("torch_checkpointing") is None:
        raise Absent("torch_checkpointing is not installed")
    from torch_checkpointing import CheckpointManager
    from torch_checkpointing.config import AsyncCheckpointSaverConfig, SyncCheckpointSaverConfig
    from torch_checkpointing.storage.filesystem import LocalFileSystemStorageConfig

    logging.getLogger("torch_checkpointing").setLevel(logging.ERROR)
    note = direct_io_note(directory)
    saver = AsyncCheckpointSaverConfig() if background else SyncCheckpointSaverConfig()
    storage = LocalFileSystemStorageConfig(use_direct_io=not note)
    return CheckpointManager(CheckpointManager.Config(save=saver, storage_config=storage)), note


class TorchCheckpointing:
    """torch_checkpointing, blocking; its files are synced afterwards, which it does not do."""

    name = "torch_checkpointing + fsync"
    loading = "torch_checkpointing"
    note = ""

    @functools.cache  # noqa: B019 (one for the process)
    def _manager(self, directory: str) -> Any:
        manager, self.note = torch_checkpointing(directory, background=False)
        return manager

    def save(self, path: str, net: Any, optimizer: Any) -> None:
        self._save(path, {"model": net.state_dict(), "optimizer": optimizer.state_dict()})

    def restore(self, path: str, net: Any, optimizer: Any) -> None:
        manager = self._manager(os.path.dirname(path))
        found = manager.load(path, into={"model": net.state_dict(), "optimizer": None}, strict=True)
        optimizer.load_state_dict(found["optimizer"])

    def save_arrays(self, path: str, arrays: dict[str, Any]) -> None:
        self._save(path, {"arrays": arrays})

    def load_arrays(self, path: str) -> Any:
        return self._manager(os.path.dirname(path)).load(path, into={"arrays": None}, strict=True)["arrays"]

    def _save(self, path: str, content: dict[str, Any]) -> None:
        self._manager(os.path.dirname(path)).save(path, content)
        sync(path)


def quietly() -> None:
    """What the peers tell about a single process, and Holdfast about its place, is no news here."""
    warnings.filterwarnings("ignore", message="torch.distributed is disabled")
    warnings.filterwarnings("ignore", module=r"torch\.distributed.*|torch_checkpointing.*")
    logger.setLevel(logging.ERROR)


SAVERS: dict[str, Any] = {
    "holdfast": Holdfast(),
    "torch": TorchSave(),
    "safetensors": Safetensors(),
    "dcp": Distributed(),
    "torch_checkpointing": TorchCheckpointing(),
}
LOADERS: dict[str, Any] = {
    "holdfast": SAVERS["holdfast"],
    "torch": SAVERS["torch"],
    "torch-mmap": TorchMmap(),
    "safetensors": SAVERS["safetensors"],
    "dcp": SAVERS["dcp"],
    "torch_checkpointing": SAVERS["torch_checkpointing"],
}


def role(who: str) -> str:
    return "holdfast" if who == "holdfast" else "peer"


def warm_up(who: str, path: str) -> None:
    """What is imported, started or tried out once in a process is no part of a save or a load."""
    quietly()
    contender, small = LOADERS[who], f"{path}-small-{os.getpid()}"
    contender.save_arrays(small, {"tensor": torch.zeros(1024)})
    contender.load_arrays(small)
