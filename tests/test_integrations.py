"""Predictions inside the Trainer, accelerate and Optuna: what is set, what is logged, what is left alone."""

from __future__ import annotations

import json
import logging
import math
from types import SimpleNamespace

import datasets
import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from tiny_models import VOCABULARY, adapted, counting_batch, dense_hessian, learned
from transformers import Trainer, TrainerCallback, TrainingArguments

from hessian_lr.curvature.loss import count_labels
from hessian_lr.errors import HessianLRError, NonFiniteError, RequestError
from hessian_lr.integrations import (
    PredictedLearningRate,
    enqueue_prediction,
    suggest_learning_rate,
    unwrapped,
)
from hessian_lr.integrations import (
    trainer as module,
)
from hessian_lr.integrations.differences import differences
from hessian_lr.integrations.rows import sample
from hessian_lr.integrations.schedule import adamw
from hessian_lr.predict import Prediction, predict_learning_rate

STEPS = 6


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def rows():
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


@pytest.mark.parametrize("options", [{"gradient_accumulation_steps": 2}, {"bf16": True, "logging_steps": 1}])
def test_the_run_is_the_one_its_learning_rate_would_have_had_anyway(rows, tmp_path, options):
    ours = with_callback(rows, tmp_path, options | {"dropout": 0.1}, track_every=2)
    (told,) = entries(ours, "predicted_learning_rate")
    lr = told["predicted_learning_rate"]
    plain = trainer(rows, tmp_path, **options | {"dropout": 0.1, "learning_rate": lr})
    plain.train()
    assert lr != 5e-5 and ours.args.learning_rate == lr
    assert ours.seen == plain.seen
    assert all(map(torch.equal, weights(ours), weights(plain)))
    own = [(log["step"], log["loss"], log["learning_rate"]) for log in entries(plain, "loss")]
    assert [(log["step"], log["loss"], log["learning_rate"]) for log in entries(ours, "loss")] == own
    # Warm-up over two steps, then a cosine that has come down to nothing at the end.
    assert max(log["learning_rate"] for log in entries(ours, "loss")) <= lr
    assert ours.lr_scheduler.get_last_lr()[0] == pytest.approx(0, abs=1e-12 * lr)


def test_the_prediction_is_that_of_the_library_on_the_trainers_rows(rows, tmp_path):
    made = trainer(rows, tmp_path, gradient_accumulation_steps=2)
    made.add_callback(PredictedLearningRate(made, samples=5))
    fresh = sample(rows, collate, batch_size=8, samples=5, seed=3)
    expected = predict_learning_rate(
        learned(), fresh.measure, warmup_batches=fresh.warmup, steps=STEPS, seed=3
    )
    made.train()
    (told,) = entries(made, "predicted_learning_rate")
    assert told["step"] == 0 and told["predicted_learning_rate"] == expected.lr
    ends = (told["predicted_learning_rate_low"], told["predicted_learning_rate_high"])
    assert ends == (expected.lr_low, expected.lr_high)
    assert told["prediction_gradient_equivalents"] == expected.gradient_equivalents
    assert told["prediction_seconds"] > 0


def test_rows_are_drawn_once_each_and_with_the_steps_own_size(rows):
    found = sample(rows, collate, batch_size=5, samples=7, seed=0)
    assert [len(batch["input_ids"]) for batch in found.warmup] == [5] * 10
    assert [len(batch["input_ids"]) for batch in found.measure] == [1] * 7
    drawn = [tuple(row) for batch in (*found.warmup, *found.measure) for row in batch["input_ids"].tolist()]
    assert len(drawn) == 57 and sorted(drawn) != drawn and found.notes == ()
    assert set(drawn) <= {tuple(row) for row in rows["input_ids"]}
    assert any(
        "warmed up on" in note for note in sample(rows, collate, batch_size=8, samples=9, seed=0).notes
    )


def test_the_log_says_what_was_set(rows, tmp_path, caplog):
    made = with_callback(rows, tmp_path, {"max_steps": 1, "warmup_steps": 0})
    (told,) = entries(made, "predicted_learning_rate")
    (line,) = [
        r.getMessage() for r in caplog.records if r.name == module.__name__ and r.levelno > logging.INFO
    ]
    assert f"learning rate {told['predicted_learning_rate']:.2e} (range " in line
    assert "it replaces 5.00e-05" in line and "gradients" in line
    assert [log for log in made.reporter.logs if "predicted_learning_rate" in log]
    assert json.loads(json.dumps(made.state.log_history)) == made.state.log_history


