"""Pictures of sweeps, eigenvalues, modules and densities, all in one style."""

from .density import density_figure
from .eigenvalue import EigenvaluePoint, eigenvalue_figure
from .modules import heatmap_figure
from .sweep import SweepPanel, sweep_figure

__all__ = [
    "EigenvaluePoint",
    "SweepPanel",
    "density_figure",
    "eigenvalue_figure",
    "heatmap_figure",
    "sweep_figure",
]
