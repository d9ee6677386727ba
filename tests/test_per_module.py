"""module_sharpness(): each module's own block, whatever the sample's cut, the memory, or the company."""

from __future__ import annotations

import dataclasses
import math

import peft
import pytest
import torch
from test_figures import Drawn, assert_readable
from tiny_models import ARCHITECTURES, adapted, base_model, dense_hessian, make_batch
from tolerances import DENSE32, DENSE64, DENSE64_FLOAT32_ISLANDS, RTOL_TIGHT, SAME_LAMBDA

import hessian_lr as hlr
from hessian_lr.adapter_modules import places
from hessian_lr.curvature import HessianOperator
from hessian_lr.curvature.loss import trainable
from hessian_lr.errors import RequestError
from hessian_lr.figure_style import save
from hessian_lr.module_figures import heatmap_figure, ratio_figure
from hessian_lr.per_module import ModuleSharpness, ModuleSpectrum, module_sharpness

TIGHT = {"rtol": RTOL_TIGHT, "max_products": 200}
KEEP, REBUILD = 10**12, 0


def cut(batches):
    """The microbatches that the sample is measured in."""
    return HessianOperator(adapted(), batches).batches


def values(spectrum):
    return {module.name: module.lambda_max for module in spectrum.modules}


def own_names(model, module):
    """The module's trainable parameters, found by their names alone."""
    return [n for n, p in model.named_parameters() if p.requires_grad and n.startswith(f"{module.name}.")]


def dense_blocks(model, batches, spectrum):
    """Eigenvalues of each module's diagonal block of the dense Hessian, ascending."""
    names = [name for name, p in model.named_parameters() if p.requires_grad]
    sizes = [p.numel() for p in model.parameters() if p.requires_grad]
    places_of = dict(zip(names, torch.arange(sum(sizes)).split(sizes), strict=True))
    own = {m.name: torch.cat([places_of[n] for n in own_names(model, m)]) for m in spectrum.modules}
    full = dense_hessian(model, batches)
    return {name: torch.linalg.eigvalsh(full[rows][:, rows]) for name, rows in own.items()}


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("moved", [False, True], ids=["at-initialization", "moved"])
def test_each_lambda_is_its_dense_blocks_largest_eigenvalue(architecture, moved, batches):
    found = module_sharpness(adapted(architecture, moved=moved), batches, **TIGHT)
    truth = dense_blocks(adapted(architecture, moved=moved), batches, found)
    assert len(found.modules) == (8 if architecture == "gpt2" else 14)
    noise = DENSE64 if architecture == "gpt2" else DENSE64_FLOAT32_ISLANDS
    for module in found.modules:
        block = truth[module.name]
        slack = noise * float(block.abs().max())
        assert module.status == "converged"
        assert module.parameters == len(block)
        # Some eigenvalue lies within the residual; it is the largest, or the residual says little.
        assert float(block[-1]) - module.residual - slack <= module.lambda_max <= float(block[-1]) + slack
        assert module.lambda_upper >= module.lambda_max
        assert module.lambda_min >= float(block[0]) - slack


def test_upper_ends_hold_as_often_as_they_say(batches):
    """95% each: of 160 at most 16 may fail (5% and three standard deviations of a binomial)."""
    useful = failed = 0
    for model_seed in range(4):
        truth = None
        for seed in range(5):
            model = adapted(seed=model_seed)
            found = module_sharpness(model, batches, rtol=1e-6, max_products=4, seed=seed)
            truth = truth or dense_blocks(adapted(seed=model_seed), batches, found)
            for module in found.modules:
                useful += module.lambda_upper < 10 * module.lambda_max
                failed += float(truth[module.name][-1]) > module.lambda_upper
    assert failed <= 16
    assert useful > 80


def test_float32_agrees_with_the_float64_blocks(batches):
    found = module_sharpness(adapted(dtype=torch.float32), batches, rtol=1e-3, max_products=200)
    for name, block in dense_blocks(adapted(), batches, found).items():
        slack = DENSE32 * float(block.abs().max())
        module = next(m for m in found.modules if m.name == name)
        assert abs(module.lambda_max - float(block[-1])) <= module.residual + slack


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_it_is_the_sharpness_of_a_model_in_which_only_that_module_trains(architecture, batches):
    found = module_sharpness(adapted(architecture), batches, **TIGHT)
    tolerance = SAME_LAMBDA if architecture == "gpt2" else DENSE64_FLOAT32_ISLANDS
    for module in found.modules:
        model = adapted(architecture)
        own = set(own_names(model, module))
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name in own)
        alone = hlr.sharpness(model, batches, **TIGHT)
        assert alone.parameters == module.parameters
        assert module.lambda_max == pytest.approx(alone.lambda_max, rel=tolerance)


