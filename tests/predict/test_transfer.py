"""Transfer: exponents and offsets move a measured best learning rate as the law says, and no further."""

import json
import math
import re
from dataclasses import replace

import pytest
from report_files import SETTING, first_light

from hessian_lr.errors import RequestError
from hessian_lr.predict import load_calibration
from hessian_lr.predict.law import EXTRAPOLATION
from hessian_lr.predict.transfer import Transfer, quantities, transfer
from hessian_lr.setting import Setting
from hessian_lr.study import transfer as moved

LAW = Transfer(
    exponents={"rank": -0.5, "scaling": -1.0, "batch_size": 0.5, "steps": -0.25},
    methods={"lora": 0.0, "pissa": -1.0},
    log_half_width=math.log(2),
    log_half_width_method=math.log(5),
    settings=10,
    source="here",
    domain={"rank": [4, 64], "batch_size": [2, 16], "steps": [15, 960]},
)
KNOWN = Setting(rank=16, alpha=16, batch_size=4, steps=60)


@pytest.mark.parametrize(
    ("changes", "factor"),
    [
        ({}, 1),
        ({"rank": 64, "alpha": 64}, 0.5),
        ({"rank": 64, "alpha": 16}, 0.5 * 4),
        ({"batch_size": 16}, 2),
        ({"steps": 960}, 0.5),
        ({"method": "pissa"}, math.exp(-1)),
        # alpha / √r is four times plain LoRA's alpha / r at rank 16, and nothing else is another.
        ({"method": "rslora"}, 1 / 4),
        ({"method": "rslora", "alpha": 4}, 1),
    ],
)
def test_a_learning_rate_moves_as_the_law_says(changes, factor):
    found = transfer(LAW, [(KNOWN, 1e-3)], replace(KNOWN, **changes))
    assert found.lr == pytest.approx(1e-3 * factor)
    width = 5 if changes.get("method") == "pissa" else 2
    assert found.ends == pytest.approx((found.lr, found.lr / width, found.lr * width))
    assert "rank 16" in found.notes[0] and "0.001" in found.notes[0]


@pytest.mark.parametrize(
    ("known", "wanted", "outside", "ends"),
    [
        ({"steps": 960}, {"steps": 1920}, 2, ["steps 1920"]),
        ({"steps": 1920}, {"steps": 960}, 2, ["from steps 1920"]),
        ({"rank": 2}, {"rank": 16}, 2, ["from rank 2"]),
        # Of a way across the domain only what lies outside is a guess.
        ({"rank": 2}, {"rank": 128}, 2 * 2, ["from rank 2", "rank 128"]),
        ({"rank": 128}, {"rank": 2}, 2 * 2, ["from rank 128", "rank 2"]),
        # No guess is made of what both have.
        ({"steps": 10000}, {"steps": 10000, "rank": 32}, 1, []),
        ({"batch_size": 4096}, {"batch_size": 8192, "rank": 1024}, 2 * 16, ["rank 1024", "batch_size 8192"]),
    ],
)
def test_the_range_is_wider_by_how_far_the_way_lies_outside_what_was_tried(known, wanted, outside, ends):
    found = transfer(LAW, [(replace(KNOWN, **known), 1e-3)], replace(KNOWN, **wanted))
    assert found.factor == pytest.approx(2 * outside**EXTRAPOLATION)
    told = " ".join(note for note in found.notes if "so the range is wider" in note)
    assert re.findall(r"((?:from )?\w+ \d+) \(tried on", told) == ends and bool(told) == (outside > 1)


def test_the_way_there_and_back_ends_where_it_began():
    other = Setting(method="pissa", rank=4, alpha=8, batch_size=16, steps=200)
    there = transfer(LAW, [(KNOWN, 1e-3)], other).lr
    assert transfer(LAW, [(other, there)], KNOWN).lr == pytest.approx(1e-3)


