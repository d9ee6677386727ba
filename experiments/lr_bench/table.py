"""Collect what `run` made into the two tables that are committed: `python -m experiments.lr_bench.table`.

``settings.csv``: a row a setting, with its sweep's answer, every measured quantity and its cost, and the
baselines. ``runs.csv``: a row a run. Both read back without loss of what the evaluation needs; what is in
them and not found again stays. The longest runs, which no fit takes part of (see ``long``), are in two tables
of their own: with ``--long`` only these are written.
"""

from __future__ import annotations

import argparse
import copy
from functools import lru_cache
from pathlib import Path
from typing import Any

import pandas as pd
from transformers import PreTrainedModel

from hessian_lr import methods, models
from hessian_lr.methods import METHODS
from hessian_lr.methods.targets import ALL_LINEAR
from hessian_lr.records import read_json
from hessian_lr.score import Score, score
from hessian_lr.setting import Setting
from hessian_lr.sweep.plan import nearest_point

from .curves import curves
from .laws import AFTER
from .pretrain import MODELS
from .run import OUT
from .settings import LARGE, long

HERE = Path(__file__).parent / "results"
LONG = HERE / "long"
# What `hessian-lr validate` measured on the real model, which is too slow here for every quantity; ``later``
# says how its own were predicted before they were in any fit.
VALIDATED = ("validated", "later")
# The same with short runs, for the law for these alone.
PROBED = HERE / "probed"
# Of runs of 1,000 steps, in no fit.
THOUSAND = HERE / "thousand"
# Of runs of 300 steps of the real model, in no fit.
REAL_LONG = HERE / "real_long"
# The real model with adapters of other ranks, scalings and modules than those of the fit.
SHAPES = HERE / "shapes"
# What came after, and is in no fit.
UNSEEN = HERE / "after"
# The second seed of those that were validated, as ``second_seed`` ran it.
SECOND = HERE / "second"
SETTING = (
    *("model", "data", "method", "rank", "alpha", "target_modules", "batch_size", "steps"),
    *("max_length", "dtype", "samples"),
)
# The runs of ``probe``, and what it adds to the settings.
PROBE, SHORT = "probe", ["lr_probe", "probe_cost"]
ANSWER = ["best_lr", "best_loss", "band_low", "band_high", "censored"]
# Where the best learning rate of other runs than the whole sweep's stands, and their kind.
OTHERS = {"tenth_best_lr": "tenth", "lr_probe": PROBE}


def collect() -> tuple[pd.DataFrame, pd.DataFrame]:
    """Settings and runs; of a setting swept with one seed and with two, the answer is the two seeds'."""
    rows, runs = [], []
    for file in sorted((OUT / "settings").glob("*.json")):
        found = read_json(file)
        swept = found.get("sweep_0_1") or found.get("sweep_0")
        if swept is None:
            continue
        rows.append({"key": file.stem, **_row(found, swept)})
        for kind in ("sweep_0_1" if "sweep_0_1" in found else "sweep_0", "tenth"):
            told = found.get(kind, {"runs": []})["runs"]
            runs += [{"key": file.stem, "kind": kind.split("_")[0], **run} for run in told]
    for folder in VALIDATED:
        for together, one in zip((rows, runs), _with_second_seed(folder), strict=True):
            together += one.to_dict("records")
    return pd.DataFrame(rows), pd.DataFrame(runs)


def _with_second_seed(folder: str) -> tuple[pd.DataFrame, pd.DataFrame]:
    """``from_documents``; where a second seed was run throughout, the answer is that of both."""
    settings, runs = from_documents(HERE / folder)
    for place, key in settings["key"].items():
        file = SECOND / f"{key}.json"
        told = read_json(file)["runs"] if file.exists() else []
        # The same learning rate to the last digit: else the two would not be averaged.
        exact = {nearest_point(lr): lr for lr in runs.loc[runs["key"] == key, "lr"]}
        if {nearest_point(run["lr"]) for run in told} != set(exact):
            continue
        again = [{"key": key, "kind": "sweep", **run, "lr": exact[nearest_point(run["lr"])]} for run in told]
        runs = pd.concat([runs, pd.DataFrame(again)], ignore_index=True)
        judged = score(curves(runs, settings.loc[[place]])[key], None, None, None)
        for name in ANSWER:
            settings.loc[place, name] = getattr(judged, name)
        settings.loc[place, "seeds"] = 2
    return settings, runs


