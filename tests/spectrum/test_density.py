"""Spectral densities of matrices whose spectra are known."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.stats import norm
from spectra import with_spectrum
from tolerances import ONE_NORM32

from hessian_lr.errors import RequestError
from hessian_lr.spectrum import SpectralDensity, spectral_density

RNG = np.random.default_rng(7)
SPECTRA = {
    "uniform": np.linspace(-1, 3, 400),
    "two bulks": np.concatenate([RNG.normal(-2, 0.2, 200), RNG.normal(1, 0.5, 200)]),
    "outliers over a bulk": np.concatenate([RNG.normal(0, 0.05, 396), [3.0, 4.0, -2.0, 7.0]]),
    "symmetric about 0": np.concatenate([np.linspace(1, 2, 150), -np.linspace(1, 2, 150), np.zeros(100)]),
    "semicircle": 2 * np.cos(np.pi * (np.arange(400) + 0.5) / 400),
}


def run(spectrum, *, seed=0, basis_seed=0, **options):
    matrix = with_spectrum(spectrum, basis_seed)
    return spectral_density(lambda v: matrix @ v, len(matrix), seed=seed, dtype=torch.float64, **options)


@pytest.mark.parametrize("name", SPECTRA)
def test_cumulative_count_is_the_exact_one_within_its_band(name):
    spectrum = SPECTRA[name]
    found = run(spectrum, probes=8, steps=60)
    grid, count = np.array(found.grid), np.array(found.cumulative)
    exact = norm.cdf((grid[:, None] - spectrum) / found.width).sum(axis=1)
    # Four standard errors over the probes, and 1% of all for what 60 steps do not resolve.
    allowed = 4 * np.array(found.cumulative_error) + 0.01 * len(spectrum)
    assert np.all(np.abs(count - exact) <= allowed)
    assert np.all(np.diff(count) >= -1e-9)
    assert count[0] == pytest.approx(0, abs=1e-6)
    assert count[-1] == pytest.approx(len(spectrum))


@pytest.mark.parametrize("name", SPECTRA)
@pytest.mark.parametrize("steps", [1, 5, 40])
def test_the_density_integrates_to_one_and_is_the_slope_of_the_count(name, steps):
    found = run(SPECTRA[name], steps=steps)
    grid = np.array(found.grid)
    assert np.trapezoid(found.density, grid) == pytest.approx(1, abs=1e-6)
    middle = np.cumsum((np.array(found.density)[1:] + np.array(found.density)[:-1]) / 2 * np.diff(grid))
    # The trapezoidal rule on a Gaussian of two points a width.
    assert middle == pytest.approx(np.array(found.cumulative)[1:] / found.size, abs=0.01)
    assert grid[1] - grid[0] == pytest.approx(found.width / 2)
    assert found.products == 8 * steps


def test_a_symmetric_spectrum_has_a_symmetric_density_and_no_trace():
    found = run(SPECTRA["symmetric about 0"], probes=16, steps=60)
    assert abs(found.trace) <= 4 * found.trace_error
    grid, density, error = (np.array(x) for x in (found.grid, found.density, found.density_error))
    mirrored, its_error = np.interp(-grid, grid, density), np.interp(-grid, grid, error)
    inside = np.abs(grid) < 2
    tolerance = 5 * np.hypot(error, its_error) + 0.05 * density.max()
    assert np.all(np.abs(density - mirrored)[inside] <= tolerance[inside])


@pytest.mark.parametrize(("name", "rate"), [("two bulks", 0.84), ("outliers over a bulk", 0.72)])
def test_standard_errors_cover_the_trace_and_a_power_as_often_as_they_say(name, rate):
    spectrum = SPECTRA[name]
    truths = [spectrum.sum(), (spectrum**2).sum(), np.exp(spectrum).sum()]
    hits = np.zeros(3)
    trials = 200
    for seed in range(trials):
        found = run(spectrum, seed=seed, basis_seed=seed % 4, probes=8, steps=12)
        pairs = [found.trace_of(f) for f in (lambda x: x, lambda x: x**2, np.exp)]
        assert pairs[0] == pytest.approx((found.trace, found.trace_error))
        hits += [abs(value - t) <= 2 * error for (value, error), t in zip(pairs, truths, strict=True)]
    # Student's t with 7 degrees of freedom lies within 2 in 91.4% of cases, the skewed forms of a
    # few dominant eigenvalues in 79%; three standard deviations of 200 trials below each.
    assert np.all(hits >= rate * trials)
    # And the errors are not simply enormous.
    assert hits.min() < trials


def test_a_quadrature_of_few_steps_is_exact_for_low_powers():
    spectrum = SPECTRA["uniform"]
    few, many = run(spectrum, steps=4), run(spectrum, steps=30)
    for power in range(8):
        assert few.trace_of(lambda x, p=power: x**p)[0] == pytest.approx(
            many.trace_of(lambda x, p=power: x**p)[0]
        )
    assert few.trace_of(np.exp)[0] != pytest.approx(many.trace_of(np.exp)[0], rel=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("value", "count"), [(0.0, 30), (2.5, 30), (-1e-9, 30), (3.0, 1), (2.0, 2000)])
def test_a_multiple_of_the_identity_is_one_line(value, count, dtype):
    found = spectral_density(lambda v: value * v, count, steps=10, dtype=dtype)
    # What float32 makes of v·v = 1 differs from probe to probe.
    assert found.trace == pytest.approx(count * value, rel=ONE_NORM32)
    assert found.trace_error == pytest.approx(0, abs=count * ONE_NORM32 * abs(value))
    assert found.width == pytest.approx(2.5e-6 * abs(value) or 2.5e-3, rel=1e-3)
    assert len(found.grid) <= 26, "as many points as a line needs"
    assert np.trapezoid(found.density, found.grid) == pytest.approx(1, abs=1e-6)
    assert found.products == 8


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("values", [[0.0, 1.0], [0.0, 1.0, 10.0], [-1e5, 0.1, 0.2, 1.0]])
def test_few_distinct_eigenvalues_are_lines_and_not_one_hump(values, dtype):
    diagonal = torch.tensor([value for value in values for _ in range(50)], dtype=dtype)
    density = spectral_density(lambda v: diagonal * v, len(diagonal), dtype=dtype)
    assert density.width == pytest.approx((max(values) - min(values)) / 400, rel=1e-4)
    halfway = np.interp(0.5 * (values[0] + values[1]), density.grid, density.cumulative)
    error = np.interp(0.5 * (values[0] + values[1]), density.grid, density.cumulative_error)
    assert abs(halfway - 50) < 4 * error


def test_it_goes_to_json_and_back(tmp_path):
    found = run(SPECTRA["two bulks"], steps=10)
    found.write(tmp_path / "density.json")
    assert SpectralDensity.read(tmp_path / "density.json") == found


def test_the_callers_generator_is_untouched_and_progress_is_told():
    state, seen = torch.get_rng_state(), []
    first = run(SPECTRA["uniform"], probes=3, steps=5, progress=lambda *args: seen.append(args[:2]))
    assert torch.equal(torch.get_rng_state(), state)
    assert seen == [(i + 1, 15) for i in range(15)]
    assert run(SPECTRA["uniform"], probes=3, steps=5) == first
    assert run(SPECTRA["uniform"], probes=3, steps=5, seed=1) != first


@pytest.mark.parametrize(("options", "message"), [({"probes": 1}, "probes"), ({"steps": 0}, "steps")])
def test_requests_without_an_answer_are_refused(options, message):
    with pytest.raises(RequestError, match=message):
        run([1.0, 2.0], **options)


@pytest.mark.parametrize("spectrum", [*SPECTRA.values(), np.repeat([0.0, 1.0, 10.0], 50)])
def test_probes_in_lock_step_tell_what_they_tell_one_after_another(spectrum):
    matrix, blocks, seen = with_spectrum(spectrum, 0), [], []

    def matmat(block):
        blocks.append(block.shape[1])
        # Column by column, as products that are summed in another order differ in their last digits.
        return torch.stack([matrix @ column.contiguous() for column in block.unbind(1)], dim=1)

    options = {"probes": 5, "steps": 7, "seed": 3, "dtype": torch.float64}
    told = {"progress": lambda *args: seen.append(args[:2])}
    together = spectral_density(pytest.fail, len(matrix), matmat=matmat, **options, **told)
    assert together == spectral_density(lambda v: matrix @ v, len(matrix), **options)
    assert sum(blocks) == together.products and blocks[0] == 5
    assert [total for _, total in seen] == [35] * len(seen) and seen[-1] == (35, 35)
    assert len(blocks) == max(len(nodes) for nodes in together.nodes)
