"""The dense truth of each module's block, and how single modules are compared."""

from __future__ import annotations

import torch
from tiny_models import adapted, dense_hessian
from tolerances import RTOL_TIGHT

from hessian_lr.curvature import HessianOperator

TIGHT = {"rtol": RTOL_TIGHT, "max_products": 200}

KEEP, REBUILD = 10**12, 0


def cut(batches):
    """The microbatches that the sample is measured in."""
    return HessianOperator(adapted(), batches).batches


def values(spectrum):
    return {module.name: module.lambda_max for module in spectrum.modules}


def own_names(model, module):
    """The module's trainable parameters, found by their names alone."""
    return [n for n, p in model.named_parameters() if p.requires_grad and n.startswith(f"{module.name}.")]


def dense_blocks(model, batches, spectrum):
    """Eigenvalues of each module's diagonal block of the dense Hessian, ascending."""
    names = [name for name, p in model.named_parameters() if p.requires_grad]
    sizes = [p.numel() for p in model.parameters() if p.requires_grad]
    places_of = dict(zip(names, torch.arange(sum(sizes)).split(sizes), strict=True))
    own = {m.name: torch.cat([places_of[n] for n in own_names(model, m)]) for m in spectrum.modules}
    full = dense_hessian(model, batches)
    return {name: torch.linalg.eigvalsh(full[rows][:, rows]) for name, rows in own.items()}
