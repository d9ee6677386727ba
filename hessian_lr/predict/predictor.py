"""The learning rate a curvature speaks for, with a range."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import nn

from ..curvature.closed_form import closed_form
from ..curvature.loss import Batch, trainable
from ..curvature.weight_gradients import gradient_norms
from ..errors import HessianLRError, RequestError, unknown_name
from ..measure import Curvature, peak_rss_bytes, sharpness
from ..records import Record
from ..spectrum.lanczos import Progress
from .adam import AdamSharpness, Report, adam_sharpness
from .calibration import Calibration, PowerLaw, load_calibration
from .warmup import MakeOptimizer, adamw

# Gradients over the adapted weights instead of the adapter: half a backward pass more than θ's own.
NORMS_COST = 1.5
# Of the closed form. Enough where λ is mostly coupling; elsewhere more would cost more than Lanczos.
FAST_PRODUCTS = 8


@dataclass(frozen=True)
class Prediction(Record):
    """A learning rate for a run, before any tuning.

    Attributes:
        predictor: ``"adam"`` or ``"eigenvalue"``.
        status: ``"converged"``, ``"budget"`` or ``"failed"`` (then no learning rate is given).
        lr: The learning rate η̂.
        lr_low, lr_high: Its range, which four of five settings of a method or model that had no part in
            the constants should lie in; wider outside the settings these were fitted to.
        calibration: Version of the constants used.
        curvature: λ at initialization (predictor ``eigenvalue``).
        adam: λ_P and its company after the warm-up (predictor ``adam``).
        matvecs, gradient_equivalents, seconds, peak_rss_bytes: What it cost, in all.
        notes: What a reader should know.
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

    @classmethod
    def failed(cls, predictor: str, calibration: str, reason: str) -> Prediction:
        """A result without a number, and why."""
        unknown: dict[str, Any] = dict.fromkeys(field.name for field in fields(cls))
        nothing = {"matvecs": 0, "gradient_equivalents": 0.0, "seconds": 0.0, "peak_rss_bytes": 0}
        told = {"predictor": predictor, "calibration": calibration, "status": "failed", "notes": (reason,)}
        return cls(**(unknown | nothing | told))


