"""What the study of arXiv 2602.04998v2 found, held against the learning-rate bench's tables.

    python -m experiments.paper.run

Nothing is measured here: the tables are those of `experiments/lr_bench/results`, the study's numbers stand in
`published.json`. Losses are held-out; a gap between losses is told as a share of the loss reduction,
(L − L*) / (L_init − L*), L* the lowest of all methods.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd
import scipy.stats

from experiments.lr_bench.curves import curves
from experiments.lr_bench.laws import AFTER
from hessian_lr.alignment import Alignment, align
from hessian_lr.score import score
from hessian_lr.sweep import Sweep

# What two methods must share to be compared.
SHARED = ["model", "data", "rank", "alpha", "target_modules", "batch_size", "steps", "max_length"]
LEAST_METHODS = 4
# λ at B = 0 is a gradient's norm; these start elsewhere, and have a curvature.
CURVED = ("pissa", "milora", "olora", "init-ab", "lora-ga")
STABILITY = AFTER + "lambda_preconditioned"


@dataclass(frozen=True)
class Group:
    """Settings that differ in their method alone.

    Attributes:
        title: Model, steps and batch size, for a table's or a panel's head.
        settings: Their rows, whose best learning rate lies inside their sweep, lowest first.
        sweeps: Their sweeps, by method.
        initial: Held-out loss before training.
        censored: Methods whose best learning rate lies at the edge of their sweep: left out.
    """

    title: str
    settings: pd.DataFrame
    sweeps: dict[str, Sweep]
    initial: float
    censored: tuple[str, ...]

    @property
    def lowest(self) -> float:
        """L*, the lowest held-out loss of all methods."""
        return float(self.settings["best_loss"].min())

    def gap(self, loss: float) -> float:
        """(L − L*) / (L_init − L*)."""
        return (loss - self.lowest) / (self.initial - self.lowest)


def groups(settings: pd.DataFrame, runs: pd.DataFrame) -> list[Group]:
    """All groups of at least ``LEAST_METHODS`` methods, the largest first."""
    found = []
    for _, rows in settings.groupby(SHARED, sort=False):
        usable = rows[~rows["censored"] & rows["best_lr"].notna()].sort_values("best_lr")
        if usable["method"].nunique() < LEAST_METHODS:
            continue
        by_key = curves(runs, usable)
        sweeps = {row.method: by_key[row.key] for row in usable.itertuples()}
        first = usable.iloc[0]
        initial = np.mean([run.initial_loss for sweep in sweeps.values() for run in sweep.runs])
        found.append(
            Group(
                title=f"{first['model']}, {first['data']}, {first['steps']} steps of {first['batch_size']}",
                settings=usable,
                sweeps=sweeps,
                initial=float(initial),
                censored=tuple(rows.loc[~rows["method"].isin(usable["method"]), "method"]),
            )
        )
    return sorted(found, key=lambda group: -len(group.settings))


def distinct(group: Group, published: dict[str, float]) -> dict[str, Any]:
    """How far the methods' best learning rates lie apart, and whether in the study's order."""
    rows = group.settings.set_index("method")
    both = [method for method in rows.index if method in published]
    bands = [(rows.at[m, "band_low"], rows.at[m, "band_high"]) for m in rows.index]
    apart = [not (one[0] <= other[1] and other[0] <= one[1]) for one, other in combinations(bands, 2)]
    tau = scipy.stats.kendalltau(rows.loc[both, "best_lr"], [published[method] for method in both])
    return {
        "methods": len(rows),
        "lowest": [str(rows.index[0]), float(rows["best_lr"].iloc[0])],
        "highest": [str(rows.index[-1]), float(rows["best_lr"].iloc[-1])],
        "times": float(rows["best_lr"].iloc[-1] / rows["best_lr"].iloc[0]),
        "times_published": max(published[m] for m in both) / min(published[m] for m in both),
        "bands_apart": sum(apart),
        "pairs": len(apart),
        "kendall_tau_with_published": float(tau.statistic),
        "kendall_p": float(tau.pvalue),
        "methods_published": len(both),
    }


def peak_gaps(group: Group) -> dict[str, Any]:
    """How far the methods lie apart, each at its own best learning rate, and all at plain LoRA's."""
    rows = group.settings.set_index("method")
    tuned = {str(method): group.gap(loss) for method, loss in rows["best_loss"].items()}
    untuned: dict[str, float] = {}
    outside = []
    if "lora" in rows.index:
        rate = float(rows.at["lora", "best_lr"])
        for method, sweep in group.sweeps.items():
            lowest = float(rows.at[method, "best_loss"])
            regret = score(sweep, rate, None, None).regret
            if regret is None:
                outside.append(method)
            else:
                untuned[method] = group.gap(lowest + regret * (group.initial - lowest))
    return {
        "tuned": tuned,
        "tuned_worst": max(tuned, key=tuned.__getitem__),
        "at_loras": untuned,
        "not_swept_there": outside,
        "seeds": int(rows["seeds"].max()),
    }


