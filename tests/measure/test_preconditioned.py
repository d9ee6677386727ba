"""λ_P after a warm-up: against the dense matrix, under other scales, and where there is none to be had."""

from __future__ import annotations

import copy

import pytest
import torch
from peft import LoraConfig, get_peft_model
from tiny_models import (
    VOCABULARY,
    adapted,
    base_model,
    counting_batch,
    dense_hessian,
    learnable,
    learned,
    make_batch,
)
from tolerances import DENSE32

import hessian_lr as hlr
from hessian_lr.curvature import HessianOperator, PreconditionedOperator
from hessian_lr.curvature.adam import adam_direction, adam_preconditioner, geometry, stability_threshold
from hessian_lr.curvature.loss import trainable
from hessian_lr.curvature.loss_operator import Cost
from hessian_lr.curvature.vectors import flatten
from hessian_lr.errors import HessianLRError
from hessian_lr.measure import adam_sharpness, first_step, preconditioned
from hessian_lr.measure.after_warmup import after_warm_up
from hessian_lr.measure.how import How
from hessian_lr.measure.warmup import warm_up
from hessian_lr.spectrum import lanczos

SAMPLE = [counting_batch(4, 3, seed=s) for s in range(8)]


def test_lambda_p_is_the_dense_preconditioned_eigenvalue():
    batches, model = learnable(12), adapted(rank=2, alpha=2)
    optimizer = warm_up(model, batches[:10], steps=10, top_lr=1e-3, dtype=torch.float64)
    diagonal = adam_preconditioner(optimizer, trainable(model))
    root = torch.diag(diagonal.rsqrt())
    moved = [p.detach().clone() for p in trainable(model)]
    found = adam_sharpness_at(model, batches[10:], diagonal)
    reference = adapted(rank=2, alpha=2)
    with torch.no_grad():
        for parameter, value in zip(trainable(reference), moved, strict=True):
            parameter.copy_(value)
    truth = torch.linalg.eigvalsh(root @ dense_hessian(reference, batches[10:]) @ root)[-1]
    assert found == pytest.approx(float(truth), rel=1e-6)


class Shrunk(HessianOperator):
    """Products that are too small in bfloat16, as those of some models are."""

    def matmat(self, block):
        return super().matmat(block) * (0.95 if self.dtype is torch.bfloat16 else 1.0)


def in_bfloat16(model, batches, metric, rtol, seed=0, make=HessianOperator):
    """What is measured, the operators that it took, and the costs that are told."""
    used, costs = [], []

    def made(*args, **options):
        used.append(make(*args, **options))
        return used[-1]

    options = {"how": How(torch.bfloat16, seed=seed), "rtol": rtol, "max_products": 100, "costs": costs}
    found = after_warm_up(made, model=model, batches=batches, metric=metric, **options)
    return found, used, costs


