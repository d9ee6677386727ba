"""Whether rank, alpha or n belong in a law: `python -m experiments.lr_bench.axes_terms`.

Each shipped law gets powers of rank, alpha / rank and the number of parameters beside its own, none a priori,
and is scored on methods, models and tasks that it has not seen. ``results/axes_terms.json``.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from hessian_lr.records import write_json

from .axes import SHIPPED, SPLITS
from .evaluate import scored
from .held_out import fit, left_out
from .laws import LAWS, Law
from .table import HERE, read

FILE = HERE / "axes_terms.json"
#: As ``laws.SETTING`` has it for steps and batch size, but wider: whoever adds a term believes in it.
UNKNOWN = (0.0, 0.5)
TERMS: dict[str, tuple[str, ...]] = {
    "as shipped": (),
    "rank": ("rank",),
    "alpha / rank": ("alpha_over_rank",),
    "parameters": ("parameters",),
    "rank, alpha / rank": ("rank", "alpha_over_rank"),
    "rank, alpha / rank, parameters": ("rank", "alpha_over_rank", "parameters"),
}
DRAWS, SEED = 300, 20_261_130


def with_terms(law: Law, names: tuple[str, ...]) -> Law:
    """The law with powers of these columns besides."""
    return Law(law.name, law.terms | dict.fromkeys(names, UNKNOWN))


def prepared(table: pd.DataFrame) -> pd.DataFrame:
    """The settings that count, with alpha / rank."""
    table = scored(table)
    return table.assign(alpha_over_rank=table["alpha"] / table["rank"])


def exponents(law: Law, names: tuple[str, ...], table: pd.DataFrame) -> dict[str, list[float]]:
    """The powers in a fit to all settings, each with its 95% interval over bootstrap draws."""
    draw = np.random.default_rng(SEED)
    places = [1 + list(law.terms).index(name) for name in names]
    drawn = [
        fit(law, table.iloc[draw.integers(0, len(table), len(table))])[places]
        for _ in range(DRAWS if names else 0)
    ]
    ends = np.quantile(drawn, [0.025, 0.975], axis=0).T if names else []
    own = fit(law, table)[places]
    return {name: [float(value), *map(float, end)] for name, value, end in zip(names, own, ends, strict=True)}


def errors(law: Law, table: pd.DataFrame, split: str) -> pd.Series:
    """|ln(predicted / best)| of each setting, its group left out."""
    return np.abs(np.log(left_out(law, table, table[SPLITS[split]]) / table["best_lr"]))


def study(table: pd.DataFrame, terms: dict[str, tuple[str, ...]] = TERMS) -> list[dict[str, Any]]:
    """A row for each law and set of terms.

    Args:
        table: The bench's settings, ``prepared`` for these.
        terms: Columns that a law gets powers of, by what the set is called.
    """
    rows = []
    for law in (law for law in LAWS if law.name in SHIPPED):
        before = {split: errors(law, table, split) for split in SPLITS}
        for told, names in terms.items():
            own = with_terms(law, names)
            row: dict[str, Any] = {"law": law.name, "terms": told, "powers": exponents(own, names, table)}
            for split in SPLITS:
                now = errors(own, table, split)
                row[split] = {
                    "settings": len(now.dropna()),
                    "median_factor": float(np.exp(now.median())),
                    "p90_factor": float(np.exp(now.quantile(0.9))),
                    "mean_log_error": float(now.mean()),
                    "nearer": float((now < before[split]).mean()),
                }
            rows.append(row)
    return rows


def shown(rows: list[dict[str, Any]]) -> str:
    """The rows in Markdown."""
    lines = [
        "| law | powers of | which (95% interval) | method left out | model left out | task left out |",
        "|---" * 6 + "|",
    ]
    for row in rows:
        powers = ", ".join(
            f"{value:.2f} ({low:.2f} to {high:.2f})" for value, low, high in row["powers"].values()
        )
        cells = " | ".join(f"{row[s]['median_factor']:.2f} / {row[s]['p90_factor']:.2f}" for s in SPLITS)
        lines.append(f"| {row['law']} | {row['terms']} | {powers} | {cells} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    rows = study(prepared(read()[0]))
    write_json(FILE, {"schema": 1, "rows": rows})
    print(shown(rows))
    for row in rows:
        means = ", ".join(f"{row[s]['mean_log_error']:.3f} ({row[s]['nearer']:.0%} nearer)" for s in SPLITS)
        print(f"{row['law']}, {row['terms']}: mean log error {means}")


if __name__ == "__main__":
    main()
