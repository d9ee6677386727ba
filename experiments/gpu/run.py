"""What curvature costs on a GPU, of models of 135 million to 7 billion parameters.

    python -m experiments.gpu.run

A process for each case. The models have random weights, which change no cost; Hessian-vector products and
gradients take turns on the same microbatches, and each time is that of the device's finished work.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

import hessian_lr as hlr
from experiments.cost_curve.worker import DTYPES, gathered_loss, library_loss
from hessian_lr.batches import IGNORED, Batch, to_device
from hessian_lr.curvature import HessianOperator
from hessian_lr.curvature.loss import trainable
from hessian_lr.curvature.microbatches import microbatches
from hessian_lr.curvature.modes import compute_in, quiet_model
from hessian_lr.methods import build
from hessian_lr.records import read_json, write_json
from hessian_lr.setting import Setting

ROOT = Path(__file__).resolve().parents[2]
RESULTS = Path(__file__).with_name("results.json")
LENGTH, UNLABELLED, REPEATS = 512, 0.4, 5
# The shapes of SmolLM2-135M and SmolLM2-1.7B, and of Llama 2 7B (arXiv 2307.09288).
SHAPES: dict[str, dict[str, Any]] = {
    "135M": {
        "hidden_size": 576,
        "intermediate_size": 1536,
        "num_hidden_layers": 30,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "vocab_size": 49152,
        "tie_word_embeddings": True,
    },
    "1.7B": {
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "num_hidden_layers": 24,
        "num_attention_heads": 32,
        "vocab_size": 49152,
        "tie_word_embeddings": True,
    },
    "7B": {
        "hidden_size": 4096,
        "intermediate_size": 11008,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "vocab_size": 32000,
    },
}
# Shape, the frozen weights' type, the products', rows of 512 tokens.
CASES = (
    ("135M", "float32", "bfloat16", 8),
    ("135M", "float32", "bfloat16", 64),
    ("135M", "float32", "float32", 8),
    ("135M", "float32", "float32", 64),
    ("1.7B", "float32", "bfloat16", 8),
    ("1.7B", "float32", "float32", 8),
    ("7B", "bfloat16", "bfloat16", 8),
    ("7B", "float32", "bfloat16", 8),
)
NAMES = ("shape", "weights", "dtype", "rows")


def adapted_model(shape: str, weights: torch.dtype, device: str) -> nn.Module:
    """A Llama with random weights, under plain LoRA of rank 16 on all linear layers in float32."""
    torch.manual_seed(0)
    with torch.device(device):
        model = LlamaForCausalLM(LlamaConfig(**SHAPES[shape], use_cache=False)).to(weights)
    return build(model.requires_grad_(False).eval(), Setting(rank=16))


def random_batch(rows: int, vocabulary: int) -> Batch:
    """Random tokens without padding, the later part of each row labelled."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, vocabulary, (rows, LENGTH), generator=generator)
    labels = ids.clone()
    labels[:, : int(UNLABELLED * LENGTH)] = IGNORED
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}


def finished(device: torch.device) -> None:
    """Wait until the device has done all it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def timed(device: torch.device, act: Callable[[], Any]) -> float:
    """Seconds until its work is done."""
    finished(device)
    began = time.perf_counter()
    act()
    finished(device)
    return time.perf_counter() - began


def forget_peak(device: torch.device) -> None:
    """Start the peak of the device's memory anew."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def peak_bytes(device: torch.device) -> int:
    """The most that the device's tensors have taken since ``forget_peak``."""
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else 0


def products(model: nn.Module, batch: Batch, dtype: torch.dtype) -> dict[str, Any]:
    """Products with the graphs that fit kept, and with all rebuilt."""
    return product("kept", None, model, batch, dtype) | product("rebuilt", 0, model, batch, dtype)


def product(
    kind: str, budget: int | None, model: nn.Module, batch: Batch, dtype: torch.dtype
) -> dict[str, Any]:
    """Seconds and peak memory of products, and seconds of gradients that take turns with them.

    The operator, with all graphs it keeps, ends with this call: another's peak must not count them.
    """
    parameters = trainable(model)
    operator = HessianOperator(model, [batch], dtype=dtype, memory_budget=budget)
    device = operator.device
    vector = torch.randn(operator.size, device=device)
    vector /= vector.norm()

    def gradient(loss_of: Callable[[Batch], torch.Tensor]) -> None:
        # As a trainer takes it: the model's own attention, and no graph of the gradient.
        with quiet_model(model), compute_in(device, dtype):
            for piece in operator.batches:
                torch.autograd.grad(loss_of(piece), parameters)

    work: dict[str, Callable[[], Any]] = {
        "product": lambda: operator.matvec(vector),
        "gradient": lambda: gradient(gathered_loss(model, operator.batches)),
        "library_gradient": lambda: gradient(library_loss(model)),
    }
    forget_peak(device)
    first = timed(device, work["product"])
    work["product"]()
    peak = peak_bytes(device)
    for act in work.values():
        act()
    seconds: dict[str, list[float]] = {name: [] for name in work}
    for _ in range(REPEATS):
        for name, act in work.items():
            seconds[name].append(timed(device, act))
    found = {f"{name}_seconds": statistics.median(values) for name, values in seconds.items()}
    found |= {
        "ratio": found["product_seconds"] / found["gradient_seconds"],
        "first_seconds": first,
        "peak": peak,
        "graphs": len(operator.batches),
        "graphs_kept": operator.kept,
        "graph_bytes_a_token": operator.plan.bytes_per_token,
    }
    return {f"{kind}_{name}": value for name, value in found.items()}


