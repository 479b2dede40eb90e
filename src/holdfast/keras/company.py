"""The other callbacks of a `fit`: their state is a part of the training, and comes back with it.

Keras' own are known by name. Of a user's callback those plain values and arrays are state that have
changed since the training began; what it was given (a patience, a path) stays what this launch's script
says. One with `state_dict` and `load_state_dict` is asked for its state.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import keras

from holdfast.errors import UsageError
from holdfast.log import logger
from holdfast.state import adapters, tree

_KNOWN: dict[type, set[str]] = {
    keras.callbacks.EarlyStopping: {"wait", "best", "best_epoch", "best_weights", "stopped_epoch"},
    keras.callbacks.ReduceLROnPlateau: {"wait", "best", "cooldown_counter"},
    keras.callbacks.ModelCheckpoint: {
        "best",
        "_batches_seen_since_last_saving",
        "_last_batch_seen",
        "_current_epoch",
    },
    keras.callbacks.History: {"epoch", "history"},
    # The steps that its curves are drawn over, where it draws batches.
    keras.callbacks.TensorBoard: {"_global_train_batch", "_global_test_batch"},
}
if hasattr(keras.callbacks, "SwapEMAWeights"):
    _KNOWN[keras.callbacks.SwapEMAWeights] = {"_ema_weights_in_model"}
# What Keras' classes keep beside state: a sign that is set once, the model, what fit was asked for.
_LARGEST = 64 << 20  # bytes; a larger array that somebody holds is data
_NEVER = {"model", "_model", "params", "monitor_op", "min_delta", "validation_data"}


class Company:
    """The other callbacks, as one thing to track.

    What is loaded waits for `welcome`: most callbacks forget everything in their own `on_train_begin`.
    """

    MAY_BE_MISSING = True  # from what was imported: then they begin as they are

    def __init__(self, others: list[Any]) -> None:
        self._others = _labelled(others)
        self._first: dict[tuple[str, str], str] = {}
        """A digest of each attribute where the training began."""
        self._saved: Mapping[str, Any] | None = None

    def note(self) -> None:
        """The training is about to begin: from here on, what changes is state."""
        for label, other in self._others.items():
            if not _speaks_for_itself(other):
                for name in _own_names(other):
                    self._first[label, name] = _digest(vars(other)[name])

    def state_dict(self) -> dict[str, Any]:
        found = {}
        for label, other in self._others.items():
            state = other.state_dict() if _speaks_for_itself(other) else self._state_of(label, other)
            if state:
                found[label] = state
        return found

    def _state_of(self, label: str, other: Any) -> dict[str, Any]:
        known = _known_names(other)
        attributes = vars(other)
        found = {}
        for name in (*sorted(known & set(attributes)), *_own_names(other)):
            digest = _digest(attributes[name])
            if digest and (name in known or digest != self._first.get((label, name))):
                found[name] = attributes[name]
        return found

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._saved = state

    def welcome(self) -> None:
        """Gives every callback what was loaded for it."""
        saved, self._saved = self._saved or {}, None
        for label, state in saved.items():
            other = self._others.get(label)
            if other is None:
                logger.warning(
                    "The checkpoint has the state of a callback %s, which this fit does not have: it is left out of "
                    "later checkpoints.",
                    label,
                )
            elif _speaks_for_itself(other):
                other.load_state_dict(state)
            else:
                for name, value in state.items():
                    _put(other, name, value)


def _put(other: Any, name: str, value: Any) -> None:
    # In place where that can be: the script may hold the same list.
    live = vars(other).get(name)
    if type(live) is list and type(value) is list:
        live[:] = value
    elif type(live) is dict and type(value) is dict:
        live.clear()
        live.update(value)
    else:
        setattr(other, name, value)


def _labelled(others: list[Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for other in others:
        name = type(other).__name__
        number, label = 1, name
        while label in found:
            number += 1
            label = f"{name} {number}"
        found[label] = other
    return found


def _speaks_for_itself(other: Any) -> bool:
    return callable(getattr(other, "state_dict", None)) and callable(getattr(other, "load_state_dict", None))


def _known_names(other: Any) -> set[str]:
    return {name for kind, names in _KNOWN.items() if isinstance(other, kind) for name in names}


def _own_names(other: Any) -> list[str]:
    """The attributes of a user's callback that may be state."""
    if type(other).__module__.partition(".")[0] == "keras":
        return []
    return sorted(set(vars(other)) - _known_names(other) - _NEVER)


def _digest(value: Any) -> str:
    """Tells whether a value is still the same; empty for what a checkpoint cannot hold."""
    import xxhash

    leaves: dict[str, Any] = {}
    try:
        skeleton = tree.encode(value, "", leaves)
        whole = xxhash.xxh3_128(json.dumps(skeleton).encode())
        for name, leaf in leaves.items():
            framework = adapters.array_framework(type(leaf)) or "numpy"
            array = adapters.edge(framework).describe(leaf, name)
            if array.nbytes > _LARGEST:
                return ""
            whole.update(f"{name} {array.dtype} {array.shape}".encode())
            if array.nbytes:
                whole.update(array.open())
    except UsageError:  # an object: a writer, a model, a function
        return ""
    return whole.hexdigest()
