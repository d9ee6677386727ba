"""Each module's λ where products are in bfloat16: no number that float32 has not confirmed."""

from __future__ import annotations

import pytest
import torch
from tiny_blocks import dense_blocks
from tiny_models import adapted, make_batch
from tolerances import DENSE32

from hessian_lr.errors import HessianLRError
from hessian_lr.measure import module_sharpness, per_module
from hessian_lr.measure.module_block import _lanczos_steps
from hessian_lr.spectrum import lanczos
from hessian_lr.spectrum.lanczos import start_vector

BATCHES = [make_batch(2, 9, seed=1), make_batch(3, 12, seed=2, unscored=7)]


def measured(**options):
    return module_sharpness(
        adapted(dtype=torch.float32), BATCHES, dtype=torch.bfloat16, max_products=100, **options
    )


def test_every_lambda_is_a_lower_end_to_float32_though_the_search_was_not():
    found = measured()
    truth = dense_blocks(adapted(), BATCHES, found)
    beyond = 0
    for module in found.modules:
        top = float(truth[module.name][-1])
        assert module.status == "converged"
        assert 0.9 * top <= module.lambda_max <= (1 + DENSE32) * top
        # What rounding did to the search: along the same vector, its own quotient is that far off.
        beyond += module.rounding is not None and module.lambda_max + module.rounding > (1 + DENSE32) * top
    assert beyond


def test_modules_that_bfloat16_does_not_serve_are_searched_again_and_a_note_tells():
    found = measured(rtol=1e-4)
    truth = dense_blocks(adapted(), BATCHES, found)
    again = [module for module in found.modules if module.rounding is None]
    assert again
    assert any(note.startswith(f"bfloat16 did not serve {len(again)} modules") for note in found.notes)
    for module in found.modules:
        top = float(truth[module.name][-1])
        assert module.status == "converged"
        assert abs(module.lambda_max - top) <= (2e-4 + DENSE32) * top
    # The products of both searches count, and the one between.
    assert found.matvecs == sum(module.products for module in found.modules)


def test_what_float32_could_not_confirm_has_no_number(monkeypatch):
    def broken(*_):
        raise HessianLRError("no memory for it")

    monkeypatch.setattr(per_module, "_verified", broken)
    found = measured()
    assert {module.status for module in found.modules} == {"failed"}
    assert {module.lambda_max for module in found.modules} == {None}
    assert "no memory for it" in found.notes


@pytest.mark.parametrize("seed", range(30))
def test_a_modules_search_stops_where_lanczos_does(seed):
    """Two Ritz values of a small matrix tell no gap: of 6 × 6 ones some ended there, at 0.54 of λ."""
    draw = torch.Generator().manual_seed(seed)
    diagonal = torch.exp(1.2 * torch.randn(6, generator=draw, dtype=torch.float64))
    expected = lanczos(lambda v: diagonal * v, 6, seed=seed, dtype=torch.float64)
    steps = _lanczos_steps(start_vector(6, seed, None, "cpu", torch.float64), 0.05, 40)
    vector, found = next(steps), None
    while found is None:
        try:
            vector = steps.send(diagonal * vector)
        except StopIteration as end:
            found = end.value
    assert (found.products, found.status) == (expected.products, expected.status)
    assert found.value == pytest.approx(expected.value)
