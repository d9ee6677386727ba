"""Tiny models with adapters, batches, and dense Hessians to hold results against."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from hessian_lr.methods import build
from hessian_lr.setting import Setting

VOCABULARY = 23


def _llama() -> PreTrainedModel:
    return LlamaForCausalLM(LlamaConfig(**_SHAPE, num_key_value_heads=1, tie_word_embeddings=True))


def _qwen2() -> PreTrainedModel:
    return Qwen2ForCausalLM(Qwen2Config(**_SHAPE, num_key_value_heads=2))


def _gemma2() -> PreTrainedModel:
    # Gemma caps its logits after the head and uses its own attention scaling.
    return Gemma2ForCausalLM(
        Gemma2Config(**_SHAPE, num_key_value_heads=1, head_dim=4, query_pre_attn_scalar=4, sliding_window=6)
    )


def _gpt2() -> PreTrainedModel:
    return GPT2LMHeadModel(
        GPT2Config(n_embd=8, n_layer=2, n_head=2, n_positions=32, vocab_size=VOCABULARY, n_inner=12)
    )


_SHAPE = {
    "hidden_size": 8,
    "intermediate_size": 12,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "vocab_size": VOCABULARY,
    "max_position_embeddings": 32,
}
ARCHITECTURES: dict[str, Callable[[], PreTrainedModel]] = {
    "llama": _llama,
    "qwen2": _qwen2,
    "gemma2": _gemma2,
    "gpt2": _gpt2,
}


def base_model(architecture: str, seed: int = 0) -> PreTrainedModel:
    """A random tiny float32 model whose weights are larger than training would start with."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = ARCHITECTURES[architecture]()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.2 * torch.randn_like(parameter))
    return model.eval()


def adapted(
    architecture: str = "gpt2",
    dtype: torch.dtype = torch.float64,
    *,
    rank: int = 2,
    alpha: float = 2,
    moved: bool = True,
    seed: int = 0,
) -> PeftModel:
    """A tiny model with a LoRA adapter; ``moved``: away from B = 0, so that every block of H is there."""
    with torch.random.fork_rng():
        torch.manual_seed(seed + 1)
        configuration = LoraConfig(
            r=rank, lora_alpha=alpha, target_modules="all-linear", task_type="CAUSAL_LM"
        )
        model = get_peft_model(base_model(architecture, seed), configuration)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.requires_grad and moved:
                    parameter.add_(0.3 * torch.randn_like(parameter))
    return model.to(dtype)


def counting_batch(samples: int, step: int, seed: int) -> dict[str, Tensor]:
    """Rows that count up by ``step`` from a random start, modulo the vocabulary, one token in five wrong."""
    generator = torch.Generator().manual_seed(seed)
    start = torch.randint(0, VOCABULARY, (samples, 1), generator=generator)
    ids = (start + step * torch.arange(10)) % VOCABULARY
    noise = torch.rand(ids.shape, generator=generator) < 0.2
    ids = torch.where(noise, torch.randint(0, VOCABULARY, ids.shape, generator=generator), ids)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids.clone()}


def learnable(count: int, seed: int = 0) -> list[dict[str, Tensor]]:
    """Batches of a task that ``learned`` has not learned: counting by three."""
    return [counting_batch(8, 3, seed + index) for index in range(count)]


@lru_cache
def _learned_weights(steps: int = 300) -> dict[str, Tensor]:
    model = base_model("llama")
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for step in range(steps):
        batch = counting_batch(16, 1 if step % 2 else 2, seed=10_000 + step)
        model(**batch, use_cache=False).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return model.state_dict()


def with_reentrant_checkpoint(model: PeftModel) -> PeftModel:
    """The model, its first layer behind a checkpoint of the kind that cannot be differentiated twice."""
    model.enable_input_require_grads()
    layer = model.get_base_model().model.layers[0]
    plain = layer.forward
    layer.forward = lambda x, **more: checkpoint(lambda y: plain(y, **more), x, use_reentrant=True)
    return model


def learned(alpha: float = 4, *, method: str = "lora") -> PeftModel:
    """A tiny Llama that has learned to count by one and two, with a fresh adapter of rank 4.

    Unlike random weights it has something to lose, so that steps can be too long.
    """
    model = base_model("llama")
    model.load_state_dict(_learned_weights())
    model.requires_grad_(False)
    return build(model, Setting(method=method, rank=4, alpha=alpha, seed=3))


def make_batch(
    samples: int, tokens: int, seed: int, *, unscored: int = 3, padding: int = 0
) -> dict[str, Tensor]:
    """A random batch; the first ``unscored`` tokens carry no label, the last ``padding`` are masked."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(0, VOCABULARY, (samples, tokens), generator=generator)
    labels, mask = ids.clone(), torch.ones_like(ids)
    labels[:, :unscored] = -100
    if padding:
        labels[0, -padding:] = -100
        mask[0, -padding:] = 0
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


def dense_hessian(model: PeftModel, batches: Sequence[dict[str, Tensor]]) -> Tensor:
    """The full Hessian (n, n) by torch.func.hessian of a loss written out here, position by position."""
    names = [name for name, p in model.named_parameters() if p.requires_grad]
    values = [dict(model.named_parameters())[name].detach() for name in names]
    sizes = [v.numel() for v in values]
    flat = torch.cat([v.reshape(-1) for v in values])

    def loss(vector: Tensor) -> Tensor:
        pieces = {
            name: piece.view_as(value)
            for name, piece, value in zip(names, vector.split(sizes), values, strict=True)
        }
        total, count = torch.zeros((), dtype=vector.dtype), 0
        for batch in batches:
            inputs = {
                "input_ids": batch["input_ids"],
                "attention_mask": batch["attention_mask"],
                "use_cache": False,
            }
            logits = torch.func.functional_call(model, pieces, (), inputs).logits
            logarithms = torch.log_softmax(logits[:, :-1], dim=-1)
            labels = batch["labels"][:, 1:]
            scored = labels != -100
            picked = logarithms.gather(-1, labels.clamp(min=0).unsqueeze(-1)).squeeze(-1)
            total = total - (picked * scored).sum()
            count += int(scored.sum())
        return total / count

    model.set_attn_implementation("eager")
    for module in model.modules():
        if hasattr(module, "act_fn"):
            # The fused activations have no forward-mode derivative; their formulas do.
            module.act_fn = _SiLU() if "silu" in str(module.act_fn).lower() else _GELUTanh()
    with torch.no_grad():
        return torch.func.hessian(loss)(flat)


class _SiLU(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(x)


class _GELUTanh(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def with_adapter(model: PreTrainedModel, **more: Any) -> PeftModel:
    """A plain LoRA of rank 2, of one seed, on a model."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return get_peft_model(model.eval(), LoraConfig(r=2, lora_alpha=2, task_type="CAUSAL_LM", **more))


def random_vector(size, seed=0, dtype=torch.float64):
    return torch.randn(size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)
