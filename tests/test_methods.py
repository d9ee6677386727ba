"""Every method: changes nothing at first, trains only its adapter, follows its seed, and refuses in words."""

from __future__ import annotations

import copy
import random

import numpy as np
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora.dora import DoraLinearLayer
from peft.tuners.tuners_utils import BaseTunerLayer
from transformers import (
    GemmaConfig,
    GemmaForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from hessian_lr import methods
from hessian_lr.curvature.operator import HessianOperator
from hessian_lr.errors import RequestError
from hessian_lr.methods import METHODS, check, find_targets
from hessian_lr.setting import Setting

VOCAB = 64
SMALL = {"vocab_size": VOCAB, "bos_token_id": 0, "eos_token_id": 1, "attn_implementation": "eager"}
BLOCKS = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
HEADS = {"num_attention_heads": 4, "num_key_value_heads": 2}

# Fixed by what users and scripts type; more may come, none may go.
NAMES = ["lora", "rslora", "dora", "pissa", "milora", "olora", "init-ab"]
NAMES += ["lora-ga", "lora-ga-peft", "gralora", "randlora", "dora-exact", "lora+", "loft"]
# They start from the weights alone, so that the seed has nothing to decide.
DETERMINISTIC = {"pissa", "milora", "olora"}


pytestmark = pytest.mark.usefixtures("one_thread")


def llama() -> PreTrainedModel:
    torch.manual_seed(1)
    return LlamaForCausalLM(LlamaConfig(**SMALL, **BLOCKS, **HEADS)).eval()


def qwen2() -> PreTrainedModel:
    torch.manual_seed(2)
    return Qwen2ForCausalLM(Qwen2Config(**SMALL, **BLOCKS, **HEADS, tie_word_embeddings=True)).eval()


def gpt2() -> PreTrainedModel:
    torch.manual_seed(3)
    return GPT2LMHeadModel(GPT2Config(**SMALL, n_embd=32, n_layer=2, n_head=4, n_positions=32)).eval()


def gemma() -> PreTrainedModel:
    torch.manual_seed(4)
    return GemmaForCausalLM(GemmaConfig(**SMALL, **BLOCKS, **HEADS, head_dim=8)).eval()


FAMILIES = {"llama": llama, "qwen2": qwen2, "gpt2": gpt2, "gemma": gemma}
# OLoRA on GPT-2's Conv1D is refused (below).
CASES = [(name, family) for name in NAMES for family in FAMILIES if (name, family) != ("olora", "gpt2")]


def setting(method: str, **changes: object) -> Setting:
    return Setting(**{"method": method, "rank": 4, "alpha": 6.5, "seed": 5, **changes})


def tokens() -> torch.Tensor:
    return torch.randint(0, VOCAB, (2, 11), generator=torch.Generator().manual_seed(0))


def batches() -> list[dict[str, torch.Tensor]]:
    """Training data for the methods that start from a gradient."""
    ids = tokens()
    return [{"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids}]


def build(model: PreTrainedModel, wanted: Setting) -> PeftModel:
    return methods.build(model, wanted, batches())


def adapter(model: PeftModel) -> dict[str, torch.Tensor]:
    """What the method added: its trained parameters, and RandLoRA's fixed bases."""
    names = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    return {
        name: value.clone()
        for name, value in [*model.named_parameters(), *model.named_buffers()]
        if name in names or "randlora_A" in name or "randlora_B" in name
    }


def perturb(model: PeftModel, size: float = 0.05) -> None:
    generator = torch.Generator().manual_seed(9)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
                parameter.add_(size * noise)


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


def gradient(model: PeftModel, *, graph: bool = False) -> torch.Tensor:
    """∇L over the trained parameters in float64, L the mean cross-entropy of next tokens."""
    ids = tokens()
    # transformers' own loss would fall back to float32.
    loss = torch.nn.functional.cross_entropy(model(ids).logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss, trained, create_graph=graph)])


def shifted_gradient(model: PeftModel, direction: torch.Tensor, step: float) -> torch.Tensor:
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    pieces = direction.split([parameter.numel() for parameter in trained])
    with torch.no_grad():
        saved = [parameter.clone() for parameter in trained]
        for parameter, piece in zip(trained, pieces, strict=True):
            parameter.add_(step * piece.view_as(parameter))
    shifted = gradient(model)
    with torch.no_grad():
        for parameter, value in zip(trained, saved, strict=True):
            parameter.copy_(value)
    return shifted


# GPT-2, because Llama's RMSNorm and attention compute in float32 even in a float64 model.
@pytest.mark.parametrize("name", [name for name in NAMES if name != "olora"])
def test_two_backward_passes_give_the_hessian(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = build(gpt2(), setting(name)).double()
    perturb(model)
    if name == "dora":
        # As the method's docstring says: the Hessian with every weight norm held at its present value.
        _hold_norms(model, monkeypatch)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    size = sum(parameter.numel() for parameter in trained)
    direction = torch.randn(size, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    direction /= direction.norm()
    product, difference = products(model, direction)
    # The central difference's own error is O(1e-8).
    torch.testing.assert_close(product, difference, rtol=0, atol=1e-6 * float(product.norm()))
    # What is measured with: written-out derivatives, kept graphs.
    engine = HessianOperator(model, batches(), dtype=torch.float64).matvec(direction)
    torch.testing.assert_close(engine, difference, rtol=0, atol=1e-6 * float(product.norm()))


def products(model: PeftModel, direction: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """H·v by two backward passes, and by the central difference of gradients."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    slope = gradient(model, graph=True) @ direction
    product = torch.cat(
        [part.flatten() for part in torch.autograd.grad(slope, trained, materialize_grads=True)]
    )
    difference = shifted_gradient(model, direction, 1e-4) - shifted_gradient(model, direction, -1e-4)
    return product, difference / 2e-4


def test_pefts_dora_holds_a_norm_that_moves_and_dora_exact_does_not() -> None:
    """Autograd's product against central differences of autograd's own gradient."""
    missed, gradients = {}, {}
    for name in ("dora", "dora-exact"):
        model = build(gpt2(), setting(name)).double()
        perturb(model, 0.2)
        size = sum(p.numel() for p in model.parameters() if p.requires_grad)
        direction = torch.randn(size, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
        product, difference = products(model, direction / direction.norm())
        missed[name] = float((product - difference).norm() / difference.norm())
        gradients[name] = gradient(model)
    assert missed["dora-exact"] < 1e-6
    assert missed["dora"] > 0.01
    # The loss is one, its gradients are two: only the exact one is the slope of the loss.
    apart = (gradients["dora"] - gradients["dora-exact"]).norm() / gradients["dora-exact"].norm()
    assert float(apart) > 0.01


def test_dora_exact_is_the_dora_that_peft_computes() -> None:
    theirs, ours = build(gpt2(), setting("dora")), build(gpt2(), setting("dora-exact"))
    for model in (theirs, ours):
        perturb(model, 0.2)
    with torch.no_grad():
        torch.testing.assert_close(ours(tokens()).logits, theirs(tokens()).logits)
    layer = next(m for m in ours.modules() if isinstance(m, DoraLinearLayer))
    assert type(layer) is not DoraLinearLayer
    assert {type(m) for m in theirs.modules() if isinstance(m, DoraLinearLayer)} == {DoraLinearLayer}


def _hold_norms(model: PeftModel, monkeypatch: pytest.MonkeyPatch) -> None:
    moving = DoraLinearLayer.get_weight_norm
    held: dict[int, torch.Tensor] = {}

    def first_value(self: DoraLinearLayer, *arguments: object, **options: object) -> torch.Tensor:
        if id(self) not in held:
            held[id(self)] = moving(self, *arguments, **options).detach()
        return held[id(self)]

    monkeypatch.setattr(DoraLinearLayer, "get_weight_norm", first_value)
    with torch.no_grad():
        model(tokens())
