"""The learning-rate bench: what is held out stays out; the shipped constants are its tables'."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from experiments.lr_bench import (
    beyond,
    coarse,
    later,
    long,
    noise,
    price,
    prospective,
    second_seed,
    step_length,
)
from experiments.lr_bench import table as table_of
from experiments.lr_bench.calibrate import calibration, tables
from experiments.lr_bench.curves import curves
from experiments.lr_bench.evaluate import scored
from experiments.lr_bench.held_out import left_out, widths
from experiments.lr_bench.laws import AFTER, LAWS
from experiments.lr_bench.settings import LARGE, METHODS, all_settings
from experiments.lr_bench.table import HERE, LONG, SHAPES, read, write
from experiments.lr_bench.transfer import pair_errors
from hessian_lr.methods import METHODS as METHODS_TO_TRAIN
from hessian_lr.predict import PREDICTORS, Calibration, load_calibration
from hessian_lr.predict.law import CARRIED, EXTRAPOLATION, Quantities
from hessian_lr.predict.rate import rate
from hessian_lr.records import read_json, write_json
from hessian_lr.score import score
from hessian_lr.sweep import plan

BY_NAME = {law.name: law for law in LAWS}


@pytest.fixture(scope="module")
def table():
    return scored(read()[0])


@pytest.fixture(scope="module")
def given():
    """The committed tables, and the constants that they give."""
    used = tables()
    return used, calibration(*used)


def test_the_settings_are_a_fixed_draw_over_methods_models_and_everything_else():
    settings = all_settings()
    assert [one.key for one in settings] == [one.key for one in all_settings()]
    assert len({one.key for one in settings}) >= 120
    assert {one.method for one in settings} == set(METHODS)
    small = [one for one in settings if one.model != LARGE]
    for name, least in (("rank", 5), ("batch_size", 4), ("steps", 4), ("data", 4), ("model", 2)):
        assert len({getattr(one, name) for one in small}) >= least, name


@pytest.mark.parametrize("kind", ["method", "model"])
@pytest.mark.parametrize("name", ["combined", "sharpness", "constant fitted"])
def test_no_answer_of_a_group_takes_part_in_its_own_prediction_or_range(table, kind, name):
    law, groups = BY_NAME[name], table[kind]
    group = groups.value_counts().index[0]
    inside = groups == group
    changed = table.copy()
    changed.loc[inside, "best_lr"] *= np.geomspace(0.01, 100, inside.sum())
    before, after = left_out(law, table, groups), left_out(law, changed, groups)
    pd.testing.assert_series_equal(before[inside], after[inside])
    assert not np.allclose(before[~inside].dropna(), after[~inside].dropna()), "the others' fits do use it"
    # Nor in how wide its range is.
    held, moved = widths(law, table, groups), widths(law, changed, groups)
    pd.testing.assert_series_equal(held[inside], moved[inside])
    assert not np.allclose(held[~inside], moved[~inside])


def test_transfer_to_a_model_takes_nothing_of_that_model_but_the_setting_it_starts_from(table):
    model = table["model"].unique()[0]
    scaled = table.copy()
    scaled.loc[table["model"] == model, "best_lr"] *= 5.0
    assert pair_errors(scaled, model) == pytest.approx(pair_errors(table, model))


def test_the_shipped_constants_are_what_the_committed_tables_give(given):
    made, shipped = given[1], load_calibration()
    assert made.version == shipped.version
    for name in ("combined", "adam", "eigenvalue", "probe"):
        one, other = getattr(made, name), getattr(shipped, name)
        assert one.exponents == pytest.approx(other.exponents, rel=1e-3, abs=1e-4)
        assert one.scale == pytest.approx(other.scale, rel=1e-3)
        assert one.log_half_width == pytest.approx(other.log_half_width, rel=1e-3)
        assert one.settings == other.settings and one.domain == other.domain
    assert made.transfer.exponents == pytest.approx(shipped.transfer.exponents, rel=1e-6)


def test_the_test_on_later_settings_has_none_that_the_fixed_constants_were_fitted_to():
    settings, runs = read()
    fixed = read_json(prospective.FIXED)
    later = set(read_json(prospective.NEXT)["keys"]) - set(fixed["keys"])
    assert len(fixed["keys"]) == fixed["calibration"]["combined"]["settings"] == 66
    told = {row["predictor"]: row for row in prospective.evaluate(settings, runs)}
    assert told["combined"]["settings"] == len(later & set(scored(settings)["key"])) >= 50
    written = {row["predictor"]: row for row in read_json(prospective.HERE / "prospective.json")["rows"]}
    for predictor, row in told.items():
        assert row == pytest.approx(written[predictor], nan_ok=True), predictor


def test_the_longest_runs_are_in_no_fit_and_are_judged_as_told(given):
    bench, (settings, runs) = read()[0], read(LONG)
    assert set(settings["steps"]) == {300} and not set(settings["key"]) & set(bench["key"])
    # Wherever their best learning rates lay, the laws would be these; but not known for so many steps.
    far = settings.assign(**{name: settings[name] * 100 for name in ("best_lr", "band_low", "band_high")})
    (used, longest, *real), made = given
    pd.testing.assert_frame_equal(longest, scored(settings))
    other = calibration(used, scored(far), *real)
    for name in PREDICTORS:
        one, two = getattr(made, name), getattr(other, name)
        assert two.domain["steps"][1] == 120
        assert one == replace(two, domain=one.domain, sources=one.sources)
    written = read_json(LONG / "evaluation.json")["rows"]
    for row, told in zip(long.evaluate(bench, settings, runs), written, strict=True):
        assert row == pytest.approx(told, nan_ok=True), told["predictor"]


def test_what_came_later_was_in_no_fit_and_was_predicted_by_the_laws_of_its_time():
    bench, fixed = read()[0], read_json(prospective.NEXT)
    constants = Calibration.from_dict(fixed["calibration"])
    assert (
        len(fixed["keys"]) == constants.combined.settings + 1
    )  # one, which nothing improves, counts nowhere
    rows = [*later.found(), *later.found(later.UNSEEN)]
    assert {row["model"] for row in rows} >= {"smollm2-135m", "llama-3m", "gpt2-2m"}
    for row in rows:
        key = f"{row['file'].removesuffix('.json')}-{row['method']}"
        assert key not in fixed["keys"]
        own = METHODS_TO_TRAIN[row["method"]].optimizer is not None
        known = Quantities(
            batch_size=row["batch_size"],
            steps=row["steps"],
            lr_stability=row["lr_stability"],
            lr_critical_start=row["lr_critical_start"],
            lr_sharpness=None if own else row["lr_sharpness"],
        )
        told = rate("combined", constants, known)
        assert told is not None and told.lr == pytest.approx(row["predicted_lr"], rel=1e-6)
        # For the next constants what is in ``after``, or has an optimizer of its own, is a test.
        tested = own or row in later.found(later.UNSEEN)
        assert (key in set(bench["key"])) is not tested


def test_collecting_the_tables_again_keeps_their_short_runs(tmp_path):
    settings, runs = read(LONG)
    write(tmp_path, settings, runs)
    anew = settings.head(5).drop(columns="probe_cost").assign(lr_probe=None, rank=99)
    write(tmp_path, anew, runs[runs["key"].isin(anew["key"]) & (runs["kind"] != "probe")])
    found, found_runs = read(tmp_path)
    assert (found["rank"] == 99).sum() == 5
    for name in ("lr_probe", "probe_cost"):
        expected = settings.set_index("key")[name]
        pd.testing.assert_series_equal(found.set_index("key")[name].loc[expected.index], expected)
    assert len(found_runs) == len(runs)
    assert (found_runs["kind"] == "probe").sum() == (runs["kind"] == "probe").sum() > 50


@pytest.mark.parametrize("folder", [HERE, LONG])
def test_short_runs_are_what_the_tables_say_and_no_gap_lies_between_them(folder):
    settings, runs = read(folder)
    settings = settings[settings["lr_probe"].notna()]
    assert len(settings) >= 15 and set(settings["steps"]) <= {60, 120, 300}
    for row in settings.to_dict("records"):
        own = runs[(runs["key"] == row["key"]) & (runs["kind"] == "probe")]
        assert set(own["steps"]) == {row["steps"] // 10}
        points = sorted(plan.nearest_point(lr) for lr in own["lr"])
        assert points == list(range(points[0], points[-1] + 1))
        assert row["probe_cost"] == len(own) * row["steps"] // 10 * row["batch_size"]
        (swept,) = curves(own.assign(kind="sweep"), pd.DataFrame([row | {"censored": False}])).values()
        assert score(swept, None, None, None).best_lr == pytest.approx(row["lr_probe"], rel=1e-5)


def test_the_power_of_n_is_what_the_small_models_say_alone(table):
    told = step_length.study(table)
    written = read_json(step_length.HERE / "step_length.json")
    assert told["power"] == pytest.approx(written["power"])
    for row, other in zip(told["held"], written["held"], strict=True):
        assert row == {name: pytest.approx(value) for name, value in other.items()}
    assert told["interval"][0] < 0.25 < told["interval"][1]
    real = table["model"] == "smollm2-135m"
    moved = table.assign(best_lr=table["best_lr"].where(~real, table["best_lr"] * 7))
    assert step_length.study(moved)["power"] == told["power"]


def test_the_noise_between_seeds_is_that_of_the_committed_runs():
    found = noise.between_seeds(*read())
    written = read_json(noise.HERE / "noise.json")
    assert noise.summary(found).items() <= written["summary"].items()
    # Of one and the same curve there is none, but for the curve between its points: the best learning rate is
    # a parabola's, the regret a monotone interpolation's.
    settings, runs = read()
    same = pd.concat(
        [runs[runs["seed"] == 0], runs[(runs["seed"] == 0) & (runs["kind"] == "sweep")].assign(seed=1)]
    )
    calm = noise.between_seeds(settings, same)
    assert calm["factor"].max() == pytest.approx(1) and calm["regret"].max() < 0.01


def test_parameters_times_k_move_the_combined_law_and_adams_by_k():
    """λ × k^-2 and so √(L / (λ·√n)) × k, 38/λ_P × k, critical rate × k, and Adam's best learning rate × k."""
    k = 3.0
    for law in (load_calibration().combined, load_calibration().adam):
        plain = {
            "batch_size": 4,
            "steps": 60,
            "lr_stability": 0.01,
            "lr_critical_start": 0.1,
            "lr_eigenvalue": 9.0,
        }
        scaled = plain | {"lr_stability": 0.01 * k, "lr_critical_start": 0.1 * k, "lr_eigenvalue": 9.0 * k}
        both = [law(**{name: values[name] for name in law.exponents}) for values in (plain, scaled)]
        assert both[1] / both[0] == pytest.approx(k)