def test_the_split_and_the_order_of_the_sample_do_not_matter(batches):
    expected = values(module_sharpness(adapted(), batches, **TIGHT))
    rows = [{n: v[i : i + 1] for n, v in b.items()} for b in batches for i in range(len(b["labels"]))]
    for sample in (rows, batches[::-1]):
        assert values(module_sharpness(adapted(), sample, **TIGHT)) == pytest.approx(
            expected, rel=SAME_LAMBDA
        )


def test_keeping_and_rebuilding_agree_and_a_note_tells_them_apart(batches):
    kept = module_sharpness(adapted(), batches, memory_budget=KEEP)
    rebuilt = module_sharpness(adapted(), batches, memory_budget=REBUILD)
    assert values(kept) == pytest.approx(values(rebuilt), rel=DENSE64)
    assert kept.matvecs == rebuilt.matvecs
    assert kept.notes == ()
    assert f"{len(cut(batches))} microbatches rebuilt for each step" in rebuilt.notes[0]
    # Kept: one gradient for the graphs. Rebuilt: one for each step, however many modules take part.
    steps = max(module.products for module in rebuilt.modules)
    assert rebuilt.gradient_equivalents - kept.gradient_equivalents == pytest.approx(steps - 1, abs=0.01)


def test_converged_modules_take_no_part_in_later_steps(batches, monkeypatch):
    calls = []
    grad = torch.autograd.grad

    def counting(outputs, inputs, grad_outputs=None, **options):
        if grad_outputs is not None:
            calls.append(tuple(inputs))
        return grad(outputs, inputs, grad_outputs, **options)

    monkeypatch.setattr(torch.autograd, "grad", counting)
    model = adapted()
    found = module_sharpness(model, batches, rtol=0.2, max_products=30)
    products = [module.products for module in found.modules]
    assert len(set(products)) > 1
    assert all(module.status == "converged" for module in found.modules)
    assert found.matvecs == sum(products)
    assert len(calls) == len(cut(batches)) * found.matvecs
    parameters = dict(model.named_parameters())
    for module in found.modules:
        own = {id(parameters[name]) for name in own_names(model, module)}
        mine = [call for call in calls if {id(p) for p in call} == own]
        assert len(mine) == len(cut(batches)) * module.products


def test_a_module_does_not_depend_on_its_company(batches):
    everyone = module_sharpness(adapted(), batches)
    model = adapted()
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(parameter.requires_grad and "c_attn" in name)
    few = module_sharpness(model, batches)
    assert [module.kind for module in few.modules] == ["c_attn", "c_attn"]
    among = {module.name: module for module in everyone.modules}
    for module in few.modules:
        assert module.products == among[module.name].products
        assert module.lambda_max == pytest.approx(among[module.name].lambda_max, rel=DENSE64)


def test_seeds_agree_to_the_stated_residual(batches):
    one, other = (module_sharpness(adapted(), batches, seed=seed, max_products=60) for seed in (0, 1))
    assert values(one) != values(other)
    for a, b in zip(one.modules, other.modules, strict=True):
        assert abs(a.lambda_max - b.lambda_max) <= a.residual + b.residual


def test_the_budget_is_said_and_the_bounds_still_hold(batches):
    found = module_sharpness(adapted(), batches, rtol=1e-6, max_products=2)
    assert {module.status for module in found.modules} == {"budget"}
    assert {module.products for module in found.modules} == {2}
    for name, block in dense_blocks(adapted(), batches, found).items():
        module = next(m for m in found.modules if m.name == name)
        assert module.lambda_max <= float(block[-1]) <= module.lambda_upper
        assert float((block - module.lambda_max).abs().min()) <= module.residual * (1 + DENSE64)


