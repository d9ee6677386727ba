"""The methods that start from changed weights: formulas in float64, merging, saving, which rows they see."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import numpy as np
import pytest
import tiny_sweep as tiny
import torch
from numpy.typing import NDArray
from peft import PeftModel
from tiny_methods import FAMILIES, VOCAB, adapter, build, gpt2, llama, perturb, setting, tokens
from transformers import PreTrainedModel

from hessian_lr import methods
from hessian_lr.errors import NonFiniteError, RequestError
from hessian_lr.methods import METHODS, find_targets, initial_batches
from hessian_lr.prepare import prepare
from hessian_lr.sweep import train_once

STARTS = ["milora", "init-ab", "lora-ga", "lora-ga-peft"]
SCALING = 6.5 / 4
Matrices = dict[str, NDArray[np.float64]]


pytestmark = pytest.mark.usefixtures("one_thread")


def matrices(model: PreTrainedModel, *, gradient: bool = False) -> Matrices:
    """Every target's weight or its gradient as (d_out, d_in)."""
    found = {}
    for target in find_targets(model, "all-linear"):
        weight = model.get_parameter(f"{target.name}.weight")
        stored = (weight.grad if gradient else weight).detach().double().numpy().copy()
        found[target.name] = stored.T if target.transposed else stored
    return found


def factors(model: PeftModel, name: str) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    layer = model.base_model.model.get_submodule(name)
    a, b = (part["default"].weight.detach().double().numpy() for part in (layer.lora_A, layer.lora_B))
    return a, b


def logits(model: torch.nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=tokens()).logits


def distance(one: torch.Tensor, other: torch.Tensor) -> float:
    return float(torch.linalg.norm(one - other) / torch.linalg.norm(other))


def padded_batches() -> list[dict[str, torch.Tensor]]:
    """Two batches of unequal numbers of rows and labels, the first with padding."""
    draw = torch.Generator().manual_seed(3)
    made = []
    for rows, length, padding, unscored in ((2, 13, 4, 3), (3, 12, 0, 5)):
        ids = torch.randint(2, VOCAB, (rows, length), generator=draw)
        mask = torch.ones_like(ids)
        if padding:
            mask[0, -padding:] = 0
        labels = torch.where(mask.bool(), ids, -100)
        labels[:, :unscored] = -100
        made.append({"input_ids": ids, "attention_mask": mask, "labels": labels})
    return made


def their_gradients(family: str) -> Matrices:
    """G by transformers' own loss on all rows as one batch: one mean over all labelled tokens."""
    model = FAMILIES[family]()
    fill = {"input_ids": 0, "attention_mask": 0, "labels": -100}
    together = {
        name: torch.cat(
            [
                torch.nn.functional.pad(batch[name], (0, 13 - batch[name].shape[1]), value=value)
                for batch in padded_batches()
            ]
        )
        for name, value in fill.items()
    }
    model(**together).loss.backward()
    return matrices(model, gradient=True)


@pytest.mark.parametrize("family", FAMILIES)
def test_milora_starts_at_the_part_of_the_least_singular_values(family: str) -> None:
    model = FAMILIES[family]()
    weights = matrices(model)
    adapted = build(model, setting("milora"))
    for name, weight in weights.items():
        u, sigma, vt = np.linalg.svd(weight, full_matrices=False)
        a, b = factors(adapted, name)
        least = (u[:, -4:] * sigma[-4:]) @ vt[-4:]
        np.testing.assert_allclose(SCALING * b @ a, least, rtol=0, atol=1e-5)
        # Balanced: both factors carry the root of each singular value.
        np.testing.assert_allclose(SCALING * np.diag(a @ a.T), sigma[-4:], rtol=1e-3)
        np.testing.assert_allclose(SCALING * np.diag(b.T @ b), sigma[-4:], rtol=1e-3)


