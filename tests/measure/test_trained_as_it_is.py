"""Unusual attention, compiled code, optimizers and adapters: measured as they are, or refused."""

import copy

import pytest
import torch
from accelerate import Accelerator
from peft import C3AConfig, LilyConfig, LoraConfig, OSFConfig, get_peft_model
from peft.optimizers import create_loraplus_optimizer
from tiny_models import adapted, base_model, dense_hessian, make_batch
from tolerances import DEFAULT_LAMBDA, DENSE64
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface, eager_mask
from transformers.models.llama.modeling_llama import eager_attention_forward

import hessian_lr as hlr
from hessian_lr.curvature.closed_form import closed_form
from hessian_lr.curvature.modes import differentiable_attention
from hessian_lr.curvature.vectors import displaced, flatten
from hessian_lr.errors import RequestError
from hessian_lr.methods import build
from hessian_lr.setting import Setting

SAMPLE = [make_batch(3, 10, 1), make_batch(3, 10, 2)]
TIGHT = {"dtype": torch.float64, "rtol": 1e-6, "max_products": 200}


def _sharper(module, query, key, value, mask, scaling, **more):
    return eager_attention_forward(module, query, key, value, mask, scaling=4 * scaling, dropout=0.0)


@pytest.mark.parametrize("name", ["four times as sharp", "flexible"])
def test_an_attention_of_ones_own_is_the_one_that_is_measured(name):
    AttentionInterface.register(name, _sharper)
    AttentionMaskInterface.register(name, eager_mask)
    own, same = (adapted("llama") for _ in range(2))
    own.get_base_model().set_attn_implementation(name)
    same.get_base_model().set_attn_implementation("eager")
    for layer in same.get_base_model().model.layers:
        layer.self_attn.scaling *= 4
    found, expected = (hlr.sharpness(model, SAMPLE, **TIGHT) for model in (own, same))
    assert found.lambda_max == pytest.approx(expected.lambda_max, rel=DENSE64)
    assert own.get_base_model().config._attn_implementation == name


@pytest.mark.parametrize(
    "name", ["flash_attention_2", "flex_attention", "paged|eager", "kernels-community/flash-attn2"]
)
def test_fused_attention_gives_way_to_eager_and_is_back_afterwards(name, monkeypatch):
    model = adapted("llama").get_base_model()

    def set_to(to):
        model.config._attn_implementation_internal = to

    set_to(name)
    # transformers itself would look for the kernel.
    monkeypatch.setattr(model, "set_attn_implementation", set_to)
    with differentiable_attention(model):
        assert model.config._attn_implementation == "eager"
    assert model.config._attn_implementation == name


@pytest.mark.parametrize("operator", ["hessian", "gauss-newton", "central-differences"])
@pytest.mark.parametrize("how", ["whole", "in place", "forward", "layers"])
def test_a_compiled_model_is_measured_as_it_was_before(how, operator):
    model = adapted("llama", torch.float32)
    if how == "whole":
        model = torch.compile(model, backend="eager")
    if how == "in place":
        model.compile(backend="eager")
    # By its forward alone, as transformers' guide to generation has it.
    for part in {"forward": [model], "layers": model.get_base_model().model.layers}.get(how, ()):
        part.forward = torch.compile(part.forward, backend="eager")
    before = model(**SAMPLE[0]).loss.detach()
    found = hlr.sharpness(model, SAMPLE, operator=operator)
    assert (
        found.lambda_max
        == hlr.sharpness(adapted("llama", torch.float32), SAMPLE, operator=operator).lambda_max
    )
    assert torch.equal(model(**SAMPLE[0]).loss.detach(), before)


def _trained(make, **more):
    """A model after three steps of an optimizer, the first gradient ten times as large, and its P."""
    model = adapted("llama")
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = make(parameters, lr=1e-3, **more)
    for step in range(3):
        optimizer.zero_grad()
        (model(**SAMPLE[0], use_cache=False).loss * (1 if step else 10)).backward()
        before = [p.detach().clone() for p in parameters]
        optimizer.step()
    optimizer.zero_grad()
    moved = torch.cat([(b - p.detach()).flatten() for b, p in zip(before, parameters, strict=True)])
    first = torch.cat([optimizer.state[p]["exp_avg"].flatten() for p in parameters])
    return model, optimizer, first * 1e-3 / moved


