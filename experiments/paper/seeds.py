"""The second seed of the real model's settings, at the learning rates about the first one's best.

``python -m experiments.paper.seeds`` trains each of the bench's settings of SmolLM2 again with seed 1, at the
learning rate of the grid that was best with seed 0 and at its two neighbours; and at the next one, where the
mean of both seeds is lowest at an edge. What is finished stands in ``seeds/`` and is not done again. Then it
prints what both seeds make of each setting's best learning rate, and how far off the package's constants are,
which are fitted to the first seed.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd

from hessian_lr import data, models
from hessian_lr.allocator import keep_freed_memory
from hessian_lr.predict import load_calibration
from hessian_lr.progress import quiet_libraries
from hessian_lr.records import read_json, write_json
from hessian_lr.score import score
from hessian_lr.setting import Setting
from hessian_lr.sweep import sweep

from ..lr_bench.evaluate import curves, scored
from ..lr_bench.prospective import predicted
from ..lr_bench.table import SETTING, read

OUT, SCRATCH = Path(__file__).parent / "seeds", Path("runs/paper_seeds")
MODEL, SEED = "smollm2-135m", 1
_RUN = ("lr", "initial_loss", "final_loss", "steps", "diverged", "seconds")


def wanted() -> Iterator[tuple[str, Setting, pd.DataFrame]]:
    """Key, setting and the first seed's runs of every setting whose best lies inside its sweep."""
    settings, runs = read()
    for row in settings[settings["model"] == MODEL].to_dict("records"):
        if not row["censored"]:
            values = {name: row[name] for name in SETTING} | {"alpha": float(row["alpha"])}
            own = runs[(runs["key"] == row["key"]) & (runs["seed"] == 0)]
            yield row["key"], Setting(**values), own.sort_values("lr", ignore_index=True)


def missing(first: pd.DataFrame, there: Mapping[float, float]) -> list[float]:
    """The learning rates to run next with the second seed.

    Args:
        first: The first seed's runs, ascending.
        there: The second seed's final losses, by learning rate.
    """
    if not there:
        best = int(first["final_loss"].to_numpy().argmin())
        return first["lr"].tolist()[best - 1 : best + 2]
    both = first[first["lr"].isin(there)]
    means = both["final_loss"] + both["lr"].map(there)
    best = int(means.idxmin())
    beside = [place for place in (best - 1, best + 1) if place in first.index and place not in both.index]
    return first.loc[beside, "lr"].tolist()


def second() -> pd.DataFrame:
    """The finished runs, with the columns of the bench's table."""
    rows = []
    for file in sorted(OUT.glob("*.json")):
        told = read_json(file)
        rows += [{"key": file.stem, "kind": "sweep", **run} for run in told["runs"]]
    return pd.DataFrame(rows)


def both() -> pd.DataFrame:
    """Of each setting: its best learning rate by one seed and by two, and how far the prediction is off."""
    settings, runs = read()
    table = scored(settings[settings["model"] == MODEL])
    together = pd.concat([runs[(runs["kind"] == "sweep") & (runs["seed"] == 0)], second()], ignore_index=True)
    sweeps = curves(together, table)
    table["two_seeds"] = [score(sweeps[key], None, None, None).best_lr for key in table["key"]]
    table["predicted"] = predicted("combined", load_calibration(), table)["lr"]
    for name in ("best_lr", "two_seeds"):
        table[f"off {name}"] = np.exp(np.abs(np.log(table["predicted"] / table[name])))
    return table[["key", "best_lr", "two_seeds", "predicted", "off best_lr", "off two_seeds"]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--part", default="0/1", help="K/N: every N-th setting, from the K-th")
    index, parts = map(int, parser.parse_args().part.split("/"))
    keep_freed_memory()
    loaded = models.load(MODEL, quiet=True)
    for key, setting, first in list(wanted())[index::parts]:
        file = OUT / f"{key}.json"
        told = read_json(file)["runs"] if file.exists() else []
        while rates := missing(first, {run["lr"]: run["final_loss"] for run in told}):
            task = data.load(setting.data, loaded.tokenizer, max_length=setting.max_length)
            with quiet_libraries():
                found = sweep(setting, loaded, task, start_lr=rates[0], lrs=rates, seeds=(SEED,), out=SCRATCH)
            told += [{name: getattr(run, name) for name in _RUN} | {"seed": SEED} for run in found.runs]
            write_json(file, {"schema": 1, "setting": replace(setting, seed=SEED), "runs": told})
            print(key, *(f"{run['lr']:.1e}: {run['final_loss']:.4f}" for run in told), flush=True)
    found = both()
    print(found.to_string(index=False, float_format="{:.3g}".format))
    for name in ("off best_lr", "off two_seeds"):
        print(f"{name}: {found[name].median():.2f} in the median, {found[name].max():.2f} at most")


if __name__ == "__main__":
    main()
