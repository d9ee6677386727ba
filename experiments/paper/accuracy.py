"""Exact-match accuracy on the held-out math rows after training at the best learning rate of each table row.

``python -m experiments.paper.accuracy`` trains SmolLM2 once a setting of the committed tables, at the
learning rate that they call best, and lets it answer. What is finished stands in ``accuracy/`` and is not
done again.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Any

import torch

from hessian_lr import data, models
from hessian_lr.batches import IGNORED
from hessian_lr.data import Example
from hessian_lr.methods import adapted
from hessian_lr.records import read_json, write_json
from hessian_lr.setting import Setting
from hessian_lr.sweep.run import precision
from hessian_lr.sweep.trainer import fit

from ..lr_bench.table import read

OUT = Path(__file__).parent / "accuracy"
MODEL, TASK = "smollm2-135m", "math"
_FINAL = re.compile(r"####\s*(-?[\d.,]*\d)")
_BATCH = 17  # half of the held-out rows


def final_answer(text: str) -> Decimal | None:
    """The number after the last ``####``, as gsm8k's answers end; None where there is none."""
    found = _FINAL.findall(text)
    try:
        return Decimal(found[-1].replace(",", "")) if found else None
    except InvalidOperation:
        return None


def exact_match(model: Any, tokenizer: Any, rows: Sequence[Example]) -> list[bool]:
    """Whether a greedy answer to each row's prompt ends in the row's own number.

    An answer may be half as long again as the longest right one. Prompts are padded on the left.
    """
    prompts = [_before_labels(row) for row in rows]
    wanted = [[token for token in row.labels if token != IGNORED] for row in rows]
    most = max(map(len, wanted)) * 3 // 2
    right = []
    for start in range(0, len(rows), _BATCH):
        part = prompts[start : start + _BATCH]
        width = max(map(len, part))
        pads = [width - len(prompt) for prompt in part]
        device = next(model.parameters()).device
        ids = torch.tensor([[tokenizer.pad_token_id] * pad + p for pad, p in zip(pads, part, strict=True)])
        mask = torch.tensor([[0] * pad + [1] * len(p) for pad, p in zip(pads, part, strict=True)])
        with torch.no_grad():
            made = model.generate(
                input_ids=ids.to(device),
                attention_mask=mask.to(device),
                max_new_tokens=most,
                do_sample=False,
                use_cache=True,
                pad_token_id=tokenizer.pad_token_id,
                eos_token_id=tokenizer.eos_token_id,
            )
        for answer, expected in zip(made[:, width:], wanted[start : start + _BATCH], strict=True):
            number = final_answer(tokenizer.decode(answer, skip_special_tokens=True))
            right.append(number is not None and number == final_answer(tokenizer.decode(expected)))
    return right


def _before_labels(row: Example) -> list[int]:
    first = next(place for place, label in enumerate(row.labels) if label != IGNORED)
    return list(row.input_ids[:first])


def settings() -> dict[str, tuple[Setting, float]]:
    """The tables' settings of SmolLM2 on math with their best learning rate, none at a sweep's edge."""
    found = {}
    for row in read()[0].to_dict("records"):
        if (row["model"], row["data"]) != (MODEL, TASK) or row["censored"] or not row["best_lr"] > 0:
            continue
        names = ("method", "rank", "batch_size", "steps", "max_length", "dtype", "target_modules")
        values = {name: row[name] for name in names}
        found[row["key"]] = (
            Setting(model=MODEL, data=TASK, alpha=float(row["alpha"]), **values),
            row["best_lr"],
        )
    return found


def main() -> None:
    loaded = models.load(MODEL)
    task = data.load(TASK, loaded.tokenizer)
    file = OUT / "before.json"
    if not file.exists():
        right = exact_match(loaded.model, loaded.tokenizer, task.heldout)
        write_json(file, {"schema": 1, "right": sum(right), "rows": len(right)})
    print(f"before training: {read_json(file)['right']} of {read_json(file)['rows']} right")
    for key, (setting, lr) in settings().items():
        file = OUT / f"{key}.json"
        if not file.exists():
            task = data.load(TASK, loaded.tokenizer, max_length=setting.max_length)
            model = adapted(setting, loaded, task)
            pad_id = loaded.tokenizer.pad_token_id
            fit(model, task.train, setting, lr, dtype=precision(setting), pad_id=pad_id)
            right = exact_match(model.eval(), loaded.tokenizer, task.heldout)
            told = {"schema": 1, "setting": setting, "lr": lr, "right": sum(right), "rows": len(right)}
            write_json(file, told)
        told = read_json(file)
        what = f"{setting.method}, {setting.steps} steps at {told['lr']:.1e}"
        print(f"{what}: {told['right']} of {told['rows']} right")


if __name__ == "__main__":
    main()
