"""What a sweep says about a prediction.

The conventions are this project's own; every number it publishes about predictions follows them.

- Mean first: losses are averaged over seeds at each learning rate, and only learning rates that
  were run with every seed count. Everything below is about these means L(η), as a function of
  x = log10 η. A run without a finite final loss counts as the largest loss seen in the sweep; a
  learning rate at which a run diverged counts as at least the mean initial loss L_init.
- L* is the smallest L on the grid. Regret(η) = (L(η) − L*) / (L_init − L*): 0 is the best, 1
  learned nothing.
- η* is the vertex of the parabola in x through the best grid point and its two neighbours, or the end of the
  band that lies nearest to it; on the side of a neighbour at which a run diverged, no further than the best
  grid point.
- Between grid points L is the monotone cubic interpolation of Fritsch and Carlson (PCHIP), which
  stays between neighbouring values; outside the swept range nothing is said.
- The band is the interval around the best grid point on which regret ≤ 1%.
- Factor error = 10^|log10(η̂/η*)|, at least 1.
- Noise is the standard error of the difference between two learning rates' mean losses, as a share of
  L_init − L*, as regret is: σ·√(2/S) with S seeds, and σ² the mean square by which losses of learning rates
  near the best (regret ≤ 10%) deviate from seed and learning rate added up (two-way analysis of variance).
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
import scipy.interpolate
import scipy.optimize

from .errors import RequestError
from .records import Record
from .sweep.run import RunResult
from .sweep.runner import Sweep
from .sweep.wanted import complete_runs

BAND_REGRET = 0.01
# Within which learning rates scatter alike: towards divergence they scatter more.
_NEAR = 0.1


@dataclass(frozen=True)
class Score(Record):
    """A prediction against a sweep; None where a quantity is not determined.

    Attributes:
        best_lr: η*; where ``censored``, the edge at which the best loss lies; None if no learning
            rate of the sweep lowered the loss.
        best_loss: L*, nats per labelled token.
        band_low: Lower end of the band; None where the band is open: it runs out of the swept range.
        band_high: Upper end of the band, likewise.
        censored: The best grid point lies at an edge of the swept range: η* may lie beyond.
        predicted_lr: The prediction η̂; None if there was none.
        predicted_low: Lower end of the predicted range.
        predicted_high: Upper end of the predicted range.
        factor_error: 10^|log10(η̂/η*)|; against the edge where ``censored``.
        regret: Regret at η̂; None outside the swept range.
        inside_band: Whether η̂ lies in the band; None where it lies beyond an open end.
        noise: Standard error of the difference between two learning rates, in units of regret, so that a
            regret below about twice this may be chance; None with one seed.
    """

    best_lr: float | None
    best_loss: float | None
    band_low: float | None
    band_high: float | None
    censored: bool
    predicted_lr: float | None
    predicted_low: float | None
    predicted_high: float | None
    factor_error: float | None
    regret: float | None
    inside_band: bool | None
    noise: float | None = None

    @classmethod
    def undetermined(cls, predicted_lr: float | None, low: float | None, high: float | None) -> Score:
        """Of a prediction whose sweep tells no best learning rate."""
        return cls(None, None, None, None, True, predicted_lr, low, high, None, None, None)


def score(sweep: Sweep, predicted_lr: float | None, low: float | None, high: float | None) -> Score:
    """Judge a predicted learning rate, and its range from ``low`` to ``high``, by a sweep.

    The module's docstring has the formulas.

    Raises:
        RequestError: the sweep has no learning rate that was run with every seed, or a predicted
            number is not a positive learning rate.
    """
    _check_rates(predicted_lr, low, high)
    groups = complete_runs(sweep.runs)
    if not groups:
        raise RequestError(
            "this sweep has no learning rate that was run with every seed: nothing to score by"
        )
    return _scored(groups, predicted_lr, low, high)


def judged(
    runs: Sequence[RunResult],
    seeds: Collection[int],
    predicted_lr: float | None,
    low: float | None,
    high: float | None,
) -> Score:
    """As ``score``, by runs of which some of ``seeds`` may be missing: then nothing is determined.

    Raises:
        RequestError: a predicted number is not a positive learning rate.
    """
    groups = complete_runs(runs)
    if {run.setting.seed for run in runs} != set(seeds) or not groups:
        return Score.undetermined(predicted_lr, low, high)
    _check_rates(predicted_lr, low, high)
    return _scored(groups, predicted_lr, low, high)


def _check_rates(*values: float | None) -> None:
    for value in values:
        if value is not None and not (math.isfinite(value) and value > 0):
            raise RequestError(f"a predicted learning rate must be a positive number, not {value!r}")


def _scored(
    groups: dict[float, tuple[RunResult, ...]],
    predicted_lr: float | None,
    low: float | None,
    high: float | None,
) -> Score:
    curve = _curve(groups)
    best_loss = float(curve.loss[curve.best])
    if not best_loss < curve.initial:
        return Score.undetermined(predicted_lr, low, high)
    swept = list(groups)
    censored = curve.best in (0, len(swept) - 1)
    band = curve.band()
    best_lr = swept[curve.best] if censored else 10.0 ** _inside_of(band, curve.vertex())
    band_low, band_high = (None if end is None else 10.0**end for end in band)
    regret = None if predicted_lr is None else curve.regret(math.log10(predicted_lr))
    return Score(
        best_lr=best_lr,
        best_loss=best_loss,
        band_low=band_low,
        band_high=band_high,
        censored=censored,
        predicted_lr=predicted_lr,
        predicted_low=low,
        predicted_high=high,
        factor_error=None if predicted_lr is None else max(predicted_lr / best_lr, best_lr / predicted_lr),
        regret=regret,
        inside_band=None
        if predicted_lr is None
        else _inside(predicted_lr, band_low, band_high, swept[0], swept[-1]),
        noise=_noise(groups, curve),
    )


def _noise(groups: dict[float, tuple[RunResult, ...]], curve: _Curve) -> float | None:
    """The standard error of the difference between two learning rates, as a share of L_init − L*."""
    gained = curve.initial - curve.loss[curve.best]
    near = (curve.loss - curve.loss[curve.best] <= _NEAR * gained) & ~curve.diverged
    chosen = [runs for runs, wanted in zip(groups.values(), near, strict=True) if wanted]
    by_seed = [sorted(runs, key=lambda run: run.setting.seed) for runs in chosen]
    losses = np.array([[run.final_loss for run in runs] for runs in by_seed], dtype=float)
    rates, seeds = losses.shape
    if rates < 2 or seeds < 2:
        return None
    apart = losses - losses.mean(axis=0) - losses.mean(axis=1, keepdims=True) + losses.mean()
    variance = float((apart**2).sum()) / ((rates - 1) * (seeds - 1))
    return math.sqrt(2 * variance / seeds) / float(gained)


def chance(runs: Sequence[RunResult]) -> str | None:
    """A note where losses go up on the way to the best learning rate by more than the band allows, else None.

    But for chance, a loss has one valley over the learning rate: the largest rise on the way to the best says
    how much of it is in these losses.
    """
    groups = complete_runs(runs)
    if not groups:
        return None
    curve = _curve(groups)
    gained = curve.initial - float(curve.loss[curve.best])
    # How far above the start a run ended that lost everything says nothing.
    losses = np.minimum(curve.loss, curve.initial)
    sides = losses[: curve.best + 1], losses[curve.best :][::-1]
    rise = max(float(np.max(side - np.minimum.accumulate(side))) for side in sides)
    if not (gained > 0 and rise > BAND_REGRET * gained):
        return None
    seeds = len({run.setting.seed for run in runs})
    return (
        f"on the way to the best learning rate losses rise by {rise / gained:.1%} of the improvement: as far "
        f"as that, which one is best is chance, and more seeds than {seeds} would tell"
    )


@dataclass(frozen=True)
class _Curve:
    """Mean loss over x = log10 η at the grid points (ascending), which diverged, and the best one's index."""

    x: np.ndarray
    loss: np.ndarray
    diverged: np.ndarray
    best: int
    initial: float

    def vertex(self) -> float:
        """x of the vertex of the parabola through the best point and its two neighbours.

        With the best the lowest of the three, it lies at most half-way to either neighbour. What was counted
        for a diverged run bends the parabola, but between it and the best nothing is known to work.
        """
        left, right = self.x[self.best - 1] - self.x[self.best], self.x[self.best + 1] - self.x[self.best]
        down = (self.loss[self.best - 1] - self.loss[self.best]) / left  # secant slopes to both sides
        up = (self.loss[self.best + 1] - self.loss[self.best]) / right
        if up == down:  # all three are equal
            return float(self.x[self.best])
        # Newton's form: L = L_best + down·t + (up − down)/(right − left)·t·(t − left), t = x − x_best.
        offset = (left - down * (right - left) / (up - down)) / 2
        if self.diverged[self.best + (1 if offset > 0 else -1)]:
            offset = 0.0
        return float(self.x[self.best] + offset)

    def band(self) -> tuple[float | None, float | None]:
        """Where the interpolated loss leaves the band on either side of the best; None: nowhere."""
        level = self.loss[self.best] + BAND_REGRET * (self.initial - self.loss[self.best])
        below = self._crossing(level, range(self.best - 1, -1, -1))
        above = self._crossing(level, range(self.best + 1, len(self.x)))
        return below, above

    def regret(self, x: float) -> float | None:
        """(L(x) − L*) / (L_init − L*), None outside the swept range."""
        # A learning rate that was run may miss its own logarithm by rounding.
        near = int(np.argmin(np.abs(self.x - x)))
        if math.isclose(x, self.x[near], rel_tol=1e-12, abs_tol=1e-12):
            loss = float(self.loss[near])
        elif self.x[0] < x < self.x[-1]:
            loss = float(self._interpolated()(x))
        else:
            return None
        return (loss - float(self.loss[self.best])) / (self.initial - float(self.loss[self.best]))

    def _crossing(self, level: float, outward: range) -> float | None:
        """x nearest to the best at which the loss rises above ``level``, walking ``outward``."""
        outer = next((index for index in outward if self.loss[index] > level), None)
        if outer is None:
            return None
        inner = outer + (1 if outer < self.best else -1)
        curve = self._interpolated()
        # At a node that lies on the level, rounding may put the curve on either side of it.
        for node in (inner, outer):
            if (curve(self.x[node]) > level) != (node == outer):
                return float(self.x[node])
        return float(scipy.optimize.brentq(lambda x: float(curve(x)) - level, self.x[inner], self.x[outer]))

    def _interpolated(self) -> scipy.interpolate.PchipInterpolator:
        return scipy.interpolate.PchipInterpolator(self.x, self.loss)


