"""top_eigenvalues(): the largest eigenvalues of a model's Hessian, against the dense ones."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from tiny_models import adapted, dense_hessian, make_batch, with_reentrant_checkpoint
from tolerances import BFLOAT16, DENSE64, RTOL_TIGHT

import hessian_lr as hlr
from hessian_lr.curvature import HessianOperator
from hessian_lr.measure import joint, top

SAMPLE = [make_batch(2, 9, seed) for seed in range(2)]
EXACT = {"rtol": RTOL_TIGHT, "dtype": torch.float64}


@pytest.fixture(scope="module")
def dense():
    return dense_hessian(adapted(), SAMPLE)


def test_values_and_vectors_are_those_of_the_dense_hessian(dense):
    model = adapted()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    state = torch.get_rng_state()
    found = hlr.top_eigenvalues(model, SAMPLE, count=5, **EXACT)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())
    true = torch.linalg.eigvalsh(dense).flip(0)[:5]
    assert found.status == "converged" and found.parameters == len(dense)
    assert found.values == pytest.approx(true.tolist(), rel=1e-9)
    # In the order of the model's parameters, so that a dense product has the residuals that are told.
    beside = dense @ found.vectors - found.vectors * torch.tensor(found.values, dtype=torch.float64)
    assert torch.linalg.vector_norm(beside, dim=0).tolist() == pytest.approx(found.residuals, abs=DENSE64)
    assert found.relative_residual == max(found.residuals) / found.values[0] <= RTOL_TIGHT


def test_an_eigenvalue_comes_as_often_as_it_occurs():
    """At B = 0 the gradient's singular values come r times each, as long as curvature over B is small."""
    model = adapted(rank=3, alpha=3e-4, moved=False)
    true = torch.linalg.eigvalsh(dense_hessian(model, SAMPLE)).flip(0)
    found = hlr.top_eigenvalues(model, SAMPLE, count=4, **EXACT)
    assert found.values == pytest.approx(true[:4].tolist(), rel=1e-9)
    assert found.values[2] > 0.999 * found.values[0] > 1.01 * found.values[3]


def test_a_block_shares_the_graphs_that_are_rebuilt():
    kept, rebuilt = (
        hlr.top_eigenvalues(adapted(), SAMPLE, count=3, memory_budget=budget) for budget in (None, 0)
    )
    assert rebuilt.values == kept.values and rebuilt.matvecs == kept.matvecs
    assert kept.gradient_equivalents == 1 + kept.matvecs
    assert rebuilt.gradient_equivalents == pytest.approx(kept.matvecs * (1 + 1 / 3))
    assert "rebuilt for each product" in rebuilt.notes[0] and not kept.notes


def test_bfloat16_finds_directions_and_float32_says_what_they_are_worth(dense):
    true = torch.linalg.eigvalsh(dense).flip(0)[:3]
    model = adapted().float()
    found = hlr.top_eigenvalues(model, SAMPLE, count=3, dtype=torch.bfloat16)
    assert found.status == "converged"
    assert found.values == pytest.approx(true.tolist(), rel=BFLOAT16)
    assert all(one <= exact * (1 + 1e-5) for one, exact in zip(found.values, true.tolist(), strict=True))
    matrix = HessianOperator(model, SAMPLE)
    beside = matrix.matmat(found.vectors) - found.vectors * torch.tensor(found.values)
    assert torch.linalg.vector_norm(beside, dim=0).tolist() == pytest.approx(found.residuals, rel=1e-3)


def test_where_its_directions_are_not_good_enough_blocks_in_float32_follow(monkeypatch):
    """As if those of bfloat16 had been off by a tenth, and then as if they had been any."""
    model, real = adapted().float(), top.block_lanczos
    alone = hlr.top_eigenvalues(model, SAMPLE, count=2)
    for noise, again in ((0.1, False), (1e6, True)):
        calls = []

        def spoilt(matmat, size, *, noise=noise, calls=calls, **asked):
            found = real(matmat, size, **asked)
            calls.append(asked["max_products"])
            if len(calls) > 1:
                return found
            off = torch.randn(found.vectors.shape, generator=torch.Generator().manual_seed(0))
            vectors = torch.linalg.qr(found.vectors + noise * off / off.norm(dim=0))[0]
            return replace(found, vectors=vectors)

        monkeypatch.setattr(top, "block_lanczos", spoilt)
        found = hlr.top_eigenvalues(model, SAMPLE, count=2, dtype=torch.bfloat16, rtol=0.02)
        assert calls == [64, 8, *([64] if again else [])] and found.status == "converged"
        assert any("bfloat16 did not serve: 4 blocks" in note for note in found.notes) is again
        assert found.values == pytest.approx(alone.values, rel=0.02)


