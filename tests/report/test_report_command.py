"""The report's command: what makes results again is read back, bad input costs nothing, a page is written."""

import json
import shlex

import pytest
from report_files import FIRST_LIGHT, first_light, predict_document, predict_row, spectrum_document, written

from hessian_lr.cli import main
from hessian_lr.commands import session
from hessian_lr.errors import RequestError
from hessian_lr.report import write_report
from hessian_lr.report.command import command
from hessian_lr.report.documents import read_documents
from hessian_lr.setting import Setting


@pytest.mark.parametrize(
    ("document", "options"),
    [
        (predict_document(predict_row(fast=True, predictor="eigenvalue")), {"fast"}),
        (
            predict_document(
                predict_row("pissa"),
                setting=Setting("a b", "d'.jsonl", ("q", "a"), rank=3, alpha=0.5, target_modules=("x", "y")),
            ),
            set(),
        ),
    ],
)
def test_the_command_asks_for_the_same_settings(tmp_path, monkeypatch, document, options):
    """The command line itself reads it back."""
    kept = []
    monkeypatch.setattr(session, "each_method", lambda settings, *_: kept.extend(settings) or 0)
    monkeypatch.setattr("hessian_lr.data.check", lambda *_, **__: None)
    monkeypatch.chdir(tmp_path)
    (read,) = read_documents([written(tmp_path / "p.json", document)])
    line = command(read)
    words = shlex.split(line.replace("\\\n", " "))
    assert main(words[1:]) == 0
    assert kept == [entry.setting for entry in read.entries]
    assert {word for word in ("fast",) if f"--{word}" in words} == options


def test_the_command_has_what_was_asked_for_beside_the_setting(tmp_path):
    document = first_light() | {"lrs": [1e-3, 3e-4], "seeds": [0, 1]}
    (tmp_path / "mine").mkdir()
    (read,) = read_documents([written(tmp_path / "mine" / "validate.json", document)])
    assert command(read).endswith("--predictor combined --seeds 0,1 --lrs 0.001,0.0003 --out mine")
    (read,) = read_documents([written(tmp_path / "s.json", spectrum_document())])
    assert command(read).endswith("--density --per-module --json s.json")


def damaged(**changed):
    return predict_document(predict_row(**changed))


BAD = {
    "a list": [],
    "another schema": {"schema": 2, "setting": {}, "results": []},
    "no results": {"schema": 1, "setting": {}, "results": []},
    "rows of something else": {"schema": 1, "setting": {}, "results": [{"x": 1}]},
    "text for a number": damaged(seconds="soon"),
    "a number that is none": damaged(lr=float("nan")),
    "no status": damaged(status=None),
    "notes that are none": damaged(notes="hello"),
    "an unknown field of the setting": {**damaged(), "setting": {**damaged()["setting"], "colour": "red"}},
    "versions that are none": {**damaged(), "versions": "new"},
    "a run without its loss": {
        **first_light(),
        "results": [first_light()["results"][0] | {"runs": [{"lr": 1e-3, "seed": 0}]}],
    },
    "a learning rate below 0": {
        **first_light(),
        "results": [
            first_light()["results"][0] | {"runs": [first_light()["results"][0]["runs"][0] | {"lr": -1.0}]}
        ],
    },
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_named_and_costs_nothing(tmp_path, capsys, case):
    bad, out = written(tmp_path / "bad.json", BAD[case]), tmp_path / "report.html"
    out.write_text("the last report")
    assert main(["report", str(FIRST_LIGHT), str(bad), "--out", str(out)]) == 2
    message = capsys.readouterr().err
    assert "bad.json" in message and message.count("\n") == 1
    assert out.read_text() == "the last report"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bad.json", "report.html"]


def test_a_page_is_not_written_into_another_kind_of_file(tmp_path, capsys):
    assert main(["report", str(FIRST_LIGHT), "--out", str(tmp_path / "page.pdf")]) == 2
    assert "an HTML page, not a .pdf file" in capsys.readouterr().err and not list(tmp_path.iterdir())


def test_a_missing_run_is_refused(tmp_path):
    with pytest.raises(RequestError, match=r"there is no .*nowhere"):
        write_report([tmp_path / "nowhere"], tmp_path / "r.html")


def test_the_command_writes_it_and_says_what_it_recommends(tmp_path, capsys):
    out = tmp_path / "deep" / "r.html"
    assert main(["report", str(FIRST_LIGHT), "--out", str(out)]) == 0
    shown = capsys.readouterr()
    assert "Train lora at a learning rate of 2.6e-3" in shown.out and "r.html" in shown.err
    first = out.read_bytes()
    assert main(["report", str(FIRST_LIGHT), "--out", str(out), "--json", "-"]) == 0
    (part,) = json.loads(capsys.readouterr().out)["parts"]
    assert part["recommendation"].startswith("Train lora at") and part["reasons"]
    assert out.read_bytes() == first, "the same results give the same page"
