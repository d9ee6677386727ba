"""Every method on four architectures, from building to a sweep: `python -m experiments.methods.run`.

One row for each method and architecture in ``results.json``; rows that the file already has are kept where
the shipped constants predicted them, so the command may be killed and started again. It ends by writing the
table into the README.
"""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import peft
import torch
import transformers
from torch import Tensor, nn

import hessian_lr as hlr
from hessian_lr import data, methods, models
from hessian_lr.batches import Batch
from hessian_lr.data import TaskData
from hessian_lr.errors import HessianLRError
from hessian_lr.methods import METHODS, method_of
from hessian_lr.models import LoadedModel
from hessian_lr.predict import load_calibration
from hessian_lr.prepare import Prepared, prepare
from hessian_lr.progress import quiet_libraries
from hessian_lr.records import read_json, write_json
from hessian_lr.setting import Setting
from hessian_lr.sweep import sweep

from .table import write_table
from .tiny import ARCHITECTURES, model_folder, rows_file

HERE = Path(__file__).parent
RESULTS = HERE / "results.json"
OUT = Path("runs/methods")
LRS = (1e-3, 1e-2, 1e-1)


@dataclass
class Row:
    """One method on one architecture; None: not reached, because ``refused`` says why.

    Attributes:
        logits: ‖adapted − base‖ / ‖base‖ of the logits at initialization.
        joint: λ over all adapter parameters, and ``joint_upper`` its 95% upper end.
        modules: How many modules were measured, of which ``modules_converged``.
        module_least: Smallest λ of a module by itself; ``module_most`` the largest.
        predicted: Learning rate, lower and upper end, by the constants of version ``calibration``.
        initial_loss: Held-out loss before training.
        losses: Held-out loss after a run at each of ``LRS``; None where it diverged.
        notes: The prediction's.
    """

    method: str
    architecture: str
    refused: str | None = None
    parameters: int | None = None
    logits: float | None = None
    joint: float | None = None
    joint_upper: float | None = None
    joint_status: str | None = None
    modules: int | None = None
    modules_converged: int | None = None
    module_least: float | None = None
    module_most: float | None = None
    predicted: tuple[float, float, float] | None = None
    predicted_status: str | None = None
    calibration: str | None = None
    initial_loss: float | None = None
    losses: tuple[float | None, ...] | None = None
    notes: tuple[str, ...] = ()
    seconds: float = 0.0


def one(setting: Setting, architecture: str, loaded: LoadedModel, rows: TaskData) -> Row:
    """Take the method as far as it goes."""
    row = Row(setting.method, architecture)
    began = time.perf_counter()
    try:
        methods.check(loaded.model, setting)
        ready = prepare(setting, loaded, rows)
        _measure(row, setting, loaded, ready)
        found = sweep(setting, loaded, rows, start_lr=LRS[0], lrs=LRS, seeds=(0,), out=OUT)
        row.initial_loss = found.runs[0].initial_loss
        row.losses = tuple(None if run.diverged else run.final_loss for run in found.runs)
    except HessianLRError as error:
        row.refused = str(error)
    row.seconds = round(time.perf_counter() - began, 1)
    return row


def _measure(row: Row, setting: Setting, loaded: LoadedModel, ready: Prepared) -> None:
    row.parameters = sum(p.numel() for p in ready.model.parameters() if p.requires_grad)
    before = _logits(loaded.model, ready.held_out[0])
    row.logits = float((_logits(ready.model, ready.held_out[0]) - before).norm() / before.norm())
    joint = hlr.sharpness(ready.model, ready.batches)
    row.joint, row.joint_upper, row.joint_status = joint.lambda_max, joint.lambda_upper, joint.status
    modules = hlr.module_sharpness(ready.model, ready.batches).modules
    values = [module.lambda_max for module in modules if module.lambda_max is not None]
    row.modules, row.module_least, row.module_most = len(modules), min(values), max(values)
    row.modules_converged = sum(module.status == "converged" for module in modules)
    prediction = hlr.predict_learning_rate(
        ready.model,
        ready.batches,
        warmup_batches=ready.warmup_batches,
        steps=setting.steps,
        optimizer=method_of(setting).optimizer,
    )
    row.predicted_status, row.notes = prediction.status, prediction.notes
    row.calibration = prediction.calibration
    if prediction.lr is not None and prediction.lr_low is not None and prediction.lr_high is not None:
        row.predicted = (prediction.lr, prediction.lr_low, prediction.lr_high)


def _logits(model: nn.Module, batch: Batch) -> Tensor:
    with torch.no_grad():
        logits: Tensor = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    return logits


def main() -> None:
    # Runs are short and tensors tiny: more threads would only wait for each other.
    torch.set_num_threads(1)
    setting = Setting(data=str(rows_file(OUT)), rank=4, alpha=8.0, steps=6, samples=4, dtype="float32")
    kept = read_json(RESULTS)["results"] if RESULTS.exists() else []
    shipped = load_calibration().version
    done: dict[tuple[str, str], dict[str, Any]] = {
        (row["method"], row["architecture"]): row for row in kept if row["calibration"] == shipped
    }
    with quiet_libraries():
        for architecture in ARCHITECTURES:
            missing = [method for method in METHODS if (method, architecture) not in done]
            if not missing:
                continue
            folder = model_folder(architecture, OUT)
            loaded = models.load(str(folder), device="cpu", quiet=True)
            rows = data.load(setting.data, loaded.tokenizer)
            for method in missing:
                asked = replace(setting, model=str(folder), method=method)
                row = one(asked, architecture, loaded, rows)
                done[method, architecture] = asdict(row)
                _write(setting, list(done.values()))
                print(
                    f"{method} on {architecture}: {row.refused or 'swept'} ({row.seconds:.1f} s)", flush=True
                )
    print(write_table(read_json(RESULTS), HERE / "README.md"))


def _write(setting: Setting, rows: list[dict[str, Any]]) -> None:
    asked = {name: getattr(setting, name) for name in ("rank", "alpha", "batch_size", "steps", "samples")}
    versions = {module.__name__: module.__version__ for module in (torch, transformers, peft)}
    write_json(RESULTS, {"schema": 1, "setting": asked, "lrs": LRS, "versions": versions, "results": rows})


if __name__ == "__main__":
    main()
