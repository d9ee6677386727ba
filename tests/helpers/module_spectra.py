"""Spectra of modules, made up without a model."""

from __future__ import annotations

import dataclasses

import torch

from hessian_lr.measure import ModuleSharpness, ModuleSpectrum

KINDS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def made_up(seed=0, scale=1.0, layers=30, kinds=KINDS, **changed):
    """A spectrum without a model: λ spread over two decades."""
    draw = torch.Generator().manual_seed(seed)
    modules = [
        ModuleSharpness(
            name=f"layers.{layer}.{kind}",
            layer=layer,
            kind=kind,
            parameters=10,
            lambda_max=scale * 10 ** float(torch.randn((), generator=draw)),
            lambda_upper=None,
            lambda_min=None,
            residual=0.0,
            status="converged",
            products=3,
        )
        for layer in range(layers)
        for kind in kinds
    ]
    modules[0] = dataclasses.replace(modules[0], **changed)
    return ModuleSpectrum(tuple(modules), 0.95, 3 * len(modules), 1.0, 1.0, 1, 1.0, 1)
