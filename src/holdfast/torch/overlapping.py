"""What only torch's optimizers write, and how it looks: the arrays that may be copied behind a training."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from typing import Any

import torch
import xxhash
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_pre_hook

from holdfast.payload.array import Array, HostArray
from holdfast.payload.sharing import share
from holdfast.state.known import Known
from holdfast.state.part import PartState
from holdfast.torch import arrays, optimizers
from holdfast.torch.partial import Trainable

PIECE = 4096  # bytes of a sample; each array gets three
_WHOLE = 3 * PIECE
_SMALL, _LARGE, _DEVICE = range(3)
_digest = xxhash.xxh3_64_intdigest
_STRIDE = 2_654_435_761  # takes the third through all of the array, from save to save


class Late:
    """Arrays that nothing but the optimizers may write, with their memory as it lies.

    Attributes:
        names: one for each, like "model/fc.weight".
        places: (part, name) of each.
        key: equal for two saves that found the same arrays: parameters in the same memory, and state of
            the same names (some optimizers make new tensors of it at each step).

    """

    def __init__(self, found: Iterable[tuple[str, str, Any, int | None]]) -> None:
        """Of (part, name, memory, address where that counts) for each array.

        The memory is uint8 and one-dimensional: NumPy's here, a tensor on a device.
        """
        found = sorted(found, key=lambda one: _rank(one[2]))
        self.names = [
            f"{part}{name}" if name.startswith("/") else f"{part}/{name}" for part, name, *_ in found
        ]
        self.places = frozenset((part, name) for part, name, *_ in found)
        self.key: Hashable = frozenset(
            (name, place) for name, (*_, place) in zip(self.names, found, strict=True)
        )
        self._memory = [memory for *_, memory, _ in found]
        # As samples take them, so that they are taken quickly: first the small ones, then these, then the devices'.
        here = [memory.data for memory in self._memory if _rank(memory) < _DEVICE]
        self._small = [view for view in here if len(view) <= _WHOLE]
        self._large = [(view, len(view) - PIECE) for view in here if len(view) > _WHOLE]
        self._heads = [view[:PIECE] for view, _ in self._large]
        self._tails = [view[room:] for view, room in self._large]
        self._device = [memory for memory in self._memory if _rank(memory) == _DEVICE]

    def digests(self) -> list[int]:
        """A digest of each array, all of it, taken by several threads."""
        found = [0] * len(self._memory)

        def look(index: int) -> None:
            memory = self._memory[index]
            data = arrays.as_bytes(memory.cpu()) if isinstance(memory, torch.Tensor) else memory
            found[index] = xxhash.xxh3_64_intdigest(data)

        share(range(len(found)), look)
        return found

    def samples(self, turn: int) -> list[Hashable]:
        """Digests of three pieces of each array: both ends, and one that `turn` moves; of a small one, of all."""
        moved = []
        for memory, room in self._large:
            start = turn * _STRIDE % room
            moved.append(_digest(memory[start : start + PIECE]))
        found: list[Hashable] = list(map(_digest, self._small))
        found += zip(map(_digest, self._heads), moved, map(_digest, self._tails), strict=True)
        return found + (self._sample_devices(turn) if self._device else [])

    def _sample_devices(self, turn: int) -> list[int]:
        """The same for arrays on devices, with one copy to the host for each device."""
        found = [0] * len(self._device)
        pieces: dict[Any, list[tuple[int, torch.Tensor]]] = {}
        for index, memory in enumerate(self._device):
            size = memory.numel()
            starts = (0, turn * _STRIDE % (size - PIECE), size - PIECE) if size > _WHOLE else (0,)
            length = PIECE if size > _WHOLE else size
            own = pieces.setdefault(memory.device, [])
            own += [(index, memory[start : start + length]) for start in starts]
        for own in pieces.values():
            data = arrays.as_bytes(torch.cat([piece for _, piece in own]).cpu())
            offset = 0
            for index, piece in own:
                stop = offset + piece.numel()
                found[index] = xxhash.xxh3_64_intdigest(data[offset:stop], seed=found[index])
                offset = stop
        return found


def _rank(memory: Any) -> int:
    if isinstance(memory, torch.Tensor):
        return _DEVICE
    return _SMALL if len(memory) <= _WHOLE else _LARGE


def late(things: Mapping[str, Any], states: Mapping[str, PartState], known: Known) -> Late | None:
    """The arrays of tracked parts that only tracked optimizers write; None when there are none.

    These are parameters that train and stand in a parameter group, and the tensors in
    ``optimizer.state[parameter]``. Not those of optimizers that step inside CUDA graphs; not what is
    saved under another part too (run.state, say), whose copy must be of now; not what is strided, or
    used on another stream than the one that the copying threads use.
    """
    tracked = {part: thing for part, thing in things.items() if isinstance(thing, Optimizer)}
    if not tracked or not _ordered():
        return None
    graphed = {
        part for part, thing in tracked.items() if any(g.get("capturable") for g in thing.param_groups)
    }
    # Beside the arrays themselves: whose they are, which optimizers may write them, and whether they do.
    owners = {
        part: [(p.data_ptr(), p.nbytes, p.requires_grad) for p in _parameters(thing)]
        for part, thing in tracked.items()
    }
    native = {part for part, thing in tracked.items() if optimizers.native(thing)}
    holders = {part for part in states if isinstance(things.get(part), (torch.nn.Module, Trainable))}
    basis = (owners, graphed, native, holders)
    return known.derive("late", states, basis, lambda: _find(tracked, graphed, holders, states))


def _find(
    tracked: Mapping[str, Optimizer], graphed: set[str], holders: set[str], states: Mapping[str, PartState]
) -> Late | None:
    # By address and size: quicker than by name, and what has a parameter's memory is that parameter.
    owned = {
        (p.data_ptr(), p.nbytes): p
        for part, thing in tracked.items()
        if part not in graphed
        for p in _parameters(thing)
        if p.requires_grad
    }
    for part in graphed:
        for p in _parameters(tracked[part]):
            owned.pop((p.data_ptr(), p.nbytes), None)
    found: list[tuple[str, str, Array, torch.Tensor, int | None]] = []
    elsewhere: set[Hashable] = set()
    for part, state in states.items():
        tensors: Mapping[Any, torch.Tensor] = {}
        is_state = part in tracked and part not in graphed and optimizers.native(tracked[part])
        if is_state:
            tensors = {(t.data_ptr(), t.nbytes): t for t in _state_tensors(tracked[part])}
        elif part in holders:
            tensors = owned
        for name, array in state.arrays.items():
            identity: Any = array.identity
            if identity is None:
                continue
            place = identity[1] if tensors else None
            tensor = tensors.get((place, array.nbytes))
            if tensor is None or (is_state and not name.startswith("/state/")):
                elsewhere.add(identity)
            elif is_state:  # of any address: some optimizers make it anew at each step
                found.append((part, name, array, tensor, None))
            else:
                found.append((part, name, array, tensor, place))
    late = Late(
        (part, name, memory, pointer)
        for part, name, array, tensor, pointer in found
        if array.identity not in elsewhere and (memory := _memory(array, tensor)) is not None
    )
    return late if late.names else None


def _ordered() -> bool:
    """Whether copies of the crew's threads come after what the training has asked the device for so far."""
    if not (torch.cuda.is_available() and torch.cuda.is_initialized()):
        return True
    if torch.cuda.is_current_stream_capturing():
        return False
    return bool(torch.cuda.current_stream() == torch.cuda.default_stream())