@pytest.mark.parametrize("amsgrad", [False, True])
def test_lambda_p_is_that_of_the_step_that_the_optimizer_took(amsgrad):
    model, optimizer, p = _trained(torch.optim.AdamW, weight_decay=0.0, amsgrad=amsgrad, betas=(0.9, 0.5))
    tracker = hlr.SharpnessTracker(SAMPLE, dtype=torch.float64, products=40)
    for _ in range(2):
        found = tracker.update(model, 3, optimizer).lambda_preconditioned
    root = p.rsqrt()
    expected = torch.linalg.eigvalsh(root[:, None] * dense_hessian(copy.deepcopy(model), SAMPLE) * root)[-1]
    assert found == pytest.approx(float(expected), rel=1e-5)


@pytest.mark.parametrize("make", [torch.optim.RAdam, torch.optim.NAdam])
def test_what_is_nearly_adam_has_another_geometry(make):
    model, optimizer, _ = _trained(make)
    with pytest.raises(RequestError, match=f"which {make.__name__} does not have"):
        hlr.SharpnessTracker(SAMPLE, dtype=torch.float64).update(model, 3, optimizer)


def _stepped(make):
    model = adapted("llama")
    optimizer = make(model)
    model(**SAMPLE[0], use_cache=False).loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    return model, optimizer


def test_a_subclass_of_adamw_with_a_step_of_its_own_has_another_geometry():
    """As PEFT's Riemannian one, which first multiplies gradients by their factors' inverses."""

    class Riemannian(torch.optim.AdamW):
        def step(self, closure=None):
            for p in self.param_groups[0]["params"]:
                if p.grad is not None:
                    p.grad.mul_(2)
            return super().step(closure)

    model, optimizer = _stepped(lambda model: Riemannian(model.parameters()))
    with pytest.raises(RequestError, match="which Riemannian does not have"):
        hlr.SharpnessTracker(SAMPLE, dtype=torch.float64).update(model, 1, optimizer)


def test_adamw_counts_as_itself_whoever_made_it():
    def loraplus(model):
        return create_loraplus_optimizer(model, torch.optim.AdamW, lr=1e-3, loraplus_lr_ratio=1)

    def accelerated(model):
        return Accelerator(cpu=True).prepare_optimizer(loraplus(model))

    class Renamed(torch.optim.AdamW):
        pass

    def renamed(model):
        return Renamed(model.parameters(), lr=1e-3, weight_decay=0.0)

    found = []
    for make in (loraplus, accelerated, renamed):
        model, optimizer = _stepped(make)
        tracker = hlr.SharpnessTracker(SAMPLE, dtype=torch.float64)
        found.append(tracker.update(model, 1, optimizer).lambda_preconditioned)
    assert found[0] > 0 and found == pytest.approx([found[0]] * 3, rel=DENSE64)


@pytest.mark.parametrize(
    "measure",
    [
        lambda model: hlr.sharpness(model, SAMPLE, operator="central-differences").lambda_max,
        lambda model: hlr.predict_learning_rate(model, SAMPLE, predictor="adam").lr,
    ],
)
def test_an_optimizer_that_steps_in_the_backward_pass_does_not_step(measure):
    expected = measure(adapted("llama", torch.float32))
    model = adapted("llama", torch.float32)
    before = [p.detach().clone() for p in model.parameters()]
    stepped = []
    for parameter in filter(lambda p: p.requires_grad, model.parameters()):
        optimizer = torch.optim.SGD([parameter], lr=0.1)

        def step(p, optimizer=optimizer):
            optimizer.step()
            p.grad = None
            stepped.append(p)

        parameter.register_post_accumulate_grad_hook(step)
    assert measure(model) == expected and not stepped
    assert all(torch.equal(p, value) for p, value in zip(model.parameters(), before, strict=True))
    model(**SAMPLE[0]).loss.backward()
    assert stepped


