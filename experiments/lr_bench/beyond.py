"""How far a law misses beyond the settings it was fitted to: `python -m experiments.lr_bench.beyond`.

A range grows with the distance, in ln, by which a setting lies outside those that the constants come from.
Here the bench is cut at a value of each quantity, a law is fitted to the settings on one side and predicts
those beyond: how far off, in the mean, for each factor e of distance?
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from hessian_lr import models
from hessian_lr.records import write_json

from .evaluate import scored
from .held_out import fit, predict, usable
from .laws import LAWS, Law
from .pretrain import MODELS
from .table import HERE, read

NAMES = ("combined", "adam", "eigenvalue")
# (quantity, the last value that is fitted to, whether what lies above it is predicted)
CUTS = (
    ("model_size", 1e7, True),
    ("model_size", 1e7, False),
    ("adapter_rank", 16.0, True),
    ("adapter_rank", 16.0, False),
    ("adapter_scaling", 1.0, True),
    ("adapter_scaling", 1.0, False),
    ("batch_size", 4.0, True),
    ("batch_size", 4.0, False),
    ("steps", 60.0, True),
    ("steps", 60.0, False),
)
# Below these a fit or a mean says nothing.
FITTED, PREDICTED = 10, 5


def sizes(names: list[str]) -> dict[str, int]:
    """Parameters of each of the bench's models."""
    places = {name: str(MODELS / name) if (MODELS / name).is_dir() else name for name in names}
    return {
        name: models.load(place, device="cpu", quiet=True).model.num_parameters()
        for name, place in places.items()
    }


def with_extent(table: pd.DataFrame, size: dict[str, int]) -> pd.DataFrame:
    """The table with what a law carries over: the model's size, the adapter's rank and scaling.

    Of LoRA's own kind alone has the last one meaning; rslora divides alpha by √r.
    """
    by_root = table["method"] == "rslora"
    scaling = table["alpha"] / np.where(by_root, np.sqrt(table["rank"]), table["rank"])
    of_lora = ~table["method"].isin(("randlora", "gralora"))
    return table.assign(
        model_size=table["model"].map(size).astype(float),
        adapter_rank=table["rank"].astype(float),
        adapter_scaling=scaling.where(of_lora),
    )


def study(table: pd.DataFrame) -> list[dict[str, Any]]:
    """A row for each law and cut: settings, mean distance and mean error in ln.

    Args:
        table: The bench's settings, scored, with their extent.
    """
    laws = [next(law for law in LAWS if law.name == name) for name in NAMES]
    rows = [_cut(law, table, *cut) for law in laws for cut in CUTS]
    return [row for row in rows if row is not None]


def _cut(law: Law, table: pd.DataFrame, name: str, last: float, up: bool) -> dict[str, Any] | None:
    known = table[usable(law, table) & table[name].notna()]
    inside = known[name] <= last if up else known[name] >= last
    fitted, asked = known[inside], known[~inside]
    if len(fitted) < FITTED or len(asked) < PREDICTED:
        return None
    edge = fitted[name].max() if up else fitted[name].min()
    distance = np.abs(np.log(asked[name] / edge))
    error = np.log(predict(law, fit(law, fitted), asked) / asked["best_lr"])
    return {
        "law": law.name,
        "quantity": name,
        "towards": "more" if up else "less",
        "fitted": len(fitted),
        "predicted": len(asked),
        "distance": float(distance.mean()),
        "error": float(error.mean()),
        "per_e": float(abs(error.mean()) / distance.mean()),
    }


def as_table(rows: list[dict[str, Any]]) -> str:
    """The rows in Markdown, those of one cut in a line."""
    columns = ("cut at", "towards", "settings", "distance", *NAMES, "the worst, for each e")
    lines = [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    for name, last, up in CUTS:
        cut = [row for row in rows if row["quantity"] == name and (row["towards"] == "more") == up]
        if cut:
            settings = f"{cut[0]['fitted']}, {cut[0]['predicted']} beyond"
            errors = [f"{row['error']:+.2f}" for row in cut]
            worst = f"{max(row['per_e'] for row in cut):.2f}"
            told = (f"{name} {last:g}", cut[0]["towards"], settings, f"e^{cut[0]['distance']:.2f}")
            lines.append(f"| {' | '.join((*told, *errors, worst))} |")
    return "\n".join(lines)


def main() -> None:
    table = scored(read()[0])
    size = sizes(sorted(table["model"].unique()))
    rows = study(with_extent(table, size))
    write_json(HERE / "beyond.json", {"schema": 1, "models": size, "rows": rows})
    print(as_table(rows))


if __name__ == "__main__":
    main()