def predict_learning_rate(
    model: nn.Module,
    batches: Sequence[Batch],
    *,
    warmup_batches: Sequence[Batch] | None = None,
    predictor: str = "adam",
    steps: int = 60,
    batch_size: int | None = None,
    dtype: torch.dtype = torch.float32,
    calibration: Calibration | None = None,
    memory_budget: int | None = None,
    seed: int = 0,
    fast: bool = False,
    optimizer: MakeOptimizer | None = None,
    report: Report | None = None,
) -> Prediction:
    """Predict the learning rate of a fine-tuning run of ``model`` on data like ``batches``.

    The model, its modes, the random state and global flags are left as they were found.

    Args:
        model: A causal language model with an adapter at its initialization.
        batches: The curvature sample as dictionaries of ``input_ids``, ``attention_mask``,
            ``labels``, each (samples, tokens). Without ``warmup_batches``: training batches, at
            least two, of which the first half (ten at most) serve the warm-up, the rest the measurement.
        warmup_batches: Training batches of the run's batch size that ``batches`` does not contain.
        predictor: ``"adam"``: 38/λ_P after a short warm-up. ``"eigenvalue"``: λ at initialization.
        steps: Optimizer steps of the run.
        batch_size: Samples a step of the run; None: as in the warm-up batches.
        dtype: Precision of the products: float32 or bfloat16 (autocast).
        calibration: Constants; None: those that come with the package.
        memory_budget: As for ``sharpness``.
        seed: As for ``sharpness``.
        fast: Take λ from the closed form at B = 0 (``eigenvalue`` only; plain LoRA and rsLoRA), between
            two ends, instead of Lanczos, for eight products at most. Where λ is mostly coupling, fewer
            do; elsewhere the two ends may still be apart then: the status is ``"budget"``.
        optimizer: The run's optimizer where it is not plain AdamW: ``optimizer(model, lr, betas=…, eps=…)``
            makes it for a learning rate ``lr``, which is what is predicted (``adam`` only).
        report: Called with (stage, done, total, detail).

    Returns:
        A ``Prediction``; a failure of the work is one with status ``"failed"``, its reason in ``notes``.

    Raises:
        RequestError: an unknown predictor, too few batches, nothing trainable or labelled; ``fast`` with
            another predictor than ``eigenvalue``, or with an adapter without a closed form.
    """
    if predictor not in PREDICTORS:
        raise unknown_name("predictor", predictor, PREDICTORS)
    if fast and predictor != "eigenvalue":
        raise RequestError(
            f"fast is for the predictor 'eigenvalue', which needs λ at B = 0, not for {predictor!r}, which "
            "measures after a warm-up, where B is no longer 0: leave fast out or ask for 'eigenvalue'"
        )
    if warmup_batches is None:
        if len(batches) < 2:
            raise RequestError(
                "give at least two batches (some to warm up on, some to measure on) or warmup_batches"
            )
        cut = min(len(batches) // 2, 10)
        warmup_batches, batches = batches[:cut], batches[cut:]
    constants = calibration or load_calibration()
    began = time.perf_counter()
    request = _Request(
        model=model,
        batches=batches,
        warmup_batches=warmup_batches,
        steps=steps,
        batch_size=batch_size or len(warmup_batches[0]["input_ids"]),
        dtype=dtype,
        memory_budget=memory_budget,
        seed=seed,
        fast=fast,
        optimizer=optimizer or adamw,
        report=report,
    )
    try:
        prediction = PREDICTORS[predictor](request, constants)
    except RequestError:
        raise
    except (HessianLRError, MemoryError, torch.OutOfMemoryError) as error:
        reason = str(error) or type(error).__name__
        prediction = Prediction.failed(predictor, constants.version, reason)
    return replace(prediction, seconds=round(time.perf_counter() - began, 3), peak_rss_bytes=peak_rss_bytes())


@dataclass(frozen=True)
class _Request:
    model: nn.Module
    batches: Sequence[Batch]
    warmup_batches: Sequence[Batch]
    steps: int
    batch_size: int
    dtype: torch.dtype
    memory_budget: int | None
    seed: int
    fast: bool
    optimizer: MakeOptimizer
    report: Report | None


def _by_adam(request: _Request, constants: Calibration) -> Prediction:
    """A power law in 38/λ_P after the warm-up, the critical learning rate before it, batch size, duration.

    The directional step is reported, but no part of it: see experiments/lr_bench.
    """
    measured = adam_sharpness(
        request.model,
        request.batches,
        request.warmup_batches,
        dtype=request.dtype,
        memory_budget=request.memory_budget,
        seed=request.seed,
        optimizer=request.optimizer,
        report=request.report,
    )
    if measured.lambda_preconditioned <= 0:
        raise HessianLRError("no direction of positive curvature after the warm-up: λ_P says nothing here")
    law, notes = constants.adam, list(measured.notes)
    lr, factor = _rate(
        law,
        notes,
        lr_stability=measured.lr_stability,
        lr_critical_start=measured.lr_critical_start,
        batch_size=request.batch_size,
        steps=request.steps,
    )
    factor *= measured.stability_slack
    if request.optimizer is not adamw:
        notes.append("the constants were fitted to runs with plain AdamW, none with this optimizer")
    return _told("adam", constants, (lr, lr / factor, lr * factor), measured, notes)


def _by_eigenvalue(request: _Request, constants: Calibration) -> Prediction:
    """A power law in λ at initialization, over what plain LoRA would have, batch size and duration."""
    if request.optimizer is not adamw:
        raise HessianLRError(
            "λ at initialization knows nothing of the optimizer, and this method has its own: use the "
            "predictor 'adam', which warms up with it"
        )
    curvature, norm = (_fast_sharpness if request.fast else _sharpness)(request)
    if curvature.lambda_max is None:
        raise HessianLRError("; ".join(curvature.notes))
    if curvature.lambda_max <= 0:
        raise HessianLRError("no direction of positive curvature at initialization: λ says nothing here")
    notes = list(curvature.notes)
    lr, factor = _rate(
        constants.eigenvalue,
        notes,
        lambda_ratio=curvature.lambda_max / norm,
        batch_size=request.batch_size,
        steps=request.steps,
    )
    told = _told("eigenvalue", constants, (lr, lr / factor, lr * factor), curvature, notes)
    return (
        told if request.fast else replace(told, gradient_equivalents=told.gradient_equivalents + NORMS_COST)
    )


def _sharpness(request: _Request) -> tuple[Curvature, float]:
    """λ by Lanczos, and the largest spectral norm of a weight's gradient."""
    curvature = sharpness(
        request.model,
        request.batches,
        dtype=request.dtype,
        memory_budget=request.memory_budget,
        seed=request.seed,
        progress=_shown(request.report, "Lanczos"),
    )
    if curvature.status == "failed":
        return curvature, math.nan
    return curvature, max(gradient_norms(request.model, request.batches, request.dtype).values())


def _fast_sharpness(request: _Request) -> tuple[Curvature, float]:
    """λ by the closed form at B = 0, and the largest spectral norm of a weight's gradient."""
    found = closed_form(
        request.model,
        request.batches,
        dtype=request.dtype,
        max_products=FAST_PRODUCTS,
        memory_budget=request.memory_budget,
        seed=request.seed,
        progress=_shown(request.report, "closed form"),
    )
    told = (
        f"λ by the closed form at B = 0, {found.products} products: between {found.lower:.4g} and "
        f"{found.upper:.4g} with {found.confidence:.0%} confidence; no sampling error was computed",
    )
    curvature = Curvature(
        lambda_max=found.estimate,
        lambda_lower=found.lower,
        lambda_upper=found.upper,
        confidence=found.confidence,
        lambda_min=None,
        residual=found.residual,
        sampling_error=None,
        status=found.status,
        matvecs=found.products,
        gradient_equivalents=found.gradient_equivalents,
        seconds=found.seconds,
        peak_rss_bytes=peak_rss_bytes(),
        loss=found.loss,
        tokens=found.tokens,
        parameters=sum(p.numel() for p in trainable(request.model)),
        notes=(*told, *found.notes),
    )
    return curvature, found.gradient_norm


def _shown(report: Report | None, stage: str) -> Progress | None:
    """An eigensolver's progress as a stage of the report."""
    if report is None:
        return None
    return lambda done, total, theta, residual: report(
        stage, done, total, f"θ {theta:.3g}, ρ {residual / max(abs(theta), 1e-30):.0%}"
    )


def _told(
    predictor: str,
    constants: Calibration,
    rates: tuple[float, float, float],
    measured: AdamSharpness | Curvature,
    notes: Sequence[str],
) -> Prediction:
    lr, low, high = rates
    return Prediction(
        predictor=predictor,
        status=measured.status,
        lr=lr,
        lr_low=low,
        lr_high=high,
        calibration=constants.version,
        curvature=measured if isinstance(measured, Curvature) else None,
        adam=measured if isinstance(measured, AdamSharpness) else None,
        matvecs=measured.matvecs,
        gradient_equivalents=measured.gradient_equivalents,
        seconds=measured.seconds,
        peak_rss_bytes=measured.peak_rss_bytes,
        notes=tuple(notes),
    )


PREDICTORS: dict[str, Callable[[_Request, Calibration], Prediction]] = {
    "adam": _by_adam,
    "eigenvalue": _by_eigenvalue,
}


def _rate(law: PowerLaw, notes: list[str], **quantities: float) -> tuple[float, float]:
    """η̂ and the factor of its range; what the law was not fitted to is noted."""
    known = {name: quantities[name] for name in law.exponents}
    if outside := law.outside(**known):
        notes.append(
            f"outside the settings the constants were fitted to, so the range is wider: {', '.join(outside)}"
        )
    return law(**known), law.range_factor(**known)
