"""The examples run as they stand, on a tiny model."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState
from tiny_text import byte_tokenizer, tiny_llama

from hessian_lr import data

EXAMPLES = sorted((Path(__file__).parents[2] / "examples").glob("*.py"))
NEEDS = {"sft": "trl", "optuna_search": "optuna"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tiny model that has learned something of the task, so that steps can be too long for it."""
    root, tokenizer, model = tmp_path_factory.mktemp("examples"), byte_tokenizer(), tiny_llama()
    rows = data.load("math", tokenizer, max_length=256).train[-320:]
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for batch in data.make_batches(rows, 4, tokenizer.pad_token_id):
        model(**batch, use_cache=False).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.save_pretrained(root)
    tokenizer.save_pretrained(root)
    return root


@pytest.fixture(autouse=True)
def apart(tmp_path, monkeypatch):
    """A folder of its own, one thread, and no accelerate state from or for another test."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    AcceleratorState._reset_state(reset_partial_state=True)
    with torch.random.fork_rng(devices=[]):
        yield
    AcceleratorState._reset_state(reset_partial_state=True)
    torch.set_num_threads(before)


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_runs_and_is_short(path, folder, monkeypatch, capsys):
    assert len(path.read_text(encoding="utf-8").splitlines()) < 40
    if path.stem in NEEDS:
        pytest.importorskip(NEEDS[path.stem])
    monkeypatch.setattr(sys, "argv", [str(path), str(folder)])
    names = runpy.run_path(str(path), run_name="__main__")
    said = capsys.readouterr().out
    if "trainer" in names:
        state = names["trainer"].state
        (told,) = [log for log in state.log_history if "predicted_learning_rate" in log]
        assert [log["step"] for log in state.log_history if "sharpness" in log] == [10, 20]
        peak = max(log["learning_rate"] for log in state.log_history if "loss" in log)
        assert 0.8 * told["predicted_learning_rate"] < peak <= told["predicted_learning_rate"]
        own = [log for log in state.log_history if "loss" in log]
        assert own[-1]["loss"] < own[0]["loss"]
        # TRL adds what it has gathered to its next log: that one must be its own.
        gathered = [log for log in state.log_history if "mean_token_accuracy" in log]
        assert gathered == (own if path.stem == "sft" else [])
    elif "study" in names:
        rates = [trial.params["learning_rate"] for trial in names["study"].trials]
        assert rates[0] == names["prediction"].lr and len(rates) == 3
        assert said.count("held-out loss") == 3
    elif "prediction" in names:
        assert names["optimizer"].optimizer.defaults["lr"] == names["prediction"].lr > 0
        assert said.count("step ") == 4
    else:
        assert "peft-config" in said
