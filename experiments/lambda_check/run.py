"""λ at B = 0 three ways: by Lanczos, by the closed form as `predict --fast` takes it, and in full.

    .venv/bin/python experiments/lambda_check/run.py --out experiments/lambda_check/results.json

One row for each method and rank; rows that the file already has are kept. The sample is the
curvature sample of `hessian-lr predict` with its defaults, but for its size.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch

import hessian_lr as hlr
from hessian_lr import data, models
from hessian_lr.curvature.closed_form import FAST_PRODUCTS, ClosedForm, closed_form
from hessian_lr.errors import HessianLRError
from hessian_lr.measure import Curvature
from hessian_lr.prepare import prepare
from hessian_lr.records import read_json, write_json
from hessian_lr.setting import Setting

MODEL = "smollm2-135m"


def measure(setting: Setting, loaded: Any, rows: Any, rtol: float) -> dict[str, Any]:
    """One setting's row."""
    ready = prepare(setting, loaded, rows)
    fast = closed_form(ready.model, ready.batches, max_products=FAST_PRODUCTS)
    bracket = closed_form(ready.model, ready.batches)
    exact = hlr.sharpness(ready.model, ready.batches, dtype=torch.float32, rtol=rtol)
    return compared(setting, exact, fast, bracket)


def compared(setting: Setting, exact: Curvature, fast: ClosedForm, bracket: ClosedForm) -> dict[str, Any]:
    """The three side by side.

    ``error`` is the closed form's against Lanczos, which may itself be low by up to its residual;
    ``consistent``: Lanczos's interval and the bracket have a number in common.
    """
    if exact.lambda_max is None or exact.lambda_upper is None:
        raise HessianLRError(f"{setting.method} rank {setting.rank}: " + "; ".join(exact.notes))
    return {
        "method": setting.method,
        "rank": setting.rank,
        "samples": setting.samples,
        "lanczos": exact,
        "closed_form": fast,
        "bracket": bracket,
        "error": fast.estimate / exact.lambda_max - 1,
        "consistent": bracket.lower <= exact.lambda_upper and exact.lambda_max <= bracket.upper,
    }


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    arguments.add_argument("--out", required=True)
    arguments.add_argument("--samples", type=int, default=8)
    arguments.add_argument("--methods", default="lora,rslora")
    arguments.add_argument("--ranks", default="4,16,64")
    arguments.add_argument("--rtol", type=float, default=0.01, help="of Lanczos")
    request = arguments.parse_args()
    settings = [
        Setting(model=MODEL, method=method, rank=int(rank), samples=request.samples)
        for method in request.methods.split(",")
        for rank in request.ranks.split(",")
    ]
    kept = read_json(request.out)["results"] if Path(request.out).exists() else []
    rows = {(row["method"], row["rank"], row["samples"]): row for row in kept}
    loaded = models.load(MODEL, device="cpu")
    task = data.load(settings[0].data, loaded.tokenizer)
    for setting in settings:
        key = (setting.method, setting.rank, setting.samples)
        if key in rows:
            continue
        row = rows[key] = measure(setting, loaded, task, request.rtol)
        write_json(
            request.out,
            {
                "schema": 1,
                "model": MODEL,
                "data": setting.data,
                "torch": torch.__version__,
                "threads": torch.get_num_threads(),
                "results": list(rows.values()),
            },
        )
        fast, exact = row["closed_form"], row["lanczos"]
        print(
            f"{setting.method} rank {setting.rank}: Lanczos {exact.lambda_max:.4g} "
            f"({exact.gradient_equivalents:.3g} gradients), closed form {fast.estimate:.4g} "
            f"({fast.gradient_equivalents:.3g} gradients, {row['error']:+.1%})",
            flush=True,
        )


if __name__ == "__main__":
    main()
