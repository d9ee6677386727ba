"""A model, data and setting small enough to train in a second; as a script, a sweep into a folder.

The tests load this file; the test that kills a sweep runs it: ``python tiny_sweep.py OUT``.
"""

import random
import sys
from pathlib import Path
from types import SimpleNamespace

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from hessian_lr.data import Example, TaskData
from hessian_lr.data.encode import digest_of
from hessian_lr.models import LoadedModel, fingerprint
from hessian_lr.setting import Setting
from hessian_lr.sweep import sweep

SETTING = Setting(model="tiny", data="tiny", rank=4, steps=12, batch_size=4, device="cpu", dtype="float32")
LRS = (0.03, 0.1, 0.3)
SEEDS = (0, 1)


def tiny_model(weights_seed=0):
    config = LlamaConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        initializer_range=0.2,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(weights_seed)
        model = LlamaForCausalLM(config)
    model.config.use_cache = False
    model.requires_grad_(False).eval()
    return LoadedModel(model, SimpleNamespace(pad_token_id=0), "tiny", fingerprint(model))


def tiny_data(seed=0):
    """Prompts of any tokens, answered by tokens of a small set: something an adapter can learn."""
    draw = random.Random(seed)
    examples = []
    for _ in range(48):
        prompt = [draw.randrange(1, 64) for _ in range(draw.randrange(3, 9))]
        answer = [draw.choice((5, 6, 7)) for _ in range(draw.randrange(2, 6))]
        examples.append(Example((*prompt, *answer), (*[-100] * len(prompt), *answer)))
    train, heldout = tuple(examples[:40]), tuple(examples[40:])
    return TaskData(train, heldout, (), digest_of(train, heldout))


def tiny_sweep(out, **changes):
    arguments = {"start_lr": 0.1, "lrs": LRS, "seeds": SEEDS, "out": Path(out)} | changes
    return sweep(SETTING, tiny_model(), tiny_data(), **arguments)


if __name__ == "__main__":
    torch.set_num_threads(1)  # as the tests do: the number of threads decides the last digits
    tiny_sweep(sys.argv[1])
