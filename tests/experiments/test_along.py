"""The study of η·λ_P along training runs: its measurements, its arithmetic, and its page as measured."""

import math

import numpy as np
import pandas as pd
import pytest
import torch
from tiny_models import adapted, make_batch
from tolerances import REFITTED, RTOL_TIGHT

from experiments.lr_bench import along, along_findings
from experiments.lr_bench.evaluate import scored
from experiments.lr_bench.laws import LAWS, THEORY, Law
from experiments.lr_bench.price import bench as whole
from experiments.lr_bench.table import HERE, read
from hessian_lr.records import read_json


@pytest.fixture(scope="module")
def bench():
    return whole()


@pytest.fixture(scope="module")
def points():
    return along_findings.with_ratio(pd.read_csv(along_findings.FILE))


def test_what_follows_a_step_sees_its_rate_and_its_moments_and_is_gone_afterwards():
    model = adapted("llama", torch.float32)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.5)
    seen = []
    for followed in (True, False):
        for p in optimizer.param_groups[0]["params"]:
            p.grad = torch.ones_like(p)
        if followed:
            with along.after_steps(lambda one: seen.append((one is optimizer, one.param_groups[0]["lr"]))):
                optimizer.step()
        else:
            optimizer.step()
    assert seen == [(True, 0.5)]


def test_a_model_that_has_diverged_has_no_curvature_and_ends_nothing():
    model = adapted("llama", torch.float32)
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=0.1)
    for p in parameters:
        p.grad = torch.ones_like(p)
    optimizer.step()
    found = along.curvature(model, [make_batch(2, 9, seed=1)], optimizer, torch.float32)
    assert found["lambda_p"] > 0 and math.isfinite(found["loss"])
    with torch.no_grad():
        parameters[0].fill_(math.nan)
    assert along.curvature(model, [make_batch(2, 9, seed=1)], optimizer, torch.float32) == {}


def made_up(table, power):
    """η·λ_P / 38 as if it were (η / best)^power at every moment, as ``along`` tells it."""
    rows = [
        {"key": row["key"], "away": away, "lr": lr, "share": share, "eta": lr}
        | {"lambda_p": along_findings.THRESHOLD / lr * (lr / row["best_lr"]) ** power}
        for row in table.to_dict("records")
        for away in along_findings.AWAY
        for share in along_findings.SHARES
        for lr in (row["best_lr"] * 10 ** (away / 4),)
    ]
    return along_findings.with_ratio(pd.DataFrame(rows))


def test_a_ratio_that_tells_the_best_rate_is_found_to_tell_it():
    table = scored(read()[0]).iloc[::4].reset_index(drop=True)
    (law,) = (one for one in LAWS if one.name == "constant fitted")
    ideal = made_up(table, 2.0)
    at_moment = ideal[ideal["share"] == 1 / 4]
    found = along_findings.corrected(law, table, at_moment, table["method"])
    # Beyond the runs that were made nothing is told.
    near = found[np.abs(np.log(found["first"] / found["best_lr"])) < np.log(10 ** (2 / 4))]
    assert len(near) > 10
    first, then = (np.abs(np.log(near[name] / near["best_lr"])) for name in ("first", "then"))
    assert then.median() < first.median() / 5
    assert all(row[f"right_{away}"] == 1 for row in along_findings.sides(table, ideal) for away in (-2, 0, 2))
    blind = along_findings.sides(table, made_up(table, 0.0))
    assert all(row["right_0"] + row["right_-2"] + row["right_2"] == pytest.approx(1) for row in blind)


def test_the_ratio_at_a_rate_lies_between_those_of_the_runs():
    table = scored(read()[0]).head(1)
    points = made_up(table, 2.0)
    best = float(table["best_lr"].iloc[0])
    rate = pd.Series({table["key"].iloc[0]: best * 10**0.25})
    found = along_findings.at(points[points["share"] == 1 / 8], rate)
    assert found.iloc[0] == pytest.approx(10**0.5, rel=RTOL_TIGHT)


def test_no_answer_of_the_left_out_group_moves_what_a_run_makes_of_its_predictions(bench, points):
    own = points[points["share"] == 1 / 4]
    table = bench[bench["key"].isin(own["key"])].reset_index(drop=True)
    group = table["method"] == "pissa"
    other = table.assign(best_lr=np.where(group, table["best_lr"] * 3, table["best_lr"]))
    law = Law("c · η_c", {"lr_critical_start": THEORY})
    before, after = (
        along_findings.corrected(law, one, own, one["method"]).set_index("key")["then"]
        for one in (table, other)
    )
    keys = table.loc[group, "key"]
    keys = keys[keys.isin(before.index)]
    assert len(keys) and before[keys].to_numpy() == pytest.approx(after[keys].to_numpy())


def test_the_page_has_the_tables_as_measured(bench, points):
    told = read_json(along_findings.FILE.with_suffix(".json"))
    for name, rows in (
        ("levels", along_findings.levels(bench, points)),
        ("sides", along_findings.sides(bench, points)),
    ):
        pd.testing.assert_frame_equal(pd.DataFrame(rows), pd.DataFrame(told[name]), rtol=REFITTED)
    page = (HERE.parent / "pages" / "along.md").read_text(encoding="utf-8")
    for table in along_findings.shown(told):
        assert table in page
