"""What is known of λ at B = 0 without an eigensolver, held against dense Hessians."""

from __future__ import annotations

import pytest
import torch
from peft import LoraConfig, get_peft_model
from tiny_models import ARCHITECTURES, adapted, base_model, counting_batch, dense_hessian, learned
from tolerances import BRACKET32, CLOSED_FORM, DENSE64_FLOAT32_ISLANDS, REFINED

from hessian_lr.curvature import gradient_norms
from hessian_lr.curvature.closed_form import ClosedForm, closed_form
from hessian_lr.errors import HessianLRError, RequestError


def top_eigenvalue(matrix):
    return float(torch.linalg.eigvalsh(matrix)[-1])


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("alpha", [2, 8])
def test_the_bracket_holds_and_mu_is_the_b_blocks_eigenvalue(architecture, alpha, batches):
    found = closed_form(adapted(architecture, moved=False, alpha=alpha), batches, refine=True, rtol=0.01)
    model = adapted(architecture, moved=False, alpha=alpha)
    truth = dense_hessian(model, batches)
    top = top_eigenvalue(truth)
    assert found.lower <= top * (1 + BRACKET32)
    assert top <= found.upper * (1 + BRACKET32)
    of_b = torch.cat(
        [
            torch.full((p.numel(),), "lora_B" in name)
            for name, p in model.named_parameters()
            if p.requires_grad
        ]
    )
    assert found.mu == pytest.approx(top_eigenvalue(truth[of_b][:, of_b]), rel=0.01)
    assert found.lower == pytest.approx(top, rel=REFINED)
    assert float(truth[~of_b][:, ~of_b].abs().max()) < DENSE64_FLOAT32_ISLANDS * top
    coupling = torch.linalg.matrix_norm(truth[of_b][:, ~of_b], 2)
    assert found.sigma == pytest.approx(float(coupling), rel=BRACKET32)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("alpha", [1, 2, 4, 16])
def test_the_estimate_is_near_lambda_whether_coupling_or_curvature_makes_it(architecture, alpha, batches):
    found = closed_form(adapted(architecture, moved=False, alpha=alpha), batches)
    top = top_eigenvalue(dense_hessian(adapted(architecture, moved=False, alpha=alpha), batches))
    assert found.estimate == pytest.approx(top, rel=CLOSED_FORM)
    assert found.lower <= top * (1 + BRACKET32)
    assert found.status == "converged"
    assert found.upper is None and found.mu is None
    # The gradient whose graph is kept, and the products through it.
    assert found.gradient_equivalents == pytest.approx(1 + found.products)


@pytest.mark.parametrize("method", ["lora", "rslora"])
def test_a_task_yet_to_be_learned(method):
    batches = [counting_batch(8, 3, seed) for seed in range(3)]
    found = closed_form(learned(method=method), batches)
    top = top_eigenvalue(dense_hessian(learned(method=method).double(), batches))
    assert found.estimate == pytest.approx(top, rel=CLOSED_FORM)


def test_where_coupling_makes_lambda_three_gradients_are_enough_and_a_note_says_saddle(batches):
    # The coupling falls with s and the curvature with s², so a small alpha leaves the coupling.
    found = closed_form(adapted("llama", moved=False, alpha=0.1), batches)
    top = top_eigenvalue(dense_hessian(adapted("llama", moved=False, alpha=0.1), batches))
    assert found.gradient_equivalents == pytest.approx(3)
    assert found.estimate == pytest.approx(top, rel=0.01)
    assert found.estimate == pytest.approx(found.sigma, rel=CLOSED_FORM)
    assert any("saddle" in note for note in found.notes)