def test_of_several_runs_the_same_method_then_the_same_data_then_the_nearest_counts():
    wanted = replace(KNOWN, method="pissa", rank=32)
    far = (replace(wanted, rank=4), 1e-4)
    near = (replace(wanted, rank=16), 2e-4)
    other_length = (replace(wanted, max_length=8), 5e-4)
    other_columns = (replace(wanted, rank=16, fields=("a", "b")), 6e-4)
    other_data = (replace(wanted, data="code"), 3e-4)
    other_method = (replace(wanted, method="lora"), 4e-4)
    runs = [other_method, other_data, other_columns, other_length, far, near]
    for chosen in (near, far, other_length, other_columns, other_data, other_method):
        assert f"{chosen[1]:.3g}" in transfer(LAW, runs, wanted).notes[0]
        runs.remove(chosen)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"data": "code"}, "math, not code"),
        ({"data": "code", "fields": ("text",)}, "math, not code"),
        ({"fields": ("b", "a")}, "the usual columns, not columns b,a"),
        (
            {"fields": ("text",), "max_length": 8},
            "the usual columns, not columns text, rows cut to 512 tokens, not 8",
        ),
    ],
)
def test_other_rows_are_told(changes, told):
    notes = transfer(LAW, [(KNOWN, 1e-3)], replace(KNOWN, **changes)).notes
    assert notes[1:] == (f"measured on {told}: what the data change is not known here",)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": "another"}, "model another"),
        ({"target_modules": ("v_proj", "q_proj")}, "with target modules q_proj,v_proj and optimizer"),
        ({"method": "olora"}, "'olora'"),
    ],
)
def test_what_nothing_is_known_of_is_refused(changes, message):
    with pytest.raises(RequestError, match=message):
        transfer(LAW, [(KNOWN, 1e-3)], replace(KNOWN, **changes))


def test_a_sweep_that_tells_no_best_is_named_with_what_to_do(tmp_path):
    whole = first_light()
    (row, *_) = whole["results"]
    edge = row | {"method": "pissa", "censored": True}
    nothing = row | {"method": "corda", "best_lr": None}
    failed = nothing | {"method": "dora", "runs": []}

    def said(*rows, method="lora"):
        found = tmp_path / "validate.json"
        found.write_text(json.dumps(whole | {"results": rows}))
        with pytest.raises(RequestError) as caught:
            moved(replace(SETTING, method=method), found)
        return str(caught.value)

    why = "its best learning rate lies at the edge of its sweep: run more learning rates"
    assert said(edge) == f"nothing can be moved from pissa, rank 16, alpha 16: {why}"
    assert said(edge, failed, row, method="corda").startswith("nothing is known of how")
    assert "from corda, rank 16, alpha 16: no learning rate" in said(nothing, row, method="corda")
    assert said(failed).endswith("validate one setting of it first")


def test_a_method_the_law_does_not_know_moves_to_itself():
    olora = replace(KNOWN, method="olora")
    assert transfer(LAW, [(olora, 1e-3)], replace(olora, batch_size=16)).lr == pytest.approx(2e-3)


def test_the_shipped_law_has_what_settings_can_tell():
    law = load_calibration().transfer
    assert law.exponents.keys() <= quantities(KNOWN).keys()
    assert "lora" in law.methods and law.log_half_width > 0
    # What the study found for plain LoRA: the best learning rate falls with r where alpha = r.
    assert law.exponents["rank"] < 0


def test_data_under_two_paths_are_the_same(tmp_path, monkeypatch):
    (tmp_path / "rows.jsonl").write_text("")
    monkeypatch.chdir(tmp_path)
    same, other = replace(KNOWN, data="rows.jsonl", steps=90), replace(KNOWN, data="code")
    for place in ("./rows.jsonl", str(tmp_path / "rows.jsonl")):
        found = transfer(LAW, [(other, 1e-3), (same, 2e-3)], replace(KNOWN, data=place))
        assert "0.002" in found.notes[0] and len(found.notes) == 1


def test_one_model_under_two_paths_and_modules_in_another_order_are_the_same(tmp_path, monkeypatch):
    (tmp_path / "model").mkdir()
    monkeypatch.chdir(tmp_path)
    known = Setting(model="model", target_modules=("q_proj", "v_proj"))
    law = load_calibration().transfer
    for place in ("model/", "./model", str(tmp_path / "model")):
        wanted = Setting(model=place, target_modules=("v_proj", "q_proj", "v_proj"))
        assert transfer(law, [(known, 1e-3)], wanted).lr == pytest.approx(1e-3)
    assert (
        Setting(target_modules=("v_proj", "q_proj")).key == Setting(target_modules=("q_proj", "v_proj")).key
    )


def test_one_adapter_under_two_paths_is_the_same_and_another_is_named(tmp_path, monkeypatch):
    for name, rank in (("a.json", 2), ("b.json", 4)):
        values = {"peft_type": "LORA", "r": rank, "lora_alpha": 2, "target_modules": ["q_proj"]}
        (tmp_path / name).write_text(json.dumps(values))
    monkeypatch.chdir(tmp_path)
    known = (Setting(peft_config="a.json"), 1e-3)
    for place in ("./a.json", str(tmp_path / "a.json")):
        assert transfer(LAW, [known], Setting(peft_config=place)).lr == pytest.approx(1e-3)
    with pytest.raises(RequestError, match=r"with the adapter b\.json and optimizer"):
        transfer(LAW, [known], Setting(peft_config="b.json"))
