"""The picture of speeds over sizes and threads, as an SVG that is the same for the same figures."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

SAVE, LOAD = "**Holdfast** durable save", "**Holdfast** warm load"
WRITE, READ = "limit: raw write + fsync", "limit: read from the page cache"

# Colours that stay apart for those who see few; limits are dashed.
_LINES = {
    READ: ("reading the page cache", "#0072b2", "--"),
    LOAD: ("Holdfast, load", "#0072b2", "-"),
    WRITE: ("raw write + fsync", "#d55e00", "--"),
    SAVE: ("Holdfast, durable save", "#d55e00", "-"),
}
Curves = Mapping[str, Sequence[tuple[str, float]]]  # row → (size or threads, bytes in a second)


def draw(path: str, sizes: Curves, threads: Curves) -> None:
    """Draws both; `ImportError` without matplotlib."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    # Text stays text, and names inside the file do not come from chance.
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "holdfast", "font.family": "sans-serif"}):
        figure = Figure(figsize=(9, 3.6), layout="constrained")
        left, right = figure.subplots(1, 2, sharey=True, width_ratios=(3, 2))
        left.set(title="by size of the state", ylabel="GB/s", yscale="log")
        right.set(title="by threads in each crew", yscale="log")
        for axes, curves in ((left, sizes), (right, threads)):
            _curves(axes, curves)
            axes.yaxis.set_major_formatter(mpl.ticker.FormatStrFormatter("%g"))
            axes.grid(visible=True, color="#dddddd", linewidth=0.6)
            axes.set_axisbelow(True)
            axes.spines[["top", "right"]].set_visible(False)
        left.legend(frameon=False, fontsize=9)
        figure.patch.set_facecolor("white")  # readable on a dark page, too
        scratch = f"{path}.new"
        figure.savefig(scratch, format="svg", metadata={"Date": None})
    os.replace(scratch, path)


def _curves(axes: Any, curves: Curves) -> None:
    for who, (label, colour, style) in _LINES.items():
        points = curves.get(who, [])
        if points:
            marks, rates = zip(*points, strict=True)
            values = [rate / 1e9 for rate in rates]
            axes.plot(
                marks, values, style, color=colour, label=label, marker="o", markersize=4, linewidth=1.6
            )
