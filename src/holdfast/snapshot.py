"""What a save takes of a training: its parts as they are now, and the manifest that describes them."""

from __future__ import annotations

import dataclasses
import datetime
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from holdfast import hyperparameters
from holdfast.drafting import describe_parts
from holdfast.format.manifest import Manifest
from holdfast.format.names import CheckpointName
from holdfast.journal import encode_metrics
from holdfast.policy.keep import is_new_best
from holdfast.session import Session
from holdfast.state import adapters, capture, garbage, probe, streams
from holdfast.state.part import PartState

if TYPE_CHECKING:
    from holdfast.saving import Saver
    from holdfast.training import Training


@garbage.paused()
def capture_parts(training: Training, record: probe.Record | None) -> dict[str, PartState]:
    states = {
        name: capture.capture(name, thing, training.things, training.known)
        for name, thing in training.things.items()
    }
    if training.state:
        states["state"] = capture.capture_value("state", dict(training.state), "value")
    gradients, zeros = _gradients(training)
    if gradients:
        states["grads"] = capture.capture_value("grads", gradients)
    if record is not None:
        states["probe"] = capture.capture_value("probe", record.output, "value")
    states["random"] = capture.capture_value(
        "random", {**_random(training), **zeros, **_flags(training)}, "value"
    )
    return states


@garbage.paused()
def prepare_staging(training: Training, saver: Saver) -> None:
    """Has the memory made ready, beside the training, that the first save will copy large parts into.

    What is counted are the parts whose arrays are known without asking them for a copy of their state.
    """
    kinds = {name: capture.kind_of(thing) for name, thing in training.things.items()}
    states = {
        name: capture.capture(name, training.things[name], training.things)
        for name, kind in kinds.items()
        if kind is not None and kind.endswith((".Module", ".Optimizer"))
    }
    saver.prepare(states)


def _flags(training: Training) -> dict[str, Any]:
    """The flags that the loop has changed: layers unfrozen at some epoch, modules left in evaluation mode."""
    found = {}
    for name, before in training.flags.items():
        framework = adapters.home_framework(type(training.things[name]))
        now = adapters.edge(framework).flags(training.things[name]) if framework is not None else {}
        changed = {flag: value for flag, value in now.items() if before.get(flag) != value}
        if changed:
            found[name] = changed
    return {"flags": found} if found else {}


def _gradients(training: Training) -> tuple[dict[str, Any], dict[str, Any]]:
    """Pending gradients, and by framework the names of the others that only have to be there."""
    found: dict[str, Any] = {}
    zeros: dict[str, Any] = {}
    if training.position.step or training.position.epoch:
        for name, edge in adapters.loaded_edges():
            gradients, zeros[name] = edge.gradients(training.things, training.stepped)
            found.update(gradients)
    return found, {"zeros": zeros} if any(zeros.values()) else {}


def _random(training: Training) -> dict[str, Any]:
    found: dict[str, Any] = {"streams": streams.capture()}
    source = training.loader.source
    if source is not None:
        found["generators"] = streams.capture_generators(source.generators())
        found["first"], found["touched"] = training.loader.first, training.loader.touched
        if training.loader.order is not None:
            found["order"] = training.loader.order
            if training.top is not None and (
                training.top["generators"] or training.top["streams"] != found["order"]["streams"]
            ):
                found["top"] = training.top
            if training.position.batch:
                found["loader"] = source.state()
    return found


def describe(
    training: Training,
    session: Session,
    states: Mapping[str, PartState],
    metrics: Mapping[str, Any],
    record: probe.Record | None,
) -> Manifest:
    now = datetime.datetime.now(datetime.UTC)
    sequence = session.next_sequence()
    progress = training.position.freeze()
    name = str(CheckpointName(sequence, progress.epoch, progress.step, now))
    keep, nan = training.options.keep, []
    value = metrics.get(keep.metric) if keep.metric is not None else None
    if isinstance(value, float) and not math.isfinite(value):
        nan.append(f"metric/{keep.metric}")
    known = {**training.applied}
    known.update(
        {fresh: hyperparameters.value_of(fresh, training.declared) for fresh in training.options.fresh}
    )
    return Manifest(
        run=session.book.id,
        name=name,
        sequence=sequence,
        created=now.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
        progress=progress,
        metrics=encode_metrics(metrics),
        best=_best_so_far(training, name, metrics),
        goal=training.goal,
        stopped=training.stopped,
        nan=nan,
        note=training.options.note,
        config=training.options.config,
        init=training.init_record,
        declared=training.declared,
        fresh=known,
        loader=training.loader.fingerprint,
        parts=describe_parts(states, training.things, training.outlines),
        probe=record.facts if record is not None else None,
        environment=training.environment(),
        history=training.journal.history,
    )


def _best_so_far(training: Training, name: str, metrics: Mapping[str, Any]) -> dict[str, Any] | None:
    keep = training.options.keep
    if keep.metric is None or training.session is None:
        return None
    if _is_new_best_of_all(training, metrics):
        return {"name": name, "metric": keep.metric, "mode": keep.mode, "value": metrics[keep.metric]}
    ranking = training.session.ranking(keep)
    if not ranking:
        return None
    record = ranking[0]
    return {
        "name": record.name,
        "metric": keep.metric,
        "mode": keep.mode,
        "value": record.metrics[keep.metric],
    }


def _is_new_best_of_all(training: Training, metrics: Mapping[str, Any]) -> bool:
    keep = training.options.keep
    if keep.metric not in metrics or training.session is None:
        return False
    return is_new_best(dataclasses.replace(keep, best=1), training.session.ranking(keep), metrics)
