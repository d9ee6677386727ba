"""Rows longer than a model's positions: refused where the model itself would fail, and nowhere else."""

from types import SimpleNamespace

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from hessian_lr.data import Example, TaskData
from hessian_lr.errors import RequestError
from hessian_lr.limits import check_lengths
from hessian_lr.models import LoadedModel

LIMIT = 40
GPT = {"n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": LIMIT}
OTHER = {
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "max_position_embeddings": LIMIT,
}
KINDS = {
    "gpt2": GPT,
    "gptj": GPT | {"rotary_dim": 4},
    "opt": OTHER | {"ffn_dim": LIMIT, "word_embed_proj_dim": 16},
    "gpt_neox": OTHER | {"intermediate_size": LIMIT},
    "llama": OTHER | {"intermediate_size": LIMIT, "num_key_value_heads": 2},
    "bloom": {"hidden_size": 16, "n_layer": 1, "n_head": 2},
}


def data(longest):
    rows = [Example(tuple(range(1, length + 1)), (-100,) * length) for length in (3, longest)]
    return TaskData((rows[0],), (rows[1],), (), "digest")


@pytest.mark.parametrize("kind", KINDS)
def test_a_row_is_refused_where_the_model_cannot_take_it(kind):
    with torch.random.fork_rng(devices=[]):
        config = AutoConfig.for_model(
            kind, vocab_size=99, bos_token_id=1, eos_token_id=2, pad_token_id=0, **KINDS[kind]
        )
        model = AutoModelForCausalLM.from_config(config).eval()
    loaded = LoadedModel(model, SimpleNamespace(), "tiny", "fingerprint")
    assert check_lengths(loaded, data(LIMIT)) == ()
    model(torch.ones(1, LIMIT, dtype=torch.int64))
    try:
        model(torch.ones(1, LIMIT + 1, dtype=torch.int64))
    except IndexError:
        with pytest.raises(
            RequestError, match=r"tiny has 40 positions and the longest row has 41 .* 40 or less"
        ):
            check_lengths(loaded, data(LIMIT + 1))
    else:
        notes = check_lengths(loaded, data(LIMIT + 1))
        assert len(notes) == (kind != "bloom") and all("made for no rows as long" in note for note in notes)