def test_products_of_later_modules_cost_less_and_autograd_does_less(batches):
    costs = []
    for wanted in ("h.0.attn.c_attn", "h.1.mlp.c_proj"):
        model = adapted()
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(parameter.requires_grad and wanted in name)
        operator = HessianOperator(model, batches, memory_budget=KEEP)
        operator.gradient()
        before = operator.cost.gradient_equivalents
        found = module_sharpness(model, batches, rtol=1e-6, max_products=3, memory_budget=KEEP)
        costs.append((found.gradient_equivalents - before) / 3)
    assert 0 < costs[1] < costs[0] < 1


def test_dora_magnitudes_belong_to_their_modules(batches):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        configuration = peft.LoraConfig(
            r=2, target_modules=["q_proj", "down_proj"], use_dora=True, task_type="CAUSAL_LM"
        )
        model = peft.get_peft_model(base_model("llama"), configuration).double()
    found = module_sharpness(model, batches)
    counts = {
        module.name: sum(dict(model.named_parameters())[n].numel() for n in own_names(model, module))
        for module in found.modules
    }
    assert {module.name: module.parameters for module in found.modules} == counts
    # A: 2 × 8, B: 8 × 2, magnitude: 8.
    assert next(m for m in found.modules if m.kind == "q_proj").parameters == 40
    assert sum(module.parameters for module in found.modules) == sum(p.numel() for p in trainable(model))


def test_parameters_that_several_modules_share_are_left_out_and_a_note_says_so(batches):
    model = adapted(moved=True)
    layers = [m for n, m in model.named_modules() if n.endswith("mlp.c_fc")]
    layers[1].lora_A = layers[0].lora_A
    found = module_sharpness(model, batches, rtol=1e-3, max_products=200)
    shared = sum(p.numel() for p in layers[0].lora_A.parameters())
    assert any(note.startswith(f"{shared} trainable parameters") for note in found.notes)
    only_b = sum(p.numel() for p in layers[0].lora_B.parameters())
    assert [m.parameters for m in found.modules if m.kind == "c_fc"] == [only_b, only_b]


def test_a_module_that_the_loss_does_not_depend_on_has_zero(batches):
    model = adapted()
    layer = next(m for n, m in model.named_modules() if n.endswith("h.0.mlp.c_fc"))
    layer.set_scale("default", 0.0)
    found = module_sharpness(model, batches)
    dead = next(m for m in found.modules if m.name.endswith("h.0.mlp.c_fc"))
    assert (dead.lambda_max, dead.residual, dead.status) == (0.0, 0.0, "converged")
    assert all(m.lambda_max > 0 for m in found.modules if m is not dead)


def test_the_model_and_the_random_state_are_left_as_they_were(batches):
    model = adapted(dtype=torch.float32)
    model.train()
    model.get_base_model().lm_head.eval()
    modes = [module.training for module in model.modules()]
    weights = [p.detach().clone() for p in model.parameters()]
    asked = [p.requires_grad for p in model.parameters()]
    state = torch.get_rng_state()
    module_sharpness(model, batches, max_products=2)
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(a, b) for a, b in zip(weights, model.parameters(), strict=True))
    assert [p.requires_grad for p in model.parameters()] == asked
    assert all(p.grad is None for p in model.parameters())
    assert torch.equal(torch.get_rng_state(), state)
    assert not model.get_base_model().lm_head._forward_pre_hooks


def test_it_writes_itself_and_reads_itself_back(batches, tmp_path):
    found = module_sharpness(adapted(), batches, max_products=2)
    found.write(tmp_path / "modules.json")
    assert ModuleSpectrum.read(tmp_path / "modules.json") == found
    assert found.loss == pytest.approx(hlr.sharpness(adapted(), batches).loss)
    assert found.tokens == sum(b["input_ids"].numel() for b in cut(batches))
    assert found.seconds > 0
    assert found.peak_rss_bytes > 10**7


def test_progress_counts_every_product_and_the_modules_that_are_done(batches):
    seen = []
    found = module_sharpness(adapted(), batches, rtol=0.2, progress=lambda *told: seen.append(told))
    assert len(seen) == len(cut(batches)) * found.matvecs
    done = [told[0] for told in seen]
    assert done == sorted(done)
    assert done[0] == 0 < done[-1] < len(found.modules)
    assert seen[0] == (0, 8, f"step 1: {found.modules[0].name}")


