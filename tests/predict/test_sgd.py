"""Plain gradient descent as a setting's optimizer: its step, its edge, and what it is refused with."""

from __future__ import annotations

import dataclasses
import math
import re
from pathlib import Path

import pytest
import tiny_sweep as tiny
import torch
from tolerances import SAME_STEPS
from torch import Tensor, nn

from hessian_lr import files, methods, validated
from hessian_lr.cli import main
from hessian_lr.curvature.adam import geometry
from hessian_lr.curvature.loss import trainable
from hessian_lr.data import make_batches
from hessian_lr.errors import RequestError
from hessian_lr.methods import adapted
from hessian_lr.predict import load_calibration, predict_learning_rate
from hessian_lr.predict.transfer import transfer
from hessian_lr.progress import Progress
from hessian_lr.records import read_json, write_sealed
from hessian_lr.setting import SGD
from hessian_lr.study.measured import Predicting
from hessian_lr.study.validating import Asked, Job
from hessian_lr.sweep import run_key, train_once
from hessian_lr.sweep.trainer import fit

SETTING = dataclasses.replace(tiny.SETTING, optimizer=SGD)
OWN = ("lora+", "loft")

pytestmark = pytest.mark.usefixtures("one_thread")


def schedule(steps: int, lr: float) -> list[float]:
    """The learning rate of each step: one of warm-up from 0, then half a cosine down to 0."""
    return [0.0] + [lr * (1 + math.cos(math.pi * t / (steps - 1))) / 2 for t in range(steps - 1)]


def weights(model: nn.Module) -> Tensor:
    return torch.cat([p.detach().flatten() for p in trainable(model)])


@pytest.mark.parametrize("method", ["lora", "pissa"])
def test_a_step_is_the_learning_rate_times_the_whole_gradient(method: str) -> None:
    data, lr, steps = tiny.tiny_data(), 0.05, 6
    setting = dataclasses.replace(SETTING, method=method, alpha=32.0, steps=steps)
    ours, theirs = (adapted(setting, tiny.tiny_model(), data) for _ in range(2))
    start = weights(ours)
    fit(ours, data.train[:4], setting, lr, dtype=torch.float32, pad_id=0)

    (batch,) = make_batches(data.train[:4], 4, 0)
    norms = []
    for rate in schedule(steps, lr):
        gradients = torch.autograd.grad(theirs(**batch).loss, trainable(theirs))
        norms.append(float(torch.cat([g.flatten() for g in gradients]).norm()))
        with torch.no_grad():
            for parameter, gradient in zip(trainable(theirs), gradients, strict=True):
                parameter.sub_(rate * gradient)
    moved = (weights(theirs) - start).norm()
    assert (weights(ours) - weights(theirs)).norm() < SAME_STEPS * moved
    # Gradients that the recipe of AdamW would have clipped to 1.
    assert max(norms) > 1.5


class _Quadratic(nn.Module):
    """L(θ) = ½·Σ λ·θ², whatever the batch."""

    def __init__(self, eigenvalues: tuple[float, ...]) -> None:
        super().__init__()
        self.eigenvalues = torch.tensor(eigenvalues)
        self.weight = nn.Parameter(torch.ones(len(eigenvalues)))

    def forward(self, input_ids: Tensor, attention_mask: Tensor, labels: Tensor) -> dict[str, Tensor]:
        loss = (self.eigenvalues * self.weight**2).sum() / 2
        return {"loss": loss, "logits": torch.zeros(len(input_ids), 1, 1)}


def descended(lr: float, steps: int, eigenvalues: tuple[float, ...]) -> Tensor:
    model = _Quadratic(eigenvalues)
    setting = dataclasses.replace(SETTING, steps=steps)
    fit(model, tiny.tiny_data().train, setting, lr, dtype=torch.float32, pad_id=0)
    return model.weight.detach()


def test_on_a_quadratic_each_direction_shrinks_by_its_own_product() -> None:
    eigenvalues = (8.0, 3.0, 0.5)
    found = descended(0.3, 12, eigenvalues)
    expected = [math.prod(1 - rate * one for rate in schedule(12, 0.3)) for one in eigenvalues]
    torch.testing.assert_close(found, torch.tensor(expected), rtol=1e-4, atol=1e-7)


def test_on_a_quadratic_the_edge_is_that_of_theory() -> None:
    """Above 2/λ a step grows; over a whole cosine the run ends above its start from 4/λ on.

    The mean of ln|1 − x·(1 + cos φ)/2| over φ is ln(x/4) for x > 1 (Jensen's formula), so that a long run
    grows where x = η·λ > 4, and shrinks below, though all its first steps grow if x > 2.
    """
    sharp, steps = 5.0, 33
    for factor, stable in ((1.9, True), (3.6, True), (4.4, False)):
        end = descended(factor / sharp, steps, (sharp,)).abs().item()
        assert (end < 1) == stable, factor
    # One step at the peak: what theory says of a learning rate that stays as it is.
    for factor, stable in ((1.9, True), (2.1, False)):
        end = descended(factor / sharp, 2, (sharp,)).abs().item()
        assert end == pytest.approx(abs(1 - factor), rel=1e-5)
        assert (end < 1) == stable


