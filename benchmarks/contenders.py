"""Holdfast and its peers, each with the same verbs; every save is durable when it returns."""

from __future__ import annotations

import os
from typing import Any

import safetensors.torch
import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint import state_dict as dcp_state

import holdfast


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

    name = "torch.save"
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

    name = loading = "safetensors"

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


SAVERS: dict[str, Any] = {
    "holdfast": Holdfast(),
    "torch": TorchSave(),
    "safetensors": Safetensors(),
    "dcp": Distributed(),
}
LOADERS: dict[str, Any] = {
    "holdfast": SAVERS["holdfast"],
    "torch": SAVERS["torch"],
    "torch-mmap": TorchMmap(),
    "safetensors": SAVERS["safetensors"],
    "dcp": SAVERS["dcp"],
}