@pytest.mark.parametrize("family", FAMILIES)
def test_init_ab_draws_both_factors_uniformly_to_the_bound_of_the_inputs_width(family: str) -> None:
    model = FAMILIES[family]()
    names = matrices(model)
    adapted = build(model, setting("init-ab"))
    drawn = []
    for name in names:
        a, b = factors(adapted, name)
        drawn += [part.flatten() * math.sqrt(a.shape[1]) for part in (a, b)]
    every = np.concatenate(drawn)
    assert np.abs(every).max() <= 1 + 1e-6
    assert np.unique(every).size > 0.99 * every.size, "no module may repeat another's numbers"
    # Of n uniform numbers the share in each quarter of (−1, 1) is 1/4 ± √(3/16n).
    shares = np.histogram(every, bins=4, range=(-1, 1))[0] / every.size
    np.testing.assert_allclose(shares, 0.25, atol=5 * math.sqrt(3 / 16 / every.size))


@pytest.mark.parametrize("family", FAMILIES)
def test_lora_ga_starts_at_the_gradients_singular_vectors(family: str) -> None:
    # Rank 8, of which four times is the width: the randomized decomposition has nothing to leave out.
    rank, gradients = 8, their_gradients(family)
    adapted = methods.build(FAMILIES[family](), setting("lora-ga", rank=rank), padded_batches())
    for name, gradient in gradients.items():
        a, b = factors(adapted, name)
        length = gradient.shape[0] ** 0.25 / 4
        np.testing.assert_allclose(a @ a.T, length**2 * np.eye(rank), atol=1e-5)
        np.testing.assert_allclose(b.T @ b, length**2 * np.eye(rank), atol=1e-5)
        u, _, vt = np.linalg.svd(gradient, full_matrices=False)
        # A singular vector's sign is free.
        np.testing.assert_allclose(np.abs(np.sum(a * vt[:rank], axis=1)), length, rtol=1e-4)
        np.testing.assert_allclose(np.abs(np.sum(b * u[:, rank : 2 * rank], axis=0)), length, rtol=1e-3)


def test_lora_ga_holds_the_gradients_principal_directions_at_a_small_rank() -> None:
    adapted = methods.build(llama(), setting("lora-ga", rank=2), padded_batches())
    for name, gradient in their_gradients("llama").items():
        a, _ = factors(adapted, name)
        rows = a / np.linalg.norm(a, axis=1, keepdims=True)
        best = np.linalg.svd(gradient, compute_uv=False)[:2]
        assert np.linalg.norm(gradient @ rows.T) >= 0.999 * np.linalg.norm(best)


