"""Which learning rates a sweep runs next, from the losses it has so far.

Everything here counts in grid points: point k is the learning rate 10^(k/4), so neighbours
are a factor 10^0.25 = 1.78 apart. The grid is absolute (it does not depend on the start), so
two sweeps of one setting share their runs whatever prediction each started from.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from typing import TypeVar

from ..errors import RequestError

POINTS_PER_DECADE = 4
# 1e-7 and 100: AdamW on an adapter wants less than 1, SGD, whose step is as short as the gradient, more.
LOWEST, HIGHEST = -28, 8
MAX_POINTS = 12
STRIDE = 2  # a search strides by 10^0.5 and fills the gaps only beside the best
_FILL = 2  # points the filling needs: one on either side of the best
# Of a search whose first three points bracket the best, away from the grid's limits.
FEWEST_POINTS = 3 + _FILL

K = TypeVar("K", int, float)  # a grid point, or the learning rate itself


def learning_rate(point: int) -> float:
    """The learning rate 10^(point / 4)."""
    return 10.0 ** (point / POINTS_PER_DECADE)


def geometric(low: float, high: float, per_decade: int) -> tuple[float, ...]:
    """Learning rates from ``low`` to at most ``high``, neighbours a factor 10^(1/per_decade) apart.

    A range that starts at a point 10^(k/per_decade) is made of such points to the last digit, so that
    its runs are the same as a search's.
    """
    first = math.log10(low) * per_decade
    # Rounding may put an end on either side of its point.
    count = math.floor(math.log10(high / low) * per_decade + 1e-9) + 1
    if abs(first - round(first)) < 1e-9:
        return tuple(10.0 ** ((round(first) + step) / per_decade) for step in range(count))
    return tuple(low * 10.0 ** (step / per_decade) for step in range(count))


def nearest_point(lr: float) -> int:
    """The grid point nearest to ``lr`` on a logarithmic scale, within the grid's limits.

    Raises:
        RequestError: ``lr`` is not a positive number.
    """
    if not (math.isfinite(lr) and lr > 0):
        raise RequestError(f"a sweep starts at a positive learning rate, not {lr!r}")
    return min(max(round(math.log10(lr) * POINTS_PER_DECADE), LOWEST), HIGHEST)


def next_points(start: int, losses: Mapping[int, float], stride: int = STRIDE) -> tuple[int, ...]:
    """The points to run next; none when the sweep is complete.

    Runs ``start`` and a point a stride away on both sides; then extends by a stride beyond
    the best point until the best is interior; then fills the points one step beside the best.
    Stops at the grid's limits and at ``MAX_POINTS`` points, two of them kept for the filling:
    a best point that is still at an edge then is censored (``at_edge``).

    Args:
        start: The point the search starts from.
        losses: Mean loss at each point that was run; +inf where a run diverged.
        stride: Steps between the points of the search: 1 where its start is well known.

    Returns:
        Points that are not in ``losses``, ascending.
    """
    if not losses:
        points = (max(start - stride, LOWEST), start, min(start + stride, HIGHEST))
        return tuple(sorted(set(points)))
    best = best_of(losses)
    low, high = min(losses), max(losses)
    if len(losses) + 1 + _FILL <= MAX_POINTS:
        if best == low and low > LOWEST:
            return (max(low - stride, LOWEST),)
        if best == high and high < HIGHEST:
            return (min(high + stride, HIGHEST),)
    beside = (best - 1, best + 1)
    missing = [point for point in beside if low <= point <= high and point not in losses]
    return tuple(missing[: max(MAX_POINTS - len(losses), 0)])


@functools.cache
def fewest_points(start: int, stride: int = STRIDE) -> int:
    """The fewest points that a search from ``start`` can end with, wherever its best point lies.

    They are ``FEWEST_POINTS`` but near the grid's limits, where a best point may have one neighbour.
    """
    return min(_searched(start, stride, best) for best in range(LOWEST, HIGHEST + 1))


def _searched(start: int, stride: int, best: int) -> int:
    """Points of a search whose losses rise to both sides of ``best``."""
    losses: dict[int, float] = {}
    while points := next_points(start, losses, stride):
        losses |= {point: abs(point - best) for point in points}
    return len(losses)


def best_of(losses: Mapping[K, float]) -> K:
    """The key of the smallest loss; of equal ones the lowest, which of diverged runs is the safe side."""
    return min(losses, key=lambda key: (losses[key], key))


def at_edge(losses: Mapping[K, float]) -> bool:
    """Whether the best is the lowest or the highest learning rate that was run: the answer may lie beyond."""
    best = best_of(losses)
    return best in (min(losses), max(losses))
