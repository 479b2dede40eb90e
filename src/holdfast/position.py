"""What a training was given, where it stands, and where its loader does."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from holdfast.format.manifest import Progress
from holdfast.mirrors.mirror import Mirror
from holdfast.policy.every import Every
from holdfast.policy.keep import Keep
from holdfast.state import streams


@dataclasses.dataclass(frozen=True)
class Options:
    """What `Run` was given, checked."""

    path: str
    config: Any
    note: str
    seed: int | None
    every: Every
    keep: Keep
    mirrors: tuple[Mirror, ...]
    init: Mapping[str, str]
    fresh: tuple[str, ...]
    changed: tuple[str, ...]
    on_nan: str
    overlap: bool
    staging: int | None
    wait: float


@dataclasses.dataclass(slots=True)
class Position:
    """The progress, while it moves."""

    epoch: int = 0
    step: int = 0
    batch: int = 0
    samples: int = 0
    entered: bool = False
    exhausted: bool = False

    def freeze(self) -> Progress:
        return Progress(
            epoch=self.epoch,
            step=self.step,
            batch=self.batch,
            samples=self.samples,
            entered=self.entered,
            exhausted=self.exhausted,
        )

    def key(self) -> tuple[int, int, int]:
        return (self.epoch, self.step, self.batch)

    @classmethod
    def at(cls, progress: Progress) -> Position:
        return cls(**{f.name: getattr(progress, f.name) for f in dataclasses.fields(cls)})


@dataclasses.dataclass(slots=True)
class LoaderState:
    """The loader of the current epoch: its source, and the streams that its order came from."""

    source: Any = None
    order: dict[str, Any] | None = None
    fingerprint: dict[str, Any] | None = None
    first: dict[str, str] | None = None
    """Digests of its generators where the run's first epoch began."""
    touched: dict[str, bool] = dataclasses.field(default_factory=dict)
    """Whether the top of the last epoch's body seeded or used them."""
    ended: dict[str, str] = dataclasses.field(default_factory=dict)
    """Digests of its generators where the last epoch ended."""

    def carry(self, random: Mapping[str, Any], generators: Mapping[str, Any]) -> None:
        """Takes over what earlier launches learned about its generators."""
        self.first = self.first or random.get("first") or streams.digests(generators)
        self.touched = {**random.get("touched", {}), **self.touched}
