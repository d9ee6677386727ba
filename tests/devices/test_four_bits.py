"""QLoRA: base weights in four bits are measured exactly, stay packed, and stay as they are."""

from __future__ import annotations

import copy

import datasets
import pytest
import torch
from peft import LoraConfig, get_peft_model, prepare_model_for_kbit_training
from tiny_models import VOCABULARY, counting_batch, dense_hessian, make_batch
from tolerances import DEFAULT_LAMBDA, DENSE32
from transformers import (
    AutoModelForCausalLM,
    BitsAndBytesConfig,
    LlamaConfig,
    LlamaForCausalLM,
    Trainer,
    TrainingArguments,
)

import hessian_lr as hlr
from hessian_lr.curvature import HessianOperator
from hessian_lr.curvature.four_bits import is_four_bit
from hessian_lr.integrations import PredictedLearningRate

bitsandbytes = pytest.importorskip("bitsandbytes")

BATCHES = [make_batch(2, 12, seed) for seed in range(4)]
MORE = [make_batch(2, 12, seed) for seed in range(4, 8)]
HIDDEN, WIDE = 64, 128


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    size = {"hidden_size": HIDDEN, "intermediate_size": WIDE, "vocab_size": VOCABULARY}
    heads = {"num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = LlamaForCausalLM(LlamaConfig(**size, **heads))
        for parameter in model.parameters():
            parameter.data += 0.05 * torch.randn_like(parameter)
    path = tmp_path_factory.mktemp("model")
    model.save_pretrained(path)
    return path


def adapter(model):
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = get_peft_model(
            model, LoraConfig(r=2, lora_alpha=4, target_modules=["q_proj", "up_proj"], task_type="CAUSAL_LM")
        )
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.data += 0.1 * torch.randn_like(parameter)
    return model


def qlora(folder, compute=torch.float32, prepared=True):
    config = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=compute,
    )
    model = AutoModelForCausalLM.from_pretrained(folder, quantization_config=config, device_map={"": "cpu"})
    # As in every recipe; it sets gradient checkpointing too.
    return adapter(prepare_model_for_kbit_training(model) if prepared else model)


def unpacked(folder):
    """A plain model in float64 whose weights are those that the packed ones stand for."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    packed = dict(qlora(folder).unload().named_modules())
    for name, module in model.named_modules():
        if is_four_bit(packed[name]):
            weight = packed[name].weight
            matrix = bitsandbytes.functional.dequantize_4bit(weight.data, weight.quant_state)
            module.weight.data = matrix.float()
    return adapter(model).double()


def four_bit(model):
    return [module for module in model.modules() if is_four_bit(module)]


def test_products_are_those_of_the_weights_that_the_packed_ones_stand_for(folder):
    operator = HessianOperator(qlora(folder), BATCHES)
    dense = dense_hessian(unpacked(folder), BATCHES)
    vector = torch.randn(operator.size, generator=torch.Generator().manual_seed(2))
    expected = dense @ vector.double()
    found = operator.matvec(vector)
    assert float((found - expected).norm() / expected.norm()) < DENSE32


def test_no_graph_keeps_an_unpacked_weight(folder):
    model = qlora(folder)
    assert len(four_bit(model)) == 14
    shapes = {(HIDDEN, HIDDEN), (WIDE, HIDDEN), (HIDDEN, WIDE), (HIDDEN // 2, HIDDEN)}
    kept = []

    def look(tensor):
        # An adapter's own factors are (2, in) and (out, 2).
        kept.append(tuple(tensor.shape))
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(look, lambda tensor: tensor):
        operator = HessianOperator(model, BATCHES, memory_budget=0)
        operator.matvec(torch.ones(operator.size))
    assert kept and not shapes & {shape for one in kept for shape in (one, one[::-1])}


@pytest.mark.parametrize("compute", [torch.float32, torch.bfloat16])
def test_a_qlora_model_is_predicted_and_left_as_it_was(folder, compute):
    model = qlora(folder, compute)
    before = [(copy.deepcopy(m.weight.data), m.weight.quant_state.absmax.clone()) for m in four_bit(model)]
    modes = [module.training for module in model.modules()]
    found = hlr.predict_learning_rate(model, BATCHES, warmup_batches=MORE, steps=60)
    plain = hlr.predict_learning_rate(unpacked(folder).float(), BATCHES, warmup_batches=MORE, steps=60)
    assert found.status == "converged" and not any("central" in note for note in found.notes)
    assert found.curvature.lambda_max == pytest.approx(plain.curvature.lambda_max, rel=DEFAULT_LAMBDA)
    # The warm-up is the model's own, in its own precision.
    assert found.lr == pytest.approx(plain.lr, rel=0.2)
    assert [module.training for module in model.modules()] == modes
    for module, (weight, scale) in zip(four_bit(model), before, strict=True):
        assert torch.equal(module.weight.data, weight) and torch.equal(
            module.weight.quant_state.absmax, scale
        )
        assert "forward" not in vars(module)


def test_the_trainer_predicts_and_follows_a_qlora_model(folder, tmp_path):
    batch = counting_batch(48, 1, seed=1)
    rows = datasets.Dataset.from_dict({name: value.tolist() for name, value in batch.items()})
    arguments = {"max_steps": 4, "per_device_train_batch_size": 2, "logging_steps": 1, "save_strategy": "no"}
    made = Trainer(
        model=qlora(folder, torch.bfloat16),
        args=TrainingArguments(str(tmp_path), use_cpu=True, report_to=[], disable_tqdm=True, **arguments),
        train_dataset=rows,
        data_collator=lambda chosen: {name: torch.tensor([row[name] for row in chosen]) for name in batch},
    )
    made.add_callback(PredictedLearningRate(made, track_every=2))
    made.train()
    logs = made.state.log_history
    (told,) = (log for log in logs if "predicted_learning_rate" in log)
    assert made.args.learning_rate == told["predicted_learning_rate"]
    assert [log["step"] for log in logs if "sharpness" in log] == [2, 4]


def test_bfloat16_products_are_confirmed_in_float32(folder):
    exact = hlr.sharpness(qlora(folder), BATCHES)
    found = hlr.sharpness(qlora(folder, torch.bfloat16), BATCHES, dtype=torch.bfloat16)
    assert found.rounding is not None
    assert found.lambda_max == pytest.approx(exact.lambda_max, rel=DEFAULT_LAMBDA)