def _curve(groups: dict[float, tuple[RunResult, ...]]) -> _Curve:
    everything = [run for runs in groups.values() for run in runs]
    initial = math.fsum(run.initial_loss for run in everything) / len(everything)
    finals = [run.final_loss for run in everything if run.final_loss is not None]
    worst = max([*finals, *(run.initial_loss for run in everything)])
    losses = []
    diverged = [any(run.diverged for run in runs) for runs in groups.values()]
    for runs, lost in zip(groups.values(), diverged, strict=True):
        mean = math.fsum(worst if run.final_loss is None else run.final_loss for run in runs) / len(runs)
        losses.append(max(mean, initial) if lost else mean)
    x = np.log10(list(groups))
    return _Curve(x, np.array(losses), np.array(diverged), int(np.argmin(losses)), initial)


def _inside_of(band: tuple[float | None, float | None], x: float) -> float:
    """x, or the end of the band that lies nearest to it.

    Losses climb more steeply on one side than a parabola does, so that on a coarse grid its vertex lies
    further from the truth than the band's end (experiments/lr_bench/coarse).
    """
    low, high = band
    return max(-math.inf if low is None else low, min(math.inf if high is None else high, x))


def _inside(
    lr: float, band_low: float | None, band_high: float | None, lowest: float, highest: float
) -> bool | None:
    if (band_low is not None and lr < band_low) or (band_high is not None and lr > band_high):
        return False
    return True if lowest <= lr <= highest else None
