"""One training run: what it learns, what it reports, and that it leaves nothing behind."""

import copy
import dataclasses
import gc
import math
import os
import random
import tempfile
import weakref

import numpy as np
import pytest
import tiny_sweep as tiny
import torch
import transformers
from accelerate.state import AcceleratorState, PartialState

from hessian_lr import methods
from hessian_lr.curvature.loss import mean_loss
from hessian_lr.data import make_batches
from hessian_lr.errors import HessianLRError, RequestError
from hessian_lr.sweep import RunResult, run_key, train_once, trainer

SETTING = tiny.SETTING


pytestmark = pytest.mark.usefixtures("one_thread")


def settings(**changes):
    return dataclasses.replace(SETTING, **changes)


def without_seconds(result):
    return {name: value for name, value in result.to_dict().items() if name != "seconds"}


@pytest.fixture(scope="module")
def plain(one_thread):
    """The run that others are held against."""
    return train_once(SETTING, 0.1, tiny.tiny_model(), tiny.tiny_data())


def test_a_run_learns_and_says_what_it_did(plain):
    loaded, data, result = tiny.tiny_model(), tiny.tiny_data(), plain
    assert result.final_loss < result.initial_loss - 1
    assert (result.steps, result.diverged, result.lr) == (SETTING.steps, False, 0.1)
    assert result.setting == SETTING
    assert result.key == run_key(SETTING, 0.1, data.digest, loaded.fingerprint)
    assert result.seconds > 0
    # One pass and a bit over 40 samples of 5 to 13 tokens each, in batches of 4, for 12 steps.
    lengths = [len(example.input_ids) for example in data.train]
    assert sum(lengths) < result.train_tokens < sum(lengths) + 8 * max(lengths)


def test_its_initial_loss_is_the_base_models_when_the_adapter_starts_at_zero():
    loaded, data = tiny.tiny_model(), tiny.tiny_data()
    heldout = make_batches(data.heldout, 3, 0)
    assert train_once(settings(steps=2), 1e-9, loaded, data).initial_loss == pytest.approx(
        mean_loss(loaded.model, heldout), rel=1e-5
    )


def test_the_recipe_is_adamw_by_hand():
    """The same training, written out with torch alone."""
    loaded, data = tiny.tiny_model(), tiny.tiny_data()
    setting, lr = (
        settings(steps=40, batch_size=40, alpha=64.0),
        0.003,
    )  # the whole data at each step: order plays no part
    result = train_once(setting, lr, loaded, data)

    model = methods.build(copy.deepcopy(loaded.model), setting)
    batch = make_batches(data.train, len(data.train), 0)[0]
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=lr, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0)
    warmup = math.ceil(0.03 * setting.steps)
    for step in range(setting.steps):
        share = (step - warmup) / (setting.steps - warmup)
        factor = step / warmup if step < warmup else 0.5 * (1 + math.cos(math.pi * share))
        optimizer.param_groups[0]["lr"] = lr * factor
        optimizer.zero_grad()
        model(**batch).loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
    expected = mean_loss(model, make_batches(data.heldout, 4, 0))
    assert result.final_loss == pytest.approx(expected, rel=1e-3)
    assert abs(result.final_loss - result.initial_loss) > 0.5


def test_the_same_seed_gives_the_same_run_and_another_seed_another(plain):
    loaded, data = tiny.tiny_model(), tiny.tiny_data()
    torch.randn(7)  # the caller's own use of random numbers does not matter
    assert without_seconds(train_once(SETTING, 0.1, loaded, data)) == without_seconds(plain)
    assert train_once(settings(seed=1), 0.1, loaded, data).final_loss != plain.final_loss


def test_it_leaves_no_trace(capfd, monkeypatch, tmp_path):
    # A place for temporary files of its own: other processes have theirs in the common one.
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    loaded, data = tiny.tiny_model(), tiny.tiny_data()
    weights = {name: p.clone() for name, p in loaded.model.named_parameters()}
    modules = {name for name, _ in loaded.model.named_modules()}
    torch.manual_seed(11)
    np.random.seed(12)
    random.seed(13)
    transformers.logging.set_verbosity(transformers.logging.CRITICAL)
    PartialState(cpu=True)  # a caller that uses accelerate itself

    def process():
        return {
            "torch": torch.get_rng_state().tolist(),
            "numpy": np.random.get_state()[1].tolist(),
            "random": random.getstate(),
            "verbosity": transformers.logging.get_verbosity(),
            "flags": (
                torch.are_deterministic_algorithms_enabled(),
                torch.backends.cudnn.deterministic,
                torch.backends.cudnn.benchmark,
                torch.get_float32_matmul_precision(),
                torch.is_grad_enabled(),
                torch.get_num_threads(),
            ),
            "environment": dict(os.environ),
            "accelerate": (dict(PartialState._shared_state), dict(AcceleratorState._shared_state)),
            "temporary": {
                name for name in os.listdir(tempfile.gettempdir()) if name.startswith("hessian-lr-")
            },
            "folder": set(os.listdir()),
        }

    before = process()
    try:
        train_once(SETTING, 0.1, loaded, data)
        assert process() == before
    finally:
        transformers.logging.set_verbosity_warning()
        PartialState._reset_state()
    assert all(torch.equal(weights[name], p) for name, p in loaded.model.named_parameters())
    assert {name for name, _ in loaded.model.named_modules()} == modules
    assert not any(p.requires_grad for p in loaded.model.parameters())
    assert not loaded.model.training
    assert capfd.readouterr().out == ""


