"""The picture of a whole spectrum: how many eigenvalues lie where."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.figure import Figure

from .style import MUTED, NARROW, broken, method_style, short, styled

if TYPE_CHECKING:
    from ..spectrum import SpectralDensity

# One eigenvalue by itself is a peak of height 1/(width·√2π); the axis ends this far below it.
_BELOW_ONE = 20.0


def density_figure(density: SpectralDensity, method: str, *, title: str = "", narrow: bool = False) -> Figure:
    """Draw the expected number of eigenvalues per unit of λ, its axis logarithmic.

    The band is one standard error over the probes to either side; the dotted line, as high as the peak
    of one eigenvalue, tells single eigenvalues from many; the strokes are the probes' Ritz values.

    Args:
        density: The estimate.
        method: Decides the colour.
        title: Above the picture.
        narrow: For a column as wide as a phone.
    """
    colour, _ = method_style(method)
    grid, count = np.array(density.grid), density.size * np.array(density.density)
    error = density.size * np.array(density.density_error)
    single = 1 / (density.width * math.sqrt(2 * math.pi))
    floor, top = single / _BELOW_ONE, 2 * float((count + error).max())
    nodes = [node for probe in density.nodes for node in probe]
    with styled():
        figure = Figure(figsize=(NARROW, 4.2) if narrow else (6.4, 4.2), layout="constrained")
        axes = figure.add_subplot(yscale="log", xlim=(grid[0], grid[-1]), ylim=(floor, top))
        low, middle, high = (np.maximum(line, floor) for line in (count - error, count, count + error))
        axes.fill_between(
            grid, low, high, color=colour, alpha=0.25, linewidth=0, label="one standard error to either side"
        )
        axes.plot(grid, middle, color=colour, label="estimated density")
        axes.axhline(single, color=MUTED, linewidth=1.0, linestyle=":", label="one eigenvalue by itself")
        axes.plot(
            nodes,
            [0.035] * len(nodes),
            "|",
            color=MUTED,
            markersize=7,
            markeredgewidth=0.7,
            transform=axes.get_xaxis_transform(),
            label="Ritz value of a probe",
        )
        axes.yaxis.set_major_formatter(lambda value, _position: short(value))
        axes.set_xlabel(broken("eigenvalue of the Hessian (loss in nats per token)", figure))
        axes.set_ylabel("eigenvalues per unit of λ")
        axes.set_title(broken(title, figure), loc="left")
        figure.legend(loc="outside upper left", ncols=1 if narrow else 2)
        return figure
