"""The closed form at B = 0 on tiny models, against λ from their dense float64 Hessians.

    .venv/bin/python experiments/lambda_check/tiny.py --seeds 10,11,12,13,14,15 \
        --out experiments/lambda_check/tiny.json

One case for each architecture of the tests' tiny models, seed and alpha. Beside it: Lanczos on the
whole Hessian with the same tolerance.
"""

from __future__ import annotations

import argparse
import logging
import sys
import warnings
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any

import torch

from hessian_lr.curvature import HessianOperator, closed_form
from hessian_lr.curvature.closed_form import FAST_PRODUCTS, TOLERANCE
from hessian_lr.records import write_json
from hessian_lr.spectrum import lanczos

sys.path.insert(0, str(Path(__file__).parents[2] / "tests"))
from tiny_models import ARCHITECTURES, adapted, dense_hessian, make_batch

# Rounding of the parts that transformers computes in float32 whatever the type.
ROUNDING = 1e-4
# σ/λ from which λ counts as made by the coupling of A and B.
COUPLING = 0.9


def measure(architecture: str, seed: int, alpha: float) -> dict[str, Any]:
    """One model: λ, the closed form's and Lanczos's numbers over it, and what each took."""
    batches = [make_batch(2, 9, seed=11), make_batch(3, 12, seed=12, unscored=7, padding=2)]

    def model() -> Any:
        return adapted(architecture, moved=False, alpha=alpha, seed=seed)

    exact = float(torch.linalg.eigvalsh(dense_hessian(model(), batches))[-1])
    found = closed_form(model(), batches)
    fast = closed_form(model(), batches, max_products=FAST_PRODUCTS)
    operator = HessianOperator(model(), batches, dtype=torch.float64)
    whole = lanczos(operator.matvec, operator.size, rtol=TOLERANCE, dtype=torch.float64)
    assert whole.upper is not None, "a random start has a bound"
    return {
        "architecture": architecture,
        "seed": seed,
        "alpha": alpha,
        "lambda": exact,
        "coupling": found.sigma / exact,
        "status": found.status,
        "estimate": found.estimate / exact,
        "lower": found.lower / exact,
        "upper": found.upper / exact,
        "products": found.products,
        "fast_status": fast.status,
        "fast_estimate": fast.estimate / exact,
        "fast_upper": fast.upper / exact,
        "fast_products": fast.products,
        "lanczos": whole.value / exact,
        "lanczos_upper": whole.upper / exact,
        "lanczos_products": whole.products,
    }


def summary(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """What the closed form may be judged by."""
    converged = [row for row in rows if row["status"] == "converged"]
    errors = [row["estimate"] - 1 for row in converged]
    return {
        "cases": len(rows),
        "converged": len(converged),
        "converged_within_tolerance": sum(abs(error) <= TOLERANCE for error in errors),
        "lowest_error": min(errors),
        "highest_error": max(errors),
        "mean_absolute_error": sum(map(abs, errors)) / len(errors),
        "lower_violated": sum(row["lower"] > 1 + ROUNDING for row in rows),
        "upper_violated": sum(row["upper"] < 1 - ROUNDING for row in rows),
        "mean_products": sum(row["products"] for row in rows) / len(rows),
        "least_products": min(row["products"] for row in rows),
        "most_products": max(row["products"] for row in rows),
        "widest_bracket": max(row["upper"] / row["lower"] for row in rows),
        "fast_converged": sum(row["fast_status"] == "converged" for row in rows),
        "fast_within_tolerance": sum(abs(row["fast_estimate"] - 1) <= TOLERANCE for row in rows),
        "fast_lowest_error": min(row["fast_estimate"] for row in rows) - 1,
        "fast_converged_lowest_error": min(
            row["fast_estimate"] - 1 for row in rows if row["fast_status"] == "converged"
        ),
        "fast_widest_upper": max(row["fast_upper"] / row["fast_estimate"] for row in rows),
        "fast_upper_violated": sum(row["fast_upper"] < 1 - ROUNDING for row in rows),
        "fast_mean_products": sum(row["fast_products"] for row in rows) / len(rows),
        "lanczos_within_tolerance": sum(abs(row["lanczos"] - 1) <= TOLERANCE for row in rows),
        "lanczos_lowest_error": min(row["lanczos"] for row in rows) - 1,
        "lanczos_upper_within_tolerance": sum(
            row["lanczos_upper"] <= (1 + TOLERANCE) * row["lanczos"] for row in rows
        ),
        "lanczos_mean_products": sum(row["lanczos_products"] for row in rows) / len(rows),
    }


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    arguments.add_argument("--out", required=True)
    arguments.add_argument("--seeds", default="10,11,12,13,14,15")
    arguments.add_argument("--alphas", default="0.3,1,2,4")
    request = arguments.parse_args()
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    seeds = [int(seed) for seed in request.seeds.split(",")]
    alphas = [float(alpha) for alpha in request.alphas.split(",")]
    rows = [measure(*case) for case in product(ARCHITECTURES, seeds, alphas)]
    groups = {
        "all": rows,
        "coupling": [row for row in rows if row["coupling"] >= COUPLING],
        "curvature": [row for row in rows if row["coupling"] < COUPLING],
    }
    told = {name: summary(group) for name, group in groups.items()}
    write_json(
        request.out,
        {"schema": 1, "tolerance": TOLERANCE, "torch": torch.__version__, "summary": told, "results": rows},
    )
    for name in told["all"]:
        print(f"{name}:", "  ".join(f"{group} {values[name]:.4g}" for group, values in told.items()))


if __name__ == "__main__":
    main()
