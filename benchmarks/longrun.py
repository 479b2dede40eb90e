"""A run with very many checkpoints, made from one by the project's own encoder."""

from __future__ import annotations

import os
import shutil

import msgspec

from holdfast.format import manifest as manifests
from holdfast.format.names import CheckpointName, parse_checkpoint_name


def multiply(run: str, count: int) -> None:
    """Adds copies of a run's only checkpoint until it has `count`; each has its own name, progress, history."""
    [first] = [name for name in os.listdir(run) if parse_checkpoint_name(name) is not None]
    source = os.path.join(run, first)
    known = parse_checkpoint_name(first)
    if known is None:
        raise ValueError(f"{source} is no checkpoint of a run")
    with open(os.path.join(source, manifests.CHECKPOINT_FILE), "rb") as file:
        manifest = manifests.decode_manifest(file.read(), source)
    rows: list[dict[str, object]] = []
    for sequence in range(2, count + 1):
        name = CheckpointName(sequence, sequence, sequence * 100, known.created)
        rows.append({"epoch": sequence, "loss": 1 / sequence, "val_accuracy": 1 - 1 / sequence})
        own = msgspec.structs.replace(
            manifest,
            name=str(name),
            sequence=sequence,
            progress=manifests.Progress(epoch=sequence, step=sequence * 100),
            metrics={"loss": 1 / sequence, "val_accuracy": 1 - 1 / sequence},
            history=rows[-manifests.HISTORY_ROWS :],
        )
        target = os.path.join(run, str(name))
        shutil.copytree(source, target)
        with open(os.path.join(target, manifests.CHECKPOINT_FILE), "wb") as file:
            file.write(manifests.encode_manifest(own))
