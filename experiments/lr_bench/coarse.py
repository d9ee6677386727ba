"""What a coarser grid would have said of the best learning rate: `python -m experiments.lr_bench.coarse`.

Of each sweep every second learning rate is left out, one half and the other. Where the best lies inside both
grids, the parabola's vertex and the best learning rate as it is scored, which is held inside the band, are
compared with what all learning rates say.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd

from hessian_lr.score import score
from hessian_lr.sweep import Sweep
from hessian_lr.sweep.wanted import complete_runs

from .curves import curves
from .table import HERE, LONG, read


def vertex(sweep: Sweep) -> float:
    """Of the parabola through the lowest mean loss and its two neighbours, which have to be there."""
    groups = complete_runs(sweep.runs)
    means = [
        np.mean([max(run.final_loss, run.initial_loss * run.diverged) for run in runs])
        for runs in groups.values()
    ]
    lrs, losses = np.array(list(groups)), np.array(means)
    best = int(losses.argmin())
    around = slice(best - 1, best + 2)
    square, straight, _ = np.polyfit(np.log(lrs[around] / lrs[best]), losses[around], 2)
    return float(lrs[best] * math.exp(-straight / (2 * square)))


def halves(sweep: Sweep) -> Iterator[Sweep]:
    """The sweep with every second learning rate alone, where the best of these has two neighbours."""
    lrs = list(complete_runs(sweep.runs))
    for first in (0, 1):
        half = replace(sweep, runs=tuple(run for run in sweep.runs if run.lr in lrs[first::2]))
        finite = all(run.final_loss is not None for run in half.runs)
        if len(lrs[first::2]) > 2 and finite and not score(half, None, None, None).censored:
            yield half


def study() -> pd.DataFrame:
    """A row a half: whether the vertex lies outside the band; how far it and the scored best are off (ln)."""
    rows: list[dict[str, Any]] = []
    for folder in (HERE, LONG):
        settings, runs = read(folder)
        settings = settings[~settings["censored"] & settings["best_lr"].notna()]
        for key, sweep in curves(runs, settings).items():
            best = score(sweep, None, None, None).best_lr
            for half in halves(sweep):
                scored, free = score(half, None, None, None), vertex(half)
                off = {"vertex": abs(math.log(free / best)), "scored": abs(math.log(scored.best_lr / best))}
                rows.append({"key": key, "outside": not score(half, free, None, None).inside_band, **off})
    return pd.DataFrame(rows)


def main() -> None:
    found = study()
    outside = found[found["outside"]]
    print(
        f"{len(found)} coarse grids, in {len(outside)} the vertex lies outside the band. There it is off by"
    )
    for name in ("vertex", "scored"):
        median, most = (math.exp(outside[name].quantile(share)) for share in (0.5, 0.9))
        print(f"{name}: {median:.2f} in the median, {most:.2f} in one of ten")


if __name__ == "__main__":
    main()