def test_sharpness_is_followed_through_the_reporters(rows, tmp_path):
    batches = [counting_batch(4, 3, seed=seed) for seed in (5, 6, 7)]
    made = with_callback(rows, tmp_path, {"max_steps": 8, "logging_steps": 1}, batches=batches, track_every=2)
    logs = entries(made, "sharpness")
    assert [log["step"] for log in logs] == [2, 4, 6, 8]
    assert logs == [
        log | {"step": at["step"]}
        for log, at in zip([log for log in made.reporter.logs if "sharpness" in log], logs, strict=True)
    ]
    # At the end of the run, against the dense matrices.
    hessian = dense_hessian(made.model.double(), batches[1:])
    adam = made.optimizer.optimizer
    parameters = [p for p in made.model.parameters() if p.requires_grad]
    second = torch.cat([adam.state[p]["exp_avg_sq"].reshape(-1).double() for p in parameters])
    diagonal = (1 - 0.9**8) * ((second / (1 - 0.999**8)).sqrt() + 1e-8)
    scaled = hessian / (diagonal.sqrt()[:, None] * diagonal.sqrt())
    # Followed values come from below; the vector turns between updates.
    for key, matrix in (("sharpness", hessian), ("sharpness_preconditioned", scaled)):
        truth = float(torch.linalg.eigvalsh(matrix)[-1])
        assert 0.5 * truth < logs[-1][key] <= truth * (1 + 1e-3)
    assert logs[-1]["sharpness_times_lr"] == 0  # the cosine has ended
    lr = entries(made, "learning_rate")[4]["learning_rate"]  # of the step after the fourth
    assert logs[1]["sharpness_times_lr"] == pytest.approx(logs[1]["sharpness_preconditioned"] * lr)


def test_a_resumed_run_reads_its_prediction_and_ends_where_the_whole_one_does(
    rows, tmp_path, monkeypatch, caplog
):
    saving = {"save_strategy": "steps", "save_steps": 3, "dropout": 0.1}
    whole = with_callback(rows, tmp_path, saving)

    def refuse(*_arguments, **_options):
        raise AssertionError("this was predicted already")

    monkeypatch.setattr(module, "predict_learning_rate", refuse)
    caplog.clear()
    again = trainer(rows, tmp_path, **saving)
    again.add_callback(PredictedLearningRate(again, track_every=2))
    again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    assert all(map(torch.equal, weights(again), weights(whole)))
    assert len(entries(again, "predicted_learning_rate")) == 1
    assert [log["step"] for log in entries(again, "sharpness")] == [4, 6]
    assert "read from the checkpoint's log" in caplog.text
    lrs = [log["learning_rate"] for log in entries(whole, "loss")]
    assert [log["learning_rate"] for log in entries(again, "loss")] == lrs


def test_without_the_schedules_state_the_prediction_still_holds(rows, tmp_path):
    options = {
        "save_strategy": "steps",
        "save_steps": 3,
        "save_only_model": True,
        "lr_scheduler_type": "constant",
    }
    whole = with_callback(rows, tmp_path, options | {"warmup_steps": 0})
    lr = entries(whole, "predicted_learning_rate")[0]["predicted_learning_rate"]
    again = trainer(rows, tmp_path, **options | {"warmup_steps": 0})
    again.add_callback(PredictedLearningRate(again))
    again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    assert entries(again, "loss")[-1]["learning_rate"] == lr


def test_without_lambda_p_another_law_sets_the_rate_and_the_log_lacks_it(rows, tmp_path):
    """A model that was never trained: no step along the gradient's sign is too long."""
    made = trainer(rows, tmp_path, model=adapted("llama", torch.float32, moved=False), max_steps=1)
    made.add_callback(PredictedLearningRate(made))
    made.train()
    (told,) = entries(made, "predicted_learning_rate")
    assert told["predicted_learning_rate"] == made.args.learning_rate
    assert "prediction_sharpness_preconditioned" not in told


def test_a_run_that_began_without_a_prediction_keeps_its_learning_rate(rows, tmp_path, caplog):
    saving = {"save_strategy": "steps", "save_steps": 3}
    whole = trainer(rows, tmp_path, **saving)
    whole.train()
    again = trainer(rows, tmp_path, **saving)
    again.add_callback(PredictedLearningRate(again, track_every=3))
    again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    assert all(map(torch.equal, weights(again), weights(whole)))
    assert not entries(again, "predicted_learning_rate") and entries(again, "sharpness")
    assert "began without a predicted learning rate, at step 3 it keeps the one it has" in caplog.text


