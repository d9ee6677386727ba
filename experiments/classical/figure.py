"""Gradient descent's best learning rate and its edge, against 2/λ and against the edge of its first step."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from hessian_lr.alignment import align
from hessian_lr.figures.style import INK, MUTED, log_ticks, method_style, styled

from .findings import Row, scheduled_edge

STEPS = 30
FILLED = "llama-3m"  # the other model's markers are hollow


def classical_figure(rows: Sequence[Row]) -> Figure:
    """Two panels: best and edge over λ, a line between each setting's two; the edge over the first step's."""
    with styled():
        figure = Figure(figsize=(9.4, 4.9), layout="constrained")
        left, right = figure.subplots(1, 2)
        _against_lambda(left, rows)
        _against_first_step(right, rows)
        methods = sorted(dict.fromkeys(row["method"] for row in rows))
        figure.legend(handles=_keys(methods), loc="outside lower center", ncols=6)
    return figure


def drawn_figure(every: pd.DataFrame) -> Figure:
    """Best learning rates of the draws over λ, with 2/λ and the line fitted to them."""
    with styled():
        figure = Figure(figsize=(6.4, 5.2), layout="constrained")
        axes = figure.subplots()
        for row in every.to_dict("records"):
            _point(axes, row, row["lambda"], row["best_lr"])
        x, y = every["lambda"].to_numpy(), every["best_lr"].to_numpy()
        ends = np.array([x.min() / 1.4, x.max() * 1.4])
        slope = align(x.tolist(), y.tolist()).slope
        assert slope is not None
        axes.plot(ends, 2 / ends, color=MUTED, linewidth=1.2, label="2/λ")
        level = np.exp(np.log(y).mean() - slope * np.log(x).mean())
        axes.plot(ends, level * ends**slope, color=INK, linewidth=1.2, label=f"fitted: slope {slope:.2f}")
        axes.legend(loc="lower left")
        _logarithmic(axes, "λ at the start", "best learning rate of gradient descent")
        figure.legend(handles=_keys(sorted(every["method"].unique())), loc="outside lower center", ncols=4)
    return figure


def _against_lambda(axes: Axes, rows: Sequence[Row]) -> None:
    for row in rows:
        colour, _ = method_style(row["method"])
        x = row["lambda"]
        axes.plot([x, x], [row["best"], row["edge"]], color=colour, linewidth=1.2, alpha=0.7)
        axes.plot([x], [row["edge"]], marker="_", markersize=9, color=colour)
        _point(axes, row, x, row["best"])
    ends = np.array([min(row["lambda"] for row in rows) / 1.4, max(row["lambda"] for row in rows) * 1.4])
    axes.plot(ends, 2 / ends, color=MUTED, linewidth=1.2)
    axes.plot(ends, scheduled_edge(STEPS) * 2 / ends, color=MUTED, linewidth=1.2, linestyle="--")
    axes.plot([], [], color=MUTED, label="2/λ: a constant rate's edge on a quadratic")
    axes.plot([], [], color=MUTED, linestyle="--", label="the edge with this run's schedule")
    axes.legend(loc="lower left")
    axes.set_title("best (marker) and edge (bar) of whole runs", loc="left")
    _logarithmic(axes, "λ at the start", "learning rate of gradient descent")


def _against_first_step(axes: Axes, rows: Sequence[Row]) -> None:
    for row in rows:
        _point(axes, row, row["first"], row["edge"])
    values = [row[name] for row in rows for name in ("first", "edge")]
    ends = np.array([min(values) / 1.3, max(values) * 1.3])
    axes.plot(ends, ends, color=MUTED, linewidth=1.2)
    axes.set_title("edge of the run, and of its first step", loc="left")
    _logarithmic(axes, "smallest η with L(θ − η·g) > L(θ) at the start", "edge of the run")


def _point(axes: Axes, row: Row, x: float, y: float) -> None:
    colour, marker = method_style(row["method"])
    face = colour if row["model"] == FILLED else "white"
    axes.plot([x], [y], marker=marker, markersize=6.5, color=colour, markerfacecolor=face, linestyle="")


def _logarithmic(axes: Axes, across: str, up: str) -> None:
    axes.set_xscale("log")
    axes.set_yscale("log")
    log_ticks(axes.xaxis)
    log_ticks(axes.yaxis)
    axes.set_xlabel(across)
    axes.set_ylabel(up)


def _keys(methods: Sequence[str]) -> list[Line2D]:
    styles = [(name, *method_style(name)) for name in methods]
    keys = [
        Line2D([], [], color=colour, marker=marker, linestyle="", markersize=6, label=name)
        for name, colour, marker in styles
    ]
    for face, model in ((INK, FILLED), ("none", "gpt2-2m")):
        keys.append(Line2D([], [], linestyle="", marker="o", color=INK, markerfacecolor=face, label=model))
    return keys
