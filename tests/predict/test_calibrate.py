"""What `calibrate` learns from the rows of `validate`."""

from dataclasses import replace
from pathlib import Path

import made_rows
import pytest

from hessian_lr.validated import Validated, observation, observations

SETTING = {
    "model": "m",
    "data": "d",
    "rank": 2,
    "alpha": 2.0,
    "batch_size": 4,
    "steps": 8,
    "seed": 0,
    "samples": 2,
}
MEASURED = {"lr_stability": 1e-2, "lr_critical_start": 2e-2, "lr_eigenvalue": 3e-2, "lr_sharpness": 4e-2}


RUN = made_rows.run(1e-3)


def validated(method="lora", best_lr=1e-3, folder="runs", seeds=(), **changed):
    made = made_rows.swept if "label" in changed else made_rows.scored
    row = made(method=method, best_lr=best_lr, best_loss=1.0, **MEASURED | changed)
    return Validated(Path(folder, "validate.json"), SETTING, row, seeds=seeds)


@pytest.mark.parametrize(
    ("method", "known"), [("lora", (3e-2, 4e-2)), ("lora+", (None, None)), ("loft", (None, None))]
)
def test_lambda_teaches_nothing_where_the_method_has_an_optimizer_of_its_own(method, known):
    learned = observation(validated(method)).quantities
    assert (learned.lr_eigenvalue, learned.lr_sharpness) == known
    assert (learned.lr_stability, learned.lr_critical_start, learned.samples) == (1e-2, 2e-2, 2)


@pytest.mark.parametrize(("row", "known"), [({}, 2), ({"samples": 1}, 1)])
def test_the_rows_measured_count_where_they_are_told(row, known):
    assert observation(validated(**row)).quantities.samples == known


def test_a_copied_setting_counts_once_and_is_told():
    rows = [validated(), validated(folder="copy"), validated("pissa")]
    learned, notes = observations(rows)
    assert learned == [observation(rows[place]) for place in (0, 2)]
    assert notes == ["lora of copy/validate.json is that of lora of runs/validate.json, and counts once"]


def test_a_setting_that_gained_a_learning_rate_counts_once_with_all_of_its_runs():
    """A sweep in the folder of `validate` finds its runs, and moves the best learning rate a little."""
    before = validated(seeds=(0, 1), runs=(RUN,) * 4)
    after = validated(best_lr=1.1e-3, seeds=(0, 1), runs=(RUN,) * 6, label="lora, rank 2")
    bare = validated(best_lr=1.2e-3, seeds=(0, 1, 2), runs=(RUN,) * 9, lr_stability=None)
    for rows in ([before, after, bare], [bare, after, before]):
        learned, notes = observations(rows)
        assert [one.best_lr for one in learned] == [1.1e-3]
        assert len(notes) == 2 and all("is that of lora, rank 2 of runs/validate.json" in n for n in notes)
    # The longer row says that the best lies at an edge: then the shorter one's is not the best.
    edge = replace(after, row=replace(after.row, censored=True))
    assert observations([before, edge])[0] == []


def test_settings_are_told_apart_by_all_that_decides_their_numbers():
    def told(setting=(), **changed):
        one = validated()
        return replace(
            one, common=one.common | dict(setting), **{"contents": ("d1", "m1"), **changed}
        ).identity

    others = [
        *(told({name: 9}) for name in ("rank", "batch_size", "steps", "seed", "samples")),
        *(told(contents=contents) for contents in (("d2", "m1"), ("d1", "m2"))),
        *(told({"target_modules": ["q"]}), told({"optimizer": "sgd"}), told(seeds=(3, 4))),
    ]
    assert len({told(), *others}) == 1 + len(others)
    assert (
        told()
        == told({"model": "elsewhere/m", "data": "e"})
        == told({"device": "cuda"})
        == told(seeds=(0, 1))
    )
    # Without digests names are all there is.
    assert told({"model": "n"}, contents=(None, None)) != told(contents=(None, None))