@pytest.mark.parametrize(("rtol", "served"), [(0.1, True), (1e-3, False)])
def test_bfloat16_only_finds_the_vector_of_lambda_p_and_float32_gives_the_numbers(rtol, served):
    """Against the dense matrix at the weights that the warm-up led to."""
    batches, model = learnable(12), learned(method="pissa")
    optimizer = warm_up(model, batches[:10], steps=10, top_lr=1e-3, dtype=torch.float32)
    metric = geometry(optimizer, trainable(model))
    found, used, costs = in_bfloat16(model, batches[10:], metric, rtol)
    root = torch.diag(adam_preconditioner(optimizer, trainable(model)).double().rsqrt())
    whole = copy.deepcopy(model).double()
    # Microbatches of as many labels each, whose mean the loss is.
    blocks = [root @ dense_hessian(whole, [one]) @ root for one in used[0].batches]
    assert len(blocks) > 2 and len(set(used[0].weights)) == 1
    dense = torch.stack(blocks).mean(0)
    torch.testing.assert_close(dense, root @ dense_hessian(whole, batches[10:]) @ root)
    v = found.found.vector.double()
    # In bfloat16 the quotient of the very vector is off by thousandths.
    assert found.found.value == pytest.approx(float(v @ dense @ v), rel=DENSE32)
    assert found.found.residual == pytest.approx(
        float((dense @ v - found.found.value * v).norm()), rel=DENSE32, abs=DENSE32 * found.found.value
    )
    forms = torch.stack([v @ block @ v for block in blocks])
    assert found.sampling_error == pytest.approx(float(forms.std() / len(forms) ** 0.5), rel=DENSE32)
    assert found.found.status == "converged"
    top = float(torch.linalg.eigvalsh(dense)[-1])
    assert found.found.value == pytest.approx(top, rel=rtol)
    assert found.found.upper >= top * (1 - DENSE32), "with this start"
    assert any("searched again in float32" in note for note in found.notes) is not served
    assert (found.rounding is not None) is served
    products = found.found.products
    if served:
        assert 10 * DENSE32 < found.rounding / found.found.value < rtol
        # The bend along Adam's step and the search, whose graphs are kept; a product that rebuilds them.
        assert costs == [Cost(products, products + 1), Cost(1, 2)]
    else:
        # REFINEMENTS products and one that verifies, which rebuild graphs; a search, and one that does.
        assert costs[1:] == [Cost(5, 10), Cost(products + 1, products + 2)]
        assert costs[0].gradient_equivalents == costs[0].matvecs + 1 > 5


def test_the_upper_bound_of_lambda_p_has_what_products_in_bfloat16_were_off_by():
    """Over eight random starts; of bounds that hold with 95% it takes three misses to be surprised."""
    batches = [make_batch(2, 9, seed=1), make_batch(3, 12, seed=2, unscored=7)]
    model = adapted(dtype=torch.float32)
    optimizer = warm_up(model, batches, steps=10, top_lr=1e-3, dtype=torch.float32)
    metric = geometry(optimizer, trainable(model))
    root = torch.diag(adam_preconditioner(optimizer, trainable(model)).double().rsqrt())
    dense = root @ dense_hessian(copy.deepcopy(model).double(), batches) @ root
    top = float(torch.linalg.eigvalsh(dense)[-1])
    misses = alone = 0
    for seed in range(8):
        found, used, _ = in_bfloat16(model, batches, metric, 0.01, seed, Shrunk)
        assert len(used) == 2 and found.rounding > 0.04 * top, "it served"
        assert found.found.value <= top * (1 + DENSE32)
        assert found.found.upper >= found.found.value
        misses += found.found.upper < top
        alone += found.found.upper - found.rounding < top
    assert misses < 3
    assert alone > 5, "what the search by itself would have said"


def adam_sharpness_at(model, batches, diagonal):
    operator = PreconditionedOperator(HessianOperator(model, batches), diagonal)
    return lanczos(operator.matvec, operator.size, rtol=1e-5, max_products=300, dtype=torch.float64).value


def test_adams_direction_is_the_step_that_torch_takes():
    batches, model = learnable(10), learned()
    warm_up(model, batches, steps=9, top_lr=9e-4, dtype=torch.float32)
    before = flatten(trainable(model)).clone()
    again = learned()
    optimizer = warm_up(again, batches, steps=10, top_lr=1e-3, dtype=torch.float32)
    step = before - flatten(trainable(again))
    torch.testing.assert_close(step, 1e-3 * adam_direction(optimizer, trainable(again)), rtol=1e-2, atol=1e-6)


def test_stability_threshold_of_adams_default_is_38():
    assert stability_threshold(0.9) == pytest.approx(38)


