"""Parameters that no row of the sample moves: an embedding's, of tokens that are not in it."""

from __future__ import annotations

import pytest
import torch
from tiny_models import VOCABULARY, base_model, counting_batch, learned, with_adapter

import hessian_lr as hlr
from hessian_lr.predict.start import lr_eigenvalue

SAMPLE = [counting_batch(4, 3, seed=s) for s in range(8)]


def _embedding_adapter():
    model = learned().unload()
    return with_adapter(model, target_modules=["q_proj", "v_proj", "embed_tokens"])


def test_a_token_that_the_warm_up_never_saw_does_not_decide_lambda_p():
    def few(batch):
        ids = batch["input_ids"] % 20
        return {**batch, "input_ids": ids, "labels": ids.clone()}

    asked = {"predictor": "adam", "steps": 60}
    seen = hlr.predict_learning_rate(_embedding_adapter(), SAMPLE[:4], warmup_batches=SAMPLE[4:], **asked)
    less = [few(batch) for batch in SAMPLE[4:]]
    unseen = hlr.predict_learning_rate(_embedding_adapter(), SAMPLE[:4], warmup_batches=less, **asked)
    # With ε in the place of a second moment it was 1e6 times as large.
    assert 0.1 < unseen.adam.lambda_preconditioned / seen.adam.lambda_preconditioned < 10
    assert any("which the warm-up did not move: it gave them no gradient" in note for note in unseen.notes)
    assert not any("no gradient" in note for note in seen.notes)


EMBEDDINGS = {
    "whole": {"modules_to_save": ["embed_tokens"]},
    "lora": {"target_modules": ["q_proj", "v_proj", "embed_tokens"]},
    "tokens": {},
}


@pytest.mark.parametrize(
    ("kind", "operator"), [*((kind, "hessian") for kind in EMBEDDINGS), ("lora", "central-differences")]
)
def test_rows_of_an_embedding_that_no_token_uses_change_no_learning_rate(kind, operator):
    """The same function and runs, in more parameters."""

    def adapter(unused):
        base = base_model("qwen2")  # whose head is not its embedding
        rows = torch.cat([base.model.embed_tokens.weight.data, torch.ones(unused, 8)])
        base.model.embed_tokens = torch.nn.Embedding.from_pretrained(rows)
        wanted = {"target_modules": ["q_proj", "v_proj"]} | EMBEDDINGS[kind]
        if kind == "tokens":
            wanted["trainable_token_indices"] = list(range(len(rows)))
        return with_adapter(base, **wanted)

    few, many = adapter(0), adapter(977)
    weights = dict(few.named_parameters())
    with torch.no_grad():
        for name, parameter in many.named_parameters():
            if parameter.shape == weights[name].shape:
                parameter.copy_(weights[name])
    ids = torch.arange(48).view(4, 12) % VOCABULARY
    rows = [{"input_ids": ids, "labels": ids}]
    one, two = (hlr.sharpness(m, rows, operator=operator, rtol=1e-2) for m in (few, many))
    assert one.unreached == 0
    assert two.unreached == two.parameters - one.parameters > 0
    assert lr_eigenvalue(two) == pytest.approx(lr_eigenvalue(one), rel=1e-2)


def test_a_prediction_tells_which_parameters_it_left_out():
    model = with_adapter(base_model("qwen2"), target_modules=["embed_tokens"])
    ids = torch.arange(48).view(4, 12) % 20
    rows = [{"input_ids": ids, "labels": ids}]
    found = hlr.predict_learning_rate(model, rows, warmup_batches=rows, predictor="eigenvalue", steps=60)
    # Of an A of 2 × 23, and a B of 8 × 2, the columns of tokens 20, 21 and 22.
    told = f"lr_eigenvalue leaves out {6 / (46 + 16):.1%} of the parameters"
    assert [note for note in found.notes if note.startswith(told)]
