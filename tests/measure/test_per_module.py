"""module_sharpness(): each module's own block, whatever the sample's cut, the memory, or the company."""

from __future__ import annotations

import pytest
import torch
from tiny_blocks import KEEP, REBUILD, TIGHT, cut, dense_blocks, own_names, values
from tiny_models import ARCHITECTURES, adapted
from tolerances import DENSE32, DENSE64, DENSE64_FLOAT32_ISLANDS, SAME_LAMBDA

import hessian_lr as hlr
from hessian_lr.measure import module_sharpness


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("moved", [False, True], ids=["at-initialization", "moved"])
def test_each_lambda_is_its_dense_blocks_largest_eigenvalue(architecture, moved, batches):
    found = module_sharpness(adapted(architecture, moved=moved), batches, **TIGHT)
    truth = dense_blocks(adapted(architecture, moved=moved), batches, found)
    assert len(found.modules) == (8 if architecture == "gpt2" else 14)
    noise = DENSE64 if architecture == "gpt2" else DENSE64_FLOAT32_ISLANDS
    for module in found.modules:
        block = truth[module.name]
        slack = noise * float(block.abs().max())
        assert module.status == "converged"
        assert module.parameters == len(block)
        # Some eigenvalue lies within the residual; it is the largest, or the residual says little.
        assert float(block[-1]) - module.residual - slack <= module.lambda_max <= float(block[-1]) + slack
        assert module.lambda_upper >= module.lambda_max
        assert module.lambda_min >= float(block[0]) - slack


def test_upper_ends_hold_as_often_as_they_say(batches):
    """95% each: of 160 at most 16 may fail (5% and three standard deviations of a binomial)."""
    useful = failed = 0
    for model_seed in range(4):
        truth = None
        for seed in range(5):
            model = adapted(seed=model_seed)
            found = module_sharpness(model, batches, rtol=1e-6, max_products=4, seed=seed)
            truth = truth or dense_blocks(adapted(seed=model_seed), batches, found)
            for module in found.modules:
                useful += module.lambda_upper < 10 * module.lambda_max
                failed += float(truth[module.name][-1]) > module.lambda_upper
    assert failed <= 16
    assert useful > 80


def test_float32_agrees_with_the_float64_blocks(batches):
    found = module_sharpness(adapted(dtype=torch.float32), batches, rtol=1e-3, max_products=200)
    for name, block in dense_blocks(adapted(), batches, found).items():
        slack = DENSE32 * float(block.abs().max())
        module = next(m for m in found.modules if m.name == name)
        assert abs(module.lambda_max - float(block[-1])) <= module.residual + slack


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_it_is_the_sharpness_of_a_model_in_which_only_that_module_trains(architecture, batches):
    found = module_sharpness(adapted(architecture), batches, **TIGHT)
    tolerance = SAME_LAMBDA if architecture == "gpt2" else DENSE64_FLOAT32_ISLANDS
    for module in found.modules:
        model = adapted(architecture)
        own = set(own_names(model, module))
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name in own)
        alone = hlr.sharpness(model, batches, **TIGHT)
        assert alone.parameters == module.parameters
        assert module.lambda_max == pytest.approx(alone.lambda_max, rel=tolerance)


def test_the_split_and_the_order_of_the_sample_do_not_matter(batches):
    expected = values(module_sharpness(adapted(), batches, **TIGHT))
    rows = [{n: v[i : i + 1] for n, v in b.items()} for b in batches for i in range(len(b["labels"]))]
    for sample in (rows, batches[::-1]):
        assert values(module_sharpness(adapted(), sample, **TIGHT)) == pytest.approx(
            expected, rel=SAME_LAMBDA
        )


def test_keeping_and_rebuilding_agree_and_a_note_tells_them_apart(batches):
    kept = module_sharpness(adapted(), batches, memory_budget=KEEP)
    rebuilt = module_sharpness(adapted(), batches, memory_budget=REBUILD)
    assert values(kept) == pytest.approx(values(rebuilt), rel=DENSE64)
    assert kept.matvecs == rebuilt.matvecs
    assert kept.notes == ()
    assert f"{len(cut(batches))} microbatches rebuilt for each step" in rebuilt.notes[0]
    # Kept: one gradient for the graphs. Rebuilt: one for each step, however many modules take part.
    steps = max(module.products for module in rebuilt.modules)
    assert rebuilt.gradient_equivalents - kept.gradient_equivalents == pytest.approx(steps - 1, abs=0.01)


def test_converged_modules_take_no_part_in_later_steps(batches, monkeypatch):
    calls = []
    grad = torch.autograd.grad

    def counting(outputs, inputs, grad_outputs=None, **options):
        if grad_outputs is not None:
            calls.append(tuple(inputs))
        return grad(outputs, inputs, grad_outputs, **options)

    monkeypatch.setattr(torch.autograd, "grad", counting)
    model = adapted()
    found = module_sharpness(model, batches, rtol=0.2, max_products=30)
    products = [module.products for module in found.modules]
    assert len(set(products)) > 1
    assert all(module.status == "converged" for module in found.modules)
    assert found.matvecs == sum(products)
    assert len(calls) == len(cut(batches)) * found.matvecs
    parameters = dict(model.named_parameters())
    for module in found.modules:
        own = {id(parameters[name]) for name in own_names(model, module)}
        mine = [call for call in calls if {id(p) for p in call} == own]
        assert len(mine) == len(cut(batches)) * module.products


def test_a_module_does_not_depend_on_its_company(batches):
    everyone = module_sharpness(adapted(), batches)
    model = adapted()
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(parameter.requires_grad and "c_attn" in name)
    few = module_sharpness(model, batches)
    assert [module.kind for module in few.modules] == ["c_attn", "c_attn"]
    among = {module.name: module for module in everyone.modules}
    for module in few.modules:
        assert module.products == among[module.name].products
        assert module.lambda_max == pytest.approx(among[module.name].lambda_max, rel=DENSE64)


def test_seeds_agree_to_the_stated_residual(batches):
    one, other = (module_sharpness(adapted(), batches, seed=seed, max_products=60) for seed in (0, 1))
    assert values(one) != values(other)
    for a, b in zip(one.modules, other.modules, strict=True):
        assert abs(a.lambda_max - b.lambda_max) <= a.residual + b.residual
