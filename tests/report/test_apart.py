"""Parts of a report of one heading: told apart by what varies."""

import pytest
from report_files import SETTING, first_light, written

from hessian_lr.report import write_report


def swept_over(folder, changes):
    """A file of ``sweep``: the committed study's lora under several settings."""
    (row, *_) = first_light()["results"]
    own = {
        "label": "",
        "seeds": [0],
        "lrs": "auto",
        "missing": [],
        "data_digest": "d",
        "model_fingerprint": "m",
    }
    rows = [row | own | {"setting": SETTING.to_dict() | change} for change in changes]
    for one in rows:
        del one["setting"]["seed"]
        one["method"] = one["setting"]["method"]
    return written(folder / "sweep.json", {"schema": 1, "file": "f.yaml", "varying": [], "results": rows})


ADAPTERS = [
    {"method": "peft-config", "peft_config": {"path": path, "digest": digest}}
    for path, digest in (("a.json", "1"), ("b.json", "2"), ("a.json", "2"))
]


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        (
            [{"target_modules": "all-linear"}, {"target_modules": ["q_proj", "v_proj"]}],
            ["target modules all-linear", "target modules q_proj v_proj"],
        ),
        ([{"max_length": 4}, {"max_length": 512}], ["max length 4", "max length 512"]),
        (
            [{"fields": None, "steps": 9}, {"fields": ["q", "a"], "steps": 9}],
            ["fields found by their usual names", "fields q a"],
        ),
        (ADAPTERS[:2], ["peft config a.json", "peft config b.json"]),
        (ADAPTERS[::2], ["peft config a.json (1)", "peft config a.json (2)"]),
        ([{"data": "/x/rows"}, {"data": "/y/rows"}], ["data /x/rows", "data /y/rows"]),
    ],
)
def test_parts_of_one_sweep_are_told_apart_by_what_it_varied(tmp_path, changes, told):
    parts = write_report([swept_over(tmp_path, changes)], tmp_path / "r.html")
    found = [part.subtitle.split("adamw, ")[1] for part in parts]
    assert found == [f"{one}, from {tmp_path.name}" for one in told]


def test_runs_of_one_sweep_at_two_precisions_are_told_apart(tmp_path):
    """They are compared, in one part."""
    both = [{"dtype": name} for name in ("float32", "bfloat16")]
    (part,) = write_report([swept_over(tmp_path, both)], tmp_path / "r.html")
    (rates,) = part.sections[0].tables
    name = tmp_path.name
    assert [row[1] for row in rates.rows] == [f"{name}, dtype float32", f"{name}, dtype bfloat16"]
    assert f"Train lora ({name}, dtype float32) at" in part.advice.sentence.striptags()


def test_one_adapter_by_two_spellings_is_one_part(tmp_path):
    """Both sweeps are of one adapter: they count as one, of whichever tells more."""
    for name, path in (("one", "a.json"), ("two", "./a.json")):
        (tmp_path / name).mkdir()
        adapter = ADAPTERS[0] | {"peft_config": {"path": path, "digest": "1"}}
        swept_over(tmp_path / name, [adapter])
    assert len(write_report([tmp_path / "one", tmp_path / "two"], tmp_path / "r.html")) == 1
