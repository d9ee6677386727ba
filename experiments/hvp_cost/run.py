"""What a Hessian-vector product costs, in gradients of the same loss on the same sample.

    .venv/bin/python experiments/hvp_cost/run.py --out experiments/hvp_cost/results.json

Gradient and products take turns in one process, so that a machine whose speed changes changes
both; the ratio of their medians is what counts.
"""

from __future__ import annotations

import argparse
import statistics
import time

import torch

from hessian_lr import data, models
from hessian_lr.curvature import HessianOperator
from hessian_lr.curvature.loss import compute_in, count_labels, quiet_model, summed_loss, trainable
from hessian_lr.prepare import prepare
from hessian_lr.records import write_json
from hessian_lr.setting import Setting

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
BUDGETS = {"kept": 10**13, "rebuilt": 0}


def seconds(work) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    arguments.add_argument("--out", required=True)
    arguments.add_argument("--repeats", type=int, default=5)
    request = arguments.parse_args()
    setting = Setting()
    loaded = models.load(setting.model)
    prepared = prepare(setting, loaded, data.load(setting.data, loaded.tokenizer))
    model, batches = prepared.model, prepared.batches
    parameters = trainable(model)
    labels = sum(count_labels(batch) for batch in batches)

    def gradient(dtype: torch.dtype) -> None:
        # As a trainer would: fused attention, no graph of the gradient.
        with quiet_model(model), compute_in(parameters[0].device, dtype):
            for batch in batches:
                torch.autograd.grad(summed_loss(model, batch) / labels, parameters)

    results = []
    for name, dtype in DTYPES.items():
        for mode, budget in BUDGETS.items():
            operator = HessianOperator(model, batches, dtype=dtype, memory_budget=budget)
            vector = torch.randn(operator.size, generator=torch.Generator().manual_seed(0))
            vector /= vector.norm()
            gradient(dtype)
            operator.matvec(vector)  # builds the graphs
            gradients, products = [], []
            for _ in range(request.repeats):
                gradients.append(seconds(lambda d=dtype: gradient(d)))
                products.append(seconds(lambda o=operator, v=vector: o.matvec(v)))
            results.append(
                {
                    "dtype": name,
                    "graphs": mode,
                    "gradient_seconds": statistics.median(gradients),
                    "product_seconds": statistics.median(products),
                    "ratio": statistics.median(products) / statistics.median(gradients),
                }
            )
            print(results[-1], flush=True)
            del operator
    write_json(
        request.out,
        {
            "schema": 1,
            "setting": setting,
            "tokens": sum(batch["input_ids"].numel() for batch in batches),
            "labels": labels,
            "torch": torch.__version__,
            "threads": torch.get_num_threads(),
            "results": results,
        },
    )


if __name__ == "__main__":
    main()
