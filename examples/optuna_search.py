"""Optuna searching near the prediction, its first trial: python examples/optuna_search.py [MODEL]."""

import dataclasses
import sys

import optuna

import hessian_lr as hlr
from hessian_lr import data, models
from hessian_lr.prepare import prepare
from hessian_lr.sweep import train_once

setting = hlr.Setting(model=sys.argv[1] if len(sys.argv) > 1 else "smollm2-135m", rank=8, steps=20)
loaded = models.load(setting.model)
task = data.load(setting.data, loaded.tokenizer, max_length=256)
task = dataclasses.replace(task, heldout=task.heldout[:16])
ready = prepare(setting, loaded, task)
prediction = hlr.predict_learning_rate(
    ready.model,
    ready.batches,
    warmup_batches=ready.warmup_batches,
    steps=setting.steps,
    batch_size=setting.batch_size,
)


def held_out_loss(trial: optuna.Trial) -> float:
    """Of a short run; a diverged one has none."""
    lr = hlr.integrations.suggest_learning_rate(trial, prediction)
    found = train_once(setting, lr, loaded, task).final_loss
    return float("nan") if found is None else found


study = optuna.create_study(study_name="learning rate")
hlr.integrations.enqueue_prediction(study, prediction)
study.optimize(held_out_loss, n_trials=3)
for trial in study.trials:
    loss = "diverged" if trial.value is None else f"held-out loss {trial.value:.3f}"
    print(f"learning rate {trial.params['learning_rate']:.1e}: {loss}")
