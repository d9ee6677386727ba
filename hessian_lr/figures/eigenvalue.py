"""Eigenvalue against best learning rate, beside the classical slope."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.transforms import Bbox

from ..alignment import align
from ..errors import RequestError
from ..score import Score
from .style import INK, MUTED, NARROW, broken, clipped, log_ticks, method_style, name_points, styled


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


def eigenvalue_figure(points: Sequence[EigenvaluePoint], *, narrow: bool = False) -> Figure:
    """Draw best learning rate against eigenvalue, both logarithmic, beside the classical slope −1.

    Bars are the eigenvalue's bounds and the band of learning rates within 1% regret; an arrow marks
    a bar that is open or goes on beyond the picture, a hollow marker a censored sweep, which both lines
    leave out. The shaded fan is the 95% confidence interval of the fitted slope.

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
        handles = _trends(axes, fitted)
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


def _trends(axes: Axes, fitted: Sequence[tuple[float, float]]) -> list[Line2D | Patch]:
    """The fitted line with its fan, and the classical slope −1 through the same centre; their legend."""
    alignment = align(*zip(*fitted, strict=True)) if fitted else align((), ())
    many = f"{alignment.points} point{'' if alignment.points == 1 else 's'}"
    unfitted = Line2D([], [], linestyle="", label=f"no fitted slope: {many} of at least 3")
    if not fitted:
        return [unfitted]  # through a point that is left out the classical line would seem to be confirmed
    x, y = np.log10(np.array(fitted)).T
    centre = x.mean(), y.mean()
    reach = np.log10(axes.get_xlim())

    def line(slope: float) -> np.ndarray:
        # A slope from three points may be anything; what lies beyond a float lies beyond the picture.
        return 10 ** np.clip(centre[1] + slope * (reach - centre[0]), -300, 300)

    handles: list[Line2D | Patch] = []
    if alignment.slope is None:
        handles.append(unfitted)
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
