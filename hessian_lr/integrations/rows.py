"""Rows of a Trainer's training set, in batches as its own collator makes them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ..batches import Batch, count_labels
from ..errors import RequestError
from ..prepare import split_rows
from ..setting import Setting

NEEDED = ("input_ids", "labels")
_SHOWN = 5


@dataclass(frozen=True)
class Sample:
    """What a prediction works on.

    Attributes:
        warmup: Batches of an optimizer step's size.
        measure: The curvature sample, a batch a row; none of its rows is in ``warmup``.
        notes: What a reader should know of the rows that were taken.
    """

    warmup: Sequence[Batch]
    measure: Sequence[Batch]
    notes: tuple[str, ...]


def sample(
    dataset: Any,
    collate: Callable[[list[Any]], Mapping[str, Any]],
    *,
    batch_size: int,
    samples: int,
    seed: int,
) -> Sample:
    """Draw rows of a training set by index; its sampler is not asked, and so not moved.

    Args:
        dataset: Rows by number, ``len`` of them.
        collate: Turns a list of rows into a batch.
        batch_size: Rows of an optimizer step, over all devices and accumulated batches.
        samples: Rows to measure on.
        seed: Seed of the draw.

    Raises:
        RequestError: rows cannot be drawn by number, there are fewer than two, or their batches lack
            what the loss needs; the message names the rows and the field.
    """
    by_number = hasattr(dataset, "__getitem__") and hasattr(dataset, "__len__")
    # torch's has both names and raises.
    if isinstance(dataset, torch.utils.data.IterableDataset) or not by_number:
        raise RequestError(
            f"the training set ({type(dataset).__name__}) gives its rows in one order only, and reading "
            f"ahead would take them from the run: give the callback batches=[...] of {batch_size} rows to "
            "measure on"
        )
    order = torch.randperm(len(dataset), generator=torch.Generator().manual_seed(seed)).tolist()
    asked = Setting(data="the training set", batch_size=batch_size, samples=samples)
    chosen, warmup, notes = split_rows(asked, order)

    def batch(numbers: Sequence[int]) -> Batch:
        return _checked(collate([dataset[number] for number in numbers]), numbers)

    measure = [batch([number]) for number in chosen]
    if not any(map(count_labels, measure)):
        raise _unlabelled(chosen)
    steps = [batch(warmup[start : start + batch_size]) for start in range(0, len(warmup), batch_size)]
    if not any(map(count_labels, steps)):
        raise _unlabelled(warmup)
    return Sample(steps, measure, notes)


def _checked(made: Mapping[str, Any], numbers: Sequence[int]) -> Batch:
    batch = {name: value for name, value in made.items() if isinstance(value, torch.Tensor)}
    if absent := [name for name in NEEDED if name not in batch]:
        raise RequestError(
            f"the collator's batch of row {numbers[0]} has no field {absent[0]!r} (it has "
            f"{', '.join(made)}); a learning rate is predicted for the cross-entropy of labelled tokens only"
        )
    if len(batch["input_ids"]) != len(numbers):
        raise RequestError(
            f"the collator made {len(batch['input_ids'])} rows of {len(numbers)}: rows packed into one "
            "cannot be measured apart; train with packing=False and padding_free=False, or give the callback "
            "batches=[...] to measure on, each of as many rows as an optimizer step has"
        )
    return batch


def _unlabelled(numbers: Sequence[int]) -> RequestError:
    shown = ", ".join(map(str, numbers[:_SHOWN])) + (", …" if len(numbers) > _SHOWN else "")
    return RequestError(
        f"no token of the training set's rows {shown} is labelled: the field 'labels' is -100 throughout. "
        "Check the collator, the chat template's mask of the assistant's turns, and that max_length does not "
        "cut the responses off"
    )
