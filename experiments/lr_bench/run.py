"""Measure and sweep the bench's settings: `python -m experiments.lr_bench.run --part 0/2`.

Everything finished is kept in ``runs/lr_bench`` and not repeated, so it may be killed and started again.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from hessian_lr import data, models
from hessian_lr.allocator import keep_freed_memory
from hessian_lr.errors import HessianLRError
from hessian_lr.prepare import prepare
from hessian_lr.progress import quiet_libraries
from hessian_lr.records import read_json, write_json
from hessian_lr.score import score
from hessian_lr.setting import Setting
from hessian_lr.sweep import RunResult, sweep

from .laws import AFTER
from .measure import measure
from .range_test import range_test
from .settings import all_settings, at_base, long

OUT = Path("runs/lr_bench")
# Where a sweep starts: a guess from the first measurements, which only decides what it costs.
GUESS, FALLBACK = 0.3, 1e-3
# The measurements and one seed's sweep come first, for all settings; then what that is held against.
STAGES: dict[str, tuple[tuple[int, ...], ...]] = {"first": ((0,),), "baselines": (), "second": ((0, 1),)}


def asked_for(stage: str, setting: Setting) -> bool:
    """Whether a stage is made for a setting."""
    # A tenth of fewer steps is hardly any; two seeds of every method at one base tell how far seeds differ.
    if stage == "baselines":
        return setting.steps >= 60
    return stage == "first" or setting in at_base()


class Loader:
    """Models and data, each loaded once."""

    def __init__(self) -> None:
        self._models: dict[str, Any] = {}
        self._data: dict[tuple[str, str, int], Any] = {}

    def __call__(self, setting: Setting) -> tuple[Any, Any]:
        if setting.model not in self._models:
            self._models[setting.model] = models.load(setting.model, device="cpu", quiet=True)
        loaded = self._models[setting.model]
        key = (setting.model, setting.data, setting.max_length)
        if key not in self._data:
            self._data[key] = data.load(setting.data, loaded.tokenizer, max_length=setting.max_length)
        return loaded, self._data[key]


def one(setting: Setting, loader: Loader, stage: str) -> None:
    """One stage of one setting, unless it is done."""
    loaded, task = loader(setting)
    file = OUT / "settings" / f"{setting.key}.json"
    row: dict[str, Any] = read_json(file) if file.exists() else {"setting": setting.to_dict()}
    if "measured" not in row:
        row["measured"] = measure(prepare(setting, loaded, task))
        write_json(file, row)
    stability = row["measured"].get(AFTER + "lr_stability")
    start = GUESS * stability if stability else FALLBACK

    def swept(asked: Setting, seeds: tuple[int, ...]) -> dict[str, Any]:
        began = time.perf_counter()
        found = sweep(asked, loaded, task, start_lr=start, seeds=seeds, out=OUT)
        return {
            "score": score(found, None, None, None),
            "runs": [told(run) for run in found.runs],
            "cost": sum(run.steps for run in found.runs) * setting.batch_size,
            "seconds": round(time.perf_counter() - began, 1),
        }

    if stage == "baselines" and "tenth" not in row:
        # What a careful practitioner does: the same sweep at a tenth of the steps.
        row["tenth"] = swept(replace(setting, steps=max(3, setting.steps // 10)), (0,))
        row["range_test"] = range_test(setting, loaded, task)
    for seeds in STAGES[stage]:
        name = "sweep_" + "_".join(map(str, seeds))
        if name not in row:
            row[name] = swept(setting, seeds)
    write_json(file, row)


def told(run: RunResult) -> dict[str, Any]:
    """A run's row."""
    names = ("lr", "initial_loss", "final_loss", "steps", "diverged", "seconds")
    return {name: getattr(run, name) for name in names} | {"seed": run.setting.seed}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--part", default="0/1", help="K/N: every N-th setting, from the K-th")
    parser.add_argument("--stage", choices=list(STAGES), default="first")
    parser.add_argument("--model", default="", help="only settings whose model has this in its name")
    parser.add_argument("--long", action="store_true", help="only the longest runs")
    asked = parser.parse_args()
    index, parts = map(int, asked.part.split("/"))
    keep_freed_memory()
    loader = Loader()
    settings = long() if asked.long else all_settings()
    chosen = [one for one in settings if asked.model in one.model and asked_for(asked.stage, one)]
    with quiet_libraries():
        for setting in chosen[index::parts]:
            began = time.perf_counter()
            try:
                one(setting, loader, asked.stage)
            except HessianLRError as error:
                print(f"{setting.key} {setting.model} {setting.method}: {error}", flush=True)
                continue
            print(
                f"{setting.key} {setting.model} {setting.method} {time.perf_counter() - began:.0f} s",
                flush=True,
            )


if __name__ == "__main__":
    main()
