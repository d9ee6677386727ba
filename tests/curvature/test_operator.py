"""Products with H: exact, independent of how the sample is cut, and without a trace in the model."""

from __future__ import annotations

import itertools

import pytest
import torch
from tiny_models import ARCHITECTURES, adapted, dense_hessian, make_batch, random_vector
from tolerances import DENSE32, DENSE64, DENSE64_FLOAT32_ISLANDS, DIFFERENCES

from hessian_lr.curvature import (
    HessianOperator,
    PreconditionedOperator,
    count_labels,
    mean_loss,
)
from hessian_lr.curvature.microbatches import CLUSTERS
from hessian_lr.curvature.plan import MEMORY_SHARE, Plan
from hessian_lr.curvature.vectors import unflatten
from hessian_lr.errors import NonFiniteError, RequestError


def distance(found, truth):
    """‖found − truth‖ / ‖truth‖."""
    return float((found.double() - truth).norm() / truth.norm())


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("moved", [False, True], ids=["at-initialization", "moved"])
def test_products_match_the_dense_hessian(architecture, moved, batches):
    model = adapted(architecture, moved=moved)
    truth = dense_hessian(adapted(architecture, moved=moved), batches)
    operator = HessianOperator(model, batches)
    tolerance = DENSE64 if architecture == "gpt2" else DENSE64_FLOAT32_ISLANDS
    for seed in range(3):
        vector = random_vector(operator.size, seed)
        assert distance(operator.matvec(vector), truth @ vector) < tolerance


def test_float32_products_match_the_dense_hessian(batches):
    truth = dense_hessian(adapted(), batches)
    operator = HessianOperator(adapted(dtype=torch.float32), batches)
    vector = random_vector(operator.size)
    assert distance(operator.matvec(vector), truth @ vector) < DENSE32


def test_keeping_and_rebuilding_graphs_give_the_same_product_at_their_stated_cost(batches):
    keep = HessianOperator(adapted(), batches, memory_budget=10**12)
    rebuild = HessianOperator(adapted(), batches, memory_budget=0)
    vector = random_vector(keep.size)
    for _ in range(3):
        assert distance(keep.matvec(vector), rebuild.matvec(vector)) < DENSE64
    assert (keep.kept, rebuild.kept) == (len(keep.batches), 0)
    # Kept: one gradient to build the graph, then one for each product. Rebuilt: two for each.
    assert keep.cost.gradient_equivalents == pytest.approx(4)
    assert rebuild.cost.gradient_equivalents == pytest.approx(6)
    assert keep.cost.matvecs == rebuild.cost.matvecs == 3


def test_gradient_matches_central_differences_of_the_loss(batches):
    model = adapted()
    operator = HessianOperator(model, batches)
    direction = random_vector(operator.size)
    slope = float(operator.gradient() @ direction)

    def loss_at(step):
        for parameter, piece in zip(
            operator.parameters, unflatten(direction, operator.parameters), strict=True
        ):
            parameter.data.add_(step * piece)
        return mean_loss(model, batches)

    step = 1e-5
    difference = (loss_at(step) - loss_at(-2 * step)) / (2 * step)
    assert slope == pytest.approx(difference, rel=DIFFERENCES)
    assert operator.loss == pytest.approx(loss_at(step), rel=DENSE64)


def test_where_memory_holds_one_graph_the_others_are_rebuilt_for_the_same_product(batches, monkeypatch):
    graph, operators, calls = 1000, [], itertools.count(-1)

    def used(_device):
        # After the plan's first look: before a graph is built, after it, and as its keeping is decided.
        if (call := next(calls)) < 0:
            return 0
        return graph * (operators[0].kept + (call % 3 > 0))

    monkeypatch.setattr("hessian_lr.curvature.plan._used_memory", used)
    rows = [{name: value[:1] for name, value in batches[0].items()}] * 3
    monkeypatch.setattr("hessian_lr.curvature.loss_operator.microbatches", lambda sample, _device: sample)
    operators.append(HessianOperator(adapted(), rows, memory_budget=int(2.5 * graph)))
    operator, truth = operators[0], dense_hessian(adapted(), rows)
    for seed in range(3):
        vector = random_vector(operator.size, seed)
        assert distance(operator.matvec(vector), truth @ vector) < DENSE64
    assert operator.kept == 1 and "graphs of 2 of 3 microbatches rebuilt" in operator.note()
    # Three rows' graphs, then a product through each; two of them built again for the second and the third.
    assert operator.cost.gradient_equivalents == pytest.approx(1 + 3 + 2 * 2 / 3)