def step(model: nn.Module, batch: Batch, dtype: torch.dtype) -> dict[str, Any]:
    """Seconds and peak memory of a training step on the same microbatches: forward, backward, AdamW."""
    parameters = trainable(model)
    device = parameters[0].device
    pieces = [to_device(piece, device) for piece in microbatches([batch], device)]
    optimizer, loss_of = torch.optim.AdamW(parameters, lr=1e-6), gathered_loss(model, pieces)

    def once() -> None:
        with quiet_model(model):
            for piece in pieces:
                with compute_in(device, dtype):
                    loss = loss_of(piece)
                loss.backward()
            optimizer.step()
            optimizer.zero_grad()

    once()  # Adam's state is there from now on
    forget_peak(device)
    seconds = statistics.median(timed(device, once) for _ in range(REPEATS))
    return {"step_seconds": seconds, "step_peak": peak_bytes(device)}


def eigenvalue(model: nn.Module, batch: Batch, dtype: torch.dtype) -> dict[str, Any]:
    """What λ to 5% costs from end to end."""
    device = trainable(model)[0].device
    forget_peak(device)
    found = hlr.sharpness(model, [batch], dtype=dtype)
    names = ("status", "lambda_max", "residual", "rounding", "matvecs", "gradient_equivalents", "seconds")
    told = {name: getattr(found, name) for name in names}
    return {"sharpness": told | {"notes": list(found.notes), "peak": peak_bytes(device)}}


def measure(case: dict[str, Any], device: str, out: str) -> dict[str, Any]:
    """All of one case, in this process; written part by part, so that a time limit costs only the rest."""
    dtype = DTYPES[case["dtype"]]
    model = adapted_model(case["shape"], DTYPES[case["weights"]], device)
    batch = random_batch(case["rows"], SHAPES[case["shape"]]["vocab_size"])
    weights = sum(p.numel() * p.element_size() for p in model.parameters())
    told = {"weight_bytes": weights, "trainable": sum(p.numel() for p in trainable(model))}
    for part in (products, step, eigenvalue):
        began = time.perf_counter()
        told |= part(model, batch, dtype) | {f"{part.__name__}_took": time.perf_counter() - began}
        write_json(out, told)
        if device != "cpu":
            torch.cuda.empty_cache()
    return told


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--out", default=str(RESULTS))
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--shape", action="append", choices=list(SHAPES), help="only these")
    parser.add_argument("--seconds", type=float, default=600, help="a case's time limit")
    parser.add_argument("--case", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.case:
        case = dict(zip(NAMES, asked.case.split(","), strict=True))
        measure(case | {"rows": int(case["rows"])}, asked.device, asked.out)
        return
    name = torch.cuda.get_device_name() if asked.device != "cpu" else "CPU"
    document: dict[str, Any] = {"schema": 1, "device": name, "torch": torch.__version__, "cases": []}
    for case in CASES:
        if asked.shape and case[0] not in asked.shape:
            continue
        row = dict(zip(NAMES, case, strict=True)) | alone(case, asked.device, asked.seconds)
        document["cases"].append(row)
        print(row, flush=True)
        write_json(asked.out, document)


def alone(case: tuple[Any, ...], device: str, seconds: float) -> dict[str, Any]:
    """A case in a process of its own; ``failed`` with the reason where it did not live to tell."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "case.json"
        given = ["--case", ",".join(map(str, case)), "--device", device, "--out", str(out)]
        try:
            done = subprocess.run(
                [sys.executable, "-m", "experiments.gpu.run", *given], cwd=ROOT, timeout=seconds
            )
            failed = None if done.returncode == 0 else f"ended with status {done.returncode}"
        except subprocess.TimeoutExpired:
            failed = f"not done within {seconds:g} s"
        return (read_json(out) if out.exists() else {}) | ({"failed": failed} if failed else {})


if __name__ == "__main__":
    main()
