"""Extreme eigenvalues of a symmetric operator, with what is known about their error."""

from .certificate import upper_bound
from .lanczos import Eigenvalue, Status, lanczos
from .power import power_iteration

__all__ = ["Eigenvalue", "Status", "lanczos", "power_iteration", "upper_bound"]
