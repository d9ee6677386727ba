"""Draw every study's figures from its committed results: `make figures`.

A sweep is a folder here with a `results/validate.json`; benchmarks draw themselves.
"""

from __future__ import annotations

from pathlib import Path

from experiments.classical.drawn import settings as drawn_settings
from experiments.classical.figure import classical_figure, drawn_figure
from experiments.classical.findings import rows as classical_rows
from experiments.cost_curve.figure import cost_figure
from experiments.lr_bench import evaluate, table
from experiments.lr_bench.figure import bench_figure
from experiments.paper.figure import paper_figure
from experiments.paper.findings import groups
from experiments.peers.figure import peers_figure
from experiments.peers.summary import read_rows
from experiments.per_module.figure import draw as draw_modules
from hessian_lr.figures import eigenvalue_figure, sweep_figure
from hessian_lr.figures.rows import eigenvalue_points, sweep_panel
from hessian_lr.figures.style import save
from hessian_lr.files import VALIDATE_FILE
from hessian_lr.records import read_json
from hessian_lr.validated import read_validated

HERE = Path(__file__).parent
FIGURES = HERE.parent / "figures"


def main() -> None:
    for results in sorted(HERE.glob(f"*/results/{VALIDATE_FILE}")):
        rows = read_validated([results])
        name = results.parent.parent.name
        for figure in (
            *save(eigenvalue_figure(eigenvalue_points(rows)), FIGURES / f"{name}-eigenvalue.svg"),
            *save(sweep_figure([sweep_panel(one) for one in rows]), FIGURES / f"{name}-sweep.svg"),
        ):
            print(figure.relative_to(HERE.parent))
    if rows := read_rows(HERE / "peers" / "results"):
        for figure in peers_figure(rows, FIGURES / "peers.svg"):
            print(figure.relative_to(HERE.parent))
    rows_of_laws = HERE / "lr_bench" / "results" / "evaluation.json"
    if rows_of_laws.exists():
        figure = bench_figure(evaluate.scored(table.read()[0]), read_json(rows_of_laws)["rows"])
        for file in save(figure, FIGURES / "lr_bench.svg"):
            print(file.relative_to(HERE.parent))
    for file in save(paper_figure(groups(*table.read())), FIGURES / "paper.svg"):
        print(file.relative_to(HERE.parent))
    for file in save(drawn_figure(drawn_settings()), FIGURES / "classical-drawn.svg"):
        print(file.relative_to(HERE.parent))
    for file in save(classical_figure(classical_rows()), FIGURES / "classical.svg"):
        print(file.relative_to(HERE.parent))
    for file in draw_modules():
        print(file.relative_to(HERE.parent))
    points = HERE / "cost_curve" / "results.json"
    if points.exists():
        for figure in cost_figure(read_json(points)["points"], FIGURES / "cost_curve.svg", quick=False):
            print(figure.relative_to(HERE.parent))


if __name__ == "__main__":
    main()