@pytest.mark.parametrize("family", FAMILIES)
def test_pefts_lora_ga_scales_b_by_the_singular_values_and_a_not_at_all(family: str) -> None:
    rank, gradients = 8, their_gradients(family)
    adapted = methods.build(FAMILIES[family](), setting("lora-ga-peft", rank=rank), padded_batches())
    for name, gradient in gradients.items():
        a, b = factors(adapted, name)
        u, sigma, vt = np.linalg.svd(gradient, full_matrices=False)
        # PEFT takes the stored weight's first dimension, which Conv1D has the other way round.
        width = gradient.shape[1] if family == "gpt2" else gradient.shape[0]
        second = sigma[rank : 2 * rank] * width**0.25 / 4
        np.testing.assert_allclose(np.abs(np.sum(a * vt[:rank], axis=1)), 1, rtol=1e-4)
        np.testing.assert_allclose(np.abs(np.sum(b * u[:, rank : 2 * rank], axis=0)), second, rtol=1e-3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize("name", STARTS)
def test_the_product_is_taken_out_of_weights_that_keep_their_type(
    name: str, family: str, dtype: torch.dtype
) -> None:
    model = FAMILIES[family]().to(dtype)
    before = matrices(model)
    adapted = build(model, setting(name))
    assert {value.dtype for value in adapter(adapted).values()} == {torch.float32}
    parts = {module: factors(adapted, module) for module in before}
    base = adapted.unload()
    assert {parameter.dtype for parameter in base.parameters()} == {dtype}
    for module, weight in matrices(base).items():
        a, b = parts[module]
        step = torch.finfo(dtype).eps * np.abs(weight).max()
        np.testing.assert_allclose(weight + SCALING * b @ a, before[module], rtol=0, atol=2 * step)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", STARTS)
def test_merging_gives_the_base_model_back(name: str, family: str) -> None:
    model = FAMILIES[family]()
    before, weights = logits(model), matrices(model)
    merged = build(model, setting(name)).merge_and_unload()
    assert distance(logits(merged), before) <= 1e-5
    for module, weight in matrices(merged).items():
        np.testing.assert_allclose(weight, weights[module], rtol=0, atol=1e-6)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", STARTS)
def test_a_saved_adapter_belongs_to_the_weights_it_was_started_on(
    name: str, family: str, tmp_path: Path
) -> None:
    adapted = build(FAMILIES[family](), setting(name))
    perturb(adapted)
    trained = logits(adapted)
    adapted.save_pretrained(tmp_path)
    on_original = PeftModel.from_pretrained(FAMILIES[family](), tmp_path)
    on_changed = PeftModel.from_pretrained(adapted.unload(), tmp_path)
    assert distance(logits(on_changed), trained) <= 1e-5
    assert distance(logits(on_original), trained) > 1e-3


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", STARTS)
def test_peft_converts_it_to_an_adapter_of_the_original_weights(
    name: str, family: str, tmp_path: Path
) -> None:
    # As start_at's docstring shows it.
    adapted = build(FAMILIES[family](), setting(name))
    adapted.save_pretrained(tmp_path / "start")
    perturb(adapted)
    trained = logits(adapted)
    adapted.save_pretrained(
        tmp_path / "trained", path_initial_model_for_weight_conversion=str(tmp_path / "start")
    )
    loaded = PeftModel.from_pretrained(FAMILIES[family](), tmp_path / "trained")
    assert loaded.peft_config["default"].r == 8
    assert distance(logits(loaded), trained) <= 1e-5


@pytest.mark.parametrize("name", ["lora-ga", "lora-ga-peft"])
def test_a_gradient_needs_data(name: str) -> None:
    blank = [{**batch, "labels": torch.full_like(batch["labels"], -100)} for batch in padded_batches()]
    for given, message in (([], "give build.. the batches"), (blank, "no token .* is labelled")):
        with pytest.raises(RequestError, match=message):
            methods.build(llama(), setting(name), given)


@pytest.mark.parametrize("name", ["lora-ga", "lora-ga-peft"])
def test_a_gradient_that_is_not_finite_is_no_start(name: str) -> None:
    model = gpt2()
    with torch.no_grad():
        model.transformer.ln_f.weight[0] = math.nan
    with pytest.raises(NonFiniteError, match="is not finite"):
        methods.build(model, setting(name), padded_batches())


def test_dropout_does_not_reach_the_gradient() -> None:
    # GPT-2 has dropout, and the model may come in training mode.
    quiet, training = (adapter(build(gpt2().train(mode), setting("lora-ga"))) for mode in (False, True))
    assert all(torch.equal(quiet[key], training[key]) for key in quiet)


def test_only_the_first_rows_of_the_training_data_are_looked_at() -> None:
    rows = tiny.tiny_data().train
    made = initial_batches(setting("lora-ga"), rows, pad_id=0)
    seen = [
        tuple(ids[mask.bool()].tolist())
        for batch in made
        for ids, mask in zip(batch["input_ids"], batch["attention_mask"], strict=True)
    ]
    assert sorted(seen) == sorted(row.input_ids for row in rows[:32])
    assert all(initial_batches(setting(name), rows, 0) == [] for name in METHODS if "lora-ga" not in name)


@pytest.mark.parametrize("name", ["init-ab", "lora-ga"])
def test_a_measurement_and_a_run_start_at_one_adapter(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = dataclasses.replace(tiny.SETTING, method=name, steps=2)
    loaded, data = tiny.tiny_model(), tiny.tiny_data()
    untouched = {key: value.clone() for key, value in loaded.model.state_dict().items()}
    started = []

    def watched(*arguments: object) -> PeftModel:
        model = whole(*arguments)
        started.append({key: value.clone() for key, value in model.state_dict().items()})
        return model

    whole = methods.registry.build
    monkeypatch.setattr(methods.registry, "build", watched)
    prepare(wanted, loaded, data)
    train_once(wanted, 1e-3, loaded, data)
    measured, run = started
    assert any(key.endswith("lora_B.default.weight") for key in measured)
    assert measured.keys() == run.keys()
    assert all(torch.equal(measured[key], run[key]) for key in measured)
    assert all(torch.equal(untouched[key], value) for key, value in loaded.model.state_dict().items())
