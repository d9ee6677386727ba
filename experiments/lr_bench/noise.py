"""How far the best learning rates of two seeds differ: `python -m experiments.lr_bench.noise`.

The floor of every error here: what one seed's sweep says of another's, and which regrets of the predictions
can be told from none.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from hessian_lr.records import write_json
from hessian_lr.score import BAND_REGRET, score

from .curves import curves
from .evaluate import scored
from .held_out import left_out
from .laws import LAWS
from .table import HERE, read

# Standard errors from which a difference is told from none.
TOLD = 2.0
SHIPPED = ("combined", "eigenvalue", "adam")


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


def against_noise(table: pd.DataFrame, runs: pd.DataFrame) -> dict[str, dict[str, float]]:
    """Each shipped law, left out by method and by model: its regrets beside the noise of two seeds' means."""
    table = scored(table)
    twice = table[table["seeds"] == 2]
    sweeps = curves(runs, twice)
    told = {}
    for law in (law for law in LAWS if law.name in SHIPPED):
        for kind in ("method", "model"):
            predicted = left_out(law, table, table[kind])[twice.index].dropna()
            judged = [score(sweeps[table.at[i, "key"]], float(lr), None, None) for i, lr in predicted.items()]
            pairs = [
                (one.regret, one.noise) for one in judged if one.regret is not None and one.noise is not None
            ]
            regret, noise = np.array(pairs).T
            told[f"{law.name}, {kind} left out"] = {
                "settings": len(pairs),
                "median_noise": float(np.median(noise)),
                "in_band": float(np.mean(regret <= BAND_REGRET)),
                "not_told_from_none": float(np.mean(regret <= np.maximum(BAND_REGRET, TOLD * noise))),
                "p90_regret": float(np.quantile(regret, 0.9)),
            }
    return told


def main() -> None:
    table, runs = read()
    found = between_seeds(table, runs)
    told, noise = summary(found), against_noise(table, runs)
    write_json(
        HERE / "noise.json",
        {"schema": 1, "summary": told, "against_noise": noise, "rows": found.to_dict("records")},
    )
    for name, value in (told | noise).items():
        print(name, value)


if __name__ == "__main__":
    main()
