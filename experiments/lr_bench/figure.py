"""The bench as a picture: predictions for methods left out, and what each law's miss is."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from hessian_lr.figures.style import INK, MUTED, log_ticks, method_style, styled

from .held_out import left_out
from .laws import LAWS

SHOWN = "combined"
# Of many laws the ones a reader would ask for, the package's own first.
LISTED = {
    "probe": "probe: 38/λ_P and short runs*",
    "combined": "combined: λ, critical rate, 38/λ_P",
    "eigenvalue": "eigenvalue: √(L / λ√n)",
    "adam": "adam: critical rate, 38/λ_P",
    "Polyak": "L / |g|₁ (Polyak)",
    "Gauss-Newton": "Gauss-Newton λ",
    "c / sqrt lambda": "c / √λ",
    "38 / lambda_P": "c · 38/λ_P",
    "critical at start": "c · critical rate",
    "c / lambda": "c / λ",
    "directional": "c · directional step",
    "constant fitted": "one fitted constant",
    "tenth of the steps, free": "sweep at a tenth of the steps*",
    "range test, valley": "range test, valley*",
    "Tinker's formula": "Tinker's formula",
    "3e-4": "3e-4, a common default",
}

# What is further off is shown as an arrow.
FARTHEST = 60.0


def bench_figure(table: pd.DataFrame, rows: list[dict[str, Any]]) -> Figure:
    """Two panels: η̂ over η* with each method left out; median and 90% factor error of each law.

    Args:
        table: Settings with a best learning rate inside their sweep, and the derived columns.
        rows: What ``evaluate`` gives.
    """
    with styled():
        figure = Figure(figsize=(9.4, 4.6), layout="constrained")
        left, right = figure.subplots(1, 2, width_ratios=(1, 1.05))
        _scatter(left, table)
        _errors(right, rows)
    return figure


def _scatter(axes: Axes, table: pd.DataFrame) -> None:
    law = next(law for law in LAWS if law.name == SHOWN)
    predicted = left_out(law, table, table["method"])
    ends = np.array(
        [min(predicted.min(), table["best_lr"].min()), max(predicted.max(), table["best_lr"].max())]
    )
    ends *= [0.7, 1.4]
    axes.fill_between(ends, ends / 2, ends * 2, color=MUTED, alpha=0.12, linewidth=0)
    axes.plot(ends, ends, color=MUTED, linewidth=1)
    handles = []
    for method in sorted(table["method"].unique()):
        colour, marker = method_style(method)
        mine = table["method"] == method
        axes.plot(
            table.loc[mine, "best_lr"],
            predicted[mine],
            linestyle="",
            marker=marker,
            color=colour,
            markersize=5,
            alpha=0.85,
        )
        handles.append(Line2D([], [], linestyle="", marker=marker, color=colour, markersize=5, label=method))
    axes.set(xscale="log", yscale="log", xlim=ends, ylim=ends)
    axes.set_xlabel("best learning rate of the sweep")
    axes.set_ylabel("predicted, the method left out of the fit")
    log_ticks(axes.xaxis)
    log_ticks(axes.yaxis)
    axes.legend(handles=handles, ncols=2, loc="upper left", handletextpad=0.2, columnspacing=0.8)
    axes.set_title(f"{len(table)} settings; band: within 2×", loc="left")


def _errors(axes: Axes, rows: list[dict[str, Any]]) -> None:
    told = {
        row["law"]: row
        for row in rows
        if row["left_out"] in ("method", "nothing fitted") and row["law"] in LISTED
    }
    names = [name for name in LISTED if name in told][::-1]
    for place, name in enumerate(names):
        median, most = told[name]["median_factor"], told[name]["p90_factor"]
        colour = INK if name == SHOWN else MUTED
        axes.plot([median, most], [place, place], color=colour, linewidth=1.4)
        axes.plot(median, place, marker="o", color=colour, markersize=6)
        beyond = most > FARTHEST
        axes.plot(min(most, FARTHEST), place, marker=">" if beyond else "|", color=colour, markersize=9)
    axes.set_yticks(range(len(names)), [LISTED[name] for name in names])
    axes.set_xscale("log")
    axes.set_xlim(0.95, 1.1 * FARTHEST)
    log_ticks(axes.xaxis)
    axes.grid(axis="y", visible=False)
    axes.set_xlabel("factor off, median ● to 90% |, the method left out")
    fewer = told["tenth of the steps, free"]["settings"]
    axes.set_title(f"How far off each is (*: on the {fewer} longest)", loc="left")
