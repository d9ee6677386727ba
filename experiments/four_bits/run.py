"""What a base in four bits changes, on SmolLM2-135M: `OMP_NUM_THREADS=1 python -m experiments.four_bits.run`.

A plain base and one in bitsandbytes' nf4 carry the same adapter, on the same rows. Each way has a process of
its own: processor time of a product and of a gradient (the least of several, in turns, on one thread), the
peak memory beyond the loaded model, λ, and what is predicted. Ways that ``results.json`` has are not run
again.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

import hessian_lr as hlr
from experiments.peak_memory import forget_peak, peak_bytes, resident_bytes
from hessian_lr import data, models
from hessian_lr.allocator import keep_freed_memory
from hessian_lr.curvature import HessianOperator
from hessian_lr.curvature.loss import summed_loss, trainable
from hessian_lr.curvature.modes import quiet_model
from hessian_lr.models import alias
from hessian_lr.package import cache_folder
from hessian_lr.prepare import Prepared, prepare
from hessian_lr.records import read_json, write_json
from hessian_lr.setting import Setting

HERE = Path(__file__).parent
RESULTS = HERE / "results.json"
MODEL, ROWS, REPEATS = "smollm2-135m", 4, 4
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
GRAPHS, BASES = {"kept": 10**13, "rebuilt": 0}, ("plain", "nf4")
WAYS = [(base, dtype, graph) for dtype in DTYPES for graph in GRAPHS for base in BASES]


def prepared(base: str) -> Prepared:
    """Plain LoRA on the built-in model, as it is or in four bits, with the rows to measure on."""
    loaded = models.load(MODEL, device="cpu", quiet=True)
    task = data.load("math", loaded.tokenizer, max_length=256)
    ready = prepare(Setting(model=MODEL, samples=ROWS, max_length=256), loaded, task)
    if base == "plain":
        return ready
    config = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4")
    folder = str(alias.folder(cache_folder(), MODEL, True))
    packed = AutoModelForCausalLM.from_pretrained(folder, quantization_config=config, dtype=torch.float32)
    setting = LoraConfig(r=16, lora_alpha=16, target_modules="all-linear", task_type="CAUSAL_LM")
    model = get_peft_model(packed.requires_grad_(False).eval(), setting)
    # The same A.
    assert not set_peft_model_state_dict(model, get_peft_model_state_dict(ready.model)).unexpected_keys
    return replace(ready, model=model)


def one(base: str, dtype: str, graph: str) -> dict[str, Any]:
    """A way's row."""
    keep_freed_memory()
    ready = prepared(base)
    told: dict[str, Any] = {"base": base, "dtype": dtype, "graph": graph}
    told |= costs(ready, DTYPES[dtype], GRAPHS[graph])
    if graph == "kept":
        found = hlr.predict_learning_rate(
            ready.model,
            ready.batches,
            warmup_batches=ready.warmup_batches,
            steps=60,
            dtype=DTYPES[dtype],
            memory_budget=GRAPHS[graph],
        )
        assert found.curvature is not None and found.adam is not None
        told |= {
            "lambda": found.curvature.lambda_max,
            "lambda_preconditioned": found.adam.lambda_preconditioned,
            "lr_critical_start": found.adam.lr_critical_start,
            "lr": found.lr,
        }
    return told


def costs(ready: Prepared, dtype: torch.dtype, memory_budget: int) -> dict[str, float]:
    """Processor seconds of a product and a gradient, and the peak memory of products beyond the model."""
    before = resident_bytes() or 0
    forget_peak()
    operator = HessianOperator(ready.model, ready.batches, dtype=dtype, memory_budget=memory_budget)
    vector = torch.randn(operator.size, generator=torch.Generator().manual_seed(0))
    operator.matvec(vector)
    products, gradients = [], []
    for _ in range(REPEATS):
        products.append(_seconds(lambda: operator.matvec(vector)))
        gradients.append(_seconds(lambda: _gradient(ready, dtype)))
    return {"product": min(products), "gradient": min(gradients), "peak": peak_bytes() - before}


def _gradient(ready: Prepared, dtype: torch.dtype) -> None:
    """As training takes it: the model's own forward pass, under autocast where that is asked for."""
    model = ready.model
    with quiet_model(model), torch.autocast("cpu", dtype, enabled=dtype is not torch.float32):
        for batch in ready.batches:
            torch.autograd.grad(summed_loss(model, batch), trainable(model))


def _seconds(work: Any) -> float:
    began = time.process_time()
    work()
    return time.process_time() - began


def table(rows: list[dict[str, Any]]) -> str:
    """Two tables in Markdown: what products take, and what comes of them."""
    by_way = {(row["dtype"], row["graph"], row["base"]): row for row in rows}
    lines = [
        "| in | graph | gradient, nf4 ÷ plain | product ÷ gradient, plain | nf4 | product, nf4 ÷ plain "
        "| peak beyond the model, plain | nf4 |",
        "|---" * 8 + "|",
    ]
    values = [
        "| in | λ, plain | nf4 ÷ plain | λ_P, plain | nf4 ÷ plain | η_c, nf4 ÷ plain | predicted, plain "
        "| nf4 ÷ plain |",
        "|---" * 8 + "|",
    ]
    for (dtype, graph, base), plain in by_way.items():
        if base == "nf4":
            continue
        packed = by_way[dtype, graph, "nf4"]
        ratio = {name: packed[name] / plain[name] for name in plain if isinstance(plain[name], float)}
        per_gradient = " | ".join(f"{row['product'] / row['gradient']:.2f}" for row in (plain, packed))
        peaks = " | ".join(f"{row['peak'] / 1e9:.2f} GB" for row in (plain, packed))
        lines.append(
            f"| {dtype} | {graph} | {ratio['gradient']:.2f} | {per_gradient} "
            f"| {ratio['product']:.2f} | {peaks} |"
        )
        if graph == "kept":
            values.append(
                f"| {dtype} | {plain['lambda']:.4g} | {ratio['lambda']:.3f} "
                f"| {plain['lambda_preconditioned']:.4g} | {ratio['lambda_preconditioned']:.3f} "
                f"| {ratio['lr_critical_start']:.3f} | {plain['lr']:.2e} | {ratio['lr']:.3f} |"
            )
    return "\n".join([*lines, "", *values])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--way", nargs=3, help="of one process: base, dtype, graph")
    asked = parser.parse_args()
    rows = read_json(RESULTS)["results"] if RESULTS.exists() else []
    if asked.way:
        rows.append(one(*asked.way))
        write_json(RESULTS, {"schema": 1, "versions": {"torch": torch.__version__}, "results": rows})
        return
    for way in WAYS:
        if not any((row["base"], row["dtype"], row["graph"]) == way for row in rows):
            subprocess.run([sys.executable, "-m", "experiments.four_bits.run", "--way", *way], check=True)
    print(table(read_json(RESULTS)["results"]))


if __name__ == "__main__":
    main()