def from_documents(folder: Path) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Settings and runs from each ``validate.json`` of a folder, of methods that AdamW trains."""
    rows: list[dict[str, Any]] = []
    runs: list[dict[str, Any]] = []
    for file in sorted(folder.glob("*.json")):
        document = read_json(file)
        for found in document["results"]:
            if METHODS[found["method"]].optimizer is not None:
                continue
            key = f"{file.stem}-{found['method']}"
            rows.append({"key": key, **_validated(document["setting"], found)})
            runs += [{"key": key, "kind": "sweep", **run} for run in found["runs"]]
    every_run = pd.DataFrame(runs)
    return rescored(pd.DataFrame(rows), every_run), every_run


def _validated(setting: dict[str, Any], found: dict[str, Any]) -> dict[str, Any]:
    """A row of ``validate.json`` under the names of this table."""
    row: dict[str, Any] = {name: setting[name] for name in SETTING if name != "method"}
    row["target_modules"] = _joined(setting["target_modules"])
    row |= {"method": found["method"], **{name: found[name] for name in ANSWER}}
    magnitudes = found["method"] == "dora"
    parameters = _parameters(setting["model"], magnitudes, setting["rank"], row["target_modules"])
    # Of a time when it was not told, from √(L / (λ·n)), which was.
    eigenvalue = found.get("lr_eigenvalue", found["lr_sharpness"] * parameters**0.25)
    return row | {
        "parameters": parameters,
        "seeds": len({run["seed"] for run in found["runs"]}),
        "sweep_cost": sum(run["steps"] for run in found["runs"]) * setting["batch_size"],
        "sweep_seconds": round(found["sweep_seconds"], 1),
        "rows": setting["samples"],
        "lambda_start": found["lambda_max"],
        "lr_eigenvalue": eigenvalue,
        "lr_sharpness": found["lr_sharpness"],
        "lr_critical_start": found["lr_critical_start"],
        AFTER + "lambda_preconditioned": found["lambda_preconditioned"],
        AFTER + "lr_stability": found["lr_stability"],
        AFTER + "lr_directional": found["lr_directional"],
        "lr_probe": found.get("lr_probe"),
        "combined_cost": found["gradient_equivalents"] * setting["samples"],
        "measure_seconds": found["seconds"],
    }


def _joined(targets: str | list[str]) -> str:
    return targets if isinstance(targets, str) else "+".join(targets)


@lru_cache
def _parameters(model: str, magnitudes: bool, rank: int, targets: str) -> int:
    """The trainable parameters of an adapter, which no document tells; DoRA's has magnitudes besides."""
    # Where the factors start changes none of their shapes.
    modules = targets if targets == ALL_LINEAR else tuple(targets.split("+"))
    shape = Setting(method="dora" if magnitudes else "lora", rank=rank, target_modules=modules)
    built = methods.build(copy.deepcopy(_shapes(model)), shape)
    return sum(p.numel() for p in built.parameters() if p.requires_grad)


@lru_cache
def _shapes(model: str) -> PreTrainedModel:
    """The model without its weights."""
    return models.load(model, device="cpu", quiet=True).model.to("meta")


def _row(found: dict[str, Any], swept: dict[str, Any]) -> dict[str, Any]:
    setting = found["setting"]
    row: dict[str, Any] = {name: setting[name] for name in SETTING}
    row["model"] = Path(setting["model"]).name
    row["target_modules"] = _joined(setting["target_modules"])
    row |= {name: swept["score"][name] for name in ANSWER}
    row["seeds"] = len({run["seed"] for run in swept["runs"]})
    row |= {"sweep_cost": swept["cost"], "sweep_seconds": swept["seconds"]}
    for name in ("sweep_0", "tenth"):
        if name in found:
            row[f"{name}_best_lr"] = found[name]["score"]["best_lr"]
            row[f"{name}_cost"] = found[name]["cost"]
    return row | found.get("range_test", {}) | found["measured"]


