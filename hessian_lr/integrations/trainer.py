"""A learning rate predicted inside transformers' Trainer, and λ followed while it trains."""

from __future__ import annotations

import logging
import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from accelerate.utils import broadcast_object_list  # type: ignore[import-untyped]
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from ..batches import Batch, require_batches
from ..distributed import FAILURES
from ..errors import HessianLRError, RequestError
from ..measure import SharpnessTracker
from ..measure.warmup import split_batches
from ..predict import Calibration, Prediction, predict_learning_rate
from ..setting import check_counts
from .differences import differences, left_start
from .rows import Sample, sample
from .schedule import adamw, set_learning_rate
from .unwrap import unwrapped

logger = logging.getLogger(__name__)

PREDICTED = "predicted_learning_rate"
# Why nothing was measured.
READ = "read from the checkpoint's log"
AGAIN = "as for the run before: the adapter has left its start, which predictions are for"
NO_COST = {"prediction_seconds": 0.0, "prediction_gradient_equivalents": 0.0}


class PredictedLearningRate(TrainerCallback):
    """Sets the learning rate of a run from a prediction before its first step; follows λ afterwards.

    ::

        trainer = Trainer(model, args, train_dataset=rows)  # or TRL's SFTTrainer
        trainer.add_callback(PredictedLearningRate(trainer, track_every=50))
        trainer.train()

    Before step 0 it measures the Trainer's model on rows of its training set, put into batches by its own
    collator, and makes the predicted learning rate the peak of the optimizer and its schedule, in the place
    of ``args.learning_rate``. The weights, the random states and the order of the data are left as they
    were, so that the run is the one that this learning rate would have had without the callback. The
    prediction, its range and its cost are logged through the Trainer's reporters and stand in
    ``state.log_history``, from where a run that resumes from a checkpoint reads them. A run that began
    without a prediction keeps its learning rate when it resumes; what a prediction knows nothing of (another
    loss, other betas, an adapter that was trained before) is said in a warning. A second ``train()`` trains
    on from where the first ended, and a prediction is for an adapter at its start: it takes the first one's
    learning rate again, unless the Trainer has a ``model_init``, which makes the model anew.

    With ``track_every``, the log gets ``sharpness`` (λ), ``sharpness_preconditioned`` (λ_P, in the geometry
    that the run's AdamW has then) and ``sharpness_times_lr`` (λ_P·η: stable on a quadratic below 38 for
    β₁ = 0.9), and beside the first two ``_residual``: one of more than a few percent of its value says that
    the value may be too low (``SharpnessTracker``). An update costs about ten gradients over the ``samples``
    rows, early in a run up to three times as many. Where one fails, tracking ends with a warning and the
    run goes on.

    Args:
        trainer: The Trainer, or a subclass that trains with the token-level cross-entropy of ``labels``.
            The optimizer must be torch's AdamW.
        samples: Rows on which curvature is measured; the warm-up before it takes ten steps' rows.
        track_every: Optimizer steps between two measurements of λ; None: it is not followed.
        batches: Batches to measure on instead of rows of the training set, as for
            ``predict_learning_rate``: at least two, each of as many rows as an optimizer step has.
        calibration: Constants; None: those that come with the package.

    Raises:
        RequestError: ``samples`` is no whole number from 1 on (it does not grow: there is no ``"auto"``
            here), or ``track_every`` is less than one. When training begins: another optimizer than AdamW,
            a schedule that may keep a learning rate of its own, a model that is sharded over devices, fewer
            than two batches, or batches without what the loss needs.
        HessianLRError: when training begins: no learning rate could be predicted.
    """

    def __init__(
        self,
        trainer: Trainer,
        *,
        samples: int = 8,
        track_every: int | None = None,
        batches: Sequence[Batch] | None = None,
        calibration: Calibration | None = None,
    ) -> None:
        if track_every is not None and track_every < 1:
            raise RequestError(f"track_every must be at least 1 step, or None, not {track_every!r}")
        check_counts(samples=samples)
        self.trainer = trainer
        self.samples = samples
        self.track_every = track_every
        self.batches = batches
        self.calibration = calibration
        self.tracker: SharpnessTracker | None = None
        # Of the last run that began.
        self.told: dict[str, float] | None = None

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Predict, or read the prediction of the checkpoint's run, and set the learning rate."""
        if self.trainer.is_fsdp_enabled or self.trainer.is_deepspeed_enabled:
            raise RequestError(
                "the model is sharded (FSDP or DeepSpeed), which the Trainer does in its own ways: predict "
                "first, whole (`hessian-lr predict --peft-config FOLDER`) or sharded by fully_shard() ("
                "inside across_ranks(sharded=True)), and set learning_rate"
            )
        optimizer = adamw(kwargs["optimizer"])
        told: dict[str, float] | None = next((log for log in state.log_history if PREDICTED in log), None)
        known = told is not None
        how = READ if known else ""
        if not known and state.global_step:
            logger.warning(
                "this run began without a predicted learning rate, at step %d it keeps the one it has",
                state.global_step,
            )
            if self.track_every is not None:
                self._follow(args, self._drawn(args, kwargs["train_dataloader"]))
            return
        if state.is_hyper_param_search and "learning_rate" in (state.trial_params or {}):
            raise RequestError(
                "hyperparameter_search() draws learning_rate, and this callback would put its own in the "
                "place of every trial's: search without the callback, in the range that "
                "hessian_lr.integrations.suggest_learning_rate gives, or leave the rate out of the search"
            )
        for difference in differences(args, self.trainer):
            logger.warning("the prediction knows nothing of %s", difference)
        # An optimizer that knows its parameters has moved them; model_init gives a new one.
        if told is None and self.told is not None and optimizer.state:
            told, how = self.told | NO_COST, AGAIN
        if told is None or self.track_every is not None:
            found = self._drawn(args, kwargs["train_dataloader"])
            if told is None:
                prediction = self._predict(args, state, kwargs["model"], found)
                # Each process has measured; rounding may differ, and all must train at one rate.
                (told,) = broadcast_object_list([_log_of(prediction)])
                with unwrapped(kwargs["model"]) as model:
                    for difference in left_start(model, optimizer):
                        logger.warning("the prediction knows nothing of %s", difference)
            if self.track_every is not None:
                self._follow(args, found)
        self.told = told
        lr = told[PREDICTED]
        asked = args.lr_scheduler_kwargs
        floor = asked.get("min_lr") if isinstance(asked, dict) else None
        before = set_learning_rate(optimizer, kwargs["lr_scheduler"], lr, floor)
        args.learning_rate = lr
        if not known:
            self._log(told, control)
        if state.is_world_process_zero:
            _say(told, before, how)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Measure λ and λ_P where it is time to."""
        if self.tracker is None or self.track_every is None or state.global_step % self.track_every:
            return
        optimizer = adamw(kwargs["optimizer"])
        try:
            with unwrapped(kwargs["model"]) as model:
                found = self.tracker.update(model, state.global_step, optimizer)
        except FAILURES as error:
            logger.warning("sharpness is no longer followed, from step %d on: %s", state.global_step, error)
            self.tracker = None
            return
        scaled, residual = found.lambda_preconditioned, found.residual_preconditioned
        assert scaled is not None and residual is not None
        told = {
            "sharpness": found.lambda_max,
            "sharpness_residual": found.residual,
            "sharpness_preconditioned": scaled,
            "sharpness_preconditioned_residual": residual,
            "sharpness_times_lr": scaled * optimizer.param_groups[0]["lr"],
        }
        self._log(told, control)

    def _follow(self, args: TrainingArguments, found: Sample) -> None:
        self.tracker = SharpnessTracker(found.measure, dtype=_dtype(args), seed=args.seed)

    def _drawn(self, args: TrainingArguments, dataloader: Any) -> Sample:
        with _same_random_states():
            return self._sample(args, dataloader)

    def _sample(self, args: TrainingArguments, dataloader: Any) -> Sample:
        if self.batches is not None:
            require_batches(self.batches)
            if len(self.batches) < 2:
                raise RequestError("batches must be at least two: some to warm up on, some to measure on")
            rows, size = len(self.batches[0]["input_ids"]), self.trainer.get_total_train_batch_size(args)
            if rows != size:
                logger.warning(
                    "the callback's batches have %d rows, a step of training %d: λ_P will be that of other "
                    "batches' noise; put as many rows into one as a step has",
                    rows,
                    size,
                )
            return Sample(*split_batches(self.batches), ())
        return sample(
            dataloader.dataset,
            dataloader.collate_fn,
            batch_size=self.trainer.get_total_train_batch_size(args),
            samples=self.samples,
            seed=args.seed,
        )

    def _predict(
        self, args: TrainingArguments, state: TrainerState, model: torch.nn.Module, found: Sample
    ) -> Prediction:
        with unwrapped(model) as inner:
            prediction = predict_learning_rate(
                inner,
                found.measure,
                warmup_batches=found.warmup,
                steps=state.max_steps,
                batch_size=self.trainer.get_total_train_batch_size(args),
                dtype=_dtype(args),
                calibration=self.calibration,
                seed=args.seed,
            )
        if prediction.lr is None:
            raise HessianLRError(
                f"no learning rate could be predicted: {'; '.join(prediction.notes)}. Remove the callback to "
                "train at args.learning_rate"
            )
        for note in (*found.notes, *prediction.notes):
            logger.warning("%s", note)  # beside the rate, which says nothing of them
        return prediction

    def _log(self, told: dict[str, float], control: TrainerControl) -> None:
        """Log through the Trainer, whose own next log stays as it would be."""
        # The handler takes any log for the one that was due.
        due = control.should_log
        # The base class's: subclasses add what they have gathered since their last log, and clear it.
        Trainer.log(self.trainer, dict(told))
        control.should_log = due


def _log_of(prediction: Prediction) -> dict[str, float]:
    assert prediction.lr is not None and prediction.lr_low is not None and prediction.lr_high is not None
    told = {
        PREDICTED: prediction.lr,
        f"{PREDICTED}_low": prediction.lr_low,
        f"{PREDICTED}_high": prediction.lr_high,
        "prediction_seconds": prediction.seconds,
        "prediction_gradient_equivalents": prediction.gradient_equivalents,
    }
    # Where it could not be had, another law has predicted, and a note says why.
    if prediction.adam is not None:
        told["prediction_sharpness_preconditioned"] = prediction.adam.lambda_preconditioned
    return told


def _say(told: dict[str, float], before: float, how: str) -> None:
    # A warning, because it replaces what the user wrote.
    logger.warning(
        "learning rate %.2e (range %.1e to %.1e), %s; it replaces %.2e",
        told[PREDICTED],
        told[f"{PREDICTED}_low"],
        told[f"{PREDICTED}_high"],
        how
        or f"predicted in {told['prediction_seconds']:.1f} s for the work of "
        f"{told['prediction_gradient_equivalents']:.0f} gradients over the measured rows",
        before,
    )


def _dtype(args: TrainingArguments) -> torch.dtype:
    return torch.bfloat16 if args.bf16 else torch.float32


@contextmanager
def _same_random_states() -> Iterator[None]:
    """Collators and datasets may draw; what they drew here must not change the run."""
    python_state, numpy_state = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng(range(torch.cuda.device_count())):
            yield
    finally:
        random.setstate(python_state)
        np.random.set_state(numpy_state)
