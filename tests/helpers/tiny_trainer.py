"""A tiny Trainer, its rows and its collator, for the tests of what a callback does in it."""

from __future__ import annotations

import datasets
import torch
from tiny_models import counting_batch, learned
from transformers import Trainer, TrainerCallback, TrainingArguments

from hessian_lr.integrations import PredictedLearningRate

STEPS = 6


def counted():
    """Rows of counting, by number."""
    batch = counting_batch(64, 3, seed=1)
    return datasets.Dataset.from_dict({name: value.tolist() for name, value in batch.items()})


def collate(rows):
    # It draws from all generators, as a collator that masks at random would.
    torch.rand(1)
    return {name: torch.tensor([row[name] for row in rows]) for name in rows[0]}


class Watched(Trainer):
    """Keeps the rows of each micro-batch it trains on."""

    def training_step(self, model, inputs, *rest):
        self.seen = [*getattr(self, "seen", []), inputs["input_ids"].tolist()]
        return super().training_step(model, inputs, *rest)


class Reporter(TrainerCallback):
    """What a reporter such as TensorBoard's is told, in order."""

    def __init__(self):
        self.logs = []

    def on_log(self, args, state, control, logs=None, **kwargs):
        self.logs.append(dict(logs))


def trainer(rows, folder, *, dropout=0.0, model=None, **options):
    arguments = {
        "output_dir": str(folder),
        "max_steps": STEPS,
        "per_device_train_batch_size": 4,
        "learning_rate": 5e-5,
        "lr_scheduler_type": "cosine",
        "warmup_steps": 2,
        "logging_steps": 2,
        "save_strategy": "no",
        "report_to": [],
        "use_cpu": True,
        "disable_tqdm": True,
        "seed": 3,
    }
    model = model or learned()
    for layer in model.modules():
        if isinstance(layer, torch.nn.Dropout):
            layer.p = dropout
    reporter = Reporter()
    made = Watched(
        model=model,
        args=TrainingArguments(**arguments | options),
        data_collator=collate,
        train_dataset=rows,
        callbacks=[reporter],
    )
    made.reporter = reporter
    return made


def with_callback(rows, folder, options=None, **arguments):
    made = trainer(rows, folder, **options or {})
    made.add_callback(PredictedLearningRate(made, **arguments))
    made.train()
    return made


def weights(made):
    return [p.detach().clone() for p in made.model.parameters() if p.requires_grad]


def entries(made, key):
    return [log for log in made.state.log_history if key in log]
