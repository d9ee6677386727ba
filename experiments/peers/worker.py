"""One tool on one method in a process of its own; `run.py` starts it."""

from __future__ import annotations

import argparse
import os
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path

import torch
import transformers

from experiments.peak_memory import forget_peak, peak_bytes, resident_bytes
from hessian_lr import data, models
from hessian_lr.allocator import keep_freed_memory
from hessian_lr.batches import count_labels, count_tokens
from hessian_lr.curvature.loss import trainable
from hessian_lr.prepare import prepare
from hessian_lr.records import read_json, write_json
from hessian_lr.setting import Setting

from .running import LimitReached, Trace
from .tools import registry


def first_line(error: BaseException) -> str:
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0]}" if text else type(error).__name__


def main() -> None:
    request = read_request()
    # Where memory runs out, this process is the one to go.
    with suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000")
    keep_freed_memory()
    torch.set_num_threads(request["threads"])
    setting = Setting(
        method=request["method"], samples=request["samples"], seed=request["seed"], device="cpu"
    )
    loaded = models.load(setting.model, device="cpu", quiet=True)
    prepared = prepare(setting, loaded, data.load(setting.data, loaded.tokenizer))
    model, batches = prepared.model.eval(), prepared.batches
    del loaded, prepared
    tool = registry(request["modules"])[request["tool"]]
    result = {
        "schema": 1,
        "request": {name: value for name, value in request.items() if name not in ("out", "partial")},
        "setting": setting,
        "version": None,
        "same_start": tool.start,
        "batches": [list(batch["input_ids"].shape) for batch in batches],
        "tokens": count_tokens(batches),
        "labels": sum(count_labels(batch) for batch in batches),
        "parameters": sum(p.numel() for p in trainable(model)),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }
    forget_peak()
    before = resident_bytes()
    trace = Trace(Path(request["partial"]), request["max_products"], request["max_seconds"])
    value, status, reason = None, "done", None
    try:
        result["version"] = version(tool.package) if tool.package else None
        value = tool.measure(model, batches, trace, request["seed"])
    except LimitReached as limit:
        status, reason = "stopped", str(limit)
    except Exception as error:  # whatever a tool that does not fit this model raises
        status, reason = "failed", first_line(error)
    result |= {
        "status": status,
        "reason": reason,
        "value": value,
        "seconds": trace.seconds,
        "rss_before": before,
        "peak_rss": peak_bytes(),
        **trace.to_dict(),
    }
    write_json(request["out"], result)
    trace.path.unlink(missing_ok=True)


def read_request() -> dict:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("request", help="JSON file with what to measure")
    return read_json(arguments.parse_args().request)


if __name__ == "__main__":
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    main()
