"""Mixtures of experts: adapted as PEFT adapts them, measured exactly, refused where a method cannot."""

from __future__ import annotations

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import save_file
from tiny_models import VOCABULARY, make_batch
from tolerances import DENSE32, DENSE64_FLOAT32_ISLANDS, RTOL_TIGHT
from transformers import MixtralConfig, MixtralForCausalLM, Qwen3MoeConfig, Qwen3MoeForCausalLM

from hessian_lr import methods
from hessian_lr.curvature import HessianOperator
from hessian_lr.curvature.closed_form import closed_form
from hessian_lr.errors import RequestError
from hessian_lr.measure import sharpness
from hessian_lr.setting import Setting

SHAPE = {
    **{"hidden_size": 8, "intermediate_size": 12, "num_hidden_layers": 1, "vocab_size": VOCABULARY},
    **{"num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 32},
}


def mixtral():
    return MixtralForCausalLM(MixtralConfig(**SHAPE, num_local_experts=3))


def qwen3_moe():
    sizes = {"num_experts": 3, "num_experts_per_tok": 2, "moe_intermediate_size": 4, "head_dim": 4}
    return Qwen3MoeForCausalLM(Qwen3MoeConfig(**SHAPE, **sizes))


FAMILIES = {"mixtral": mixtral, "qwen3_moe": qwen3_moe}
# The projections of the experts, as the names were when each was a module.
EXPERTS = {"mixtral": ("w1", "w3", "w2"), "qwen3_moe": ("gate_proj", "up_proj", "down_proj")}


def base_model(family):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = FAMILIES[family]()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.2 * torch.randn_like(parameter))
    return model.eval()


def by_peft(family, **changes):
    torch.manual_seed(0)
    fields = {"r": 2, "lora_alpha": 3, "target_modules": "all-linear", "task_type": "CAUSAL_LM"}
    return get_peft_model(base_model(family), LoraConfig(**fields | changes))


def moved(model):
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    return model


def same_parameters(left, right):
    pairs = list(zip(left.named_parameters(), right.named_parameters(), strict=True))
    return all(
        m == n and p.requires_grad == q.requires_grad and torch.equal(p, q) for (m, p), (n, q) in pairs
    )


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("named", [False, True], ids=["all-linear", "by name"])
def test_the_adapter_is_the_one_that_peft_makes(family, named):
    wanted = (*EXPERTS[family], "gate", "q_proj") if named else "all-linear"
    built = methods.build(
        base_model(family), Setting(rank=2, alpha=3, target_modules=wanted, method="rslora")
    )
    theirs = by_peft(family, target_modules=list(wanted) if named else wanted, use_rslora=True)
    assert same_parameters(built, theirs)
    assert any(".experts." in name for name, p in built.named_parameters() if p.requires_grad)


def test_names_of_linear_modules_leave_the_experts_alone():
    built = methods.build(base_model("mixtral"), Setting(rank=2, target_modules=("q_proj",)))
    assert all("q_proj" in name for name, p in built.named_parameters() if p.requires_grad)


@pytest.mark.parametrize("family", FAMILIES)
def test_products_match_the_dense_hessian(family):
    model = moved(methods.build(base_model(family), Setting(rank=1))).double()
    # The experts' fused kernel has no float64, and attention's no second derivative.
    model.get_base_model().set_experts_implementation("eager")
    model.set_attn_implementation("eager")
    batch = make_batch(2, 6, seed=0)
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    flat = torch.cat([p.detach().flatten() for p in trained.values()])

    def loss(vector):
        pieces = vector.split([p.numel() for p in trained.values()])
        values = {name: v.view_as(p) for (name, p), v in zip(trained.items(), pieces, strict=True)}
        logits = torch.func.functional_call(model, values, (), {"input_ids": batch["input_ids"]}).logits
        return torch.nn.functional.cross_entropy(
            logits[:, :-1].flatten(0, 1), batch["labels"][:, 1:].flatten()
        )

    truth = torch.autograd.functional.hessian(loss, flat)
    operator = HessianOperator(model, [batch])
    product = operator.matmat(torch.eye(operator.size, dtype=torch.float64))
    assert operator.note() is None
    assert (product - truth).norm() < DENSE64_FLOAT32_ISLANDS * truth.norm()
    assert truth.norm() > 0


def test_the_fused_kernel_gives_the_eigenvalue_of_the_plain_one():
    found = []
    for kernel in ("eager", "grouped_mm"):
        model = moved(methods.build(base_model("mixtral"), Setting(rank=1)))
        model.get_base_model().set_experts_implementation(kernel)
        found.append(sharpness(model, [make_batch(2, 6, seed=0)], rtol=RTOL_TIGHT).lambda_max)
    assert found[0] == pytest.approx(found[1], rel=DENSE32)


