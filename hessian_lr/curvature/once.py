"""Models that can be differentiated only once, found out before their second derivative is believed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor
from torch.autograd.function import BackwardCFunction
from torch.utils.checkpoint import CheckpointError

from ..errors import NotTwiceDifferentiable

# What torch says where there is no second derivative: of an operation that has none, a Function that says
# so, reentrant checkpoints, and a Function whose backward left the graph.
_SIGNS = (
    "is not implemented",
    "once_differentiable",
    "use_reentrant",
    "does not require grad",
    "double backward",
)

# Functions of others whose backward stays in the graph, and so has a true derivative: RandLoRA's, in PEFT
# (tests/methods/test_derivatives.py holds its products against differences of gradients).
_TRUSTED = {("peft.tuners.randlora.layer", "UniqueBaseGrad")}


@contextmanager
def told_once() -> Iterator[None]:
    """Within it, torch's complaint that there is no second derivative is one of our kind.

    Raises:
        NotTwiceDifferentiable: for it.
    """
    try:
        yield
    except RuntimeError as error:
        if isinstance(error, CheckpointError):
            # What is computed again on the way back is so without ``TwiceDifferentiable``, and fits nothing.
            raise NotTwiceDifferentiable("it has checkpoints of its own") from error
        said = str(error).strip().splitlines()[0] if str(error).strip() else ""
        if isinstance(error, NotImplementedError) or any(sign in said for sign in _SIGNS):
            raise NotTwiceDifferentiable(f"torch cannot differentiate it twice: {said}") from error
        raise


def require_twice(loss: Tensor) -> None:
    """Refuse a loss with somebody's own ``autograd.Function`` in its graph.

    Where such a backward computes outside the graph (a kernel of its own, numpy), torch takes its result for
    a constant: the second derivative then lacks a part, and nothing says so.

    Raises:
        NotTwiceDifferentiable: there is one that is neither of this package nor known to be sound.
    """
    seen, waiting = set(), [loss.grad_fn]
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if isinstance(node, BackwardCFunction):
            function = getattr(type(node), "_forward_cls", type(node))
            known = (function.__module__, function.__qualname__) in _TRUSTED
            if not (known or function.__module__.startswith(f"{__package__}.")):
                raise NotTwiceDifferentiable(
                    f"its graph contains {function.__qualname__}, an autograd.Function whose second "
                    "derivative cannot be trusted"
                )
        waiting += [after for after, _ in node.next_functions]
