"""Results that are there twice: each counts once."""

from __future__ import annotations

import operator
from collections.abc import Callable, Hashable, Iterable
from typing import Any, TypeVar

T = TypeVar("T")


def once(
    found: Iterable[T],
    key: Callable[[T], Hashable],
    told: Callable[[T], tuple[Any, ...]],
    name: Callable[[T], str],
) -> tuple[list[T], list[str]]:
    """Results without those of which another tells as much, and a note on each of these.

    Args:
        found: The results; of two that tell the same the first stays.
        key: What identifies one: results of one key are of one thing, wherever they were copied to.
        told: How much one tells, of each thing; another tells as much if it does of each.
        name: What a note calls one.
    """
    groups: dict[Hashable, list[T]] = {}
    for one in found:
        groups.setdefault(key(one), []).append(one)
    counted, notes = [], []
    for group in groups.values():
        kept: list[T] = []
        for one in sorted(group, key=told, reverse=True):  # none tells as much as one before it, or more
            other = next((k for k in kept if all(map(operator.ge, told(k), told(one)))), None)
            if other is None:
                kept.append(one)
            else:
                notes.append(f"{name(one)} is that of {name(other)}, and counts once")
        counted += kept
    return counted, notes