def test_a_run_learns_and_is_not_mistaken_for_adamws() -> None:
    loaded, data = tiny.tiny_model(), tiny.tiny_data()
    result = train_once(SETTING, 0.3, loaded, data)
    assert result.final_loss < result.initial_loss - 0.1
    assert result.setting.optimizer == SGD
    assert result.key == run_key(SETTING, 0.3, data.digest, loaded.fingerprint)
    assert result.key != run_key(tiny.SETTING, 0.3, data.digest, loaded.fingerprint)


def test_the_names_of_adamws_runs_have_not_changed() -> None:
    # From before there was another optimizer: runs of that time are still found.
    assert run_key(tiny.SETTING, 1e-3, "data", "model") == "33347e0e67281e5767ef"


@pytest.mark.parametrize("method", OWN)
def test_a_method_with_an_optimizer_of_its_own_is_refused(method: str) -> None:
    setting = dataclasses.replace(SETTING, method=method)
    with pytest.raises(RequestError, match=f"{re.escape(method)} is plain LoRA with an optimizer of its own"):
        methods.check(tiny.tiny_model().model, setting)
    methods.check(tiny.tiny_model().model, dataclasses.replace(setting, optimizer="adamw"))


@pytest.mark.parametrize("method", OWN)
@pytest.mark.parametrize("command", ["spectrum", "validate"])
def test_that_is_so_before_the_model_is_looked_for(capsys, command: str, method: str) -> None:
    assert main([command, "--model", "/nowhere", "--optimizer", "sgd", "--method", method]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "it cannot train with optimizer sgd; use method lora, or leave the optimizer adamw" in line


def test_a_sweeps_file_takes_it_and_is_told_of_such_a_pair(capsys, tmp_path: Path) -> None:
    file = tmp_path / "sweep.yaml"
    text = "model: /nowhere\noptimizer: [adamw, sgd]\nmethod: [lora, lora+]\nlr: 0.1\n"
    file.write_text(text, encoding="utf-8")
    assert main(["sweep", str(file), "--dry-run"]) == 2
    assert "lora+ is plain LoRA with an optimizer of its own" in capsys.readouterr().err
    file.write_text(f"{text}exclude: {{method: lora+, optimizer: sgd}}\n", encoding="utf-8")
    assert main(["sweep", str(file), "--dry-run"]) == 2
    assert "/nowhere" in capsys.readouterr().err


def test_list_names_it(capsys) -> None:
    assert main(["list", "optimizers"]) == 0
    assert {"adamw", "sgd"} <= set(capsys.readouterr().out.split())


def test_no_number_of_adamws_is_told_for_it(capsys) -> None:
    assert main(["predict", "--model", "/nowhere", "--optimizer", "sgd"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "say nothing of sgd" in line and "hessian-lr spectrum" in line and "2/λ" in line
    known = [(SETTING, 0.1)]
    with pytest.raises(RequestError, match="say nothing of sgd"):
        transfer(load_calibration().transfer, known, dataclasses.replace(SETTING, rank=8))

    data = tiny.tiny_data()
    model = adapted(SETTING, tiny.tiny_model(), data)

    def descent(model: nn.Module, lr: float, **_: object) -> torch.optim.Optimizer:
        return torch.optim.SGD(trainable(model), lr=lr)

    with pytest.raises(RequestError, match="Adam's geometry, which SGD does not have"):
        geometry(descent(model, 0.1), trainable(model))
    with pytest.raises(RequestError, match="Adam's geometry"):
        predict_learning_rate(model, make_batches(data.train[:8], 2, 0), optimizer=descent)


def test_a_sweep_starts_at_the_classical_bound_and_claims_no_prediction(tmp_path: Path) -> None:
    rates, data = (0.1, 0.3, 1.0, 3.0), tiny.tiny_data()
    predicting = Predicting("combined", load_calibration())
    job = Job(Asked([SETTING], tmp_path, (0,), rates, predicting), tiny.tiny_model(), data)
    (row,) = job.run(Progress(quiet=True)).rows
    assert (row.status, row.predictor) == ("converged", None)
    assert row.predicted_lr is None and row.lambda_preconditioned is None
    assert all(value is None for told in row.predictions.values() for value in vars(told).values())
    assert any(f"2/λ is {2 / row.lambda_max:.3g}" in note for note in row.notes)

    asked = dataclasses.replace(job.asked, lrs=None, out=tmp_path / "searched")
    searched = dataclasses.replace(job, asked=asked)
    (found,) = searched.run(Progress(quiet=True)).rows
    tried = [run.lr for run in found.runs]
    start = 10 ** (round(4 * math.log10(2 / row.lambda_max)) / 4)
    assert any(lr == pytest.approx(start) for lr in tried)

    # Its best learning rate is none to fit AdamW's constants to, nor does it compare with AdamW's.
    (one,) = validated.read_validated([asked.out])
    assert one.row.best_lr is not None and not one.row.censored
    assert validated.observation(one) is None
    other = read_json(asked.out / files.VALIDATE_FILE)
    other["setting"]["optimizer"] = "adamw"
    (tmp_path / "adam").mkdir()
    write_sealed(tmp_path / "adam" / files.VALIDATE_FILE, other)
    (two,) = validated.read_validated([tmp_path / "adam"])
    assert validated.observation(two) is not None
    assert main(["align", str(asked.out), str(tmp_path / "adam")]) == 2
