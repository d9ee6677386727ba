"""The pictures: eigenvalue against best learning rate, and sweeps with their predictions."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.transforms import Bbox

from ..alignment import align
from ..errors import RequestError
from ..score import Score
from ..sweep.runner import Sweep
from ..sweep.wanted import complete_runs, mean_final_loss
from .style import (
    INK,
    MUTED,
    NARROW,
    STYLE,
    broken,
    clipped,
    log_ticks,
    method_style,
    name_points,
    styled,
    times,
)

# Between crosses at one learning rate, and all of them together, as shares of a panel's height.
_APART, _DEEPEST = 0.07, 0.3


@dataclass(frozen=True)
class EigenvaluePoint:
    """One method in the picture of eigenvalues against best learning rates.

    Attributes:
        method: Its name; decides colour and marker.
        eigenvalue: λ.
        eigenvalue_low: Lower end of λ's error bar; None: not known.
        eigenvalue_high: Upper end, likewise.
        score: Of its sweep: the best learning rate, its band, whether it is censored.
    """

    method: str
    eigenvalue: float
    eigenvalue_low: float | None
    eigenvalue_high: float | None
    score: Score


@dataclass(frozen=True)
class SweepPanel:
    """One method's sweep with the score of its prediction."""

    sweep: Sweep
    score: Score


def eigenvalue_figure(points: Sequence[EigenvaluePoint], *, narrow: bool = False) -> Figure:
    """Draw best learning rate against eigenvalue, both logarithmic, beside the classical slope −1.

    Bars are the eigenvalue's bounds and the band of learning rates within 1% regret; an arrow marks
    a bar that is open or goes on beyond the picture, a hollow marker a censored sweep, which the fit
    leaves out. The shaded fan is the 95% confidence interval of the fitted slope.

    Args:
        points: Those without a positive, finite eigenvalue or a best learning rate are left out.
        narrow: For a column as wide as a phone.

    Raises:
        RequestError: no point is left.
    """
    positive = [p for p in points if 0 < p.eigenvalue < math.inf]
    shown = [(p, p.score.best_lr) for p in positive if p.score.best_lr is not None]
    if not shown:
        raise RequestError("nothing to draw: no point has a positive eigenvalue and a best learning rate")
    with styled():
        figure = Figure(figsize=(NARROW, 4.8) if narrow else (6.4, 5.0), layout="constrained")
        axes = figure.add_subplot(xscale="log", yscale="log")
        axes.set_xlim(_limits([(p.eigenvalue, p.eigenvalue_low, p.eigenvalue_high) for p, _ in shown]))
        axes.set_ylim(_limits([(lr, p.score.band_low, p.score.band_high) for p, lr in shown]))
        covered = []
        for point, lr in shown:
            colour, marker = method_style(point.method)
            at = (point.eigenvalue, lr)
            covered.append(_bar(axes, at, 0, point.eigenvalue_low, point.eigenvalue_high, colour))
            covered.append(_bar(axes, at, 1, point.score.band_low, point.score.band_high, colour))
            face = "white" if point.score.censored else colour
            axes.plot(*at, marker, color=colour, markerfacecolor=face, markersize=7, zorder=4)
        fitted = [(p.eigenvalue, lr) for p, lr in shown if not p.score.censored]
        handles = _trends(axes, fitted or [(p.eigenvalue, lr) for p, lr in shown], bool(fitted))
        if len(fitted) < len(shown):
            hollow = "hollow: best at the edge of its sweep, left out of the fit"
            handles.append(
                Line2D([], [], marker="o", linestyle="", color=MUTED, markerfacecolor="white", label=hollow)
            )
        axes.set_xlabel(broken("largest Hessian eigenvalue λ (loss in nats per token)", figure))
        axes.set_ylabel("best learning rate")
        axes.set_title("Eigenvalue against best learning rate", loc="left")
        for axis in (axes.xaxis, axes.yaxis):
            log_ticks(axis)
        for handle in handles:
            handle.set_label(broken(str(handle.get_label()), figure))
        figure.legend(handles=handles, loc="outside lower left")
        methods = [p.method for p, _ in shown]
        if len(set(methods)) == len(methods):
            name_points(figure, axes, [(clipped(p.method), p.eigenvalue, lr) for p, lr in shown], covered)
        else:
            place = {"loc": "outside upper left", "ncols": 3} if narrow else {"loc": "outside right upper"}
            figure.legend(handles=[_method_key(m) for m in dict.fromkeys(methods)], **place)
        return figure


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


