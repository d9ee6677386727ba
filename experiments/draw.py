"""Draw every study's figures from its committed results: `make figures`.

A sweep is a folder here with a `results/validate.json` and the runs beside it; benchmarks draw themselves.
"""

from __future__ import annotations

from pathlib import Path

from experiments.cost_curve.figure import cost_figure
from experiments.peers.figure import peers_figure
from experiments.peers.summary import read_rows
from hessian_lr.figure_style import save
from hessian_lr.figures import SweepPanel, eigenvalue_figure, sweep_figure
from hessian_lr.records import read_json
from hessian_lr.results import VALIDATE_FILE, Validated, eigenvalue_points, read_validated
from hessian_lr.sweep import RunResult, Sweep

HERE = Path(__file__).parent
FIGURES = HERE.parent / "figures"


def panel(one: Validated, runs: list[RunResult]) -> SweepPanel:
    """A row of the results with the runs it was scored on."""
    swept = {(run["lr"], run["seed"]) for run in one.row["runs"]}
    own = [r for r in runs if r.setting.method == one.method and (r.lr, r.setting.seed) in swept]
    ordered = tuple(sorted(own, key=lambda run: (run.lr, run.setting.seed)))
    return SweepPanel(Sweep(ordered[0].setting, ordered, one.score.censored, ()), one.score)


def main() -> None:
    for results in sorted(HERE.glob(f"*/results/{VALIDATE_FILE}")):
        rows = read_validated([results])
        runs = [RunResult.read(path) for path in sorted((results.parent / "runs").glob("*.json"))]
        name = results.parent.parent.name
        for figure in (
            *save(eigenvalue_figure(eigenvalue_points(rows)), FIGURES / f"{name}-eigenvalue.svg"),
            *save(sweep_figure([panel(one, runs) for one in rows]), FIGURES / f"{name}-sweep.svg"),
        ):
            print(figure.relative_to(HERE.parent))
    if rows := read_rows(HERE / "peers" / "results"):
        for figure in peers_figure(rows, FIGURES / "peers.svg"):
            print(figure.relative_to(HERE.parent))
    points = HERE / "cost_curve" / "results.json"
    if points.exists():
        for figure in cost_figure(read_json(points)["points"], FIGURES / "cost_curve.svg", quick=False):
            print(figure.relative_to(HERE.parent))


if __name__ == "__main__":
    main()