def test_a_loss_multiplied_by_c_leaves_the_adam_prediction_where_it_was(monkeypatch):
    import hessian_lr.curvature.loss as loss_module
    import hessian_lr.curvature.operator as operator_module
    import hessian_lr.measure.warmup as warmup_module

    batches = learnable(12)
    plain = adam_sharpness(learned(method="pissa"), batches[10:], batches[:10])
    original = loss_module.summed_loss
    for module in (loss_module, operator_module, warmup_module):
        monkeypatch.setattr(module, "summed_loss", lambda model, batch: 8.0 * original(model, batch))
    scaled = adam_sharpness(learned(method="pissa"), batches[10:], batches[:10])
    assert scaled.lambda_preconditioned == pytest.approx(plain.lambda_preconditioned, rel=1e-3)
    assert scaled.lr_directional == pytest.approx(plain.lr_directional, rel=1e-3)


def test_a_warm_up_that_went_far_beyond_the_edge_is_made_smaller(monkeypatch):
    large = hlr.predict_learning_rate(learned(), SAMPLE, predictor="adam").adam
    # Between this model's 2 and, made smaller, 0.1: where larger rates throw it hangs on the processor.
    monkeypatch.setattr(preconditioned, "BEYOND", 0.5)
    assert large.warmup_lr > preconditioned.BEYOND * large.lr_stability
    found = hlr.predict_learning_rate(learned(), SAMPLE, predictor="adam").adam
    notes = [note for note in found.notes if "warm-up made 4 times smaller" in note]
    assert notes and found.warmup_lr == pytest.approx(large.warmup_lr / 4 ** len(notes))
    assert found.warmup_lr <= preconditioned.BEYOND * found.lr_stability
    assert not any("stayed too large" in note for note in found.notes)
    monkeypatch.setattr(preconditioned, "ATTEMPTS", 0)
    notes = hlr.predict_learning_rate(learned(), SAMPLE, predictor="adam").notes
    assert any(note.startswith("the warm-up stayed too large, so λ_P may be anything: its") for note in notes)


@pytest.mark.parametrize(("loudness", "told"), [(1, "frozen output"), (40, "more than the 3.14 of guessing")])
def test_why_no_step_leads_uphill_is_told_by_the_loss_at_the_start(loudness, told, monkeypatch):
    model = learned()
    known = [counting_batch(4, 1, seed=0)]  # which it has learned
    # A model that is sure of the wrong tokens: its loss exceeds ln 23 = 3.135.
    model.get_output_embeddings().weight.data.mul_(-loudness if loudness > 1 else 1)
    monkeypatch.setattr(first_step, "critical_learning_rate", lambda *_, **__: (None, 1))
    with pytest.raises(HessianLRError, match=f"turns downhill into uphill .*{told}"):
        adam_sharpness(model, known, known)


def test_an_adapter_that_saturates_is_told_as_one():
    """Queries alone: however far they are thrown, attention gives a weighted mean."""
    base = base_model("qwen2")
    base.lm_head.weight.data.mul_(0.5)
    ids = torch.arange(48).view(4, 12) % VOCABULARY
    # Each position's fifth likeliest token: the start is a little better than guessing.
    with torch.no_grad():
        labels = base(ids).logits.topk(5).indices[..., 4].roll(1, 1)
    torch.manual_seed(0)
    model = get_peft_model(base, LoraConfig(r=2, target_modules=["q_proj"], lora_alpha=2))
    rows = [{"input_ids": ids, "labels": labels}]
    with pytest.raises(HessianLRError, match=r"even a step of 1000 ends below, at .* saturates"):
        adam_sharpness(model, rows, rows)


@pytest.mark.parametrize(
    ("kind", "decay", "told"),
    [(torch.optim.Adam, 0.1, 1), (torch.optim.Adam, 0.0, 0), (torch.optim.AdamW, 0.1, 0)],
)
def test_weight_decay_that_is_part_of_the_gradient_is_said_to_be_left_out(kind, decay, told):
    def make(model, lr, *, betas, eps):
        return kind(trainable(model), lr=lr, betas=betas, eps=eps, weight_decay=decay)

    found = adam_sharpness(learned(), SAMPLE[:2], SAMPLE[2:], optimizer=make, max_products=4)
    assert sum("without the optimizer's weight decay of 0.1" in note for note in found.notes) == told
