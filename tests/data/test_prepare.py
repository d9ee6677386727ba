"""Which rows a measurement takes: never one row for both the warm-up and the curvature sample."""

import pytest

from hessian_lr.data import Example
from hessian_lr.errors import RequestError
from hessian_lr.prepare import split_rows
from hessian_lr.setting import Setting


def rows(count):
    return tuple(Example((1, number), (-100, number)) for number in range(count))


@pytest.mark.parametrize(
    ("count", "sample", "warmup", "notes"),
    [(200, 16, 40, 0), (56, 16, 40, 0), (55, 16, 39, 1), (30, 15, 15, 2), (2, 1, 1, 2)],
)
def test_the_sample_is_the_last_rows_and_the_warm_up_the_first(count, sample, warmup, notes):
    data = rows(count)
    measured, warmed, said = split_rows(Setting(samples=16, batch_size=4), data)
    assert measured == data[count - sample :] and warmed == data[:warmup]
    assert not set(measured) & set(warmed)
    assert len(said) == notes and all(f"only {count}" in note for note in said)


def test_a_sample_that_grows_was_not_asked_to_have_the_most_rows():
    _, _, said = split_rows(Setting(samples="auto", batch_size=2), rows(40))
    assert said == ("the curvature sample may grow to 20 rows at most: the data has only 40 training rows",)


def test_one_row_cannot_serve_both():
    with pytest.raises(RequestError, match="has 1 training rows, but at least 2"):
        split_rows(Setting(), rows(1))
