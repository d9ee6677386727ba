"""Every method: changes nothing at first, trains only its adapter, follows its seed, and refuses in words."""

from __future__ import annotations

import copy
import random

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from peft.tuners.tuners_utils import BaseTunerLayer
from tiny_methods import (
    BLOCKS,
    CASES,
    DETERMINISTIC,
    FAMILIES,
    HEADS,
    NAMES,
    SMALL,
    VOCAB,
    adapter,
    build,
    llama,
    perturb,
    qwen2,
    setting,
    tokens,
)
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    Qwen2ForCausalLM,
)

from hessian_lr.errors import RequestError
from hessian_lr.methods import METHODS, check, find_targets

pytestmark = pytest.mark.usefixtures("one_thread")


def test_the_promised_names_are_registered() -> None:
    assert set(NAMES) <= set(METHODS)
    assert all(name == method.name for name, method in METHODS.items())


@pytest.mark.parametrize(("name", "family"), CASES)
def test_logits_are_unchanged_at_first_and_move_with_the_adapter(name: str, family: str) -> None:
    model = FAMILIES[family]()
    with torch.no_grad():
        before = model(tokens()).logits
        adapted = build(model, setting(name))
        after = adapted(tokens()).logits
        perturb(adapted)
        moved = adapted(tokens()).logits
    assert torch.linalg.norm(after - before) <= 1e-5 * torch.linalg.norm(before)
    assert torch.linalg.norm(moved - before) > 1e-4 * torch.linalg.norm(before)


@pytest.mark.parametrize(("name", "family"), CASES)
def test_only_the_adapter_is_trained_in_float32(name: str, family: str) -> None:
    model = FAMILIES[family]()
    base = {id(parameter) for parameter in model.parameters()}
    adapted = build(model, setting(name))
    trained = [parameter for parameter in adapted.parameters() if parameter.requires_grad]
    assert trained
    assert not any(id(parameter) in base for parameter in trained)
    assert {parameter.dtype for parameter in trained} == {torch.float32}


@pytest.mark.parametrize("name", NAMES)
def test_the_seed_alone_decides_the_adapter(name: str) -> None:
    torch.manual_seed(100)
    first = adapter(build(llama(), setting(name)))
    torch.manual_seed(200)
    again = adapter(build(llama(), setting(name)))
    other = adapter(build(llama(), setting(name, seed=6)))
    assert first.keys() == again.keys()
    assert all(torch.equal(first[key], again[key]) for key in first)
    same = all(torch.equal(first[key], other[key]) for key in first)
    assert same == (name in DETERMINISTIC)


@pytest.mark.parametrize("name", NAMES)
def test_the_callers_random_numbers_go_on_as_if_nothing_happened(name: str) -> None:
    model = llama()
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
    build(model, setting(name))
    assert torch.equal(torch.get_rng_state(), states[0])
    assert random.getstate() == states[1]
    assert np.random.get_state()[1].tolist() == states[2]


@pytest.mark.parametrize("name", NAMES)
def test_zero_b_says_whether_the_last_factor_starts_at_zero(name: str) -> None:
    values = adapter(build(llama(), setting(name)))
    last = [v for key, v in values.items() if "lora_B." in key and "randlora" not in key]
    last += [v for key, v in values.items() if "randlora_lambda" in key]
    assert last
    assert all(not value.any() for value in last) == METHODS[name].zero_b


@pytest.mark.parametrize("training", [True, False])
def test_training_mode_stays_as_it_was(training: bool) -> None:
    adapted = build(llama().train(training), setting("lora"))
    assert {module.training for module in adapted.modules()} == {training}


