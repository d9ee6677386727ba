"""The shipped constants on runs of 300 steps, in no fit: `python -m experiments.lr_bench.long`.

What the package predicts, beside what a careful user does there: a sweep at a tenth of the steps. The law
that takes that to the full length, and other rivals' constants, are fitted to the bench's shorter settings.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pandas as pd

from hessian_lr.predict import PREDICTORS, load_calibration
from hessian_lr.records import write_json

from .calibrate import PREDICTORS as LAW_OF
from .calibrate import known_to, power_law
from .curves import curves
from .evaluate import FIXED, cost, metrics, scored
from .held_out import fit, predict, usable
from .laws import LAWS, Law
from .prospective import judged
from .table import LONG, PROBE, read

RIVALS = (
    "tenth of the steps",
    "tenth of the steps, free",
    "tenth and 38 / lambda_P",
    "constant fitted",
)


def evaluate(bench: pd.DataFrame, table: pd.DataFrame, runs: pd.DataFrame) -> list[dict[str, Any]]:
    """A row for each predictor and rival.

    Args:
        bench: The settings that rivals are fitted to.
        table, runs: The long settings and their runs.
    """
    bench, table = scored(bench), scored(table)
    sweeps = curves(runs, table)
    laws = {law.name: law for law in LAWS}
    shipped, most = load_calibration(), float(bench["steps"].max())
    shorter = replace(shipped, **{name: known_to(getattr(shipped, name), most) for name in PREDICTORS})
    rows = []
    for predictor in PREDICTORS:
        row = judged(predictor, shipped, table, sweeps)
        # As it was before this test said that the range holds: widened for steps beyond the bench's.
        before = judged(predictor, shorter, table, sweeps)
        row |= {f"{name}_before": before[name] for name in ("coverage", "median_width")}
        rows.append(row | {"cost": _median(cost(laws[LAW_OF[predictor]], table))})
    # The law for short runs, unlike the shipped one, without these settings.
    law = known_to(power_law(laws[PROBE], bench), float(table["steps"].max()))
    row = judged(PROBE, replace(shipped, probe=law), table, sweeps)
    rows.append(row | {"cost": _median(cost(laws[PROBE], table))})
    for name in RIVALS:
        told = metrics(_fitted(laws[name], bench, table), table, sweeps)
        rows.append({"predictor": name, **told, "cost": _median(cost(laws[name], table))})
    for name, formula in FIXED.items():
        rows.append({"predictor": name, **metrics(formula(table), table, sweeps)})
    return rows


def _fitted(law: Law, bench: pd.DataFrame, table: pd.DataFrame) -> pd.Series:
    weights = fit(law, bench[usable(law, bench)])
    have = usable(law, table)
    found = pd.Series(float("nan"), index=table.index)
    found[have] = predict(law, weights, table[have])
    return found


def _median(shares: pd.Series | None) -> float | None:
    return None if shares is None else float(shares.median())


def main() -> None:
    rows = evaluate(read()[0], *read(LONG))
    write_json(LONG / "evaluation.json", {"schema": 1, "rows": rows})
    for row in rows:
        print(", ".join(f"{k} {v:.3g}" if isinstance(v, float) else f"{k} {v}" for k, v in row.items()))


if __name__ == "__main__":
    main()
