"""Numbers as a report has them: with as many digits as are known, and short."""

import pytest

from hessian_lr.report.numbers import count, duration, measured, share


@pytest.mark.parametrize(
    ("value", "error", "text"),
    [
        (1.0511, 0.0413, "1.05 ± 0.04"),
        (9.32, 1.2, "9.3 ± 1.2"),
        (84.4, 4.5, "84 ± 4"),
        (2604.0, 2712.0, "2600 ± 2700"),
        (-3.7, 7.2, "−3.7 ± 7.2"),
        (1.25, None, "1.25"),
        (4653.9, None, "4.65e3"),
        (None, 1.0, "–"),
        (0.9996, 0.00096, "0.9996 ± 0.0010"),
    ],
)
def test_values_are_rounded_to_their_error(value, error, text):
    assert measured(value, error) == text


def test_times_counts_and_shares_are_short():
    assert [duration(s) for s in (3.21, 74.0, 158.5, 5000, 40_000)] == [
        "3.2 s",
        "74 s",
        "2.6 min",
        "83 min",
        "11 h",
    ]
    assert [count(n) for n in (3.4, 68, 159.5, 2880, 123_456)] == ["3", "68", "160", "2,880", "123,000"]
    assert [share(x) for x in (0.0012, 0.117, 0.42)] == ["0.1%", "12%", "42%"]
