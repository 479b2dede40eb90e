"""Fine-tuning: a small head on a frozen network, saved with `trainable` and whole."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import torch

import holdfast
from benchmarks import contenders, limits, states, table
from benchmarks.bench import Bench
from benchmarks.children import Sample
from benchmarks.contenders import warm_up
from benchmarks.memory import measured
from benchmarks.sizes import Size
from benchmarks.topic import Case, Column, Rows, Target, Topic, ratio

_LATER = "**Holdfast** trainable(net), every save after the first"
_FIRST = "**Holdfast** trainable(net), the first"
_WHOLE = "**Holdfast** everything"
_TORCH = "torch.save of everything + fsync"


class Tuned(torch.nn.Module):
    """A frozen GPT-2 and a linear head on it."""

    def __init__(self, size: Size) -> None:
        super().__init__()
        self.base = states.gpt2(size).requires_grad_(False)
        self.head = torch.nn.Linear(size.width, 16)


def save(how: str, path: str, size: Size) -> Sample:
    """A durable save: "first" and "later" with `trainable`, "whole", or "torch"."""
    contenders.quietly()
    torch.manual_seed(5)
    net = Tuned(size)
    optimizer = torch.optim.AdamW(net.head.parameters(), lr=1e-3)
    for parameter in net.head.parameters():
        parameter.grad = torch.rand_like(parameter)
    optimizer.step()
    warm_up("torch" if how == "torch" else "holdfast", path)
    part: Any = net if how == "whole" else holdfast.torch.trainable(net)

    def act() -> None:
        if how == "torch":
            contenders.SAVERS["torch"].save(path, net, optimizer)
        else:
            holdfast.save(path, {"model": part, "optimizer": optimizer})

    if how == "later":
        holdfast.save(f"{path}-before", {"model": part, "optimizer": optimizer})
    seconds, extra = measured(act)
    return Sample(seconds, extra, {"written": limits.bytes_in(path)})


def topics(bench: Bench) -> Iterator[Topic]:
    whole = sum(p.numel() * p.element_size() for p in Tuned(bench.size).parameters())

    def written(rows: Rows) -> float | None:
        ours, everything = rows.of(_LATER), rows.of(_TORCH)
        return ratio(ours.fact("written"), everything.fact("written")) if ours and everything else None

    names = {_LATER: "later", _FIRST: "first", _WHOLE: "whole", _TORCH: "torch"}
    small = os.sysconf("SC_PAGE_SIZE") * 16
    yield Topic(
        "trainable",
        f"Fine-tuning a head of a frozen GPT-2 ({whole / 1e6:,.0f} MB): one durable save",
        [
            *bench.write_limits(small, few=True),
            *(
                Case(
                    who,
                    "peer" if how == "torch" else "holdfast",
                    lambda _, how=how: bench.cleared(save, how, bench.path("tuned"), bench.size),  # type: ignore[misc]
                )
                for who, how in names.items()
            ),
        ],
        bench.size.repetitions,
        columns=COLUMNS,
        targets=[
            Target("a later save writes at most 0.01x of what torch.save writes", written, 0.01),
            Target("and takes at most 0.1x of its time", lambda rows: ratio(rows.seconds(_LATER), rows.seconds(_TORCH)), 0.1),
        ],
        notes=[f"the limit writes {small // 1024} KiB; the first save takes the digest of what is frozen."],
    )  # fmt: skip


COLUMNS = (
    *table.TIMES[:3],
    Column(
        "written", lambda row, _: table.megabytes(row.fact("written") or 0) if row.fact("written") else ""
    ),
    table.TIMES[4],
)
