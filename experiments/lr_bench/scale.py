"""Whether the size of an adapter's parameters belongs in a law: `python -m experiments.lr_bench.scale`.

Adam moves every parameter by about the learning rate, and how much that changes one depends on how large it
is; optimizers such as LARS scale their steps by it (You et al. 2017, arXiv 1708.03888). The mean |θ| of the
trained matrices at the start is known without a gradient, and scales as a learning rate must: parameters × k
give it × k, as they give √(L/(λ·√n)) × k. Each law gets a power of the two's ratio besides, and is scored on
methods, models and tasks that it has not seen, and on the settings that are in no fit. ``results/scale.csv``
has a row a setting; ``--report`` starts from that.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from torch import nn

from hessian_lr import methods
from hessian_lr.curvature.loss import trainable
from hessian_lr.records import write_json

from .again import again
from .axes import SHIPPED, SPLITS, unseen
from .axes_terms import shown, study, with_terms
from .evaluate import scored
from .held_out import fit, left_out, predict
from .laws import LAWS
from .pretrain import MODELS
from .run import Loader
from .settings import LARGE
from .table import HERE, read, setting_of

FILE = HERE / "scale.csv"
TERMS: dict[str, tuple[str, ...]] = {"as shipped": (), "mean \\|θ\\|": ("scale_over_eigenvalue",)}
COUNTS = ("rank", "batch_size", "steps", "max_length", "samples")
MODELS_OF = {"small models": False, "SmolLM2": True}


def scale(model: nn.Module) -> float:
    """The mean |θ| over the trained matrices; DoRA's magnitudes, which are vectors, are not among them."""
    matrices = [p.detach().double() for p in trainable(model) if p.dim() > 1]
    return sum(float(p.abs().sum()) for p in matrices) / sum(p.numel() for p in matrices)


def measure(row: dict[str, Any], loader: Loader) -> Iterator[dict[str, Any]]:
    """The one number of a row of the bench's tables."""
    name = Path(row["model"]).name
    known = str(MODELS / name) if (MODELS / name).exists() else name
    setting = replace(setting_of(row | {"model": name}), model=known, dtype="float32")
    yield {"scale": scale(methods.adapted(setting, *loader(setting)))}


def every_setting() -> dict[str, dict[str, Any]]:
    """Rows of the bench's tables by key: those of the fit, and those of no fit that have a rate from λ."""
    later = unseen()
    both = pd.concat([scored(read()[0]), later[later["lr_eigenvalue"] > 0]], ignore_index=True)
    # Of tables where some have none, they come as floats.
    both = both.astype(dict.fromkeys(COUNTS, int))
    return {row["key"]: row for row in both.to_dict("records")}


def joined(table: pd.DataFrame, points: pd.DataFrame) -> pd.DataFrame:
    """The settings that have a scale, with its ratio to √(L/(λ·√n))."""
    found = table["key"].map(points.set_index("key")["scale"])
    table = table.assign(scale_over_eigenvalue=found / table["lr_eigenvalue"])
    return table[found > 0].reset_index(drop=True)


def by_model(table: pd.DataFrame, later: pd.DataFrame) -> list[dict[str, Any]]:
    """Each law's errors on each of the models, left out of the fit, and on settings that are in no fit."""
    rows = []
    for law in (law for law in LAWS if law.name in SHIPPED):
        for told, names in TERMS.items():
            own = with_terms(law, names)
            held = left_out(own, table, table[SPLITS["model"]])
            after = pd.Series(predict(own, fit(own, table), later), index=later.index)
            found = {name: (held, table, table["model"] == name) for name in sorted(table["model"].unique())}
            found |= {
                f"no fit, {name}": (after, later, (later["model"] == LARGE) == large)
                for name, large in MODELS_OF.items()
            }
            for name, (predicted, settings, chosen) in found.items():
                factors = np.exp(np.abs(np.log(predicted / settings["best_lr"])))[chosen].dropna()
                rows.append(
                    {"law": law.name, "terms": told, "on": name, "settings": len(factors)}
                    | {"median_factor": float(factors.median()), "p90_factor": float(factors.quantile(0.9))}
                    | {"beyond_2": int((factors > 2).sum())}
                )
    return rows


def shown_models(rows: list[dict[str, Any]]) -> str:
    """What ``by_model`` found, in Markdown."""
    places = list(dict.fromkeys((row["on"], row["settings"]) for row in rows))
    heads = " | ".join(f"{name} ({settings})" for name, settings in places)
    lines = [f"| law | with | {heads} |", "|---" * (2 + len(places)) + "|"]
    for law, told in dict.fromkeys((row["law"], row["terms"]) for row in rows):
        own = [row for row in rows if (row["law"], row["terms"]) == (law, told)]
        cells = (f"{r['median_factor']:.2f} / {r['p90_factor']:.2f}, {r['beyond_2']}" for r in own)
        lines.append(f"| {law} | {told} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def report() -> None:
    """Print what ``results/scale.csv`` says, and keep it beside that."""
    points = pd.read_csv(FILE)
    table = joined(scored(read()[0]), points)
    later = unseen()
    rows, models = study(table, TERMS), by_model(table, joined(later, points))
    write_json(FILE.with_suffix(".json"), {"schema": 1, "rows": rows, "models": models})
    print(shown(rows), shown_models(models), sep="\n")


def main() -> None:
    settings = {key: (key, partial(measure, row)) for key, row in every_setting().items()}
    again(__doc__ or "", FILE, settings, report)


if __name__ == "__main__":
    main()