def read(folder: Path = HERE) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The committed tables."""
    return pd.read_csv(folder / "settings.csv"), pd.read_csv(folder / "runs.csv")


def setting_of(row: dict[str, Any]) -> Setting:
    """The setting that a row of ``settings.csv`` is of."""
    values = {name: row[name] for name in SETTING}
    targets = row["target_modules"]
    values["target_modules"] = targets if targets == ALL_LINEAR else tuple(targets.split("+"))
    values["alpha"] = float(row["alpha"])
    if row["model"] != LARGE:
        values["model"] = str((MODELS / row["model"]).relative_to(Path.cwd()))
    return Setting(**values)


def rescored(settings: pd.DataFrame, runs: pd.DataFrame) -> pd.DataFrame:
    """The settings with what their runs come to as the package scores them now."""
    settings = settings.set_index("key")

    def judge(chosen: pd.DataFrame) -> dict[str, Score]:
        own = settings.loc[chosen["key"].unique()].reset_index()
        found = curves(chosen.assign(kind="sweep"), own)
        return {key: score(sweep, None, None, None) for key, sweep in found.items()}

    swept = runs[(runs["kind"] == "sweep") & runs["key"].isin(settings.index)]
    for key, judged in judge(swept).items():
        settings.loc[key, ANSWER] = [getattr(judged, name) for name in ANSWER]
    others = {column: runs[runs["kind"] == kind] for column, kind in OTHERS.items()}
    if "sweep_0_best_lr" in settings:
        first = settings.index[settings["sweep_0_best_lr"].notna()]
        others["sweep_0_best_lr"] = swept[(swept["seed"] == 0) & swept["key"].isin(first)]
    for column, chosen in others.items():
        for key, judged in judge(chosen[chosen["key"].isin(settings.index)]).items():
            unknown = column == "lr_probe" and judged.censored
            settings.loc[key, column] = None if unknown else judged.best_lr
    return settings.reset_index()


def write(folder: Path, settings: pd.DataFrame, runs: pd.DataFrame) -> None:
    """The two tables, with what they had of other settings; the settings' columns that are empty left out."""
    folder.mkdir(parents=True, exist_ok=True)
    if (folder / "settings.csv").exists():
        old_settings, old_runs = read(folder)
        again = old_runs["key"].isin(settings["key"])
        if "probe_cost" in old_settings and "probe_cost" not in settings:  # not from ``probe`` itself
            settings = settings.drop(columns=SHORT, errors="ignore")
            settings = settings.merge(old_settings[["key", *SHORT]], how="left")
            runs = pd.concat([runs, old_runs[again & (old_runs["kind"] == PROBE)]], ignore_index=True)
        before = (
            old_settings[~old_settings["key"].isin(settings["key"])],
            old_runs[~again],
        )
        settings, runs = (
            pd.concat(pair, ignore_index=True) for pair in zip(before, (settings, runs), strict=True)
        )
    settings = rescored(settings, runs)
    settings.dropna(axis=1, how="all").to_csv(folder / "settings.csv", index=False, float_format="%.6g")
    runs.to_csv(folder / "runs.csv", index=False, float_format="%.7g")
    print(f"{folder.name}: {len(settings)} settings, {len(runs)} runs")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--long", action="store_true", help="only the longest runs' tables")
    only_long = parser.parse_args().long
    kept_aside = {one.key for one in long()}
    settings, every_run = collect()
    for folder, chosen in ((HERE, False), (LONG, True)):
        if chosen or not only_long:
            some, theirs = (t[t["key"].isin(kept_aside) == chosen] for t in (settings, every_run))
            write(folder, some, theirs)


if __name__ == "__main__":
    main()
