"""The bench axis by axis, its laws' terms, its nested choice and its baselines: honest, and as told."""

import numpy as np
import pandas as pd
import pytest
from tolerances import REFITTED

from experiments.lr_bench import axes, axes_baselines, axes_terms, nested
from experiments.lr_bench.evaluate import scored
from experiments.lr_bench.held_out import fit, predict
from experiments.lr_bench.laws import LAWS, Law
from experiments.lr_bench.table import HERE, LONG, read
from hessian_lr.records import read_json

BY_NAME = {law.name: law for law in LAWS}
PAGES = axes.HERE.parent / "pages"
# A csv keeps six digits.
WRITTEN = 1e-5
TASKS = ("code", "commonsense", "math", "instruction")


@pytest.fixture(scope="module")
def table():
    return nested.with_powers(axes_terms.prepared(read()[0]))


def spoilt(table, inside):
    """The table with other answers in a group."""
    changed = table.copy()
    changed.loc[inside, "best_lr"] *= np.geomspace(0.01, 100, inside.sum())
    return changed


@pytest.mark.parametrize("split", axes.SPLITS)
def test_a_groups_answers_move_neither_its_predictions_nor_its_ranges(table, split):
    column = table[axes.SPLITS[split]]
    inside = column == column.value_counts().index[0]
    before, after = (axes.held_out(one, "combined", split) for one in (table, spoilt(table, inside)))
    pd.testing.assert_frame_equal(before[inside], after[inside])
    assert not np.allclose(before[~inside]["lr"], after[~inside]["lr"])
    assert not np.allclose(before[~inside]["half"], after[~inside]["half"])


@pytest.mark.parametrize(
    ("split", "group", "inner"),
    [("model", "llama-3m", nested.SAME), ("data", "code", nested.METHOD), ("method", "pissa", nested.SAME)],
)
def test_the_law_is_chosen_without_the_groups_answers_and_by_the_others(table, split, group, inner):
    split = {"data": "task"}.get(split, split)
    laws = [BY_NAME[name] for name in ("constant fitted", "c / sqrt lambda", "lambda", "combined", "adam")]
    inside = table[axes.SPLITS[split]] == group

    def told(one):
        return nested.nested(laws, one, split, inner, [group])

    before, after = told(table), told(spoilt(table, inside))
    for one, other in zip(before, after, strict=True):
        pd.testing.assert_series_equal(one.pop("lr"), other.pop("lr"))
        assert one == other
    # The others' answers do choose: were those one law's own, it would be chosen, and hold them exactly.
    (wanted,) = (law for law in laws if law.name == "c / sqrt lambda")
    exact = predict(wanted, np.array([0.0, -0.5]), table)
    assert {one["law"] for one in before} != {wanted.name}
    ruled = told(table.assign(best_lr=table["best_lr"].where(inside, exact)))
    assert {one["law"] for one in ruled if one["criterion"] == "mean"} == {wanted.name}
    assert all(one["half"] == pytest.approx(1, abs=1e-6) for one in ruled if one["criterion"] == "mean")


def test_the_choice_is_the_law_with_the_least_error_on_groups_that_its_fit_has_not_seen(table):
    """Redone here with nothing of the module but the laws."""
    laws = [BY_NAME[name] for name in ("eigenvalue", "combined", "adam", "c / lambda")]
    others = table[table["model"] != "smollm2-135m"]
    means = {}
    for law in laws:
        errors = []
        for own in ("llama-3m", "gpt2-2m"):
            weights = fit(law, others[others["model"] != own])
            asked = others[others["model"] == own]
            errors += list(np.abs(np.log(predict(law, weights, asked) / asked["best_lr"])))
        means[law.name] = np.mean(errors)
    found = nested.nested(laws, table, "model", groups=["smollm2-135m"])
    (chosen,) = (row for row in found if row["criterion"] == "mean")
    assert chosen["law"] == min(means, key=means.get)


def test_the_powers_of_n_are_those_of_the_shipped_law(table):
    """n^¼ is ``eigenvalue``, n^½ ``sharpness``: a power between two others predicts between them."""
    for low, power, high in (("n^0.125", "lr_eigenvalue", "n^0.375"), ("n^0.375", "lr_sharpness", None)):
        assert (table[f"lr_{low}"] > table[power]).all()
        if high:
            middle = np.sqrt(table[f"lr_{low}"] * table[f"lr_{high}"])
            assert middle.to_numpy() == pytest.approx(table[power].to_numpy(), rel=WRITTEN)
    laws = {law.name for law in nested.candidates(table)}
    assert {"combined", "combined, n^0.125", "constant fitted"} <= laws
    assert "probe" not in laws, "which few settings have"


@pytest.fixture(scope="module")
def by_axis():
    return pd.read_csv(axes.FILE, dtype={"value": str}).to_dict("records")


