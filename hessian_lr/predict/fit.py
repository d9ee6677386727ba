"""Fit a calibration's constants to sweeps."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from ..errors import RequestError
from ..records import digest
from .calibration import Calibration, PowerLaw

LEAST_SETTINGS = 2
# Two constants and their scatter from fewer points would describe the points, not the law.
LEAST_FOR_EXPONENT = 4


@dataclass(frozen=True)
class Observation:
    """One setting whose best learning rate is known from a sweep.

    Attributes:
        source: Names the setting, for the record.
        method: The method's name.
        best_lr: η*, not censored.
        lr_stability: 38/λ_P; None if it was not measured.
        lambda_ratio: λ at initialization over the largest spectral norm of a weight's gradient, likewise.
        batch_size: Samples in an optimizer step.
        steps: Optimizer steps.
    """

    source: str
    method: str
    best_lr: float
    lr_stability: float | None
    lambda_ratio: float | None
    batch_size: int
    steps: int


def fit(observations: Sequence[Observation], current: Calibration) -> Calibration:
    """New constants from sweeps; what they cannot tell is kept from ``current``.

    ``adam``: the scale, exp(mean of ln(η* / law with scale 1)). ``eigenvalue``: the scale, and from
    four different values of ``lambda_ratio`` on its exponent too, by least squares in logarithms;
    the exponents of batch size and steps stay. ``log_scatter`` is the root mean square by which
    each law misses a setting left out of its fit (of two settings: their standard deviation).

    Args:
        observations: Those without a law's quantity do not count for that law.
        current: The calibration to start from.

    Raises:
        RequestError: fewer than two settings for the law of ``adam``, or a value is not positive.
    """
    for one in observations:
        for value in (one.best_lr, one.lr_stability, one.lambda_ratio):
            if value is not None and not (math.isfinite(value) and value > 0):
                raise RequestError(f"{one.source}: a calibration needs positive numbers, not {value!r}")
    by_adam = [o for o in observations if o.lr_stability is not None]
    by_eigenvalue = [o for o in observations if o.lambda_ratio is not None]
    if len(by_adam) < LEAST_SETTINGS:
        raise RequestError(
            f"a calibration needs at least {LEAST_SETTINGS} settings with a prediction and a best learning "
            f"rate inside its sweep, but found {len(by_adam)}"
        )
    return Calibration(
        schema=current.schema,
        version=f"fit-{digest([vars(o) for o in observations], 8)}",
        adam=_fit_law(by_adam, "lr_stability", current.adam, refit_exponent=False),
        eigenvalue=current.eigenvalue
        if len(by_eigenvalue) < LEAST_SETTINGS
        else _fit_law(by_eigenvalue, "lambda_ratio", current.eigenvalue, refit_exponent=True),
    )


def _fit_law(
    observations: Sequence[Observation], name: str, law: PowerLaw, *, refit_exponent: bool
) -> PowerLaw:
    quantities = [{key: getattr(o, key) for key in law.exponents} for o in observations]
    reference = law.references.get(name, 1.0)
    x = np.log([q[name] / reference for q in quantities])
    refit_exponent = refit_exponent and len(np.unique(x)) >= LEAST_FOR_EXPONENT
    # What is left to explain once all that is kept has had its say.
    kept = replace(law, scale=1.0, exponents=law.exponents | ({name: 0.0} if refit_exponent else {}))
    y = np.log([o.best_lr / kept(**q) for o, q in zip(observations, quantities, strict=True)])
    columns = [np.ones_like(x), x] if refit_exponent else [np.ones_like(x)]
    design = np.stack(columns, axis=1)
    solution = np.linalg.lstsq(design, y, rcond=None)[0]

    where = f"least squares over {len(observations)} settings; {_listed(observations)}"
    sources = law.sources | {"scale": where, "log_scatter": "as scale"}
    exponents = dict(law.exponents)
    if refit_exponent:
        exponents[name] = float(solution[1])
        sources[name] = "as scale"
    return replace(
        law,
        scale=float(np.exp(solution[0])),
        exponents=exponents,
        log_scatter=_scatter(design, y),
        settings=len(observations),
        sources=sources,
    )


def _listed(observations: Sequence[Observation]) -> str:
    methods: dict[str, list[str]] = {}
    for one in observations:
        methods.setdefault(one.source, []).append(one.method)
    return "; ".join(f"{source}: {', '.join(names)}" for source, names in sorted(methods.items()))


def _scatter(design: np.ndarray, y: np.ndarray) -> float:
    residuals = y - design @ np.linalg.lstsq(design, y, rcond=None)[0]
    if len(y) < 3:
        return float(np.std(residuals, ddof=1))
    # Residual i of a fit without i is r_i / (1 − h_i), h the diagonal of the hat matrix (PRESS, Allen 1974).
    leverage = np.einsum("ij,ji->i", design, np.linalg.pinv(design))
    return float(np.sqrt(np.mean((residuals / (1 - leverage)) ** 2)))
