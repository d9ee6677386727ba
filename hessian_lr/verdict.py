"""What rows of sweeps say together, known once for the terminal and the report, which word it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, TypeVar

if TYPE_CHECKING:
    from .rows import RunRow, ScoredRow

S = TypeVar("S", bound="ScoredRow")

# A prediction no further from the best learning rate than by this factor is called a good one.
GOOD = 2


@dataclass(frozen=True)
class Verdict(Generic[S]):
    """What comes of some rows.

    Attributes:
        ranked: Those that have a best learning rate, the lowest loss first.
        diverged: None has one, for each of the runs diverged: less would have been more.
        judged: Number of predictions that a best learning rate inside its sweep tells of.
        good: Number of those within a factor of ``GOOD``.
    """

    ranked: tuple[S, ...]
    diverged: bool
    judged: int
    good: int


def verdict(rows: Sequence[S]) -> Verdict[S]:
    """Of rows of ``validate`` or ``sweep``."""
    learned = [row for row in rows if row.best_lr is not None and row.best_loss is not None]
    factors = [row.factor_error for row in learned if row.factor_error is not None and not row.censored]
    return Verdict(
        ranked=tuple(sorted(learned, key=best_loss)),
        diverged=not learned and _all_diverged([run for row in rows for run in row.runs]),
        judged=len(factors),
        good=sum(factor <= GOOD for factor in factors),
    )


def best_loss(row: ScoredRow) -> float:
    """L* of a row that is ranked, which has one."""
    assert row.best_loss is not None
    return row.best_loss


def no_best(row: ScoredRow) -> str:
    """What stands in the place of the best learning rate that a row's runs do not tell."""
    return "all diverged" if _all_diverged(row.runs) else "none learned"


def _all_diverged(runs: Sequence[RunRow]) -> bool:
    return bool(runs) and all(run.diverged for run in runs)
