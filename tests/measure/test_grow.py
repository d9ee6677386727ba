"""A sample that grows while its size limits what is known of λ."""

from __future__ import annotations

import pytest
from tiny_models import adapted, make_batch

import hessian_lr as hlr
from hessian_lr.errors import RequestError
from hessian_lr.measure.grow import FIRST, grown_sharpness


def rows(count):
    return [make_batch(1, 12, seed=100 + i) for i in range(count)]


def test_it_doubles_until_the_sampling_error_is_below_the_tolerance():
    found = grown_sharpness(adapted(), rows(256), rtol=0.2, max_products=100)
    assert found.samples in (16, 32, 64, 128)
    assert found.sampling_error <= 0.2 * found.lambda_max
    half = hlr.sharpness(adapted(), rows(found.samples // 2), rtol=0.2, max_products=100)
    assert half.sampling_error > 0.2 * half.lambda_max
    assert any(note.startswith("sample grown") for note in found.notes)


def test_its_result_is_that_of_its_last_sample_and_its_cost_that_of_all_rounds():
    found = grown_sharpness(adapted(), rows(32), rtol=0.01, max_products=100)
    plain = hlr.sharpness(adapted(), rows(32), rtol=0.01, max_products=100)
    assert found.samples == plain.samples == 32
    assert found.lambda_max == plain.lambda_max
    assert found.held_out is None
    assert found.matvecs > plain.matvecs
    assert plain.gradient_equivalents < found.gradient_equivalents < 3 * plain.gradient_equivalents
    assert any("with all 32 rows it may grow to" in note for note in found.notes)


def test_where_no_unseen_row_is_left_others_are_held_out():
    more = [make_batch(1, 12, seed=500 + i) for i in range(4)]
    found = grown_sharpness(adapted(), rows(12), held_out=more, rtol=0.01, max_products=100)
    plain = hlr.sharpness(adapted(), rows(12), held_out=more, rtol=0.01, max_products=100)
    assert (found.samples, found.held_out) == (12, plain.held_out) and plain.held_out is not None


def test_one_small_sample_is_enough_where_it_says_enough():
    same = [make_batch(1, 12, seed=1)] * 32
    found = grown_sharpness(adapted(), same, rtol=0.05, max_products=100)
    assert found.samples == FIRST
    assert found.held_out == pytest.approx(found.lambda_max)


def test_of_one_row_no_sampling_error_is_told():
    found = grown_sharpness(adapted(), rows(1), max_products=100)
    assert found.sampling_error is None and not any("sampling error" in note for note in found.notes)


def test_no_rows_are_refused():
    with pytest.raises(RequestError, match="no row"):
        grown_sharpness(adapted(), [])
