"""Pretrain the bench's small models: `python -m experiments.lr_bench.pretrain llama-3m`.

A tokenizer of 4,096 byte pairs is made once and shared. Each model takes some twenty minutes on one
CPU core; the weights are kept in bfloat16 in ``models/NAME``, which `hessian-lr --model` takes as it is.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    LlamaConfig,
    PreTrainedConfig,
    PreTrainedTokenizerFast,
    Trainer,
    TrainingArguments,
    default_data_collator,
)

from .corpus import pieces

MODELS = Path(__file__).parent / "models"
VOCABULARY, CONTEXT = 4_096, 256
BATCH, LEARNING_RATE, SEED = 16, 2e-3, 0
END = "<|endoftext|>"


def _llama(**common: Any) -> PreTrainedConfig:
    return LlamaConfig(
        hidden_size=192,
        intermediate_size=512,
        num_hidden_layers=6,
        num_attention_heads=6,
        num_key_value_heads=2,
        max_position_embeddings=1_024,
        tie_word_embeddings=True,
        **common,
    )


def _gpt2(**common: Any) -> PreTrainedConfig:
    return GPT2Config(n_embd=160, n_layer=5, n_head=5, n_positions=1_024, **common)


CONFIGURATIONS: dict[str, Callable[..., PreTrainedConfig]] = {
    "llama-3m": _llama,
    "gpt2-2m": _gpt2,
}


def tokenizer(texts: list[str]) -> PreTrainedTokenizerFast:
    """The shared tokenizer, from its folder or trained on every fourth piece."""
    folder = MODELS / "tokenizer"
    if folder.is_dir():
        return PreTrainedTokenizerFast.from_pretrained(folder)
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    made.train_from_iterator(texts[::4], trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=made, eos_token=END, pad_token=END)
    fast.save_pretrained(folder)
    return fast


def blocks(texts: list[str], fast: PreTrainedTokenizerFast) -> datasets.Dataset:
    """The pieces one after another, an end token after each, cut into contexts."""
    ids = fast(texts, add_special_tokens=False)["input_ids"]
    stream = list(itertools.chain.from_iterable([*piece, fast.eos_token_id] for piece in ids))
    whole = len(stream) // CONTEXT * CONTEXT
    rows = torch.tensor(stream[:whole]).view(-1, CONTEXT)
    return datasets.Dataset.from_dict({"input_ids": rows.tolist(), "labels": rows.tolist()})


def pretrain(name: str, steps: int) -> None:
    texts = pieces()
    fast = tokenizer(texts)
    data = blocks(texts, fast)
    torch.manual_seed(SEED)
    configuration = CONFIGURATIONS[name](
        vocab_size=VOCABULARY,
        bos_token_id=fast.eos_token_id,
        eos_token_id=fast.eos_token_id,
        pad_token_id=fast.pad_token_id,
    )
    model = AutoModelForCausalLM.from_config(configuration, dtype=torch.float32)
    print(
        f"{name}: {model.num_parameters():,} parameters, {len(data) * CONTEXT:,} tokens of text", flush=True
    )
    arguments = TrainingArguments(
        output_dir=f"runs/pretrain/{name}",
        learning_rate=LEARNING_RATE,
        lr_scheduler_type="cosine",
        warmup_steps=100,
        weight_decay=0.1,
        max_steps=steps,
        per_device_train_batch_size=BATCH,
        bf16=True,
        use_cpu=True,
        seed=SEED,
        save_strategy="no",
        logging_steps=100,
        report_to=[],
        disable_tqdm=True,
        dataloader_pin_memory=False,
    )
    trainer = Trainer(model=model, args=arguments, train_dataset=data, data_collator=default_data_collator)
    trainer.train()
    trained = trainer.accelerator.unwrap_model(trainer.model_wrapped, keep_fp32_wrapper=False)
    trained.to(torch.bfloat16).save_pretrained(MODELS / name)
    fast.save_pretrained(MODELS / name)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", choices=list(CONFIGURATIONS))
    parser.add_argument("--steps", type=int, default=1_500)
    asked = parser.parse_args()
    pretrain(asked.name, asked.steps)
