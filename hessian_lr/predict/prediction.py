"""What a prediction is: a learning rate with its range, or the reason why there is none."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

from ..measure import AdamSharpness, Curvature
from ..records import Record, Result
from .law import Rate


@dataclass(frozen=True)
class Probe(Result):
    """Short runs that a prediction is joined with (see ``refine``).

    Attributes:
        lr: Their best learning rate; None where it does not lie inside those that were run, or none
            lowered the loss.
        steps: Optimizer steps of each.
        lrs: Their learning rates, ascending.
        losses: Held-out loss after each, nats per labelled token; None where it was not finite.
        seconds: What they took, in all.
    """

    lr: float | None
    steps: int
    lrs: tuple[float, ...]
    losses: tuple[float | None, ...]
    seconds: float


@dataclass(frozen=True)
class Prediction(Record):
    """A learning rate for a run, before any tuning.

    Attributes:
        predictor: ``"combined"``, ``"adam"``, ``"eigenvalue"`` or ``"probe"``; ``"transfer"`` where nothing
            was measured, ``"none"`` where no constants are known of the optimizer (see ``classical``).
        status: ``"converged"``, ``"budget"`` (stopped at a limit of products, or one of two measurements for
            want of memory) or ``"failed"`` (then no learning rate is given).
        lr: The learning rate η̂; None where it failed, or where the predictor is ``"none"``.
        lr_low, lr_high: Its range, which four of five settings of a method or model that had no part in
            the constants should lie in; wider outside the settings these were tried on.
        calibration: Version of the constants used.
        curvature: λ at initialization (predictors ``combined``, ``eigenvalue``).
        adam: λ_P and its company after the warm-up (predictors ``combined``, ``adam``).
        matvecs, gradient_equivalents, seconds, peak_rss_bytes: What it cost, in all.
        notes: What a reader should know.
        probe: The short runs (predictor ``probe``).
        model_size, adapter_rank, adapter_scaling: How large what was measured is (see ``extent.extent``).
    """

    predictor: str
    status: str
    lr: float | None
    lr_low: float | None
    lr_high: float | None
    calibration: str
    curvature: Curvature | None
    adam: AdamSharpness | None
    matvecs: int
    gradient_equivalents: float
    seconds: float
    peak_rss_bytes: int
    notes: tuple[str, ...] = ()
    probe: Probe | None = None
    model_size: int | None = None
    adapter_rank: int | None = None
    adapter_scaling: float | None = None

    @classmethod
    def failed(cls, predictor: str, calibration: str, reason: str) -> Prediction:
        """A result without a number, and why."""
        return cls._unmeasured(predictor=predictor, calibration=calibration, status="failed", notes=(reason,))

    @classmethod
    def transferred(cls, calibration: str, found: Rate) -> Prediction:
        """A result that took no measurement (see ``transfer``)."""
        lr, low, high = found.ends
        ends = {"lr": lr, "lr_low": low, "lr_high": high, "notes": found.notes}
        return cls._unmeasured(predictor="transfer", calibration=calibration, status="converged", **ends)

    @classmethod
    def measured(
        cls, predictor: str, found: Curvature, calibration: str, notes: tuple[str, ...]
    ) -> Prediction:
        """λ at initialization alone, with no learning rate."""
        cost = {
            name: getattr(found, name)
            for name in ("status", "matvecs", "gradient_equivalents", "seconds", "peak_rss_bytes")
        }
        told = {"predictor": predictor, "calibration": calibration, "curvature": found, "notes": notes}
        return cls._unmeasured(**told, **cost)

    @classmethod
    def _unmeasured(cls, **told: Any) -> Prediction:
        unknown: dict[str, Any] = dict.fromkeys(field.name for field in fields(cls))
        nothing = {"matvecs": 0, "gradient_equivalents": 0.0, "seconds": 0.0, "peak_rss_bytes": 0}
        return cls(**(unknown | nothing | told))