def test_what_two_rows_say_is_scored_as_the_committed_measurements_have_it():
    bench, prices = price.bench(), pd.read_csv(price.FILE)
    written = read_json(price.FILE.with_suffix(".json"))
    small = bench[bench["model"] != LARGE]
    (asked,) = (one for one in price.WAYS if (one.warmup_steps, one.products) == (5, 6))
    made = price.priced(small, prices, asked)
    assert len(made) == len(small) >= 130, "every setting of the small models was measured"
    for law in ("combined", "probe"):
        (row,) = (
            one
            for one in written["findings"]
            if (one["way"], one["law"], one["left_out"]) == (asked.told, law, "model")
        )
        found = price.judged(made, BY_NAME[law], "model")
        assert found == pytest.approx({name: row[name] for name in found})
    for row, told in zip(price.moved(bench, prices), written["moved"], strict=True):
        assert row == pytest.approx(told)
    # The quantities are those of the products that were asked for, and the price is theirs.
    one = made.iloc[0]
    own = prices[(prices["key"] == one["key"]) & (prices["warmup_steps"] == 5)].iloc[0]
    assert one["lambda_start"] == own["lambda_6"] <= own["lambda_10"]
    assert one[AFTER + "lr_stability"] == pytest.approx(38 / own["lambda_p_4"])
    assert (one["price_lambda"], one["price_warmup"]) == (2 * 7, 5 * one["batch_size"])


