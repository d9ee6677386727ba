"""Following λ along a run, against the dense Hessian at every update."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch
from tiny_models import adapted, counting_batch, dense_hessian

from hessian_lr.curvature import Cost, HessianOperator
from hessian_lr.errors import NonFiniteError, RequestError
from hessian_lr.measure import SharpnessTracker, TrackedSharpness
from hessian_lr.spectrum import lanczos

SAMPLE = [counting_batch(4, 1, seed=1), counting_batch(3, 1, seed=2)]
UPDATES = 10


@pytest.fixture(scope="module", params=[2, 4], ids="every {} steps".format)
def moments(request):
    """Of a model in training, at the start and every 2 or 4 AdamW steps: the step, weights and true λ."""
    model, found = adapted(), []
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    for step in range(request.param * UPDATES + 1):
        if step % request.param == 0:
            found.append((step, copy.deepcopy(model.state_dict()), truth_of(model)))
        model(**counting_batch(8, 1, seed=1000 + step), use_cache=False).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return found


def truth_of(model):
    # Of a copy, because the oracle exchanges the model's activations.
    return float(torch.linalg.eigvalsh(dense_hessian(copy.deepcopy(model), SAMPLE))[-1])


def cold_start(model, products):
    operator = HessianOperator(model, SAMPLE, dtype=torch.float64)
    options = {"rtol": 1e-12, "max_products": products, "dtype": torch.float64}
    return max(lanczos(operator.matvec, operator.size, seed=seed, **options).value for seed in range(3))


# λ nearly triples over these runs. Largest error over all updates that is allowed, and the median.
@pytest.mark.parametrize("products", [2, 3])
def test_tracked_values_follow_the_dense_hessian_where_cold_starts_do_not(moments, products):
    worst, median = 0.01, 0.005
    tracker, model = SharpnessTracker(SAMPLE, products=products, dtype=torch.float64), adapted()
    warm, cold = [], []
    for step, weights, truth in moments:
        model.load_state_dict(weights)
        found = tracker.update(model, step)
        assert found.step == step
        assert found.lambda_max <= truth * (1 + 1e-9)
        if step:
            assert products <= found.matvecs <= 3 * products
            # As long as it is due, and no longer.
            assert found.residual <= 0.03 * found.lambda_max or found.matvecs == 3 * products
            warm.append(1 - found.lambda_max / truth)
            cold.append(1 - cold_start(model, found.matvecs) / truth)
    truths = [truth for _, _, truth in moments]
    assert max(truths) > 2 * min(truths)
    warm.sort()
    cold.sort()
    assert warm[-1] <= worst
    assert warm[UPDATES // 2] <= median
    # Even the best of three cold starts of the same price is further off.
    assert cold[UPDATES // 2] > 2 * warm[UPDATES // 2]


@pytest.mark.parametrize("fresh", [True, False])
def test_the_random_component_finds_a_larger_eigenvalue_than_the_one_followed(fresh, monkeypatch):
    if not fresh:
        monkeypatch.setattr("hessian_lr.measure.track._FRESH", 0.0)
    model = adapted()
    tracker = SharpnessTracker(SAMPLE, dtype=torch.float64)
    values, vectors = torch.linalg.eigh(dense_hessian(copy.deepcopy(model), SAMPLE))
    tracker.vector = vectors[:, -2]
    followed = [tracker.update(model, step).lambda_max for step in range(6 if not fresh else 25)]
    assert followed[0] == pytest.approx(float(values[-2]), rel=1e-3)
    assert followed[-1] == pytest.approx(float(values[-1] if fresh else values[-2]), rel=1e-2)


@pytest.mark.parametrize("second", [True, False])
def test_an_eigenvalue_that_overtakes_the_one_followed_shows_at_once(second, monkeypatch):
    """The second of 20,000 eigenvalues rises from 0.9 to 1.2, past the first's 1."""
    if not second:
        monkeypatch.setattr("hessian_lr.measure.track._SECOND", 0.0)
    risen = [0.9, 1.2]
    diagonals = iter([torch.tensor([1.0, value, *np.linspace(-0.3, 0.5, 19_998)]) for value in risen])

    class Scripted:
        def __init__(self, *_, **__):
            diagonal = next(diagonals)
            self.size, self.device, self.parameters = len(diagonal), diagonal.device, [diagonal]
            self.matvec, self.loss, self.cost = diagonal.__mul__, 0.0, Cost()

    monkeypatch.setattr("hessian_lr.measure.track.HessianOperator", Scripted)
    tracker = SharpnessTracker(SAMPLE)
    found = [tracker.update(None, step).lambda_max for step in range(len(risen))]
    assert found == pytest.approx([1.0, 1.2 if second else 1.0], rel=0.03)