def test_of_a_graph_on_two_devices_each_has_a_share_of_its_own_memory(monkeypatch):
    """Each graph takes 10 bytes a token on the first device and 30 on the second, which has less to give."""
    first, second = torch.device("cpu"), torch.device("meta")
    free, taken, kept = {first: 5000, second: 4000}, {first: 10, second: 30}, []
    monkeypatch.setattr("hessian_lr.curvature.plan.free_memory", free.__getitem__)
    monkeypatch.setattr(
        "hessian_lr.curvature.plan._used_memory", lambda device: taken[device] * 10 * len(kept)
    )
    plan = Plan([first, second, first], dict.fromkeys(range(9), 10), None)
    assert plan.budget == pytest.approx(MEMORY_SHARE * 9000)
    for index in range(9):
        with plan.measure(index):
            kept.append(index)
        if not plan.keeps(index):
            kept.pop()
    # Of the second's 2400 bytes a graph takes 300, and one more must always fit.
    assert plan.bytes_per_token == 40 and len(kept) == 7
    assert "graphs of 2 of 9 microbatches rebuilt" in plan.note()


def test_the_split_the_order_and_the_padding_do_not_change_the_product(batches):
    rows = [
        {name: value[i : i + 1] for name, value in batch.items()}
        for batch in batches
        for i in range(len(batch["labels"]))
    ]
    padded = [
        {
            "input_ids": torch.nn.functional.pad(row["input_ids"], (4, 0), value=1),
            "attention_mask": torch.nn.functional.pad(row["attention_mask"], (4, 0), value=0),
            "labels": torch.nn.functional.pad(row["labels"], (4, 0), value=-100),
        }
        for row in rows
    ]
    for row in padded:
        row["position_ids"] = (row["attention_mask"].cumsum(-1) - 1).clamp(min=0)
    vector = random_vector(HessianOperator(adapted(), batches).size)
    expected = HessianOperator(adapted(), batches).matvec(vector)
    for sample in (rows, rows[::-1], padded):
        assert distance(HessianOperator(adapted(), sample).matvec(vector), expected) < DENSE64


def test_microbatch_forms_average_to_the_whole(batches):
    operator = HessianOperator(adapted(), batches)
    vector = random_vector(operator.size)
    whole = float(operator.matvec(vector) @ vector)
    mean = sum(w * f for w, f in zip(operator.weights, operator.batch_forms, strict=True)) / operator.labels
    assert mean == pytest.approx(whole)
    alone = HessianOperator(adapted(), operator.batches[:1])
    assert operator.batch_forms[0] == pytest.approx(float(alone.matvec(vector) @ vector))


@pytest.mark.parametrize("budget", [0, 10**12], ids=["rebuilt", "kept"])
def test_products_and_gradient_are_those_of_the_weights_as_they_are_now(budget, batches):
    model = adapted("llama")
    operator = HessianOperator(model, batches, dtype=torch.float64, memory_budget=budget)
    vector = torch.ones(operator.size, dtype=torch.float64)
    before = operator.matvec(vector)
    with torch.no_grad():
        for parameter in operator.parameters:
            parameter.mul_(1.5)
    fresh = HessianOperator(model, batches, dtype=torch.float64, memory_budget=budget)
    assert torch.equal(operator.gradient(), fresh.gradient())
    assert torch.equal(operator.matvec(vector), fresh.matvec(vector))
    assert operator.loss == fresh.loss
    assert not torch.allclose(before, fresh.matvec(vector))


@pytest.mark.parametrize("budget", [0, 10**12], ids=["rebuilt", "kept"])
def test_a_block_product_is_its_columns_products_and_builds_each_graph_once(budget, batches):
    truth = dense_hessian(adapted(), batches)
    operator = HessianOperator(adapted(), batches, memory_budget=budget)
    block = torch.stack([random_vector(operator.size, seed) for seed in range(3)], dim=1)
    assert distance(operator.matmat(block), truth @ block) < DENSE64
    assert operator.cost.gradient_equivalents == pytest.approx(1 + 3)
    assert operator.cost.matvecs == 3


