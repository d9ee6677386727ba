"""The picture of how methods change the curvature of each kind of module, against plain LoRA."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from hessian_lr.errors import RequestError
from hessian_lr.figures.style import INK, MUTED, STYLE, log_ticks, method_style, short, styled
from hessian_lr.measure import ModuleSharpness, ModuleSpectrum


def ratio_figure(
    spectra: Mapping[str, ModuleSpectrum],
    lora: ModuleSpectrum,
    *,
    published: Mapping[str, Mapping[str, float]] | None = None,
    source: str = "published",
) -> Figure:
    """Draw λᵢ(method) / λᵢ(plain LoRA) by kind of module, one panel a method.

    A point is one module; the bar is the middle half of its kind, the line across it their median.

    Args:
        spectra: By method; modules are matched with those of ``lora`` by name, and pairs without
            two positive λᵢ are left out.
        lora: Of plain LoRA, on the same model and sample.
        published: Median ratios of others, by method and kind, for comparison.
        source: Of ``published``, as the legend shows it.

    Raises:
        RequestError: a method shares no such module with ``lora``, or there is no method.
    """
    if not spectra:
        raise RequestError("nothing to draw: at least one method besides plain LoRA is needed")
    shown = {method: _ratios(method, spectrum, lora) for method, spectrum in spectra.items()}
    theirs = {method: dict((published or {}).get(method, {})) for method in spectra}
    kinds = list(dict.fromkeys(kind for ratios in shown.values() for kind in ratios))
    columns = min(len(shown), 2)
    rows = math.ceil(len(shown) / columns)
    with styled():
        width = max(columns * (1.1 + 0.5 * max(len(kinds), 3)), 4.6)
        figure = Figure(figsize=(width, 2.2 * rows + (1.3 if columns > 1 else 1.7)), layout="constrained")
        grid = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
        values = [r for ratios in shown.values() for group in ratios.values() for r in group]
        values += [r for group in theirs.values() for kind, r in group.items() if kind in kinds] + [1.0]
        grid[0, 0].set(
            yscale="log", ylim=(min(values) / 1.5, max(values) * 1.5), xlim=(-0.6, len(kinds) - 0.3)
        )
        log_ticks(grid[0, 0].yaxis)
        grid[0, 0].set_xticks(range(len(kinds)), kinds)
        for axes, (method, ratios) in zip(grid.flat, shown.items(), strict=False):
            _draw_ratios(axes, method, ratios, kinds, theirs[method])
        for axes in grid.flat[len(shown) :]:
            axes.set_axis_off()
        for axes in grid.flat[: len(shown)][-columns:]:
            axes.tick_params(axis="x", labelbottom=True, labelrotation=60)
            for label in axes.get_xticklabels():
                label.set(ha="right", rotation_mode="anchor")
        figure.supylabel("λ of the module /\nits λ with plain LoRA", fontsize=STYLE["axes.labelsize"])
        figure.legend(
            handles=_ratio_legend(source if any(theirs.values()) else None),
            loc="outside upper left",
            ncols=columns,
        )
        return figure


def _ratios(method: str, spectrum: ModuleSpectrum, lora: ModuleSpectrum) -> dict[str, list[float]]:
    def positive(modules: Sequence[ModuleSharpness]) -> dict[str, tuple[str, float]]:
        return {
            m.name: (m.kind, m.lambda_max) for m in modules if m.lambda_max is not None and m.lambda_max > 0
        }

    base = positive(lora.modules)
    ratios: dict[str, list[float]] = {}
    for name, (kind, value) in positive(spectrum.modules).items():
        if name in base:
            ratios.setdefault(kind, []).append(value / base[name][1])
    if not ratios:
        raise RequestError(
            f"nothing to draw: {method!r} and plain LoRA have no module with a positive eigenvalue in both; "
            "measure them on the same model and target modules"
        )
    return ratios


def _draw_ratios(
    axes: Axes,
    method: str,
    ratios: Mapping[str, Sequence[float]],
    kinds: Sequence[str],
    theirs: Mapping[str, float],
) -> None:
    colour, _ = method_style(method)
    axes.axhline(1.0, color=MUTED, linewidth=1.0, linestyle="--", zorder=1)
    for at, kind in enumerate(kinds):
        group = np.array(ratios.get(kind, ()))
        if len(group):
            # Side by side in the model's order, so that points do not hide each other.
            spread = at + np.linspace(-0.28, 0.28, len(group)) if len(group) > 1 else np.array([at])
            axes.plot(spread, group, "o", color=colour, alpha=0.45, markersize=3, markeredgewidth=0, zorder=2)
            # Quantiles of the logarithm: what the axis shows.
            low, middle, high = 10 ** np.quantile(np.log10(group), [0.25, 0.5, 0.75])
            axes.plot([at, at], [low, high], color=INK, linewidth=2.6, solid_capstyle="butt", zorder=3)
            axes.plot([at - 0.25, at + 0.25], [middle, middle], color=INK, linewidth=1.6, zorder=3)
        if kind in theirs:
            beside = at + 0.4  # else it would hide the median
            axes.plot(beside, theirs[kind], "D", color=INK, markerfacecolor="white", markersize=4.5, zorder=4)
    everything = [value for group in ratios.values() for value in group]
    axes.set_title(f"{method}  (median {short(_rounded(float(np.median(everything))))}×)", loc="left")
    axes.grid(visible=False, axis="x")


def _rounded(value: float) -> float:
    return float(f"{value:.3g}")


def _ratio_legend(source: str | None) -> list[Line2D]:
    handles = [
        Line2D([], [], marker="o", markersize=3, linestyle="", color=MUTED, label="one module"),
        Line2D([], [], color=INK, linewidth=2.6, label="median and middle half of its kind"),
        Line2D([], [], color=MUTED, linewidth=1.0, linestyle="--", label="as sharp as plain LoRA"),
    ]
    if source:
        handles.append(
            Line2D([], [], marker="D", linestyle="", color=INK, markerfacecolor="white", label=source)
        )
    return handles
