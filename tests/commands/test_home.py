"""Paths below the home folder, as a shell hands them on where ``~`` does not begin a word."""

import shutil

import pytest
from report_files import FIRST_LIGHT, predict_document, written

from hessian_lr.cli import main
from hessian_lr.predict import load_calibration

WRITING = {
    "calibrate ~/swept --out=~/here/made": "made",
    "align ~/swept --out=~/here/made.svg": "made.svg",
    "report ~/swept ~/p.json --out=~/here/made": "made",
    "list --json=~/here/made": "made",
    "predict --from=~/swept --calibration=~/mine.json --json=~/here/made": "made",
}


@pytest.mark.parametrize("line", WRITING)
def test_a_path_below_the_home_folder_is_found_and_written(tmp_path, monkeypatch, line):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    shutil.copytree(FIRST_LIGHT, tmp_path / "home" / "swept")
    written(tmp_path / "home" / "p.json", predict_document())
    load_calibration().write(tmp_path / "home" / "mine.json")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    assert main([*line.split(), "--quiet"]) == 0
    assert (tmp_path / "home" / "here" / WRITING[line]).is_file() and not list(elsewhere.iterdir())


@pytest.mark.parametrize("line", ["sweep ~/file.yaml", "merge ~/file.yaml ~/there", "validate", "spectrum"])
def test_the_other_commands_look_there_too(tmp_path, monkeypatch, capsys, line):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "file").write_text("in the way")
    (tmp_path / "there").mkdir()
    option = "--checkpoint" if line == "spectrum" else "--out"
    assert main([*line.split(), f"{option}=~/file/x"]) == 2
    assert f"{tmp_path}/file is a file" in capsys.readouterr().err
