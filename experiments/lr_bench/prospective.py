"""Constants held to settings swept after they were fixed: `python -m experiments.lr_bench.prospective`.

No choice of a law, and no constant of it, can have known these. ``results/fixed-….json`` have constants as
they were, and the keys of the settings they had been fitted to.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from hessian_lr.predict import PREDICTORS
from hessian_lr.predict.calibration import Calibration
from hessian_lr.predict.law import Quantities
from hessian_lr.predict.rate import rate
from hessian_lr.records import read_json, write_json
from hessian_lr.sweep import Sweep

from .curves import curves
from .evaluate import metrics, scored
from .laws import AFTER
from .table import HERE, read

FIXED, NEXT = HERE / "fixed-2026.11-c.json", HERE / "fixed-2026.11-e.json"


def predicted(predictor: str, constants: Calibration, table: pd.DataFrame) -> pd.DataFrame:
    """η̂ with its range, a row a setting, as `hessian-lr predict` makes them from the same measurements."""

    def one(row: pd.Series) -> tuple[float, ...]:
        known = Quantities(
            batch_size=int(row["batch_size"]),
            steps=int(row["steps"]),
            lr_stability=_positive(row[AFTER + "lr_stability"]),
            lr_critical_start=_positive(row["lr_critical_start"]),
            lr_eigenvalue=_positive(row["lr_eigenvalue"]),
            lr_sharpness=_positive(row["lr_sharpness"]),
            lr_probe=_positive(row["lr_probe"]),
        )
        found = rate(predictor, constants, known)
        return found.ends if found else (np.nan,) * 3

    rows = [one(row) for _, row in table.iterrows()]
    return pd.DataFrame(rows, columns=["lr", "low", "high"], index=table.index)


def _positive(value: float | None) -> float | None:
    return float(value) if value is not None and value > 0 else None


def evaluate(table: pd.DataFrame, runs: pd.DataFrame) -> list[dict[str, Any]]:
    """A row for each predictor, on what came between these constants and the next."""
    fixed = read_json(FIXED)
    constants = Calibration.from_dict(fixed["calibration"])
    between = set(read_json(NEXT)["keys"]) - set(fixed["keys"])
    later = scored(table[table["key"].isin(between)])
    sweeps = curves(runs, later)
    return [judged(predictor, constants, later, sweeps) for predictor in PREDICTORS]


def judged(
    predictor: str, constants: Calibration, table: pd.DataFrame, sweeps: dict[str, Sweep]
) -> dict[str, Any]:
    """The predictor's row on settings that are scored."""
    found = predicted(predictor, constants, table)
    return {
        "predictor": predictor,
        **metrics(found["lr"], table, sweeps),
        "coverage": covered(found, table),
        "median_width": float((found["high"] / found["low"]).median()),
    }


def covered(found: pd.DataFrame, table: pd.DataFrame) -> float:
    """The share of settings whose best learning rate lies inside the range of what ``predicted`` found."""
    return float((found["low"].le(table["best_lr"]) & found["high"].ge(table["best_lr"])).mean())


def main() -> None:
    rows = evaluate(*read())
    write_json(HERE / "prospective.json", {"schema": 1, "rows": rows})
    for row in rows:
        print(", ".join(f"{k} {v:.3g}" if isinstance(v, float) else f"{k} {v}" for k, v in row.items()))


if __name__ == "__main__":
    main()
