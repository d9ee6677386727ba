"""Sharpness in Adam's own geometry, measured after a short warm-up.

At initialization Adam's second moments do not exist yet, and for B = 0 those of A are zero; a few
small steps later they say how far Adam will go in each direction. There the preconditioned
sharpness λ_P = λ_max(P^-½·H·P^-½) bounds the learning rate: η < 38/λ_P for β₁ = 0.9 (Cohen et al.
2022, arXiv 2207.14484).
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import nn

from ..batches import Batch, count_labels, count_tokens
from ..checkpoints import Checkpoints
from ..curvature.adam import Geometry, decay_in_gradient, geometry, stability_threshold
from ..curvature.central import twice_or_central
from ..curvature.loss import trainable
from ..curvature.loss_operator import Cost
from ..curvature.measurable import require_measurable
from ..errors import NonFiniteError, RequestError
from ..records import Record
from ..setting import BETAS
from .after_warmup import AfterWarmUp, after_warm_up
from .cost import peak_rss_bytes
from .first_step import initial_critical
from .how import How, Report, shown
from .line_search import critical_learning_rate
from .state import unchanged
from .warmup import WARMUP_STEPS, MakeOptimizer, adamw, warm_up

# The warm-up's largest step as a share of the critical learning rate at initialization. One rule
# for every method: the size of the warm-up moves λ_P, so it must not be chosen by taste.
WARMUP_SHARE = 1 / 8
# η·λ_P/38 after a warm-up to η: beyond 1 its last steps were unstable, and so far beyond it has thrown the
# model out of where a run would go: λ_P is then anything. Such a warm-up is made smaller, at most so many
# times. Of the settings that the constants come from one in twelve was as far (experiments/lr_bench/edge).
BEYOND, SMALLER, ATTEMPTS = 4.0, 4.0, 4


@dataclass(frozen=True)
class AdamSharpness(Record):
    """What was measured after the warm-up.

    Attributes:
        lambda_preconditioned: λ_P's Ritz value (≤ λ_P).
        residual, upper, sampling_error: Of λ_P, as in ``Curvature``.
        status: Of the eigenvalue, ``"converged"`` or ``"budget"``.
        lr_stability: 38/λ_P, the learning rate at which Adam becomes unstable on the quadratic.
        lr_directional: g·u / (u·H·u) along Adam's own step u; None unless both are positive: on a
            sample the warm-up has not seen, g·u may be noise.
        lr_critical: η_c along u; None if there is no directional step, or none was found.
        lr_critical_start: η_c along the first step, sign(g), at initialization; it sets the warm-up's size.
        warmup_lr: The warm-up's largest learning rate.
        warmup_steps: Its number of steps.
        matvecs, gradient_equivalents, seconds, peak_rss_bytes: What it cost, in all.
        notes: What a reader should know.
        stability_slack: The factor by which the optimizer's own threshold may lie off ``lr_stability``,
            either way: 1 for Adam.
        rounding: How far λ_P was from its value in bfloat16, as in ``Curvature``; None in float32, and where
            bfloat16 did not serve and λ_P was searched again in float32.
    """

    lambda_preconditioned: float
    residual: float
    upper: float | None
    sampling_error: float | None
    status: str
    lr_stability: float
    lr_directional: float | None
    lr_critical: float | None
    lr_critical_start: float
    warmup_lr: float
    warmup_steps: int
    matvecs: int
    gradient_equivalents: float
    seconds: float
    peak_rss_bytes: int
    notes: tuple[str, ...] = ()
    stability_slack: float = 1.0
    rounding: float | None = None


def adam_sharpness(
    model: nn.Module,
    batches: Sequence[Batch],
    warmup_batches: Sequence[Batch],
    *,
    dtype: torch.dtype = torch.float32,
    rtol: float = 0.1,
    max_products: int = 25,
    memory_budget: int | None = None,
    seed: int = 0,
    optimizer: MakeOptimizer = adamw,
    report: Report | None = None,
    checkpoints: Checkpoints | None = None,
) -> AdamSharpness:
    """Warm up, measure λ_P, the directional step and the critical learning rate, and put all back.

    Products in bfloat16 only find λ_P's eigenvector: the numbers are those of one product in float32 with
    it, or of more where that does not serve, as in ``sharpness``. The warm-up, the directional step and the
    critical learning rates are bfloat16's. Where the model cannot be differentiated twice, products are
    central differences, as there too: a note says so, with their measured error, and λ_P is not
    ``converged`` where that exceeds ``rtol``.

    Args:
        model: A model with an adapter at its initialization.
        batches: The curvature sample, which the warm-up does not see.
        warmup_batches: Training batches of the run's own batch size.
        dtype: Precision of the products, of the warm-up and of the searches for a critical learning rate.
        rtol, max_products, memory_budget, seed: As for ``sharpness``. A residual ρ of a tenth is
            enough here: the eigenvalue's error is ρ²/δ with δ the gap to the rest of the spectrum.
        optimizer: The run's optimizer, if it is not AdamW with one learning rate.
        report: Called with (stage, done, total, detail).
        checkpoints: Where Lanczos's state is kept. The warm-up, which is short, is made again.

    Raises:
        HessianLRError: no learning rate leads downhill from the start, or a value is not finite.
        RequestError: nothing trainable or labelled, or trainable parameters in float16.
    """
    if require_measurable(model)[0].dtype is torch.float16:
        raise RequestError(
            "the trainable parameters are torch.float16, whose range is too small for Adam's squares: make "
            "the adapter float32 (PEFT does unless autocast_adapter_dtype=False)"
        )
    began = time.perf_counter()
    how = How(dtype, memory_budget, seed, shown(report, "preconditioned Lanczos"), checkpoints)
    tell = report or (lambda *_: None)
    study = _Study(model, batches, warmup_batches, how, rtol, max_products, optimizer, tell)
    with unchanged(model):
        start = study.at_start()
        with study.warmed_up(start * WARMUP_SHARE) as warm:
            directional, critical = study.along_step(warm)
    seen, found = warm.seen, warm.seen.found
    return AdamSharpness(
        lambda_preconditioned=found.value,
        residual=found.residual,
        upper=found.upper,
        sampling_error=seen.sampling_error,
        status=found.status,
        lr_stability=stability_threshold(BETAS[0]) / found.value if found.value > 0 else math.inf,
        lr_directional=directional,
        lr_critical=critical,
        lr_critical_start=start,
        warmup_lr=warm.top_lr,
        warmup_steps=WARMUP_STEPS,
        matvecs=sum(cost.matvecs for cost in study.costs),
        gradient_equivalents=study.gradient_equivalents(seen.tokens),
        seconds=round(time.perf_counter() - began, 3),
        peak_rss_bytes=peak_rss_bytes(),
        notes=tuple(dict.fromkeys((*study.notes, *seen.notes))),  # of each warm-up made smaller some again
        stability_slack=warm.metric.stability_slack,
        rounding=seen.rounding,
    )


@dataclass(frozen=True)
class _Warm:
    """A warm-up that was made: its largest learning rate, where it led, and what was seen there."""

    top_lr: float
    metric: Geometry
    seen: AfterWarmUp

    @property
    def beyond(self) -> float:
        """How many times the stable learning rate the warm-up's largest was."""
        if self.seen.found.value <= 0:
            # Thrown far enough, a model is dead, and no direction bends upward.
            return math.inf
        return self.top_lr * self.seen.found.value / stability_threshold(BETAS[0])


