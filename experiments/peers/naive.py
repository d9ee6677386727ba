"""The recipe that most studies of sharpness use, written down plainly.

Nothing is kept between products: each runs the model forward, takes the gradient with its graph, and
differentiates g·v. All positions go through the output head and the library's own loss, everything is
float32 and the attention is the plain formula. λ comes from Lanczos on all modules together, or, module
after module, on each one's own parameters.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from hessian_lr.batches import Batch, count_labels
from hessian_lr.curvature.weight_gradients import adapted_layers
from hessian_lr.spectrum.lanczos import dot, start_vector

from .running import TOLERANCE, Trace

# Beyond the 5% that everyone is asked for: this run is also the second, independent truth.
TRUTH_RTOL = 1e-3


def product(
    model: nn.Module, batches: Sequence[Batch], parameters: Sequence[nn.Parameter], vector: Tensor
) -> Tensor:
    """H·v of the token-weighted mean loss, all rebuilt."""
    total = sum(count_labels(batch) for batch in batches)
    pieces = vector.split([p.numel() for p in parameters])
    image = torch.zeros_like(vector)
    for batch in batches:
        loss = model(**batch, use_cache=False).loss * (count_labels(batch) / total)
        gradient = torch.autograd.grad(loss, parameters, create_graph=True)
        along = sum((g.reshape(-1) * v).sum() for g, v in zip(gradient, pieces, strict=True))
        second = torch.autograd.grad(along, parameters)
        image += torch.cat([h.reshape(-1) for h in second])
    return image


def lanczos(matvec: Callable[[Tensor], Tensor], start: Tensor) -> Iterator[tuple[float, float]]:
    """(θ, residual) of the largest Ritz value after each product, for as long as it is asked.

    Sums of millions of terms are float64: in float32 they alone move λ by a part in a thousand.
    """
    basis = [start]
    alphas: list[float] = []
    betas: list[float] = []
    while True:
        image = matvec(basis[-1])
        alphas.append(dot(image, basis[-1]))
        for _ in range(2):
            for column in basis:
                image = image - dot(column, image) * column
        beta = dot(image, image) ** 0.5
        values, vectors = np.linalg.eigh(np.diag(alphas) + np.diag(betas, 1) + np.diag(betas, -1))
        yield float(values[-1]), beta * abs(float(vectors[-1, -1]))
        betas.append(beta)
        basis.append(image / beta)


def joint(model: nn.Module, batches: Sequence[Batch], trace: Trace, seed: int) -> float:
    """λ over all modules together, on to a residual of 0.1%; the 5% rule is recorded on the way."""
    model.set_attn_implementation("eager")
    parameters = [p for p in model.parameters() if p.requires_grad]
    start = start_vector(sum(p.numel() for p in parameters), seed, None, "cpu", torch.float32)

    def matvec(vector: Tensor) -> Tensor:
        trace.check()
        return product(model, batches, parameters, vector)

    for theta, residual in lanczos(matvec, start):
        trace.product(theta, residual)
        if residual <= TOLERANCE * abs(theta):
            trace.stopped(theta)
        if residual <= TRUTH_RTOL * abs(theta):
            return theta
    raise AssertionError("Lanczos ended by itself")


def one_by_one(model: nn.Module, batches: Sequence[Batch], trace: Trace, seed: int, modules: int) -> None:
    """λ of single modules, each to 5% by Lanczos over its parameters alone; the others do not move."""
    model.set_attn_implementation("eager")
    for name, parameters in chosen_modules(model, modules).items():
        start = start_vector(sum(p.numel() for p in parameters), seed, None, "cpu", torch.float32)
        began, count = trace.seconds, 0

        def matvec(vector: Tensor, own: Sequence[nn.Parameter] = parameters) -> Tensor:
            trace.check(products=False)
            return product(model, batches, own, vector)

        for theta, residual in lanczos(matvec, start):
            count += 1
            trace.product(None)
            if residual <= TOLERANCE * abs(theta) or count == trace.max_products:
                break
        trace.modules.append(
            {
                "name": name,
                "value": theta,
                "residual": residual,
                "products": count,
                "seconds": trace.seconds - began,
            }
        )
    trace.stopped(None)


def chosen_modules(model: nn.Module, count: int) -> dict[str, list[nn.Parameter]]:
    """Some adapted modules spread evenly over the model's depth, and nothing else left to train."""
    layers = list(adapted_layers(model).items())
    # The step is prime to the seven modules of a layer, so that every kind has its turn.
    picked = [layers[(i * len(layers)) // count + i % 7] for i in range(min(count, len(layers) // 7))]
    own = {name: [p for p in layer.parameters() if p.requires_grad] for name, layer in picked}
    model.requires_grad_(False)
    for parameters in own.values():
        for parameter in parameters:
            parameter.requires_grad_(True)
    return own
