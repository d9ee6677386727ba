"""λ by one, two and three ranks, and by one rank with two threads.

    .venv/bin/python experiments/ranks/run.py --out experiments/ranks/results.json

Each is `hessian-lr spectrum` in fresh processes; the first is made twice, to see whether it repeats.
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
# Ranks and threads of each.
CASES = ((1, 1), (1, 1), (2, 1), (3, 1), (1, 2))
TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node")


def measure(ranks: int, threads: int, samples: int, max_length: int) -> dict[str, Any]:
    """One row of the table."""
    launcher = [*TORCHRUN, str(ranks)] if ranks > 1 else []
    sizes = ["--samples", str(samples), "--max-length", str(max_length), "--dtype", "float32"]
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "spectrum.json"
        options = ["--model", MODEL, *sizes, "--device", "cpu", "--quiet", "--json", str(out)]
        subprocess.run(
            [sys.executable, *launcher, "-m", "hessian_lr", "spectrum", *options],
            cwd=ROOT,
            env=os.environ | {"OMP_NUM_THREADS": str(threads)},
            stdout=subprocess.DEVNULL,
            check=True,
        )
        found = read_json(out)["results"][0]
    kept = ("lambda_max", "lambda_upper", "sampling_error", "matvecs", "gradient_equivalents", "seconds")
    return {"ranks": ranks, "threads": threads} | {name: found[name] for name in kept}


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    arguments.add_argument("--out", required=True)
    arguments.add_argument("--samples", type=int, default=5)
    arguments.add_argument("--max-length", type=int, default=256)
    request = arguments.parse_args()
    rows: list[dict[str, Any]] = []
    for ranks, threads in CASES:
        row = measure(ranks, threads, request.samples, request.max_length)
        rows.append(row | {"relative": row["lambda_max"] / (rows or [row])[0]["lambda_max"] - 1})
        print(rows[-1], flush=True)
        asked = {"model": MODEL, "samples": request.samples, "max_length": request.max_length}
        write_json(request.out, {"schema": 1, **asked, "torch": torch.__version__, "results": rows})


if __name__ == "__main__":
    main()