def test_what_a_prediction_knows_nothing_of_is_said(rows, tmp_path, caplog):
    with_callback(rows, tmp_path, {"max_steps": 1, "label_smoothing_factor": 0.4, "adam_beta1": 0.8})
    said = [r.getMessage() for r in caplog.records if "knows nothing of" in r.getMessage()]
    assert len(said) == 2 and "label_smoothing_factor=0.4" in said[0] and "betas 0.8, 0.999" in said[1]


def test_a_loss_of_a_subclass_is_said_unless_it_is_trls(rows, tmp_path):
    class Weighted(Watched):
        def compute_loss(self, *arguments, **options):
            return super().compute_loss(*arguments, **options)

    plain = trainer(rows, tmp_path)
    assert differences(plain.args, plain) == []
    plain.__class__ = Weighted
    (said,) = differences(plain.args, plain)
    assert said.startswith("Weighted.compute_loss")
    Weighted.__module__ = "trl.trainer.sft_trainer"
    assert differences(plain.args, plain) == []
    plain.args.loss_type = "dft"
    assert "loss_type='dft'" in differences(plain.args, plain)[0]


def test_the_batch_size_is_the_one_that_is_trained_with(rows, tmp_path, monkeypatch, caplog):
    """auto_find_batch_size makes the Trainer's smaller than its arguments'."""
    asked = []

    def predict(*arguments, **options):
        asked.append(options["batch_size"])
        return predict_learning_rate(*arguments, **options)

    monkeypatch.setattr(module, "predict_learning_rate", predict)
    made = trainer(rows, tmp_path, max_steps=1, gradient_accumulation_steps=2)
    callback = PredictedLearningRate(made)
    made.add_callback(callback)
    made._train_batch_size = 2
    found = callback._drawn(made.args, made.get_train_dataloader())
    assert [len(one["input_ids"]) for one in found.warmup][:-1] == [4] * (len(found.warmup) - 1)
    micro = [collate([rows[i], rows[i + 1]]) for i in range(0, 12, 2)]
    with_callback(rows, tmp_path, {"max_steps": 1, "gradient_accumulation_steps": 2}, batches=micro)
    assert asked == [8] and "batches have 2 rows, a step of training 8" in caplog.text


def test_other_optimizers_are_refused_by_name(rows, tmp_path):
    for name, told in (("sgd", "torch.optim.sgd.SGD"), ("adafactor", "Adafactor")):
        with pytest.raises(RequestError, match=f"predicted for AdamW, but this run has .*{told}: use optim"):
            with_callback(rows, tmp_path, {"optim": name})
    two = [{"params": [torch.nn.Parameter(torch.zeros(1))], "lr": lr} for lr in (1e-3, 1e-2)]
    with pytest.raises(RequestError, match=r"groups of different learning rates \(0.001, 0.01\), as LoRA\+"):
        adamw(torch.optim.AdamW(two))


def test_rows_that_cannot_be_measured_are_named(rows):
    def without(rows):
        return collate(rows) | {"labels": torch.full((len(rows), 10), -100)}

    def packed(rows):
        return {name: value.reshape(1, -1) for name, value in collate(rows).items()}

    options = {"batch_size": 4, "samples": 2, "seed": 0}
    order = torch.randperm(64, generator=torch.Generator().manual_seed(0)).tolist()
    with pytest.raises(RequestError, match=f"rows {order[-2]}, {order[-1]} is labelled: the field 'labels'"):
        sample(rows, without, **options)
    with pytest.raises(RequestError, match=r"has no field 'labels' \(it has input_ids, attention_mask\)"):
        sample(rows.remove_columns("labels"), collate, **options)
    with pytest.raises(RequestError, match="packing=False and padding_free=False"):
        sample(rows, packed, **options)
    with pytest.raises(RequestError, match=r"batches=\[...\]"):
        sample(rows.to_iterable_dataset(), collate, **options)
    with pytest.raises(RequestError, match="the training set has 1 training rows, but at least 2 are needed"):
        sample(rows.select([0]), collate, **options)


def test_a_prediction_that_fails_ends_the_run_before_its_first_step(rows, tmp_path):
    model = learned()
    next(p for p in model.parameters() if p.requires_grad).data[0, 0] = math.nan
    made = trainer(rows, tmp_path, model=model)
    made.add_callback(PredictedLearningRate(made))
    with pytest.raises(
        HessianLRError, match=r"no learning rate could be predicted: .*not finite.*Remove the call"
    ):
        made.train()
    assert made.state.global_step == 0


