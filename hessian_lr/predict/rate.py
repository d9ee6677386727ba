"""From measured quantities to a learning rate and its range, by the law that has all it needs."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..errors import HessianLRError, RequestError
from ..setting import ADAMW, Setting

if TYPE_CHECKING:
    from .calibration import Calibration

NO_LAW = "the constants of predictions come from runs with AdamW, whose steps hardly follow a gradient's size"
# Each predictor's law, and those that take its place where one of its quantities does not exist.
FALLBACKS = {
    "combined": ("combined", "adam", "eigenvalue"),
    "adam": ("adam",),
    "eigenvalue": ("eigenvalue",),
}


def refuse_unpredicted(setting: Setting) -> None:
    """Refuse to predict for an optimizer that no constants are known of.

    Raises:
        RequestError: the setting has another optimizer than AdamW.
    """
    if setting.optimizer != ADAMW:
        raise RequestError(
            f"{NO_LAW}: they say nothing of {setting.optimizer}. `hessian-lr spectrum` measures λ, and by "
            "theory gradient descent is stable below 2/λ; `hessian-lr validate --optimizer "
            f"{setting.optimizer}` sweeps from there"
        )


@dataclass(frozen=True)
class Quantities:
    """What laws may be made of; None where it was not measured or does not exist.

    Attributes:
        batch_size: Samples in an optimizer step.
        steps: Optimizer steps of the run.
        lr_stability: 38/λ_P after the warm-up.
        lr_critical_start: η_c along the first step, before the warm-up.
        lr_sharpness: √(L / (λ·n)) at initialization (see ``start.lr_sharpness``).
        slack: Factor within which ``lr_stability`` is known; it widens the range.
    """

    batch_size: int
    steps: int
    lr_stability: float | None = None
    lr_critical_start: float | None = None
    lr_sharpness: float | None = None
    slack: float = 1.0


@dataclass(frozen=True)
class Rate:
    """A learning rate η̂, the factor f of its range [η̂/f, η̂·f], and what a reader should know."""

    lr: float
    factor: float
    notes: tuple[str, ...] = ()

    @property
    def ends(self) -> tuple[float, float, float]:
        """η̂ and the lower and upper end of its range."""
        return self.lr, self.lr / self.factor, self.lr * self.factor


def rate(predictor: str, constants: Calibration, quantities: Quantities) -> Rate | None:
    """The predictor's learning rate, or None if no law of its has all it needs."""
    for name in FALLBACKS[predictor]:
        law = getattr(constants, name)
        known = {key: getattr(quantities, key) for key in law.exponents}
        if None in known.values():
            continue
        try:
            lr, factor = law(**known), law.range_factor(**known) * quantities.slack
        except OverflowError:
            lr, factor = math.inf, math.inf
        if not (0 < lr < math.inf and lr / factor > 0 and lr * factor < math.inf):
            raise HessianLRError(
                f"the law {name!r} of calibration {constants.version!r} gives no learning rate here: {lr:g}, "
                f"within a factor of {factor:g}; are its exponents right?"
            )
        notes = []
        if name != predictor:
            notes.append(f"predicted by the law {name!r}: the law {predictor!r} lacks a quantity here")
        if outside := law.outside(**known):
            notes.append(
                "outside the settings the constants were fitted to, so the range is wider: "
                + ", ".join(outside)
            )
        return Rate(lr, factor, tuple(notes))
    return None
