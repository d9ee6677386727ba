"""A prediction joined with short runs: where they were best, and what curvature says of the longer one.

Runs a tenth as long see what curvature before training cannot: how the loss falls once the weights have
moved. Curvature tells where to start them, so that few are needed, and λ_P corrects what they say of the
full length.
"""

from __future__ import annotations

import math
from dataclasses import replace
from numbers import Real

from ..errors import HessianLRError, RequestError
from ..measure import AdamSharpness
from ..setting import Setting, check_counts
from .calibration import Calibration, load_calibration
from .law import PowerLaw, Quantities
from .prediction import Prediction
from .rate import PROBE, of_no_law, rate

# A run's steps over those of its short runs, and the fewest steps it may have: the constants were fitted to
# runs of 60 to 300, and a tenth of fewer is hardly any.
SHORTER, LEAST_STEPS = 10, 60


def shorter(setting: Setting) -> Setting:
    """The setting of the short runs.

    Raises:
        RequestError: the run itself is too short for that.
    """
    if setting.steps < LEAST_STEPS:
        raise RequestError(
            f"the predictor {PROBE!r} trains runs a tenth as long, and {setting.steps} steps are too few for "
            f"that: give at least {LEAST_STEPS}, or use 'combined'"
        )
    return replace(setting, steps=setting.steps // SHORTER)


def start(prediction: Prediction, constants: Calibration, *, steps: int, batch_size: int) -> float:
    """The learning rate at which short runs should be best if the predictor ``"adam"`` is right.

    Whatever ``prediction`` was made by, so that it does not depend on what else was measured.

    Raises:
        RequestError: the prediction has no learning rate or no λ_P, or the constants have no law for this.
        HessianLRError: their laws give no learning rate here.
    """
    law, adam = _needs(prediction, constants)
    known = Quantities(
        batch_size=batch_size,
        steps=steps,
        lr_stability=adam.lr_stability,
        lr_critical_start=adam.lr_critical_start,
    )
    found = rate("adam", constants, known)
    if found is None:
        raise RequestError(f"the law 'adam' of the constants {constants.version!r} asks for more than λ_P")
    try:
        lr = expected(law, found.lr, adam.lr_stability)
    except (OverflowError, ZeroDivisionError):
        lr = math.inf
    if not 0 < lr < math.inf:
        raise HessianLRError(
            f"the law {PROBE!r} of calibration {constants.version!r} tells no learning rate for short runs "
            "here; are its exponents right?"
        )
    return lr


def probe_law(constants: Calibration) -> PowerLaw:
    """The constants' law for short runs.

    Raises:
        RequestError: they have none.
    """
    if constants.probe is None:
        raise RequestError(
            f"the constants {constants.version!r} have no law for short runs, being of an earlier version; "
            "fit them again with `hessian-lr calibrate`"
        )
    return constants.probe


def expected(law: PowerLaw, lr: float, lr_stability: float) -> float:
    """The short runs' best learning rate of which the law for short runs would make ``lr``."""
    rest = law(lr_probe=1.0, lr_stability=lr_stability)
    return float((lr / rest) ** (1 / law.exponents["lr_probe"]))


def refine_learning_rate(
    prediction: Prediction,
    lr_probe: float,
    *,
    steps: int,
    batch_size: int,
    calibration: Calibration | None = None,
) -> Prediction:
    """Join a prediction with the best learning rate of runs that are a tenth as long and otherwise the same.

    Args:
        prediction: By the predictor ``"adam"`` or ``"combined"``.
        lr_probe: That learning rate, which should lie inside what was tried.
        steps: Optimizer steps of the run that is to be predicted, ten times as many.
        batch_size: Samples in an optimizer step.
        calibration: Constants; None: those that come with the package.

    Returns:
        The prediction by the law ``"probe"``; its costs are those of ``prediction``, and so are
        its notes but for those on the law before.

    Raises:
        RequestError: ``lr_probe`` is not a positive number, ``steps`` no whole number from 2 on,
            ``batch_size`` none from 1 on, the prediction has no learning rate or no λ_P, or the constants
            have no law for this.
        HessianLRError: that law gives no learning rate here.
    """
    check_counts(steps=steps, batch_size=batch_size)
    if not (isinstance(lr_probe, Real) and math.isfinite(lr_probe) and lr_probe > 0):
        raise RequestError(f"the short runs' best learning rate must be a positive number, not {lr_probe!r}")
    constants = calibration or load_calibration()
    _, adam = _needs(prediction, constants)
    known = Quantities(
        batch_size=batch_size,
        steps=steps,
        lr_stability=adam.lr_stability,
        lr_probe=lr_probe,
        slack=adam.stability_slack,
    )
    found = rate(PROBE, constants, known)
    assert found is not None, "the law and its two quantities are there"
    lr, low, high = found.ends
    return replace(
        prediction,
        predictor=PROBE,
        lr=lr,
        lr_low=low,
        lr_high=high,
        calibration=constants.version,
        notes=(*of_no_law(prediction.notes), *found.notes),
    )


def _needs(prediction: Prediction, constants: Calibration) -> tuple[PowerLaw, AdamSharpness]:
    """The law, and what was measured after the warm-up."""
    law = probe_law(constants)
    if prediction.lr is None:
        raise RequestError("a prediction that failed cannot be refined")
    if prediction.adam is None:
        raise RequestError(
            f"short runs are joined with the sharpness in Adam's geometry, which the predictor "
            f"{prediction.predictor!r} does not measure: use 'combined' or 'adam'"
        )
    return law, prediction.adam
