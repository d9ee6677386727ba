"""Tokens that a model has no row for, in its table of words or of positions, named before they are run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..batches import Batch
from ..errors import RequestError
from .modes import base_model

# Rows that a table of positions has beyond the configuration's: OPT and its like keep two for padding.
_SPARE = 2


def require_inputs(model: nn.Module, batches: Sequence[Batch]) -> None:
    """Refuse token ids without an embedding, and rows longer than a learned table of positions.

    Of both torch says "index out of range" and no more, and a GPU is of no use to the process afterwards.
    What cannot be told is let pass: another kind of embeddings, a model of images or sound too, which has ids
    of its own for these, and positions that the batch gives or the model computes (rotary ones have no end).

    Args:
        model: A causal language model, with or without a PEFT adapter.
        batches: As ``require_batches`` lets them pass. A GPU that they lie on is waited for once.

    Raises:
        RequestError: there are such tokens; names one, and the likely mend.
    """
    base = base_model(model)
    config = getattr(base, "config", None)
    holder = _words(base)
    table = _unwrapped(holder)
    batches = [batch for batch in batches if batch["input_ids"].numel()]
    if table is None or not batches or not _reads_text_alone(config):
        return
    least, most, longest = _extremes(batches)
    rows = _rows(table)
    if least < 0 or most >= rows:
        raise RequestError(
            f"{least if least < 0 else most} is no token of this model, whose input embedding has the ids "
            f"0 to {rows - 1}: is the tokenizer the model's own? Tokens that were added to it need "
            "model.resize_token_embeddings(len(tokenizer)), before the adapter"
        )
    limit = getattr(config, "max_position_embeddings", None)
    if isinstance(limit, int) and longest > limit and _has_table(base, holder, limit):
        raise RequestError(
            f"a row has {longest:,} tokens, and this model has learned {limit:,} positions: cut the rows, "
            f"such as by the tokenizer's max_length={limit} with truncation=True"
        )


def _words(base: Any) -> Any:
    """What the model says embeds its tokens; PEFT may have wrapped it."""
    try:
        return base.get_input_embeddings()
    except (AttributeError, RuntimeError):  # it has none, or says that nobody wrote which
        return None


def _unwrapped(holder: Any) -> nn.Embedding | None:
    while holder is not None and not isinstance(holder, nn.Embedding):
        holder = getattr(holder, "base_layer", getattr(holder, "original_module", None))
    return holder


def _reads_text_alone(config: Any) -> bool:
    """Whether no part of the configuration is that of the text, beside others."""
    try:
        return config is not None and config.get_text_config() is config
    except (AttributeError, ValueError):  # it is not transformers' own, or has several
        return False


def _rows(table: nn.Embedding) -> int:
    """How many ids can be looked up: a weight that was exchanged may have more rows than the module says."""
    # One of four bits is bytes in one column.
    weight = table.weight
    return max(table.num_embeddings, len(weight) if weight.dim() == 2 and weight.is_floating_point() else 0)


def _has_table(base: nn.Module, words: nn.Module, limit: int) -> bool:
    """Whether positions are looked up in a table that was learned, as GPT-2's and OPT's are."""
    others = {*base.modules()} - {*words.modules()}
    return any(isinstance(m, nn.Embedding) and limit <= m.num_embeddings <= limit + _SPARE for m in others)


def _extremes(batches: Sequence[Batch]) -> list[int]:
    """The least and the largest token id, and the most tokens of a row whose positions are not given."""
    told = []
    for batch in batches:
        ids, mask = batch["input_ids"], batch.get("attention_mask")
        longest = torch.tensor(0 if "position_ids" in batch else ids.shape[1])
        if mask is not None and mask.shape == ids.shape and "position_ids" not in batch:
            # Padding counts for nothing: models differ in whether it takes positions.
            longest = (mask != 0).sum(1).max()
        told.append((ids.min(), ids.max(), longest))
    device = batches[0]["input_ids"].device
    numbers: list[Tensor] = [
        torch.stack([one.to(device) for one in each]) for each in zip(*told, strict=True)
    ]
    least, most, longest = numbers
    return torch.stack([least.min(), most.max(), longest.max()]).tolist()