def test_nan_weights_fail_with_a_reason_and_without_a_number(batches):
    model = adapted()
    next(p for p in model.parameters() if p.requires_grad).data[0, 0] = math.nan
    found = module_sharpness(model, batches)
    assert {module.status for module in found.modules} == {"failed"}
    assert all(m.lambda_max is m.lambda_upper is m.residual is None for m in found.modules)
    assert found.loss is None
    assert "not finite" in found.notes[0]


def test_a_failure_midway_keeps_what_had_converged(batches):
    whole = module_sharpness(adapted(), batches, rtol=0.2)
    steps = sorted({module.products for module in whole.modules})

    def no_memory(_done, _modules, where):
        if where.startswith(f"step {steps[-1]}:"):
            raise MemoryError

    found = module_sharpness(adapted(), batches, rtol=0.2, progress=no_memory)
    for module, full in zip(found.modules, whole.modules, strict=True):
        if full.products < steps[-1]:
            assert module == full
        else:
            assert (module.status, module.lambda_max) == ("failed", None)
    assert len(found.notes) == 1 and found.notes[0].startswith("out of memory on cpu")


def test_wrong_requests_are_refused(batches):
    with pytest.raises(RequestError, match="rtol"):
        module_sharpness(adapted(), batches, rtol=0)
    with pytest.raises(RequestError, match="max_products"):
        module_sharpness(adapted(), batches, max_products=0)
    with pytest.raises(RequestError, match="no token of these batches is labelled"):
        module_sharpness(adapted(), [make_batch(1, 5, seed=3, unscored=5)])
    model = adapted()
    model.requires_grad_(False)
    with pytest.raises(RequestError, match="no trainable parameter"):
        module_sharpness(model, batches)
    with pytest.raises(RequestError, match="belongs to one adapted module"):
        module_sharpness(base_model("gpt2"), batches)


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (
            ["model.layers.0.self_attn.q_proj", "model.layers.11.mlp.up_proj", "lm_head"],
            [(0, "q_proj"), (11, "up_proj"), (None, "lm_head")],
        ),
        (
            ["transformer.h.0.attn.c_proj", "transformer.h.0.mlp.c_proj", "transformer.h.0.mlp.c_fc"],
            [(0, "attn.c_proj"), (0, "mlp.c_proj"), (0, "c_fc")],
        ),
        (
            ["layers.2.experts.0.w1", "layers.2.experts.1.w1", "layers.3.experts.1.w1"],
            [(2, "0.w1"), (2, "1.w1"), (3, "1.w1")],
        ),
        (["h.0.fc", "h.0.mlp.fc"], [(0, "fc"), (0, "mlp.fc")]),
    ],
)
def test_layer_and_kind_are_read_from_the_name(names, expected):
    assert places(names) == expected


KINDS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def made_up(seed=0, scale=1.0, layers=30, kinds=KINDS, **changed):
    """A spectrum without a model: λ spread over two decades."""
    draw = torch.Generator().manual_seed(seed)
    modules = [
        ModuleSharpness(
            name=f"layers.{layer}.{kind}",
            layer=layer,
            kind=kind,
            parameters=10,
            lambda_max=scale * 10 ** float(torch.randn((), generator=draw)),
            lambda_upper=None,
            lambda_min=None,
            residual=0.0,
            status="converged",
            products=3,
        )
        for layer in range(layers)
        for kind in kinds
    ]
    modules[0] = dataclasses.replace(modules[0], **changed)
    return ModuleSpectrum(tuple(modules), 0.95, 3 * len(modules), 1.0, 1.0, 1, 1.0, 1)


@pytest.fixture
def drawn():
    return Drawn()


SPECTRA = {
    "thirty layers": made_up(),
    "two layers, two kinds": made_up(layers=2, kinds=("q_proj", "mlp.c_proj")),
    "a hundred layers": made_up(layers=100),
    "one that stopped early": made_up(status="budget"),
}


@pytest.mark.parametrize("narrow", [False, True])
@pytest.mark.parametrize("case", SPECTRA)
def test_heatmap_is_readable(drawn, case, narrow):
    drawn(heatmap_figure(SPECTRA[case], narrow=narrow))
    assert_readable(drawn[0])


