"""Whether data fit a model and its runs: known once both are loaded, and said before anything runs."""

from __future__ import annotations

from torch import nn
from transformers import PreTrainedModel

from .data import TaskData
from .errors import RequestError
from .models import LoadedModel
from .setting import Setting

# Rows that a table of positions has beyond the configuration's: OPT and its like keep two for padding.
_SPARE = 2


def check_batch_size(setting: Setting, data: TaskData) -> None:
    """Refuse a batch that the training rows cannot fill: its runs would be those of a smaller one.

    Raises:
        RequestError: the batch size exceeds the number of training rows.
    """
    rows = len(data.train)
    if setting.batch_size > rows:
        raise RequestError(
            f"a batch of {setting.batch_size} is more than the {rows} training rows of {setting.data}: take "
            f"--batch-size {rows} or less, or more rows"
        )


def check_lengths(loaded: LoadedModel, data: TaskData) -> tuple[str, ...]:
    """Refuse rows that are longer than a model's table of positions.

    Returns:
        A note where rows are longer than what a model without a table (with rotary positions) was made for.

    Raises:
        RequestError: there is such a row.
    """
    limit = getattr(loaded.model.config, "max_position_embeddings", None)
    longest = max(len(row.input_ids) for row in (*data.train, *data.heldout))
    if not isinstance(limit, int) or longest <= limit:
        return ()
    told = f"{loaded.name} has {limit:,} positions and the longest row has {longest:,} tokens"
    if _has_table(loaded.model, limit):
        raise RequestError(f"{told}: take --max-length {limit} or less")
    return (f"{told}: it was made for no rows as long",)


def _has_table(model: PreTrainedModel, limit: int) -> bool:
    """Whether positions are looked up: in a trained table (GPT-2, OPT), or a fixed one (GPT-J)."""
    words = model.get_input_embeddings()
    tables = [m for m in model.modules() if isinstance(m, nn.Embedding) and m is not words]
    fixed = [buffer for buffer in model.buffers() if buffer.dim() == 2]
    return any(limit <= table.num_embeddings <= limit + _SPARE for table in tables) or any(
        len(buffer) == limit for buffer in fixed
    )