@pytest.mark.parametrize("operator", ["gauss-newton", "central-differences"])
def test_other_operators_and_their_notes(operator, dense):
    found = hlr.top_eigenvalues(adapted(), SAMPLE, count=2, operator=operator, **EXACT)
    if operator == "gauss-newton":
        alone = hlr.sharpness(adapted(), SAMPLE, operator=operator, **EXACT)
        assert found.values[0] == pytest.approx(alone.lambda_max, rel=1e-6) and found.values[1] > 0
    else:
        assert found.values[0] == pytest.approx(float(torch.linalg.eigvalsh(dense)[-1]), rel=1e-6)
        assert "central differences (as asked)" in found.notes[0]


def test_differences_that_are_noise_are_not_called_converged(dense):
    """Over a base in bfloat16: the residuals know nothing of what products are off by."""
    model = adapted("llama", torch.float32)
    for parameter in model.parameters():
        if not parameter.requires_grad:
            parameter.data = parameter.data.bfloat16()
    found = hlr.top_eigenvalues(model, SAMPLE, count=2, operator="central-differences")
    assert found.status == "budget" and found.difference_error > 0.05
    assert "is off by at most" in found.notes[0]
    fine = hlr.top_eigenvalues(adapted(), SAMPLE, count=2, operator="central-differences")
    assert fine.status == "converged" and fine.difference_error < 0.05


def test_models_without_a_second_derivative_go_by_differences():
    model = with_reentrant_checkpoint(adapted("llama", moved=True))
    plain = hlr.top_eigenvalues(adapted("llama"), SAMPLE, count=2, rtol=1e-3)
    found = hlr.top_eigenvalues(model, SAMPLE, count=2, rtol=1e-3)
    assert "central differences" in found.notes[0]
    assert found.values == pytest.approx(plain.values, rel=1e-3)


def test_what_stops_early_says_so_and_its_values_are_no_larger():
    found = hlr.top_eigenvalues(adapted(), SAMPLE, count=3, max_products=6)
    whole = hlr.top_eigenvalues(adapted(), SAMPLE, count=3, **EXACT)
    assert (found.status, found.matvecs) == ("budget", 6)
    assert found.notes[-1].startswith("stopped after 6 products with residuals up to")
    # Blocks in float32 come besides, and count for what they find.
    rough = hlr.top_eigenvalues(adapted().float(), SAMPLE, count=3, max_products=12, dtype=torch.bfloat16)
    assert 15 <= rough.matvecs <= 24 and rough.status == (
        "converged" if rough.relative_residual <= 0.05 else "budget"
    )
    assert all(early <= late for early, late in zip(found.values, whole.values, strict=True))


def test_it_is_written_without_its_vectors_and_read_back(tmp_path):
    found = hlr.top_eigenvalues(adapted(), SAMPLE, count=2)
    found.write(tmp_path / "top.json")
    again = hlr.TopEigenvalues.read(tmp_path / "top.json")
    assert again == found and again.vectors is None
    assert "vectors" not in (tmp_path / "top.json").read_text(encoding="utf-8")
    assert found.vectors.shape == (found.parameters, 2)
    assert copy.copy(again) == again


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"count": 0}, "count must be a whole number of at least 1"),
        ({"count": 2.0}, "count must be a whole number"),
        ({"count": 3, "max_products": 4}, "3 eigenvalues take at least 5 products, and max_products is 4"),
        ({"count": 1000}, "count must lie between 1 and the matrix's order 352"),
        ({"rtol": 0.0}, "rtol"),
        ({"operator": "hesian"}, "Did you mean .hessian"),
        ({"seed": -1}, "seed"),
    ],
)
def test_requests_without_an_answer_are_refused(options, message):
    with pytest.raises(hlr.RequestError, match=message):
        hlr.top_eigenvalues(adapted(), SAMPLE, **options)


def test_the_first_is_lambda():
    """By the other way to it."""
    assert joint.sharpness(adapted(), SAMPLE, **EXACT).lambda_max == pytest.approx(
        hlr.top_eigenvalues(adapted(), SAMPLE, count=1, **EXACT).values[0], rel=1e-9
    )
