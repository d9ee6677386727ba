"""The side-by-side as a picture: how long until λ is within 5%, and how much memory it takes."""

from __future__ import annotations

from pathlib import Path
from textwrap import shorten

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from hessian_lr.errors import RequestError
from hessian_lr.figures.style import INK, METHOD_STYLES, MUTED, log_ticks, save, styled

from .names import LABELS, PER_MODULE
from .summary import Row

OURS, OTHERS = METHOD_STYLES["lora"][0], "#9A9A9A"


def peers_figure(rows: list[Row], path: str | Path) -> tuple[Path, Path]:
    """Draw, for the largest sample, two panels a method: seconds to λ within 5%, and peak memory.

    Args:
        rows: What ``summary.read_rows`` gives.
        path: Where to write; ``.svg`` and ``.png`` take the place of its ending.

    Raises:
        RequestError: no tool has a result.
    """
    joint = [row for row in rows if row.tool not in PER_MODULE and row.tool != "truth"]
    if not joint:
        raise RequestError("nothing to draw: no tool has a result")
    samples = max(row.samples for row in joint)
    groups: dict[str, list[Row]] = {}
    for row in joint:
        if row.samples == samples:
            groups.setdefault(row.method, []).append(row)
    most = max(len(group) for group in groups.values())
    with styled():
        figure = Figure(figsize=(8.6, (0.27 * most + 0.75) * len(groups) + 0.6), layout="constrained")
        grid = figure.subplots(len(groups), 2, sharex="col", squeeze=False, width_ratios=(3, 2))
        for (left, right), (method, group) in zip(grid, groups.items(), strict=True):
            threads = group[0].record["request"]["threads"]
            title = f"{method}, {threads} thread{'s' * (threads > 1)}"
            reached = [row.reached[1] if row.reached else None for row in group]
            _panel(left, group, reached, "{:,.0f} s", title)
            _panel(right, group, _gigabytes(group), "{:.1f} GB", None)
            right.set_yticklabels([])
        seconds = [row.reached[1] for group in groups.values() for row in group if row.reached]
        if seconds:
            grid[0, 0].set_xscale("log")
            grid[0, 0].set_xlim(min(seconds) / 2, max(seconds) * 2.5)
            for axes in grid[:, 0]:
                log_ticks(axes.xaxis)
        peaks = [peak for group in groups.values() for peak in _gigabytes(group) if peak]
        grid[0, 1].set_xlim(0, 1.25 * max(peaks, default=1.0))
        grid[-1, 0].set_xlabel("seconds until λ is within 5% for good (logarithmic)")
        grid[-1, 1].set_xlabel("peak memory, GB")
        figure.suptitle(
            f"One λ, {samples} row{'s' * (samples > 1)} of data, one machine: every tool in its own process",
            x=0.01,
            ha="left",
            fontsize=10,
        )
        return save(figure, path)


def _gigabytes(rows: list[Row]) -> list[float | None]:
    # What a tool took that never made a product says nothing.
    return [row.peak / 1e9 if row.peak and row.record["products"] else None for row in rows]


def _panel(axes: Axes, rows: list[Row], values: list[float | None], form: str, title: str | None) -> None:
    for place, (row, value) in enumerate(zip(rows, values, strict=True)):
        if value is not None:
            colour = OURS if row.tool.startswith("ours") else OTHERS
            if title is None:
                axes.barh(place, value, height=0.66, color=colour)
            else:  # a bar has no beginning on a logarithmic axis
                axes.plot(value, place, "o", color=colour, markersize=7)
            axes.annotate(form.format(value), (value, place), (6, 0), textcoords="offset points", va="center")
        elif title is not None:
            text = axes.annotate(
                why_not(row),
                (0, place),
                (4, 0),
                xycoords=("axes fraction", "data"),
                textcoords="offset points",
                va="center",
                color=MUTED,
                style="italic",
                fontsize=8,
            )
            text.set_in_layout(False)
    axes.set_yticks(range(len(rows)), [LABELS[row.tool] for row in rows], color=INK)
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="y", visible=False)
    if title is not None:
        axes.set_title(title, loc="left")


def why_not(row: Row) -> str:
    """Why a tool has no time to λ within 5%, in a few words."""
    if row.truth is None:
        return "no truth to compare with"
    if not row.record["products"]:
        reason = (row.reason or "").split("Error: ", 1)[-1]
        return shorten(f"cannot: {reason}", 62, placeholder=" …")
    error = "" if row.error is None else f", λ off by {row.error:+.0%}"
    return f"not in {len(row.record['products'])} products{error}"
