"""What the README shows runs as it stands there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from tiny_models import base_model, counting_batch

import hessian_lr as hlr

README = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")


def test_the_python_example_runs(tmp_path, capsys):
    (code,) = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    base_model("llama").save_pretrained(tmp_path)
    assert "path/to/model" in code
    names = {"batches": [counting_batch(8, 3, seed) for seed in range(6)]}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        exec(code.replace("path/to/model", str(tmp_path)), names)
    assert isinstance(names["curvature"], hlr.Curvature)
    assert names["curvature"].status == "converged"
    assert isinstance(names["prediction"], hlr.Prediction)
    assert capsys.readouterr().out.count("\n") == 2


@pytest.mark.parametrize("name", sorted(set(re.findall(r"\]\((?!https?:)([^)#]+)\)", README)) | {"LICENSE"}))
def test_links_lead_to_files_that_are_there(name):
    assert (Path(__file__).parents[2] / name).exists()
