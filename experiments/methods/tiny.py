"""Four tiny models in folders, taught to subtract, with a tokenizer; and rows of sums to tune them on."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from hessian_lr.atomic import write_bytes

SPECIAL = ("<s>", "</s>", "<pad>")
# A token a byte.
VOCABULARY = {token: i for i, token in enumerate((*SPECIAL, *sorted(pre_tokenizers.ByteLevel.alphabet())))}
NEWLINE = "Ċ"  # as byte-level tokenizers write it
# Of the embedding: more than the tokens, as in most models, for some tokenizers add one of their own.
ROWS = 264
SPREAD = 0.1
# Of the lessons in subtraction.
STEPS, BATCH, LR = 300, 16, 3e-3
SHAPE: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "vocab_size": ROWS,
    "max_position_embeddings": 64,
    "initializer_range": SPREAD,
}
IDS: dict[str, Any] = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2}


def _llama() -> PreTrainedModel:
    return LlamaForCausalLM(LlamaConfig(**SHAPE, **IDS, num_key_value_heads=1, tie_word_embeddings=True))


def _qwen2() -> PreTrainedModel:
    return Qwen2ForCausalLM(Qwen2Config(**SHAPE, **IDS, num_key_value_heads=2))


def _gemma2() -> PreTrainedModel:
    own = {"num_key_value_heads": 2, "head_dim": 8, "query_pre_attn_scalar": 8, "sliding_window": 8}
    return Gemma2ForCausalLM(Gemma2Config(**SHAPE, **IDS, **own))


def _gpt2() -> PreTrainedModel:
    shape = {"n_embd": 32, "n_inner": 48, "n_layer": 2, "n_head": 4, "n_positions": 64}
    return GPT2LMHeadModel(GPT2Config(**shape, **IDS, vocab_size=ROWS, initializer_range=SPREAD))


#: What each adds to the tests: grouped queries and a tied head; biases; capped logits, norms after the
#: layers and a sliding window; Conv1D with q, k and v in one weight.
ARCHITECTURES: dict[str, Callable[[], PreTrainedModel]] = {
    "llama": _llama,
    "qwen2": _qwen2,
    "gemma2": _gemma2,
    "gpt2": _gpt2,
}


def model_folder(architecture: str, folder: Path) -> Path:
    """The model and its tokenizer under ``folder``; what is there is kept."""
    path = folder / architecture
    if not (path / "model.safetensors").exists():
        _tokenizer().save_pretrained(path)
        _subtracting(architecture).save_pretrained(path)
    return path


def _subtracting(architecture: str) -> PreTrainedModel:
    """A model that has been taught to take one digit from two, in rows as the sums will be.

    Random weights have nothing to lose: no step is too long for them, and no learning rate too high.
    """
    draw = random.Random(0)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)  # of the lessons, too: GPT-2 has dropout
        model = ARCHITECTURES[architecture]().train()
        optimizer = torch.optim.AdamW(model.parameters(), lr=LR)
        for _ in range(STEPS):
            pairs = [(draw.randrange(19, 100), draw.randrange(10)) for _ in range(BATCH)]
            rows = [[*f"{a}-{b}=", NEWLINE, *str(a - b), "</s>"] for a, b in pairs]
            ids = torch.tensor([[VOCABULARY[token] for token in row] for row in rows])
            model(input_ids=ids, labels=ids).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
    return model.eval()


def _tokenizer() -> PreTrainedTokenizerFast:
    core = Tokenizer(BPE(vocab=VOCABULARY, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    core.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=core, bos_token="<s>", eos_token="</s>", pad_token="<pad>"
    )


def rows_file(folder: Path) -> Path:
    """A hundred sums as JSONL with the columns prompt and response."""
    rows = [{"prompt": f"{a}+{b}=", "response": str(a + b)} for a in range(10) for b in range(10, 20)]
    path = folder / "sums.jsonl"
    write_bytes(path, "".join(json.dumps(row) + "\n" for row in rows).encode())
    return path