def _parameters(optimizer: Optimizer) -> Iterator[torch.Tensor]:
    for group in optimizer.param_groups:
        yield from group["params"]


def _state_tensors(optimizer: Optimizer) -> Iterator[torch.Tensor]:
    for key, value in optimizer.state.items():
        if isinstance(key, torch.Tensor):
            yield from _tensors(value)


def _tensors(value: Any) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, (dict, list, tuple)):
        inner: Iterable[Any] = value.values() if isinstance(value, dict) else value
        for item in inner:
            yield from _tensors(item)


def _memory(array: Array, tensor: torch.Tensor) -> Any | None:
    """An array's bytes in the order in which they lie, not copied; None when there are holes between them."""
    if isinstance(array, (HostArray, arrays.TensorArray)):
        return array.open()  # the memory itself
    identity: Any = array.identity
    if identity[2] != array.nbytes:
        return None
    flat = tensor.detach().as_strided((tensor.numel(),), (1,))
    return arrays.as_bytes(flat) if flat.is_cpu else flat.view(torch.uint8)


def before_step(things: Mapping[str, Any], notify: Callable[[], None]) -> Any | None:
    """Calls `notify()` before any torch optimizer of this process steps; the handle removes it. None without a tracked one."""
    if not any(isinstance(thing, Optimizer) for thing in things.values()):
        return None
    # A compiled step would take it into its graph, and call it at another time.
    return register_optimizer_step_pre_hook(torch.compiler.disable(lambda *_: notify()))
