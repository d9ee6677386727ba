"""The constants that turn a measured eigenvalue into a learning rate, and where they came from."""

from __future__ import annotations

import math
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from scipy.stats import t as student_t

from ..records import Record, read_json

COVERAGE = 0.8


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
    """

    scale: float
    exponents: dict[str, float]
    references: dict[str, float]
    log_scatter: float
    settings: int
    sources: dict[str, str]

    def __call__(self, **quantities: float) -> float:
        """η̂ for the given quantities; each named exponent needs its quantity.

        Raises:
            KeyError: a quantity is missing.
        """
        value = self.scale
        for name, exponent in self.exponents.items():
            value *= (quantities[name] / self.references.get(name, 1.0)) ** exponent
        return value

    @property
    def range_factor(self) -> float:
        """f such that [η̂/f, η̂·f] is the 80% prediction interval of the fit.

        Student's t with the fit's degrees of freedom, widened by √(1 + 1/n) for the uncertainty
        of the constant itself.
        """
        n = self.settings
        quantile = float(student_t.ppf(0.5 + COVERAGE / 2, max(n - 1, 1)))
        return math.exp(quantile * self.log_scatter * math.sqrt(1 + 1 / n))


@dataclass(frozen=True)
class Calibration(Record):
    """One law for each predictor, under a version.

    Attributes:
        schema: Format of the file, 1.
        version: Names the file in predictions made with it.
        adam: η̂ from 38/λ_P (quantity ``lr_stability``).
        eigenvalue: η̂ from λ at initialization over the spectral norm of the largest weight
            gradient (``lambda_ratio``), ``batch_size`` and ``steps``.
    """

    schema: int
    version: str
    adam: PowerLaw
    eigenvalue: PowerLaw


def load_calibration(path: str | Path | None = None) -> Calibration:
    """The calibration in ``path``, or the one that comes with the package.

    Raises:
        RequestError: the file is missing or is not a calibration.
    """
    if path is not None:
        return Calibration.read(path)
    with resources.as_file(resources.files(__package__) / "calibration.json") as built_in:
        return Calibration.from_dict(read_json(built_in))
