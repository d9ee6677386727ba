"""Nothing is written over what a command reads, nor among it, nor is one result by another."""

import re
import shutil

import pytest
import yaml
from peft import LoraConfig
from report_files import FIRST_LIGHT
from tiny_text import save, sums, tiny_llama, write_rows

from hessian_lr.cli import main
from hessian_lr.predict import load_calibration

RESULTS, MODEL = (
    "would overwrite runs/validate.json, which this command reads",
    "--model model --data rows.jsonl",
)
AMONG = "{} would stand among the files of {}, which this command reads: give it a place of its own"
AMONG_RUNS = "--json {} would stand among the runs in {}/runs, which this command reads"
# A command line, and what is said of it.
REFUSED = {
    "calibrate runs --out runs/validate.json": RESULTS,
    "calibrate runs --out x --json ./runs/validate.json": RESULTS,
    "calibrate runs --out link.json": RESULTS,
    "calibrate runs --out own.json --calibration own.json": "--out own.json would overwrite own.json",
    "calibrate runs --out x.json --json ./x.json": "--json ./x.json would overwrite what --out writes",
    "align runs --json {absolute}/runs/validate.json": RESULTS,
    "align runs/validate.json --json runs/validate.json": RESULTS,
    "align swept --json swept/sweep.json": "swept/sweep.json, which this command reads",
    "align runs --out x --json x.png": "--json x.png would overwrite what --out writes",
    "report runs --out runs/validate.json": RESULTS,
    "report runs --out r.html --json runs/validate.json": RESULTS,
    "report runs --out r.html --json r.html": "what --out writes",
    "predict --from runs --json runs/validate.json": RESULTS,
    "predict --calibration own.json --json own.json": "own.json, which this command reads",
    f"predict {MODEL} --json rows.jsonl": "rows.jsonl, which this command reads",
    "align runs --json runs/sweep.json": "--json runs/sweep.json would be read as results of runs",
    f"spectrum {MODEL} --json model/config.json": AMONG.format("--json model/config.json", "model"),
    f"predict {MODEL} --json model/model.safetensors": AMONG.format(
        "--json model/model.safetensors", "model"
    ),
    f"predict {MODEL} --json ./model/new.json": AMONG.format("--json ./model/new.json", "model"),
    f"validate {MODEL} --out model --lrs 1e-3": AMONG.format("--out model", "model"),
    f"spectrum {MODEL} --checkpoint model/state": AMONG.format("--checkpoint model/state", "model"),
    "predict --peft-config adapter --json adapter/adapter_config.json": "the files of adapter, which",
    "predict --model model --data folder --json folder/b.jsonl": "the files of folder, which",
    "predict --model model --data folder --json folder/in/new.json": "the files of folder, which",
    "validate --model model --data folder --out folder/runs": "the files of folder, which",
    f"spectrum {MODEL} --json x --checkpoint x": "what --checkpoint writes",
    f"validate {MODEL} --out new --json new/validate.json": "what --out writes",
    f"validate {MODEL} --out new --json new": "what --out writes",
    f"validate {MODEL} --out share --json share/runs/1.json": AMONG_RUNS.format("share/runs/1.json", "share"),
    f"validate {MODEL} --calibration own.json --out new --json own.json": "own.json, which",
    "sweep file.yaml --json file.yaml --dry-run": "file.yaml, which",
    "sweep file.yaml --json rows.jsonl": "rows.jsonl, which",
    "sweep file.yaml --out new --json new/sweep.json": "what --out writes",
    "merge file.yaml share --out new --json new/sweep.csv": "what --out writes",
    "merge file.yaml share --out new --json share/runs/1.json": AMONG_RUNS.format(
        "share/runs/1.json", "share"
    ),
    "merge file.yaml share/runs --out new --json {absolute}/share/runs/new.json": "the runs in share/runs",
    "merge file.yaml share --out share/runs/new": "--out share/runs/new would stand among the runs in",
    "merge file.yaml share --out new --json new/runs/1.json": AMONG_RUNS.format("new/runs/1.json", "new"),
    "sweep file.yaml --out share --json ./share/runs/1.json": "the runs in share/runs, which",
    "sweep file.yaml --out new --json new/runs/1.json --dry-run": AMONG_RUNS.format("new/runs/1.json", "new"),
}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    root = tmp_path_factory.mktemp("inputs")
    shutil.copytree(FIRST_LIGHT, root / "runs")
    (root / "link.json").symlink_to("runs/validate.json")
    (root / "swept").mkdir()
    shutil.copy(FIRST_LIGHT / "validate.json", root / "swept" / "sweep.json")
    (root / "share" / "runs").mkdir(parents=True)
    (root / "share" / "runs" / "1.json").write_text("a run")
    load_calibration().write(root / "own.json")
    save(tiny_llama(), root / "model")
    write_rows(root / "rows.jsonl", sums(8))
    (root / "folder").mkdir()
    write_rows(root / "folder" / "b.jsonl", sums(8))
    (root / "math").mkdir()  # which is no task's data
    LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM").save_pretrained(root / "adapter")
    (root / "file.yaml").write_text(
        yaml.safe_dump({"model": "model", "data": "rows.jsonl", "lr": [1e-3, 1e-2]})
    )
    return root


def contents(root):
    return {path: path.read_bytes() for path in root.rglob("*") if path.is_file()}


@pytest.mark.parametrize("line", REFUSED)
def test_a_result_over_an_input_is_refused_before_any_work(files, monkeypatch, capsys, line):
    def refuse(*_arguments, **_options):
        raise AssertionError("a model was loaded")

    monkeypatch.chdir(files)
    monkeypatch.setattr("hessian_lr.models.load", refuse)
    before = contents(files)
    assert main(line.format(absolute=files).split()) == 2
    (said,) = capsys.readouterr().err.splitlines()
    assert REFUSED[line] in said and re.search("give it a (name|place) of its own$", said)
    assert contents(files) == before


@pytest.mark.parametrize(
    "line",
    [
        "calibrate runs --out runs/constants.json --json runs/told.json",
        "align runs --out runs/picture --json runs/picture.json",
        "report runs --out runs/report.html --json -",
        "predict --from runs --calibration own.json --json runs/moved.json",
        "predict --from runs --json math/moved.json",
    ],
)
def test_results_may_stand_beside_what_they_were_made_of_and_be_made_again(
    files, tmp_path, monkeypatch, line
):
    shutil.copytree(files, tmp_path / "files", symlinks=True)
    monkeypatch.chdir(tmp_path / "files")
    assert main(line.split()) == 0
    assert main(line.split()) == 0