def test_an_update_goes_on_while_the_vector_has_not_kept_up():
    model = adapted()
    values, vectors = torch.linalg.eigh(dense_hessian(copy.deepcopy(model), SAMPLE))
    noise = torch.randn(len(values), generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    def update(vector):
        tracker = SharpnessTracker(SAMPLE, dtype=torch.float64)
        tracker.vector = vector
        return tracker.update(model, 1)

    kept = update(vectors[:, -1])
    assert kept.matvecs == 3 and kept.lambda_max == pytest.approx(float(values[-1]), rel=0.01)
    turned = update(0.2 * vectors[:, -1] + noise / noise.norm())
    assert 3 < turned.matvecs <= 9 and turned.lambda_max == pytest.approx(float(values[-1]), rel=0.01)


def test_forgetting_the_vector_starts_anew():
    model = adapted()
    tracker = SharpnessTracker(SAMPLE, dtype=torch.float64)
    first = tracker.update(model, 0)
    tracker.update(model, 1)
    tracker.vector = None
    assert tracker.update(model, 0) == first


def test_the_model_and_the_random_state_are_left_as_they_were_found():
    model = adapted().train()
    model(**SAMPLE[0], use_cache=False).loss.backward()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    modes = [module.training for module in model.modules()]
    state = torch.get_rng_state()
    tracker = SharpnessTracker(SAMPLE, dtype=torch.float64)
    with torch.no_grad():  # as inside a training callback
        for step in range(2):
            tracker.update(model, step)
    assert torch.equal(torch.get_rng_state(), state)
    assert [module.training for module in model.modules()] == modes
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, before[name])
        assert (parameter.grad is None) == (name not in gradients)
        if name in gradients:
            assert torch.equal(parameter.grad, gradients[name])


def test_the_account_of_an_update():
    model = adapted()
    tracker = SharpnessTracker(SAMPLE, dtype=torch.float64, products=2, memory_budget=0)
    tracker.update(model, 0)
    found = tracker.update(model, 7)
    # Products whose graph is rebuilt each time; more than two, to tell the second vector from the first.
    assert (found.step, found.matvecs) == (7, 5)
    assert found.gradient_equivalents == pytest.approx(10)
    with torch.no_grad():
        total = sum(float(model(**b, use_cache=False).loss) * b["labels"][:, 1:].numel() for b in SAMPLE)
    assert found.loss == pytest.approx(total / sum(b["labels"][:, 1:].numel() for b in SAMPLE))
    assert TrackedSharpness.from_dict(found.to_dict()) == found


def test_failures_have_names():
    with pytest.raises(RequestError, match="products must be at least 2"):
        SharpnessTracker(SAMPLE, products=1)
    for odd in (2.5, "3", None):
        with pytest.raises(RequestError, match="products must be a whole number"):
            SharpnessTracker(SAMPLE, products=odd)
    tracker = SharpnessTracker(SAMPLE)
    tracker.update(adapted(), 0)
    with pytest.raises(RequestError, match="use a new tracker"):
        tracker.update(adapted(rank=3), 1)
    model = adapted()
    next(p for p in model.parameters() if p.requires_grad).data[0, 0] = math.nan
    with pytest.raises(NonFiniteError):
        tracker.update(model, 1)
