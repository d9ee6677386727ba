"""Pictures of sweeps, eigenvalues, modules and densities, all in one style."""

from .density import density_figure
from .modules import heatmap_figure, ratio_figure
from .sweep import EigenvaluePoint, SweepPanel, eigenvalue_figure, sweep_figure

__all__ = [
    "EigenvaluePoint",
    "SweepPanel",
    "density_figure",
    "eigenvalue_figure",
    "heatmap_figure",
    "ratio_figure",
    "sweep_figure",
]