@pytest.mark.parametrize("split", axes.SPLITS)
def test_each_axis_is_told_as_the_table_says(table, by_axis, split):
    half = np.exp(axes.load_calibration().combined.log_half_width)
    made = axes.along(table, axes.held_out(table, "combined", split), half)
    written = [row for row in by_axis if (row["law"], row["left_out"]) == ("combined", split)]
    assert [row["value"] for row in made] == [row["value"] for row in written]
    for row, told in zip(made, written, strict=True):
        assert row == {name: _near(told[name], WRITTEN) for name in row}
    for axis in axes.AXES:  # every setting once on each
        assert sum(row["settings"] for row in made if row["axis"] == axis) == len(table)
    (everything,) = (row for row in made if row["axis"] == "all")
    if split != "task":
        rows = read_json(HERE / "evaluation.json")["rows"]
        (published,) = (row for row in rows if (row["law"], row["left_out"]) == ("combined", split))
        for name in ("median_factor", "p90_factor", "coverage"):
            assert everything[name] == pytest.approx(published[name], rel=REFITTED)


def test_settings_in_no_fit_are_not_the_benchs_and_are_told_as_the_shipped_constants_have_them(by_axis):
    later = axes.unseen()
    assert not set(later["key"].dropna()) & set(read()[0]["key"])
    assert set(axes.OPTIMIZERS) <= set(later["method"]) and 300 in set(later["steps"])
    half = np.exp(axes.load_calibration().adam.log_half_width)
    made = axes.along(later, axes.as_shipped(later, "adam"), half)
    written = [row for row in by_axis if (row["law"], row["left_out"]) == ("adam", axes.NO_FIT)]
    for row, told in zip(made, written, strict=True):
        assert row == {name: _near(told[name], WRITTEN) for name in row}


def test_a_bias_is_to_the_side_that_it_says():
    """Made up: one task predicted half as high as it should be, the other exactly."""
    made = pd.DataFrame({"data": ["a"] * 6 + ["b"] * 6, "best_lr": 1.0, "rank": 4, "alpha": 8.0, "steps": 1})
    made = made.assign(method="lora", model="m", target_modules="all-linear", batch_size=1)
    told = pd.DataFrame({"lr": [0.5] * 6 + [1.0] * 6, "half": 1.5})
    rows = {(row["axis"], row["value"]): row for row in axes.along(made, told, 3.0)}
    assert rows["task", "a"]["bias"] == pytest.approx(0.5) and rows["task", "a"]["coverage"] == 0
    assert rows["task", "b"]["bias"] == pytest.approx(1) and rows["task", "b"]["coverage"] == 1
    assert rows["all", "all"]["held"] == 6 and rows["all", "all"]["median_width"] == pytest.approx(2.25)
    assert rows["alpha / rank", "2"]["shipped_coverage"] == 1
    (task,) = (row for row in axes.spread(made, told) if row["axis"] == "task")
    # Ranks apart altogether: H = 11 with this many ties, one degree of freedom.
    assert task["apart"] == pytest.approx(2) and task["p"] == pytest.approx(9.1e-4, rel=0.01)


def test_terms_of_the_setting_are_judged_as_told(table):
    written = read_json(axes_terms.FILE)["rows"]
    for law, terms in (("combined", "rank, alpha / rank"), ("adam", "rank")):
        (row,) = (one for one in written if (one["law"], one["terms"]) == (law, terms))
        own = axes_terms.with_terms(BY_NAME[law], axes_terms.TERMS[terms])
        for split in axes.SPLITS:
            errors = axes_terms.errors(own, table, split)
            assert np.exp(errors.median()) == pytest.approx(row[split]["median_factor"], rel=REFITTED)
            assert np.exp(errors.quantile(0.9)) == pytest.approx(row[split]["p90_factor"], rel=REFITTED)


def test_a_power_of_the_rank_that_is_there_is_found(table):
    """Made up: answers of a law times rank^0.4."""
    law = BY_NAME["eigenvalue"]
    own = predict(law, np.array([0.0, 1.0, -0.2, 0.2]), table)
    made = table.assign(best_lr=own * table["rank"] ** 0.4)
    with_it = axes_terms.with_terms(law, ("rank",))
    (power, low, high) = axes_terms.exponents(with_it, ("rank",), made)["rank"]
    assert power == pytest.approx(0.4, abs=0.02) and low <= power <= high
    assert axes_terms.errors(with_it, made, "method").median() < 0.05
    assert axes_terms.errors(law, made, "method").median() > 0.2
    assert isinstance(with_it, Law) and "rank" not in law.terms


def test_the_nested_errors_are_those_of_their_choices(table):
    kept = pd.read_csv(nested.FILE)
    rows = read_json(nested.FILE.with_suffix(".json"))["rows"]
    pool, split = "every setting", "model"
    scores, chosen = nested.study(table, read()[1], pool, split)
    same = kept[(kept["pool"] == pool) & (kept["left_out"] == split)].reset_index(drop=True)
    pd.testing.assert_frame_equal(pd.DataFrame(chosen)[list(same)], same)
    written = [row for row in rows if (row["pool"], row["left_out"]) == (pool, split)]
    for row, told in zip(scores, written, strict=True):
        assert row == {name: _near(told[name], REFITTED) for name in row}