def test_a_coarse_grid_has_its_best_nearer_to_the_truth_than_its_vertex():
    found = coarse.study()
    outside = found[found["outside"]]
    assert len(outside) > 30 and outside["scored"].mean() < outside["vertex"].mean()
    inside = found[~found["outside"]]
    assert inside["scored"].to_numpy() == pytest.approx(inside["vertex"].to_numpy(), abs=1e-6)


def test_a_second_seed_counts_where_it_was_run_throughout(tmp_path, monkeypatch):
    """Made up: a twin of a setting's first seed whose losses are those of the next learning rate up."""
    first = table_of.from_documents(HERE / "later")
    (key, *_), runs = first[0]["key"], first[1]
    own = runs[runs["key"] == key].sort_values("lr", ignore_index=True)
    shifted = own.assign(seed=1, final_loss=own["final_loss"].shift(-1).fillna(own["final_loss"].max()))
    told = shifted.drop(columns=["key", "kind"]).to_dict("records")
    monkeypatch.setattr(table_of, "SECOND", tmp_path)
    for some, seeds in ((told[:-1], 1), (told, 2)):
        write_json(tmp_path / f"{key}.json", {"runs": some})
        settings, both = table_of._with_second_seed("later")
        row = settings.set_index("key").loc[key]
        assert row["seeds"] == seeds and (both["key"] == key).sum() == seeds * len(own)
        (swept,) = curves(both, settings[settings["key"] == key]).values()
        assert row["best_lr"] == score(swept, None, None, None).best_lr
    before = first[0].set_index("key")
    assert settings.set_index("key").loc[key, "best_lr"] < before.loc[key, "best_lr"]
    pd.testing.assert_frame_equal(settings[settings["key"] != key], first[0][first[0]["key"] != key])


