"""The Hessian in Adam's own geometry, and the step that Adam takes in it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .operator import HessianOperator, flatten


class PreconditionedOperator:
    """P^-½ · H · P^-½ for a positive diagonal P.

    Its largest eigenvalue is the preconditioned sharpness λ_P; Adam is stable on a quadratic as
    long as λ_P < (2 + 2β₁) / ((1 − β₁)·η) (Cohen et al. 2022, arXiv 2207.14484).

    Args:
        hessian: H.
        diagonal: P, shape (n,), every entry positive.
    """

    def __init__(self, hessian: HessianOperator, diagonal: Tensor) -> None:
        self.hessian = hessian
        self.size = hessian.size
        self.root = diagonal.to(hessian.device).rsqrt()

    def matvec(self, vector: Tensor) -> Tensor:
        """P^-½·H·P^-½·v, shape (n,)."""
        return self.root * self.hessian.matvec(self.root * vector)


def adam_preconditioner(optimizer: torch.optim.Adam, parameters: Sequence[Tensor]) -> Tensor:
    """P = (1 − β₁^t)·(√(v_t / (1 − β₂^t)) + ε), shape (n,), from the state of Adam or AdamW.

    With P so defined, Adam's step is −η·P⁻¹·m_t (Cohen et al. 2022, arXiv 2207.14484, section 2).
    """
    beta1, beta2, epsilon, t = _hyperparameters(optimizer, parameters)
    second = flatten([optimizer.state[p]["exp_avg_sq"] for p in parameters])
    return (1 - beta1**t) * ((second / (1 - beta2**t)).sqrt() + epsilon)


def adam_direction(optimizer: torch.optim.Adam, parameters: Sequence[Tensor]) -> Tensor:
    """u = P⁻¹·m_t, shape (n,): Adam's last step was −η·u."""
    first = flatten([optimizer.state[p]["exp_avg"] for p in parameters])
    return first / adam_preconditioner(optimizer, parameters)


def stability_threshold(beta1: float) -> float:
    """(2 + 2β₁) / (1 − β₁), the product η·λ_P at which Adam becomes unstable; 38 for β₁ = 0.9."""
    return (2 + 2 * beta1) / (1 - beta1)


def _hyperparameters(
    optimizer: torch.optim.Adam, parameters: Sequence[Tensor]
) -> tuple[float, float, float, int]:
    group = optimizer.param_groups[0]
    beta1, beta2 = group["betas"]
    return beta1, beta2, group["eps"], int(optimizer.state[parameters[0]]["step"])
