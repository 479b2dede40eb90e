"""How large a measurement is: the figures that are published, or a quick look."""

from __future__ import annotations

from dataclasses import dataclass, replace


@dataclass(frozen=True, slots=True)
class Size:
    """Shapes of a GPT-2, and how many of everything else.

    Attributes:
        layers, width, vocabulary, context: of the network.
        arrays, many_arrays: how many arrays of 1 KiB.
        checkpoints: how many lie in a long run.
        repetitions: measurements of each kind; the table shows their median.
        starts: measurements of a command, which are short and noisy.
        tokens: of the one sequence in a batch of the training loop.
        loop_steps, loop_every: steps that are timed, and after how many of them a save comes.
        saves: in the run whose memory is watched.
        growth_width: of the network of that run.
        scales: bytes of the states of which the speed is drawn.
        copied: bytes of the checkpoint that is copied to another place.

    """

    layers: int
    width: int
    vocabulary: int
    context: int
    arrays: int
    many_arrays: int
    checkpoints: int
    repetitions: int
    starts: int
    tokens: int
    loop_steps: int
    loop_every: int
    saves: int
    growth_width: int
    scales: tuple[int, ...]
    copied: int

    def for_loop(self) -> Size:
        """Half the layers: the largest state whose step takes about a third of a second on two cores."""
        return replace(self, layers=max(1, self.layers // 2), vocabulary=min(self.vocabulary, 16_384))

    def for_growth(self) -> Size:
        return replace(self, layers=4, width=self.growth_width, vocabulary=min(self.vocabulary, 8_192))


_MIB = 1 << 20
FULL = Size(
    layers=12,
    width=768,
    vocabulary=50257,
    context=1024,
    arrays=20_000,
    many_arrays=200_000,
    checkpoints=10_000,
    repetitions=5,
    starts=15,
    tokens=32,
    loop_steps=40,
    loop_every=10,
    saves=200,
    growth_width=256,
    scales=tuple(n * _MIB for n in (1, 4, 16, 64, 256, 1024, 4096, 8192)),
    copied=1024 * _MIB,
)
QUICK = Size(
    layers=2,
    width=64,
    vocabulary=1_000,
    context=128,
    arrays=200,
    many_arrays=400,
    checkpoints=10,
    repetitions=1,
    starts=1,
    tokens=8,
    loop_steps=4,
    loop_every=2,
    saves=3,
    growth_width=32,
    scales=(1 * _MIB, 4 * _MIB),
    copied=4 * _MIB,
)
