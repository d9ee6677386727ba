"""Why long runs on `math` want smaller learning rates: `python -m experiments.lr_bench.by_heart`.

Runs of SmolLM2 with plain LoRA, 60 steps of 4 rows, at several learning rates. After each, the loss on the
held-out rows, whose templates training did not see, beside the loss on as many rows of the templates that it
did see. ``results/by_heart.json`` has a row a learning rate; those that are there are not run again.
"""

from __future__ import annotations

import random
from typing import Any

from hessian_lr.allocator import keep_freed_memory
from hessian_lr.curvature.loss import mean_loss
from hessian_lr.data import make_batches
from hessian_lr.methods import adapted
from hessian_lr.progress import quiet_libraries
from hessian_lr.records import read_json, write_json
from hessian_lr.setting import Setting
from hessian_lr.sweep.plan import learning_rate, nearest_point
from hessian_lr.sweep.run import HELDOUT_BATCH, heldout_batches, precision
from hessian_lr.sweep.trainer import fit

from .run import Loader
from .settings import LARGE
from .table import HERE

FILE = HERE / "by_heart.json"
SETTING = Setting(model=LARGE, data="math", batch_size=4, steps=60, max_length=256, samples=4)
RATES = [learning_rate(nearest_point(1e-3) + further) for further in (-1, 0, 1, 2, 3)]


def one(lr: float, loader: Loader) -> dict[str, Any]:
    """A run's losses on both kinds of rows."""
    loaded, data = loader(SETTING)
    dtype, pad_id = precision(SETTING), loaded.tokenizer.pad_token_id
    seen = random.Random(0).sample(data.train, len(data.heldout))
    kinds = {
        "heldout": heldout_batches(loaded, data),
        "trained": make_batches(sorted(seen, key=lambda row: len(row.input_ids)), HELDOUT_BATCH, pad_id),
    }
    model = adapted(SETTING, loaded, data)
    told: dict[str, Any] = {"lr": lr, "rows": len(seen)}
    told |= {f"{kind}_before": mean_loss(model, batches, dtype) for kind, batches in kinds.items()}
    fit(model, data.train, SETTING, lr, dtype=dtype, pad_id=pad_id)
    return told | {kind: mean_loss(model, batches, dtype) for kind, batches in kinds.items()}


def main() -> None:
    keep_freed_memory()
    loader = Loader()
    rows = read_json(FILE)["rows"] if FILE.exists() else []
    with quiet_libraries():
        for lr in RATES:
            if not any(row["lr"] == lr for row in rows):
                rows.append(one(lr, loader))
                write_json(FILE, {"schema": 1, "rows": sorted(rows, key=lambda row: row["lr"])})
                print(rows[-1], flush=True)


if __name__ == "__main__":
    main()