def _in_two_groups():
    """A model, AdamW with a group for each factor, its step, and λ_P from the dense Hessian and its state."""
    model = adapted("llama")
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    first, second = ([p for name, p in named if ("lora_A" in name) is which] for which in (True, False))
    optimizer = torch.optim.AdamW([{"params": first, "lr": 1e-4}, {"params": second, "lr": 1.6e-3}])

    def step():
        optimizer.zero_grad()
        model(**SAMPLE[0], use_cache=False).loss.backward()
        optimizer.step()

    def truth():
        eta = next(group["lr"] for group in optimizer.param_groups if group["lr"])
        roots = []
        for _, p in named:
            (group,) = (one for one in optimizer.param_groups if any(p is q for q in one["params"]))
            (beta1, beta2), state = group["betas"], optimizer.state[p]
            t = int(state["step"])
            scale = (1 - beta1**t) * ((state["exp_avg_sq"] / (1 - beta2**t)).sqrt() + group["eps"])
            roots.append((group["lr"] / eta / scale).sqrt().reshape(-1))
        root = torch.cat(roots)
        return float(torch.linalg.eigvalsh(root[:, None] * dense_hessian(model, SAMPLE) * root)[-1])

    return model, optimizer, step, truth


def test_the_present_rates_of_groups_count_where_a_schedule_does_not_scale_them_alike():
    model, optimizer, step, truth = _in_two_groups()
    # Down to one rate for both.
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=3, eta_min=1e-4)
    for _ in range(3):
        step()
        schedule.step()
    tracker = hlr.SharpnessTracker(SAMPLE, dtype=torch.float64, products=40)
    for _ in range(2):
        found = tracker.update(model, 3, optimizer).lambda_preconditioned
    assert found == pytest.approx(truth(), rel=1e-5)


def test_groups_that_take_turns_are_tracked():
    model, optimizer, step, truth = _in_two_groups()
    tracker = hlr.SharpnessTracker(SAMPLE, dtype=torch.float64)
    for turn in range(3):
        for index, group in enumerate(optimizer.param_groups):
            group["lr"] = 1e-4 * (index == turn % 2)
        step()
        found = tracker.update(model, turn, optimizer).lambda_preconditioned
        assert found == pytest.approx(truth(), rel=0.05)


def test_groups_at_a_rate_of_nothing():
    model = adapted("llama")
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    first, second = ([p for name, p in named if ("lora_A" in name) is which] for which in (True, False))
    optimizer = torch.optim.AdamW([{"params": first, "lr": 1e-3}, {"params": second, "lr": 1.6e-2}])
    model(**SAMPLE[0], use_cache=False).loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    optimizer.param_groups[0] |= {"lr": 0.0, "initial_lr": 1e-3}
    tracker = hlr.SharpnessTracker(SAMPLE, dtype=torch.float64, products=40)
    for _ in range(2):
        found = tracker.update(model, 1, optimizer).lambda_preconditioned
    # What stands still has no part in it: the other group's own λ_P, at its own rate.
    for p in first:
        p.requires_grad_(False)
    alone = hlr.SharpnessTracker(SAMPLE, dtype=torch.float64, products=40)
    for _ in range(2):
        expected = alone.update(model, 1, optimizer).lambda_preconditioned
    assert found == pytest.approx(expected, rel=1e-5)
    for p in first:
        p.requires_grad_(True)
    optimizer.param_groups[1]["lr"] = 0.0
    del optimizer.param_groups[0]["initial_lr"]
    with pytest.raises(RequestError, match="2 groups all have a learning rate of 0"):
        hlr.SharpnessTracker(SAMPLE, dtype=torch.float64).update(model, 1, optimizer)
    for group, rate in zip(optimizer.param_groups, (1e-3, 1.6e-2), strict=True):
        group["initial_lr"] = rate
    hlr.SharpnessTracker(SAMPLE, dtype=torch.float64).update(model, 1, optimizer)


def test_the_closed_form_is_of_the_layers_that_the_active_adapter_is_on():
    torch.manual_seed(0)
    model = get_peft_model(base_model("llama"), LoraConfig(r=2, target_modules=["q_proj"]))
    model.add_adapter("other", LoraConfig(r=2, target_modules=["v_proj"]))
    model.set_adapter("other")
    found = closed_form(model.double(), SAMPLE, dtype=torch.float64)
    exact = hlr.sharpness(model, SAMPLE, **TIGHT).lambda_max
    # Both lower ends are Ritz values of their own: λ itself lies above either, by as much as is asked for.
    assert found.lower <= exact * (1 + TIGHT["rtol"]) and exact <= found.upper * (1 + DENSE64)
    assert "v_proj" in found.module


def _with_dora(kind):
    setting = Setting(method=kind, rank=2, alpha=2, seed=0)
    return build(base_model("llama").requires_grad_(False), setting)


