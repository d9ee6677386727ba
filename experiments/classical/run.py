"""Plain gradient descent against η < 2/λ: `python -m experiments.classical.run sweep`, then `… measure`.

``sweep`` looks for the edge and the best learning rate of each setting; λ at the start, of the Hessian and of
the Gauss-Newton matrix, is the bench's own measurement of the same adapter on the same rows. ``measure`` adds
what the bench does not have: the edge of the first step, and λ in float32 before and after a few steps.
``sweep --drawn`` takes the bench's random draws in the base's place. Everything finished is kept, the runs in
``runs/classical``, the rows in ``results.json`` or ``drawn.json``, so either may be killed and started again.
"""

from __future__ import annotations

import argparse
import csv
import time
from collections.abc import Callable
from itertools import zip_longest
from pathlib import Path
from typing import Any

import torch

from experiments.lr_bench.run import Loader
from experiments.lr_bench.settings import at_base, small
from hessian_lr.allocator import keep_freed_memory
from hessian_lr.curvature.loss import trainable
from hessian_lr.curvature.operator import HessianOperator
from hessian_lr.measure import Curvature, sharpness, unchanged
from hessian_lr.measure.line_search import critical_learning_rate
from hessian_lr.measure.warmup import warm_up
from hessian_lr.methods import method_of
from hessian_lr.prepare import Prepared, prepare
from hessian_lr.progress import quiet_libraries
from hessian_lr.records import read_json, write_json
from hessian_lr.score import Score, score
from hessian_lr.setting import SGD, Setting
from hessian_lr.spectrum.lanczos import dot
from hessian_lr.sweep import RunResult, Sweep, sweep
from hessian_lr.sweep.plan import best_of, learning_rate, nearest_point
from hessian_lr.sweep.runner import censored

BENCH = Path("experiments/lr_bench/results/settings.csv")
RESULTS = Path(__file__).parent / "results.json"
DRAWN = Path(__file__).parent / "drawn.json"
OUT = Path("runs/classical")
RTOL = 0.05
# Where the search for the edge starts, in 2/λ; it only decides what the search costs.
GUESS = 4.0
STRIDE = 2  # grid points, 10^0.5
SEEDS = (0,)
STEPS_AFTER = 10


def settings() -> list[tuple[Setting, str]]:
    """The bench's methods at its base, but with plain gradient descent in float32; the models in turn.

    Each with the key of the bench's own setting.
    """
    # Those that differ most come first, so that a cut leaves a fair sample.
    order = (
        *("lora", "pissa", "olora", "init-ab", "milora"),
        *("rslora", "lora-ga", "randlora", "dora", "gralora"),
    )
    base = sorted(at_base(), key=lambda one: order.index(one.method))
    by_model = [[one for one in base if one.model == model] for model in dict.fromkeys(o.model for o in base)]
    return [_descending(one) for row in zip_longest(*by_model) for one in row if one is not None]


def drawn() -> list[tuple[Setting, str]]:
    """The bench's random draws likewise: methods, ranks, modules, tasks, batch sizes and lengths of runs."""
    base = {one.key for one in at_base()}
    return [_descending(one) for one in small() if one.key not in base]


def _descending(one: Setting) -> tuple[Setting, str]:
    told = one.to_dict() | {"optimizer": SGD, "dtype": "float32", "device": "cpu"}
    return Setting.from_dict(told), one.key


def at_start() -> dict[str, dict[str, float]]:
    """λ at the start of the bench's settings, by their keys."""
    names = ("lambda_start", "gauss_newton_start", "sampling_error_start", "gradient_l2", "loss_start")
    with BENCH.open(encoding="utf-8", newline="") as file:
        return {
            row["key"]: {name: float(row[name]) for name in (*names, "best_lr") if row[name]}
            for row in csv.DictReader(file)
        }


def find_edge(run: Callable[[int], RunResult], start: int) -> dict[int, RunResult]:
    """Runs on the grid of 10^0.25 until edge and best have their neighbours.

    Args:
        run: Trains at a grid point.
        start: The first point.

    Returns:
        The runs by grid point; the smallest diverged one is the edge.
    """
    runs = {start: run(start)}
    direction = -1 if runs[start].diverged else 1
    low = high = start
    while runs[low].diverged or not runs[high].diverged:
        point = (low if direction < 0 else high) + direction * STRIDE
        runs[point] = run(point)
        low, high = min(low, point), max(high, point)
    low = max(point for point, one in runs.items() if not one.diverged)
    high = min(point for point, one in runs.items() if one.diverged and point > low)
    while high - low > 1:
        middle = (low + high) // 2
        runs[middle] = run(middle)
        low, high = (low, middle) if runs[middle].diverged else (middle, high)
    while missing := {best_of(_losses(runs)) - 1, best_of(_losses(runs)) + 1} - set(runs):
        for point in missing:
            runs[point] = run(point)
    return runs


