"""A sample as batches: what a loss needs of them, and what they hold."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from .errors import RequestError

Batch = Mapping[str, Tensor]
IGNORED = -100


def count_labels(batch: Batch) -> int:
    """The number of positions in a batch whose next token is labelled (after the causal shift)."""
    return int((batch["labels"][:, 1:] != IGNORED).sum())


def count_tokens(batches: Sequence[Batch]) -> int:
    """All tokens of some batches, padding included: what a forward pass is charged for."""
    return sum(int(batch["input_ids"].numel()) for batch in batches)


def require_batches(batches: Sequence[Batch]) -> None:
    """Refuse what no loss can be computed from.

    Raises:
        RequestError: it is not a list of dictionaries with labels of the shape of their ``input_ids``.
    """
    if not isinstance(batches, Sequence) or not batches:
        mend = "write [batch]" if isinstance(batches, Mapping) else "write list(loader)"
        raise RequestError(
            f"expected a list of batches, not a {type(batches).__name__}: {mend}"
            if not isinstance(batches, Sequence)
            else "there are no batches"
        )
    for batch in batches:
        if not isinstance(batch, Mapping):
            raise RequestError(
                f"a batch must be a dictionary of tensors such as input_ids, not a {type(batch).__name__}"
            )
        if missing := [name for name in ("input_ids", "labels") if name not in batch]:
            raise RequestError(f"a batch has no {missing[0]!r}; it has {', '.join(batch) or 'nothing'}")
        if odd := [name for name, value in batch.items() if not isinstance(value, Tensor)]:
            raise RequestError(
                f"the field {odd[0]!r} of a batch is a {type(batch[odd[0]]).__name__}, not a tensor: leave "
                "it out, or let the collator make one of it"
            )
        shape, expected = tuple(batch["labels"].shape), tuple(batch["input_ids"].shape)
        if shape != expected or len(shape) != 2:
            raise RequestError(
                f"labels must have one entry a token, (rows, tokens), and not the shape {shape} where "
                f"input_ids has {expected}: curvature is that of a causal language model's loss"
            )
        if (kind := batch["labels"].dtype) not in (torch.int32, torch.int64):
            raise RequestError(f"labels are token ids, and these are {kind}: make them torch.int64")
        labels = batch["labels"][:, 1:]
        if bool((wrong := (labels < 0) & (labels != IGNORED)).any()):
            raise RequestError(
                f"{int(labels[wrong][0])} is no label: it is {IGNORED} that marks tokens which are not scored"
            )


def require_labels(batches: Sequence[Batch]) -> int:
    """The labelled positions of some batches.

    Raises:
        RequestError: as ``require_batches``, or no position is labelled.
    """
    require_batches(batches)
    total = sum(map(count_labels, batches))
    if not total:
        raise RequestError(
            "no token of these batches is labelled: the field 'labels' is -100 throughout their "
            f"{sum(len(batch['labels']) for batch in batches)} rows; label the tokens of the responses"
        )
    return total


def to_device(batch: Batch, device: torch.device) -> Batch:
    """The batch with its tensors on ``device``."""
    return {name: value.to(device) for name, value in batch.items()}


def rows_of(batch: Batch) -> list[Batch]:
    """Each row of a batch as a batch of its own, where every field has one entry a row."""
    count = len(batch["input_ids"])
    return [{name: value[i : i + 1] for name, value in batch.items()} for i in range(count)]


def trimmed(batch: Batch) -> Batch:
    """The batch without the columns at its end that no row needs, being masked and not labelled.

    A causal model computes the same for what stands before them. A batch without a mask stays as it is, and
    so does one with entries of another shape than (rows, columns), whose columns cannot be told apart.
    """
    mask, labels = batch.get("attention_mask"), batch["labels"]
    if mask is None or any(value.shape != labels.shape for value in batch.values()):
        return batch
    # What is labelled counts, as in the model's own loss, though its token be masked.
    needed = ((mask != 0) | (labels != IGNORED)).any(dim=0)
    if not bool(needed.any()):
        return batch
    used = int(needed.nonzero().max()) + 1
    return {name: value[:, :used] for name, value in batch.items()}
