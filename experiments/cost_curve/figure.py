"""The cost curve as a picture: product over gradient, and peak memory, along every axis."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from hessian_lr.errors import RequestError
from hessian_lr.figures.style import METHOD_STYLES, MUTED, log_ticks, save, styled

from .growth import series
from .points import AXES, DTYPES, GRAPHS, QUICK_AXES

COLOURS = dict(zip(DTYPES, (METHOD_STYLES["lora"][0], METHOD_STYLES["init-ab"][0]), strict=True))
LINES = {"kept": "-", "rebuilt": "--", "step": ":"}
LABELS = {"kept": "graphs kept", "rebuilt": "graphs rebuilt", "step": "one training step"}


def cost_figure(points: list[dict[str, Any]], path: str | Path, quick: bool) -> tuple[Path, Path]:
    """Draw a column an axis: above the product's time in gradients, below peak memory.

    Args:
        points: The measurements.
        path: Where to write; ``.svg`` and ``.png`` take the place of its ending.
        quick: Whether they are of the quick set.

    Raises:
        RequestError: nothing was measured.
    """
    axes_names = list(QUICK_AXES if quick else AXES)
    if not any("failed" not in point for point in points):
        raise RequestError("nothing to draw: no point was measured")
    with styled():
        figure = Figure(figsize=(2.1 * len(axes_names) + 0.8, 4.6), layout="constrained")
        grid = figure.subplots(2, len(axes_names), sharex="col", sharey="row", squeeze=False)
        for (above, below), name in zip(grid.T, axes_names, strict=True):
            for dtype in DTYPES:
                for graphs in GRAPHS:
                    _line(above, series(points, name, dtype, graphs, quick), "ratio", 1, dtype, graphs)
                for what in (*GRAPHS, "step"):
                    _line(below, series(points, name, dtype, what, quick), "peak_bytes", 1e9, dtype, what)
            above.axhline(1, color=MUTED, linewidth=0.8)
            below.set(xscale="log", yscale="log", xlabel=name)
            log_ticks(below.xaxis)
            log_ticks(below.yaxis)
        grid[0, 0].set_ylim(bottom=0)
        grid[0, 0].set_ylabel("product / gradient (time)")
        grid[1, 0].set_ylabel("peak memory, GB")
        keys = [Line2D([], [], color=COLOURS[dtype], label=dtype) for dtype in DTYPES]
        keys += [Line2D([], [], color=MUTED, linestyle=LINES[w], label=LABELS[w]) for w in LINES]
        figure.legend(handles=keys, loc="outside upper left", ncols=len(keys) if len(axes_names) > 3 else 3)
        return save(figure, path)


def _line(
    axes: Axes,
    line: list[tuple[int, dict[str, Any]]],
    quantity: str,
    unit: float,
    dtype: str,
    what: str,
) -> None:
    pairs = [(x, point[quantity] / unit) for x, point in line]
    if pairs:
        axes.plot(*zip(*pairs, strict=True), LINES[what], marker="o", markersize=3, color=COLOURS[dtype])
