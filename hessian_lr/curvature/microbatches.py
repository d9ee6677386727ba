"""How a sample is cut for the work: rows of similar length together, and no padding they do not need."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ..batches import IGNORED, Batch, count_labels, rows_of, trimmed

# Tokens of a microbatch. A processor gains nothing from more at a time than fill its products, and
# memory then goes by small steps; a GPU wants more.
MICROBATCH_TOKENS = {"cpu": 640, "cuda": 8192}
# A sample has at least so many microbatches, if it has so many rows: their scatter is the sampling error.
CLUSTERS = 8
# Of a microbatch's tokens, the share that may be padding.
PADDING = 0.05


def microbatches(batches: Sequence[Batch], device: torch.device) -> list[Batch]:
    """The rows of some batches that have a label, sorted by length, in microbatches of whole rows.

    Rows are ``trimmed``. Batches with entries of another shape than (rows, columns), whose rows cannot be
    told apart, stay as they are.
    """
    room = MICROBATCH_TOKENS.get(device.type, MICROBATCH_TOKENS["cuda"])
    whole, rows = [], []
    for batch in batches:
        shape = batch["input_ids"].shape
        if any(value.shape != shape for value in batch.values()):
            whole += [batch] if count_labels(batch) else []
        else:
            rows += [row for row in map(trimmed, rows_of(batch)) if count_labels(row)]
    rows.sort(key=_length)
    room = min(room, sum(map(_length, rows)) // CLUSTERS)
    groups: list[list[Batch]] = []
    for row in rows:
        group = groups[-1] if groups else []
        used, width = sum(map(_length, group)) + _length(row), _length(row)
        cells = (len(group) + 1) * width
        fits = cells <= room and cells - used <= PADDING * cells and (not group or set(group[0]) == set(row))
        if group and fits:
            group.append(row)
        else:
            groups.append([row])
    return [*whole, *map(_joined, groups)]


def _length(row: Batch) -> int:
    return int(row["input_ids"].shape[1])


def _joined(rows: Sequence[Batch]) -> Batch:
    if len(rows) == 1:
        return rows[0]
    width = max(map(_length, rows))
    fill = {"labels": IGNORED}
    return {
        name: torch.cat(
            [
                torch.nn.functional.pad(row[name], (0, width - _length(row)), value=fill.get(name, 0))
                for row in rows
            ]
        )
        for name in rows[0]
    }
