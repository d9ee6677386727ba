"""Results that were copied: each counts once."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable
from typing import TypeVar

T = TypeVar("T")


def once(
    found: Iterable[T], key: Callable[[T], Hashable], name: Callable[[T], str]
) -> tuple[list[T], list[str]]:
    """Results without copies of earlier ones, and a note on each of these.

    Args:
        found: The results.
        key: What was measured for one: numbers that agree to the last digit are one measurement, wherever it
            was copied to.
        name: What a note calls one.
    """
    firsts: dict[Hashable, T] = {}
    notes = []
    for one in found:
        first = firsts.setdefault(key(one), one)
        if first is not one:
            notes.append(f"{name(one)} is that of {name(first)}, and counts once")
    return list(firsts.values()), notes
