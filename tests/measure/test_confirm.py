"""What float32 makes of an eigenvalue that was found in bfloat16, on dense matrices."""

from __future__ import annotations

import pytest
import torch
from spectra import with_spectrum
from tiny_models import adapted, dense_hessian, make_batch
from tolerances import DENSE32

import hessian_lr as hlr
from hessian_lr.measure import confirm
from hessian_lr.spectrum import lanczos

SIZE = 120


class Dense:
    """A matrix with the face of a ``LossOperator``."""

    def __init__(self, matrix):
        self.matrix, self.size = matrix, len(matrix)
        self.device, self.parameters = torch.device("cpu"), [torch.zeros(1)]

    def matvec(self, vector):
        return (self.matrix @ vector.double()).to(vector.dtype)


@pytest.mark.parametrize("share", [0.97, 1.03])
@pytest.mark.parametrize("rtol", [0.05, 1e-3])
def test_the_upper_bound_holds_though_the_searchs_products_were_too_small_or_too_large(rtol, share):
    """Over 40 random starts; of bounds that hold with 95% it takes 6 misses to be surprised."""
    beyond, roughs = 0, 0
    for seed in range(40):
        draw = torch.Generator().manual_seed(seed)
        spectrum = torch.randn(SIZE, generator=draw, dtype=torch.float64)
        spectrum[0] = 6.0
        truth = Dense(with_spectrum(spectrum.numpy(), seed))
        search = {"rtol": 0.8 * rtol, "max_products": 100, "seed": seed}
        rough = lanczos(Dense(share * truth.matrix).matvec, SIZE, **search)
        found, off, notes = confirm.in_float32(
            rough, lambda *_, made=truth: (made, made), lambda *_: pytest.fail("it served"), None, rtol
        )
        assert notes == () and found.status == "converged"
        assert off == pytest.approx(abs(1 - share) * 6.0, abs=2 * rtol * 6.0)
        assert found.upper >= found.value
        beyond += found.upper < 6.0
        roughs += max(rough.upper, found.value) < 6.0
    assert beyond < 6
    # What the search alone would have said.
    assert (roughs > 30) is (share < 1 and rtol < 0.01)


@pytest.mark.parametrize("seed", range(4))
def test_the_upper_bound_of_a_search_in_bfloat16_is_not_below_the_dense_top(seed):
    """This model's products are 2% too small in bfloat16, so that θ and the search's own bound are, too."""
    sample = [make_batch(2, 9, seed=1), make_batch(3, 12, seed=2, unscored=7)]
    top = float(torch.linalg.eigvalsh(dense_hessian(adapted("llama"), sample))[-1])
    found = hlr.sharpness(
        adapted("llama", torch.float32), sample, dtype=torch.bfloat16, rtol=0.01, max_products=100, seed=seed
    )
    assert found.status == "converged" and found.rounding > 0.015 * top
    assert found.lambda_lower <= top * (1 + DENSE32) and found.lambda_upper >= top
