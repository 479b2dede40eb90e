"""A module's structure as a pickle: a reference stands in the place of each tensor.

So nothing is copied, and the live module is not touched. Reading such a pickle runs the code
that it names; only `load_model` with ``trust=True`` does.
"""

from __future__ import annotations

import itertools
import pickle
import sys
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn

from holdfast.errors import FormatError, MismatchError, UsageError
from holdfast.torch import arrays, modules

STRUCTURE_FILE, STRUCTURE_FACTS = "structure.pickle", "structure.json"
MODEL, ATTRIBUTES = "model", "attributes"

_REFERENCE = "holdfast-array"
_PROTOCOL = 4


# -- saving --------------------------------------------------------------------------------


class StructurePickler(pickle.Pickler):
    """Pickles a module with a reference in the place of each tensor; notes the code that it names."""

    def __init__(self, file: Any, net: nn.Module) -> None:
        super().__init__(file, _PROTOCOL)
        clean = modules.cleaner(net)
        self._listed = {
            id(value): clean(name)
            for name, value in net.state_dict(keep_vars=True).items()
            if isinstance(value, torch.Tensor)
        }
        self._paths = dict(_tensor_paths(net))
        self._references: dict[int, tuple[str, str]] = {}
        self._kept: list[torch.Tensor] = []  # so that no id is used twice while this pickler lives
        self.attributes: dict[str, torch.Tensor] = {}
        self.names: dict[str, str | None] = {}

    def persistent_id(self, obj: Any) -> Any:
        if not isinstance(obj, torch.Tensor):
            return None
        part, name = self._references.get(id(obj)) or self._refer(obj)
        own = dict(vars(obj)) or None
        return (_REFERENCE, part, name, type(obj), obj.requires_grad, _strides(obj), own)

    def _refer(self, tensor: torch.Tensor) -> tuple[str, str]:
        part, name = MODEL, self._listed.get(id(tensor))
        if name is None:
            part, name = ATTRIBUTES, self._paths.get(id(tensor), f"tensor-{len(self.attributes)}")
            self.attributes[name] = tensor
        arrays.describe(tensor, f"{part}/{name}")  # refuses what has no data of its own
        self._kept.append(tensor)
        self._references[id(tensor)] = part, name
        return part, name

    def reducer_override(self, obj: Any) -> Any:
        # Only looks: what is pickled by its name is what a reader would have to import.
        module, name = getattr(obj, "__module__", None), getattr(obj, "__qualname__", None)
        if isinstance(module, str) and isinstance(name, str):
            self.names[f"{module}.{name}"] = _source(module)
        return NotImplemented

    def facts(self, net: nn.Module) -> dict[str, Any]:
        return {
            "format": "holdfast-structure",
            "version": [1, 0],
            "class": class_name(type(net)),
            "python": ".".join(map(str, sys.version_info[:3])),
            "torch": str(torch.__version__),
            "names": dict(sorted(self.names.items())),
        }

    def check_overlaps(self) -> None:
        """Refuses tensors that share a part of their memory: they would come back apart."""
        spans = sorted((_span(t), self._references[id(t)][1], _view(t)) for t in self._kept if t.numel())
        for (one, name, view), (other, next_name, next_view) in itertools.pairwise(spans):
            if one[0] == other[0] and other[1] < one[2] and view != next_view:
                raise UsageError(
                    f"{name} and {next_name} are different views of the same memory, which an entire model cannot keep: "
                    f"they would come back separate. Nothing was saved. Next: make the view where it is used, or "
                    f"save the weights alone with holdfast.save(path, {{'model': net}}).",
                    path=name,
                    found=[name, next_name],
                )


def _tensor_paths(net: nn.Module) -> Iterator[tuple[int, str]]:
    for path, module in net.named_modules(remove_duplicate=False):
        for holder in (vars(module), module._buffers, module._parameters):
            for key, value in holder.items():
                if isinstance(value, torch.Tensor):
                    yield id(value), f"{path}.{key}" if path else key


def _strides(tensor: torch.Tensor) -> tuple[int, ...] | None:
    """The strides of a dense tensor that is not in C order, such as channels_last."""
    if tensor.is_contiguous() or torch.empty_like(tensor, device="meta").stride() != tensor.stride():
        return None
    return tuple(tensor.stride())


def _span(tensor: torch.Tensor) -> tuple[str, int, int]:
    extent = 1 + sum((n - 1) * s for n, s in zip(tensor.shape, tensor.stride(), strict=True))
    start = tensor.data_ptr()
    return str(tensor.device), start, start + extent * tensor.element_size()


def _view(tensor: torch.Tensor) -> tuple[Any, ...]:
    return str(tensor.dtype), tuple(tensor.shape), tuple(tensor.stride())


def class_name(kind: type) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"


def _source(module: str) -> str | None:
    return getattr(sys.modules.get(module), "__file__", None)