@pytest.mark.parametrize("name", sorted(methods.METHODS))
def test_a_method_adapts_the_experts_or_says_that_it_cannot(name):
    model, wanted = base_model("mixtral"), Setting(method=name, rank=2)
    if methods.METHODS[name].fused:
        methods.check(model, wanted)
        return
    with pytest.raises(
        RequestError, match=f"{name.replace('+', '.')} needs linear modules and cannot adapt"
    ) as caught:
        methods.check(model, wanted)
    assert "use one of lora, rslora, lora+, or name linear modules: --target-modules k_proj" in str(
        caught.value
    )
    linear = Setting(method=name, rank=2, target_modules=("q_proj", "o_proj"))
    methods.check(model, linear)


def test_more_rank_than_there_are_experts_is_taken_as_peft_takes_it():
    methods.check(base_model("mixtral"), Setting(rank=4))
    with pytest.raises(RequestError, match=r"rank 5 is larger than .*k_proj is wide"):
        methods.check(base_model("mixtral"), Setting(rank=5))


@pytest.mark.parametrize(
    ("family", "names", "message"),
    [
        (
            "qwen3_moe",
            ("gate_proj",),
            "'gate_proj' matches no linear module .*without also targeting up_proj",
        ),
        ("mixtral", ("w1", "w3", "v_prj"), "'v_prj' matches no linear module"),
        ("mixtral", ("w1", "w3", "embed_tokens"), "embed_tokens' matches no linear module"),
    ],
)
def test_a_name_that_peft_would_pass_over_is_refused(family, names, message):
    with pytest.raises(RequestError, match=message):
        methods.check(base_model(family), Setting(rank=2, target_modules=names))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("named", [False, True], ids=["all-linear", "experts alone"])
def test_a_saved_adapter_is_what_peft_loads(tmp_path, family, named):
    trained = moved(by_peft(family, target_modules=list(EXPERTS[family]) if named else "all-linear"))
    trained.save_pretrained(tmp_path)
    setting = Setting(peft_config=str(tmp_path))
    methods.check(base_model(family), setting)
    assert same_parameters(methods.build(base_model(family), setting), trained)
    assert set(setting.target_modules) > {"gate_up_proj", "down_proj"} or named


def one_for_each_expert(family, folder):
    """An adapter as it was saved when each expert was a module."""
    LoraConfig(r=2, lora_alpha=3, target_modules=list(EXPERTS[family])).save_pretrained(folder)
    inside = 12 if family == "mixtral" else 4
    last = EXPERTS[family][-1]
    tensors = {}
    for expert in range(3):
        for name in EXPERTS[family]:
            d_in, d_out = (inside, 8) if name == last else (8, inside)
            block = "block_sparse_moe" if family == "mixtral" else "mlp"
            prefix = f"base_model.model.model.layers.0.{block}.experts.{expert}.{name}"
            tensors[f"{prefix}.lora_A.weight"] = torch.randn(2, d_in)
            tensors[f"{prefix}.lora_B.weight"] = torch.randn(d_out, 2)
    return tensors


@pytest.mark.parametrize("family", FAMILIES)
def test_an_adapter_with_one_for_each_expert_is_what_peft_loads(tmp_path, family):
    tensors = one_for_each_expert(family, tmp_path)
    save_file(tensors, tmp_path / "adapter_model.safetensors")
    setting = Setting(peft_config=str(tmp_path))
    methods.check(base_model(family), setting)
    loaded = PeftModel.from_pretrained(base_model(family), tmp_path, is_trainable=True)
    assert same_parameters(methods.build(base_model(family), setting), loaded)


def test_an_adapter_of_other_experts_is_refused(tmp_path):
    tensors = one_for_each_expert("mixtral", tmp_path)
    few = {name: value for name, value in tensors.items() if ".experts.2." not in name}
    save_file(few, tmp_path / "adapter_model.safetensors")
    with pytest.raises(RequestError, match="the adapter belongs to another model"):
        methods.check(base_model("mixtral"), Setting(peft_config=str(tmp_path)))


@pytest.mark.parametrize("start", ["pissa", "olora", "orthogonal"])
def test_a_start_that_needs_linear_modules_is_refused(tmp_path, start):
    LoraConfig(r=2, target_modules="all-linear", init_lora_weights=start).save_pretrained(tmp_path)
    with pytest.raises(RequestError, match=f"init_lora_weights '{start}' needs linear modules"):
        methods.check(base_model("mixtral"), Setting(peft_config=str(tmp_path)))


@pytest.mark.parametrize("targets", [["q_proj", "gate"], ["w1", "w3"]], ids=["router", "experts alone"])
def test_the_closed_form_is_not_for_adapters_on_parameters(targets):
    """A router has a weight matrix, and gives more than its product with it."""
    built = methods.build(base_model("mixtral"), Setting(rank=2, target_modules=targets, method="lora"))
    with pytest.raises(RequestError, match=r"one B·A for each linear layer.* by a ParamWrapper layer"):
        closed_form(built, [make_batch(2, 8, 0)])
