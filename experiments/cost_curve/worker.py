"""One point of the cost curve in a process of its own; `run.py` starts it."""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from experiments.peak_memory import forget_peak, peak_bytes, resident_bytes
from hessian_lr import models
from hessian_lr.allocator import keep_freed_memory
from hessian_lr.batches import IGNORED, Batch, count_labels
from hessian_lr.curvature import HessianOperator
from hessian_lr.curvature.loss import summed_loss, trainable
from hessian_lr.curvature.modes import compute_in, quiet_model
from hessian_lr.methods import build
from hessian_lr.records import read_json, write_json
from hessian_lr.setting import Setting

VOCABULARY, HEAD = 49152, 64
# Rows of a batch, and the share of tokens that are a prompt and carry no label: as the built-in tasks.
ROWS_A_BATCH, UNLABELLED = 2, 0.4
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def adapted_model(shape: dict[str, Any]) -> nn.Module:
    """A Llama of the given shape under plain LoRA; its weights' values are random but for ``pretrained``."""
    if shape["pretrained"]:
        model = models.load("smollm2-135m", device="cpu", quiet=True).model
    else:
        heads = shape["hidden"] // HEAD
        torch.manual_seed(0)
        model = LlamaForCausalLM(
            LlamaConfig(
                hidden_size=shape["hidden"],
                intermediate_size=shape["hidden"] * 8 // 3,
                num_hidden_layers=shape["layers"],
                num_attention_heads=heads,
                num_key_value_heads=heads // 3,
                vocab_size=VOCABULARY,
                tie_word_embeddings=True,
                use_cache=False,
            )
        )
    setting = Setting(rank=shape["rank"])
    return build(model.requires_grad_(False).eval(), setting)


def random_batches(shape: dict[str, Any]) -> list[Batch]:
    """Random tokens without padding, in batches of two rows, the later part of each row labelled."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, VOCABULARY, (shape["rows"], shape["length"]), generator=generator)
    labels = ids.clone()
    labels[:, : int(UNLABELLED * shape["length"])] = IGNORED
    return [
        {"input_ids": i, "attention_mask": torch.ones_like(i), "labels": t}
        for i, t in zip(ids.split(ROWS_A_BATCH), labels.split(ROWS_A_BATCH), strict=True)
    ]


def measure_products(
    model: nn.Module, batches: Sequence[Batch], dtype: torch.dtype, kept: bool, repeats: int
) -> dict[str, Any]:
    """Seconds of a product and of two gradients that take turns with it, and the products' peak memory.

    Both gradients are a trainer's: fused attention, no graph of the gradient. One has this package's
    loss, as the product has; the other the library's own, with logits at every position.
    """
    parameters = trainable(model)
    operator = HessianOperator(model, batches, dtype=dtype, memory_budget=10**13 if kept else 0)
    vector = torch.randn(operator.size, generator=torch.Generator().manual_seed(0))
    vector /= vector.norm()

    def gradient(loss_of: Callable[[Batch], Tensor]) -> None:
        with quiet_model(model), compute_in(parameters[0].device, dtype):
            for batch in batches:
                torch.autograd.grad(loss_of(batch), parameters)

    work: dict[str, Callable[[], Any]] = {
        "product": lambda: operator.matvec(vector),
        "gradient": lambda: gradient(gathered_loss(model, batches)),
        "library_gradient": lambda: gradient(library_loss(model)),
    }
    for _ in range(2):
        operator.matvec(vector)  # the first builds the graphs
    peak = peak_bytes()
    work["gradient"]()
    work["library_gradient"]()
    seconds: dict[str, list[float]] = {name: [] for name in work}
    for _ in range(repeats):
        for name, act in work.items():
            began = time.perf_counter()
            act()
            seconds[name].append(time.perf_counter() - began)
    medians = {f"{name}_seconds": statistics.median(values) for name, values in seconds.items()}
    return medians | {
        "ratio": medians["product_seconds"] / medians["gradient_seconds"],
        "library_ratio": medians["product_seconds"] / medians["library_gradient_seconds"],
        "peak_bytes": peak,
        "graphs_kept": operator.kept,
    }


def measure_step(model: nn.Module, batches: Sequence[Batch], dtype: torch.dtype) -> dict[str, Any]:
    """Peak memory of training steps on the same batches: forward, backward, AdamW."""
    parameters = trainable(model)
    peaks = {}
    # The smaller one first: what it leaves behind cannot raise the peak of the larger one.
    for name, loss_of in {"": gathered_loss(model, batches), "library_": library_loss(model)}.items():
        optimizer = torch.optim.AdamW(parameters, lr=1e-6)
        forget_peak()
        with quiet_model(model):
            for _ in range(2):  # the second finds Adam's state there
                for batch in batches:
                    with compute_in(parameters[0].device, dtype):
                        loss = loss_of(batch)
                    loss.backward()
                optimizer.step()
                optimizer.zero_grad()
        peaks[f"{name}peak_bytes"] = peak_bytes()
        del optimizer, loss
    return peaks


def gathered_loss(model: nn.Module, batches: Sequence[Batch]) -> Callable[[Batch], Tensor]:
    labels = sum(count_labels(batch) for batch in batches)
    return lambda batch: summed_loss(model, batch) / labels


def library_loss(model: nn.Module) -> Callable[[Batch], Tensor]:
    return lambda batch: model(**batch, use_cache=False).loss


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("request", help="JSON file with what to measure")
    request = read_json(arguments.parse_args().request)
    keep_freed_memory()
    torch.set_num_threads(request["threads"])
    model, batches = adapted_model(request["shape"]), random_batches(request["shape"])
    dtype = DTYPES[request["dtype"]]
    forget_peak()
    before = resident_bytes()
    if request["what"] == "step":
        found = measure_step(model, batches, dtype)
    else:
        found = measure_products(model, batches, dtype, request["what"] == "kept", request["repeats"])
    parameters = sum(p.numel() for p in trainable(model))
    write_json(request["out"], found | {"resident_before": before, "parameters": parameters})


if __name__ == "__main__":
    main()
