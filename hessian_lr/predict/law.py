"""What a law of learning rates is: of which quantities, with which constants, and what it gives."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from scipy.stats import t as student_t

from ..digits import number
from ..errors import RequestError
from ..records import Record
from ..setting import ADAMW, Setting

COVERAGE = 0.8
# Beyond the settings a law was tried on, its exponents are a guess: their uncertainty, as a standard
# deviation, by which each factor e of distance widens the range.
EXTRAPOLATION = 0.3
# The same where no exponent is at stake, because curvature carries what these change: laws fitted to one part
# of the bench miss the rest by at most 0.11 for each e (experiments/lr_bench/beyond; of the others 0.28).
CARRIED = {"model_size": 0.15, "adapter_scaling": 0.15}
# Of these no value is too large: more rows than were tried say the same, with less noise.
UNLIMITED = ("samples",)
# How the note begins that says so where a value lies outside.
OUTSIDE = "outside the settings the constants were tried on, so the range is wider: "
# The smallest and the largest value of quantities that something was tried on, by name.
Domain = Mapping[str, Sequence[float]]
# A value that lies outside by no more than 1%, such as a model with another token, lies inside.
_HARDLY = 0.01
NO_LAW = "the constants of predictions come from runs with AdamW, whose steps hardly follow a gradient's size"


@dataclass(frozen=True)
class Quantities:
    """What laws may be made of; None where it was not measured or does not exist.

    Attributes:
        batch_size: Samples in an optimizer step.
        steps: Optimizer steps of the run.
        lr_stability: 38/λ_P after the warm-up.
        lr_critical_start: η_c along the first step, before the warm-up.
        lr_eigenvalue: √(L / (λ·√n)) at initialization (see ``start.lr_eigenvalue``).
        lr_sharpness: √(L / (λ·n)) at initialization, for constants of earlier versions.
        lr_probe: The best learning rate of runs a tenth as long (see ``refine``).
        samples: Rows that curvature was measured on.
        model_size: Parameters of the model without the adapter.
        adapter_rank: The largest rank of LoRA's factors (see ``extent``).
        adapter_scaling: The largest s of W + s·B·A.
        slack: Factor within which ``lr_stability`` is known; it widens the range.
    """

    batch_size: int
    steps: int
    lr_stability: float | None = None
    lr_critical_start: float | None = None
    lr_eigenvalue: float | None = None
    lr_sharpness: float | None = None
    lr_probe: float | None = None
    samples: int | None = None
    model_size: int | None = None
    adapter_rank: int | None = None
    adapter_scaling: float | None = None
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


@dataclass(frozen=True)
class PowerLaw(Record):
    """ln η = ln(scale) + Σ exponent·ln(quantity), with the scatter of the runs it was fitted to.

    Attributes:
        scale: The constant factor.
        exponents: Each quantity's exponent, by name.
        references: The value at which each quantity's factor is 1, by name.
        log_scatter: Standard deviation of ln(η* / η̂) over the settings it was fitted to.
        settings: How many those were.
        sources: Where each constant came from, by name.
        spreads: How far a new fit may take each exponent, and ``scale``'s logarithm, from its value
            here: the prior's standard deviation, by name. An exponent without one is fixed; a scale
            without one is free.
        log_half_width: ln f of the range [η̂/f, η̂·f]: the 80% quantile of |ln(η* / η̂)| over settings whose
            method or model had no part in the fit. None: from ``log_scatter`` (see ``range_factor``).
        domain: The smallest and the largest value of each quantity among the settings that the law was fitted
            to or has stood a test on, by name.
        fitted_to: What identifies each setting that has a part in it. Files of earlier versions, and the
            package's, tell none; one fitted from such a file of a user's tells its own and that there are
            others (``fit.UNTOLD``).
    """

    scale: float
    exponents: dict[str, float]
    references: dict[str, float]
    log_scatter: float
    settings: int
    sources: dict[str, str]
    spreads: dict[str, float] = field(default_factory=dict)
    log_half_width: float | None = None
    domain: dict[str, list[float]] = field(default_factory=dict)
    fitted_to: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        check_numbers(*self.exponents.values())
        check_numbers(*self.spreads.values(), self.log_scatter, least=0)
        check_numbers(self.scale, self.settings, *self.references.values(), positive=True)
        if self.log_half_width is not None:
            check_numbers(self.log_half_width, least=0)
        check_domain(self.domain)

    def __call__(self, **quantities: float) -> float:
        """η̂ for the given quantities; each named exponent needs its quantity.

        Raises:
            KeyError: a quantity is missing.
        """
        value = self.scale
        for name, exponent in self.exponents.items():
            value *= (quantities[name] / self.references.get(name, 1.0)) ** exponent
        return value

    def range_factor(self, **quantities: float) -> float:
        """f of the 80% range [η̂/f, η̂·f], the wider the further the quantities lie outside the domain.

        Without held-out errors (``log_half_width``) it is the prediction interval of a normal scatter:
        Student's t with the fit's degrees of freedom, times √(1 + 1/n) for the constant's own uncertainty.
        """
        width = self.log_half_width
        if width is None:
            n = self.settings
            quantile = float(student_t.ppf(0.5 + COVERAGE / 2, max(n - 1, 1)))
            width = quantile * self.log_scatter * math.sqrt(1 + 1 / n)
        beyond = sum(
            CARRIED.get(name, EXTRAPOLATION) * self._distance(name, value)
            for name, value in quantities.items()
        )
        return math.exp(width + beyond)

    def outside(self, **quantities: float) -> list[str]:
        """What lies outside the settings this law was tried on, in words."""
        names = [name for name, value in quantities.items() if self._distance(name, value) > 0]
        return [tried(name, quantities[name], self.domain) for name in names]

    def _distance(self, name: str, value: float) -> float:
        """How far, in ln, a value lies outside the domain; 0 inside, or where none is known."""
        below, above = beyond(name, value, self.domain)
        return below if name in UNLIMITED else below + above


def beyond(name: str, value: float, domain: Domain) -> tuple[float, float]:
    """How far, in ln, a value lies below the domain and above it; 0 inside, or where none is known."""
    low, high = domain.get(name, (value, value))
    below, above = (max(0.0, math.log(ratio)) for ratio in (low / value, value / high))
    return below if below > _HARDLY else 0.0, above if above > _HARDLY else 0.0


def tried(name: str, value: float, domain: Domain) -> str:
    """A value outside the domain, in words."""
    low, high = (number(end, 4) for end in domain[name])
    return f"{name} {number(value, 4)} (tried on {low} … {high})"


def widened(outside: Sequence[str]) -> str:
    """The note on a range that is wider for what ``tried`` tells."""
    return OUTSIDE + ", ".join(outside)


def check_domain(domain: Domain) -> None:
    """Refuse a domain that no setting lies in.

    Raises:
        RequestError: an end is not a positive number, or they are not two in order.
    """
    check_numbers(*(end for pair in domain.values() for end in pair), positive=True)
    if not all(len(pair) == 2 and pair[0] <= pair[1] for pair in domain.values()):
        raise RequestError("each quantity of a law's domain must have a smallest and a largest value")


def check_numbers(*values: float | None, least: float = -math.inf, positive: bool = False) -> None:
    """Refuse constants of a file that are no finite numbers, or lie below ``least``.

    Raises:
        RequestError: names the first.
    """
    for value in values:
        if value is None or not math.isfinite(value) or value < least or (positive and value <= 0):
            wanted = "a positive number" if positive else "a finite number"
            wanted += "" if least == -math.inf else f" of at least {least:g}"
            raise RequestError(f"a constant is {value}; expected {wanted}")


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
