"""Predictions inside the Trainer, accelerate and Optuna: what is set, what is logged, what is left alone."""

from __future__ import annotations

import json
import logging
import math

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from tiny_models import VOCABULARY, adapted, counting_batch, dense_hessian, learned
from tiny_trainer import STEPS, collate, counted, entries, trainer, weights, with_callback

from hessian_lr.batches import count_labels
from hessian_lr.errors import HessianLRError, RequestError
from hessian_lr.integrations import (
    PredictedLearningRate,
    enqueue_prediction,
    suggest_learning_rate,
    unwrapped,
)
from hessian_lr.integrations import (
    trainer as module,
)
from hessian_lr.integrations.rows import sample
from hessian_lr.predict import Prediction, predict_learning_rate

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def rows():
    return counted()


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
    made = with_callback(rows, tmp_path, {"max_steps": 2, "warmup_steps": 0})
    (told,) = entries(made, "predicted_learning_rate")
    line = [  # after the notes
        r.getMessage() for r in caplog.records if r.name == module.__name__ and r.levelno > logging.INFO
    ][-1]
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
        values = torch.linalg.eigvalsh(matrix)
        truth = float(values[-1])
        assert 0.9 * truth < logs[-1][key] <= truth * (1 + 1e-3)
        # What the residual promises: an eigenvalue that near.
        assert float((values - logs[-1][key]).abs().min()) <= logs[-1][f"{key}_residual"] + 1e-3 * truth
        assert all(0 < log[f"{key}_residual"] < 0.5 * log[key] for log in logs)
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
    made = trainer(rows, tmp_path, model=adapted("llama", torch.float32, moved=False), max_steps=2)
    made.add_callback(PredictedLearningRate(made))
    made.train()
    (told,) = entries(made, "predicted_learning_rate")
    assert told["predicted_learning_rate"] == made.args.learning_rate
    assert "prediction_sharpness_preconditioned" not in told


def test_a_second_training_goes_on_at_the_first_ones_learning_rate(rows, tmp_path, monkeypatch, caplog):
    made = with_callback(rows, tmp_path, {"max_steps": 2})
    (first,) = entries(made, "predicted_learning_rate")
    with monkeypatch.context() as patched:
        patched.setattr(module, "predict_learning_rate", lambda *_, **__: pytest.fail("predicted again"))
        made.train()
    (second,) = entries(made, "predicted_learning_rate")
    told = {name: value for name, value in second.items() if name.startswith("predicted")}
    assert told == {name: first[name] for name in told} and second["prediction_gradient_equivalents"] == 0
    assert made.args.learning_rate == first["predicted_learning_rate"]
    assert "as for the run before: the adapter has left its start" in caplog.text


def test_a_second_training_of_a_model_made_anew_is_predicted_anew(rows, tmp_path):
    made = trainer(rows, tmp_path, max_steps=2)
    made.model_init = lambda: learned()
    made.add_callback(PredictedLearningRate(made))
    made.train()
    (first,) = entries(made, "predicted_learning_rate")
    made.args.gradient_accumulation_steps = 2
    made.train()
    (second,) = entries(made, "predicted_learning_rate")
    assert second["prediction_gradient_equivalents"] > 0
    assert second["predicted_learning_rate"] != first["predicted_learning_rate"]


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
    compiled = [torch.compile(one, backend="eager") for one in (parallel, prepared)]
    for wrapped in (parallel, prepared, *compiled):
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
