"""How far off tracked values are: `python -m experiments.tracking.run`.

Short runs of a small model in transformers' Trainer; λ and λ_P are followed by trackers that differ in the
seed of their random components, and at each update found anew by whole Lanczos runs. Then matrices whose
eigenvalues cross (``crossing``). Some twenty minutes of one core.
"""

from __future__ import annotations

import itertools
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from datasets import Dataset
from transformers import DataCollatorForSeq2Seq, Trainer, TrainerCallback, TrainingArguments

import hessian_lr as hlr
from hessian_lr.curvature import HessianOperator, PreconditionedOperator
from hessian_lr.curvature.adam import adam_preconditioner
from hessian_lr.measure import track
from hessian_lr.prepare import prepare
from hessian_lr.records import write_json
from hessian_lr.setting import Setting
from hessian_lr.spectrum import lanczos

from ..lr_bench.run import Loader
from .crossing import followed

HERE = Path(__file__).parent
MODEL = HERE.parent / "lr_bench" / "models" / "llama-3m"
# Steps of a run, and every how many of them it is measured.
LENGTHS = ((6, 2), (20, 4), (40, 5))
DROPOUTS = (0.0, 0.1)
SEEDS = (0, 1)
# rtol of the whole Lanczos runs.
TRUE = 1e-3
MISSED = 0.97


@dataclass(frozen=True)
class Run:
    """One training run."""

    steps: int
    every: int
    dropout: float


class Follow(TrainerCallback):  # type: ignore[misc]
    """Measures with each tracker, and anew."""

    def __init__(self, run: Run, batches: list[Any]) -> None:
        self.run, self.batches = run, batches
        self.trackers = {seed: hlr.SharpnessTracker(batches, seed=seed) for seed in SEEDS}
        self.rows: list[dict[str, Any]] = []

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Measure where it is time to."""
        if state.global_step % self.run.every:
            return
        model, optimizer = kwargs["model"], getattr(kwargs["optimizer"], "optimizer", kwargs["optimizer"])
        operator = HessianOperator(model, self.batches)
        adam = PreconditionedOperator(operator, adam_preconditioner(optimizer, operator.parameters))
        whole = [
            lanczos(matrix.matvec, operator.size, rtol=TRUE, max_products=200).value
            for matrix in (operator, adam)
        ]
        operator.release()
        for seed, tracker in self.trackers.items():
            found = tracker.update(model, state.global_step, optimizer)
            assert found.lambda_preconditioned is not None
            self.rows.append(
                asdict(self.run)
                | {"seed": seed, "step": state.global_step, "products": found.matvecs}
                | {"ratio": found.lambda_max / whole[0], "residual": found.residual / found.lambda_max}
                | {"ratio_preconditioned": found.lambda_preconditioned / whole[1]}
            )


def follow(run: Run, loader: Loader) -> list[dict[str, Any]]:
    """A row for each update of each tracker."""
    setting = Setting(
        model=str(MODEL),
        data="math",
        rank=4,
        alpha=4.0,
        target_modules=("q_proj", "v_proj"),
        batch_size=2,
        steps=run.steps,
        samples=4,
        max_length=128,
        device="cpu",
        dtype="float32",
    )
    loaded, task = loader(setting)
    prepared = prepare(setting, loaded, task)
    predicted = hlr.predict_learning_rate(
        prepared.model, prepared.batches, warmup_batches=prepared.warmup_batches, steps=run.steps
    )
    assert predicted.lr is not None
    for layer in prepared.model.modules():
        for name in getattr(layer, "lora_dropout", ()):
            layer.lora_dropout[name] = torch.nn.Dropout(run.dropout)
    callback = Follow(run, prepared.batches)
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            folder,
            max_steps=run.steps,
            per_device_train_batch_size=setting.batch_size,
            learning_rate=predicted.lr,
            lr_scheduler_type="cosine",
            warmup_steps=1,
            save_strategy="no",
            logging_strategy="no",
            report_to=[],
            use_cpu=True,
            disable_tqdm=True,
        )
        Trainer(
            model=prepared.model,
            args=arguments,
            data_collator=DataCollatorForSeq2Seq(loaded.tokenizer),
            train_dataset=Dataset.from_list([vars(row) for row in task.train[:400]]),
            callbacks=[callback],
        ).train()
    return callback.rows


def main() -> None:
    loader = Loader()
    runs = [Run(*length, dropout) for length, dropout in itertools.product(LENGTHS, DROPOUTS)]
    rows = [row for run in runs for row in follow(run, loader)]
    crossings = [row for second in (0.0, track._SECOND) for row in followed(second, range(4))]
    write_json(HERE / "results.json", {"schema": 1, "runs": rows, "crossings": crossings})
    report(rows, crossings)


def report(rows: list[dict[str, Any]], crossings: list[dict[str, Any]]) -> None:
    """Print both tables."""
    table = pd.DataFrame(rows)
    # The first update is a whole Lanczos run.
    table = table[table["step"] > table["every"]]
    names = {"lowest": ("ratio", "min"), "lowest λ_P": ("ratio_preconditioned", "min")}
    spent = {"products": ("products", "mean"), "updates": ("products", "size")}
    print(table.groupby(["steps", "every", "dropout"]).agg(**names, **spent).round(2).to_string())
    made = pd.DataFrame(crossings)
    made = made[made["update"] > 0].assign(missed=lambda one: one["ratio"] < MISSED)
    told = {"lowest": ("ratio", "min"), "missed": ("missed", "mean"), "updates": ("missed", "size")}
    print(made.groupby("second").agg(**told, products=("products", "mean")).round(3).to_string())


if __name__ == "__main__":
    main()