def between_seeds(group: Group) -> dict[str, Any] | None:
    """How far the group's tuned losses lie apart beside the noise between seeds; None unless all have two.

    The standard error of a mean of two seeds is what is left of the losses at each method's best learning
    rate once each method's and each seed's mean are taken out.
    """
    losses, moved = {}, []
    for method, sweep in group.sweeps.items():
        runs = pd.DataFrame(
            [(run.lr, run.setting.seed, run.final_loss) for run in sweep.runs], columns=["lr", "seed", "loss"]
        )
        pairs = runs.pivot(index="lr", columns="seed", values="loss").dropna()
        if pairs.shape[1] != 2:
            return None
        losses[method] = pairs.loc[pairs.mean(axis=1).idxmin()]
        if len(set(pairs.idxmin())) > 1:
            moved.append(method)
    table = pd.DataFrame(losses).T
    means, differences = table.mean(axis=1), table[0] - table[1]
    return {
        "worst_less_best": float(means.max() - means.min()),
        "standard_error": float(differences.std(ddof=1) / 2),
        "another_best": moved,
    }


def alignments(group: Group) -> dict[str, Alignment]:
    """Slopes of log η* on log λ over the group's methods."""
    rows = group.settings
    curved = rows[rows["method"].isin(CURVED)]
    return {
        "λ at the start": _align(rows, "lambda_start"),
        "λ at the start, A and B ≠ 0": _align(curved, "lambda_start"),
        "λ_P after a warm-up": _align(rows, STABILITY),
    }


def _align(rows: pd.DataFrame, name: str) -> Alignment:
    known = rows[rows[name] > 0]
    return align(known[name].tolist(), known["best_lr"].tolist())


def published_alignment(published: dict[str, Any]) -> Alignment:
    """The same over the study's own points: plain LoRA's ratio is 1."""
    ratios = {"lora": 1.0, **published["lambda_ratio_to_lora_q_proj"]}
    rates = published["best_learning_rate"]
    return align(list(ratios.values()), [rates[method] for method in ratios])


def exponents(settings: pd.DataFrame) -> dict[str, tuple[float, float, float]]:
    """The bench's ridge fit as exponents of η*, each with a 95% interval (jackknife over settings)."""
    # Here, for it takes torch with it.
    from ..lr_bench.transfer import transfer_law

    table = settings[~settings["censored"] & settings["best_lr"].notna()].reset_index(drop=True)
    point, count = _named(transfer_law(table).exponents), len(table)
    left = [
        _named(transfer_law(table.drop(index).reset_index(drop=True)).exponents) for index in range(count)
    ]
    found = {}
    for name, value in point.items():
        error = math.sqrt((count - 1) * np.var([one[name] for one in left]))
        found[name] = (value, value - 1.96 * error, value + 1.96 * error)
    return found


def _named(found: dict[str, float]) -> dict[str, float]:
    return {
        # With alpha = r the scaling alpha / r stays; with alpha fixed it falls as 1 / r.
        "rank, alpha = rank": found["rank"],
        "rank, alpha fixed": found["rank"] - found["scaling"],
        "batch size, steps fixed": found["batch_size"],
        # Batches k times as large make k times fewer steps of as many rows.
        "batch size, rows fixed": found["batch_size"] - found["steps"],
        "steps": found["steps"],
    }


def published_exponents(published: dict[str, Any]) -> dict[str, list[float]]:
    """The same over the study's own points, by least squares; of the batch size one for each method."""
    by_size = published["best_learning_rate_by_batch_size"]
    methods = list(next(iter(by_size.values())))
    return {
        "rank, alpha = rank": [_slope(published["lora_best_learning_rate_by_rank"])],
        "batch size, rows fixed": [
            _slope({size: rates[method] for size, rates in by_size.items()}) for method in methods
        ],
        "steps": [_slope(published["lora_best_learning_rate_by_training_samples"])],
    }


def _slope(points: dict[str, float]) -> float:
    return float(np.polyfit(np.log([float(x) for x in points]), np.log(list(points.values())), 1)[0])
