"""Heatmaps of what was measured module by module, and the ratios to plain LoRA."""

from __future__ import annotations

from pathlib import Path

from experiments.per_module.ratios import ratio_figure
from hessian_lr.figures import heatmap_figure
from hessian_lr.figures.style import save
from hessian_lr.measure import ModuleSpectrum
from hessian_lr.records import read_json

HERE = Path(__file__).parent
FIGURES = HERE.parents[1] / "figures"


def draw(results: Path = HERE / "results") -> list[Path]:
    """Draw every method in ``results``; the files written."""
    files = sorted((results / "modules").glob("*.json"))
    spectra = {file.stem: ModuleSpectrum.read(file) for file in files}
    written = []
    for method, spectrum in spectra.items():
        title = f"{method}: largest Hessian eigenvalue of each module"
        written += save(heatmap_figure(spectrum, title=title), FIGURES / f"per-module-{method}.svg")
    published = read_json(HERE / "published.json")
    ratios = ratio_figure(
        {method: spectrum for method, spectrum in spectra.items() if method != "lora"},
        spectra["lora"],
        published=published["median_ratio_to_lora"],
        source=published["short"],
    )
    return [*written, *save(ratios, FIGURES / "per-module-ratios.svg")]
