"""From a setting to what is measured: an adapted model, a curvature sample, and batches to warm up on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

import torch

from . import methods
from .batches import Batch
from .data import TaskData, make_batches
from .devices import precision_notes, resolve_device, resolve_dtype
from .errors import HessianLRError, RequestError
from .exhausted import memory_errors
from .measure.warmup import WARMUP_STEPS
from .setting import AUTO, Setting

if TYPE_CHECKING:
    from peft import PeftModel

    from .models import LoadedModel

Row = TypeVar("Row")


@dataclass(frozen=True)
class Prepared:
    """What a measurement works on.

    Attributes:
        model: The adapted model, at its initialization.
        batches: The curvature sample, a batch a row, in the order of the data.
        held_out: As many other rows, which neither the sample nor the warm-up has; fewer or none where
            the data has no more.
        warmup_batches: Batches of the run's own size; they share no row with ``batches``.
        dtype: Precision of the products.
        notes: What a reader should know of the rows that were taken, and of the precision.
    """

    model: PeftModel
    batches: list[Batch]
    held_out: list[Batch]
    warmup_batches: list[Batch]
    dtype: torch.dtype
    notes: tuple[str, ...]


def prepare(setting: Setting, loaded: LoadedModel, data: TaskData) -> Prepared:
    """Build the adapter of ``setting`` on a copy of the model, and take its batches from the data.

    Raises:
        RequestError: the method does not fit the model, or the data has fewer than two rows.
        HessianLRError: out of memory.
    """
    sample, warmup, notes = split_rows(setting, data.train)
    spare = data.train[len(warmup) : len(data.train) - len(sample)][-len(sample) :]
    pad_id = loaded.tokenizer.pad_token_id
    try:
        with memory_errors():
            model = methods.adapted(setting, loaded, data)
    except (MemoryError, torch.OutOfMemoryError) as error:
        raise HessianLRError(
            f"out of memory while building the {setting.method!r} adapter on a copy of {setting.model}; "
            "free memory, or use a smaller model or rank"
        ) from error
    device, runs_on = next(model.parameters()).device, resolve_device(setting.device)
    return Prepared(
        model=model,
        # A row each: the operator puts them together as suits the device.
        batches=make_batches(sample, 1, pad_id, device),
        held_out=make_batches(spare, 1, pad_id, device),
        warmup_batches=make_batches(warmup, setting.batch_size, pad_id, device),
        dtype=resolve_dtype(setting.dtype, runs_on),
        notes=(*precision_notes(setting.dtype, runs_on), *notes),
    )


def split_rows(setting: Setting, rows: Sequence[Row]) -> tuple[Sequence[Row], Sequence[Row], tuple[str, ...]]:
    """The curvature sample (the last rows) and the rows to warm up on (the first); never one row in both.

    Where there are too few for both, each gets what it needs up to half of them, and a note says so.

    Returns:
        (sample, warm-up rows, notes)

    Raises:
        RequestError: there are fewer than two rows.
    """
    if len(rows) < 2:
        raise RequestError(
            f"{setting.data} has {len(rows)} training rows, but at least 2 are needed: one to warm up on and "
            "one to measure on"
        )
    wanted = WARMUP_STEPS * setting.batch_size
    asked = setting.most_samples
    taken = min(asked, max(len(rows) - wanted, len(rows) // 2))
    warmup = min(wanted, len(rows) - taken)
    notes = []
    if taken < asked:
        held = (
            f"the curvature sample may grow to {taken} rows at most"
            if setting.samples == AUTO
            else f"curvature measured on {taken} samples instead of {asked}"
        )
        notes.append(f"{held}: the data has only {len(rows)} training rows")
    if warmup < wanted:
        notes.append(
            f"warmed up on {warmup} rows instead of {wanted}, some of them more than once: "
            f"the data has only {len(rows)} training rows"
        )
    return rows[-taken:], rows[:warmup], tuple(notes)
