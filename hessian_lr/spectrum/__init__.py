"""Eigenvalues and spectra of symmetric operators, with what is known about their error."""

from .block_lanczos import Eigenvalues, block_lanczos
from .certificate import hidden_probability, upper_bound
from .density import SpectralDensity, spectral_density
from .lanczos import Eigenvalue, Status, lanczos
from .power import power_iteration

__all__ = [
    "Eigenvalue",
    "Eigenvalues",
    "SpectralDensity",
    "Status",
    "block_lanczos",
    "hidden_probability",
    "lanczos",
    "power_iteration",
    "spectral_density",
    "upper_bound",
]
