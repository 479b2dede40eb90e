"""A checkpoint → a file that Keras opens without Holdfast, by way of a model of the same structure."""

from __future__ import annotations

import os
from typing import Any

import keras

from holdfast.checkpoint import Checkpoint
from holdfast.errors import UsageError
from holdfast.keras.model import load_model
from holdfast.keras.weights import load_checkpoint


def write(checkpoint: Checkpoint, part: str, file: str, like: Any, path: str) -> None:
    """Restores a checkpoint's model into one that is like it, and has Keras save that under a new name.

    Args:
        checkpoint: what is exported.
        part: the part with the model's weights.
        file: the new file, whose suffix decides: weights alone, or the whole model.
        like: a Keras model, or a .keras file of one; None where the checkpoint holds an entire model.
        path: the name that the file will get, for messages.

    Raises:
        UsageError: `like` is neither, or cannot be opened.
        UntrustedError: the model in the checkpoint needs code that is not Keras' own.
        MismatchError: the checkpoint does not fit it; nothing was changed.

    """
    if like is None:
        model = load_model(checkpoint.path)
    else:
        model = like if isinstance(like, keras.Model) else _open(os.fspath(like), path)
    load_checkpoint(model, checkpoint, part)
    if file.endswith(".keras"):
        model.save(file)
    else:
        model.save_weights(file)


def _open(like: str, path: str) -> Any:
    try:
        return keras.models.load_model(
            like
        )  # safe: it builds no lambda, and imports nothing of the user's own
    except (ValueError, TypeError, OSError, KeyError) as error:
        raise UsageError(
            f"{path}: {like} is no model that Keras can build here: {str(error).splitlines()[0] if str(error) else error!r}. "
            f"Next: a file that model.save wrote; with classes of your own, pass the model itself: like=model.",
            path=like,
        ) from error
