"""A curvature sample that grows for as long as its size, not the eigensolver, limits what is known of λ."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import nn

from ..batches import Batch
from ..checkpoints import Checkpoints
from ..errors import RequestError
from ..spectrum.lanczos import Progress
from .curvature import Curvature
from .joint import sharpness

FIRST = 8


def grown_sharpness(
    model: nn.Module,
    rows: Sequence[Batch],
    *,
    held_out: Sequence[Batch] | None = None,
    rtol: float = 0.05,
    max_products: int = 40,
    algorithm: str = "lanczos",
    operator: str = "hessian",
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
    progress: Progress | None = None,
    checkpoints: Checkpoints | None = None,
) -> Curvature:
    """λ on a sample that doubles until its sampling error is at most rtol·λ, or the rows run out.

    Each round measures on the first N rows and holds the eigenvector against the next N, which the
    following round adds to the sample. A round on twice the rows costs twice as much, so all of them
    together less than twice the last; where the rows end before they double once more, less than three times.
    Each starts at random, for its certificate's sake.

    Args:
        model: As for ``sharpness``.
        rows: Those it may grow to, one batch each, in random order; the first 8 are the first sample.
        held_out: Others, for the eigenvector of a round on all ``rows``.
        rtol: The relative error aimed at, numerical and sampling.
        max_products, algorithm, operator, dtype, seed, progress, checkpoints: As for ``sharpness``.

    Returns:
        The last round's ``Curvature``, with the cost of all of them, in gradients over its sample.

    Raises:
        RequestError: there is no row; and as for ``sharpness``.
    """
    if not rows:
        raise RequestError("there is no row to measure on")
    size, spent, history = min(FIRST, len(rows)), 0.0, []
    matvecs, seconds = 0, 0.0
    while True:
        unseen = rows[size : 2 * size] or held_out
        found = sharpness(
            model,
            rows[:size],
            held_out=unseen or None,
            rtol=rtol,
            max_products=max_products,
            algorithm=algorithm,
            operator=operator,
            dtype=dtype,
            seed=seed,
            progress=progress,
            checkpoints=checkpoints,
        )
        spent += found.gradient_equivalents * found.tokens
        matvecs, seconds = matvecs + found.matvecs, seconds + found.seconds
        if found.lambda_max is None:
            break
        error = found.sampling_error
        history.append(f"{size}: {found.lambda_max:.4g} ± {'?' if error is None else f'{error:.2g}'}")
        known = error is not None and error <= rtol * abs(found.lambda_max)
        if known or size == len(rows):
            break
        size = min(2 * size, len(rows))
    notes = list(found.notes)
    if len(history) > 1:
        notes.append(f"sample grown (rows: λ ± sampling error): {'; '.join(history)}")
    if found.lambda_max is not None and error is not None and not known:
        notes.append(f"the sampling error still exceeds {rtol:.0%} of λ with all {size} rows it may grow to")
    return replace(
        found,
        matvecs=matvecs,
        gradient_equivalents=round(spent / found.tokens, 3),
        seconds=round(seconds, 3),
        notes=tuple(notes),
    )
