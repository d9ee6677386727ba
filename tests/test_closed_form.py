"""What is known of λ at B = 0 without an eigensolver, held against dense Hessians."""

from __future__ import annotations

import pytest
import torch
from peft import LoraConfig, get_peft_model
from tiny_models import ARCHITECTURES, adapted, base_model, dense_hessian
from tolerances import BRACKET32, DENSE64_FLOAT32_ISLANDS

from hessian_lr.curvature import gradient_norms, lora_bracket
from hessian_lr.errors import RequestError


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("alpha", [2, 8])
def test_the_bracket_holds_and_mu_is_the_b_blocks_eigenvalue(architecture, alpha, batches):
    model = adapted(architecture, moved=False, alpha=alpha)
    found = lora_bracket(model, batches)
    truth = dense_hessian(adapted(architecture, moved=False, alpha=alpha), batches)
    top = float(torch.linalg.eigvalsh(truth)[-1])
    assert found.lower <= top * (1 + BRACKET32)
    assert top <= found.upper * (1 + BRACKET32)
    of_b = torch.cat(
        [
            torch.full((p.numel(),), "lora_B" in name)
            for name, p in model.named_parameters()
            if p.requires_grad
        ]
    )
    b_block = truth[of_b][:, of_b]
    assert found.mu == pytest.approx(float(torch.linalg.eigvalsh(b_block)[-1]), rel=0.01)
    assert float(truth[~of_b][:, ~of_b].abs().max()) < DENSE64_FLOAT32_ISLANDS * top


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
    assert lora_bracket(model, batches).sigma == pytest.approx(3 * max(norms.values()), rel=1e-6)


def test_the_model_is_left_as_it_was(batches):
    model = adapted("llama", moved=False)
    before = [(p.requires_grad, p.detach().clone()) for p in model.parameters()]
    lora_bracket(model, batches)
    for (flag, value), parameter in zip(before, model.parameters(), strict=True):
        assert parameter.requires_grad is flag
        assert parameter.grad is None
        assert torch.equal(parameter, value)


def test_the_closed_form_is_refused_where_it_does_not_hold(batches):
    with pytest.raises(RequestError, match="B = 0"):
        lora_bracket(adapted("llama"), batches)
    dora = LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM", use_dora=True)
    with pytest.raises(RequestError, match="plain LoRA"):
        lora_bracket(get_peft_model(base_model("llama"), dora), batches)
    with pytest.raises(RequestError, match="PEFT adapter"):
        lora_bracket(base_model("llama"), batches)