def test_a_measurement_that_fails_does_not_end_the_run(rows, tmp_path, monkeypatch, caplog):
    def fail(*_arguments):
        raise NonFiniteError("the loss is not finite")

    monkeypatch.setattr("hessian_lr.track.SharpnessTracker.update", fail)
    made = with_callback(rows, tmp_path, track_every=2)
    assert made.state.global_step == STEPS and not entries(made, "sharpness")
    assert caplog.text.count("no longer followed, from step 2 on: the loss is not finite") == 1


def test_wrong_arguments_and_sharded_models_are_refused():
    with pytest.raises(RequestError, match="track_every must be at least 1 step, or None, not 0"):
        PredictedLearningRate(SimpleNamespace(), track_every=0)
    sharded = SimpleNamespace(is_fsdp_enabled=True, is_deepspeed_enabled=False)
    with pytest.raises(RequestError, match=r"sharded \(FSDP or DeepSpeed\).*predict first, whole"):
        PredictedLearningRate(sharded).on_train_begin(None, None, None)


def test_a_model_that_accelerate_prepared_is_measured_as_it_is():
    AcceleratorState._reset_state(reset_partial_state=True)  # it allows one precision a process
    batches = [counting_batch(4, 3, seed=seed) for seed in range(4)]
    model = learned()
    expected = predict_learning_rate(model, batches)
    prepared = Accelerator(cpu=True, mixed_precision="bf16").prepare(model)
    before = prepared.forward
    assert prepared(**batches[0]).logits.dtype is torch.float32 and "_original_forward" in vars(prepared)
    with unwrapped(prepared) as inner:
        again = predict_learning_rate(inner, batches)
        parallel = torch.nn.DataParallel(inner)
        with unwrapped(parallel) as same:
            assert same is inner
    assert (again.lr, again.adam.residual) == (expected.lr, expected.adam.residual)
    assert prepared.forward == before
    for wrapped in (parallel, prepared):
        with pytest.raises(RequestError, match=r"inside `with hessian_lr.integrations.unwrapped\(model\)"):
            predict_learning_rate(wrapped, batches)
    AcceleratorState._reset_state(reset_partial_state=True)


def test_predictions_leave_gradients_of_an_accumulation_alone():
    model = adapted(dtype=torch.float32)
    model(**counting_batch(2, 1, seed=1)).loss.backward()
    before = [p.grad.clone() for p in model.parameters() if p.requires_grad]
    predict_learning_rate(model, [counting_batch(2, 1, seed=seed) for seed in range(4)])
    assert all(map(torch.equal, before, [p.grad for p in model.parameters() if p.requires_grad]))


PREDICTION = Prediction(
    **dict.fromkeys(("curvature", "adam")),
    **dict.fromkeys(("matvecs", "gradient_equivalents", "seconds", "peak_rss_bytes"), 1),
    **{"predictor": "adam", "status": "converged", "calibration": "x", "notes": ("too flat",)},
    **{"lr": 2e-3, "lr_low": 1e-3, "lr_high": 8e-3},
)


def test_optuna_searches_the_range_and_tries_the_prediction_first():
    optuna = pytest.importorskip("optuna")
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    for _ in range(2):  # a script that is started again
        enqueue_prediction(study, PREDICTION)
    study.optimize(lambda trial: math.log(suggest_learning_rate(trial, PREDICTION)) ** 2, n_trials=200)
    rates = [trial.params["learning_rate"] for trial in study.trials]
    assert rates[0] == 2e-3 and rates.count(2e-3) == 1
    assert min(rates) >= 1e-3 and max(rates) <= 8e-3
    # Uniform in the logarithm: half lie below the ends' geometric mean, 2.8e-3.
    assert 0.4 < sum(rate < (1e-3 * 8e-3) ** 0.5 for rate in rates) / 200 < 0.6


def test_a_failed_prediction_gives_optuna_no_range():
    failed = Prediction.failed("adam", "x", "too flat")
    with pytest.raises(HessianLRError, match=r"the prediction failed \(too flat\): there is no range"):
        suggest_learning_rate(None, failed)
    with pytest.raises(HessianLRError, match="the prediction failed"):
        enqueue_prediction(None, failed)


def test_the_tiny_rows_are_what_the_tests_take_them_for(rows):
    assert len(rows) == 64 and max(map(max, rows["input_ids"])) < VOCABULARY
    assert count_labels(collate([rows[0]])) == 9
