"""λ by curvlinops: its Hessian operator with SciPy's Lanczos, as its examples have it."""

from __future__ import annotations

from collections import UserDict
from collections.abc import MutableMapping, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from hessian_lr.batches import Batch
from hessian_lr.spectrum.lanczos import start_vector

from .running import TOLERANCE, RunningRitz, Trace


class Shifted(nn.Module):
    """What its Hugging Face example asks for: a module from a dictionary to a matrix of logits."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, data: MutableMapping) -> Tensor:
        logits = self.model(input_ids=data["input_ids"], use_cache=False).logits
        return logits[:, :-1].flatten(0, 1)


class FormulaSiLU(nn.Module):
    """x·σ(x), of which PyTorch has the forward-mode derivative that its fused SiLU lacks."""

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(x)


def joint(
    model: nn.Module, batches: Sequence[Batch], trace: Trace, seed: int, attention: str, formula: bool
) -> float:
    """λ over all modules together.

    Args:
        attention: Of the model: ``"sdpa"`` or ``"eager"``.
        formula: Whether the model's activation is rewritten.
    """
    from curvlinops import HessianLinearOperator
    from scipy.sparse.linalg import LinearOperator, eigsh

    model.set_attn_implementation(attention)
    if formula:
        for module in model.modules():
            if hasattr(module, "act_fn"):
                module.act_fn = FormulaSiLU()
    data = []
    for batch in batches:
        inputs = UserDict(input_ids=batch["input_ids"], labels=batch["labels"][:, 1:])
        data.append((inputs, batch["labels"][:, 1:].flatten()))
    operator = HessianLinearOperator(
        Shifted(model),
        nn.CrossEntropyLoss(),
        [p for p in model.parameters() if p.requires_grad],
        data,
        check_deterministic=False,  # as in its example
        batch_size_fn=lambda inputs: int((inputs["labels"] != -100).sum()),  # a mean over all tokens
    )
    scipy_operator = operator.to_scipy(dtype=np.float32)
    ritz = RunningRitz()

    def matvec(vector: np.ndarray) -> np.ndarray:
        trace.check()
        image = scipy_operator @ vector
        if trace.products:
            trace.product(*ritz.update(torch.from_numpy(vector.copy()), torch.from_numpy(image.copy())))
        else:
            # SciPy's ARPACK first sends the start vector through the operator; its Lanczos begins there.
            trace.product(None)
        return image

    listening = LinearOperator(scipy_operator.shape, matvec=matvec, dtype=np.float32)
    start = start_vector(operator.shape[0], seed, None, "cpu", torch.float32).numpy()
    values, _ = eigsh(listening, k=1, which="LA", v0=start, tol=TOLERANCE)
    trace.stopped(float(values[0]))
    return float(values[0])
