"""The learning-rate range test, a baseline: one short run whose learning rate rises from step to step."""

from __future__ import annotations

import copy
import math
from typing import Any

import numpy as np
import torch

from hessian_lr import methods
from hessian_lr.batches import count_labels
from hessian_lr.curvature.loss import summed_loss, trainable
from hessian_lr.curvature.modes import quiet_model
from hessian_lr.data import TaskData, make_batches
from hessian_lr.models import LoadedModel
from hessian_lr.setting import BETAS, EPSILON, Setting

STEPS, LOWEST, HIGHEST = 100, 1e-6, 1.0
SMOOTHING = 0.9
STOP = 2.0  # times the smallest smoothed loss: what follows would only be divergence


def range_test(setting: Setting, loaded: LoadedModel, data: TaskData) -> dict[str, Any]:
    """Learning rates by the three usual readings of the curve, and the rows trained on."""
    pad_id = loaded.tokenizer.pad_token_id
    start = methods.initial_batches(setting, data.train, pad_id)
    model = methods.build(copy.deepcopy(loaded.model), setting, start)
    needed = data.train[: STEPS * setting.batch_size]
    batches = make_batches(needed, setting.batch_size, pad_id)
    rates, losses = _run(model, batches)
    return {**_readings(rates, losses), "range_test_cost": float(len(rates) * setting.batch_size)}


def _run(model: Any, batches: list[Any]) -> tuple[np.ndarray, np.ndarray]:
    parameters = trainable(model)
    optimizer = torch.optim.AdamW(parameters, lr=LOWEST, betas=BETAS, eps=EPSILON, weight_decay=0.0)
    rates, smooth, average, best = [], [], 0.0, math.inf
    with quiet_model(model), torch.enable_grad():
        for step in range(STEPS):
            batch = batches[step % len(batches)]
            rate = LOWEST * (HIGHEST / LOWEST) ** (step / (STEPS - 1))
            loss = summed_loss(model, batch) / max(1, count_labels(batch))
            if not math.isfinite(float(loss.detach())):
                break
            average = SMOOTHING * average + (1 - SMOOTHING) * float(loss.detach())
            smoothed = average / (1 - SMOOTHING ** (step + 1))
            best = min(best, smoothed)
            rates.append(rate)
            smooth.append(smoothed)
            if smoothed > STOP * best:
                break
            optimizer.param_groups[0]["lr"] = rate
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
    return np.array(rates), np.array(smooth)


def _readings(rates: np.ndarray, losses: np.ndarray) -> dict[str, float]:
    """Where the loss falls fastest over log η; a tenth of where it is least; the valley.

    The valley is read as fastai does: two thirds along the longest decreasing stretch.
    """
    x = np.log(rates)
    steepest = rates[int(np.argmin(np.gradient(losses, x)))]
    tenth = rates[int(np.argmin(losses))] / 10
    longest, begin = (0, 0), 0
    for index in range(1, len(losses) + 1):
        if index == len(losses) or losses[index] >= losses[index - 1]:
            if index - begin > longest[1] - longest[0]:
                longest = (begin, index)
            begin = index
    valley = rates[longest[0] + (longest[1] - 1 - longest[0]) * 2 // 3]
    return {
        "range_test_steepest": float(steepest),
        "range_test_minimum_tenth": float(tenth),
        "range_test_valley": float(valley),
    }