@dataclass
class _Study:
    """The steps of ``adam_sharpness``, what they share, and what they have cost so far.

    Attributes:
        work: Tokens that went forward and back, beside those of the products; forward alone counts half.
        costs: Of the products, one an operator.
        notes: What a reader should know of the warm-up.
    """

    model: nn.Module
    batches: Sequence[Batch]
    warmup_batches: Sequence[Batch]
    how: How
    rtol: float
    max_products: int
    optimizer: MakeOptimizer
    tell: Report
    work: float = 0.0
    costs: list[Cost] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def at_start(self) -> float:
        """η_c along the first step, at initialization."""
        self.tell("critical learning rate", 0, 1, "at the start")
        begin = partial(
            initial_critical,
            model=self.model,
            batches=self.batches,
            dtype=self.how.dtype,
            optimizer=self.optimizer,
        )
        critical, forwards = twice_or_central(begin)
        self.work += (1 + 0.5 * forwards) * count_tokens(self.batches)
        return critical

    @contextmanager
    def warmed_up(self, top_lr: float) -> Iterator[_Warm]:
        """Within it the model is where a warm-up to ``top_lr`` leads, or to less where that is unstable.

        Raises:
            NonFiniteError: the smallest that was tried is still too large for any number.
        """
        for attempt in range(1 + ATTEMPTS):
            last = attempt == ATTEMPTS
            with unchanged(self.model):
                try:
                    warm = self._warm_up(top_lr)
                    beyond = warm.beyond
                except NonFiniteError:
                    if last:
                        raise
                    beyond = math.inf
                far = "left no curvature" if math.isinf(beyond) else f"was {beyond:.2g} times the stable one"
                its = f"its learning rate of {top_lr:.1e} {far}"
                if beyond <= BEYOND or last:
                    if beyond > BEYOND:
                        self.notes.append(f"the warm-up stayed too large, so λ_P may be anything: {its}")
                    yield warm
                    return
            self.notes.append(f"warm-up made {SMALLER:g} times smaller: {its}")
            top_lr /= SMALLER

    def _warm_up(self, top_lr: float) -> _Warm:
        """Warm the model up, which is changed, and measure there."""
        self.tell("warm-up", 0, WARMUP_STEPS, f"up to a learning rate of {top_lr:.1e}")
        rows = self.warmup_batches
        self.work += sum(count_tokens([rows[i % len(rows)]]) for i in range(WARMUP_STEPS))
        made = warm_up(
            self.model,
            rows,
            steps=WARMUP_STEPS,
            top_lr=top_lr,
            dtype=self.how.dtype,
            optimizer=self.optimizer,
        )
        if decay := decay_in_gradient(made):
            self.notes.append(
                f"λ_P is of the loss without the optimizer's weight decay of {decay:g}, which Adam follows "
                "as a part of the gradient (½·c·‖θ‖² in the loss); AdamW keeps it apart"
            )
        metric = geometry(made, trainable(self.model))
        measure = partial(
            after_warm_up,
            model=self.model,
            batches=self.batches,
            metric=metric,
            how=self.how,
            rtol=self.rtol,
            max_products=self.max_products,
            costs=self.costs,
        )
        return _Warm(top_lr, metric, twice_or_central(measure))

    def along_step(self, warm: _Warm) -> tuple[float | None, float | None]:
        """The directional step and η_c along Adam's own step from where the model is; None: there is none."""
        slope, bend = warm.seen.slope, warm.seen.bend
        if not (slope > 0 and bend > 0):
            return None, None
        directional = slope / bend
        self.tell("critical learning rate", 0, 1, "along Adam's step")
        first_rows = [next(batch for batch in self.batches if count_labels(batch))]
        critical, forwards = critical_learning_rate(
            self.model, first_rows, warm.metric.direction, start=2 * directional, dtype=self.how.dtype
        )
        self.work += 0.5 * forwards * count_tokens(first_rows)
        return directional, critical

    def gradient_equivalents(self, tokens: int) -> float:
        """All work, in gradients of the loss over a sample of so many tokens."""
        return round(self.work / tokens + sum(cost.gradient_equivalents for cost in self.costs), 3)