def test_baselines_are_held_against_ours_on_the_same_settings(table):
    written = read_json(axes_baselines.FILE)["rows"]
    made = axes_baselines.study(table)
    made += axes_baselines.longest(read_json(LONG / "evaluation.json")["rows"])
    for row, told in zip(made, written, strict=True):
        assert row == {name: _near(told[name], REFITTED) for name in row}
    # 3e-4 off, from the table alone.
    off = np.exp(np.abs(np.log(3e-4 / scored(read()[0])["best_lr"]))).median()
    rows = read_json(HERE / "evaluation.json")["rows"]
    ours = {row["left_out"]: row["median_factor"] for row in rows if row["law"] == "combined"}
    for kind in axes_baselines.KINDS:
        (row,) = (one for one in made if (one["baseline"], one["left_out"]) == ("3e-4", kind))
        assert row["median_over_combined"] == pytest.approx(off / ours[kind], rel=REFITTED)
        (tenth,) = (one for one in made if (one["baseline"], one["left_out"]) == ("tenth of the steps", kind))
        ratio = tenth["median_factor"] / ours[f"{kind}, same settings"]
        assert tenth["median_over_combined"] == pytest.approx(ratio, rel=REFITTED)


def test_the_pages_show_these_results(by_axis):
    shown = {
        study: (PAGES / f"{study}.md").read_text(encoding="utf-8")
        for study in ("axes", "axes_terms", "nested", "axes_baselines")
    }
    assert axes.shown(by_axis, "combined") in shown["axes"]
    assert axes.shown_unseen(by_axis, axes.UNSEEN_AXES) in shown["axes"]
    assert axes.shown_spread(read_json(axes.FILE.with_suffix(".json"))["spread"]) in shown["axes"]
    assert axes_terms.shown(read_json(axes_terms.FILE)["rows"]) in shown["axes_terms"]
    choices = read_json(nested.FILE.with_suffix(".json"))["rows"]
    assert nested.shown(choices) in shown["nested"] and nested.shown_choices(choices) in shown["nested"]
    assert axes_baselines.shown(read_json(axes_baselines.FILE)["rows"]) in shown["axes_baselines"]


def test_what_users_are_told_is_what_was_found(by_axis):
    page = " ".join((HERE.parents[2] / "docs" / "accuracy.md").read_text(encoding="utf-8").split())
    rows = {(row["law"], row["left_out"], row["axis"], row["value"]): row for row in by_axis}
    biases = [rows["combined", "task", "task and model", f"{name}, small"]["bias"] for name in TASKS]
    code, commonsense, math_, instruction = (f"{bias:.2f}" for bias in biases)
    assert f"predicted {code} times as high as the best, `commonsense` {commonsense}, `math` {math_}" in page
    assert f"`instruction` {instruction} times. On SmolLM2" in page
    large = [rows["combined", axes.NO_FIT, "task and model", f"{name}, smollm2-135m"] for name in TASKS[2:]]
    math_, instruction = (f"{row['bias']:.2f} times" for row in large)
    assert f"`instruction` {instruction} (12 settings), `math` {math_} (seven" in page
    assert [row["settings"] for row in large] == [7, 12]
    pissa, code = (
        rows["combined", "method", axis, value] for axis, value in (("method", "pissa"), ("task", "code"))
    )
    held = [f"{row[name]:.0%}" for name in ("coverage", "shipped_coverage") for row in (pissa, code)]
    assert f"it held {held[0]} of PiSSA's settings and {held[1]} of `code`'s" in page
    assert f"would have held {held[2]} and {held[3]}" in page
    adam = rows["adam", "method", "task", "code"]
    assert f"that of `adam` only {adam['shipped_coverage']:.0%} of `code`'s" in page and adam["bias"] < 0.5
    ranks = [rows["combined", split, "rank", "64"]["bias"] for split in axes.SPLITS]
    assert f"`combined` is {min(ranks):.2f} to {max(ranks):.2f} times as high" in page
    choices = {
        row["left_out"]: f"{row['median_factor']:.2f} and {row['p90_factor']:.2f}"
        for row in read_json(nested.FILE.with_suffix(".json"))["rows"]
        if row["pool"] == "every setting"
        and row.get("chosen_by") == nested.SAME
        and row["criterion"] == "mean"
    }
    assert f"is {choices['method']} times off for a new method" in page
    assert f"for a new model {choices['model']} and not" in page
    assert f"for a new task {choices['task']}." in page


def _near(value, rel):
    return pytest.approx(value, rel=rel, nan_ok=True) if isinstance(value, float) else value
