"""The picture of curvature module by module: where it sits."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.patheffects import withStroke

from ..errors import RequestError
from .style import INK, MUTED, NARROW, PAPER, STYLE, broken, log_ticks, styled

if TYPE_CHECKING:
    from ..measure import ModuleSpectrum

# Even in brightness and legible to the colour-blind; grey is none of its colours.
_COLOURS, MISSING = "viridis", "#D9D9D9"
_LONGEST = 24  # letters of a module's kind; of a longer one the end is shown, which tells it from others


def heatmap_figure(
    spectrum: ModuleSpectrum,
    *,
    title: str = "Largest Hessian eigenvalue of each module",
    narrow: bool = False,
) -> Figure:
    """Draw λᵢ over layers (rows) and kinds of module (columns), its colour logarithmic.

    Grey is a module without a positive λᵢ, or a place where the model has none. The largest λᵢ is
    framed and written out; a dot marks modules that stopped at their limit before they converged.

    Args:
        spectrum: The modules; those outside numbered layers are left out.
        title: Above the picture.
        narrow: For a column as wide as a phone.

    Raises:
        RequestError: no module in a numbered layer has a positive λᵢ.
    """
    placed = {(m.layer, m.kind): m for m in spectrum.modules if m.layer is not None}
    positive = [m.lambda_max for m in placed.values() if m.lambda_max is not None and m.lambda_max > 0]
    if not positive:
        raise RequestError("nothing to draw: no module in a numbered layer has a positive eigenvalue")
    layers = sorted({layer for layer, _ in placed})
    kinds = list(dict.fromkeys(kind for _, kind in placed))
    grid = np.full((len(layers), len(kinds)), np.nan)
    for (layer, kind), module in placed.items():
        if module.lambda_max is not None and module.lambda_max > 0:
            grid[layers.index(layer), kinds.index(kind)] = module.lambda_max
    with styled():
        width = NARROW if narrow else 2.3 + 0.62 * max(len(kinds), 3)
        figure = Figure(figsize=(width, 2.0 + 0.17 * max(len(layers), 8)), layout="constrained")
        axes = figure.add_subplot()
        axes.grid(visible=False)
        axes.set_facecolor(MISSING)
        low, high = min(positive), max(positive)
        # At least a factor of four, within which there is always a tick.
        margin = max(1.0, 2 / math.sqrt(high / low))
        norm = LogNorm(low / margin, high * margin)
        image = axes.pcolormesh(grid, norm=norm, cmap=_COLOURS, edgecolors="white", linewidth=0.5)
        axes.invert_yaxis()
        place = {"rotation": 90} if narrow else {"rotation": 45, "ha": "right", "rotation_mode": "anchor"}
        names = [kind if len(kind) <= _LONGEST else f"…{kind[1 - _LONGEST :]}" for kind in kinds]
        axes.set_xticks(np.arange(len(kinds)) + 0.5, names, **place)
        step = max(1, math.ceil(len(layers) / 16))
        axes.set_yticks(np.arange(0, len(layers), step) + 0.5, [str(layer) for layer in layers[::step]])
        axes.tick_params(length=0)
        axes.set_ylabel("layer")
        for (layer, kind), module in placed.items():
            if module.status == "budget":
                centre = kinds.index(kind) + 0.5, layers.index(layer) + 0.5
                axes.plot(*centre, "o", color="white", markeredgecolor=INK, markeredgewidth=0.5, markersize=3)
        row, column = np.unravel_index(np.nanargmax(grid), grid.shape)
        frame = Rectangle((float(column), float(row)), 1, 1, fill=False, edgecolor=INK, linewidth=1.6)
        frame.set_path_effects([withStroke(linewidth=3.2, foreground=PAPER)])  # seen on any colour
        axes.add_patch(frame)
        axes.set_title(broken(title, figure), loc="left")
        bar = figure.colorbar(image, ax=axes, pad=0.03, aspect=30)
        bar.outline.set_visible(False)
        # Else it is a bitmap in the SVG, which a page that loads nothing does not show.
        assert bar.solids is not None
        bar.solids.set(rasterized=False, edgecolor="face")
        bar.set_label("λ (loss in nats per token)")
        log_ticks(bar.ax.yaxis)
        top = f"framed: largest, λ = {high:.3g} (layer {layers[row]}, {kinds[column]})"
        if any(m.status == "budget" for m in placed.values()):
            top += "\ndot: stopped at its limit of products"
        figure.supxlabel(top, x=0.02, ha="left", fontsize=STYLE["legend.fontsize"], color=MUTED)
        return figure