def test_preconditioned_product_matches_the_dense_matrix(batches):
    truth = dense_hessian(adapted(), batches)
    diagonal = random_vector(len(truth), seed=5).abs() + 0.1
    root = torch.diag(diagonal.rsqrt())
    operator = PreconditionedOperator(HessianOperator(adapted(), batches), diagonal)
    vector = random_vector(len(truth))
    assert distance(operator.matvec(vector), root @ truth @ root @ vector) < DENSE64


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_the_model_is_left_as_it_was(attention, batches):
    model = adapted(dtype=torch.float32)
    model.set_attn_implementation(attention)
    model.train()
    model.get_base_model().lm_head.eval()
    modes = [module.training for module in model.modules()]
    weights = [p.detach().clone() for p in model.parameters()]
    state = torch.get_rng_state()
    flags = (torch.backends.cuda.flash_sdp_enabled(), torch.backends.cuda.math_sdp_enabled())
    operator = HessianOperator(model, batches)
    operator.matvec(random_vector(operator.size, dtype=torch.float32))
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(a, b) for a, b in zip(weights, model.parameters(), strict=True))
    assert all(p.grad is None for p in model.parameters())
    assert torch.equal(torch.get_rng_state(), state)
    assert flags == (torch.backends.cuda.flash_sdp_enabled(), torch.backends.cuda.math_sdp_enabled())
    assert model.config._attn_implementation == attention
    assert not model.get_base_model().lm_head._forward_pre_hooks


def test_a_small_sample_is_cut_into_its_rows_without_their_trailing_padding(batches):
    operator = HessianOperator(adapted(), batches)
    assert [tuple(batch["input_ids"].shape) for batch in operator.batches] == [
        (1, 9),
        (1, 9),
        (1, 10),
        (1, 12),
        (1, 12),
    ]


def test_rows_of_like_length_share_a_microbatch_and_the_product_stays():
    rows = [make_batch(1, tokens, seed=i) for i, tokens in enumerate([31, 20, 11] * 12)]
    joined = HessianOperator(adapted(), rows)
    assert CLUSTERS <= len(joined.batches) < len(rows)
    assert joined.tokens == 12 * (31 + 20 + 11)
    vector = random_vector(joined.size)
    apart = [HessianOperator(adapted(), [row]) for row in rows]
    expected = sum(o.labels * o.matvec(vector) for o in apart) / joined.labels
    assert distance(joined.matvec(vector), expected) < DENSE64


def test_only_labelled_positions_reach_the_output_head(batches):
    model = adapted()
    seen = []
    model.get_base_model().lm_head.register_forward_hook(lambda _m, _i, output: seen.append(output.shape[-2]))
    mean_loss(model, batches)
    assert seen == [count_labels(batch) for batch in batches]


def test_dropout_is_off_while_measuring(batches):
    model = adapted()
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.5
    model.train()
    operator = HessianOperator(model, batches)
    vector = random_vector(operator.size)
    assert distance(operator.matvec(vector), HessianOperator(adapted(), batches).matvec(vector)) < DENSE64


def test_a_batch_without_labels_is_refused_and_one_among_others_is_ignored(batches):
    blank = make_batch(1, 5, seed=3, unscored=5)
    with pytest.raises(RequestError, match="no token of these batches is labelled"):
        HessianOperator(adapted(), [blank])
    vector = random_vector(HessianOperator(adapted(), batches).size)
    with_blank = HessianOperator(adapted(), [blank, *batches]).matvec(vector)
    assert distance(with_blank, HessianOperator(adapted(), batches).matvec(vector)) < DENSE64


def test_a_model_without_trainable_parameters_is_refused(batches):
    model = adapted()
    model.requires_grad_(False)
    with pytest.raises(RequestError, match="no trainable parameter"):
        HessianOperator(model, batches)


def test_nan_weights_are_reported_not_returned(batches):
    model = adapted()
    next(p for p in model.parameters() if p.requires_grad).data[0, 0] = float("nan")
    operator = HessianOperator(model, batches)
    with pytest.raises(NonFiniteError, match="not finite"):
        operator.matvec(random_vector(operator.size))


def test_released_graphs_are_built_anew(batches):
    operator = HessianOperator(adapted(), batches, memory_budget=10**12)
    vector = random_vector(operator.size)
    before = operator.matvec(vector)
    operator.release()
    assert operator.kept == 0
    assert distance(operator.matvec(vector), before) < DENSE64
