"""What the rows of a built-in family are, and how generated rows are split by template."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

# The rows are part of what a setting means: they never change with a run's seed.
GENERATION_SEED = 20_240_607
TRAIN_ROWS = 2_000
HELDOUT_ROWS = 34
# Every fifth template is held out, starting with the first.
HELDOUT_STRIDE = 5

_T = TypeVar("_T")


@dataclass(frozen=True)
class TaskRows:
    """A family's rows as (prompt, response), and the template each was made from, in the same order."""

    train: tuple[tuple[str, str], ...]
    heldout: tuple[tuple[str, str], ...]
    train_templates: tuple[int | str, ...]
    heldout_templates: tuple[int | str, ...]


@dataclass(frozen=True)
class Row:
    """One generated row; ``template`` is what it shares with the rows that must stay on its side."""

    template: int | str
    prompt: str
    response: str


def split_by_template(pools: Sequence[Sequence[Row]]) -> TaskRows:
    """Hold out every fifth template of each pool, and share both sides out evenly over the pools.

    Which templates these are is settled by a hash of their names, so that neither the easiest nor
    the longest are all on one side. Of rows with the same prompt the first is kept.

    Args:
        pools: The rows of one generator each. No template is in two of them.
    """
    train, heldout = [], []
    for pool in pools:
        unique: dict[str, Row] = {}
        for row in pool:
            unique.setdefault(row.prompt, row)
        groups: dict[int | str, list[Row]] = {}
        for row in unique.values():
            groups.setdefault(row.template, []).append(row)
        held = sorted(groups, key=hash_of)[::HELDOUT_STRIDE]
        heldout.append(list(in_turn([groups[name] for name in held])))
        train.append([row for row in unique.values() if row.template not in held])
    return as_task(list(in_turn(train))[:TRAIN_ROWS], list(in_turn(heldout))[:HELDOUT_ROWS])


def as_task(train: Sequence[Row], heldout: Sequence[Row]) -> TaskRows:
    """The two sides as a family hands them over."""
    return TaskRows(
        train=tuple((row.prompt, row.response) for row in train),
        heldout=tuple((row.prompt, row.response) for row in heldout),
        train_templates=tuple(row.template for row in train),
        heldout_templates=tuple(row.template for row in heldout),
    )


def in_turn(queues: Sequence[Sequence[_T]]) -> Iterator[_T]:
    """Each queue's first item, then each one's second, …; a queue that is used up is passed over."""
    for turn in range(max(map(len, queues))):
        yield from (queue[turn] for queue in queues if turn < len(queue))


def hash_of(text: int | str) -> str:
    """An order that has nothing to do with what the text says, the same on every machine."""
    return hashlib.sha256(str(text).encode()).hexdigest()
