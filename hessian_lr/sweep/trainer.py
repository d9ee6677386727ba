"""transformers' Trainer, made silent and made to leave no trace in the process."""

from __future__ import annotations

import math
import os
import random
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import datasets
import numpy as np
import torch
import transformers
from accelerate.state import (  # type: ignore[import-untyped]
    AcceleratorState,
    GradientState,
    PartialState,
)
from transformers import Trainer, TrainerCallback, TrainingArguments

from ..data import Example, make_batches
from ..methods import method_of
from ..setting import Setting
from .recipe import WARMUP_FRACTION, recipe

# What accelerate takes from the environment: its own settings, and that there are other ranks.
_ACCELERATE = "ACCELERATE_"
_RANKS = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE")


@dataclass(frozen=True)
class Done:
    """How a training went: optimizer steps, tokens without padding, whether its loss stayed finite."""

    steps: int
    tokens: int
    finite: bool


def fit(
    model: torch.nn.Module,
    examples: Sequence[Example],
    setting: Setting,
    lr: float,
    *,
    dtype: torch.dtype,
    pad_id: int,
) -> Done:
    """Train ``model``'s trainable parameters in place, on the device they are on.

    With the setting's optimizer, or with that of its method, of AdamW's recipe.

    Nothing is printed or kept on disk. Random states, the current CUDA device and accelerate's
    process-wide state are as they were afterwards.
    """
    device = next(model.parameters()).device
    optimizer, told = _optimizer(model, setting, lr)
    stop = _StopWhenNotFinite()
    with ExitStack() as stack:
        stack.enter_context(_no_trace(device))
        arguments = _OneDevice(
            output_dir=os.devnull,  # that it has one is all that is asked
            learning_rate=lr,
            max_steps=setting.steps,
            warmup_steps=math.ceil(WARMUP_FRACTION * setting.steps),
            per_device_train_batch_size=setting.batch_size,
            seed=setting.seed,
            data_seed=setting.seed,
            bf16=dtype is torch.bfloat16,
            use_cpu=device.type == "cpu",
            dataloader_pin_memory=device.type == "cuda",
            save_strategy="no",
            eval_strategy="no",
            # A finite loss must be seen at every step; the filter would hide the one that is not.
            logging_strategy="steps",
            logging_steps=1,
            logging_nan_inf_filter=False,
            include_num_input_tokens_seen="non_padding",
            disable_tqdm=True,
            report_to=[],
            remove_unused_columns=False,
            **told,
        )

        def collate(rows: list[dict[str, list[int]]]) -> dict[str, torch.Tensor]:
            padded = [Example(tuple(row["input_ids"]), tuple(row["labels"])) for row in rows]
            return dict(make_batches(padded, len(padded), pad_id)[0])

        trainer = Trainer(
            model=model,
            args=arguments,
            data_collator=collate,
            train_dataset=datasets.Dataset.from_dict(
                {
                    "input_ids": [list(example.input_ids) for example in examples],
                    "labels": [list(example.labels) for example in examples],
                }
            ),
            callbacks=[stop],
            optimizers=(optimizer, None),
        )
        trainer.remove_callback(transformers.PrinterCallback)  # it writes every log to standard output
        trainer.train()
        # Mixed precision wrapped the model's forward; the caller's model must be the one it gave.
        trainer.accelerator.unwrap_model(trainer.model_wrapped, keep_fp32_wrapper=False)
        state = trainer.state
    return Done(steps=state.global_step, tokens=int(state.num_input_tokens_seen), finite=stop.finite)


def _optimizer(
    model: torch.nn.Module, setting: Setting, lr: float
) -> tuple[torch.optim.Optimizer | None, dict[str, Any]]:
    """The method's own optimizer, or None for the Trainer's, and what the Trainer keeps of the recipe."""
    method, told = method_of(setting), recipe(setting)
    if method.optimizer is None:
        return None, {"optim": "adamw_torch"} | told
    options: dict[str, Any] = {
        "betas": (told["adam_beta1"], told["adam_beta2"]),
        "eps": told["adam_epsilon"],
    }
    if method.clips:
        options["max_norm"] = told["max_grad_norm"]
        told["max_grad_norm"] = 0.0  # to the Trainer: do not
    return method.optimizer(model, lr, **options), told


class _StopWhenNotFinite(TrainerCallback):
    """Ends the training at the first NaN or infinite loss: what follows can only be wasted."""

    def __init__(self) -> None:
        self.finite = True

    def on_log(
        self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any
    ) -> None:
        loss = (logs or {}).get("loss")
        if loss is not None and not math.isfinite(loss):
            self.finite = False
            control.should_training_stop = True


class _OneDevice(TrainingArguments):
    """The current device only. The Trainer would take the first GPU and split batches over all others.

    Nothing is saved, so that no folder is made either, which a killed process would leave behind.
    """

    @property
    def should_save(self) -> bool:
        return False

    @cached_property
    def _setup_devices(self) -> torch.device:
        current = torch.cuda.current_device() if torch.cuda.is_available() else None
        device = super()._setup_devices
        if device.type != "cuda" or current is None:
            return device
        self._n_gpu = 1
        torch.cuda.set_device(current)
        return torch.device("cuda", current)


@contextmanager
def _no_trace(device: torch.device) -> Iterator[None]:
    """Restore what Trainer and accelerate change in the process: they seed and configure globally.

    A run is what its key says: in between, the environment tells them nothing.
    """
    python_state, numpy_state = random.getstate(), np.random.get_state()
    shared = [kind._shared_state for kind in (PartialState, AcceleratorState, GradientState)]
    before = [dict(state) for state in shared]
    with ExitStack() as stack:
        stack.enter_context(torch.random.fork_rng(range(torch.cuda.device_count())))
        if device.type == "cuda":
            stack.enter_context(torch.cuda.device(device))
        environment = _taken_out()
        try:
            yield
        finally:
            random.setstate(python_state)
            np.random.set_state(numpy_state)
            for state, values in zip(shared, before, strict=True):
                state.clear()
                state.update(values)
            _taken_out()
            os.environ.update(environment)


def _taken_out() -> dict[str, str]:
    """The environment's variables that accelerate heeds, which are gone from it."""
    names = [name for name in os.environ if name.startswith(_ACCELERATE) or name in _RANKS]
    return {name: os.environ.pop(name) for name in names}
