"""What the Trainer's callback warns of and what it refuses, by name and before the first step."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch
from peft import AdaLoraConfig, LoraConfig, PeftModel, get_peft_model
from tiny_models import base_model, learned
from tiny_trainer import STEPS, Watched, collate, counted, entries, trainer, with_callback
from torch.optim import lr_scheduler

from hessian_lr.errors import HessianLRError, NonFiniteError, RequestError
from hessian_lr.integrations import PredictedLearningRate
from hessian_lr.integrations import trainer as module
from hessian_lr.integrations.differences import differences, left_start
from hessian_lr.integrations.rows import sample
from hessian_lr.integrations.schedule import adamw
from hessian_lr.predict import predict_learning_rate

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def rows():
    return counted()


def test_what_a_prediction_knows_nothing_of_is_said(rows, tmp_path, caplog):
    with_callback(rows, tmp_path, {"max_steps": 2, "label_smoothing_factor": 0.4, "adam_beta1": 0.8})
    said = [r.getMessage() for r in caplog.records if "knows nothing of" in r.getMessage()]
    assert len(said) == 2 and "label_smoothing_factor=0.4" in said[0] and "betas 0.8, 0.999" in said[1]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"adam_epsilon": 1e-3}, ["adam_epsilon=0.001: it is for 1e-08"]),
        ({"adam_epsilon": 1e-6, "neftune_noise_alpha": 5, "max_grad_norm": 0.1, "weight_decay": 0.1}, []),
        (
            {"lr_scheduler_type": "constant_with_warmup"},
            ["a constant schedule: it is for one that falls to 0"],
        ),
        ({"lr_scheduler_type": "linear"}, []),
    ],
)
def test_what_moves_the_best_learning_rate_is_said_and_what_does_not_is_not(rows, tmp_path, options, said):
    made = trainer(rows, tmp_path, **options)
    made.create_optimizer_and_scheduler(STEPS)
    made.state.max_steps = STEPS
    assert [one.partition(";")[0] for one in differences(made.args, made)] == said


@pytest.mark.parametrize(
    ("make", "constant"),
    [
        (lambda o: lr_scheduler.LambdaLR(o, lambda _: 1.0), True),
        (lambda o: lr_scheduler.ConstantLR(o, 1.0, 1), True),
        (lambda o: lr_scheduler.ReduceLROnPlateau(o), True),
        (lambda o: lr_scheduler.LambdaLR(o, lambda step: 1 - step / STEPS), False),
        (lambda o: lr_scheduler.LinearLR(o, 1.0, 1.0, STEPS), True),
        (lambda o: lr_scheduler.LinearLR(o, 0.1, 1.0, 2), True),
        (lambda o: lr_scheduler.LinearLR(o, 1.0, 0.0, 2), False),
        (lambda o: lr_scheduler.StepLR(o, 2, gamma=1.0), True),
        (lambda o: lr_scheduler.StepLR(o, 2, gamma=0.5), False),
        (lambda o: lr_scheduler.StepLR(o, 2 * STEPS), True),
        (lambda o: lr_scheduler.CosineAnnealingLR(o, STEPS), False),
        (lambda o: lr_scheduler.CosineAnnealingLR(o, STEPS // 2), False),
        (lambda o: lr_scheduler.CosineAnnealingWarmRestarts(o, STEPS), False),
        (
            lambda o: lr_scheduler.SequentialLR(
                o, [lr_scheduler.ConstantLR(o, 0.1, 2), lr_scheduler.LinearLR(o, 1.0, 0.0, 4)], [2]
            ),
            False,
        ),
    ],
)
def test_a_schedule_of_ones_own_is_asked_what_it_does(rows, tmp_path, make, constant):
    made = trainer(rows, tmp_path)
    made.create_optimizer()
    made.lr_scheduler = make(made.optimizer)
    made.state.max_steps = STEPS
    assert any("a constant schedule" in one for one in differences(made.args, made)) is constant


def test_what_a_prediction_notes_is_said_beside_it(rows, tmp_path, caplog):
    with_callback(rows, tmp_path, {"max_steps": 2})
    said = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert any("steps 2 (tried on 15" in line for line in said)


def test_a_search_that_draws_the_learning_rate_itself_is_refused(rows, tmp_path, monkeypatch):
    made = trainer(rows, tmp_path)
    callback = PredictedLearningRate(made)
    monkeypatch.setattr(callback, "_drawn", lambda *_: pytest.fail("rows were drawn"))
    made.state.is_hyper_param_search, made.state.trial_params = True, {"learning_rate": 1e-4}
    optimizer = torch.optim.AdamW(made.model.parameters())
    with pytest.raises(RequestError, match=r"in the range that .*suggest_learning_rate gives"):
        callback.on_train_begin(made.args, made.state, made.control, optimizer=optimizer)


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


def test_a_loss_that_the_model_adds_to_is_said(rows, tmp_path):
    ranks = {"init_r": 2, "target_r": 1, "total_step": STEPS}
    config = AdaLoraConfig(target_modules=["q_proj"], task_type="CAUSAL_LM", **ranks)
    made = trainer(rows, tmp_path, model=get_peft_model(base_model("llama"), config))
    (said,) = differences(made.args, made)
    assert "orth_reg_weight" in said and said.endswith("it is for plain cross-entropy")
    assert not left_start(made.model, torch.optim.AdamW(made.model.parameters()))


def test_an_adapter_that_the_trainer_trained_before_is_said(rows, tmp_path, caplog):
    made = trainer(rows, tmp_path, max_steps=2)
    made.train()
    made.add_callback(PredictedLearningRate(made))
    made.train()
    assert entries(made, "predicted_learning_rate")
    assert "knows nothing of an adapter that this Trainer has trained before: it is for one" in caplog.text


@pytest.mark.parametrize(
    ("start", "known"),
    [(True, True), ("gaussian", True), ("pissa", False), ("orthogonal", False), (False, False)],
)
def test_a_b_that_is_not_zero_is_said_where_its_start_is(start, known):
    config = LoraConfig(r=4, target_modules=["q_proj"], init_lora_weights=start, task_type="CAUSAL_LM")
    model = get_peft_model(base_model("llama"), config)
    optimizer = torch.optim.AdamW(model.parameters())
    assert left_start(model, optimizer) == []
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data += 0.1
    said = left_start(model, optimizer)
    assert len(said) == known and all("B is not 0" in one for one in said)


def test_an_adapter_loaded_after_training_is_said_beside_its_prediction(rows, tmp_path, caplog):
    first = with_callback(rows, tmp_path, {"max_steps": 2})
    assert "B is not 0" not in caplog.text
    first.model.save_pretrained(tmp_path / "adapter")
    plain = first.model.unload()
    model = PeftModel.from_pretrained(plain, tmp_path / "adapter", is_trainable=True)
    with_callback(rows, tmp_path, {"max_steps": 2, "model": model})
    assert caplog.text.count("knows nothing of an adapter whose B is not 0") == 1


def test_the_batch_size_is_the_one_that_is_trained_with(rows, tmp_path, monkeypatch, caplog):
    """auto_find_batch_size makes the Trainer's smaller than its arguments'."""
    asked = []

    def predict(*arguments, **options):
        asked.append(options["batch_size"])
        return predict_learning_rate(*arguments, **options)

    monkeypatch.setattr(module, "predict_learning_rate", predict)
    made = trainer(rows, tmp_path, max_steps=2, gradient_accumulation_steps=2)
    callback = PredictedLearningRate(made)
    made.add_callback(callback)
    made._train_batch_size = 2
    found = callback._drawn(made.args, made.get_train_dataloader())
    assert [len(one["input_ids"]) for one in found.warmup][:-1] == [4] * (len(found.warmup) - 1)
    micro = [collate([rows[i], rows[i + 1]]) for i in range(0, 12, 2)]
    with_callback(rows, tmp_path, {"max_steps": 2, "gradient_accumulation_steps": 2}, batches=micro)
    assert asked == [8] and "batches have 2 rows, a step of training 8" in caplog.text


def test_other_optimizers_are_refused_by_name(rows, tmp_path):
    for name, told in (("sgd", "torch.optim.sgd.SGD"), ("adafactor", "Adafactor")):
        with pytest.raises(RequestError, match=f"predicted for AdamW, but this run has .*{told}: use optim"):
            with_callback(rows, tmp_path, {"optim": name})
    two = [{"params": [torch.nn.Parameter(torch.zeros(1))], "lr": lr} for lr in (1e-3, 1e-2)]
    with pytest.raises(RequestError, match=r"groups of different learning rates \(0.001, 0.01\), as LoRA\+"):
        adamw(torch.optim.AdamW(two))


class Stream(torch.utils.data.IterableDataset):
    """One of torch's that knows its length, and still gives no row by number."""

    def __iter__(self):
        return iter(counted())

    def __len__(self):
        return 64


