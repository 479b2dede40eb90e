"""What of an imported part belongs to what of a live one, and what is left over."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from holdfast.errors import MismatchError

Shapes = Mapping[str, tuple[int, ...]]


class Pairing(NamedTuple):
    """What belongs together, and what is left over.

    Attributes:
        pairs: (live variable, name of the array).
        missing: names of live variables for which nothing was found.
        unexpected: names of arrays that belong to nothing.
        different: (name, saved shape, live shape).

    """

    pairs: list[tuple[Any, str]]
    missing: list[str]
    unexpected: list[str]
    different: list[tuple[str, tuple[int, ...], tuple[int, ...]]]

    @property
    def fits(self) -> bool:
        return not (self.missing or self.unexpected or self.different)

    def names(self) -> dict[str, Any]:
        """Name of an array → the live variable that it belongs to."""
        return {name: variable for variable, name in self.pairs}


def checked(
    pairs: Iterable[tuple[Any, str]], shapes: Shapes, missing: list[str], unexpected: list[str]
) -> Pairing:
    """Pairs whose shapes agree, and what is left."""
    fitting, different = [], []
    for variable, name in pairs:
        if tuple(variable.shape) == tuple(shapes[name]):
            fitting.append((variable, name))
        else:
            different.append((name, tuple(shapes[name]), tuple(variable.shape)))
    return Pairing(fitting, missing, unexpected, different)


def difference(pairing: Pairing) -> str:
    """What does not fit, in a few words."""
    pieces = []
    if pairing.missing:
        pieces.append(f"not there: {_some(pairing.missing)}")
    if pairing.unexpected:
        pieces.append(f"not needed: {_some(pairing.unexpected)}")
    if pairing.different:
        pieces.append(
            "of another shape: "
            + _some([f"{name} ({list(saved)}, here {list(live)})" for name, saved, live in pairing.different])
        )
    return "; ".join(pieces)


def _some(items: list[str]) -> str:
    return ", ".join(items[:8]) + (f" and {len(items) - 8} more" if len(items) > 8 else "")


def check(pairing: Pairing, where: str) -> None:
    """Raises `MismatchError` where something of a model's weights is left over."""
    if pairing.fits:
        return
    raise MismatchError(
        f"{where} does not fit this model; nothing was changed. {difference(pairing)}. Next: build the model as it was "
        f"saved, with the same layers in the same order.",
        missing=pairing.missing,
        unexpected=pairing.unexpected,
        different=[name for name, _, _ in pairing.different],
    )


# -- the way to a variable ------------------------------------------------------------------------------


def find(model: Any, path: str) -> Any | None:
    """The weight that a path means, from the model or from what held it in the checkpoint."""
    names = path.split("/")
    found = follow(model, names)
    return follow(model, names[1:]) if found is None and len(names) > 1 else found


def follow(thing: Any, names: list[str]) -> Any | None:
    """What some attributes lead to, if it is a variable; those of layers are counted as TensorFlow counts them."""
    for name in names:
        found = re.match(r"layer(_with_weights)?-(\d+)\Z", name)
        if found is not None and hasattr(thing, "layers"):
            layers = [layer for layer in thing.layers if layer.weights or not found[1]]
            number = int(found[2])
            thing = layers[number] if number < len(layers) else None
        elif isinstance(thing, (list, tuple)):
            thing = thing[int(name)] if name.isdigit() and int(name) < len(thing) else None
        elif isinstance(thing, Mapping):
            thing = thing.get(name)
        else:
            thing = None if name.startswith("__") else getattr(thing, name, None)
        if thing is None:
            return None
    return thing if hasattr(thing, "assign") and hasattr(thing, "shape") else None
