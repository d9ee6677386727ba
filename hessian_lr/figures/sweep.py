"""Sweeps with their predictions, one panel a method."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from ..errors import RequestError
from ..score import Score
from ..sweep.runner import Sweep
from ..sweep.wanted import complete_runs, mean_final_loss
from .style import (
    INK,
    MUTED,
    NARROW,
    PAPER,
    STYLE,
    clipped,
    log_ticks,
    method_style,
    styled,
    times,
)

# Between crosses at one learning rate, and all of them together, as shares of a panel's height.
_APART, _DEEPEST = 0.07, 0.3


@dataclass(frozen=True)
class SweepPanel:
    """One method's sweep with the score of its prediction; its title is the method, if it has no other."""

    sweep: Sweep
    score: Score
    title: str | None = None


def sweep_figure(panels: Sequence[SweepPanel], *, narrow: bool = False) -> Figure:
    """Draw one panel a method: held-out loss against learning rate, with the prediction.

    Markers are single runs, the line their mean over seeds, a dash where there is one alone. Runs that
    diverged are crosses hanging from the upper edge, and a learning rate with one has no mean.

    Args:
        panels: At least one; each sweep with at least one run.
        narrow: For a column as wide as a phone.

    Raises:
        RequestError: there is no panel, or a sweep without runs.
    """
    if not panels or not all(panel.sweep.runs for panel in panels):
        raise RequestError("nothing to draw: at least one sweep is needed, each with at least one run")
    # Four are two and two, rather than three and one.
    columns = 1 if narrow else 2 if len(panels) == 4 else min(len(panels), 3)
    rows = math.ceil(len(panels) / columns)
    with styled():
        width = NARROW if narrow else max(2.7 * columns, 4.6)
        figure = Figure(figsize=(width, 2.3 * rows + 1.1), layout="constrained")
        grid = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
        low, high = _loss_limits(panels)
        rates = [run.lr for panel in panels for run in panel.sweep.runs]
        rates += [panel.score.predicted_lr for panel in panels if panel.score.predicted_lr is not None]
        grid[0, 0].set(xscale="log", xlim=(min(rates) / 1.5, max(rates) * 1.5), ylim=(low, high))
        log_ticks(grid[0, 0].xaxis)
        for axes, panel in zip(grid.flat, panels, strict=False):
            _draw_panel(axes, panel, high)
        for axes in grid.flat[len(panels) :]:
            axes.set_axis_off()
        # A panel above an empty place has no neighbour below to carry its ticks.
        for axes in grid.flat[: len(panels)][-columns:]:
            axes.tick_params(labelbottom=True)
        figure.supxlabel("learning rate (peak of the schedule)", fontsize=STYLE["axes.labelsize"])
        figure.supylabel("held-out loss (nats per token)", fontsize=STYLE["axes.labelsize"])
        figure.legend(handles=_sweep_legend(), loc="outside upper left", ncols=2 if narrow else 3)
        return figure


def _draw_panel(axes: Axes, panel: SweepPanel, ceiling: float) -> None:
    score, runs = panel.score, panel.sweep.runs
    colour, marker = method_style(panel.sweep.setting.method)
    if score.predicted_low is not None and score.predicted_high is not None:
        axes.axvspan(score.predicted_low, score.predicted_high, color=INK, alpha=0.09, linewidth=0, zorder=1)
    for lr, shade, dashes in ((score.predicted_lr, INK, "--"), (score.best_lr, colour, ":")):
        if lr is not None:
            axes.axvline(lr, color=shade, linewidth=1.3, linestyle=dashes, zorder=2)
    kept = np.array([(run.lr, run.final_loss) for run in runs if not run.diverged]).reshape(-1, 2)
    # Markers let through what lies beneath, so that runs at one place are told apart: paper keeps them clear
    # of the lines above, one of which has their colour.
    axes.plot(*kept.T, "o", color=PAPER, markersize=6, markeredgewidth=0, zorder=2.5)
    axes.plot(*kept.T, marker, color=colour, alpha=0.55, markersize=4.5, markeredgewidth=0, zorder=4)
    # Only if there is one: a line without points that is not clipped counts as standing at the figure's
    # corner, and the layout makes room for it.
    if lost := [run.lr for run in runs if run.diverged]:
        # One below the other where several have one learning rate.
        before = [lost[:place].count(lr) for place, lr in enumerate(lost)]
        apart = min(_APART, _DEEPEST / max(1, *before)) * (ceiling - axes.get_ylim()[0])
        heights = [ceiling - place * apart for place in before]
        axes.plot(lost, heights, "x", color=colour, markersize=5.5, clip_on=False, zorder=5)
    groups = complete_runs(runs).items()
    means = [(lr, mean) for lr, group in groups if math.isfinite(mean := mean_final_loss(group))]
    # A line through one point shows nothing; a dash at every other would look like an error bar.
    alone: dict[str, Any] = {"marker": "_", "markersize": 9} if len(means) == 1 else {}
    axes.plot(*np.array(means).reshape(-1, 2).T, color=colour, zorder=3, **alone)
    off = "" if score.factor_error is None else f"  ({times(score.factor_error)} off)"
    if score.censored:
        off = "  (none learned)" if score.best_lr is None else "  (best at the edge)"
    axes.set_title(f"{clipped(panel.title or panel.sweep.setting.method)}{off}", loc="left")


def _sweep_legend() -> list[Line2D | Patch]:
    return [
        Line2D(
            [],
            [],
            marker="o",
            markersize=4.5,
            markeredgewidth=0,
            linestyle="",
            alpha=0.55,
            color=MUTED,
            label="one run",
        ),
        Line2D([], [], color=MUTED, label="mean over seeds"),
        Line2D([], [], marker="x", linestyle="", color=MUTED, label="diverged"),
        Line2D([], [], linestyle="--", linewidth=1.3, color=INK, label="predicted"),
        Patch(facecolor=INK, alpha=0.09, linewidth=0, label="predicted range"),
        Line2D([], [], linestyle=":", linewidth=1.3, color=MUTED, label="best"),
    ]


def _loss_limits(panels: Sequence[SweepPanel]) -> tuple[float, float]:
    """From below the smallest loss to above the largest initial one, where those that diverged stand."""
    runs = [run for panel in panels for run in panel.sweep.runs]
    high = max(run.initial_loss for run in runs)
    low = min(
        [run.final_loss for run in runs if run.final_loss is not None and not run.diverged], default=high
    )
    margin = 0.05 * (high - low) if high > low else 0.5
    return low - margin, high + margin
