"""One mirror of a run, as this process knows it: how far it is, and what went wrong there."""

from __future__ import annotations

import dataclasses
from typing import Any

from holdfast.errors import UsageError
from holdfast.mirrors.mirror import Mirror
from holdfast.mirrors.place import Place
from holdfast.mirrors.places import place_of
from holdfast.mirrors.plan import Standing, keep_of
from holdfast.policy.keep import Keep
from holdfast.store.book import RunBook
from holdfast.store.entry import Entry


@dataclasses.dataclass(slots=True)
class State:
    """A mirror and its standing. Attributes are replaced whole: another thread may be reading them.

    Attributes:
        mirror: as the user named it.
        place: where it lies.
        keep: which checkpoints stay there.
        reached: whether it was seen to hold this run, in this launch or an earlier one.
        standing: what it holds and lacks.
        damaged: checkpoints of the run that cannot be copied, and why; each is told once.
        failures: how often in a row it failed.
        retry_at: when it is tried again, on the monotonic clock.
        problem: what went wrong last; None when it is up to date.

    """

    mirror: Mirror
    place: Place
    keep: Keep
    reached: bool = False
    standing: Standing = dataclasses.field(default_factory=Standing)
    damaged: dict[str, str] = dataclasses.field(default_factory=dict)
    failures: int = 0
    retry_at: float = 0.0
    problem: str | None = None
    took: tuple[float, ...] = ()
    """Seconds of its last copies."""
    brought: int = 0
    """The last call of `hand_over` after which it was brought up to date."""
    found: RunBook | None = None
    """Its run.json, as it was when the run was opened."""

    @classmethod
    def of(cls, mirror: Mirror, keep: Keep, writer: str, known: bool) -> State:
        return cls(
            mirror,
            place_of(mirror.path, writer),
            keep_of(mirror.keep, keep),
            reached=known,
            standing=Standing(required=mirror.required),
        )

    def record(self) -> dict[str, Any]:
        """What run.json says of it."""
        mirror = self.mirror
        keep = dataclasses.asdict(mirror.keep) if mirror.keep is not None else None
        return {
            "url": mirror.path,
            "keep": keep,
            "limit": mirror.limit_bytes,
            "required": mirror.required,
            "reached": self.reached,
        }

    def missing(self, names: list[str]) -> str:
        """What is said where it was not brought up to date in time."""
        which = f"; not there: {', '.join(names[:3])}{', …' if len(names) > 3 else ''}" if names else ""
        why = self.problem if self.problem and self.mirror.required else ""
        if not self.problem:  # what failed was told when it did
            why = "The time to wait for it was over."
        said = f"The mirror {self.place.url} is not up to date{which}."
        return f"{said}{f' {why}' if why else ''} The next launch goes on with it."

    def saw(self, entries: list[Entry], *, read: bool = True) -> None:
        """Takes note of what lies there; unless all are `read`, by their names."""
        self.standing = dataclasses.replace(
            self.standing,
            newest=next((entry.sequence for entry in reversed(entries) if entry.clean), 0),
            names=frozenset(entry.folder for entry in entries if not read or entry.whole),
        )


def other_run(run: str, own: str, url: str, found: str) -> UsageError:
    """What is said of a mirror that holds another run than this one."""
    return UsageError(
        f"The mirror {url} holds another run: its id is {found}, and that of {run} is {own}. Nothing was written. "
        f"Next: give this run a mirror of its own, or use the directory of the run that belongs there.",
        path=url,
        expected=own,
        found=found,
    )
