"""Tiny models of four families, and adapters of every method on them."""

from __future__ import annotations

import torch
import transformers
from peft import PeftModel
from transformers import PreTrainedModel

from hessian_lr import methods
from hessian_lr.setting import Setting

VOCAB = 64
SMALL = {"vocab_size": VOCAB, "bos_token_id": 0, "eos_token_id": 1, "attn_implementation": "eager"}
BLOCKS = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
HEADS = {"num_attention_heads": 4, "num_key_value_heads": 2}

# Fixed by what users and scripts type; more may come, none may go.
NAMES = ["lora", "rslora", "dora", "pissa", "milora", "olora", "init-ab"]
NAMES += ["lora-ga", "lora-ga-peft", "gralora", "randlora", "dora-exact", "lora+", "loft"]
# They start from the weights alone, so that the seed has nothing to decide.
DETERMINISTIC = {"pissa", "milora", "olora"}


def llama() -> PreTrainedModel:
    torch.manual_seed(1)
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**SMALL, **BLOCKS, **HEADS)).eval()


def qwen2() -> PreTrainedModel:
    torch.manual_seed(2)
    return transformers.Qwen2ForCausalLM(
        transformers.Qwen2Config(**SMALL, **BLOCKS, **HEADS, tie_word_embeddings=True)
    ).eval()


def gpt2() -> PreTrainedModel:
    torch.manual_seed(3)
    return transformers.GPT2LMHeadModel(
        transformers.GPT2Config(**SMALL, n_embd=32, n_layer=2, n_head=4, n_positions=32)
    ).eval()


def gemma() -> PreTrainedModel:
    torch.manual_seed(4)
    return transformers.GemmaForCausalLM(
        transformers.GemmaConfig(**SMALL, **BLOCKS, **HEADS, head_dim=8)
    ).eval()


FAMILIES = {"llama": llama, "qwen2": qwen2, "gpt2": gpt2, "gemma": gemma}
# OLoRA on GPT-2's Conv1D is refused (below).
CASES = [(name, family) for name in NAMES for family in FAMILIES if (name, family) != ("olora", "gpt2")]


def setting(method: str, **changes: object) -> Setting:
    return Setting(**{"method": method, "rank": 4, "alpha": 6.5, "seed": 5, **changes})


def tokens() -> torch.Tensor:
    return torch.randint(0, VOCAB, (2, 11), generator=torch.Generator().manual_seed(0))


def batches() -> list[dict[str, torch.Tensor]]:
    """Training data for the methods that start from a gradient."""
    ids = tokens()
    return [{"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids}]


def build(model: PreTrainedModel, wanted: Setting) -> PeftModel:
    return methods.build(model, wanted, batches())


def adapter(model: PeftModel) -> dict[str, torch.Tensor]:
    """What the method added: its trained parameters, and RandLoRA's fixed bases."""
    names = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    return {
        name: value.clone()
        for name, value in [*model.named_parameters(), *model.named_buffers()]
        if name in names or "randlora_A" in name or "randlora_B" in name
    }


def perturb(model: PeftModel, size: float = 0.05) -> None:
    generator = torch.Generator().manual_seed(9)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
                parameter.add_(size * noise)
