"""Tables as a terminal of 80 columns shows them."""

from dataclasses import replace

import made_rows
import pytest

from hessian_lr.alignment import align
from hessian_lr.commands import tables
from hessian_lr.methods import METHODS

KNOWN = {
    "method": max(METHODS, key=len),
    "lambda_max": 927.4,
    "sampling_error": 1_404.0,
    "lambda_upper": 1_573.0,
    "lambda_preconditioned": 38_400.0,
    "sampling_error_preconditioned": 91_600.0,
}
WIDEST = made_rows.scored(
    **KNOWN,
    predicted_lr=1.8e-4,
    predicted_low=1.1e-4,
    predicted_high=3.1e-4,
    runs=(made_rows.run(2e-4),),
    best_lr=2.4e-4,
    band_low=1.5e-4,
    band_high=3.7e-4,
    factor_error=12.34,
    regret=1.001,
    inside_band=True,
)


@pytest.fixture(autouse=True)
def narrow(monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")


def test_the_widest_line_of_a_validation_is_shown_whole(capsys):
    tables.validate_table([WIDEST])
    shown = capsys.readouterr().out
    assert (
        "band" in shown
        and "927 ±1.4e3" in shown
        and "±9.2e4" in shown
        and "1.5e-4…3.7e-4" in shown
        and "12.34×" in shown
    )
    assert all(len(line) <= 80 for line in shown.splitlines())


@pytest.mark.parametrize(("after", "told"), [(38_400.0, "±9.2e4"), (None, "±1.4e3")])
def test_what_a_prediction_rests_on_is_shown_with_its_error(capsys, after, told):
    cost = {"gradient_equivalents": 31.2, "seconds": 12_345.6}
    rate = {"lr": 1.8e-4, "lr_low": 1.1e-4, "lr_high": 3.1e-4}
    tables.predict_table([made_rows.prediction(**KNOWN | cost | rate | {"lambda_preconditioned": after})])
    lines = capsys.readouterr().out.splitlines()
    assert any(line.split() == [told] for line in lines) and "1.1e-4…3.1e-4" in " ".join(lines)
    assert all(len(line) <= 80 for line in lines)


def test_where_no_table_fits_each_row_is_a_list_and_no_number_is_cut(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")
    tables.validate_table([WIDEST, replace(WIDEST, method="lora")])
    lines = capsys.readouterr().out.splitlines()
    assert "lora" in lines and "  predicted  1.8e-4 1.1e-4…3.1e-4" in lines
    assert all(len(line) <= 40 for line in lines)


def test_a_row_of_an_earlier_version_lacks_the_error_of_lambda_p(capsys):
    tables.validate_table([replace(WIDEST, sampling_error_preconditioned=None)])
    shown = capsys.readouterr().out
    assert "3.84e4" in shown and shown.count("±") == 1


def test_a_sweep_whose_best_is_at_its_edge_is_not_scored(capsys):
    tables.validate_table([replace(WIDEST, censored=True)])
    shown = capsys.readouterr().out
    assert "at the edge" in shown and "12.34" not in shown and "yes" not in shown


def test_a_table_with_room_keeps_its_gaps(capsys):
    tables.validate_table([replace(WIDEST, method="lora", sampling_error=None)])
    assert "927  3.84e4" in capsys.readouterr().out


def test_a_slope_without_an_interval_is_told_as_one(capsys):
    tables.align_table(align([1, 2, 3], [1e-3, 1e-3, 1e-3]))
    shown = capsys.readouterr().out
    assert "nan" not in shown and "All best learning rates are equal" in shown


@pytest.mark.parametrize(("predictor", "shown"), [(None, "–"), ("combined", "failed")])
def test_where_there_is_no_predictor_no_prediction_failed(capsys, predictor, shown):
    tables.validate_table([replace(WIDEST, predicted_lr=None, predictor=predictor)])
    (line,) = (line for line in capsys.readouterr().out.splitlines() if "3.84e4" in line)
    assert line.split("3.84e4")[1].split()[0] == shown


def test_where_every_run_diverged_more_steps_are_not_the_advice(capsys):
    runs = tuple(made_rows.run(lr, None) for lr in (1.0, 3.0))
    row = replace(WIDEST, best_lr=None, best_loss=None, runs=runs, censored=True)
    assert tables.advice([row]) == "Every run diverged: run smaller learning rates."
    tables.validate_table([row])
    assert "all diverged" in capsys.readouterr().out
    row = replace(row, runs=(*runs, made_rows.run(1e-3, 2.0)))
    assert tables.advice([row]).startswith("No learning rate lowered the held-out loss")


def test_the_lowest_loss_is_told_at_a_learning_rate_that_was_run():
    """The best learning rate may lie between two runs, where nothing was seen."""
    ends = {1e-3: (1.4, 1.2), 2e-3: (1.1, 1.3), 4e-3: (None, 1.0)}
    runs = tuple(made_rows.run(lr, loss) for lr, losses in ends.items() for loss in losses)
    told = tables.advice([made_rows.scored(best_lr=1.7e-3, best_loss=1.2, factor_error=1.5, runs=runs)])
    assert told.startswith("Lowest held-out loss 1.200: lora, run at 2.0e-3. Predictions within 2×")