@pytest.mark.parametrize(("kind", "told"), [("dora", True), ("dora-exact", False), ("lora", False)])
@pytest.mark.parametrize("operator", ["hessian", "central-differences"])
def test_that_a_weight_norm_is_held_is_told_with_the_curvature(kind, told, operator):
    # That products and differences are then of two matrices stands in test_methods_derivatives.py.
    found = hlr.sharpness(_with_dora(kind), SAMPLE, operator=operator, max_products=2)
    assert any("PEFT's DoRA holds" in note for note in found.notes) is told


def test_a_dora_that_is_not_active_holds_nothing():
    model = get_peft_model(base_model("llama"), LoraConfig(r=2, target_modules=["q_proj"], use_dora=True))
    model.add_adapter("plain", LoraConfig(r=2, target_modules=["q_proj"]))
    for adapter, told in (("default", True), ("plain", False)):
        model.set_adapter(adapter)
        notes = hlr.module_sharpness(model, SAMPLE, max_products=1).notes
        assert any("PEFT's DoRA holds" in note for note in notes) is told


def test_an_adapter_that_is_merged_in_part_is_told():
    model = adapted("llama", torch.float32)
    assert not any("merged" in note for note in hlr.sharpness(model, SAMPLE).notes)
    model.get_base_model().model.layers[0].self_attn.q_proj.merge()
    found = hlr.sharpness(model, SAMPLE)
    assert any("1 of 14 adapted modules are merged into their weights" in note for note in found.notes)


def _with_peft(config):
    model = get_peft_model(base_model("llama"), config)
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(0)
        for parameter in model.parameters():
            parameter += 0.3 * torch.randn_like(parameter) * parameter.requires_grad
    return model


def test_that_lily_mixes_rows_is_told_and_no_fault_of_the_models():
    model = _with_peft(LilyConfig(r=2, target_modules=["q_proj", "v_proj"]))
    ids = SAMPLE[0]["input_ids"]
    with torch.no_grad():
        together, alone = model(input_ids=ids).logits[:1], model(input_ids=ids[:1]).logits
    assert not torch.allclose(together, alone, atol=1e-3)
    assert any("Lily takes a mean over all tokens" in note for note in hlr.sharpness(model, SAMPLE).notes)


@pytest.mark.parametrize(
    ("config", "right"),
    [
        (LoraConfig(r=2, target_modules=["q_proj", "v_proj"]), True),
        (C3AConfig(block_size=4, target_modules=["q_proj", "v_proj"]), False),
    ],
)
def test_that_c3a_has_a_wrong_derivative_is_told(config, right):
    model = _with_peft(config).double()
    embedded = model.get_input_embeddings()(SAMPLE[0]["input_ids"]).detach().requires_grad_()
    along = 1e-3 * torch.randn(embedded.shape, generator=torch.Generator().manual_seed(0))
    (slope,) = torch.autograd.grad(model(inputs_embeds=embedded).logits.square().mean(), embedded)
    with torch.no_grad():
        up, down = (model(inputs_embeds=embedded + sign * along).logits.square().mean() for sign in (1, -1))
    # Once C3A is right here, PEFT has mended it, and the note may go.
    assert (float((slope * along).sum()) == pytest.approx(float(up - down) / 2, rel=DEFAULT_LAMBDA)) is right
    notes = hlr.sharpness(model.float(), SAMPLE).notes
    assert any("C3A gives the layers below it a wrong" in note for note in notes) is not right


@pytest.mark.parametrize(
    ("config", "right"),
    [
        (LoraConfig(r=2, target_modules=["v_proj"]), True),
        (OSFConfig(effective_rank=2, target_modules=["v_proj"]), False),
    ],
)
def test_that_osf_projects_its_gradients_is_told(config, right):
    model = _with_peft(config).double()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]

    def loss():
        return model(input_ids=SAMPLE[0]["input_ids"]).logits.square().mean()

    generator = torch.Generator().manual_seed(0)
    along = torch.cat([1e-4 * torch.randn(p.numel(), generator=generator) for p in trained])
    slope = flatten(torch.autograd.grad(loss(), trained))
    with torch.no_grad(), displaced(trained, along, 1):
        up = float(loss())
    with torch.no_grad(), displaced(trained, along, -1):
        down = float(loss())
    assert (float(slope @ along.double()) == pytest.approx((up - down) / 2, rel=DEFAULT_LAMBDA)) is right
    notes = hlr.sharpness(model.float(), SAMPLE, max_products=2).notes
    assert any("PEFT's OSF projects" in note for note in notes) is not right
