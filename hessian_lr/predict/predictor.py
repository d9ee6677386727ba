"""The learning rate a curvature speaks for, with a range."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from ..batches import Batch, require_batches, require_labels, trimmed
from ..checkpoints import Checkpoints
from ..curvature.inputs import require_inputs
from ..distributed import FAILURES, MEMORY, failed
from ..errors import HessianLRError, RequestError, unknown_name
from ..exhausted import memory_errors
from ..measure import AdamSharpness, Curvature, adam_sharpness, peak_rss_bytes
from ..measure.how import How, Report, shown
from ..measure.warmup import MakeOptimizer, adamw, split_batches
from ..setting import Setting, check_counts
from .calibration import Calibration, load_calibration
from .extent import extent
from .law import Quantities
from .other_adapters import other_adapter
from .prediction import Prediction
from .rate import ASSUMED, PROBE, rate
from .start import by_closed_form, by_lanczos, lr_eigenvalue, lr_sharpness

# A residual of this share of λ_P leaves no more than its order of magnitude.
UNKNOWN = 0.5


def predict_learning_rate(
    model: nn.Module,
    batches: Sequence[Batch],
    *,
    warmup_batches: Sequence[Batch] | None = None,
    predictor: str = "combined",
    steps: int | None = None,
    batch_size: int | None = None,
    dtype: torch.dtype = torch.float32,
    calibration: Calibration | None = None,
    memory_budget: int | None = None,
    seed: int = 0,
    fast: bool = False,
    optimizer: MakeOptimizer | None = None,
    report: Report | None = None,
    checkpoints: Checkpoints | None = None,
) -> Prediction:
    """Predict the learning rate of a fine-tuning run of ``model`` on data like ``batches``.

    The model, its modes, the random state and global flags are left as they were found.

    Args:
        model: A causal language model with an adapter at its initialization.
        batches: The curvature sample as dictionaries of ``input_ids``, ``attention_mask``,
            ``labels``, each (samples, tokens). Without ``warmup_batches``: training batches, at
            least two, of which the first half (ten at most) serve the warm-up, the rest the measurement.
        warmup_batches: Training batches of the run's batch size that ``batches`` does not contain.
        predictor: ``"adam"``: 38/λ_P after a short warm-up and the critical learning rate before it.
            ``"eigenvalue"``: λ at initialization. ``"combined"``: all three.
        steps: Optimizer steps of the run, the first of them at the learning rate 0. The longer it is, the
            lower the rate. None: 60, and a note says so.
        batch_size: Samples a step of the run; None: as in the warm-up batches.
        dtype: Precision of the products: float32 or bfloat16 (autocast).
        calibration: Constants; None: those that come with the package.
        memory_budget: As for ``sharpness``.
        seed: As for ``sharpness``.
        fast: Take λ from the closed form at B = 0 (``eigenvalue`` only; plain LoRA and rsLoRA), between
            two ends, instead of Lanczos, for eight products at most. Where λ is mostly coupling, fewer
            do; elsewhere the two ends may still be apart then: the status is ``"budget"``.
        optimizer: The run's optimizer where it is not plain AdamW: ``optimizer(model, lr, betas=…, eps=…)``
            makes it for a learning rate ``lr``, which is what is predicted, and with the β₁ it is given
            (``adam`` only).
        report: Called with (stage, done, total, detail).
        checkpoints: Where the state of the measurements is kept, so that the same call goes on after a
            kill (not with ``fast``).

    Returns:
        A ``Prediction``; a failure of the work is one with status ``"failed"``, its reason in ``notes``.

    Raises:
        RequestError: an unknown predictor, or one that needs more than a model; steps that are no whole
            number from 2 on, a batch size that is none from 1 on, a seed from 0 on; too few batches,
            nothing trainable or labelled, tokens that the model has not; an ``optimizer`` of another kind
            than Adam's, or that is not what it was asked for; ``fast`` with another predictor than
            ``eigenvalue``, or with an adapter without a closed form.
    """
    if predictor == PROBE:
        raise RequestError(
            f"the predictor {PROBE!r} needs short runs, which `hessian-lr predict` makes. Here, predict by "
            "'adam', train runs a tenth as long, and give refine_learning_rate their best learning rate"
        )
    if predictor not in PREDICTORS:
        raise unknown_name("predictor", predictor, PREDICTORS)
    if fast and predictor != "eigenvalue":
        raise RequestError(
            f"fast is for the predictor 'eigenvalue', which needs λ at B = 0, not for {predictor!r}, which "
            "measures after a warm-up, where B is no longer 0: leave fast out or ask for 'eigenvalue'"
        )
    assumed = steps is None
    steps = Setting.steps if steps is None else steps
    check_counts(steps=steps, seed=seed, **{} if batch_size is None else {"batch_size": batch_size})
    require_batches(batches)
    if warmup_batches is None:
        if len(batches) < 2:
            raise RequestError(
                "give at least two batches (some to warm up on, some to measure on) or warmup_batches"
            )
        warmup_batches, batches = split_batches(batches)
    require_labels(warmup_batches)
    require_labels(batches)
    # Rows padded to some fixed length would make most of the work cost many times as much.
    batches, warmup_batches = ([*map(trimmed, some)] for some in (batches, warmup_batches))
    require_inputs(model, warmup_batches)
    constants = calibration or load_calibration()
    began = time.perf_counter()
    request = _Request(
        model=model,
        batches=batches,
        warmup_batches=warmup_batches,
        steps=steps,
        batch_size=batch_size or len(warmup_batches[0]["input_ids"]),
        how=How(dtype, memory_budget, seed, checkpoints=checkpoints),
        fast=fast,
        optimizer=optimizer or adamw,
        report=report,
    )
    try:
        with memory_errors():
            prediction = PREDICTORS[predictor](request, constants)
    except FAILURES as error:
        prediction = Prediction.failed(predictor, constants.version, failed(error))
    if assumed and prediction.lr is not None:
        note = f"{ASSUMED}{steps} steps, as none were given: give those of yours, steps=…"
        prediction = replace(prediction, notes=(*prediction.notes, note))
    return replace(prediction, seconds=round(time.perf_counter() - began, 3), peak_rss_bytes=peak_rss_bytes())


@dataclass(frozen=True)
class _Request:
    model: nn.Module
    batches: Sequence[Batch]
    warmup_batches: Sequence[Batch]
    steps: int
    batch_size: int
    how: How
    fast: bool
    optimizer: MakeOptimizer
    report: Report | None


def _by_adam(request: _Request, constants: Calibration) -> Prediction:
    return _told("adam", request, constants, _adam(request), None)


def _by_eigenvalue(request: _Request, constants: Calibration) -> Prediction:
    if request.optimizer is not adamw:
        raise HessianLRError(
            "λ at initialization knows nothing of the optimizer, and this method has its own: use the "
            "predictor 'adam', which warms up with it"
        )
    return _told("eigenvalue", request, constants, None, _start(request))


def _by_both(request: _Request, constants: Calibration) -> Prediction:
    """Both measurements; where one fails, the other's law has to do.

    One that failed for want of memory may be had by the same call another time: its states stay until then.
    """
    lacking: dict[str, list[str]] = {}  # what, by why
    adam, start, short = None, None, False
    try:
        with memory_errors():
            start = _start(request)
    except FAILURES as error:
        lacking.setdefault(failed(error), []).append("λ at initialization")
        short = isinstance(error, MEMORY)
    try:
        with memory_errors():
            adam = _adam(request)
    except FAILURES as error:
        lacking.setdefault(failed(error), []).append("sharpness in Adam's geometry")
        short |= isinstance(error, MEMORY)
    failures = [f"{' and '.join(what)}: {why}" for why, what in lacking.items()]
    if adam is None and start is None:
        raise HessianLRError("; ".join(failures))
    told = _told("combined", request, constants, adam, start, failures)
    if not short:
        return told
    if request.how.checkpoints is not None:
        request.how.checkpoints.unfinished = True
    return replace(told, status="budget")


def _adam(request: _Request) -> AdamSharpness:
    measured = adam_sharpness(
        request.model,
        request.batches,
        request.warmup_batches,
        dtype=request.how.dtype,
        memory_budget=request.how.memory_budget,
        seed=request.how.seed,
        optimizer=request.optimizer,
        report=request.report,
        checkpoints=request.how.checkpoints,
    )
    if measured.lambda_preconditioned <= 0:
        raise HessianLRError("no direction of positive curvature after the warm-up: λ_P says nothing here")
    if measured.residual > UNKNOWN * measured.lambda_preconditioned:
        share = measured.residual / measured.lambda_preconditioned
        raise HessianLRError(
            f"λ_P is not known: its residual is {share:.0%} of it; use float32, or more rows"
        )
    return measured


def _start(request: _Request) -> Curvature:
    measure, stage = (by_closed_form, "closed form") if request.fast else (by_lanczos, "Lanczos")
    how = replace(request.how, progress=shown(request.report, stage))
    start = measure(request.model, request.batches, how)
    if lr_eigenvalue(start) is None:
        raise HessianLRError("no direction of positive curvature at initialization: λ says nothing here")
    return start


def _told(
    predictor: str,
    request: _Request,
    constants: Calibration,
    adam: AdamSharpness | None,
    start: Curvature | None,
    failures: Sequence[str] = (),
) -> Prediction:
    """The prediction that the measurements make, with their cost."""
    measured: list[AdamSharpness | Curvature] = [one for one in (start, adam) if one]
    own = request.optimizer is not adamw
    samples = sum(len(batch["input_ids"]) for batch in request.batches)
    size = extent(request.model)
    run = {"batch_size": request.batch_size, "steps": request.steps, "samples": samples}
    known = quantities(adam, start, own, **run, **size)
    found = rate(predictor, constants, known)
    if found is None:
        raise HessianLRError("; ".join(failures) or "nothing was measured that a learning rate follows from")
    lr, low, high = found.ends
    notes = [*failures, *(note for one in measured for note in one.notes), *found.notes]
    if own:
        notes.append("the constants were fitted to runs with plain AdamW, none with this optimizer")
    notes += other_adapter(request.model)
    return Prediction(
        predictor=predictor,
        status="converged" if all(one.status == "converged" for one in measured) else "budget",
        lr=lr,
        lr_low=low,
        lr_high=high,
        calibration=constants.version,
        curvature=start,
        adam=adam,
        matvecs=sum(one.matvecs for one in measured),
        gradient_equivalents=round(sum(one.gradient_equivalents for one in measured), 3),
        seconds=sum(one.seconds for one in measured),
        peak_rss_bytes=peak_rss_bytes(),
        notes=tuple(dict.fromkeys(notes)),
        **size,
    )


def quantities(
    adam: AdamSharpness | None,
    start: Curvature | None,
    own: bool,
    **run: Any,
) -> Quantities:
    """What laws take from the two measurements; ``own``: the method has an optimizer of its own.

    Args:
        adam, start: The measurements.
        run: What of the run ``Quantities`` have besides, by name.
    """
    return Quantities(
        **run,
        lr_stability=adam.lr_stability if adam else None,
        lr_critical_start=adam.lr_critical_start if adam else None,
        # λ knows nothing of another optimizer than AdamW.
        lr_eigenvalue=lr_eigenvalue(start) if start and not own else None,
        lr_sharpness=lr_sharpness(start) if start and not own else None,
        slack=adam.stability_slack if adam else 1.0,
    )


PREDICTORS: dict[str, Callable[[_Request, Calibration], Prediction]] = {
    "combined": _by_both,
    "adam": _by_adam,
    "eigenvalue": _by_eigenvalue,
}