def _trends(axes: Axes, fitted: Sequence[tuple[float, float]], fit: bool) -> list[Line2D | Patch]:
    """The fitted line with its fan, and the classical slope −1 through the same centre; their legend."""
    x, y = np.log10(np.array(fitted)).T
    centre = x.mean(), y.mean()
    reach = np.log10(axes.get_xlim())

    def line(slope: float) -> np.ndarray:
        # A slope from three points may be anything; what lies beyond a float lies beyond the picture.
        return 10 ** np.clip(centre[1] + slope * (reach - centre[0]), -300, 300)

    handles: list[Line2D | Patch] = []
    alignment = align(*zip(*fitted, strict=True)) if fit else align((), ())
    if alignment.slope is None:
        many = f"{alignment.points} point{'' if alignment.points == 1 else 's'}"
        handles.append(Line2D([], [], linestyle="", label=f"no fitted slope: {many} of at least 3"))
    else:
        interval, low, high = "no interval", alignment.slope_low, alignment.slope_high
        if low is not None and high is not None:
            axes.fill_between(10**reach, line(low), line(high), color=INK, alpha=0.07, linewidth=0)
            interval = f"95% interval {_signed(low)} to {_signed(high)}"
        axes.plot(10**reach, line(alignment.slope), color=INK, linewidth=1.4, zorder=2)
        label = f"fitted slope {_signed(alignment.slope)} ({interval}, {alignment.points} points)"
        handles.append(Line2D([], [], color=INK, linewidth=1.4, label=label))
    axes.plot(10**reach, line(-1.0), color=MUTED, linewidth=1.2, linestyle="--", zorder=2)
    handles.append(
        Line2D([], [], color=MUTED, linewidth=1.2, linestyle="--", label="classical theory: slope −1")
    )
    return handles


def _signed(value: float) -> str:
    return f"{value:.2f}".replace("-", "−")


def _limits(values: Iterable[tuple[float, float | None, float | None]]) -> tuple[float, float]:
    """Limits of a log axis: all points, with their bars as far as a factor of 5 beyond the outermost."""
    points, lows, highs = zip(*values, strict=True)
    low, high = min(points), max(points)
    bar_low = min([end for end in lows if end is not None and end > 0], default=low)
    bar_high = max([end for end in highs if end is not None], default=high)
    return min(max(bar_low, low / 5), low / 1.3) / 1.3, max(min(bar_high, high * 5), high * 1.3) * 1.3


def _bar(
    axes: Axes, at: tuple[float, float], along: int, low: float | None, high: float | None, colour: str
) -> Bbox:
    """Draw an error bar along x (0) or y (1), with an arrow where it is open (None) or leaves the picture.

    Returns:
        What it covers, in data coordinates.
    """
    limits = axes.get_ylim() if along else axes.get_xlim()
    ends = np.array([at, at], dtype=float)
    for index, (end, limit, arrow) in enumerate(
        zip((low, high), limits, "v^" if along else "<>", strict=True)
    ):
        inside = end is not None and limits[0] <= end <= limits[1]
        # How far an open bar goes is not known: it is drawn part of the way.
        ends[index, along] = (
            end if inside else at[along] * (limit / at[along]) ** (0.5 if end is None else 0.97)
        )
        if not inside:
            axes.plot(*ends[index], arrow, color=colour, markersize=4.5, zorder=3)
    axes.plot(*ends.T, color=colour, linewidth=1.4, alpha=0.8, zorder=3)
    return Bbox(ends)


def _method_key(method: str) -> Line2D:
    colour, marker = method_style(method)
    return Line2D([], [], marker=marker, linestyle="", color=colour, label=clipped(method))


def _draw_panel(axes: Axes, panel: SweepPanel, ceiling: float) -> None:
    score, runs = panel.score, panel.sweep.runs
    colour, marker = method_style(panel.sweep.setting.method)
    if score.predicted_low is not None and score.predicted_high is not None:
        axes.axvspan(score.predicted_low, score.predicted_high, color=INK, alpha=0.09, linewidth=0, zorder=1)
    for lr, shade, dashes in ((score.predicted_lr, INK, "--"), (score.best_lr, colour, ":")):
        if lr is not None:
            axes.axvline(lr, color=shade, linewidth=1.3, linestyle=dashes, zorder=2)
    kept = np.array([(run.lr, run.final_loss) for run in runs if not run.diverged]).reshape(-1, 2)
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
    axes.set_title(f"{clipped(panel.sweep.setting.method)}{off}", loc="left")


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
