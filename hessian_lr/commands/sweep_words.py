"""What `sweep` and `merge` say of a plan and of its rows."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from ..digits import rate
from ..setting import CONTENTS
from . import tables

if TYPE_CHECKING:
    from ..rows import SweepRow
    from ..study.grids import Plan
    from ..sweep.grid import Grid

_WIDTH = 80
_SHOWN = 4


def duration(seconds: float) -> str:
    """A time in its two largest units: 3 h 10 min."""
    left = round(seconds)
    if left < 60:
        return f"{left} s"
    minutes = round(seconds / 60)
    if minutes < 10:
        return f"{left // 60} min {left % 60} s"
    hours, minutes = divmod(minutes, 60)
    if not hours:
        return f"{minutes} min"
    return f"{hours} h {minutes} min" if hours < 48 else f"{hours // 24} d {hours % 24} h"


def told(plan: Plan, at_a_time: int) -> str:
    """The plan in a few lines."""
    runs, settings = _range(plan.runs, "run"), _range((plan.settings, plan.settings), "setting")
    said = f"{runs} ({settings})"
    if plan.done:
        said += f", {plan.done:,} of them there already"
    if plan.shard:
        said += f"; share {plan.shard}"
    low, high = (duration(seconds) for seconds in plan.seconds)
    took = low if low == high else f"{low} to {high}"
    said += f"; {_range(plan.to_go, 'run')} to make" + (f", about {took} here" if plan.to_go[1] else "")
    if at_a_time > 1:
        said += f" one after the other; {at_a_time} at a time on the cluster"
    if plan.predictions:
        said += f"; {_range((plan.predictions, plan.predictions), 'setting')} to predict, not in that time"
    sources = []
    if plan.timed:
        sources.append(f"steps timed just now for {_range((plan.timed, plan.timed), 'shape')}")
    if plan.finished:
        sources.append(f"{_range((plan.finished, plan.finished), 'finished run')} of the same kind")
    if sources:
        said += f". Cost from {' and '.join(sources)}."
    return textwrap.fill(said, _WIDTH - 1)


def _range(ends: tuple[int, int], what: str) -> str:
    low, high = ends
    number = f"{low:,}" if low == high else f"{low:,} to {high:,}"
    return f"{number} {what}{'' if high == 1 else 's'}"


def advice(rows: Sequence[SweepRow], varying: tuple[str, ...]) -> list[str]:
    """A line on what to do, for each model and data: losses of one do not compare with another's."""
    names = [name for name in CONTENTS if name in varying]
    groups: dict[str, list[SweepRow]] = {}
    for row in rows:
        where = ", ".join(f"{name.replace('_', ' ')} {row.setting[name]}" for name in names)
        groups.setdefault(where, []).append(replace(row, method=row.label))
    found = {where: tables.advice(group) for where, group in groups.items()}
    return [f"{where}: {line}" if where else line for where, line in found.items()]


def common(grid: Grid) -> str:
    """What all settings share."""
    return textwrap.fill(f"In common: {grid.common()}.", _WIDTH - 1)


def gaps(rows: Sequence[SweepRow]) -> list[str]:
    """Which runs are missing, a learning rate of a setting each."""
    found = []
    for row in rows:
        rates: dict[float, list[str]] = {}
        for one in row.missing:
            rates.setdefault(one.lr, []).append(str(one.seed))
        found += [
            f"{row.label} at {rate(lr)} (seed {', '.join(seeds)})" for lr, seeds in sorted(rates.items())
        ]
    return found


def missing(rows: Sequence[SweepRow]) -> str:
    """How many runs are missing."""
    number = sum(len(row.missing) for row in rows)
    searching = any(row.missing and row.lrs == "auto" for row in rows)
    return f"{'At least ' if searching else ''}{_range((number, number), 'run')}"


def some_gaps(rows: Sequence[SweepRow]) -> list[str]:
    """Which runs are missing, in a line."""
    found = gaps(rows)
    if not found:
        return []
    more = f"; and at {len(found) - _SHOWN} more learning rates" if len(found) > _SHOWN else ""
    return [
        f"{missing(rows)} missing: "
        f"{'; '.join(found[:_SHOWN])}{more}. The same command without --limit and --shard makes them."
    ]


def shared(rows: Sequence[SweepRow]) -> list[str]:
    """What settings have to say that did not fail, each note once."""
    of: dict[str, list[str]] = {}
    for row in rows:
        notes = row.notes[row.status == "failed" :]  # why its runs failed comes first, and elsewhere
        for note in notes if row.prediction_status != "failed" else ():
            of.setdefault(note, []).append(row.label)
    return [
        f"{labels[0] if len(labels) == 1 else f'{len(labels)} settings'}: {note}"
        for note, labels in of.items()
    ]
