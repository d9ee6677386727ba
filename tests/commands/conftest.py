"""A tiny model with its data, and the options that name them."""

import math

import pytest
import torch
from tiny_text import save, sums, tiny_llama, write_rows


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model, one with NaN, one without linear modules to adapt by name, and data."""
    root = tmp_path_factory.mktemp("cli")
    model = tiny_llama(initializer_range=0.2)
    save(model, root / "model")
    with torch.no_grad():
        next(model.parameters())[3, 3] = math.nan
    save(model, root / "nan")
    write_rows(root / "rows.jsonl", sums(8))
    (root / "empty.jsonl").write_text("")
    write_rows(root / "two.jsonl", sums(8)[:2])
    (root / "file").write_text("in the way")
    return root


@pytest.fixture
def options(folder):
    """The options of a tiny setting."""
    return [
        *("--model", str(folder / "model"), "--data", str(folder / "rows.jsonl"), "--rank", "2"),
        *("--steps", "8", "--samples", "8", "--device", "cpu", "--dtype", "float32"),
    ]
