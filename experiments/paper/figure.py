"""Held-out loss of every method against learning rate, in shares of the best method's loss reduction."""

from __future__ import annotations

import math
from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import PercentFormatter

from hessian_lr.figures.style import log_ticks, method_style, styled
from hessian_lr.sweep import complete_runs, mean_final_loss

from .findings import Group

MOST = 0.6  # beyond this a learning rate is no rival, and its loss would flatten all others


def paper_figure(groups: Sequence[Group]) -> Figure:
    """One panel a group; the lowest loss of all its methods is 0, the loss before training 1.

    Args:
        groups: At least one.
    """
    with styled():
        figure = Figure(figsize=(3.0 * len(groups), 3.9), layout="constrained")
        row = figure.subplots(1, len(groups), sharey=True, squeeze=False)[0]
        for axes, group in zip(row, groups, strict=True):
            _panel(axes, group)
        row[0].set_ylim(-0.02, MOST)
        row[0].yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
        row[0].set_ylabel("held-out loss above the best method's,\nshare of the loss reduction")
        methods = list(dict.fromkeys(method for group in groups for method in group.sweeps))
        figure.legend(
            handles=[_key(method) for method in sorted(methods)], loc="outside lower center", ncols=6
        )
    return figure


def _panel(axes: Axes, group: Group) -> None:
    for method, sweep in group.sweeps.items():
        losses = {lr: mean_final_loss(runs) for lr, runs in complete_runs(sweep.runs).items()}
        finite = [(lr, group.gap(loss)) for lr, loss in losses.items() if math.isfinite(loss)]
        colour, marker = method_style(method)
        axes.plot(*zip(*finite, strict=True), color=colour, marker=marker, markersize=4.5, linewidth=1.3)
    axes.set_xscale("log")
    log_ticks(axes.xaxis)
    axes.set_xlabel("learning rate")
    axes.set_title(group.title.replace(", ", "\n", 1), loc="left")


def _key(method: str) -> Line2D:
    colour, marker = method_style(method)
    return Line2D([], [], color=colour, marker=marker, markersize=5, label=method)