def test_a_killed_run_leaves_no_folder_for_it_makes_none(monkeypatch):
    made, mkdir = [], os.mkdir
    monkeypatch.setattr(os, "mkdir", lambda path, *more, **options: (made.append(path), mkdir(path, *more)))
    train_once(SETTING, 0.1, tiny.tiny_model(), tiny.tiny_data())
    assert not made


ENVIRONMENTS = {
    "bfloat16": {"ACCELERATE_MIXED_PRECISION": "bf16"},
    "deepspeed": {"ACCELERATE_USE_DEEPSPEED": "true"},
    "rank": {"LOCAL_RANK": "0"},
    "torchrun": {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "localhost"},
    "mpi": {"PMI_SIZE": "3"},
}


@pytest.fixture(scope="module")
def short(one_thread):
    """A run of four steps in an environment that says nothing."""
    return train_once(settings(steps=4), 0.1, tiny.tiny_model(), tiny.tiny_data())


@pytest.mark.parametrize("name", ENVIRONMENTS)
def test_the_environment_changes_no_run(monkeypatch, name, short):
    setting, inputs = settings(steps=4), (tiny.tiny_model(), tiny.tiny_data())
    for variable, value in ENVIRONMENTS[name].items():
        monkeypatch.setenv(variable, value)
    before = dict(os.environ)
    assert without_seconds(train_once(setting, 0.1, *inputs)) == without_seconds(short)
    assert dict(os.environ) == before


def test_the_environment_is_as_it_was_after_a_run_that_failed(monkeypatch):
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    monkeypatch.setattr(trainer.Trainer, "train", lambda _: 1 / 0)
    before = dict(os.environ)
    with pytest.raises(ZeroDivisionError):
        train_once(settings(steps=2), 0.1, tiny.tiny_model(), tiny.tiny_data())
    assert dict(os.environ) == before


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_trained_copy_is_freed(monkeypatch, dtype):
    copies = []
    adapted = methods.adapted

    def remember(*arguments):
        built = adapted(*arguments)
        copies.append(weakref.ref(built))
        return built

    monkeypatch.setattr(methods, "adapted", remember)
    gc.disable()  # freed by the run itself, not by a collection that happens to come along
    try:
        train_once(settings(steps=2, dtype=dtype), 1e-3, tiny.tiny_model(), tiny.tiny_data())
        assert len(copies) == 1
        assert copies[0]() is None
    finally:
        gc.enable()


def test_a_run_that_blows_up_stops_there_and_is_marked():
    result = train_once(settings(steps=40), 1e30, tiny.tiny_model(), tiny.tiny_data())
    assert result.diverged
    assert result.final_loss is None
    # The first step of a warm-up has learning rate 0; the second ruins the weights, the third sees it.
    assert result.steps < 40


def test_a_run_that_ends_above_its_start_is_diverged():
    # From a start that no run this short comes near: where one at 100 ends is another on each processor.
    start = 0.1
    result = train_once(SETTING, 100.0, tiny.tiny_model(), tiny.tiny_data(), start)
    assert result.diverged and result.initial_loss == start
    assert result.final_loss is None or result.final_loss > start


def test_a_broken_model_is_an_error_not_a_result():
    loaded = tiny.tiny_model()
    with torch.no_grad():
        loaded.model.model.embed_tokens.weight.fill_(math.nan)
    with pytest.raises(HessianLRError, match="before training is nan"):
        train_once(SETTING, 1e-3, loaded, tiny.tiny_data())


def test_bfloat16_runs_close_to_float32(plain):
    rough = train_once(settings(dtype="bfloat16"), 0.1, tiny.tiny_model(), tiny.tiny_data())
    assert rough.final_loss != plain.final_loss
    assert rough.final_loss == pytest.approx(plain.final_loss, rel=0.05)


def test_the_model_is_unwrapped_after_mixed_precision():
    data = tiny.tiny_data()
    model = methods.build(tiny.tiny_model().model, SETTING)
    forward = model.forward
    trainer.fit(model, data.train, settings(steps=2), 1e-3, dtype=torch.bfloat16, pad_id=0)
    assert model.forward == forward


def test_the_key_names_what_decides_a_run_and_nothing_else():
    key = run_key(SETTING, 1e-3, "data", "model")
    assert run_key(settings(samples=99, model="elsewhere", data="moved.jsonl"), 1e-3, "data", "model") == key
    others = [
        run_key(SETTING, 1.1e-3, "data", "model"),
        run_key(SETTING, 1e-3, "other", "model"),
        run_key(SETTING, 1e-3, "data", "other"),
        *(
            run_key(settings(**change), 1e-3, "data", "model")
            for change in (
                {"seed": 1},
                {"method": "pissa"},
                {"rank": 5},
                {"alpha": 7.0},
                {"steps": 13},
                {"batch_size": 5},
                {"target_modules": ("q_proj",)},
                {"dtype": "bfloat16"},
            )
        ),
    ]
    assert len({key, *others}) == len(others) + 1


def test_a_result_survives_json(tmp_path):
    result = RunResult("k", SETTING, 1e-3, 2.0, None, 3, True, 1.5, 100)
    result.write(tmp_path / "run.json")
    assert RunResult.read(tmp_path / "run.json") == result


@pytest.mark.parametrize("changes", [{"final_loss": None}, {"lr": "0.001"}, {"initial_loss": None}])
def test_a_result_that_cannot_be_is_refused(changes):
    whole = RunResult("k", SETTING, 1e-3, 2.0, 1.0, 3, False, 1.5, 100).to_dict()
    assert RunResult.from_dict(whole).final_loss == 1.0
    with pytest.raises(RequestError):
        RunResult.from_dict(whole | changes)
