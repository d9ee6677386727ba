"""λ and the learning rate by one, two and three ranks, and λ with two threads.

    .venv/bin/python experiments/ranks/run.py --out experiments/ranks/results.json

Each row is a command in fresh processes; the first is made twice, to see whether it repeats.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

from hessian_lr.records import read_json, write_json

ROOT = Path(__file__).parents[2]
MODEL = "experiments/lr_bench/models/llama-3m"
# Command, precision, ranks, threads of each; rows of one command and precision are held against its first.
CASES = (
    ("spectrum", "float32", 1, 1),
    ("spectrum", "float32", 1, 1),
    ("spectrum", "float32", 2, 1),
    ("spectrum", "float32", 3, 1),
    ("spectrum", "float32", 1, 2),
    ("predict", "bfloat16", 1, 1),
    ("predict", "bfloat16", 2, 1),
    ("predict", "bfloat16", 3, 1),
)
TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node")
NUMBERS = ("lambda_max", "lambda_preconditioned", "lr")
COSTS = ("matvecs", "gradient_equivalents", "seconds")


def measure(command: str, dtype: str, ranks: int, threads: int, options: list[str]) -> dict[str, Any]:
    """One row of the table."""
    launcher = [*TORCHRUN, str(ranks)] if ranks > 1 else []
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "out.json"
        given = ["--model", MODEL, *options, "--dtype", dtype, "--device", "cpu", "--json", str(out)]
        subprocess.run(
            [sys.executable, *launcher, "-m", "hessian_lr", command, *given, "--quiet"],
            cwd=ROOT,
            env=os.environ | {"OMP_NUM_THREADS": str(threads)},
            stdout=subprocess.DEVNULL,
            check=True,
        )
        found = read_json(out)["results"][0]
    told = {name: found[name] for name in (*NUMBERS, *COSTS) if found.get(name) is not None}
    return {"command": command, "dtype": dtype, "ranks": ranks, "threads": threads} | told


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    arguments.add_argument("--out", required=True)
    arguments.add_argument("--samples", type=int, default=5)
    arguments.add_argument("--max-length", type=int, default=256)
    request = arguments.parse_args()
    asked = {"samples": request.samples, "max_length": request.max_length}
    options = ["--samples", str(request.samples), "--max-length", str(request.max_length)]
    rows: list[dict[str, Any]] = []
    for command, dtype, ranks, threads in CASES:
        row = measure(command, dtype, ranks, threads, options)
        first = next((one for one in rows if one["command"] == command), row)
        for name in NUMBERS:
            if name in row:
                row[f"{name}_relative"] = row[name] / first[name] - 1
        rows.append(row)
        print(row, flush=True)
        write_json(
            request.out, {"schema": 1, "model": MODEL, **asked, "torch": torch.__version__, "results": rows}
        )


if __name__ == "__main__":
    main()
