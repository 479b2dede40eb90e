"""Entire models: the weights as an ordinary part, the structure as Keras itself writes it, in `keras.json`.

That is what a `.keras` file holds, without its archive: a configuration of layers by their registered
names, and weights. Layers of Keras' own need nothing else. A class of the user's is looked up among
those that are registered; to import it, or to run a lambda, needs ``trust=True``.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Iterator, Mapping
from typing import Any

import keras

from holdfast.checkpoint import Checkpoint, open_checkpoint
from holdfast.drafting import save
from holdfast.errors import FormatError, HoldfastError, MismatchError, UntrustedError, UsageError
from holdfast.format import sealed

STRUCTURE = "keras.json"
MODEL = "model"
_LIMIT = 256 << 20
_SHOWN = 8
# Keras' own classes that run or read what their configuration names.
_REACHING = {"Lambda", "TFSMLayer", "TorchModuleWrapper", "JaxLayer", "FlaxLayer"}


def save_model(model: Any, path: str | os.PathLike[str], note: str = "") -> Checkpoint:
    """Saves an entire model, structure and weights, as one checkpoint. Durable when it returns.

    The weights can be restored by anyone (`holdfast.restore(path, {"model": model})`); the whole, by
    `load_model`, without the script that made it where all layers are Keras' own or registered.

    Raises:
        UsageError: it is no built Keras model, or one of its layers does not say how it is made
            (`get_config`). Nothing was saved.

    """
    if not isinstance(model, keras.Model):
        raise UsageError(
            f"save_model() takes a keras.Model, not a {type(model).__name__}. Next: holdfast.save(path, {{…}}) for other "
            f"things.",
            found=type(model).__name__,
        )
    return save(path, {MODEL: model}, note=note, extra={STRUCTURE: structure(model)})


def structure(model: Any) -> bytes:
    """What `keras.json` holds for a model; `UsageError` for one that cannot be described."""
    if not model.built:
        raise UsageError(
            f"{type(model).__name__} {model.name!r} is not built, so it has no weights yet. "
            f"Next: call it once on a batch, then save it.",
            found=model.name,
        )
    try:
        config = keras.saving.serialize_keras_object(model)
        return sealed.encode(
            {
                "keras": str(keras.__version__),
                "class": f"{type(model).__module__}.{type(model).__qualname__}",
                "config": config,
            }
        )
    except HoldfastError:
        raise
    except Exception as error:
        raise UsageError(
            f"{type(model).__name__} {model.name!r} cannot be described: {type(error).__name__}: {error} Nothing was saved. "
            f"Next: give the class that Keras names a get_config(), and register it with "
            f"@keras.saving.register_keras_serializable(); or save the weights alone: holdfast.save(path, "
            f'{{"model": model}}).',
            found=type(model).__name__,
        ) from error


def load_model(
    path: str | os.PathLike[str],
    trust: bool = False,
    custom_objects: Mapping[str, Any] | None = None,
    compile: bool = True,  # noqa: A002 (Keras' own word)
) -> Any:
    """The entire model that `save_model`, or a run that saves entire models, has saved.

    Every byte is checked before anything is built. Without `trust` nothing is imported, and no code runs
    but Keras' own and that of classes which this program has registered.

    Args:
        path: the checkpoint, by path or reference.
        trust: True says that modules which the structure names may be imported, and its lambdas run.
        custom_objects: name → class, as Keras takes it.
        compile: with loss and metrics, as it was; the optimizer begins anew.

    Raises:
        UntrustedError: it needs code, and there is no ``trust=True``; nothing was run.
        DamagedError: a byte is not as written; nothing was built.
        FormatError: the checkpoint holds no structure of a Keras model.
        MismatchError: a class is not known here, or no longer takes its configuration.

    """
    checkpoint = open_checkpoint(path)
    facts = _facts(checkpoint)
    custom = dict(custom_objects or {})
    _check_trust(checkpoint, facts, custom, trusted=trust is True)
    config = facts["config"]
    if not compile:
        config = {name: value for name, value in config.items() if name != "compile_config"}
    try:
        model = keras.saving.deserialize_keras_object(
            config, custom_objects=custom, safe_mode=trust is not True
        )
    except Exception as error:
        raise MismatchError(
            f"{checkpoint.path}: the model could not be built from its {STRUCTURE} (Keras {facts.get('keras')}, here "
            f"{keras.__version__}): {type(error).__name__}: {error} Next: register the class that Keras misses with "
            f"@keras.saving.register_keras_serializable() and import it first, or pass it in custom_objects={{…}}; or build the "
            f'model and holdfast.restore(path, {{"model": model}}).',
            path=checkpoint.path,
            missing=[],
            unexpected=[],
            different=[str(facts.get("class"))],
        ) from error
    checkpoint.restore({MODEL: model})
    return model


def _facts(checkpoint: Checkpoint) -> dict[str, Any]:
    """What `keras.json` says, digest checked; plain JSON, no code."""
    if STRUCTURE not in checkpoint.manifest.files:
        raise FormatError(
            f"{checkpoint.path} holds no structure of a Keras model, only {', '.join(checkpoint.parts) or 'no parts'}. "
            f"Next: build the model and holdfast.restore(path, {{…: model}}); or let save_model or "
            f"Callback(run, entire=True) save it.",
            path=checkpoint.path,
        )
    path = os.path.join(checkpoint.path, STRUCTURE)
    facts = sealed.decode(checkpoint._read_small(STRUCTURE, _LIMIT), path)
    if not isinstance(facts.get("config"), dict):
        raise FormatError(f"{path} is not as the format says.", path=path)
    return facts


def _check_trust(
    checkpoint: Checkpoint, facts: dict[str, Any], custom: dict[str, Any], *, trusted: bool
) -> None:
    needed = sorted(set(_code_of(facts["config"], custom)))
    if needed and not trusted:
        shown = ", ".join(needed[:_SHOWN]) + (
            f" and {len(needed) - _SHOWN} more" if len(needed) > _SHOWN else ""
        )
        raise UntrustedError(
            f"{checkpoint.path} holds a Keras model that needs code: {shown}. Nothing was run. Next: import the module that "
            f"defines it, where @keras.saving.register_keras_serializable() registers it, or pass custom_objects={{…}}; or, "
            f"if you trust whoever made it, load_model(path, trust=True), which imports what it names and runs its lambdas.",
            path=checkpoint.path,
            names=needed,
        )
    for name in needed:
        module = name.rpartition(":")[0]
        if module:
            try:
                importlib.import_module(module)
            except ImportError as error:
                raise MismatchError(
                    f"{checkpoint.path}: {name} cannot be imported: {error}. Next: make its module importable, as it was for "
                    f"the script that saved it, or pass the class in custom_objects={{…}}.",
                    path=checkpoint.path,
                    missing=[name],
                    unexpected=[],
                    different=[],
                ) from error


def _code_of(config: Any, custom: Mapping[str, Any]) -> Iterator[str]:
    """What a configuration names that is neither Keras' own nor registered: "module:name", or a word for it."""
    if isinstance(config, list):
        for item in config:
            yield from _code_of(item, custom)
    if not isinstance(config, dict):
        return
    kind = config.get("class_name")
    if isinstance(kind, str) and "config" in config:
        module, registered = config.get("module"), config.get("registered_name")
        if kind == "__lambda__":
            yield "a lambda"
        elif kind == "function":
            yield from _function(config, custom)
        elif not _known(kind, registered, module, custom):
            yield f"{module}:{kind}" if module and module != "__main__" else kind
        elif kind in _REACHING and _own(module):
            yield f"keras.layers.{kind}"
        inner = config["config"]
        if isinstance(inner, dict) and isinstance(inner.get("vocabulary"), str):
            yield f"the file {inner['vocabulary']}"
    for item in config.values():
        yield from _code_of(item, custom)


def _function(config: Mapping[str, Any], custom: Mapping[str, Any]) -> Iterator[str]:
    name, registered, module = config["config"], config.get("registered_name"), config.get("module")
    if not (module == "builtins" or _own(module) or _known(str(name), registered, module, custom)):
        yield f"{module}:{name}" if module and module != "__main__" else str(name)


def _known(name: str, registered: Any, module: Any, custom: Mapping[str, Any]) -> bool:
    found = keras.saving.get_registered_object(registered or name, custom_objects=dict(custom))
    return name in custom or found is not None or _own(module) or (module is None and name.startswith("__"))


def _own(module: Any) -> bool:
    return isinstance(module, str) and (module in ("keras", "builtins") or module.startswith("keras."))
