"""density(): the spectrum of a model's Hessian, against its dense eigenvalues."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.stats import norm
from tiny_models import adapted, dense_hessian, make_batch

import hessian_lr as hlr
from hessian_lr.curvature import HessianOperator, plan
from hessian_lr.curvature.plan import Plan
from hessian_lr.errors import RequestError
from hessian_lr.measure import distribution
from hessian_lr.spectrum.basis import Basis

SAMPLE = [make_batch(2, 9, seed) for seed in range(2)]


def test_the_count_below_each_point_is_that_of_the_dense_hessian_within_its_band():
    model = adapted()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    state = torch.get_rng_state()
    found = hlr.density(model, SAMPLE, probes=8, steps=40, dtype=torch.float64)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())
    true = torch.linalg.eigvalsh(dense_hessian(model, SAMPLE)).numpy()
    assert (found.size, found.products) == (len(true), 320)
    exact = norm.cdf((np.array(found.grid)[:, None] - true) / found.width).sum(axis=1)
    # Four standard errors over the probes, and 1% of all for what 40 steps do not resolve.
    allowed = 4 * np.array(found.cumulative_error) + 0.01 * len(true)
    assert np.all(np.abs(np.array(found.cumulative) - exact) <= allowed)
    assert abs(found.trace - true.sum()) <= 4 * found.trace_error


def test_the_gauss_newton_matrix_has_no_eigenvalue_below_zero():
    found = hlr.density(adapted(), SAMPLE, operator="gauss-newton", probes=2, steps=20, dtype=torch.float64)
    assert min(min(nodes) for nodes in found.nodes) > -1e-9 * max(max(nodes) for nodes in found.nodes)


@pytest.mark.parametrize("operator", ["hessian", "gauss-newton"])
def test_probes_share_the_graphs_that_are_rebuilt_and_only_these(operator, monkeypatch):
    made, kind, model = [], distribution.OPERATORS[operator], adapted()

    def watched(*args, **options):
        made.append(kind(*args, **options))
        return made[-1]

    monkeypatch.setitem(distribution.OPERATORS, operator, watched)
    asked = {"operator": operator, "probes": 4, "steps": 6, "dtype": torch.float64}
    kept = hlr.density(model, SAMPLE, **asked)
    assert kept.products == 24, "none ended early"
    assert hlr.density(model, SAMPLE, **asked, memory_budget=0) == kept
    with monkeypatch.context() as patch:
        patch.setattr(Plan, "keeps", lambda _, index: index == 0)
        assert hlr.density(model, SAMPLE, **asked) == kept
    monkeypatch.setattr(distribution, "BASES_SHARE", 0.0)
    assert hlr.density(model, SAMPLE, **asked, memory_budget=0) == kept
    first = made[2].weights[0] / made[2].labels
    assert 0 < first < 1
    # A graph is built once, or once a step after one to measure it, or where there is no room for all bases
    # once a product.
    work = [1 + 24, first + 6 + 24, (1 + 24) + 6 * (1 - first), 24 + 24]
    assert [one.cost.gradient_equivalents for one in made] == pytest.approx(work)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"operator": "hesian"}, "hessian"),
        ({"probes": 1}, "probes"),
        ({"steps": 2.5}, "steps must be a whole number"),
        ({"seed": -1}, "seed"),
    ],
)
def test_requests_without_an_answer_are_refused(options, message):
    with pytest.raises(RequestError, match=message):
        hlr.density(adapted(), SAMPLE, **options)


@pytest.mark.parametrize(
    ("spare", "graph", "together", "built"),
    [(0, 0, True, True), (-1, 0, False, False), (10**7, 10**7, True, True), (10**7 - 1, 10**7, False, True)],
)
def test_bases_fill_a_quarter_of_what_is_free_beside_a_graph(spare, graph, together, built, monkeypatch):
    made, model = [], adapted()

    class Watched(HessianOperator):
        def __init__(self, *args, **options):
            super().__init__(*args, **options)
            made.append(self)
            self.widths = []

        def matmat(self, block):
            self.widths.append(block.shape[1])
            return super().matmat(block)

    size = sum(p.numel() for p in model.parameters() if p.requires_grad)
    monkeypatch.setitem(distribution.OPERATORS, "hessian", Watched)
    # Five vectors of each of three probes, in float64; what a graph takes is unknown before one is built.
    monkeypatch.setattr(distribution, "free_memory", lambda _: 4 * (3 * 5 * size * 8) + spare)
    taken = property(lambda _: graph if made[0].cost.gradient_equivalents else 0)
    monkeypatch.setattr(Plan, "largest", taken)
    hlr.density(model, SAMPLE, probes=3, steps=5, memory_budget=0)
    assert made[0].widths == ([3] * 5 if together else [1] * 15)
    first = made[0].weights[0] / made[0].labels
    assert made[0].cost.gradient_equivalents == pytest.approx(built * first + (20 if together else 30))


def test_the_plan_knows_what_the_largest_graph_takes_though_none_is_kept(monkeypatch):
    """From the first, of 8 tokens, what one of 30 takes."""
    used = iter(range(0, 10**9, 1000))
    monkeypatch.setattr(plan, "_used_memory", lambda _: next(used))
    operator = HessianOperator(adapted(), [make_batch(3, 4, 0), make_batch(2, 30, 1)], memory_budget=0)
    assert operator.plan.largest == 0
    assert operator.rebuilds() and operator.kept == 0
    assert operator.plan.largest == pytest.approx(1000 / 8 * 30)


def test_bases_have_the_room_that_was_reckoned_with(monkeypatch):
    rooms = []
    monkeypatch.setattr(Basis, "shorten", lambda self, count: rooms.append(self._store))
    hlr.density(adapted(), SAMPLE, probes=3, steps=5, memory_budget=0)
    assert [len(store) for store in rooms] == [5] * 3
