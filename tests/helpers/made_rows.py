"""Rows of commands made by hand: what is not named is None, as where nothing was measured."""

from __future__ import annotations

import dataclasses
from typing import Any, TypeVar

from hessian_lr.records import Result
from hessian_lr.rows import PredictionRow, RunRow, ScoredRow, SpectrumRow, SweepRow

R = TypeVar("R", bound=Result)


def of(kind: type[R], **told: Any) -> R:
    names = (field.name for field in dataclasses.fields(kind) if field.default is dataclasses.MISSING)
    return kind(**dict.fromkeys(names) | {"method": "lora", "status": "converged"} | told)


def prediction(**told: Any) -> PredictionRow:
    return of(PredictionRow, **told)


def spectrum(**told: Any) -> SpectrumRow:
    return of(SpectrumRow, **told)


def scored(**told: Any) -> ScoredRow:
    return of(ScoredRow, **{"runs": (), "censored": False} | told)


def swept(**told: Any) -> SweepRow:
    return of(SweepRow, **{"runs": (), "censored": False, "missing": ()} | told)


def run(lr: float, final_loss: float | None = 1.0, **told: Any) -> RunRow:
    whole = {"seed": 0, "initial_loss": 2.0, "steps": 8, "diverged": final_loss is None, "seconds": 1.0}
    return RunRow(lr=lr, final_loss=final_loss, **whole | told)
