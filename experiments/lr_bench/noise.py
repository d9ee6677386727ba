"""How far the best learning rates of two seeds differ: `python -m experiments.lr_bench.noise`.

The floor of every error here: what one seed's sweep says of another's.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from hessian_lr.records import write_json
from hessian_lr.score import score

from .curves import curves
from .table import HERE, read


def between_seeds(table: pd.DataFrame, runs: pd.DataFrame) -> pd.DataFrame:
    """A row a setting swept with two seeds: each one's answer, and the second's regret at the first's."""
    rows = []
    for row in table[table["seeds"] == 2].itertuples():
        own = runs[(runs["key"] == row.key) & (runs["kind"] == "sweep")]
        sweeps = [
            curves(own[own["seed"] == seed], table[table["key"] == row.key])[row.key] for seed in (0, 1)
        ]
        first, second = (score(sweep, None, None, None) for sweep in sweeps)
        if first.best_lr is None or second.best_lr is None:
            continue
        crossed = score(sweeps[1], first.best_lr, None, None)
        rows.append(
            {
                "model": row.model,
                "method": row.method,
                "best_lr_0": first.best_lr,
                "best_lr_1": second.best_lr,
                "best_loss_0": first.best_loss,
                "best_loss_1": second.best_loss,
                "factor": float(np.exp(abs(np.log(first.best_lr / second.best_lr)))),
                "regret": crossed.regret,
                "inside_band": bool(crossed.inside_band),
            }
        )
    return pd.DataFrame(rows)


def summary(found: pd.DataFrame) -> dict[str, float]:
    """What a perfect predictor of one seed's best learning rate would score on another's."""
    return {
        "settings": len(found),
        "median_factor": float(found["factor"].median()),
        "p90_factor": float(found["factor"].quantile(0.9)),
        "in_band": float(found["inside_band"].mean()),
        "median_regret": float(found["regret"].median()),
        "p90_regret": float(found["regret"].quantile(0.9)),
    }


def main() -> None:
    found = between_seeds(*read())
    told = summary(found)
    write_json(HERE / "noise.json", {"schema": 1, "summary": told, "rows": found.to_dict("records")})
    for name, value in told.items():
        print(name, value)


if __name__ == "__main__":
    main()
