"""sharpness(): the right λ, the invariances it must have, and an honest account of itself."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from tiny_models import ARCHITECTURES, adapted, dense_hessian, make_batch
from tolerances import DENSE32, DENSE64_FLOAT32_ISLANDS, RTOL_TIGHT, SAME_LAMBDA

import hessian_lr as hlr
from hessian_lr.curvature.closed_form import closed_form
from hessian_lr.errors import RequestError
from hessian_lr.measure.confirm import saddle_note, sampling_error
from hessian_lr.spectrum import Eigenvalue


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("algorithm", ["lanczos", "power"])
def test_lambda_is_the_dense_hessians_largest_eigenvalue(architecture, algorithm, batches):
    spectrum = torch.linalg.eigvalsh(dense_hessian(adapted(architecture), batches))
    options = {"rtol": 1e-2, "max_products": 600}
    found = hlr.sharpness(adapted(architecture), batches, algorithm=algorithm, **options)
    truth = float(spectrum[-1])
    assert found.status == "converged"
    assert found.lambda_max == pytest.approx(truth, rel=1e-2)
    assert found.lambda_max <= truth * (1 + DENSE64_FLOAT32_ISLANDS)
    if algorithm == "lanczos":
        assert found.lambda_max <= found.lambda_upper
        assert truth <= found.lambda_upper * (1 + DENSE64_FLOAT32_ISLANDS)
        assert found.lambda_min >= float(spectrum[0]) * (1 + DENSE64_FLOAT32_ISLANDS)


def test_plain_lora_at_initialization_is_a_saddle_and_the_notes_say_so(batches):
    found = hlr.sharpness(adapted(moved=False), batches, rtol=0.01)
    assert found.lambda_min < 0 < found.lambda_max
    symmetric = abs(found.lambda_max + found.lambda_min) < 0.05 * found.lambda_max
    assert any("saddle" in note for note in found.notes) is symmetric


@pytest.mark.parametrize("b", [0.0, 1.0])
def test_a_symmetric_spectrum_is_a_saddle_only_while_b_is_zero(b):
    """Of large random factors λ may mirror λ_min too, and is 21 times the gradient's norm."""
    model = adapted(moved=False)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.fill_(b)
    mirrored = Eigenvalue(2.0, torch.ones(1), 0.0, 1.0, 2.0, -1.99, 3, "converged")
    assert bool(saddle_note(mirrored, model)) is (b == 0)
    assert not saddle_note(replace(mirrored, smallest=-1.0), model)


def _tight(model, batches, **options):
    return hlr.sharpness(model, batches, rtol=RTOL_TIGHT, max_products=200, **options).lambda_max


def test_a_loss_multiplied_by_c_has_lambda_multiplied_by_c(batches):
    # Repeating every label position's weight: two copies of the sample leave the mean as it is,
    # while logits that are c times the loss's temperature cannot be had from outside. So the
    # factor is put on the operator's own loss.
    from hessian_lr.curvature import HessianOperator
    from hessian_lr.spectrum import lanczos

    operator = HessianOperator(adapted(), batches)
    options = {"rtol": RTOL_TIGHT, "max_products": 200, "dtype": torch.float64}
    one = lanczos(operator.matvec, operator.size, **options).value
    three = lanczos(lambda v: 3 * operator.matvec(v), operator.size, **options).value
    assert three == pytest.approx(3 * one, rel=SAME_LAMBDA)
    assert _tight(adapted(), [*batches, *batches]) == pytest.approx(one, rel=SAME_LAMBDA)


def test_order_split_and_padding_do_not_change_lambda(batches):
    expected = _tight(adapted(), batches)
    rows = [{n: v[i : i + 1] for n, v in b.items()} for b in batches for i in range(len(b["labels"]))]
    wide = [
        {
            "input_ids": torch.nn.functional.pad(row["input_ids"], (0, 5), value=1),
            "attention_mask": torch.nn.functional.pad(row["attention_mask"], (0, 5), value=0),
            "labels": torch.nn.functional.pad(row["labels"], (0, 5), value=-100),
        }
        for row in rows
    ]
    for sample in (batches[::-1], rows, rows[::-1], wide):
        assert _tight(adapted(), sample) == pytest.approx(expected, rel=SAME_LAMBDA)


