"""Fit a calibration's constants to sweeps."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import least_squares

from ..errors import RequestError
from ..records import digest
from .calibration import Calibration
from .law import COVERAGE, PowerLaw, Quantities
from .rate import PROBE

# In ln η: beyond this a setting's residual counts linearly (Huber 1964), and against this the priors weigh.
SCATTER = 0.5
# From so many settings on, of so many methods, the range comes from their own errors with their method left
# out, even where these are smaller than the current law's. Errors of one method are alike: with offsets
# between methods of twice the settings' own scatter, ten settings of two methods held 72% of a third's, 20 of
# five 80%.
LEAST_FOR_RANGE, LEAST_METHODS = 10, 5
# A value counts as tried where so many settings reach it: the largest error of n holds n of n + 1 new ones.
LEAST_FOR_DOMAIN = 4


@dataclass(frozen=True)
class Observation:
    """One setting whose best learning rate is known from a sweep.

    Attributes:
        identity: What tells it from other settings, wherever its sweep lies.
        source: Names the setting, for the record.
        method: The method's name.
        best_lr: η*, not censored.
        quantities: What was measured before the sweep.
    """

    identity: str
    source: str
    method: str
    best_lr: float
    quantities: Quantities


LAWS = ("combined", "adam", "eigenvalue", PROBE)
# Among the settings that a law comes from: that there are more.
UNTOLD = "others, which the constants that it started from did not tell"
# How ``fit_law`` begins to say where a constant is from.
_FITTED = re.compile(r"robust fit to \d+ settings; ")


def fit(observations: Sequence[Observation], current: Calibration) -> Calibration:
    """New constants from sweeps; what they cannot tell is kept from ``current``.

    Each law is fitted by ``robust_fit`` with the current one as its prior: a run or two move the scale
    part of the way, many decide it, and an exponent moves only if the law says how far it may. What at least
    four settings reach is then among what the law was tried on (its ``domain``); fewer leave the range there
    as wide as it was. ``log_scatter`` is the root mean square by which each law misses a setting left out of
    its fit (of fewer than three settings the current one's).

    From ten settings of five methods on, the range is as wide as their errors with each method left out ask
    for, and holds about four of five settings of a new method. Of fewer it is the current one's, or that of
    these errors (of one method: with each setting left out) where that is wider: it then holds four of five
    new settings of the same methods, of n < 4 settings n of n + 1.

    Args:
        observations: Those without a law's quantity do not count for that law.
        current: The calibration to start from.

    Raises:
        RequestError: no setting has all quantities of any law, ``current`` comes from one of them already, or
            a value is not positive.
    """
    for one in observations:
        for value in (one.best_lr, *vars(one.quantities).values()):
            if value is not None and not (math.isfinite(value) and value > 0):
                raise RequestError(f"{one.source}: a calibration needs positive numbers, not {value!r}")
    if again := [o for o in observations if any(_knows(getattr(current, name), o) for name in LAWS)]:
        raise RequestError(
            f"the constants {current.version!r} come from {len(again)} of these {len(observations)} settings "
            f"already, the first {again[0].method} of {again[0].source}, and would count them twice: name "
            "only new ones, or fit all at once to the constants before (the package's without --calibration)"
        )
    laws: dict[str, Any] = {}
    fitted = False
    for name in LAWS:
        law = getattr(current, name)
        known = [o for o in observations if law and not _lacks(o, law)]
        laws[name] = fit_law(known, law) if known else law
        fitted |= bool(known)
    if not fitted:
        raise RequestError(
            "a calibration needs at least one setting with a prediction and a best learning rate inside its "
            "sweep, but found none"
        )
    version = f"fit-{digest([current, [dataclasses.asdict(o) for o in observations]], 8)}"
    return replace(current, version=version, **laws)


def unheard(observations: Sequence[Observation], current: Calibration) -> list[str]:
    """What a user should know of settings that do not count for a law, for lack of one of its quantities.

    And of those that may count twice, where ``current`` tells some of the settings it comes from, not all.
    """
    notes = []
    if any(law and UNTOLD in law.fitted_to for law in (getattr(current, name) for name in LAWS)):
        notes.append(
            f"the constants {current.version!r} started from a file that does not tell which settings it "
            "comes from, as those of earlier versions do not: those of these settings that are among them "
            "count twice"
        )
    for name in LAWS:
        law = getattr(current, name)
        lacks = [found for o in observations if law and (found := _lacks(o, law))]
        # Short runs are made only where they were asked for; their lack is no loss.
        if lacks and name != PROBE:
            kept = "; it stays as it was" if len(lacks) == len(observations) else ""
            notes.append(
                f"{len(lacks)} of {len(observations)} settings do not count for the law {name!r}, for they "
                f"lack {', '.join(sorted(set().union(*lacks)))}{kept}. Methods with an optimizer of "
                "their own have no rate from λ; of the others a measurement failed (the row's notes say "
                "why), or an earlier version made it: then run `hessian-lr validate` on their folder again, "
                "which measures anew and keeps the runs"
            )
    return notes


def _lacks(one: Observation, law: PowerLaw) -> list[str]:
    return [name for name in law.exponents if getattr(one.quantities, name) is None]


def _knows(law: PowerLaw | None, one: Observation) -> bool:
    """Whether a setting has a part in what a law's new fit is held to."""
    return law is not None and any(law.spreads.values()) and one.identity in law.fitted_to


def fit_law(observations: Sequence[Observation], law: PowerLaw) -> PowerLaw:
    """The law with its scale, and the exponents that have a spread, fitted to the observations."""
    spreads = {"scale": math.inf} | dict.fromkeys(law.exponents, 0.0) | law.spreads
    loose = [name for name in ("scale", *law.exponents) if spreads[name] > 0]
    quantities = [{name: getattr(o.quantities, name) for name in law.exponents} for o in observations]
    kept = replace(
        law,
        scale=1.0 if "scale" in loose else law.scale,
        exponents={name: 0.0 if name in loose else power for name, power in law.exponents.items()},
    )
    y = np.log([o.best_lr / kept(**q) for o, q in zip(observations, quantities, strict=True)])
    rows = [
        [1.0 if name == "scale" else math.log(q[name] / law.references.get(name, 1.0)) for name in loose]
        for q in quantities
    ]
    design = np.array(rows).reshape(len(y), len(loose))
    before = {"scale": math.log(law.scale)} | law.exponents
    means, free = np.array([before[name] for name in loose]), np.array([spreads[name] for name in loose])
    after = before | dict(zip(loose, robust_fit(design, y, means, free).tolist(), strict=True))

    where = f"robust fit to {len(observations)} settings; {_listed(observations)}"
    changed: dict[str, Any] = {}
    told = {name: where for name in loose}
    for name in law.spreads.keys() & loose:  # and from what it is held to
        told[name] += f"; from: {law.sources.get(name, 'as before')}"
    if len(y) >= 3:
        errors = _left_out(design, y, means, free, np.arange(len(y)))
        changed["log_scatter"] = float(np.sqrt(np.mean(errors**2)))
        told["log_scatter"] = f"root mean square error of each setting left out; {where}"
    methods = np.array([one.method for one in observations])
    kinds = len(set(methods))
    missed = conformal(np.abs(_left_out(design, y, means, free, methods if kinds > 1 else np.arange(len(y)))))
    errors_of = f"the errors with each {'method' if kinds > 1 else 'setting'} left out"
    width = law.log_half_width
    enough = len(y) >= LEAST_FOR_RANGE and kinds >= LEAST_METHODS
    if enough or (width is not None and missed > width):
        changed["log_half_width"] = missed
        told["log_half_width"] = f"80% quantile of {errors_of}; {where}"
    elif width is not None:
        source = law.sources.get("log_half_width", "as before")
        told["log_half_width"] = f"{source}; no narrower than {errors_of} ask for; {where}"
    if (domain := _widened(law.domain, observations)) != law.domain:
        changed["domain"] = domain
        told["domain"] = f"{law.sources.get('domain', 'as before')}; and {where}"
    before_it = _comes_from(law) if any(law.spreads.values()) else ()
    return replace(
        law,
        scale=math.exp(after.pop("scale")),
        exponents=after,
        settings=len(observations),
        sources=law.sources | told,
        fitted_to=tuple(sorted({*before_it, *(one.identity for one in observations)})),
        **changed,
    )


def _comes_from(law: PowerLaw) -> tuple[str, ...]:
    """The settings that a law comes from: ``UNTOLD`` where it was fitted to some and does not tell.

    The package's own constants tell none either, but those settings are no user's.
    """
    fitted = any(_FITTED.match(law.sources.get(name, "")) for name in law.spreads)
    return law.fitted_to or ((UNTOLD,) if fitted else ())


def robust_fit(
    design: NDArray[np.float64],
    y: NDArray[np.float64],
    means: NDArray[np.float64],
    spreads: NDArray[np.float64],
) -> NDArray[np.float64]:
    """Coefficients by Huber's loss, on settings and priors alike, shape (k,).

    Minimises Σ huber((y − design·w) / SCATTER) + Σ huber((w − means) / spreads): a prior is Gaussian within
    its spread, and gives way beyond where many settings contradict it.

    Args:
        design: Shape (settings, k).
        y: Shape (settings,).
        means, spreads: The priors' means and standard deviations, shape (k,); an infinite one leaves its
            coefficient free.
    """
    if not len(means):
        return means  # nothing is free

    def residuals(weights: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.concatenate([(y - design @ weights) / SCATTER, (weights - means) / spreads])

    return np.asarray(least_squares(residuals, means, loss="huber", f_scale=1.0).x)


def conformal(errors: NDArray[np.float64]) -> float:
    """The quantile of held-out errors that a new one stays below with a chance of 80%.

    The ⌈0.8·(n + 1)⌉-th smallest of n, the largest where n is too small for that (Vovk et al. 2005).
    """
    rank = math.ceil(COVERAGE * (len(errors) + 1))
    return float(np.sort(errors)[min(rank, len(errors)) - 1])


def _left_out(
    design: NDArray[np.float64],
    y: NDArray[np.float64],
    means: NDArray[np.float64],
    spreads: NDArray[np.float64],
    groups: NDArray[Any],
) -> NDArray[np.float64]:
    """How far each setting lies from a fit to those of the other groups, shape (settings,)."""
    errors = np.empty(len(y))
    for group in set(groups.tolist()):
        own = groups == group
        weights = robust_fit(design[~own], y[~own], means, spreads)
        errors[own] = y[own] - design[own] @ weights
    return errors


def _widened(domain: dict[str, list[float]], observations: Sequence[Observation]) -> dict[str, list[float]]:
    """The domain with what enough settings reach. A quantity without one keeps none: it would be narrowed."""
    found = {}
    for name, (low, high) in domain.items():
        values = [getattr(one.quantities, name) for one in observations]
        known = sorted(float(value) for value in values if value is not None)
        if len(known) >= LEAST_FOR_DOMAIN:
            low, high = min(low, known[LEAST_FOR_DOMAIN - 1]), max(high, known[-LEAST_FOR_DOMAIN])
        found[name] = [low, high]
    return found


def _listed(observations: Sequence[Observation]) -> str:
    methods: dict[str, list[str]] = {}
    for one in observations:
        methods.setdefault(one.source, []).append(one.method)
    return "; ".join(f"{source}: {', '.join(names)}" for source, names in sorted(methods.items()))
