"""Many tensors as one vector, wherever they lie, and back."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from ..distributed import laid_out, whole


def flatten(tensors: Sequence[Tensor]) -> Tensor:
    """Tensors of any shapes as one vector, in order, on the device of the first.

    All of it on every process, also of sharded ones.
    """
    device = tensors[0].device
    return torch.cat([whole(tensor.detach()).reshape(-1).to(device) for tensor in tensors])


def unflatten(vector: Tensor, like: Sequence[Tensor]) -> list[Tensor]:
    """The inverse of ``flatten``, each piece on its tensor's device: a view of ``vector`` if it is there."""
    return [piece.to(tensor.device) for piece, tensor in zip(views(vector, like), like, strict=True)]


def views(vector: Tensor, like: Sequence[Tensor]) -> list[Tensor]:
    """Views of ``vector`` with the shapes of ``like``."""
    pieces = vector.split([tensor.numel() for tensor in like])
    return [piece.view(tensor.shape) for piece, tensor in zip(pieces, like, strict=True)]


@contextmanager
def displaced(parameters: Sequence[Tensor], direction: Tensor, distance: float) -> Iterator[None]:
    """The parameters at θ + distance·u, u = ``direction`` of shape (n,); they are put back bit for bit."""
    values = [parameter.detach().clone() for parameter in parameters]
    try:
        with torch.no_grad():
            for parameter, piece in zip(parameters, unflatten(direction, parameters), strict=True):
                parameter.add_(laid_out(distance * piece.to(parameter.dtype), parameter))
        # Autocast remembers what it cast of the weights, also after they were written to.
        torch.clear_autocast_cache()
        yield
    finally:
        with torch.no_grad():
            for parameter, value in zip(parameters, values, strict=True):
                parameter.copy_(value)
        torch.clear_autocast_cache()


def add_to(total: Tensor, tensors: Sequence[Tensor]) -> None:
    """Add tensors to the vector that they flatten to, without a second vector of that size."""
    for target, tensor in zip(views(total, tensors), tensors, strict=True):
        target.add_(tensor.detach().to(total.device))


def inner(left: Sequence[Tensor], right: Sequence[Tensor]) -> float:
    """Σ left·right in float64, piece by piece: copies of whole vectors cost more than the sum."""
    return float(
        sum(
            torch.dot(a.detach().double().reshape(-1), b.double().reshape(-1)).to(left[0].device)
            for a, b in zip(left, right, strict=True)
        )
    )