def test_keeping_rebuilding_and_seeds_agree_to_the_stated_residual(batches):
    runs = [
        hlr.sharpness(adapted(), batches, seed=seed, memory_budget=budget)
        for seed in (0, 1)
        for budget in (0, 10**12)
    ]
    for one in runs:
        for other in runs:
            assert abs(one.lambda_max - other.lambda_max) <= one.residual + other.residual
    assert any("rebuilt" in note for note in runs[0].notes)
    assert not any("rebuilt" in note for note in runs[1].notes)


def test_budget_is_said_and_the_bounds_still_hold(batches):
    truth = float(torch.linalg.eigvalsh(dense_hessian(adapted(), batches))[-1])
    found = hlr.sharpness(adapted(), batches, max_products=2)
    assert found.status == "budget"
    assert any("stopped after 2 products" in note for note in found.notes)
    assert found.lambda_max <= truth <= found.lambda_upper


def test_cost_counts_what_was_done(batches):
    seen = []
    found = hlr.sharpness(
        adapted(), batches, memory_budget=10**12, progress=lambda done, *_: seen.append(done)
    )
    # One gradient to build the graphs, one for each product; the last product verifies the result.
    assert found.matvecs == len(seen) + 1
    assert found.gradient_equivalents == pytest.approx(found.matvecs + 1)
    # Without the padding at the end of a row, two tokens of one here.
    assert found.tokens == sum(int(b["attention_mask"].sum()) for b in batches)
    assert found.seconds > 0
    assert found.peak_rss_bytes > 10**7


def test_nan_weights_fail_with_a_reason_and_without_a_number(batches):
    model = adapted()
    next(p for p in model.parameters() if p.requires_grad).data[0, 0] = math.nan
    found = hlr.sharpness(model, batches)
    assert found.status == "failed"
    assert found.lambda_max is found.lambda_upper is found.residual is None
    assert "not finite" in found.notes[0]


def test_sampling_error_is_that_of_a_weighted_mean():
    # Equal weights: the ordinary standard error of a mean of 2, 4, 6, 8.
    assert sampling_error([2.0, 4.0, 6.0, 8.0], [5, 5, 5, 5]) == pytest.approx(
        torch.tensor([2.0, 4, 6, 8]).std() / 2
    )
    assert sampling_error([3.0], [7]) is None


def test_sampling_error_covers_the_scatter_of_fresh_samples():
    # The reported error of v·H·v against its true scatter, over samples drawn from one population.
    from hessian_lr.curvature import HessianOperator

    model = adapted()
    vector = torch.randn(
        HessianOperator(model, [make_batch(1, 9, 0)]).size, generator=torch.Generator().manual_seed(0)
    ).double()
    quotients, errors = [], []
    for draw in range(40):
        operator = HessianOperator(model, [make_batch(1, 9, seed=100 * draw + i) for i in range(12)])
        quotients.append(float(operator.matvec(vector) @ vector))
        errors.append(sampling_error(operator.batch_forms, operator.weights))
    ratio = (sum(e * e for e in errors) / len(errors)) ** 0.5 / torch.tensor(quotients).std()
    assert 0.7 < float(ratio) < 1.4


def test_wrong_requests_are_refused(batches):
    with pytest.raises(RequestError, match="Did you mean 'lanczos'"):
        hlr.sharpness(adapted(), batches, algorithm="lancos")
    with pytest.raises(RequestError, match="rtol"):
        hlr.sharpness(adapted(), batches, rtol=2.0)
    with pytest.raises(RequestError, match="there are no batches"):
        hlr.sharpness(adapted(), [])


def test_held_out_quotient_is_the_eigenvectors_on_the_other_sample(batches):
    from hessian_lr.curvature import HessianOperator

    other = [make_batch(4, 12, seed=9)]
    found = hlr.sharpness(adapted(), batches, held_out=other, rtol=RTOL_TIGHT, max_products=200)
    values, vectors = torch.linalg.eigh(dense_hessian(adapted(), batches))
    expected = vectors[:, -1] @ dense_hessian(adapted(), other) @ vectors[:, -1]
    assert found.lambda_max == pytest.approx(float(values[-1]), rel=SAME_LAMBDA)
    assert found.held_out == pytest.approx(float(expected), rel=1e-3)
    alone = HessianOperator(adapted(), other)
    alone.matvec(vectors[:, -1].contiguous())
    assert found.held_out_error == pytest.approx(sampling_error(alone.batch_forms, alone.weights), rel=1e-2)


