"""The study of tracked values: what crosses is found, and its page says what its results say."""

from __future__ import annotations

import pandas as pd

from experiments.tracking import crossing, run
from hessian_lr.measure import track
from hessian_lr.records import read_json


def test_the_second_vector_shows_an_eigenvalue_that_overtakes_the_first():
    shares = {}
    for second in (0.0, track._SECOND):
        found = pd.DataFrame(crossing.followed(second, range(1)))
        assert found["ratio"].max() <= 1.01, "a Rayleigh quotient, up to what the bulk adds to λ"
        shares[second] = (found["ratio"] < run.MISSED).mean()
    assert shares[track._SECOND] < 0.5 * shares[0.0]
    assert track.HessianOperator.__name__ == "HessianOperator", "put back"


def test_the_page_says_what_the_results_say():
    page = (run.HERE / "README.md").read_text(encoding="utf-8")
    results = read_json(run.HERE / "results.json")
    runs = pd.DataFrame(results["runs"])
    runs = runs[runs["step"] > runs["every"]]
    for (steps, every, dropout), those in runs.groupby(["steps", "every", "dropout"]):
        lowest = f"{those['ratio'].min():.2f} | {those['ratio_preconditioned'].min():.2f}"
        spent = f"{those['products'].mean():.1f} | {len(those)}"
        assert f"| {steps} steps | {every} | {dropout:g} | {lowest} | {spent} |" in page
    means = runs.groupby(["steps", "every", "dropout"])["products"].mean()
    made = pd.DataFrame(results["crossings"])
    made = made[made["update"] > 0]
    alone = made[made["second"] > 0]["products"].mean()
    text = " ".join(page.split())
    assert f"two together took {means.min():.1f} to {means.max():.1f} here" in text
    assert f"where λ alone is followed, took {alone:.1f}." in text
    for _, those in made.groupby("second"):
        missed = (those["ratio"] < run.MISSED).mean()
        told = (
            f"| {those['ratio'].min():.2f} | {missed:.0%} | {len(those)} | {those['products'].mean():.1f} |"
        )
        assert told in page
