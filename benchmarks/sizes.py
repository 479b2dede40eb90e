"""How large a measurement is: the figures that are published, or a quick look."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Size:
    """Shapes of a GPT-2, and how many of everything else.

    Attributes:
        layers, width, vocabulary, context: of the network.
        arrays: how many arrays of 1 KiB.
        checkpoints: how many lie in a long run.
        repetitions: measurements of each kind; the table shows their median.
        starts: measurements of a command, which are short and noisy.

    """

    layers: int
    width: int
    vocabulary: int
    context: int
    arrays: int
    checkpoints: int
    repetitions: int
    starts: int


FULL = Size(
    layers=12,
    width=768,
    vocabulary=50257,
    context=1024,
    arrays=20_000,
    checkpoints=1_000,
    repetitions=5,
    starts=15,
)
QUICK = Size(
    layers=2, width=64, vocabulary=1_000, context=128, arrays=200, checkpoints=10, repetitions=1, starts=1
)