def test_the_gauss_newton_matrixs_eigenvalue_is_measured_in_the_same_way(batches):
    from hessian_lr.curvature import GaussNewtonOperator

    operator = GaussNewtonOperator(adapted(), batches)
    columns = operator.matmat(torch.eye(operator.size, dtype=torch.float64))
    truth = float(torch.linalg.eigvalsh(columns)[-1])
    found = hlr.sharpness(adapted(), batches, operator="gauss-newton", rtol=0.01)
    assert found.lambda_max == pytest.approx(truth, rel=0.01)
    assert found.lambda_min > -SAME_LAMBDA


def test_bfloat16_only_finds_the_vector_and_float32_gives_the_numbers(batches):
    exact = hlr.sharpness(adapted(dtype=torch.float32), batches, rtol=0.01)
    found = hlr.sharpness(adapted(dtype=torch.float32), batches, dtype=torch.bfloat16)
    assert exact.rounding is None
    # A Rayleigh quotient in float32 cannot exceed λ, whatever the rounding of the search was.
    assert found.lambda_max <= exact.lambda_max + exact.residual
    assert found.lambda_max == pytest.approx(exact.lambda_max, rel=0.05)
    searched_again = any("searched again in float32" in note for note in found.notes)
    assert (found.rounding is None) is searched_again


def test_a_roughly_found_vector_is_refined_by_a_few_exact_products(batches):
    from hessian_lr.curvature import HessianOperator
    from hessian_lr.measure.confirm import REFINEMENTS, refined
    from hessian_lr.spectrum import lanczos

    operator = HessianOperator(adapted(), batches)
    found = lanczos(operator.matvec, operator.size, rtol=0.01, max_products=200, dtype=torch.float64)
    noise = torch.randn(operator.size, generator=torch.Generator().manual_seed(0)).double()
    vector = found.vector + 0.2 * noise / noise.norm()
    rough = replace(found, vector=vector / vector.norm())
    better = refined(rough, operator, operator, rtol=0.05)
    assert 1 < better.products - rough.products <= REFINEMENTS
    assert better.status == "converged"
    assert better.value == pytest.approx(found.value, rel=0.01)
    assert better.upper == pytest.approx(rough.upper + abs(rough.value - better.value), rel=1e-12)
    assert refined(found, operator, operator, rtol=0.05).products == found.products + 1


NARROW_NOTE = "some weights are bfloat16, whose rounding no error given here contains"


def _with_base_in(dtype):
    """A float32 adapter on weights that bfloat16 has, in bfloat16 or as float32 or float64 numbers."""
    model = adapted("llama", torch.float64 if dtype is torch.float64 else torch.float32)
    for parameter in model.parameters():
        if not parameter.requires_grad:
            parameter.data = parameter.data.to(torch.bfloat16).to(dtype)
    return model


def test_a_base_narrower_than_float32_rounds_in_every_pass_and_a_note_says_so(batches):
    truth = float(torch.linalg.eigvalsh(dense_hessian(_with_base_in(torch.float64), batches))[-1])
    narrow, wide = (
        hlr.sharpness(_with_base_in(dtype), batches, rtol=1e-4, max_products=200)
        for dtype in (torch.bfloat16, torch.float32)
    )
    assert wide.lambda_max == pytest.approx(truth, rel=1e-4 + DENSE32)
    assert not any(NARROW_NOTE in note for note in wide.notes)
    # The weights are the same numbers, and the error is beyond all that is told of it but by the note.
    assert narrow.rounding is None and abs(narrow.lambda_max / truth - 1) > 10 * 1e-4
    assert any(NARROW_NOTE in note for note in narrow.notes)


@pytest.mark.parametrize("measure", [hlr.module_sharpness, closed_form])
def test_other_measurements_say_so_too(measure, batches):
    model = adapted("llama", torch.float32, moved=False)
    assert not any(NARROW_NOTE in note for note in measure(model, batches).notes)
    for parameter in model.parameters():
        if not parameter.requires_grad:
            parameter.data = parameter.data.to(torch.bfloat16)
    assert any(NARROW_NOTE in note for note in measure(model, batches).notes)
