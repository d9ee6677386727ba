"""module_sharpness(): its budget and cost, what belongs to a module, and how it fails."""

from __future__ import annotations

import math

import peft
import pytest
import torch
from tiny_blocks import KEEP, cut, dense_blocks, own_names
from tiny_models import adapted, base_model, make_batch
from tolerances import DENSE64

import hessian_lr as hlr
from hessian_lr.curvature import HessianOperator
from hessian_lr.curvature.loss import trainable
from hessian_lr.errors import RequestError
from hessian_lr.measure import ModuleSpectrum, module_sharpness
from hessian_lr.measure.adapter_modules import places


def test_the_budget_is_said_and_the_bounds_still_hold(batches):
    found = module_sharpness(adapted(), batches, rtol=1e-6, max_products=2)
    assert {module.status for module in found.modules} == {"budget"}
    assert {module.products for module in found.modules} == {2}
    for name, block in dense_blocks(adapted(), batches, found).items():
        module = next(m for m in found.modules if m.name == name)
        assert module.lambda_max <= float(block[-1]) <= module.lambda_upper
        assert float((block - module.lambda_max).abs().min()) <= module.residual * (1 + DENSE64)


def test_products_of_later_modules_cost_less_and_autograd_does_less(batches):
    costs = []
    for wanted in ("h.0.attn.c_attn", "h.1.mlp.c_proj"):
        model = adapted()
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(parameter.requires_grad and wanted in name)
        operator = HessianOperator(model, batches, memory_budget=KEEP)
        operator.gradient()
        before = operator.cost.gradient_equivalents
        found = module_sharpness(model, batches, rtol=1e-6, max_products=3, memory_budget=KEEP)
        costs.append((found.gradient_equivalents - before) / 3)
    assert 0 < costs[1] < costs[0] < 1


def test_dora_magnitudes_belong_to_their_modules(batches):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        configuration = peft.LoraConfig(
            r=2, target_modules=["q_proj", "down_proj"], use_dora=True, task_type="CAUSAL_LM"
        )
        model = peft.get_peft_model(base_model("llama"), configuration).double()
    found = module_sharpness(model, batches)
    counts = {
        module.name: sum(dict(model.named_parameters())[n].numel() for n in own_names(model, module))
        for module in found.modules
    }
    assert {module.name: module.parameters for module in found.modules} == counts
    # A: 2 × 8, B: 8 × 2, magnitude: 8.
    assert next(m for m in found.modules if m.kind == "q_proj").parameters == 40
    assert sum(module.parameters for module in found.modules) == sum(p.numel() for p in trainable(model))


def test_parameters_that_several_modules_share_are_left_out_and_a_note_says_so(batches):
    model = adapted(moved=True)
    layers = [m for n, m in model.named_modules() if n.endswith("mlp.c_fc")]
    layers[1].lora_A = layers[0].lora_A
    found = module_sharpness(model, batches, rtol=1e-3, max_products=200)
    shared = sum(p.numel() for p in layers[0].lora_A.parameters())
    assert any(note.startswith(f"{shared} trainable parameters") for note in found.notes)
    only_b = sum(p.numel() for p in layers[0].lora_B.parameters())
    assert [m.parameters for m in found.modules if m.kind == "c_fc"] == [only_b, only_b]


def test_a_module_that_the_loss_does_not_depend_on_has_zero(batches):
    model = adapted()
    layer = next(m for n, m in model.named_modules() if n.endswith("h.0.mlp.c_fc"))
    layer.set_scale("default", 0.0)
    found = module_sharpness(model, batches)
    dead = next(m for m in found.modules if m.name.endswith("h.0.mlp.c_fc"))
    assert (dead.lambda_max, dead.residual, dead.status) == (0.0, 0.0, "converged")
    assert all(m.lambda_max > 0 for m in found.modules if m is not dead)


