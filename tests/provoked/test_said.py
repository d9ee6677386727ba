"""Failures that a user can cause, provoked: each says what was wrong, what was expected and the mend."""

from __future__ import annotations

import pytest
import torch
from huggingface_hub.errors import GatedRepoError
from tiny_models import counting_batch, learned

from hessian_lr import hub, models
from hessian_lr.curvature import HessianOperator
from hessian_lr.errors import HessianLRError, NonFiniteError, RequestError
from hessian_lr.measure import sharpness, warmup
from hessian_lr.predict import predict_learning_rate

BATCHES = [counting_batch(4, 3, seed=seed) for seed in range(4)]
LAYER = "base_model.model.model.layers.1.mlp"


def base_weight(model, name):
    return dict(model.named_parameters())[f"{name}.base_layer.weight"].data


def hole(model):
    base_weight(model, f"{LAYER}.up_proj")[1, 1] = torch.nan


def overflow(model):
    base_weight(model, f"{LAYER}.down_proj").mul_(3e38)


def infinite_adapter(model):
    dict(model.named_parameters())[f"{LAYER}.gate_proj.lora_A.default.weight"].data[0] = torch.inf


# What is done to the weights; the module that must be named, and why.
HOLES = {
    "NaN in a weight": (
        hole,
        f"{LAYER}.up_proj.base_layer (Linear), whose weight holds such values: mend or",
    ),
    "overflow": (overflow, f"{LAYER}.down_proj.base_layer (Linear), whose weights and inputs (up to "),
    "adapter": (
        infinite_adapter,
        f"{LAYER}.gate_proj.lora_A.default (Linear), whose weight holds such values",
    ),
}


@pytest.mark.parametrize("name", HOLES)
def test_a_loss_that_is_not_finite_names_the_first_module(name):
    spoil, told = HOLES[name]
    model = learned().train()
    spoil(model)
    with pytest.raises(NonFiniteError) as caught:
        HessianOperator(model, BATCHES).gradient()
    assert str(caught.value).startswith("the loss is not finite; NaN or infinite values first appear in the ")
    assert told in str(caught.value)
    with pytest.raises(NonFiniteError) as caught:
        warmup.warm_up(model, BATCHES, steps=1, top_lr=1e-3, dtype=torch.float32)
    assert str(caught.value).startswith("the loss at warm-up step 1 is not finite") and told in str(
        caught.value
    )
    assert model.training and not any(module._forward_hooks for module in model.modules())


def fails_at(call):
    """A model that runs out of memory in that forward pass, and from then on."""
    model, calls = learned(), []

    def exhaust(*_):
        calls.append(1)
        if len(calls) >= call:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    model.register_forward_pre_hook(exhaust)
    return model


def measured(call, dtype):
    return sharpness(fails_at(call), BATCHES, dtype=dtype)


def predicted(call, dtype):
    return predict_learning_rate(fails_at(call), BATCHES, dtype=dtype)


@pytest.mark.parametrize("work", [measured, predicted])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_out_of_memory_tells_the_options_with_figures(work, dtype):
    found = work(2, dtype)
    (said,) = found.notes
    assert found.status == "failed"
    assert "out of memory on cpu (" in said and " GB free) at " in said and " tokens" in said
    assert "What helps: shorter rows (--max-length" in said
    assert ("--dtype bfloat16 (about half)" in said) == (dtype is torch.float32)
    assert "Tried to allocate" not in said


def test_out_of_memory_after_a_graph_was_built_tells_what_one_takes(monkeypatch):
    used = iter(range(0, 10**12, 50_000_000))  # each look at the memory finds 50 MB more of it taken
    monkeypatch.setattr("hessian_lr.curvature.plan._used_memory", lambda device: next(used))
    found = measured(2, torch.float32)
    rows = max(len(batch["input_ids"]) for batch in HessianOperator(learned(), BATCHES).batches)
    tokens = 10 * rows
    assert f"at {tokens:,} tokens, whose graph takes 0.05 GB, {50 / tokens:.2f} MB a token" in found.notes[0]


def unlabelled():
    return [batch | {"labels": torch.full_like(batch["labels"], -100)} for batch in BATCHES]


@pytest.mark.parametrize(
    "work",
    [
        lambda: sharpness(learned(), unlabelled()),
        lambda: predict_learning_rate(learned(), unlabelled()),
    ],
)
def test_batches_without_a_label_name_rows_and_field(work):
    with pytest.raises(
        RequestError, match=r"labelled: the field 'labels' is -100 throughout their (16|8) rows"
    ):
        work()


class _Config:
    """What asks the hub, and is refused as transformers tells it."""

    @staticmethod
    def from_pretrained(source, **_options):
        try:
            # Made without the response that its constructor wants to read.
            raise GatedRepoError.__new__(GatedRepoError, "401 Client Error.")
        except GatedRepoError as error:
            raise OSError("You are trying to access a gated repo.") from error


def test_a_gated_model_says_how_to_get_it(monkeypatch):
    monkeypatch.setattr("transformers.AutoConfig", _Config)
    monkeypatch.setattr(hub, "reachable", lambda: True)
    with pytest.raises(RequestError) as caught:
        models.load("owner/name")
    assert "owner/name is gated: ask for access on https://huggingface.co/owner/name" in str(caught.value)
    assert "`hf auth login` (or set HF_TOKEN" in str(caught.value)


def test_a_model_that_is_nowhere_says_how_to_get_it(monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(hub, "reachable", lambda: False)
    with pytest.raises(HessianLRError) as caught:
        models.load("owner/name-that-nobody-has")
    said = str(caught.value)
    assert "the hub cannot be reached" in said and caught.value.exit_status == 1
    assert "hf download owner/name-that-nobody-has --local-dir DIR" in said and "smollm2-135m" in said


def test_a_warm_up_batch_in_parts_steps_as_the_whole_one_does(monkeypatch):
    batches = [counting_batch(6, 3, seed=seed) for seed in range(3)]
    batches[0]["labels"][:2] = -100  # a part without a label
    whole, parts = learned(), learned()
    warmup.warm_up(whole, batches, steps=3, top_lr=1e-3, dtype=torch.float32)
    monkeypatch.setattr(warmup, "PART_TOKENS", 25)  # two rows of ten
    warmup.warm_up(parts, batches, steps=3, top_lr=1e-3, dtype=torch.float32)
    for left, right in zip(whole.parameters(), parts.parameters(), strict=True):
        assert torch.allclose(left, right, rtol=1e-4, atol=1e-6)
    assert not torch.equal(
        next(p for p in whole.parameters() if p.requires_grad), next(learned().parameters())
    )