def test_the_second_seed_begins_at_the_first_ones_best_learning_rate():
    first = pd.DataFrame({"lr": [1.0, 2.0, 4.0, 8.0], "final_loss": [5.0, 3.0, 2.9, 4.0]})
    assert second_seed.by_nearness(first) == [4.0, 2.0, 8.0, 1.0]
    asked = {key: (setting, rates) for key, setting, rates in second_seed.wanted()}
    settings, runs = read()
    assert set(asked) == set(settings[settings["model"] == LARGE]["key"])
    for key, (setting, rates) in asked.items():
        own = runs[(runs["key"] == key) & (runs["seed"] == 0)]
        assert set(rates) == set(own["lr"]) and setting.model == LARGE
        assert setting.steps == own["steps"].max()


def test_what_a_law_misses_beyond_its_settings_is_within_what_ranges_allow(table):
    written = read_json(beyond.HERE / "beyond.json")
    found = beyond.study(beyond.with_extent(table, written["models"]))
    for row, other in zip(found, written["rows"], strict=True):
        assert row == {k: pytest.approx(v) if isinstance(v, float) else v for k, v in other.items()}
        assert row["per_e"] <= CARRIED.get(row["quantity"], EXTRAPOLATION)
    assert beyond.as_table(found) in (beyond.HERE.parent / "pages" / "beyond.md").read_text(encoding="utf-8")
    small = {name: written["models"][name] for name in ("gpt2-2m", "llama-3m")}
    assert beyond.sizes(list(small)) == small
    for law in (getattr(load_calibration(), name) for name in beyond.NAMES):
        assert law.domain["model_size"] == [min(small.values()), written["models"]["smollm2-135m"]]


def test_no_setting_beyond_a_cut_has_a_part_in_the_fit(table):
    """Whatever was best beyond, the law that predicts it is the same: the error moves as much."""
    sized = beyond.with_extent(table, read_json(beyond.HERE / "beyond.json")["models"])
    far = sized["model_size"] > 1e7
    moved = sized.assign(best_lr=sized["best_lr"].where(~far, sized["best_lr"] * 7))
    before, after = (beyond.study(one)[0] for one in (sized, moved))
    assert before["quantity"] == "model_size" and before["towards"] == "more"
    assert before["error"] - after["error"] == pytest.approx(np.log(7))


def test_the_page_has_the_real_models_other_shapes():
    page = (HERE.parent / "pages" / "shapes.md").read_text(encoding="utf-8")
    rows = later.found(SHAPES)
    for told in (later.table(rows, later.SHAPED), later.each_predictor(rows)):
        assert told.split("\n\n")[0] in page
