"""What a run trains on and what its loss is measured on: checked, read, tokenised and split."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .. import hub
from ..errors import RequestError
from . import fixed_date, sources, tasks
from .bad_row import BadRow
from .encode import Encoder, Example, digest_of
from .tasks import TASKS

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

HELDOUT_SHARE = 0.1
HELDOUT_MOST = 64
# Tokenising more than a sweep can ever visit only costs time.
ROWS_MOST = 20_000
_NUMBERS_SHOWN = 5


@dataclass(frozen=True)
class TaskData:
    """What a run trains on and what its loss is measured on.

    Attributes:
        train: Training examples; no held-out example is among them.
        heldout: Held-out examples.
        notes: What a user should know: rows left out and why, rows cut.
        digest: Hash of the tokens and labels themselves.
    """

    train: tuple[Example, ...]
    heldout: tuple[Example, ...]
    notes: tuple[str, ...]
    digest: str


def check(name: str, *, fields: tuple[str, ...] | None = None) -> None:
    """Refuse, before a model is loaded, data that ``load`` would refuse whatever the tokenizer.

    Hub datasets are left to ``load``.

    Raises:
        RequestError: no such data, an empty or unreadable file, or no such column.
    """
    if name in TASKS:
        _check_builtin(name, fields)
    elif not sources.is_hub_id(name):
        rows, _ = sources.read(name, ROWS_MOST, fields)
        _check_rows(name, rows)
        objects = [(number, row) for number, row in rows if isinstance(row, dict)]
        if not objects:
            number, reason = rows[0]
            raise RequestError(f"{name} has no object among its rows; row {number} is {reason}")
        sources.find_columns(objects, fields, name)


def load(
    name: str,
    tokenizer: PreTrainedTokenizerBase,
    *,
    fields: tuple[str, ...] | None = None,
    max_length: int = 512,
) -> TaskData:
    """Read, tokenise and split the data ``name``; the same name gives the same split, whatever a run's seed.

    Of files and hub datasets a tenth of the distinct rows, at least one and at most 64, is held out,
    chosen by a hash of each row's text: duplicates of a row fall on one side. The others stand in the
    order of such a hash, too, for curvature is measured on the first and last of them, which in a file
    sorted by source or length are unlike the rest. So the order of the file does not matter.

    Args:
        name: A key of ``TASKS``, a local ``.json``, ``.jsonl``, ``.csv`` or ``.parquet`` file, a folder of
            such files or that ``save_to_disk`` of datasets wrote, or a hub dataset id (``id:name``: its
            configuration ``name``).
        tokenizer: The model's; needs a chat template if the data are chats.
        fields: The prompt's and the response's column, or one column of chat messages; None: found by
            their usual names. A built-in family has none to choose.
        max_length: Tokens a row is cut to.

    Raises:
        RequestError: no such data, no such column, or fewer than two distinct rows to train on.
        HessianLRError: the hub cannot be reached.
    """
    encoder = Encoder(tokenizer, max_length)
    notes: list[str] = []
    if name in TASKS:
        _check_builtin(name, fields)
        rows = tasks.generate(name)
        train = _encode_all(encoder, rows.train, "training", notes)
        heldout = _encode_all(encoder, rows.heldout, "held-out", notes)
        if not train or not heldout:
            raise RequestError(f"max_length {max_length} leaves no response token of task {name!r}; raise it")
    else:
        with hub.silenced():
            train, heldout = _from_source(encoder, name, fields, notes)
    if encoder.cut:
        notes.append(f"{encoder.cut:,} rows were longer than {max_length} tokens and were cut there")
    if encoder.dated:
        notes.append(fixed_date.NOTE)
    for left_out, count in encoder.unspoken.items():
        notes.append(f"{count:,} rows have {left_out}, which this model's chat template leaves out")
    if encoder.unlearned:
        notes.append(f"{encoder.unlearned:,} rows have assistant's turns of weight 0, which are not learned")
    return TaskData(tuple(train), tuple(heldout), tuple(notes), digest_of(train, heldout))


def _check_builtin(name: str, fields: tuple[str, ...] | None) -> None:
    if fields is not None:
        raise RequestError(f"fields belong to files and hub datasets; the built-in task {name!r} has none")


def _check_rows(name: str, rows: Sequence[sources.Row]) -> None:
    if not rows:
        raise RequestError(f"{name} has no rows; it is empty")


def _encode_all(
    encoder: Encoder, pairs: Sequence[tuple[str, str]], what: str, notes: list[str]
) -> list[Example]:
    examples, bad = [], _Left(f"{what} rows")
    for number, (prompt, response) in enumerate(pairs, 1):
        try:
            examples.append(encoder.pair(prompt, response))
        except BadRow as reason:
            bad.add(number, str(reason))
    notes.extend(bad.note(len(pairs)))
    return examples


def _from_source(
    encoder: Encoder, name: str, fields: tuple[str, ...] | None, notes: list[str]
) -> tuple[list[Example], list[Example]]:
    rows, total = sources.read(name, ROWS_MOST, fields)
    _check_rows(name, rows)
    if len(rows) < total:
        notes.append(f"{len(rows):,} of {total:,} rows are used, evenly spaced")
    left = _Left("rows")
    # Content hash -> its examples. Only the content decides on which side of the split a row falls.
    groups: dict[str, list[Example]] = {}
    objects = [(number, row) for number, row in rows if isinstance(row, dict)]
    columns = sources.find_columns(objects, fields, name) if objects else None
    for number, row in rows:
        try:
            if isinstance(row, BadRow):
                raise row
            assert columns is not None
            content = columns.content(row)
            example = encoder.chat(*content) if columns.messages else encoder.pair(*content)
        except BadRow as reason:
            left.add(number, str(reason))
        else:
            groups.setdefault(_hash(content), []).append(example)
    notes.extend(left.note(len(rows)))
    if len(groups) < 2:
        wanted = "no object among its rows" if columns is None else f"looked for text in {columns}"
        raise RequestError(
            f"{name} has {len(groups)} distinct usable rows, but at least 2 are needed, one to train on and "
            f"one held out ({'; '.join([wanted, *notes])})"
        )
    count = min(HELDOUT_MOST, max(1, round(HELDOUT_SHARE * len(groups))))
    chosen = set(sorted(groups)[:count])
    heldout = [groups[key][0] for key in sorted(chosen)]
    # Rows that differ only beyond the cut are the same example: it may not stand on both sides.
    held = set(heldout)
    # Each repetition of a row has a place of its own.
    places = {
        _hash((key, repetition)): example
        for key, examples in groups.items()
        if key not in chosen
        for repetition, example in enumerate(examples)
    }
    train = [places[key] for key in sorted(places) if places[key] not in held]
    if not train:
        raise RequestError(
            f"the rows of {name} are all the same within {encoder.max_length} tokens; raise max_length"
        )
    if count == 1:
        notes.append(
            f"of {len(groups)} distinct rows only one is held out, and every loss is of that one: more rows "
            "would tell more"
        )
    return train, heldout


def _hash(content: tuple[Any, ...]) -> str:
    text = json.dumps(content, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


class _Left:
    """Counts the rows left out, by reason, with the numbers of the first few."""

    def __init__(self, what: str) -> None:
        self.what = what
        self.reasons: dict[str, list[int]] = {}

    @property
    def count(self) -> int:
        return sum(map(len, self.reasons.values()))

    def add(self, number: int, reason: str) -> None:
        self.reasons.setdefault(reason, []).append(number)

    def note(self, total: int) -> list[str]:
        """One sentence about what was left out of ``total`` rows; none if nothing was."""
        if not self.reasons:
            return []
        parts = []
        for reason, numbers in self.reasons.items():
            shown = ", ".join(map(str, numbers[:_NUMBERS_SHOWN])) + (
                ", …" if len(numbers) > _NUMBERS_SHOWN else ""
            )
            parts.append(f"{len(numbers):,} with {reason} ({'row' if len(numbers) == 1 else 'rows'} {shown})")
        return [f"{self.count:,} of {total:,} {self.what} left out: {'; '.join(parts)}"]
