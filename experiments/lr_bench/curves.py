"""The tables' runs as sweeps, which the package's own scoring takes."""

from __future__ import annotations

import pandas as pd

from hessian_lr.setting import Setting
from hessian_lr.sweep import RunResult, Sweep


def curves(runs: pd.DataFrame, table: pd.DataFrame) -> dict[str, Sweep]:
    """Each setting's sweep, by its key."""
    found = {}
    swept = runs[runs["kind"] == "sweep"]
    for row in table.itertuples():
        results = tuple(
            RunResult(
                key="",
                setting=Setting(seed=int(run.seed)),
                lr=float(run.lr),
                initial_loss=float(run.initial_loss),
                final_loss=None if pd.isna(run.final_loss) else float(run.final_loss),
                steps=int(run.steps),
                diverged=bool(run.diverged),
                seconds=float(run.seconds),
                train_tokens=0,
            )
            for run in swept[swept["key"] == row.key].itertuples()
        )
        found[row.key] = Sweep(Setting(), results, bool(row.censored))
    return found
