"""The certificates of λ over repeated samples of a pretrained model: how often does each number hold?

    .venv/bin/python -m experiments.lambda_check.repeated --draws 12 \
        --out experiments/lambda_check/repeated.json

Each draw is another sample of rows, measured to 5% with another start vector. Its λ is known from a second
Lanczos run on the same sample, to a residual of 1e-4, with a start of its own; its population is a large
sample of other rows of the same task.
"""

from __future__ import annotations

import argparse
import logging
import random
import warnings
from pathlib import Path
from typing import Any

import torch

from hessian_lr import data, models
from hessian_lr.curvature import HessianOperator
from hessian_lr.data import make_batches
from hessian_lr.measure.confirm import sampling_error, verified
from hessian_lr.prepare import prepare
from hessian_lr.records import read_json, write_json
from hessian_lr.setting import Setting
from hessian_lr.spectrum import lanczos
from hessian_lr.spectrum.lanczos import dot

MODELS = Path("experiments/lr_bench/models")
SAMPLES, POPULATION = 8, 96
RTOL, TRUTH = 0.05, 1e-4
# Products in float32 scatter by so much of λ.
ROUNDING = 1e-5


def measure(name: str, method: str, draws: int) -> dict[str, Any]:
    """``draws`` samples of one model and method, and what they are held against."""
    setting = Setting(model=str(MODELS / name), method=method, samples=SAMPLES, max_length=256)
    loaded = models.load(setting.model, device="cpu", quiet=True)
    task = data.load("math", loaded.tokenizer, max_length=256)
    model = prepare(setting, loaded, task).model

    def operator(rows: list[Any]) -> HessianOperator:
        return HessianOperator(
            model, make_batches(rows, 1, loaded.tokenizer.pad_token_id, torch.device("cpu"))
        )

    order = random.Random(f"{name} {method}").sample(range(len(task.train)), len(task.train))
    shuffled = [task.train[index] for index in order]
    whole, pool = operator(shuffled[:POPULATION]), shuffled[POPULATION:]
    population = lanczos(whole.matvec, whole.size, rtol=TRUTH, max_products=100, seed=0)
    rows = []
    for draw in range(draws):
        chosen = random.Random(f"{name} {method} {draw}").sample(pool, 2 * SAMPLES)
        sample, unseen = operator(chosen[:SAMPLES]), operator(chosen[SAMPLES:])
        found = verified(
            lanczos(sample.matvec, sample.size, rtol=0.8 * RTOL, max_products=40, seed=2 * draw + 1),
            sample,
            RTOL,
        )
        error = sampling_error(sample.batch_forms, sample.weights)
        exact = lanczos(sample.matvec, sample.size, rtol=TRUTH, max_products=100, seed=2 * draw + 2)
        held_out = dot(found.vector, unseen.matvec(found.vector))
        rows.append(
            {
                "theta": found.value,
                "residual": found.residual,
                "upper": found.upper,
                "status": found.status,
                "products": found.products,
                "lambda": exact.value,
                "sampling_error": error,
                "held_out": held_out,
                "held_out_error": sampling_error(unseen.batch_forms, unseen.weights),
                "population_form": dot(found.vector, whole.matvec(found.vector)),
            }
        )
    return {"model": name, "method": method, "population_lambda": population.value, "draws": rows}


def counted(study: dict[str, Any]) -> dict[str, Any]:
    """How often each number of the certificate held."""
    rows, population = study["draws"], study["population_lambda"]

    def share(holds: Any) -> int:
        return sum(bool(holds(row)) for row in rows)

    ratios = sorted(row["theta"] / row["lambda"] for row in rows)
    return {
        "model": study["model"],
        "method": study["method"],
        "draws": len(rows),
        "converged": share(lambda r: r["status"] == "converged"),
        "within_rtol": share(lambda r: r["theta"] >= (1 - RTOL) * r["lambda"]),
        "lowest": ratios[0] - 1,
        "lower_violated": share(lambda r: r["theta"] > (1 + ROUNDING) * r["lambda"]),
        "upper_violated": share(lambda r: r["upper"] < (1 - ROUNDING) * r["lambda"]),
        "residual_violated": share(
            lambda r: r["lambda"] - r["theta"] > r["residual"] + ROUNDING * r["lambda"]
        ),
        "sample_covers_population": share(lambda r: abs(r["theta"] - population) <= 2 * r["sampling_error"]),
        "held_out_covers": share(
            lambda r: abs(r["held_out"] - r["population_form"]) <= 2 * r["held_out_error"]
        ),
        "held_out_above_population": share(lambda r: r["held_out"] > population),
        "mean_sample_over_population": sum(r["lambda"] for r in rows) / len(rows) / population,
        "mean_held_out_over_population": sum(r["held_out"] for r in rows) / len(rows) / population,
    }


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    arguments.add_argument("--out", required=True)
    arguments.add_argument("--draws", type=int, default=12)
    request = arguments.parse_args()
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    done = read_json(request.out)["results"] if Path(request.out).exists() else []
    for name in ("llama-3m", "gpt2-2m"):
        for method in ("lora", "pissa"):
            if any((one["model"], one["method"]) == (name, method) for one in done):
                continue
            done.append(measure(name, method, request.draws))
            told = [counted(one) for one in done]
            write_json(request.out, {"schema": 1, "summary": told, "results": done})
            print(told[-1], flush=True)


if __name__ == "__main__":
    main()
