"""``sweep.csv``: a line a run, with its setting and what was found for that beside it."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import fields
from typing import Any

from ..rows import SweepRow
from ..setting import Setting

TABLE = "sweep.csv"
# Of a setting's row, what stands beside each of its runs in the table.
_BESIDE = (
    *("best_lr", "best_loss", "band_low", "band_high", "censored"),
    *("lambda_max", "lambda_preconditioned", "predicted_lr", "predicted_low", "predicted_high"),
    *("factor_error", "regret", "inside_band", "noise"),
)
_SETTING = tuple(field.name for field in fields(Setting) if field.name != "seed")


def _cell(value: Any) -> Any:
    if isinstance(value, dict):
        return value["path"]  # an adapter of the user's own
    return ",".join(value) if isinstance(value, list) else value


def as_csv(rows: Sequence[SweepRow]) -> str:
    """A line a run, with its setting and what was found for that beside it."""
    columns = ("lr", "seed", "initial_loss", "final_loss", "steps_done", "diverged", "seconds")
    text = io.StringIO()
    names = [*_SETTING, *columns, "train_tokens", "key", *_BESIDE, "status"]
    writer = csv.DictWriter(text, names, lineterminator="\n")
    writer.writeheader()
    for row in rows:
        setting = {name: _cell(value) for name, value in row.setting.items()}
        beside = {name: getattr(row, name) for name in (*_BESIDE, "status")}
        for run in row.runs:
            # "steps" is the setting's number; the run's own is less where it diverged early.
            writer.writerow({**run.to_dict(), "steps_done": run.steps, **setting, **beside})
    return text.getvalue()
