"""The card: a checkpoint's `README.md`, for the person who is handed it. Text only, no I/O."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from holdfast.format.manifest import Manifest

_ROWS = 20
_LAYERS = 40


def render(manifest: Manifest) -> str:
    """The card of a checkpoint: what it is, how to open it, and how it came to be."""
    sections = [
        _head(manifest),
        _opening(manifest),
        _metrics(manifest),
        _parts(manifest),
        _architecture(manifest),
        _data(manifest),
        _hyperparameters(manifest),
        _environment(manifest),
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def _head(manifest: Manifest) -> str:
    progress = manifest.progress
    where = f"epoch {progress.epoch}, step {progress.step:,}"
    if progress.batch:
        where += f", {progress.batch} batches ({progress.samples:,} samples) into the next epoch"
    lines = [f"# {manifest.name}", ""]
    if manifest.note:
        lines += [_text(manifest.note), ""]
    lines.append(f"A Holdfast checkpoint, saved {manifest.created} after {where}.")
    if manifest.run:
        lines.append(f"Run `{manifest.run}`, checkpoint number {manifest.sequence}.")
    if manifest.goal is not None:
        reached = progress.epoch if manifest.goal.kind == "epochs" else progress.step
        state = (
            "stopped by the script"
            if manifest.stopped
            else "reached"
            if reached >= manifest.goal.value
            else "going"
        )
        lines.append(f"Goal: {manifest.goal.value:,} {manifest.goal.kind} ({state}).")
    if manifest.nan:
        lines.append(f"**NaN or infinity in {', '.join(manifest.nan[:10])}.** Do not use it for evaluation.")
    for part, source in (manifest.init or {}).items():
        lines.append(f"`{part}` started from {_text(str(source.get('reference')))} ({source.get('name')}).")
    return "\n".join(lines)


def _opening(manifest: Manifest) -> str:
    modules = [
        name
        for name, part in manifest.parts.items()
        if part.get("kind") in ("torch.Module", "torch.Trainable")
    ]
    first = modules[0] if modules else next(iter(manifest.parts), "state")
    last = f'checkpoint.restore({{"{first}": net}})' if modules else f'state = checkpoint.load()["{first}"]'
    return (
        "## Open it\n\n```python\nimport holdfast\n"
        f'checkpoint = holdfast.open("path/to/{manifest.name}")\n{last}\n```\n\n'
        "Without Holdfast: each `.safetensors` file opens with the `safetensors` library. "
        "Check it: `holdfast verify` on this folder."
    )


def _metrics(manifest: Manifest) -> str:
    lines = []
    if manifest.metrics:
        lines += [f"- {name}: {number(value)}" for name, value in manifest.metrics.items()]
    if manifest.best:
        best = manifest.best
        lines.append(
            f"- best {best['metric']} ({best['mode']}) so far: {number(best['value'])} in `{best['name']}`"
        )
    rows = manifest.history
    if rows:
        shown = _sample(rows, _ROWS)
        columns = list(dict.fromkeys(key for row in shown for key in row))
        if lines:
            lines.append("")
        lines.append("| " + " | ".join(columns) + " |")
        lines.append("|" + " --: |" * len(columns))
        lines += ["| " + " | ".join(number(row.get(column)) for column in columns) + " |" for row in shown]
        if len(shown) < len(rows):
            lines.append(f"\n{len(shown)} of the last {len(rows)} rows; all are in `checkpoint.json`.")
    return "## Metrics\n\n" + "\n".join(lines) if lines else ""


def _sample(rows: Sequence[dict[str, Any]], count: int) -> list[dict[str, Any]]:
    if len(rows) <= count:
        return list(rows)
    places = sorted({round(i * (len(rows) - 1) / (count - 1)) for i in range(count)})
    return [rows[place] for place in places]


def _parts(manifest: Manifest) -> str:
    lines = ["## Parts", "", "| part | kind | arrays | bytes |", "| :-- | :-- | --: | --: |"]
    for name, part in manifest.parts.items():
        outline = part.get("outline") or {}
        kind = outline.get("class") or part.get("kind", "")
        lines.append(f"| {name} | {kind} | {part.get('arrays', 0):,} | {part.get('bytes', 0):,} |")
    return "\n".join(lines)


def _architecture(manifest: Manifest) -> str:
    blocks = []
    for name, part in manifest.parts.items():
        outline = part.get("outline") or {}
        if "layers" not in outline:
            continue
        layers = outline["layers"]
        lines = [
            (
                f"`{name}` is a `{outline['class']}` with {outline['parameters']:,} parameters, "
                f"{outline['trainable']:,} of them trainable."
            ),
            "",
            "| layer | type | parameters |",
            "| :-- | :-- | --: |",
        ]
        lines += [f"| {layer} | {_text(kind)} | {count:,} |" for layer, kind, count in layers[:_LAYERS]]
        more = max(0, len(layers) - _LAYERS) + outline.get("more_layers", 0)
        if more:
            lines.append(f"\n… and {more} more layers.")
        blocks.append("\n".join(lines))
    return "## Architecture\n\n" + "\n\n".join(blocks) if blocks else ""


def _data(manifest: Manifest) -> str:
    if not manifest.loader:
        return ""
    facts = [
        f"- {key.replace('_', ' ')}: {_text(str(plain(value)))}"
        for key, value in manifest.loader.items()
        if value not in (None, "")
    ]
    return "## Data\n\n" + "\n".join(facts)


def _hyperparameters(manifest: Manifest) -> str:
    lines = []
    for part, options in (manifest.declared or {}).items():
        # None is torch's word for "not chosen"; checkpoint.json has it all.
        given = {name: value for name, value in options.items() if value is not None}
        lines += [f"- {part}.{name}: {_text(str(plain(value)))}" for name, value in given.items()]
    config = manifest.config
    if isinstance(config, dict):
        lines += [f"- config.{name}: {_text(str(plain(value)))}" for name, value in config.items()]
    return "## Hyperparameters\n\n" + "\n".join(lines) if lines else ""


def _environment(manifest: Manifest) -> str:
    facts = plain(manifest.environment)
    if not isinstance(facts, dict) or not facts:
        return ""
    lines = [f"- {name}: {_text(_fact(value))}" for name, value in facts.items()]
    return "## Environment\n\n" + "\n".join(lines)


def _fact(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_fact(item)}" for key, item in value.items())
    return str(value)


def plain(value: Any) -> Any:
    """An encoded value as text can show it: tags give way to what they hold."""
    if isinstance(value, dict):
        if "$" in value:
            return plain(value.get("v"))
        return {key: plain(item) for key, item in value.items()}
    return [plain(item) for item in value] if isinstance(value, list) else value


def number(value: Any) -> str:
    """A metric as a table shows it."""
    value = plain(value)
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.5g}" if math.isfinite(value) else str(value)
    return str(value)


def _text(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")
