"""Curvature of each module by itself: what it costs against the usual recipe, and five methods compared.

    .venv/bin/python -m experiments.per_module.run cost       # results/cost/*.json, results/cost.json
    .venv/bin/python -m experiments.per_module.run methods    # results/modules/<method>.json
    .venv/bin/python -m experiments.per_module.run figures    # figures/per-module-*.svg and .png

What is measured already is not measured again: delete a file to have it made afresh. Each row of the
cost runs in its own process, so that its peak memory is its own; beside it stands the time of a plain
gradient in the same process, the yardstick for machines whose speed changes.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from hessian_lr import data, models
from hessian_lr.allocator import keep_freed_memory
from hessian_lr.batches import Batch, count_labels
from hessian_lr.curvature.loss import summed_loss, trainable
from hessian_lr.curvature.modes import compute_in, quiet_model
from hessian_lr.measure import module_sharpness, peak_rss_bytes
from hessian_lr.measure.adapter_modules import owned_parameters, places
from hessian_lr.measure.module_block import module_seed
from hessian_lr.prepare import Prepared, prepare
from hessian_lr.records import read_json, write_json
from hessian_lr.setting import Setting
from hessian_lr.spectrum import lanczos

from ..peers.naive import product
from .figure import draw

HERE = Path(__file__).parent
METHODS = ("lora", "pissa", "milora", "olora", "rslora")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
# Name: recipe, precision, which modules.
ROWS = {
    "naive-float32-subset": ("naive", "float32", "subset"),
    "ours-float32-subset": ("ours", "float32", "subset"),
    "ours-bfloat16-subset": ("ours", "bfloat16", "subset"),
    "ours-bfloat16-all": ("ours", "bfloat16", "all"),
}


def build(method: str, samples: int) -> Prepared:
    setting = Setting(method=method, samples=samples)
    loaded = models.load(setting.model)
    return prepare(setting, loaded, data.load(setting.data, loaded.tokenizer))


def spread(names: list[str], each: int) -> list[str]:
    """``each`` modules of every kind, their layers mirrored about the middle of the model.

    A product's cost falls with depth, nearly linearly: the mean of such a subset is that of all.
    """
    where = dict(zip(names, places(names), strict=True))
    kinds = list(dict.fromkeys(kind for _, kind in where.values()))
    layers = sorted({layer for layer, _ in where.values() if layer is not None})
    chosen = set()
    for at, kind in enumerate(kinds):
        for turn in range(each):
            depth = ((at + 0.5) / len(kinds) + turn // 2) / max(1, (each + 1) // 2)
            index = int(depth * len(layers))
            chosen.add((layers[-1 - index] if turn % 2 else layers[index], kind))
    return [name for name in names if where[name] in chosen]


def gradient_seconds(prepared: Prepared, dtype: torch.dtype) -> float:
    """Median time of a plain gradient, as a trainer would take it."""
    model, parameters = prepared.model, trainable(prepared.model)
    labels = sum(count_labels(batch) for batch in prepared.batches)
    times = []
    for _ in range(4):
        began = time.perf_counter()
        with quiet_model(model), compute_in(parameters[0].device, dtype):
            for batch in prepared.batches:
                torch.autograd.grad(summed_loss(model, batch) / labels, parameters)
        times.append(time.perf_counter() - began)
    return statistics.median(times[1:])


def naive_sharpness(
    model: nn.Module, batches: Sequence[Batch], own: Sequence[nn.Parameter], name: str, products: int
) -> float:
    """The usual recipe for one module: its largest Ritz value, from the start vector that ours takes.

    For each product all is rebuilt, over all logits, in float32, with the plain formula of attention.
    Nothing but this module requires a gradient, so that autograd does no more than it must.
    """
    model.set_attn_implementation("eager")
    model.requires_grad_(False)
    for parameter in own:
        parameter.requires_grad_(True)

    def matvec(vector: Tensor) -> Tensor:
        return product(model, batches, own, vector)

    size, seed = sum(p.numel() for p in own), module_seed(0, name)
    with quiet_model(model):
        return lanczos(matvec, size, rtol=1e-12, max_products=products, seed=seed).value


def measure_row(row: str, samples: int, products: int, each: int, out: Path) -> None:
    recipe, precision, which = ROWS[row]
    dtype = DTYPES[precision]
    # PiSSA: A, B ≠ 0, so that every part of a block is there.
    prepared = build("pissa", samples)
    model = prepared.model
    gradient = gradient_seconds(prepared, dtype)
    parameters = trainable(model)
    owned = {name: [parameters[i] for i in at] for name, at in owned_parameters(model, parameters).items()}
    names = list(owned) if which == "all" else spread(list(owned), each)
    values, seconds, per_module = {}, 0.0, {}
    notes: tuple[str, ...] = ()
    equivalents = None
    if recipe == "naive":
        for name in names:
            began = time.perf_counter()
            values[name] = naive_sharpness(model, prepared.batches, owned[name], name, products)
            per_module[name] = time.perf_counter() - began
        seconds = sum(per_module.values())
    else:
        for name, own in owned.items():
            for parameter in own:
                parameter.requires_grad_(name in names)
        # No tolerance is ever met: the same number of products for all, as in the naive recipe.
        found = module_sharpness(model, prepared.batches, rtol=1e-12, max_products=products, dtype=dtype)
        values = {module.name: module.lambda_max for module in found.modules}
        seconds, notes, equivalents = found.seconds, found.notes, found.gradient_equivalents
    write_json(
        out,
        {
            "row": row,
            "recipe": recipe,
            "dtype": precision,
            "modules": len(names),
            "all_modules": len(owned),
            "products": products,
            "tokens": sum(batch["input_ids"].numel() for batch in prepared.batches),
            "labels": sum(count_labels(batch) for batch in prepared.batches),
            "gradient_seconds": gradient,
            "seconds": seconds,
            "seconds_per_product": seconds / (len(names) * products),
            "gradients_per_product": seconds / (len(names) * products) / gradient,
            "gradient_equivalents": equivalents,
            "peak_rss_bytes": peak_rss_bytes(),
            "lambda": values,
            "seconds_by_module": per_module,
            "notes": notes,
            "torch": torch.__version__,
            "threads": torch.get_num_threads(),
        },
    )


def measure_cost(request: argparse.Namespace) -> None:
    folder = request.out / "cost"
    for row in ROWS:
        if not (folder / f"{row}.json").exists():
            options = ["--samples", request.samples, "--products", request.products, "--each", request.each]
            command = [
                sys.executable,
                "-m",
                "experiments.per_module.run",
                "row",
                row,
                *options,
                "--out",
                request.out,
            ]
            subprocess.run([str(part) for part in command], check=True, cwd=HERE.parents[1])
    rows = [read_json(folder / f"{row}.json") for row in ROWS]
    naive = rows[0]
    everything = naive["seconds_per_product"] * naive["all_modules"] * naive["products"]
    summary = []
    for row in rows:
        ours = row["seconds_per_product"] * row["all_modules"] * row["products"]
        shared = [name for name in row["lambda"] if name in naive["lambda"]]
        worst = max(abs(row["lambda"][name] / naive["lambda"][name] - 1) for name in shared)
        summary.append(
            {
                "row": row["row"],
                "modules": row["modules"],
                "seconds": row["seconds"],
                "seconds_for_all_modules": ours,
                "extrapolated": row["modules"] < row["all_modules"],
                "gradients_per_product": row["gradients_per_product"],
                "times_cheaper_than_naive": everything / ours,
                "peak_rss_bytes": row["peak_rss_bytes"],
                "largest_relative_difference_of_lambda": worst,
            }
        )
        print(summary[-1], flush=True)
    shared_keys = ("products", "tokens", "labels", "all_modules", "torch", "threads")
    write_json(
        request.out / "cost.json",
        {"schema": 1} | {key: naive[key] for key in shared_keys} | {"results": summary},
    )


def measure_methods(request: argparse.Namespace) -> None:
    for method in request.methods:
        path = request.out / "modules" / f"{method}.json"
        if path.exists():
            continue
        prepared = build(method, request.samples)

        def told(done: int, modules: int, where: str, method: str = method) -> None:
            print(f"\r{method}: {done} of {modules} modules, {where:80.80}", end="", file=sys.stderr)

        found = module_sharpness(
            prepared.model,
            prepared.batches,
            dtype=DTYPES[request.dtype],
            max_products=request.products,
            progress=told,
        )
        replace(found, notes=(*found.notes, f"products in {request.dtype}")).write(path)
        print(f"\n{method}: {found.matvecs} products, {found.seconds:.0f} s", file=sys.stderr)


def show(request: argparse.Namespace) -> None:
    for file in draw(request.out):
        print(file)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    cost, methods, row, figures = (commands.add_parser(n) for n in ("cost", "methods", "row", "figures"))
    for command in (cost, methods, row, figures):
        command.add_argument("--out", type=Path, default=HERE / "results")
    for command in (cost, methods, row):
        command.add_argument("--samples", type=int, default=2)
    for command in (cost, row):
        command.add_argument("--products", type=int, default=3, help="with each module's block")
        command.add_argument("--each", type=int, default=2, help="modules of every kind in the subset")
    row.add_argument("row", choices=ROWS)
    methods.add_argument("--products", type=int, default=20, help="with a module's block at most")
    methods.add_argument("--methods", nargs="+", default=METHODS, choices=METHODS)
    methods.add_argument("--dtype", choices=DTYPES, default="bfloat16")
    request = parser.parse_args()
    request.out = request.out.resolve()  # the rows' processes start elsewhere
    keep_freed_memory()
    if request.command == "row":
        out = request.out / "cost" / f"{request.row}.json"
        measure_row(request.row, request.samples, request.products, request.each, out)
    else:
        {"cost": measure_cost, "methods": measure_methods, "figures": show}[request.command](request)


if __name__ == "__main__":
    main()