def test_batches_of_a_loader_are_refused_in_words(rows, tmp_path):
    loader = torch.utils.data.DataLoader(rows, batch_size=4, collate_fn=collate)
    with pytest.raises(RequestError, match=r"write list\(loader\)"):
        with_callback(rows, tmp_path, {"max_steps": 1}, batches=loader)


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
    with pytest.raises(RequestError, match=r"batches=\[...\]"):
        sample(Stream(), collate, **options)
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

    monkeypatch.setattr("hessian_lr.measure.SharpnessTracker.update", fail)
    made = with_callback(rows, tmp_path, track_every=2)
    assert made.state.global_step == STEPS and not entries(made, "sharpness")
    assert caplog.text.count("no longer followed, from step 2 on: the loss is not finite") == 1


def test_wrong_arguments_and_sharded_models_are_refused():
    with pytest.raises(RequestError, match="track_every must be at least 1 step, or None, not 0"):
        PredictedLearningRate(SimpleNamespace(), track_every=0)
    for samples in (0, "auto"):
        with pytest.raises(RequestError, match=f"samples must be a whole .* at least 1, not {samples!r}"):
            PredictedLearningRate(SimpleNamespace(), samples=samples)
    sharded = SimpleNamespace(is_fsdp_enabled=True, is_deepspeed_enabled=False)
    with pytest.raises(RequestError, match=r"sharded \(FSDP or DeepSpeed\).*predict first, whole"):
        PredictedLearningRate(sharded).on_train_begin(None, None, None)