def swept(setting: Setting, loaded: Any, task: Any, sharpest: float) -> dict[str, Any]:
    """The search's runs, the edge and the best learning rate."""

    def run(point: int) -> RunResult:
        lr = learning_rate(point)
        found = sweep(setting, loaded, task, start_lr=lr, lrs=(lr,), seeds=SEEDS, out=OUT)
        print(f"  η·λ/2 {lr * sharpest / 2:.3g}: {found.runs[0].final_loss}", flush=True)
        return found.runs[0]

    runs = find_edge(run, nearest_point(GUESS * 2 / sharpest))
    ordered = tuple(runs[point] for point in sorted(runs))
    scored: Score = score(Sweep(setting, ordered, censored(ordered)), None, None, None)
    names = ("lr", "initial_loss", "final_loss", "steps", "diverged", "seconds")
    return {
        "edge_lr": min(one.lr for one in ordered if one.diverged),
        "best_lr": scored.best_lr,
        "best_loss": scored.best_loss,
        "band": [scored.band_low, scored.band_high],
        "censored": scored.censored,
        "runs": [{name: getattr(one, name) for name in names} for one in ordered],
    }


def measured(ready: Prepared, best_lr: float) -> dict[str, Any]:
    """The first step's own edges along the gradient g, and λ before and after steps that rise to the best η.

    ``lr_directional`` is g·g / (g·H·g), the best step of the quadratic along g, whose edge is twice that;
    ``lr_critical`` the edge of the loss itself: the smallest η with L(θ − η·g) > L(θ).
    """
    start = _sharpness(ready)
    operator = HessianOperator(ready.model, ready.batches, dtype=torch.float32)
    gradient = operator.gradient()
    bend = dot(gradient, operator.matvec(gradient))
    critical, _ = critical_learning_rate(ready.model, ready.batches, gradient, start=1e-1, factor=1.1)
    with unchanged(ready.model):
        warm_up(
            ready.model,
            ready.warmup_batches,
            steps=STEPS_AFTER,
            top_lr=best_lr,
            dtype=torch.float32,
            optimizer=lambda model, lr, **_: torch.optim.SGD(trainable(model), lr=lr),
        )
        later = _sharpness(ready)
    return {
        "start": _told(start),
        "lr_directional": dot(gradient, gradient) / bend if bend > 0 else None,
        "lr_critical": critical,
        "later": _told(later),
    }


def _sharpness(ready: Prepared) -> Curvature:
    return sharpness(ready.model, ready.batches, rtol=RTOL, dtype=torch.float32)


def _told(found: Curvature) -> dict[str, Any]:
    names = ("loss", "lambda_max", "lambda_upper", "lambda_min", "residual", "sampling_error", "status")
    return {name: getattr(found, name) for name in names}


def _losses(runs: dict[int, RunResult]) -> dict[int, float]:
    lost = float("inf")
    return {
        point: lost if one.diverged or one.final_loss is None else one.final_loss
        for point, one in runs.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("stage", choices=("sweep", "measure"))
    parser.add_argument("--drawn", action="store_true", help="the bench's draws in place of its base")
    asked = parser.parse_args()
    stage, chosen = asked.stage, drawn() if asked.drawn else settings()
    keep_freed_memory()
    loader, bench, file = Loader(), at_start(), DRAWN if asked.drawn else RESULTS
    kept = read_json(file)["rows"] if file.exists() else []
    rows: dict[str, dict[str, Any]] = {row["key"]: row for row in kept}
    with quiet_libraries():
        for setting, key in chosen:
            start = bench.get(key)
            if start is None:  # no learning rate improves it, or it was never swept
                continue
            row = rows.get(setting.key, {"key": setting.key, "setting": setting.to_dict()})
            if stage in row or (stage == "measure" and "sweep" not in row):
                continue
            began = time.perf_counter()
            print(setting.model, setting.method, flush=True)
            loaded, task = loader(setting)
            if stage == "sweep":
                row |= {"zero_b": method_of(setting).zero_b, "bench": start}
                row["sweep"] = swept(setting, loaded, task, start["lambda_start"])
            else:
                row["measure"] = measured(prepare(setting, loaded, task), row["sweep"]["best_lr"])
            rows[setting.key] = row
            ordered = [rows[one.key] for one, _ in chosen if one.key in rows]
            document = {"schema": 1, "torch": torch.__version__, "seeds": list(SEEDS), "rows": ordered}
            write_json(file, document)
            print(f"  {time.perf_counter() - began:.0f} s", flush=True)


if __name__ == "__main__":
    main()
