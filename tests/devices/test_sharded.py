"""A model that FSDP2 holds in pieces on several processes: the same numbers as of the whole one."""

from __future__ import annotations

import json
import warnings

import pytest
import rank_programs
import ranks
import torch
from tiny_models import adapted, counting_batch, dense_hessian, learned
from tolerances import CENTRAL_LAMBDA_P, SAME_LAMBDA

import hessian_lr as hlr


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """What each of two and of three ranks found.

    Seldom torch crashes in this, on FSDP2 over gloo: once more then, and not in silence.
    """
    for _ in range(2):
        out = tmp_path_factory.mktemp("pieces")
        programs = {}
        for size in (2, 3):
            (out / str(size)).mkdir()
            programs[str(size)] = (size, {}, "measure_in_pieces", [str(out / str(size))])
        ended = ranks.start(out, programs)
        if not (crashes := list(filter(ranks.crashed, ended.values()))):
            break
        warnings.warn(ranks.told_whole(crashes[0]), stacklevel=1)
    for program in ended.values():
        ranks.assert_ended_well(program)
    return {
        size: [json.loads((out / str(size) / f"{rank}.json").read_text()) for rank in range(size)]
        for size in (2, 3)
    }


@pytest.fixture(scope="module")
def alone():
    """The same differences of a model that is whole."""
    return hlr.sharpness(
        adapted("llama"),
        rank_programs.sample(),
        rtol=1e-3,
        dtype=torch.float64,
        operator="central-differences",
        held_out=rank_programs.sample(),
    )


@pytest.mark.parametrize(
    "size, how", [(2, "layers"), (2, "root"), (2, "base"), (2, "checkpointed"), (3, "layers")]
)
def test_lambda_is_that_of_the_whole_model(size, how, found, alone):
    one = found[size][0][how]
    for name in ("lambda_max", "lambda_upper", "sampling_error", "held_out", "loss"):
        assert one[name] == pytest.approx(getattr(alone, name), rel=SAME_LAMBDA), name
    assert one["matvecs"] == alone.matvecs
    assert "FSDP2" in one["notes"][0]
    exact = float(torch.linalg.eigvalsh(dense_hessian(adapted("llama"), rank_programs.sample()))[-1])
    assert one["lambda_max"] == pytest.approx(exact, rel=one["difference_error"])


@pytest.mark.parametrize("size", [2, 3])
def test_all_ranks_have_the_same_bits(size, found):
    first, *others = found[size]
    for other in others:
        for name in first.keys() - {"fewer"}:
            assert other[name] == first[name], name


def test_a_prediction_is_that_of_the_whole_model_and_leaves_every_piece_as_it_was(found):
    rows = [counting_batch(3, 1, seed) for seed in range(6)]
    whole = hlr.predict_learning_rate(learned().double(), rows, predictor="adam", dtype=torch.float64)
    one = found[2][0]["prediction"]
    assert one["same"]
    # From forward passes alone, each with other weights: nothing gathered for one is used for the next.
    assert one["lr_critical_start"] == pytest.approx(whole.adam.lr_critical_start, rel=SAME_LAMBDA)
    expected = whole.adam.lambda_preconditioned
    assert one["lambda_preconditioned"] == pytest.approx(expected, rel=CENTRAL_LAMBDA_P)
    assert one["lr"] == pytest.approx(whole.lr, rel=CENTRAL_LAMBDA_P)


@pytest.mark.parametrize(
    "what, words",
    [
        ("outside", "across_ranks(sharded=True)"),
        ("shares", "across_ranks(sharded=True)"),
        ("whole", "this one is whole"),
        ("other sample", "rank 1 has another sample than rank 0"),
        ("other number", "rank 1 has another sample than rank 0"),
        ("bfloat16", "without a MixedPrecisionPolicy's param_dtype"),
        ("loft", "measure before fully_shard()"),
    ],
)
def test_what_cannot_be_measured_in_pieces_is_refused_with_its_mend(what, words, found):
    kind, message = found[2][0][what]
    assert kind == "RequestError" and words in message


def test_a_group_that_holds_only_some_of_the_pieces_is_refused_rather_than_waited_for(found):
    for one in found[3][:2]:
        assert (
            one["fewer"][0] == "RequestError"
            and "over 3 processes, and across_ranks() joins 2" in one["fewer"][1]
        )


def test_a_base_in_bfloat16_is_rough_in_pieces_as_it_is_whole_and_says_so(found):
    whole = hlr.sharpness(
        rank_programs.with_narrow_base(), rank_programs.sample(), operator="central-differences"
    )
    status, largest, error = found[2][0]["narrow base"]
    assert status == whole.status == "budget"
    assert largest == pytest.approx(whole.lambda_max, rel=SAME_LAMBDA)
    # The whole model is held against an exact product too, which a model in pieces has not.
    assert 0.05 < error <= whole.difference_error


def test_what_needs_exact_products_says_so(found):
    kind, message = found[2][0]["modules"]
    assert kind == "NotTwiceDifferentiable" and "only sharpness and predict_learning_rate" in message
