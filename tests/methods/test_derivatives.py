"""Every method's first and second derivatives, and what PEFT's DoRA holds constant in its own."""

from __future__ import annotations

import pytest
import torch
from peft import PeftModel
from peft.tuners.lora.dora import DoraLinearLayer
from tiny_methods import (
    NAMES,
    batches,
    build,
    gpt2,
    perturb,
    setting,
    tokens,
)

from hessian_lr.curvature.operator import HessianOperator

pytestmark = pytest.mark.usefixtures("one_thread")


def gradient(model: PeftModel, *, graph: bool = False) -> torch.Tensor:
    """∇L over the trained parameters in float64, L the mean cross-entropy of next tokens."""
    ids = tokens()
    # transformers' own loss would fall back to float32.
    loss = torch.nn.functional.cross_entropy(model(ids).logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss, trained, create_graph=graph)])


def shifted_gradient(model: PeftModel, direction: torch.Tensor, step: float) -> torch.Tensor:
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    pieces = direction.split([parameter.numel() for parameter in trained])
    with torch.no_grad():
        saved = [parameter.clone() for parameter in trained]
        for parameter, piece in zip(trained, pieces, strict=True):
            parameter.add_(step * piece.view_as(parameter))
    shifted = gradient(model)
    with torch.no_grad():
        for parameter, value in zip(trained, saved, strict=True):
            parameter.copy_(value)
    return shifted


# GPT-2, because Llama's RMSNorm and attention compute in float32 even in a float64 model.
@pytest.mark.parametrize("name", [name for name in NAMES if name != "olora"])
def test_two_backward_passes_give_the_hessian(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = build(gpt2(), setting(name)).double()
    perturb(model)
    if name == "dora":
        # As the method's docstring says: the Hessian with every weight norm held at its present value.
        _hold_norms(model, monkeypatch)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    size = sum(parameter.numel() for parameter in trained)
    direction = torch.randn(size, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    direction /= direction.norm()
    product, difference = products(model, direction)
    # The central difference's own error is O(1e-8).
    torch.testing.assert_close(product, difference, rtol=0, atol=1e-6 * float(product.norm()))
    # What is measured with: written-out derivatives, kept graphs.
    engine = HessianOperator(model, batches(), dtype=torch.float64).matvec(direction)
    torch.testing.assert_close(engine, difference, rtol=0, atol=1e-6 * float(product.norm()))


def products(model: PeftModel, direction: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """H·v by two backward passes, and by the central difference of gradients."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    slope = gradient(model, graph=True) @ direction
    product = torch.cat(
        [part.flatten() for part in torch.autograd.grad(slope, trained, materialize_grads=True)]
    )
    difference = shifted_gradient(model, direction, 1e-4) - shifted_gradient(model, direction, -1e-4)
    return product, difference / 2e-4


def test_pefts_dora_holds_a_norm_that_moves_and_dora_exact_does_not() -> None:
    """Autograd's product against central differences of autograd's own gradient."""
    missed, gradients = {}, {}
    for name in ("dora", "dora-exact"):
        model = build(gpt2(), setting(name)).double()
        perturb(model, 0.2)
        size = sum(p.numel() for p in model.parameters() if p.requires_grad)
        direction = torch.randn(size, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
        product, difference = products(model, direction / direction.norm())
        missed[name] = float((product - difference).norm() / difference.norm())
        gradients[name] = gradient(model)
    assert missed["dora-exact"] < 1e-6
    assert missed["dora"] > 0.01
    # The loss is one, its gradients are two: only the exact one is the slope of the loss.
    apart = (gradients["dora"] - gradients["dora-exact"]).norm() / gradients["dora-exact"].norm()
    assert float(apart) > 0.01


def test_dora_exact_is_the_dora_that_peft_computes() -> None:
    theirs, ours = build(gpt2(), setting("dora")), build(gpt2(), setting("dora-exact"))
    for model in (theirs, ours):
        perturb(model, 0.2)
    with torch.no_grad():
        torch.testing.assert_close(ours(tokens()).logits, theirs(tokens()).logits)
    layer = next(m for m in ours.modules() if isinstance(m, DoraLinearLayer))
    assert type(layer) is not DoraLinearLayer
    assert {type(m) for m in theirs.modules() if isinstance(m, DoraLinearLayer)} == {DoraLinearLayer}


def _hold_norms(model: PeftModel, monkeypatch: pytest.MonkeyPatch) -> None:
    moving = DoraLinearLayer.get_weight_norm
    held: dict[int, torch.Tensor] = {}

    def first_value(self: DoraLinearLayer, *arguments: object, **options: object) -> torch.Tensor:
        if id(self) not in held:
            held[id(self)] = moving(self, *arguments, **options).detach()
        return held[id(self)]

    monkeypatch.setattr(DoraLinearLayer, "get_weight_norm", first_value)
    with torch.no_grad():
        model(tokens())
