"""The whole spectrum of an adapter's Hessian: how its eigenvalues are distributed."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from ..batches import Batch
from ..curvature.graph_operator import GraphOperator
from ..curvature.loss_operator import LossOperator
from ..curvature.plan import free_memory
from ..distributed import team
from ..errors import unknown_name
from ..setting import check_counts
from ..spectrum import SpectralDensity, spectral_density
from ..spectrum.density import check_probes
from ..spectrum.lanczos import Progress
from .how import vectors_of
from .joint import OPERATORS

# Of the memory that is free beside one graph, the share that the bases of all probes may fill.
BASES_SHARE = 0.25


def density(
    model: nn.Module,
    batches: Sequence[Batch],
    *,
    probes: int = 4,
    steps: int = 20,
    operator: str = "hessian",
    dtype: torch.dtype = torch.float32,
    memory_budget: int | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> SpectralDensity:
    """The spectral density of the loss Hessian over the model's trainable parameters.

    The model, its modes, the random state and global flags are left as they were found. Where graphs are
    rebuilt and there is room for the bases of all probes, these go in lock-step and share each rebuilt graph:
    (probes + 1) · steps gradients in place of 2 · probes · steps.

    Args:
        model: A causal language model with an adapter: what requires a gradient is measured.
        batches: The sample, as for ``sharpness``.
        probes: Random vectors, at least two. Four tell their scatter; standard errors fall with their
            square root.
        steps: Lanczos steps from each, enough to tell bulk from outliers: the resolution. Together
            probes · steps products.
        operator: As for ``sharpness``.
        dtype: Precision of the products: float32, bfloat16 (autocast), or float64.
        memory_budget: Bytes that kept graphs may fill (0: rebuild all; None: decide here).
        seed: Seed of the probes.
        progress: Called after each product with (products, all products, largest Ritz value, its residual).

    Raises:
        RequestError: as ``sharpness`` for the model, the sample, the operator and the seed; fewer than two
            probes, or no step.
        NonFiniteError: the loss or a product is NaN or infinite.
        NotTwiceDifferentiable: the Hessian was asked for of a model that has none.
    """
    if operator not in OPERATORS:
        raise unknown_name("operator", operator, OPERATORS)
    check_counts(seed=seed)
    check_probes(probes, steps)
    matrix = OPERATORS[operator](model, batches, dtype=dtype, memory_budget=memory_budget)
    try:
        return spectral_density(
            matrix.matvec,
            matrix.size,
            matmat=matrix.matmat if _in_lock_step(matrix, probes * steps) else None,
            probes=probes,
            steps=steps,
            seed=seed,
            progress=progress,
            **vectors_of(matrix),
        )
    finally:
        matrix.release()


def _in_lock_step(matrix: LossOperator, vectors: int) -> bool:
    """Whether products of several vectors cost less than one after another, with so many kept in memory."""
    if not isinstance(matrix, GraphOperator):
        return False
    # Before graphs are built, which would be in vain, and when it is known what they leave.
    return _fits(matrix, vectors) and matrix.rebuilds() and _fits(matrix, vectors)


def _fits(matrix: GraphOperator, vectors: int) -> bool:
    """Whether every rank has room for so many vectors, beside the largest graph as far as it is known."""
    size = matrix.size * vectors_of(matrix)["dtype"].itemsize
    room = BASES_SHARE * (free_memory(matrix.device) - matrix.plan.largest)
    # Main memory is shared by the ranks of a machine: by all, for all that is known of where they run.
    sharing = team().size if matrix.device.type == "cpu" else 1
    lacking = torch.tensor([float(sharing * vectors * size > room)], device=matrix.device)
    with team().summing(lacking):
        pass
    return not lacking.item()