class _Nowhere:
    def write(self, data: Any) -> int:
        return len(data)


def unpicklable(net: nn.Module, error: Exception) -> UsageError:
    def fails(value: Any) -> Exception | None:
        try:
            StructurePickler(_Nowhere(), net).dump(value)
        except Exception as reason:
            return reason
        return None

    path, reason = _locate(net, fails)
    text = reason or error
    return UsageError(
        f"{path} cannot be pickled: {text}. Nothing was saved. An entire model holds no lambdas, open files or "
        f"classes defined inside functions. Next: define it at the top of a module, or remove it for the save (a "
        f"hook: handle.remove()), or save the weights alone with holdfast.save(path, {{'model': net}}).",
        path=path,
        type=type(text).__name__,
    )


def _locate(net: nn.Module, fails: Callable[[Any], Exception | None]) -> tuple[str, Exception | None]:
    """The path of what cannot be pickled, deepest module first, and why."""
    found = list(net.named_modules())
    for path, module in sorted(found, key=lambda item: -item[0].count(".") - bool(item[0])):
        where = f"model.{path}" if path else "model"
        reason = fails(type(module))
        if reason is not None:
            return f"{where} (a {class_name(type(module))})", reason
        for key, value in _state_of(module).items():
            if key == "_modules":
                continue
            inner = value.items() if isinstance(value, dict) else [(None, value)]
            for name, item in inner:
                reason = fails(item)
                if reason is not None:
                    return f"{where}.{key}{'' if name is None else f'[{name!r}]'}", reason
    return "model", None


def _state_of(module: nn.Module) -> dict[str, Any]:
    try:
        state: Any = module.__reduce_ex__(_PROTOCOL)[2]
    except Exception:  # the module's own code: the error that counts has been caught already
        return {}
    return state if isinstance(state, dict) else {"state": state}


# -- loading -------------------------------------------------------------------------------


class StructureUnpickler(pickle.Unpickler):
    """Builds a module, with the loaded tensors in the place of their references."""

    def __init__(self, file: Any, values: Any, device: Any, path: str, facts: dict[str, Any]) -> None:
        super().__init__(file)
        self._values, self._device, self._path, self._facts = values, device, path, facts
        self._moved: dict[int, torch.Tensor] = {}
        self._built: dict[tuple[Any, ...], torch.Tensor] = {}

    def persistent_load(self, pid: Any) -> Any:
        try:
            word, part, name, kind, requires_grad, strides, own = pid
            data = self._values[part][name]
        except (TypeError, ValueError, KeyError) as error:
            raise FormatError(
                f"{self._path}: {STRUCTURE_FILE} refers to a tensor that is not there: {pid!r}.",
                path=self._path,
            ) from error
        if word != _REFERENCE:
            raise FormatError(f"{self._path}: {STRUCTURE_FILE} refers to a {word!r}.", path=self._path)
        key = (part, name)
        if key not in self._built:
            tensor = _typed(self._place(data, strides), kind, requires_grad=requires_grad)
            vars(tensor).update(own or {})
            self._built[key] = tensor
        return self._built[key]

    def _place(self, data: torch.Tensor, strides: tuple[int, ...] | None) -> torch.Tensor:
        # By identity: what shared its memory when saved is one tensor here, and stays one.
        if id(data) not in self._moved:
            moved = data if self._device is None else data.to(self._device)
            if strides is not None:
                strided = torch.empty_strided(data.shape, strides, dtype=data.dtype, device=moved.device)
                moved = strided.copy_(moved)
            self._moved[id(data)] = moved
        return self._moved[id(data)].detach()

    def find_class(self, module: str, name: str) -> Any:
        try:
            return super().find_class(module, name)
        except (ImportError, AttributeError) as error:
            full = f"{module}.{name}"
            source = self._facts["names"].get(full)
            where = f", in {source} where it was saved" if source else ""
            if module == "__main__":
                remedy = (
                    "it was defined in the script that saved it: put it into a module of its own that both scripts "
                    "import and save again, or import it under that name in this script before loading"
                )
            elif isinstance(error, ImportError):
                remedy = "install the package, or put its folder on PYTHONPATH"
            else:
                remedy = "the module is there but has no such name any more: use the version that has it"
            raise MismatchError(
                f"{self._path} needs {full}{where}, which cannot be imported here ({error}). Next: {remedy}; or build "
                f'the model yourself and holdfast.restore(path, {{"model": net}}).',
                path=self._path,
                missing=[full],
                unexpected=[],
                different=[],
                source=source,
            ) from error


def _typed(data: torch.Tensor, kind: type, *, requires_grad: bool) -> torch.Tensor:
    if kind is nn.Parameter:
        return nn.Parameter(data, requires_grad=requires_grad)
    if kind is torch.Tensor:
        return data.requires_grad_(requires_grad)
    return torch.Tensor._make_subclass(kind, data, requires_grad)
