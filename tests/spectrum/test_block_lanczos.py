"""Several largest eigenvalues at once, with their multiplicities."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from spectra import with_spectrum
from tolerances import FLOAT32_RESIDUAL

from hessian_lr.errors import RequestError
from hessian_lr.spectrum import block_lanczos, lanczos

SPECTRA = {
    "distinct": [*np.linspace(5, 10, 6), *np.linspace(-1, 1, 94)],
    "4-fold cluster": [*[4.0] * 4, *[3.0] * 2, *np.linspace(-1, 1, 94)],
    "clusters of both signs": [*[3.0] * 3, *[-3.0] * 3, *[2.0] * 3, *[-2.0] * 3, *np.zeros(88)],
    "lower end larger in magnitude": [2.0, 2.0, 1.5, -30.0, -30.0, *np.linspace(-1, 1, 95)],
    "all negative": [-1.0, -1.0, -2.0, *np.linspace(-9, -3, 97)],
    "one number": [2.5] * 100,
    "zero": [0.0] * 100,
    "low rank": [7.0, 7.0, 5.0, *[0.0] * 97],
    "tiny scale": [*[4e-12] * 4, *np.linspace(-1e-12, 1e-12, 96)],
}


def run(matrix, **options):
    return block_lanczos(lambda v: matrix @ v, len(matrix), dtype=matrix.dtype, **options)


@pytest.mark.parametrize(
    ("name", "block"), [("distinct", 1), *((name, block) for name in SPECTRA for block in (4, 7))]
)
def test_values_are_the_largest_eigenvalues_counted_with_multiplicity(name, block):
    matrix = with_spectrum(SPECTRA[name])
    truth = torch.linalg.eigvalsh(matrix).flip(0)[:6].tolist()
    found = run(matrix, count=6, block=block, rtol=1e-8, max_products=200)
    scale = float(np.abs(SPECTRA[name]).max())
    assert found.status == "converged"
    assert found.values == pytest.approx(truth, rel=1e-7, abs=1e-12 * scale)
    vectors = found.vectors
    assert vectors.shape == (100, 6)
    assert torch.allclose(vectors.T @ vectors, torch.eye(6, dtype=torch.float64), atol=1e-10)
    rest = (matrix @ vectors - vectors * torch.tensor(found.values, dtype=torch.float64)).norm(dim=0)
    assert torch.allclose(rest, torch.tensor(found.residuals, dtype=torch.float64), atol=1e-9 * scale)


@pytest.mark.parametrize("lowest", [-1e3, -1e4, -1e5])
def test_residuals_count_what_float32_could_not_tell_from_rounding(lowest):
    """Beside an eigenvalue of −1e5 all that led to 1.5 was too short to go on with, and the residual 0."""
    diagonal = torch.linspace(-1, 1, 300, dtype=torch.float64)
    diagonal[0], diagonal[-1] = lowest, 1.5
    for seed in range(3):
        found = block_lanczos(
            lambda v: (diagonal[:, None] * v.double()).to(v.dtype), 300, block=2, max_products=200, seed=seed
        )
        vector = found.vectors[:, 0].double()
        image = diagonal * vector
        residual = float((image - (vector @ image) * vector).norm())
        assert found.residuals[0] >= residual * (1 - FLOAT32_RESIDUAL)
        assert found.status == "budget" or found.values[0] == pytest.approx(1.5, rel=0.05)


def test_it_goes_on_from_vectors_that_are_nearly_there():
    """Of the very eigenvectors one block says so; others say how far they are off, and get there."""
    matrix = with_spectrum(SPECTRA["4-fold cluster"])
    found = run(matrix, count=3, block=3, rtol=1e-8)
    turned = found.vectors @ torch.linalg.qr(torch.randn(3, 3, dtype=torch.float64))[0]
    again = run(matrix, count=3, block=3, rtol=1e-6, start=turned)
    assert again.products == 3 and again.status == "converged"
    assert again.values == pytest.approx(found.values)
    near = torch.linalg.qr(turned + 0.01 * torch.randn(100, 3, dtype=torch.float64))[0]
    once = run(matrix, count=3, block=3, rtol=1e-6, start=near, max_products=5)
    assert (once.products, once.status) == (3, "budget") and max(once.residuals) > 1e-3
    assert run(matrix, count=3, block=3, rtol=1e-6, start=near).values == pytest.approx(found.values)
    with pytest.raises(RequestError, match=r"shape \(100, 3\), not \(100, 2\)"):
        run(matrix, count=3, block=3, start=near[:, :2])


def test_a_cluster_that_a_single_vector_sees_once():
    matrix = with_spectrum([*[4.0] * 16, *[3.0] * 16, *np.linspace(-1, 1, 168)])
    found = run(matrix, count=20, block=16, rtol=1e-6, max_products=200)
    assert found.values == pytest.approx([4.0] * 16 + [3.0] * 4)
    single = lanczos(lambda v: matrix @ v, 200, rtol=1e-3, max_products=12, dtype=torch.float64)
    assert single.value == pytest.approx(4.0)
    narrow = run(matrix, count=3, block=2, rtol=1e-6, max_products=60)
    assert narrow.values == pytest.approx([4.0, 4.0, 3.0])


@pytest.mark.parametrize("products", [6, 9, 17, 40])
def test_the_limit_is_kept_and_values_stay_below_the_truth(products):
    matrix = with_spectrum(np.linspace(-1, 1, 100))
    seen = []
    found = block_lanczos(
        lambda v: seen.append(v.shape[1]) or matrix @ v,
        100,
        count=3,
        block=4,
        rtol=1e-9,
        max_products=products,
        dtype=torch.float64,
    )
    assert found.status == "budget"
    assert found.products == sum(seen) <= products
    truth = torch.linalg.eigvalsh(matrix).flip(0)[:3]
    values = torch.tensor(found.values, dtype=torch.float64)
    assert bool((values <= truth + 1e-12).all())
    distance = (torch.linalg.eigvalsh(matrix)[:, None] - values).abs().min(dim=0).values
    assert bool((distance <= torch.tensor(found.residuals, dtype=torch.float64) + 1e-12).all())


def test_a_matrix_that_hands_back_its_argument_is_not_corrupted():
    found = block_lanczos(lambda v: v, 50, count=3, block=3, rtol=1e-6, dtype=torch.float64)
    assert found.values == pytest.approx([1.0] * 3)
    assert found.products == 3


def test_float32_and_seeds():
    matrix = with_spectrum(SPECTRA["4-fold cluster"]).float()
    state = torch.get_rng_state()
    first, again, other = (run(matrix, count=5, block=5, rtol=1e-3, seed=s) for s in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), state)
    assert first.vectors.dtype is torch.float32
    assert torch.equal(first.vectors, again.vectors)
    assert not torch.equal(first.vectors, other.vectors)
    assert first.values == pytest.approx([4.0] * 4 + [3.0], rel=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"count": 0}, "count must lie between 1 and the matrix's order 8"),
        ({"count": 9}, "count must lie between 1 and the matrix's order 8"),
        ({"block": 9}, "block must lie between"),
        ({"count": 4, "block": 4, "max_products": 6}, "max_products must be at least .* 7"),
        ({"rtol": 1.0}, "rtol"),
    ],
)
def test_requests_without_an_answer_are_refused(options, message):
    with pytest.raises(RequestError, match=message):
        run(torch.eye(8, dtype=torch.float64), **options)