def test_the_model_and_the_random_state_are_left_as_they_were(batches):
    model = adapted(dtype=torch.float32)
    model.train()
    model.get_base_model().lm_head.eval()
    modes = [module.training for module in model.modules()]
    weights = [p.detach().clone() for p in model.parameters()]
    asked = [p.requires_grad for p in model.parameters()]
    state = torch.get_rng_state()
    module_sharpness(model, batches, max_products=2)
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(a, b) for a, b in zip(weights, model.parameters(), strict=True))
    assert [p.requires_grad for p in model.parameters()] == asked
    assert all(p.grad is None for p in model.parameters())
    assert torch.equal(torch.get_rng_state(), state)
    assert not model.get_base_model().lm_head._forward_pre_hooks


def test_it_writes_itself_and_reads_itself_back(batches, tmp_path):
    found = module_sharpness(adapted(), batches, max_products=2)
    found.write(tmp_path / "modules.json")
    assert ModuleSpectrum.read(tmp_path / "modules.json") == found
    assert found.loss == pytest.approx(hlr.sharpness(adapted(), batches).loss)
    assert found.tokens == sum(b["input_ids"].numel() for b in cut(batches))
    assert found.seconds > 0
    assert found.peak_rss_bytes > 10**7


def test_progress_counts_every_product_and_the_modules_that_are_done(batches):
    seen = []
    found = module_sharpness(adapted(), batches, rtol=0.2, progress=lambda *told: seen.append(told))
    assert len(seen) == len(cut(batches)) * found.matvecs
    done = [told[0] for told in seen]
    assert done == sorted(done)
    assert done[0] == 0 < done[-1] < len(found.modules)
    assert seen[0] == (0, 8, f"step 1: {found.modules[0].name}")


def test_nan_weights_fail_with_a_reason_and_without_a_number(batches):
    model = adapted()
    next(p for p in model.parameters() if p.requires_grad).data[0, 0] = math.nan
    found = module_sharpness(model, batches)
    assert {module.status for module in found.modules} == {"failed"}
    assert all(m.lambda_max is m.lambda_upper is m.residual is None for m in found.modules)
    assert found.loss is None
    assert "not finite" in found.notes[0]


def test_a_failure_midway_keeps_what_had_converged(batches):
    whole = module_sharpness(adapted(), batches, rtol=0.2)
    steps = sorted({module.products for module in whole.modules})

    def no_memory(_done, _modules, where):
        if where.startswith(f"step {steps[-1]}:"):
            raise MemoryError

    found = module_sharpness(adapted(), batches, rtol=0.2, progress=no_memory)
    for module, full in zip(found.modules, whole.modules, strict=True):
        if full.products < steps[-1]:
            assert module == full
        else:
            assert (module.status, module.lambda_max) == ("failed", None)
    assert len(found.notes) == 1 and found.notes[0].startswith("out of memory on cpu")


def test_wrong_requests_are_refused(batches):
    with pytest.raises(RequestError, match="rtol"):
        module_sharpness(adapted(), batches, rtol=0)
    with pytest.raises(RequestError, match="max_products"):
        module_sharpness(adapted(), batches, max_products=0)
    with pytest.raises(RequestError, match="no token of these batches is labelled"):
        module_sharpness(adapted(), [make_batch(1, 5, seed=3, unscored=5)])
    model = adapted()
    model.requires_grad_(False)
    with pytest.raises(RequestError, match="no trainable parameter"):
        module_sharpness(model, batches)
    with pytest.raises(RequestError, match="belongs to one adapted module"):
        module_sharpness(base_model("gpt2"), batches)


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (
            ["model.layers.0.self_attn.q_proj", "model.layers.11.mlp.up_proj", "lm_head"],
            [(0, "q_proj"), (11, "up_proj"), (None, "lm_head")],
        ),
        (
            ["transformer.h.0.attn.c_proj", "transformer.h.0.mlp.c_proj", "transformer.h.0.mlp.c_fc"],
            [(0, "attn.c_proj"), (0, "mlp.c_proj"), (0, "c_fc")],
        ),
        (
            ["layers.2.experts.0.w1", "layers.2.experts.1.w1", "layers.3.experts.1.w1"],
            [(2, "0.w1"), (2, "1.w1"), (3, "1.w1")],
        ),
        (["h.0.fc", "h.0.mlp.fc"], [(0, "fc"), (0, "mlp.fc")]),
    ],
)
def test_layer_and_kind_are_read_from_the_name(names, expected):
    assert places(names) == expected