def test_rebuilt_graphs_microbatches_and_unequal_scalings_give_the_same(batches):
    def scaled():
        model = adapted("llama", moved=False, alpha=4)
        for index, module in enumerate(m for m in model.modules() if getattr(m, "lora_A", None)):
            module.scaling["default"] = 1.0 + 0.3 * index
        return model

    rows = [
        {name: value[i : i + 1] for name, value in b.items()}
        for b in batches
        for i in range(len(b["labels"]))
    ]
    kept, rebuilt = closed_form(scaled(), batches), closed_form(scaled(), rows, memory_budget=0)
    assert rebuilt.estimate == pytest.approx(kept.estimate, rel=BRACKET32)
    assert rebuilt.products == kept.products
    assert rebuilt.module == kept.module
    assert any("rebuilt" in note for note in rebuilt.notes)
    norms = gradient_norms(scaled(), batches)
    assert kept.gradient_norm == pytest.approx(max(norms.values()), rel=BRACKET32)
    layers = dict(scaled().named_modules())
    expected = {name: layers[name].scaling["default"] * norm for name, norm in norms.items()}
    assert kept.module == max(expected, key=expected.get)
    assert kept.sigma == pytest.approx(max(expected.values()), rel=BRACKET32)


def test_sigma_is_the_spectral_norm_of_the_largest_weight_gradient(batches):
    model = adapted("gpt2", moved=False, alpha=6)
    norms = gradient_norms(model, batches)
    base = base_model("gpt2").double()
    total = sum(int((b["labels"][:, 1:] != -100).sum()) for b in batches)
    for batch in batches:
        logits = base(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
        loss = torch.nn.functional.cross_entropy(
            logits[:, :-1].flatten(0, 1), batch["labels"][:, 1:].flatten(), reduction="sum"
        )
        (loss / total).backward()
    expected = float(torch.linalg.matrix_norm(base.transformer.h[0].attn.c_attn.weight.grad, 2))
    assert norms["base_model.model.transformer.h.0.attn.c_attn"] == pytest.approx(expected, rel=1e-6)
    found = closed_form(model, batches)
    assert found.sigma == pytest.approx(3 * max(norms.values()), rel=BRACKET32)
    assert found.gradient_norm == pytest.approx(max(norms.values()), rel=BRACKET32)


def test_the_model_is_left_as_it_was_and_the_result_is_a_record(batches):
    model = adapted("llama", moved=False)
    model.train()
    before = [(p.requires_grad, p.detach().clone()) for p in model.parameters()]
    state = torch.get_rng_state()
    found = closed_form(model, batches, refine=True)
    for (flag, value), parameter in zip(before, model.parameters(), strict=True):
        assert parameter.requires_grad is flag
        assert parameter.grad is None
        assert torch.equal(parameter, value)
    assert all(module.training and not module._forward_hooks for module in model.modules())
    assert torch.equal(torch.get_rng_state(), state)
    assert ClosedForm.from_dict(found.to_dict()) == found


def test_the_closed_form_is_refused_where_it_does_not_hold(batches):
    def configured(**options):
        config = LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM", **options)
        return get_peft_model(base_model("llama"), config)

    with pytest.raises(RequestError, match="B = 0"):
        closed_form(adapted("llama"), batches)
    with pytest.raises(RequestError, match="does not hold for DoRA"):
        closed_form(configured(use_dora=True), batches)
    with pytest.raises(RequestError, match="gralora"):
        closed_form(learned(method="gralora"), batches)
    with pytest.raises(RequestError, match="lm_head"):
        closed_form(configured(modules_to_save=["lm_head"]), batches)
    frozen = configured()
    next(p for name, p in frozen.named_parameters() if "lora_A" in name).requires_grad_(False)
    with pytest.raises(RequestError, match="trainable"):
        closed_form(frozen, batches)
    with pytest.raises(RequestError, match="PEFT adapter"):
        closed_form(base_model("llama"), batches)


def test_a_loss_without_a_gradient_is_a_failure_of_the_work(batches):
    model = adapted("llama", moved=False)
    with torch.no_grad():
        model.get_output_embeddings().weight.zero_()
    with pytest.raises(HessianLRError, match="no gradient"):
        closed_form(model, batches)
