"""The constants that turn a measured eigenvalue into a learning rate, and where they came from."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, fields
from importlib import resources
from pathlib import Path

from scipy.stats import t as student_t

from ..errors import RequestError, unknown_name
from ..records import Record, read_json
from .transfer import Transfer, check_numbers

COVERAGE = 0.8
# Beyond the settings a law was fitted to, its exponents are a guess: their uncertainty, as a standard
# deviation, by which each factor e of distance widens the range.
EXTRAPOLATION = 0.3


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
        domain: The smallest and the largest value of each quantity among those settings, by name.
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

    def __post_init__(self) -> None:
        ends = [end for pair in self.domain.values() for end in pair]
        check_numbers(*self.exponents.values())
        check_numbers(*self.spreads.values(), self.log_scatter, least=0)
        check_numbers(self.scale, self.settings, *self.references.values(), *ends, positive=True)
        if self.log_half_width is not None:
            check_numbers(self.log_half_width, least=0)
        if not all(len(pair) == 2 and pair[0] <= pair[1] for pair in self.domain.values()):
            raise RequestError("each quantity of a law's domain must have a smallest and a largest value")

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
        beyond = EXTRAPOLATION * sum(self._distance(name, value) for name, value in quantities.items())
        return math.exp(width + beyond)

    def outside(self, **quantities: float) -> list[str]:
        """What lies outside the settings this law was fitted to, in words."""
        return [
            f"{name} {value:.3g} (fitted to {self.domain[name][0]:.3g} … {self.domain[name][1]:.3g})"
            for name, value in quantities.items()
            if self._distance(name, value) > 0
        ]

    def _distance(self, name: str, value: float) -> float:
        """How far, in ln, a value lies outside the domain; 0 inside, or where none is known."""
        if name not in self.domain:
            return 0.0
        low, high = self.domain[name]
        return max(0.0, math.log(low / value), math.log(value / high))


@dataclass(frozen=True)
class Calibration(Record):
    """One law for each predictor, under a version.

    Attributes:
        schema: Format of the file, 1.
        version: Names the file in predictions made with it.
        combined: η̂ from all of the below.
        adam: η̂ from 38/λ_P (quantity ``lr_stability``) and the critical learning rate at the start
            (``lr_critical_start``), ``batch_size`` and ``steps``.
        eigenvalue: η̂ from λ at initialization (``lr_sharpness``), ``batch_size`` and ``steps``.
        transfer: From one setting's measured best learning rate to another's.
    """

    schema: int
    version: str
    combined: PowerLaw
    adam: PowerLaw
    eigenvalue: PowerLaw
    transfer: Transfer


def load_calibration(path: str | Path | None = None) -> Calibration:
    """The calibration in ``path``, or the one that comes with the package.

    Raises:
        RequestError: the file is missing or is not a calibration.
    """
    if path is not None:
        found = Calibration.read(path)
        # After the class, for the quantities' module takes it as its constants.
        from .rate import Quantities

        known = [one.name for one in fields(Quantities)]
        for name in (*found.combined.exponents, *found.adam.exponents, *found.eigenvalue.exponents):
            if name not in known:
                raise unknown_name("quantity", name, known)
        return found
    with resources.as_file(resources.files(__package__) / "calibration.json") as built_in:
        return Calibration.from_dict(read_json(built_in))