@pytest.mark.parametrize("scale", [1e-4, 0.3, 7.0])
def test_even_a_single_value_has_a_tick_to_read_it_by(drawn, scale):
    drawn(heatmap_figure(made_up(layers=1, kinds=("q_proj",), scale=scale)))
    axis = drawn[0].axes[1].yaxis
    low, high = axis.get_view_interval()
    assert any(low <= place <= high for place in axis.get_majorticklocs())


def test_heatmap_shows_every_value_in_its_place_and_frames_the_largest(drawn):
    spectrum = made_up(lambda_max=1e4)
    drawn(heatmap_figure(spectrum))
    axes = drawn[0].axes[0]
    (mesh,) = axes.collections
    shown = mesh.get_array().reshape(30, 7)
    for module in spectrum.modules:
        assert shown[module.layer, KINDS.index(module.kind)] == module.lambda_max
    assert [label.get_text() for label in axes.get_xticklabels()] == list(KINDS)
    (frame,) = axes.patches
    assert frame.get_xy() == (0, 0)
    assert "layer 0, q_proj" in drawn[0]._supxlabel.get_text()
    assert axes.yaxis_inverted()


def test_heatmap_leaves_blank_what_has_no_logarithm_and_marks_what_stopped_early(drawn):
    drawn(heatmap_figure(made_up(lambda_max=-1.0)))
    drawn(heatmap_figure(made_up(lambda_max=None, status="failed")))
    drawn(heatmap_figure(made_up(status="budget")))
    for figure in drawn[:2]:
        assert bool(figure.axes[0].collections[0].get_array().mask.reshape(30, 7)[0, 0])
        assert not figure.axes[0].lines
    assert drawn[2].axes[0].lines[0].get_xydata().tolist() == [[0.5, 0.5]]
    assert "limit" in drawn[2]._supxlabel.get_text()


@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_ratio_figure_is_readable(drawn, count):
    spectra = {method: made_up(i, 4.0) for i, method in enumerate(("pissa", "milora", "olora", "rslora"))}
    drawn(ratio_figure(dict(list(spectra.items())[:count]), made_up(9)))
    assert_readable(drawn[0])
    assert sum(axes.axison for axes in drawn[0].axes) == count


def test_ratios_are_of_the_same_module_and_their_median_stands_above(drawn):
    drawn(ratio_figure({"pissa": made_up(1, 5.0)}, made_up(1), published={"pissa": {"k_proj": 8.5}}))
    axes = drawn[0].axes[0]
    assert axes.get_title(loc="left") == "pissa  (median 5×)"
    points = [line for line in axes.lines if line.get_marker() == "o"]
    assert sum(len(line.get_ydata()) for line in points) == 210
    assert all(value == pytest.approx(5.0) for line in points for value in line.get_ydata())
    (theirs,) = [line for line in axes.lines if line.get_marker() == "D"]
    assert theirs.get_ydata()[0] == 8.5
    assert 1 < theirs.get_xdata()[0] < 1.5


def test_a_pair_without_two_positive_values_is_left_out(drawn):
    drawn(ratio_figure({"pissa": made_up(1, lambda_max=-2.0)}, made_up(2)))
    drawn(ratio_figure({"pissa": made_up(1)}, made_up(2, lambda_max=None)))
    for figure in drawn:
        points = [line for line in figure.axes[0].lines if line.get_marker() == "o"]
        assert sum(len(line.get_ydata()) for line in points) == 209


def test_figures_are_written_twice_alike_as_svg_and_png(tmp_path):
    for draw in (
        lambda: heatmap_figure(made_up()),
        lambda: ratio_figure({"pissa": made_up(1)}, made_up()),
    ):
        first, second = save(draw(), tmp_path / "a" / "smollm2.svg"), save(draw(), tmp_path / "b" / "smollm2")
        assert [path.name for path in first] == ["smollm2.svg", "smollm2.png"]
        assert [path.read_bytes() for path in first] == [path.read_bytes() for path in second]


def test_nothing_to_draw_is_said():
    with pytest.raises(RequestError, match="nothing to draw"):
        heatmap_figure(made_up(layers=1, kinds=("lm_head",), lambda_max=-1.0))
    with pytest.raises(RequestError, match="at least one method"):
        ratio_figure({}, made_up())
    with pytest.raises(RequestError, match="no module with a positive eigenvalue in both"):
        ratio_figure({"pissa": made_up(kinds=("fc",))}, made_up())
