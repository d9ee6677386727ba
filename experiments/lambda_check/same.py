"""One λ by every way there is to a product, on SmolLM2-135M.

    .venv/bin/python -m experiments.lambda_check.same --out experiments/lambda_check/same.json

Graphs kept, rebuilt, and split between the two; float32 and bfloat16; one thread and two; another start;
central differences. On one sample, to one tolerance, and held against a long run in float32. Rows that the
file already has are kept. All in one process, but for ``split``: memory that an earlier way has freed serves
the graphs of the next, and only what comes on top of it counts.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch

import hessian_lr as hlr
from hessian_lr import data, models
from hessian_lr.prepare import prepare
from hessian_lr.records import read_json, write_json
from hessian_lr.setting import Setting

MODEL = "smollm2-135m"
KEPT, SPLIT, REBUILT = 10**13, 3 * 10**9, 0
WAYS: dict[str, dict[str, Any]] = {
    "truth": {"rtol": 1e-3, "seed": 7, "memory_budget": KEPT},
    "kept": {"memory_budget": KEPT},
    "split": {"memory_budget": SPLIT},
    "rebuilt": {"memory_budget": REBUILT},
    "two threads": {"memory_budget": KEPT, "threads": 2},
    "another start": {"memory_budget": KEPT, "seed": 1},
    "bfloat16, kept": {"memory_budget": KEPT, "dtype": torch.bfloat16},
    "bfloat16, rebuilt": {"memory_budget": REBUILT, "dtype": torch.bfloat16},
    "central differences": {"operator": "central-differences"},
}
TOLD = (
    *("lambda_max", "lambda_upper", "residual", "rounding", "difference_error", "status", "matvecs"),
    *("gradient_equivalents", "notes"),
)


def measure(ready: Any, way: dict[str, Any], rtol: float) -> dict[str, Any]:
    """λ by one of the ways."""
    given = {"rtol": rtol, **way}
    threads = given.pop("threads", 1)
    torch.set_num_threads(threads)
    found = hlr.sharpness(ready.model, ready.batches, **given)
    return {"threads": threads, **{name: getattr(found, name) for name in TOLD}}


def table(rows: list[dict[str, Any]]) -> str:
    """What the file says, in Markdown."""
    lines = [
        "| method | way | λ | off the long run by | residual | products | gradients |",
        "|---|---|---|---|---|---|---|",
    ]
    truth = {row["method"]: row["lambda_max"] for row in rows if row["way"] == "truth"}
    for row in rows:
        value, work = row["lambda_max"], row["gradient_equivalents"]
        off = f"{value / truth[row['method']] - 1:+.1e}" if row["method"] in truth else ""
        lines.append(
            f"| {row['method']} | {row['way']} | {value:.6g} | {off} | "
            f"{row['residual'] / value:.1e} | {row['matvecs']} | {work:.1f} |"
        )
    return "\n".join(lines)


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    arguments.add_argument("--out", required=True)
    arguments.add_argument("--samples", type=int, default=3)
    arguments.add_argument("--methods", default="lora,pissa")
    arguments.add_argument("--rtol", type=float, default=0.05)
    arguments.add_argument("--ways", default=",".join(WAYS))
    request = arguments.parse_args()
    rows = read_json(request.out)["results"] if Path(request.out).exists() else []
    loaded = models.load(MODEL, device="cpu")
    for method in request.methods.split(","):
        setting = Setting(model=MODEL, method=method, samples=request.samples)
        ready = prepare(setting, loaded, data.load(setting.data, loaded.tokenizer))
        for name, way in WAYS.items():
            if name not in request.ways.split(",") or any(
                (row["method"], row["way"]) == (method, name) for row in rows
            ):
                continue
            rows.append({"method": method, "way": name, **measure(ready, way, request.rtol)})
            told = {"schema": 1, "model": MODEL, "setting": setting.to_dict(), "rtol": request.rtol}
            write_json(request.out, told | {"torch": torch.__version__, "results": rows})
            print(rows[-1], flush=True)
    print(table(rows))


if __name__ == "__main__":
    main()
