"""The recipe that every run follows beside its setting: optimizer, schedule, clipping."""

from __future__ import annotations

from typing import Any

from ..setting import BETAS, EPSILON, SGD, Setting

#: What a user of transformers' Trainer gets who asks for AdamW with a cosine schedule: gradients
#: clipped to norm 1, no weight decay. Part of every run's key, so a changed recipe repeats its runs.
RECIPE: dict[str, Any] = {
    "adam_beta1": BETAS[0],
    "adam_beta2": BETAS[1],
    "adam_epsilon": EPSILON,
    "weight_decay": 0.0,
    "max_grad_norm": 1.0,
    "lr_scheduler_type": "cosine",
}
#: Plain gradient descent θ ← θ − η·g: no momentum, no weight decay, the same schedule. Gradients are not
#: clipped: a clipped step is at most η long however steep the loss, so that a run beyond 2/λ would bounce
#: instead of diverging, and the learning rate would mean a length. What AdamW makes of the gradient hardly
#: depends on its size; here clipping would be another optimizer.
SGD_RECIPE: dict[str, Any] = {
    "optim": "sgd",
    "weight_decay": 0.0,
    "max_grad_norm": 0.0,  # to the Trainer: do not clip
    "lr_scheduler_type": "cosine",
}
WARMUP_FRACTION = 0.03


def recipe(setting: Setting) -> dict[str, Any]:
    """What the Trainer is told of the setting's optimizer, beside its learning rate."""
    return dict(SGD_RECIPE if setting.optimizer == SGD else RECIPE)
