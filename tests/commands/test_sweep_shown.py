"""What examples, help and README show of ``hessian-lr sweep`` is there and can be read."""

import re
from pathlib import Path

import pytest

from hessian_lr import cli
from hessian_lr.cli import main
from hessian_lr.sweep.grid import expand
from hessian_lr.sweep.request import read

ROOT = Path(cli.__file__).parents[1]


@pytest.mark.parametrize("path", sorted((ROOT / "examples").glob("*.yaml")), ids=lambda path: path.name)
def test_the_examples_can_be_read(path):
    assert expand(read(path)).wanted


def test_its_help_ends_with_an_example_that_is_there(capsys):
    assert main(["sweep", "--help"]) == 0
    last = capsys.readouterr().out.rstrip().splitlines()[-1]
    assert last.strip().startswith("hessian-lr sweep ") and (ROOT / last.split()[2]).is_file()


def test_what_the_readme_shows_can_be_read(tmp_path):
    (shown,) = re.findall(
        r"```yaml\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), flags=re.DOTALL
    )
    (tmp_path / "readme.yaml").write_text(shown, encoding="utf-8")
    found = expand(read(tmp_path / "readme.yaml"))
    assert {one.setting.method: one.lrs is None for one in found.wanted} == {
        "lora": False,
        "pissa": False,
        "dora": True,
    }
