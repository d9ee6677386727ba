"""λ by hessian-eigenthings: Lanczos with a number of steps that is fixed beforehand."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from hessian_lr.batches import Batch, count_labels

from .running import TOLERANCE, RunningRitz, Trace

# Its own number for its own k = 10. For k = 1 it would take 2, which find nothing.
STEPS = 20


def joint(
    model: nn.Module, batches: Sequence[Batch], trace: Trace, seed: int, weighted: bool, method: str
) -> float:
    """λ over all modules together.

    Args:
        weighted: Whether the loss makes up for the equal weight that unequal batches are given.
        method: ``"autograd"`` or ``"finite_difference"``, its two kinds of product.
    """
    from hessian_eigenthings import HessianOperator, lanczos
    from hessian_eigenthings.loss_fns import hf_lm_loss

    if method == "autograd":
        model.set_attn_implementation("eager")
    share = sum(count_labels(batch) for batch in batches) / len(batches)

    def weighted_loss(model: nn.Module, batch: dict[str, Any]) -> Tensor:
        return model(**batch, num_items_in_batch=share).loss

    ritz = RunningRitz()

    class Listening(HessianOperator):
        def matvec(self, v: Tensor) -> Tensor:
            trace.check()
            image = super().matvec(v)
            trace.product(*ritz.update(v, image))
            return image

    operator = Listening(model, batches, weighted_loss if weighted else hf_lm_loss(), method=method)
    steps = min(STEPS, trace.max_products)
    found = lanczos(operator, k=1, max_iter=steps, which="LA", tol=TOLERANCE, seed=seed)
    value = float(found.eigenvalues[0])
    if not bool(found.converged[0]):
        trace.notes.append(f"residual {float(found.residuals[0]):.3g} after its {steps} steps")
    trace.stopped(value)
    return value
