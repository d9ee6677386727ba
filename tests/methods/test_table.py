"""Every method on every architecture: it starts where the model is, λ can be measured, PEFT takes it back."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from tiny_models import ARCHITECTURES, base_model, make_batch
from tolerances import SAME_LOGITS
from torch import Tensor, nn

from hessian_lr import methods
from hessian_lr.errors import RequestError
from hessian_lr.measure import sharpness
from hessian_lr.methods import METHODS
from hessian_lr.setting import Setting

SETTING = Setting(rank=2, alpha=3.0, seed=5)
# They change the weights they start on: an adapter for the original ones is what PEFT converts them to.
CHANGED_BASE = {"pissa", "milora", "olora", "init-ab", "lora-ga", "lora-ga-peft"}
REFUSED = {("olora", "gpt2"): "Conv1D"}
CASES = [(method, architecture) for method in METHODS for architecture in ARCHITECTURES]


pytestmark = pytest.mark.usefixtures("one_thread")


def logits(model: nn.Module) -> Tensor:
    ids = make_batch(2, 9, seed=4)["input_ids"]
    with torch.no_grad():
        return model(input_ids=ids).logits


def distance(one: Tensor, other: Tensor) -> float:
    return float(torch.linalg.norm(one - other) / torch.linalg.norm(other))


def perturb(model: nn.Module) -> None:
    generator = torch.Generator().manual_seed(9)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))


@pytest.mark.parametrize(("method", "architecture"), [case for case in CASES if case not in REFUSED])
def test_a_method_on_an_architecture(method: str, architecture: str, tmp_path: Path) -> None:
    setting = dataclasses.replace(SETTING, method=method)
    base = base_model(architecture)
    before = logits(base)
    methods.check(base, setting)
    adapted = methods.build(base, setting, [make_batch(4, 10, seed=7)])
    assert distance(logits(adapted), before) <= SAME_LOGITS

    curvature = sharpness(adapted, [make_batch(4, 10, seed=8)], rtol=0.3, max_products=12)
    assert curvature.status in ("converged", "budget")
    assert 0 < curvature.lambda_max < math.inf
    assert distance(logits(adapted), before) <= SAME_LOGITS

    convert = {}
    if method in CHANGED_BASE:
        # Else PEFT would take its decomposition out of the loaded weights a second time.
        adapted.peft_config["default"].init_lora_weights = True
        adapted.save_pretrained(tmp_path / "start")
        convert = {"path_initial_model_for_weight_conversion": str(tmp_path / "start")}
    perturb(adapted)
    trained = logits(adapted)
    assert distance(trained, before) > 1e-4
    adapted.save_pretrained(tmp_path / "trained", **convert)
    loaded = PeftModel.from_pretrained(base_model(architecture), tmp_path / "trained")
    assert distance(logits(loaded), trained) <= SAME_LOGITS
    assert distance(logits(adapted.merge_and_unload()), trained) <= SAME_LOGITS


@pytest.mark.parametrize(("case", "reason"), REFUSED.items())
def test_what_peft_cannot_do_is_refused_before_any_work(case: tuple[str, str], reason: str) -> None:
    method, architecture = case
    model = base_model(architecture)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(RequestError, match=reason):
        methods.check(model, dataclasses.replace(SETTING, method=method))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
