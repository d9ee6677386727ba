"""density(): the spectrum of a model's Hessian, against its dense eigenvalues."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.stats import norm
from tiny_models import adapted, dense_hessian, make_batch

import hessian_lr as hlr
from hessian_lr.curvature.plan import Plan
from hessian_lr.errors import RequestError
from hessian_lr.measure import distribution

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
    others = 1 - made[2].weights[0] / made[2].labels
    assert 0 < others < 1
    # A graph is built once, or once a step, or where there is no room for all bases once a product.
    work = [1 + 24, 6 + 24, (1 + 24) + 6 * others, 24 + 24]
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
