"""The cost curve: its fits on planted growth, one real point at the smallest size, its committed results."""

import pytest

from experiments.cost_curve import points, worker
from experiments.cost_curve.growth import growths, series
from experiments.cost_curve.points import AXES, QUICK_AXES, axis_shapes, requests
from hessian_lr.records import read_json, write_json


def planted(exponents):
    """Measurements of the quick grid whose cost is each axis's value to a power."""
    made = []
    for axis, exponent in exponents.items():
        made += [
            {"shape": shape, "dtype": "float32", "what": "kept", "ratio": 1.2, "resident_before": 100}
            | {
                "product_seconds": 0.01 * value**exponent,
                "gradient_seconds": 1.0,
                "peak_bytes": 100 + value**2,
            }
            for value, shape in axis_shapes(axis, quick=True)
        ]
    return made


def test_planted_powers_are_found_and_what_was_resident_is_not_counted():
    exponents = {"tokens": 1.0, "rank": 0.5}
    for axis, exponent in exponents.items():
        found = {one["quantity"]: one for one in growths(planted({axis: exponent}), quick=True)}
        assert found["product_seconds"]["exponent"] == pytest.approx(exponent)
        assert found["own_bytes"]["exponent"] == pytest.approx(2.0)
        assert found["ratio"]["exponent"] == pytest.approx(0.0, abs=1e-9)


def test_a_failed_point_is_left_out_and_two_points_are_no_line():
    made = planted({"tokens": 1.0})
    made[0]["failed"] = "not done"
    assert len(series(made, "tokens", "float32", "kept", quick=True)) == len(QUICK_AXES["tokens"][2]) - 1
    assert not growths(made, quick=True)


def test_every_axis_passes_through_the_same_base_but_for_the_single_row():
    for axis in AXES:
        shapes = [shape for _, shape in axis_shapes(axis, quick=False)]
        assert (points.BASE in shapes) == (axis != "length of one row")
    assert len({str(one) for one in requests(quick=False)}) == len(requests(quick=False))


def test_a_product_of_a_small_model_is_measured_beside_its_gradient(tmp_path, monkeypatch):
    asked, answer = tmp_path / "request.json", tmp_path / "answer.json"
    monkeypatch.setattr(worker, "VOCABULARY", 64)
    # What the worker sets for its whole process is not for this one.
    monkeypatch.setattr(worker, "keep_freed_memory", lambda: None)
    monkeypatch.setattr(worker.torch, "set_num_threads", lambda _: None)
    shape = points.QUICK_BASE | {"rows": 1}
    write_json(
        asked,
        {"shape": shape, "dtype": "float32", "what": "kept", "threads": 1, "repeats": 1, "out": str(answer)},
    )
    monkeypatch.setattr("sys.argv", ["worker", str(asked)])
    worker.main()
    found = read_json(answer)
    assert found["graphs_kept"] == 1 and found["peak_bytes"] > 0
    assert found["ratio"] == pytest.approx(found["product_seconds"] / found["gradient_seconds"])
