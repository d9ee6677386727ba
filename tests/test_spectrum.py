"""Largest eigenvalues of matrices whose spectra are known."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hessian_lr.errors import RequestError
from hessian_lr.spectrum import lanczos, power_iteration


def with_spectrum(eigenvalues, seed=0):
    """A dense symmetric matrix with the given eigenvalues and a random basis."""
    n = len(eigenvalues)
    basis = np.linalg.qr(np.random.default_rng(seed).standard_normal((n, n)))[0]
    return torch.from_numpy(basis @ np.diag(np.asarray(eigenvalues, dtype=float)) @ basis.T)


def run(algorithm, matrix, **options):
    return algorithm(lambda v: matrix @ v, len(matrix), dtype=torch.float64, **options)


SPECTRA = {
    "one large": [10.0, *np.linspace(0, 1, 59)],
    "tie of +λ and -λ": [5.0, -5.0, *np.linspace(-1, 1, 58)],
    "lower end larger in magnitude": [3.0, -30.0, *np.linspace(-1, 1, 58)],
    "16-fold cluster at the top": [*[4.0] * 16, *np.linspace(-1, 1, 44)],
    "all negative": [-1.0, *np.linspace(-9, -3, 59)],
    "one number": [2.5] * 60,
    "decay over eight decades": list(10.0 ** -np.linspace(0, 8, 60)),
    "tiny scale": [1e-12, *np.linspace(0, 1e-13, 59)],
}


@pytest.mark.parametrize("name", SPECTRA)
def test_lanczos_finds_the_algebraically_largest(name):
    matrix = with_spectrum(SPECTRA[name])
    found = run(lanczos, matrix, rtol=1e-6, max_products=60)
    truth = max(SPECTRA[name])
    assert found.status == "converged"
    assert found.value == pytest.approx(truth, rel=1e-6)
    assert found.residual <= 1e-6 * abs(found.value)
    assert float((matrix @ found.vector - found.value * found.vector).norm()) <= 2e-6 * abs(truth)
    assert float(found.vector.norm()) == pytest.approx(1)


@pytest.mark.parametrize("name", set(SPECTRA) - {"decay over eight decades"})
def test_shifted_power_iteration_finds_the_algebraically_largest(name):
    found = run(power_iteration, with_spectrum(SPECTRA[name]), rtol=1e-4, max_products=5000)
    assert found.status == "converged"
    assert found.value == pytest.approx(max(SPECTRA[name]), rel=1e-3)


def test_power_iteration_says_budget_where_it_cannot_separate_a_near_tie():
    matrix = with_spectrum([5.0, 4.999, -5.0, *np.linspace(-1, 1, 57)])
    found = run(power_iteration, matrix, rtol=1e-9, max_products=50)
    assert found.status == "budget"
    assert found.value <= 5.0
    assert found.upper is None


def test_lanczos_stops_at_the_smallest_number_of_products_that_meets_the_tolerance():
    matrix = with_spectrum(SPECTRA["one large"])
    loose, tight = run(lanczos, matrix, rtol=0.05), run(lanczos, matrix, rtol=1e-8)
    assert loose.products < tight.products
    assert loose.residual <= 0.05 * loose.value
    one_less = run(lanczos, matrix, rtol=0.05, max_products=loose.products - 1)
    assert one_less.status == "budget"
    assert one_less.residual > 0.05 * one_less.value


@pytest.mark.parametrize("n", [1, 2, 3])
def test_fewer_dimensions_than_steps(n):
    spectrum = [-1.0, 2.0, 0.5][:n]
    found = run(lanczos, with_spectrum(spectrum), rtol=1e-9, max_products=40)
    assert found.products <= n
    assert found.status == "converged"
    assert found.value == pytest.approx(max(spectrum))
    assert found.smallest == pytest.approx(min(spectrum))
    assert found.upper == pytest.approx(max(spectrum))


def test_a_zero_matrix_has_the_eigenvalue_zero():
    found = run(lanczos, torch.zeros(30, 30, dtype=torch.float64))
    assert (found.value, found.residual, found.status, found.products) == (0.0, 0.0, "converged", 1)


@settings(max_examples=60, deadline=None)
@given(
    spectrum=st.lists(st.floats(-100, 100, allow_subnormal=False), min_size=2, max_size=40),
    seed=st.integers(0, 10_000),
    products=st.integers(1, 40),
)
def test_ritz_value_never_exceeds_lambda_and_some_eigenvalue_lies_within_the_residual(
    spectrum, seed, products
):
    matrix = with_spectrum(spectrum, seed)
    found = run(lanczos, matrix, rtol=1e-3, max_products=products, seed=seed)
    rounding = 1e-9 * max(1.0, float(np.abs(spectrum).max()))
    assert found.value <= max(spectrum) + rounding
    assert found.smallest >= min(spectrum) - rounding
    assert np.abs(np.asarray(spectrum) - found.value).min() <= found.residual + rounding


@settings(max_examples=30, deadline=None)
@given(factor=st.floats(1e-12, 1e12), seed=st.integers(0, 1000))
def test_scaling_the_matrix_scales_the_result_and_nothing_else(factor, seed):
    matrix = with_spectrum(SPECTRA["one large"], seed)
    plain, scaled = run(lanczos, matrix), run(lanczos, factor * matrix)
    assert scaled.products == plain.products
    assert scaled.value == pytest.approx(factor * plain.value, rel=1e-9)
    assert scaled.upper == pytest.approx(factor * plain.upper, rel=1e-6)


def test_upper_bound_is_violated_no_more_often_than_stated():
    rng = np.random.default_rng(3)
    violations, trials = 0, 400
    for trial in range(trials):
        n = int(rng.integers(20, 120))
        top = rng.uniform(0.5, 3.0)
        spectrum = np.append(rng.uniform(-1, 1, n - 1), top)
        diagonal = torch.from_numpy(spectrum)
        found = lanczos(
            lambda v, d=diagonal: d * v,
            n,
            rtol=0.05,
            max_products=int(rng.integers(2, 12)),
            seed=trial,
            dtype=torch.float64,
        )
        violations += spectrum.max() > found.upper * (1 + 1e-12)
    # The bound holds for 95% at worst; 400 trials at exactly that rate exceed 33 once in a hundred times.
    assert violations <= 33


def test_upper_bound_catches_a_start_vector_that_hides_the_top():
    spectrum = np.append(np.linspace(0, 1, 199), 1.5)
    diagonal = torch.from_numpy(spectrum)
    found = lanczos(lambda v: diagonal * v, 200, rtol=0.3, max_products=3, dtype=torch.float64)
    assert found.value < 1.5 <= found.upper


def test_memory_order_and_type_follow_the_request():
    matrix = with_spectrum(SPECTRA["one large"]).float()
    found = lanczos(lambda v: matrix @ v, 60, rtol=1e-3)
    assert found.vector.dtype is torch.float32
    assert found.value == pytest.approx(10, rel=1e-5)


def test_the_start_vector_comes_from_the_seed_and_the_callers_generator_is_untouched():
    matrix = with_spectrum(SPECTRA["one large"])
    state = torch.get_rng_state()
    first, again, other = (run(lanczos, matrix, seed=s) for s in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(first.vector, again.vector)
    assert not torch.equal(first.vector, other.vector)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rtol": 0.0}, "rtol must lie between 0 and 1"),
        ({"rtol": float("nan")}, "rtol must lie between 0 and 1"),
        ({"max_products": 0}, "max_products must be at least 1"),
        ({"start": torch.zeros(4)}, "not zero"),
        ({"start": torch.ones(3)}, "shape"),
    ],
)
@pytest.mark.parametrize("algorithm", [lanczos, power_iteration])
def test_requests_without_an_answer_are_refused(algorithm, options, message):
    with pytest.raises(RequestError, match=message):
        run(algorithm, torch.eye(4, dtype=torch.float64), **options)
