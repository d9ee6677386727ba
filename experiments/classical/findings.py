"""The sweeps against η < 2/λ; `python -m experiments.classical.findings` writes the README's tables."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from hessian_lr.alignment import Alignment, align
from hessian_lr.atomic import write_bytes
from hessian_lr.records import read_json
from hessian_lr.sweep.recipe import WARMUP_FRACTION

HERE = Path(__file__).parent
BEGIN, END = "<!-- tables -->\n", "<!-- end of tables -->\n"
Row = dict[str, Any]


def rows() -> list[Row]:
    """A row a setting, with the numbers that are compared.

    ``best`` and ``edge`` are learning rates; ``bound`` is 2/λ; ``first`` the edge of the first step along −g.
    """
    told = read_json(HERE / "results.json")["rows"]
    return [
        {
            "model": Path(one["setting"]["model"]).name,
            "method": one["setting"]["method"],
            "zero_b": one["zero_b"],
            "lambda": one["measure"]["start"]["lambda_max"],
            "lambda_min": one["measure"]["start"]["lambda_min"],
            "gauss_newton": one["bench"]["gauss_newton_start"],
            "later": one["measure"]["later"]["lambda_max"],
            "bound": 2 / one["measure"]["start"]["lambda_max"],
            "first": one["measure"]["lr_critical"],
            "best": one["sweep"]["best_lr"],
            "edge": one["sweep"]["edge_lr"],
            "adam": one["bench"]["best_lr"],
        }
        for one in told
        if "measure" in one
    ]


def groups(every: Sequence[Row]) -> dict[str, list[Row]]:
    """The rows by what may make a difference."""
    models = dict.fromkeys(row["model"] for row in every)
    return {
        "all": list(every),
        **{model: [row for row in every if row["model"] == model] for model in models},
        "B = 0 at the start": [row for row in every if row["zero_b"]],
        "A, B ≠ 0": [row for row in every if not row["zero_b"]],
    }


def scheduled_edge(steps: int) -> float:
    """The least η·λ/2 where a run of this schedule on a quadratic ends at its start: |Π (1 − η_t·λ)| = 1.

    Of a learning rate that stays as it is, this is 1; of a long cosine 2 (the mean of ln|1 − x·(1 + cos φ)/2|
    over φ is ln(x/4) for x > 1, by Jensen's formula).
    """
    warmup = math.ceil(WARMUP_FRACTION * steps)
    shares = [t / warmup for t in range(warmup)]
    shares += [(1 + math.cos(math.pi * t / (steps - warmup))) / 2 for t in range(steps - warmup)]
    products = np.linspace(1, 5, 40_001)
    factors = np.abs(1 - np.outer(products, shares)) + 1e-300
    growth = np.log(factors).sum(axis=1)
    return float(products[np.nonzero(growth > 0)[0][0]]) / 2


def spread(values: Sequence[float]) -> float:
    """Largest over smallest."""
    return max(values) / min(values)


def left_out(every: Sequence[Row], fit: Callable[[list[Row]], Callable[[Row], float]]) -> list[float]:
    """Factor errors of a law for each method, fitted to the others."""
    errors = []
    for method in dict.fromkeys(row["method"] for row in every):
        law = fit([row for row in every if row["method"] != method])
        errors += [abs(math.log(law(row) / row["best"])) for row in every if row["method"] == method]
    return [math.exp(error) for error in errors]


def power_law(known: list[Row]) -> Callable[[Row], float]:
    """η = c·λ^a by least squares in logarithms."""
    x, y = (np.log([row[name] for row in known]) for name in ("lambda", "best"))
    slope, constant = np.polyfit(x, y, 1)
    return lambda row: math.exp(constant + slope * math.log(row["lambda"]))


def proportional(name: str) -> Callable[[list[Row]], Callable[[Row], float]]:
    """η = c·quantity, c the median's."""

    def fit(known: list[Row]) -> Callable[[Row], float]:
        factor = float(np.median([row["best"] / row[name] for row in known]))
        return lambda row: factor * float(row[name])

    return fit


def constant(known: list[Row]) -> Callable[[Row], float]:
    """One learning rate for all: the geometric mean."""
    middle = math.exp(float(np.mean(np.log([row["best"] for row in known]))))
    return lambda _: middle


def tables(every: Sequence[Row]) -> str:
    """The README's tables."""
    lines = [
        "| model | method | λ | λ_min | GN | λ after 10 steps | 2/λ | first step | best | edge |"
        " best·λ/2 | edge·λ/2 |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in sorted(every, key=lambda row: (row["model"], row["zero_b"], -row["lambda"])):
        ratios = (row["best"] / row["bound"], row["edge"] / row["bound"])
        numbers = ("lambda", "lambda_min", "gauss_newton", "later", "bound", "first", "best", "edge")
        named = row["method"] + (" (B = 0)" if row["zero_b"] else "")
        cells = [f"{row[name]:.3g}" for name in numbers] + [f"{ratio:.2f}" for ratio in ratios]
        lines.append(f"| {row['model']} | {named} | {' | '.join(cells)} |")
    lines += [
        "",
        "| | settings | 2/λ apart | best apart | slope of best on λ (95%) | τ |"
        " slope of edge on λ (95%) | τ | edge·λ/2: lowest, median, highest |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name, group in groups(every).items():
        values = {key: [row[key] for row in group] for key in ("lambda", "bound", "best", "edge")}
        ratios = np.array(values["edge"]) / np.array(values["bound"])
        lines_of = [align(values["lambda"], values[key]) for key in ("best", "edge")]
        lines.append(
            f"| {name} | {len(group)} | {spread(values['bound']):.0f}× | {spread(values['best']):.0f}× | "
            + " | ".join(map(aligned, lines_of))
            + f" | {min(ratios):.2f}, {np.median(ratios):.2f}, {max(ratios):.2f} |"
        )
    lines += ["", "| over all settings | lowest | median | highest |", "|---|---|---|---|"]
    products: dict[str, Callable[[Row], float]] = {
        "best·λ/2": lambda row: row["best"] * row["lambda"] / 2,
        "best·(λ after 10 steps at it)/2": lambda row: row["best"] * row["later"] / 2,
        "edge·λ/2": lambda row: row["edge"] * row["lambda"] / 2,
        "edge·GN/2": lambda row: row["edge"] * row["gauss_newton"] / 2,
        "edge / first step's edge": lambda row: row["edge"] / row["first"],
    }
    for name, product in products.items():
        found = [product(row) for row in every]
        lines.append(f"| {name} | {min(found):.2g} | {np.median(found):.2g} | {max(found):.2g} |")
    lines += [
        "",
        "| the best learning rate of a method left out | factor error: median | 90% | worst |",
        "|---|---|---|---|",
    ]
    laws: dict[str, Callable[[list[Row]], Callable[[Row], float]]] = {
        "2/λ itself": lambda _: lambda row: float(row["bound"]),
        "c·2/λ": proportional("bound"),
        "c·(first step's edge)": proportional("first"),
        "c·λ^a": power_law,
        "c": constant,
    }
    for name, fit in laws.items():
        errors = left_out(every, fit)
        lines.append(
            f"| {name} | {np.median(errors):.2f}× | {np.quantile(errors, 0.9):.2f}× | {max(errors):.2f}× |"
        )
    return "\n".join(lines) + "\n"


def aligned(found: Alignment) -> str:
    """The slope with its interval, and Kendall's τ, as two cells."""
    slope, low, high = found.slope, found.slope_low, found.slope_high
    assert slope is not None and low is not None and high is not None and found.kendall_tau is not None
    return f"{slope:+.2f} ({low:+.2f} … {high:+.2f}) | {found.kendall_tau:+.2f}"


def main() -> None:
    readme = HERE / "README.md"
    before, rest = readme.read_text(encoding="utf-8").split(BEGIN)
    after = rest.split(END)[1]
    text = f"{before}{BEGIN}\n{tables(rows())}\n{END}{after}"
    write_bytes(readme, text.encode())
    print(tables(rows()), f"\nedge on a quadratic, 30 steps: {scheduled_edge(30):.2f} · 2/λ")


if __name__ == "__main__":
    main()
