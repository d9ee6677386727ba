"""The sections that are pictures, each in words too."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from matplotlib.figure import Figure

from ..digits import rate
from ..figures import SweepPanel, density_figure, eigenvalue_figure, heatmap_figure, sweep_figure
from ..figures.rows import eigenvalue_points
from ..measure import ModuleSharpness, ModuleSpectrum
from ..rows import SpectrumRow
from ..spectrum import SpectralDensity
from ..validated import Validated
from .documents import Entry
from .numbers import measured, number
from .sections import Sourced, labels
from .svg import inline
from .view import Drawing, Section, Table

_SHARPEST = 5  # modules that a table names


def sweeps(rows: Sequence[Sourced], prefix: str) -> Section | None:
    """Loss against learning rate, one panel a method."""
    swept = [(source, entry) for source, entry in rows if entry.panel is not None]
    panels = [
        replace(e.panel, title=label) for label, (_, e) in zip(labels(swept), swept, strict=True) if e.panel
    ]
    if not panels:
        return None
    predicted = ""
    if any(panel.score.predicted_lr is not None for panel in panels):
        predicted = "The shaded strip is the predicted range, the dashed line the prediction in it. "
    drawing = _drawing(
        lambda narrow: sweep_figure(panels, narrow=narrow),
        f"{prefix}-sweep",
        "Held-out loss against learning rate, one panel a method. " + " ".join(map(_panel_in_words, panels)),
        predicted + "The dotted line is the best learning rate of the sweep. A cross at the top, or "
        "below another, is a run that diverged.",
    )
    return Section("Sweeps", drawings=[drawing])


def _panel_in_words(panel: SweepPanel) -> str:
    score, runs = panel.score, panel.sweep.runs
    if score.best_lr is None:
        return f"{panel.title}: no learning rate lowered the loss."
    said = f"{panel.title}: {len(runs)} runs from {rate(runs[0].lr)} to {rate(runs[-1].lr)}"
    said += f", best {rate(score.best_lr)}"
    if score.predicted_lr is not None:
        said += f", predicted {rate(score.predicted_lr)}"
    diverged = sum(run.diverged for run in runs)
    return said + (f", {diverged} diverged." if diverged else ".")


def eigenvalues(rows: Sequence[Validated], prefix: str) -> Section | None:
    """λ at initialization against the best learning rate."""
    points = eigenvalue_points(rows)
    if not points:
        return None
    words = [
        f"{p.method}: λ {number(p.eigenvalue)}, best learning rate {rate(p.score.best_lr)}." for p in points
    ]
    classical = ""
    if any(not point.score.censored for point in points):
        classical = " The dashed line is classical theory: the best learning rate is proportional to 1/λ."
    drawing = _drawing(
        lambda narrow: eigenvalue_figure(points, narrow=narrow),
        f"{prefix}-eigenvalue",
        "Best learning rate against λ, both logarithmic. " + " ".join(words),
        "A bar across is the certificate of λ, further where the sampling error reaches further, a bar "
        "upright the learning rates that keep 99% of the improvement; an arrow is an end that is not known, "
        f"or lies beyond the picture.{classical}",
    )
    return Section("Eigenvalue against best learning rate", drawings=[drawing])


def heatmaps(rows: Sequence[Sourced], prefix: str) -> Section | None:
    """λ of each adapted module by itself."""
    found = [
        (source, entry)
        for source, entry in rows
        if (modules := _modules(entry)) is not None and any(m.layer is not None for m in _sharp(modules))
    ]
    shown = [(label, m) for label, (_, e) in zip(labels(found), found, strict=True) if (m := _modules(e))]
    if not shown:
        return None
    drawings, tables = [], []
    for index, (label, modules) in enumerate(shown):
        top = _sharp(modules)[:_SHARPEST]
        drawings.append(
            _drawing(
                # The loop goes on before the picture is drawn a second time, so its values are bound here.
                lambda narrow, modules=modules, label=label: heatmap_figure(  # type: ignore[misc]
                    modules, title=f"{label}: λ of each module", narrow=narrow
                ),
                f"{prefix}-modules{index}",
                f"λ of each adapted module of {label} by layer and kind. Largest: "
                + ", ".join(f"{_place(m)} {number(m.lambda_max)}" for m in top)
                + ".",
                "Brighter is sharper, on a logarithmic scale; the frame is the sharpest module. Grey has no "
                "positive eigenvalue, or no such module.",
            )
        )
        tables.append(
            Table(
                f"The sharpest of the {len(modules.modules)} modules of {label}, in nats per token.",
                ["module", "λ", f"at most ({modules.confidence:.0%})", "parameters"],
                [[_place(m), number(m.lambda_max), number(m.lambda_upper), f"{m.parameters:,}"] for m in top],
            )
        )
    return Section("Module by module", drawings=drawings, tables=tables)


def _sharp(spectrum: ModuleSpectrum) -> list[ModuleSharpness]:
    """The modules with a positive λ, the sharpest first."""
    positive = [(m.lambda_max, m) for m in spectrum.modules if m.lambda_max is not None and m.lambda_max > 0]
    return [module for _, module in sorted(positive, key=lambda pair: -pair[0])]


def _place(module: ModuleSharpness) -> str:
    return module.kind if module.layer is None else f"layer {module.layer} {module.kind}"


def densities(rows: Sequence[Sourced], prefix: str) -> Section | None:
    """The whole spectrum."""
    found = [(source, entry) for source, entry in rows if _density(entry) is not None]
    shown = [(n, e, d) for n, (_, e) in zip(labels(found), found, strict=True) if (d := _density(e))]
    if not shown:
        return None
    drawings = []
    for index, (label, entry, density) in enumerate(shown):
        low, high = _ends(density)
        trace = measured(density.trace, density.trace_error)
        drawings.append(
            _drawing(
                lambda narrow, density=density, label=label, method=entry.method: density_figure(  # type: ignore[misc]
                    density, method, title=f"{label}: spectral density", narrow=narrow
                ),
                f"{prefix}-density{index}",
                f"Spectral density of {label}: {density.size:,} eigenvalues, seen from {number(low)} to "
                f"{number(high)}.",
                f"{density.size:,} eigenvalues with a trace of {trace}. Ritz values tell how far it "
                f"has looked. Two eigenvalues nearer than {number(density.width)} cannot be told apart.",
            )
        )
    return Section("Spectral density", drawings=drawings)


def _modules(entry: Entry) -> ModuleSpectrum | None:
    return entry.row.modules if isinstance(entry.row, SpectrumRow) else None


def _density(entry: Entry) -> SpectralDensity | None:
    return entry.row.density if isinstance(entry.row, SpectrumRow) else None


def _ends(density: SpectralDensity) -> tuple[float, float]:
    nodes = [node for probe in density.nodes for node in probe]
    return min(nodes), max(nodes)


def _drawing(draw: Callable[[bool], Figure], prefix: str, label: str, caption: str) -> Drawing:
    return Drawing(
        inline(draw(False), f"{prefix}-wide", label), inline(draw(True), f"{prefix}-narrow", label), caption
    )