@pytest.mark.parametrize(("name", "scaling"), [("lora", 6.5 / 4), ("rslora", 6.5 / 2)])
@pytest.mark.parametrize("family", FAMILIES)
def test_the_scaling_takes_any_alpha(name: str, scaling: float, family: str) -> None:
    adapted = build(FAMILIES[family](), setting(name))
    perturb(adapted)
    layer = next(module for module in adapted.modules() if isinstance(module, BaseTunerLayer))
    a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    x = torch.randn(3, a.shape[1])
    expected = layer.get_base_layer()(x) + scaling * (x @ a.T @ b.T)
    torch.testing.assert_close(layer(x), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("family", FAMILIES)
def test_pissa_starts_at_the_best_approximation_of_its_rank(family: str) -> None:
    model = FAMILIES[family]()
    targets = {target.name: target for target in find_targets(model, "all-linear")}
    weights = {name: model.get_submodule(name).weight.detach().double().numpy().copy() for name in targets}
    adapted = build(model, setting("pissa"))
    for name, target in targets.items():
        weight = weights[name].T if target.transposed else weights[name]
        u, sigma, vt = np.linalg.svd(weight, full_matrices=False)
        layer = adapted.base_model.model.get_submodule(name)
        product = layer.lora_B["default"].weight.double() @ layer.lora_A["default"].weight.double()
        best = (u[:, :4] * sigma[:4]) @ vt[:4]
        # float32's rounding, over the gap between the 4th singular value and the 5th.
        np.testing.assert_allclose(6.5 / 4 * product.detach().numpy(), best, rtol=0, atol=1e-5)


def test_olora_starts_at_orthonormal_columns() -> None:
    adapted = build(llama(), setting("olora"))
    for key, value in adapter(adapted).items():
        if "lora_B" in key:
            torch.testing.assert_close(value.T @ value, torch.eye(4), atol=1e-5, rtol=0)


def test_a_higher_rank_gives_randlora_fewer_parameters() -> None:
    sizes = [
        sum(p.numel() for p in build(llama(), setting("randlora", rank=rank)).parameters() if p.requires_grad)
        for rank in (2, 8)
    ]
    # By hand, ⌈w/r⌉·(r + w) for each of two layers: five modules of width 32, two (k, v) of width 16.
    assert sizes == [2 * (5 * 16 * 34 + 2 * 8 * 18), 2 * (5 * 4 * 40 + 2 * 2 * 24)]


@pytest.mark.parametrize("family", FAMILIES)
def test_all_linear_means_what_peft_means(family: str) -> None:
    model = FAMILIES[family]()
    targets = [target.name for target in find_targets(model, "all-linear")]
    theirs = get_peft_model(copy.deepcopy(model), LoraConfig(target_modules="all-linear"))
    adapted = [
        name.removeprefix("base_model.model.")
        for name, module in theirs.named_modules()
        if isinstance(module, BaseTunerLayer)
    ]
    assert targets == adapted


def test_only_the_named_modules_are_adapted() -> None:
    adapted = build(llama(), setting("lora", target_modules=("q_proj", "1.mlp.down_proj")))
    layers = [name for name, module in adapted.named_modules() if isinstance(module, BaseTunerLayer)]
    assert [name.removeprefix("base_model.model.model.layers.") for name in layers] == [
        "0.self_attn.q_proj",
        "1.self_attn.q_proj",
        "1.mlp.down_proj",
    ]


REFUSALS = [
    ("llama", {"method": "lroa"}, r"unknown method 'lroa'\. Did you mean 'lora'"),
    ("llama", {"target_modules": ("c_attn",)}, r"'c_attn' matches no linear module.*down_proj.*q_proj"),
    ("llama", {"target_modules": ("embed_tokens",)}, r"'embed_tokens' matches no linear module"),
    (
        "llama",
        {"target_modules": ("all-linear", "lm_head")},
        r"'all-linear' stands alone.*down_proj.*lm_head",
    ),
    ("qwen2", {"target_modules": ("lm_head",)}, r"lm_head cannot be adapted: it shares its weight with"),
    ("llama", {"rank": 17}, r"rank 17 .* model\.layers\.0\.self_attn\.k_proj .* largest possible rank is 16"),
    ("llama", {"method": "gralora", "rank": 3}, r"rank must be a multiple of 2, not 3"),
    ("llama", {"method": "lora-ga", "rank": 9}, r"rank 9 .*0\.self_attn\.k_proj \(16 × 32\).*rank is 8"),
    ("gpt2", {"method": "olora"}, r"olora cannot adapt transformer\.h\.0\.attn\.c_attn.*Conv1D"),
]


@pytest.mark.parametrize(("family", "changes", "message"), REFUSALS)
def test_a_wrong_request_is_refused_before_any_work(family: str, changes: dict, message: str) -> None:
    model = FAMILIES[family]()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    wrong = setting(**{"method": "lora", **changes})
    for refuse in (check, build):
        with pytest.raises(RequestError, match=message):
            refuse(model, wrong)
    after = model.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[key], before[key]) for key in before)


@pytest.mark.parametrize("names", ["all-linear", ("in_proj", "out_proj")])
def test_modules_that_peft_takes_no_adapter_on_are_refused_and_the_others_named(names: object) -> None:
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "state_size": 4, "vocab_size": VOCAB}
    model = MambaForCausalLM(MambaConfig(**sizes))
    with pytest.raises(RequestError, match=r"PEFT cannot adapt out_proj of a MambaForCausalLM") as caught:
        check(model, setting("lora", target_modules=names))
    _, advised = str(caught.value).split("--target-modules ")
    assert advised == ("dt_proj,in_proj,x_proj" if names == "all-linear" else "in_proj")
    build(model, setting("lora", rank=1, target_modules=tuple(advised.split(","))))


def test_a_tied_head_is_adapted_once_it_has_a_copy_of_its_weight(tmp_path) -> None:
    model, wanted = qwen2(), setting("lora", target_modules=("lm_head",))
    with pytest.raises(RequestError, match=r"save the model with a copy of the weight there"):
        check(model, wanted)
    with torch.no_grad():
        before = model(tokens()).logits
    model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach().clone())
    model.config.tie_word_embeddings = False
    model.save_pretrained(tmp_path)
    untied = Qwen2ForCausalLM.from_pretrained(tmp_path)
    with torch.no_grad():
        torch.testing.assert_close(build(untied, wanted)(tokens()).logits, before)


def test_gralora_refuses_a_width_it_cannot_cut() -> None:
    shape = {**BLOCKS, "intermediate_size": 49}
    model = LlamaForCausalLM(LlamaConfig(**SMALL, **shape, **HEADS))
    with pytest.raises(RequestError, match=r"2 × 2 blocks, but model\.layers\.0\.mlp\.gate_proj is 49 × 32"):
        check(model, setting("gralora"))


def test_a_second_adapter_is_refused() -> None:
    model = llama()
    build(model, setting("lora"))
    with pytest.raises(RequestError, match="carries an adapter already"):
        build(model, setting("pissa"))
