"""Models and adapters of sizes that the constants were not tried on: told, and given a wider range."""

from __future__ import annotations

import dataclasses
import math
import re

import pytest
import torch
from command_line import run_json
from peft import (
    AdaLoraConfig,
    GraloraConfig,
    LoraConfig,
    PromptTuningConfig,
    VeraConfig,
    get_peft_model,
)
from tiny_text import save, sums, tiny_llama, write_rows

from hessian_lr.predict import load_calibration
from hessian_lr.predict.extent import EXTENT, extent
from hessian_lr.predict.fit import LEAST_FOR_DOMAIN, Observation, fit
from hessian_lr.predict.law import CARRIED, EXTRAPOLATION, Quantities
from hessian_lr.predict.rate import rate

KNOWN = dict.fromkeys(("lr_stability", "lr_critical_start", "lr_eigenvalue"), 1e-2)
USUAL = {"model_size": 1e8, "adapter_rank": 16, "adapter_scaling": 1.0}


def predicted(**changes: float):
    return rate("combined", load_calibration(), Quantities(4, 60, **KNOWN, samples=8, **USUAL | changes))


MODULES = ["q_proj", "v_proj"]


@pytest.mark.parametrize(
    ("adapter", "rank", "scaling"),
    [
        (LoraConfig(r=4, lora_alpha=8, target_modules="all-linear"), 4, 2.0),
        (LoraConfig(r=4, lora_alpha=8, use_rslora=True, target_modules=MODULES), 4, 4.0),
        (LoraConfig(r=4, lora_alpha=8, use_dora=True, target_modules=MODULES), 4, 2.0),
        (LoraConfig(r=2, lora_alpha=2, rank_pattern={"q_proj": 8}, target_modules=MODULES), 8, 1.0),
        (LoraConfig(r=4, target_modules=MODULES, modules_to_save=["lm_head"]), 4, 2.0),
        (GraloraConfig(r=4, gralora_k=2, target_modules=MODULES), 4, None),
        (AdaLoraConfig(init_r=4, lora_alpha=4, total_step=10, target_modules=MODULES), None, None),
        (VeraConfig(r=4, target_modules=["q_proj"]), None, None),
        (PromptTuningConfig(num_virtual_tokens=3, task_type="CAUSAL_LM"), None, None),
    ],
    ids=["lora", "rslora", "dora", "a rank", "head", "gralora", "adalora", "vera", "prompt"],
)
def test_the_model_is_counted_without_its_adapter(adapter, rank, scaling):
    model = tiny_llama()
    count = sum(one.numel() for one in model.parameters())
    assert extent(model) == {"model_size": count, "adapter_rank": None, "adapter_scaling": None}
    found = extent(get_peft_model(model, adapter))
    assert found == {"model_size": count, "adapter_rank": rank, "adapter_scaling": scaling}


def test_what_is_frozen_and_what_is_trained_of_the_model_counts_alike():
    model = tiny_llama()
    count = sum(one.numel() for one in model.parameters())
    model.get_input_embeddings().requires_grad_(False)
    assert extent(model)["model_size"] == count


def test_of_two_adapters_the_trained_one_tells_the_rank():
    model = get_peft_model(tiny_llama(), LoraConfig(r=4, lora_alpha=8, target_modules=MODULES))
    count = extent(model)["model_size"]
    model.add_adapter("before", LoraConfig(r=64, lora_alpha=8, target_modules=MODULES))
    for name, one in model.named_parameters():
        one.requires_grad_("lora_" in name and ".default" in name)
    assert extent(model) == {"model_size": count, "adapter_rank": 4, "adapter_scaling": 2.0}


def test_of_weights_in_four_bits_their_number_counts_not_their_bytes():
    class State:
        shape = torch.Size([8, 6])

    model = torch.nn.Linear(24, 1, bias=False)
    model.weight.quant_state = State()
    assert extent(model)["model_size"] == 48
    model.weight.quant_state = None  # not packed yet
    assert extent(model)["model_size"] == 24


@pytest.mark.parametrize(
    ("changed", "width", "said"),
    [
        ({"model_size": 7e9}, (7e9 / 134_515_008) ** CARRIED["model_size"], "model_size 7e9 (tried on"),
        ({"model_size": 1e6}, (2_365_920 / 1e6) ** CARRIED["model_size"], "model_size 1e6 (tried on"),
        ({"adapter_rank": 256}, (256 / 64) ** EXTRAPOLATION, "adapter_rank 256 (tried on 4 … 64)"),
        ({"adapter_scaling": 64.0}, (64 / 8) ** CARRIED["adapter_scaling"], "adapter_scaling 64"),
    ],
)
def test_beyond_what_was_tried_the_range_is_wider_and_a_note_says_so(changed, width, said):
    usual, found = predicted(), predicted(**changed)
    assert not usual.notes and found.lr == usual.lr
    assert found.factor / usual.factor == pytest.approx(width, rel=1e-9)
    (note,) = found.notes
    assert re.search(re.escape(said), note) and "so the range is wider" in note


def test_what_is_hardly_outside_is_inside():
    usual, found = predicted(), predicted(model_size=134_515_008 + 576)
    assert found == usual and not found.notes


def test_a_users_own_sweeps_widen_what_was_tried():
    mine = Quantities(4, 60, **KNOWN, samples=8, **USUAL | {"model_size": 7e9, "adapter_rank": 256})
    untold = dataclasses.replace(mine, **dict.fromkeys(EXTENT))
    told, silent = (
        fit(
            [Observation(f"{place}", "a run", "lora", 1e-3, one) for place in range(LEAST_FOR_DOMAIN)],
            load_calibration(),
        )
        for one in (mine, untold)
    )
    assert not rate("combined", told, mine).notes
    # An earlier version did not tell the sizes: its sweeps leave them as they were.
    assert silent.combined.domain == load_calibration().combined.domain


def test_the_commands_tell_the_size_of_what_they_measured(tmp_path, capfd):
    save(tiny_llama(initializer_range=0.2), tmp_path / "model")
    write_rows(tmp_path / "rows.jsonl", sums(8))
    asked = ["--model", tmp_path / "model", "--data", tmp_path / "rows.jsonl", "--rank", "2", "--alpha", "8"]
    options = [*asked, "--steps", "15", "--samples", "4", "--device", "cpu", "--dtype", "float32", "--quiet"]
    _, told = run_json(capfd, "predict", *options)
    _, swept = run_json(capfd, "validate", *options, "--lrs", "0.1,0.3,1", "--out", tmp_path / "runs")
    for row in (*told["results"], *swept["results"]):
        assert row["adapter_rank"] == 2 and row["adapter_scaling"] == 4.0
        assert row["model_size"] == sum(one.numel() for one in tiny_llama().parameters())
    (row,), (proven,) = told["results"], swept["results"]
    assert (row["lr_low"], row["lr_high"]) == (proven["predicted_low"], proven["predicted_high"])
    law = load_calibration().combined
    beyond = CARRIED["model_size"] * math.log(law.domain["model_size"][0] / row["model_size"])
    beyond += EXTRAPOLATION * math.log(law.domain["adapter_rank"][0] / 2)
    assert row["lr_high"] / row["lr"] == pytest.approx(math.exp(law.log_half_width + beyond))
