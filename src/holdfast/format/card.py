"""The card: a checkpoint's `README.md`, for the person who is handed it. Text only, no I/O."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from holdfast.errors import printable
from holdfast.format.manifest import Manifest

_ROWS = 20
_LAYERS = 40
_MODELS = {"torch.Module", "torch.Trainable", "keras.Model", "tensorflow.Module"}


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
    lines = [f"# {_text(manifest.name)}", ""]
    if manifest.note:
        lines += [_paragraph(manifest.note), ""]
    lines.append(f"A Holdfast checkpoint, saved {_text(manifest.created)} after {where}.")
    if manifest.run:
        lines.append(f"Run {_code(manifest.run)}, checkpoint number {manifest.sequence}.")
    if manifest.goal is not None:
        reached = progress.epoch if manifest.goal.kind == "epochs" else progress.step
        state = (
            "stopped by the script"
            if manifest.stopped
            else "reached"
            if reached >= manifest.goal.value
            else "going"
        )
        lines.append(f"Goal: {manifest.goal.value:,} {_text(manifest.goal.kind)} ({state}).")
    if manifest.nan:
        marked = _text(", ".join(manifest.nan[:10]))
        lines.append(f"**NaN or infinity in {marked}.** Do not use it for evaluation.")
    for part, source in (manifest.init or {}).items():
        began, name = _text(str(source.get("reference"))), _text(str(source.get("name")))
        lines.append(f"{_code(part)} started from {began} ({name}).")
    return "\n".join(lines)


def _opening(manifest: Manifest) -> str:
    modules = [name for name, part in manifest.parts.items() if part.get("kind") in _MODELS]
    first = modules[0] if modules else next(iter(manifest.parts), "state")
    # json.dumps: whatever the names are, they stay texts in what somebody copies from here.
    last = (
        f"checkpoint.restore({{{json.dumps(first)}: net}})"
        if modules
        else f"state = checkpoint.load()[{json.dumps(first)}]"
    )
    place = json.dumps(f"path/to/{manifest.name}")
    return (
        "## Open it\n\n```python\nimport holdfast\n"
        f"checkpoint = holdfast.open({place})\n{last}\n```\n\n"
        "Without Holdfast: each `.safetensors` file opens with the `safetensors` library. "
        "Check it: `holdfast verify` on this folder."
    )


def _metrics(manifest: Manifest) -> str:
    lines = []
    if manifest.metrics:
        lines += [f"- {_paragraph(name)}: {_text(number(value))}" for name, value in manifest.metrics.items()]
    if manifest.best:
        best = manifest.best
        lines.append(
            f"- best {_text(str(best['metric']))} ({_text(str(best['mode']))}) so far: "
            f"{_text(number(best['value']))} in {_code(str(best['name']))}"
        )
    rows = manifest.history
    if rows:
        shown = _sample(rows, _ROWS)
        columns = list(dict.fromkeys(key for row in shown for key in row))
        if lines:
            lines.append("")
        lines.append("| " + " | ".join(map(_text, columns)) + " |")
        lines.append("|" + " --: |" * len(columns))
        lines += [
            "| " + " | ".join(_text(number(row.get(column))) for column in columns) + " |" for row in shown
        ]
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
        kind = _text(str(outline.get("class") or part.get("kind", "")))
        lines.append(f"| {_text(name)} | {kind} | {part.get('arrays', 0):,} | {part.get('bytes', 0):,} |")
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
                f"{_code(name)} is a {_code(str(outline['class']))} with {outline['parameters']:,} parameters, "
                f"{outline['trainable']:,} of them trainable."
            ),
            "",
            "| layer | type | parameters |",
            "| :-- | :-- | --: |",
        ]
        lines += [
            f"| {_text(str(layer))} | {_text(str(kind))} | {count:,} |"
            for layer, kind, count in layers[:_LAYERS]
        ]
        more = max(0, len(layers) - _LAYERS) + outline.get("more_layers", 0)
        if more:
            lines.append(f"\n… and {more} more layers.")
        blocks.append("\n".join(lines))
    return "## Architecture\n\n" + "\n\n".join(blocks) if blocks else ""


def _data(manifest: Manifest) -> str:
    if not manifest.loader:
        return ""
    facts = [
        f"- {_paragraph(key.replace('_', ' '))}: {_text(str(plain(value)))}"
        for key, value in manifest.loader.items()
        if value not in (None, "")
    ]
    return "## Data\n\n" + "\n".join(facts)


def _hyperparameters(manifest: Manifest) -> str:
    lines = []
    for part, options in (manifest.declared or {}).items():
        # None is torch's word for "not chosen"; checkpoint.json has it all.
        given = {name: value for name, value in options.items() if value is not None}
        lines += [
            f"- {_paragraph(part)}.{_text(str(name))}: {_text(str(plain(value)))}"
            for name, value in given.items()
        ]
    config = manifest.config
    if isinstance(config, dict):
        lines += [
            f"- config.{_text(str(name))}: {_text(str(plain(value)))}" for name, value in config.items()
        ]
    return "## Hyperparameters\n\n" + "\n".join(lines) if lines else ""


def _environment(manifest: Manifest) -> str:
    facts = plain(manifest.environment)
    if not isinstance(facts, dict) or not facts:
        return ""
    lines = [f"- {_paragraph(str(name))}: {_text(_fact(value))}" for name, value in facts.items()]
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


# What Markdown could take for more than text: code, emphasis, HTML, entities, tables, links, images.
_MARKUP = re.compile(r"[\\`*<>|&~]|\](?=\()|!(?=\[)|(?<!\w)_|_(?!\w)|_(?=_)|(?<=_)_")
# What begins a block at the start of a line: headings, lists, rules, definitions of links.
_BLOCK = re.compile(r"\A(\d*)([#+=\[-]|[.)](?=\s|\Z))")


def _text(text: str) -> str:
    """Text as text: on one line, without control characters, and without a meaning in Markdown."""
    return _MARKUP.sub(r"\\\g<0>", printable(" ".join(text.split())))


def _paragraph(text: str) -> str:
    """`_text` that begins a line."""
    return _BLOCK.sub(r"\1\\\2", _text(text))


def _code(text: str) -> str:
    """Text between backticks."""
    return f"`{printable(' '.join(text.split())).replace('`', chr(39)).replace('|', ' ') or ' '}`"
