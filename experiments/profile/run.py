"""Where a product's time goes, beside a gradient's: `python -m experiments.profile.run`.

SmolLM2-135M under plain LoRA, two rows of random tokens, one thread: torch's profiler over products with the
graph kept and over gradients as a trainer takes them, each kernel's own time put down to what it is for.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from experiments.cost_curve.worker import DTYPES, adapted_model, gathered_loss, random_batches
from hessian_lr.allocator import keep_freed_memory
from hessian_lr.curvature import HessianOperator
from hessian_lr.curvature.loss import trainable
from hessian_lr.curvature.modes import compute_in, quiet_model
from hessian_lr.records import write_json

HERE = Path(__file__).resolve().parent
SHAPE = {"pretrained": True, "rank": 16, "rows": 2}
REPEATS = 3
LINEAR, ATTENTION, COPIES = "linear layers", "attention", "copies and casts"
ELEMENTWISE = "elementwise, sums and the rest"
KINDS = {
    LINEAR: ("aten::mm", "aten::addmm", "mkldnn"),
    ATTENTION: ("aten::bmm", "aten::baddbmm", "softmax", "scaled_dot_product", "flash_attention"),
    COPIES: (
        "copy_",
        "aten::cat",
        "aten::fill_",
        "aten::zero_",
        "aten::index",
        "aten::clone",
        "aten::select",
    ),
}


def kind_of(kernel: str) -> str:
    """What a kernel is for."""
    return next((kind for kind, names in KINDS.items() if any(n in kernel for n in names)), ELEMENTWISE)


def seconds_by_kind(work: Callable[[], Any], repeats: int) -> dict[str, float]:
    """Seconds a call that the kernels of each kind take themselves, and ``"all"``."""
    work()
    with profile(activities=[ProfilerActivity.CPU]) as found:
        for _ in range(repeats):
            work()
    spent: dict[str, float] = defaultdict(float)
    for event in found.key_averages():
        spent[kind_of(event.key)] += event.self_cpu_time_total / 1e6 / repeats
    return {kind: spent[kind] for kind in (*KINDS, ELEMENTWISE)} | {"all": sum(spent.values())}


def measure(dtype_name: str, length: int) -> list[dict[str, Any]]:
    """A row for the gradient and one for the product."""
    shape, dtype = SHAPE | {"length": length}, DTYPES[dtype_name]
    model, batches = adapted_model(shape), random_batches(shape)
    parameters, loss_of = trainable(model), gathered_loss(model, batches)
    operator = HessianOperator(model, batches, dtype=dtype, memory_budget=10**13)
    vector = torch.randn(operator.size, generator=torch.Generator().manual_seed(0))

    def gradient() -> None:
        with quiet_model(model), compute_in(parameters[0].device, dtype):
            for batch in batches:
                torch.autograd.grad(loss_of(batch), parameters)

    work = {"gradient": gradient, "product": lambda: operator.matvec(vector)}
    told = {"dtype": dtype_name, "length": length}
    return [told | {"work": name, "seconds": seconds_by_kind(act, REPEATS)} for name, act in work.items()]


def table(rows: list[dict[str, Any]]) -> str:
    """Each kind's time in a product, as a share of the whole gradient beside it, and in that gradient."""
    kinds = (*KINDS, ELEMENTWISE, "all")
    lines = ["| | " + " | ".join(kinds) + " |", "|---" * (len(kinds) + 1) + "|"]
    for row in rows:
        whole = next(
            one["seconds"]["all"]
            for one in rows
            if one["work"] == "gradient" and (one["dtype"], one["length"]) == (row["dtype"], row["length"])
        )
        shares = [f"{row['seconds'][kind] / whole:.2f}" for kind in kinds]
        name = f"{row['dtype']}, two rows of {row['length']}: {row['work']}"
        lines.append(f"| {name} | {' | '.join(shares)} |")
    return "\n".join(lines)


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    arguments.add_argument("--out", default=str(HERE / "results.json"))
    arguments.add_argument("--lengths", default="128,256")
    request = arguments.parse_args()
    keep_freed_memory()
    torch.set_num_threads(1)
    rows = [
        row
        for dtype in DTYPES
        for length in request.lengths.split(",")
        for row in measure(dtype, int(length))
    ]
    write_json(request.out, {"schema": 1, "torch": torch.__version__, "results": rows})
    print(table(rows))


if __name__ == "__main__":
    main()
