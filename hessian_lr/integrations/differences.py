"""What makes a Trainer's run another than those that predictions are for."""

from __future__ import annotations

from typing import Any

import torch
from peft.tuners.lora import LoraLayer
from torch import nn
from transformers import Trainer, TrainingArguments

from ..curvature.caveats import added_losses
from ..setting import BETAS, EPSILON
from .schedule import stays_up

_FOR = "it is for plain cross-entropy"
# Up to here the best learning rate of a small model's runs stayed where it was; at 1e-3 it was another. It
# stayed, too, with noise on the embeddings (NEFTune), weight decay, another clipping and a linear schedule.
_LARGEST_EPSILON = 1e-5
# PEFT's starts (``init_lora_weights``) at which every B is 0.
_ZERO_B = (True, "gaussian", "eva")


def differences(args: TrainingArguments, trainer: Trainer) -> list[str]:
    """Each, with what predictions are for instead; none where nothing is known to differ."""
    found = []
    if args.label_smoothing_factor:
        found.append(f"label_smoothing_factor={args.label_smoothing_factor:g}: {_FOR}")
    if getattr(trainer, "compute_loss_func", None) is not None:
        found.append(f"compute_loss_func: {_FOR}")
    # To call it and see would count in what subclasses gather for their logs.
    owner = next(kind for kind in type(trainer).__mro__ if "compute_loss" in vars(kind))
    if owner is not Trainer and owner.__module__.partition(".")[0] != "trl":
        found.append(f"{owner.__name__}.compute_loss, if that is another loss: {_FOR}")
    # TRL's name for a loss of its own.
    if (kind := getattr(args, "loss_type", None)) not in (None, "nll", "chunked_nll"):
        found.append(f"loss_type={kind!r}: {_FOR}")
    if trainer.model is not None:
        found += [f"{loss}: {_FOR}" for loss in added_losses(trainer.model)]
    if (args.adam_beta1, args.adam_beta2) != BETAS:
        found.append(
            f"Adam's betas {args.adam_beta1:g}, {args.adam_beta2:g}: it is for {BETAS[0]}, {BETAS[1]}"
        )
    if args.adam_epsilon > _LARGEST_EPSILON:
        found.append(f"adam_epsilon={args.adam_epsilon:g}: it is for {EPSILON:g}")
    if stays_up(trainer.lr_scheduler, trainer.state.max_steps):
        found.append("a constant schedule: it is for one that falls to 0; the lower half of the range fits")
    return found


def left_start(model: nn.Module, optimizer: torch.optim.Optimizer) -> list[str]:
    """What says that the adapter is no longer at its start; none where nothing does.

    Args:
        model: The model, wrapped by nothing but PEFT.
        optimizer: The run's, before its first step.
    """
    start = "it is for one at its start"
    if optimizer.state:
        return [f"an adapter that this Trainer has trained before: {start}"]
    if _has_b_beyond_zero(model):
        return [f"an adapter whose B is not 0, as of one trained before or started your own way: {start}"]
    return []


def _has_b_beyond_zero(model: nn.Module) -> bool:
    configs: Any = getattr(model, "peft_config", {})
    layers: list[Any] = [module for module in model.modules() if isinstance(module, LoraLayer)]
    return any(
        bool(layer.lora_B[name].weight.any())
        for layer in layers
        if isinstance(
            getattr(layer, "lora_B", None), nn.ModuleDict
        )  # AdaLoRA's start has another factor of 0
        for name in layer.active_adapters
        if name in layer.lora_B and getattr(configs.get(name), "init_lora_weights", None) in _ZERO_B
    )
