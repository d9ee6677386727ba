"""Tokens and rows that a model has no table for are named, and none is refused that it can run on."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from tiny_models import VOCABULARY, adapted, base_model, make_batch, with_adapter
from tolerances import SAME_LAMBDA
from torch import nn
from transformers import LlamaConfig, OPTConfig, OPTForCausalLM

import hessian_lr as hlr
from hessian_lr.curvature.inputs import require_inputs
from hessian_lr.errors import RequestError

BATCHES = [make_batch(4, 12, 1)]


def _with_token(token):
    ids = BATCHES[0]["input_ids"].clone()
    ids[1, 2] = token
    return [BATCHES[0] | {"input_ids": ids}]


CALLS = {
    "sharpness": hlr.sharpness,
    "central differences": partial(hlr.sharpness, operator="central-differences"),
    "modules": hlr.module_sharpness,
    "held out": lambda model, batches: hlr.sharpness(model, BATCHES, held_out=batches),
    "prediction": lambda model, batches: hlr.predict_learning_rate(model, [*batches, *batches]),
    "warm-up": lambda model, batches: hlr.predict_learning_rate(model, BATCHES, warmup_batches=batches),
    "tracker": lambda model, batches: hlr.SharpnessTracker(batches).update(model, 0),
}


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("token", [VOCABULARY, -1])
def test_tokens_beyond_the_vocabulary_are_named(call, token):
    with pytest.raises(RequestError, match=rf"^{token} is no token .* 0 to {VOCABULARY - 1}: .*resize_token"):
        CALLS[call](adapted("llama", torch.float32), _with_token(token))


def _opt():
    shape = {"hidden_size": 8, "ffn_dim": 12, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = OPTForCausalLM(
        OPTConfig(vocab_size=VOCABULARY, max_position_embeddings=32, word_embed_proj_dim=8, **shape)
    )
    return with_adapter(model, target_modules=["q_proj", "fc1"])


LEARNED_POSITIONS = {"gpt2": lambda: adapted("gpt2", torch.float32), "opt": _opt}


@pytest.mark.parametrize("name", LEARNED_POSITIONS)
@pytest.mark.parametrize("call", [name for name in CALLS if name != "modules"])
def test_rows_longer_than_learned_positions_are_named(name, call):
    with pytest.raises(RequestError, match=r"^a row has 33 tokens, and this model has learned 32 positions"):
        CALLS[call](LEARNED_POSITIONS[name](), [make_batch(2, 33, seed=1)])


def _resized():
    model = base_model("llama")
    model.resize_token_embeddings(VOCABULARY + 3, mean_resizing=False)
    return with_adapter(model, target_modules=["q_proj"])


# What is measured though a table's size may look too small, by what model and on which batch.
LET_PASS = {
    "rotary positions": (lambda: adapted("llama", torch.float32), make_batch(2, 40, seed=1)),
    "padding beyond positions": (
        lambda: adapted("gpt2", torch.float32),
        make_batch(1, 40, seed=1, padding=9),
    ),
    "positions of packed rows": (
        lambda: adapted("gpt2", torch.float32),
        make_batch(2, 40, seed=1) | {"position_ids": torch.arange(40).remainder(20).expand(2, 40)},
    ),
    "a vocabulary made larger": (_resized, _with_token(VOCABULARY + 2)[0]),
    "an adapter on embeddings": (
        lambda: with_adapter(base_model("llama"), target_modules=["embed_tokens", "q_proj"]),
        make_batch(2, 40, seed=1),
    ),
    "embeddings trained too": (
        lambda: with_adapter(base_model("gpt2"), target_modules=["c_attn"], modules_to_save=["wte"]),
        BATCHES[0],
    ),
    "tokens trained too": (
        lambda: with_adapter(base_model("llama"), target_modules=["q_proj"], trainable_token_indices=[1, 2]),
        BATCHES[0],
    ),
}


@pytest.mark.parametrize("name", LET_PASS)
def test_tables_that_are_large_enough_are_let_pass(name):
    make, batch = LET_PASS[name]
    assert hlr.sharpness(make(), [batch]).status != "failed"


@pytest.mark.parametrize("missing", ["no embeddings", "none that is told", "images too"])
def test_where_tables_cannot_be_told_nothing_is_refused(missing, monkeypatch):
    model = adapted("llama", torch.float32)
    base, unknown = model.get_base_model(), _with_token(VOCABULARY)
    with pytest.raises(RequestError, match="no token of this model"):
        require_inputs(model, unknown)
    if missing == "images too":
        monkeypatch.setattr(base.config, "get_text_config", lambda: LlamaConfig(), raising=False)
    else:
        words = nn.Identity() if missing == "no embeddings" else None
        monkeypatch.setattr(base, "get_input_embeddings", lambda: words)
    assert require_inputs(model, unknown) is None, "what was refused before is let pass"


def test_what_is_cut_off_as_padding_may_hold_any_id_in_held_out_rows_too():
    batch = make_batch(1, 12, 1, padding=3)
    batch["input_ids"][batch["attention_mask"] == 0] = -1
    found = hlr.sharpness(adapted("llama", torch.float32), [batch], held_out=[batch])
    assert found.held_out == pytest.approx(found.lambda_max, rel=SAME_LAMBDA)
