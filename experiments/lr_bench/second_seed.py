"""The second seed of the real model's settings: `python -m experiments.lr_bench.second_seed --part 0/1`.

Each of the bench's settings of SmolLM2 is trained again with seed 1, at every learning rate of the first
seed's sweep, the nearest to its best first. What is finished stands in ``results/second`` and is not done
again; ``table`` takes in the settings that are.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd

from hessian_lr import data, models
from hessian_lr.allocator import keep_freed_memory
from hessian_lr.progress import quiet_libraries
from hessian_lr.records import read_json, write_json
from hessian_lr.setting import Setting
from hessian_lr.sweep import sweep

from .settings import LARGE
from .table import SECOND, read, setting_of

SCRATCH = Path("runs/second_seed")
SEED = 1
_RUN = ("lr", "initial_loss", "final_loss", "steps", "diverged", "seconds")


def wanted() -> Iterator[tuple[str, Setting, list[float]]]:
    """Key, setting and learning rates of every setting whose best lies inside its sweep."""
    settings, runs = read()
    for row in settings[(settings["model"] == LARGE) & ~settings["censored"]].to_dict("records"):
        own = runs[(runs["key"] == row["key"]) & (runs["seed"] == 0)]
        yield row["key"], setting_of(row), by_nearness(own)


def by_nearness(first: pd.DataFrame) -> list[float]:
    """The learning rates of the first seed's runs, the best one first, then outwards."""
    best = first.loc[first["final_loss"].idxmin(), "lr"]
    away = np.abs(np.log(first["lr"] / best))
    return first.loc[away.sort_values(kind="stable").index, "lr"].tolist()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--part", default="0/1", help="K/N: every N-th setting, from the K-th")
    index, parts = map(int, parser.parse_args().part.split("/"))
    keep_freed_memory()
    loaded = models.load(LARGE, quiet=True)
    for key, setting, rates in list(wanted())[index::parts]:
        file = SECOND / f"{key}.json"
        told = read_json(file)["runs"] if file.exists() else []
        task = data.load(setting.data, loaded.tokenizer, max_length=setting.max_length)
        for rate in rates:
            if any(np.isclose(rate, run["lr"], rtol=1e-5) for run in told):
                continue
            with quiet_libraries():
                found = sweep(setting, loaded, task, start_lr=rate, lrs=[rate], seeds=(SEED,), out=SCRATCH)
            told += [{name: getattr(run, name) for name in _RUN} | {"seed": SEED} for run in found.runs]
            write_json(file, {"schema": 1, "setting": replace(setting, seed=SEED), "runs": told})
            print(key, f"{rate:.1e}: {told[-1]['final_loss']:.4f}", flush=True)


if __name__ == "__main__":
    main()
