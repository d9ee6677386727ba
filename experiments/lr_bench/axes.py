"""Where the laws are off, axis by axis: `python -m experiments.lr_bench.axes`.

Every setting is predicted by a fit that has not seen its method, its model or its task; the settings that
came after the shipped constants by these. ``results/axes.csv`` has a row for each law, way of leaving out,
axis and value; ``results/axes.json`` says by how much the values of an axis differ.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import kruskal

from hessian_lr.predict import load_calibration
from hessian_lr.records import read_json, write_json

from .evaluate import scored
from .held_out import left_out, widths
from .later import LATER, found
from .laws import AFTER, LAWS
from .prospective import predicted
from .settings import LARGE
from .table import HERE, LONG, PROBED, REAL_LONG, SHAPES, THOUSAND, UNSEEN, from_documents, read

FILE = HERE / "axes.csv"
SHIPPED = ("combined", "adam", "eigenvalue")
#: What is left out, by the column that tells its groups.
SPLITS = {"method": "method", "model": "model", "task": "data"}
NO_FIT = "in no fit"
#: How a method's start differs from LoRA's, which with its optimizer is what a fit to others may not know.
FAMILIES = {
    "B = 0": ("lora", "rslora", "dora"),
    "from W": ("pissa", "milora", "olora"),
    "from gradients": ("lora-ga",),
    "both random": ("init-ab",),
    "other matrices": ("gralora", "randlora"),
    "own optimizer": ("lora+", "loft"),
}
FAMILY_OF = {method: family for family, methods in FAMILIES.items() for method in methods}
OPTIMIZERS = {"lora+": "LoRA+'s", "loft": "LoFT's"}
AXES: dict[str, Callable[[pd.DataFrame], pd.Series]] = {
    "all": lambda t: pd.Series("all", index=t.index),
    "rank": lambda t: _number(t["rank"]),
    "alpha / rank": lambda t: _number(t["alpha"] / t["rank"]),
    "batch size": lambda t: _number(t["batch_size"]),
    "steps": lambda t: _number(t["steps"]),
    "task": lambda t: t["data"],
    "modules": lambda t: t["target_modules"].where(t["target_modules"] == "all-linear", "attention"),
    "method": lambda t: t["method"],
    "family": lambda t: t["method"].map(FAMILY_OF),
    "optimizer": lambda t: t["method"].map(OPTIMIZERS).fillna("AdamW"),
    "model": lambda t: t["model"],
    "task and model": lambda t: t["data"] + ", " + t["model"].where(t["model"] == LARGE, "small"),
}
# What has fewer settings is in the file, not in the tables; settings in no fit are few.
LEAST, FEW = 5, 3


# A range is as wide as one setting's own error, which other sums may make a last digit wider.
ROUNDED = 1 + 1e-9


def _number(column: pd.Series) -> pd.Series:
    return column.map("{:g}".format)


def held_out(table: pd.DataFrame, name: str, split: str) -> pd.DataFrame:
    """What is predicted for each setting without its group, and the half-width of its 80% range."""
    (law,) = (one for one in LAWS if one.name == name)
    groups = table[SPLITS[split]]
    told = pd.DataFrame({"lr": left_out(law, table, groups), "half": widths(law, table, groups)})
    return told.dropna(subset="lr")


def unseen() -> pd.DataFrame:
    """The settings that the shipped constants were not fitted to."""
    columns = read()[0].columns
    documents = [from_documents(folder)[0] for folder in (LATER, UNSEEN, PROBED, REAL_LONG, THOUSAND, SHAPES)]
    tables = [read(LONG)[0], *(one.reindex(columns=columns) for one in documents)]
    both = pd.concat([one.dropna(axis=1, how="all") for one in tables], ignore_index=True)
    both = both.reindex(columns=columns).assign(censored=lambda t: t["censored"].astype(bool))
    later = scored(both[~both["key"].isin(read()[0]["key"])])
    return pd.concat([later, own_optimizers().reindex(columns=later.columns)], ignore_index=True)


def own_optimizers() -> pd.DataFrame:
    """The settings of methods that AdamW does not train, in no fit either; they have no rate from λ."""
    rows = []
    for row in found(LATER):
        if row["method"] in OPTIMIZERS and not row["censored"]:
            setting = read_json(LATER / row["file"])["setting"]
            shared = {name: setting[name] for name in ("alpha", "target_modules")}
            rows.append(row | shared | {AFTER + "lr_stability": row["lr_stability"]})
    return pd.DataFrame(rows).drop(columns="lr_sharpness")


def as_shipped(table: pd.DataFrame, name: str) -> pd.DataFrame:
    """What the shipped constants predict for each setting, with the half-width of their range."""
    told = predicted(name, load_calibration(), table).dropna()
    return pd.DataFrame({"lr": told["lr"], "half": np.sqrt(told["high"] / told["low"])})


def along(table: pd.DataFrame, told: pd.DataFrame, shipped_half: float) -> list[dict[str, Any]]:
    """A row for each axis and value: how far off, to which side, and how often the range holds."""
    table = table.loc[told.index]
    ratio = told["lr"] / table["best_lr"]
    factors = np.exp(np.abs(np.log(ratio)))
    rows = []
    for axis, value_of in AXES.items():
        values = value_of(table)
        for value in sorted(values.unique(), key=_in_order):
            own = values == value
            inside = (factors <= told["half"] * ROUNDED)[own & told["half"].notna()]
            rows.append(
                {
                    "axis": axis,
                    "value": value,
                    "settings": int(own.sum()),
                    "median_factor": float(factors[own].median()),
                    "p90_factor": float(factors[own].quantile(0.9)),
                    "bias": float(np.exp(np.log(ratio[own]).median())),
                    "held": int(inside.sum()),
                    "coverage": float(inside.mean()),
                    "median_width": float(told["half"][own].median() ** 2),
                    "shipped_coverage": float((factors[own] <= shipped_half * ROUNDED).mean()),
                }
            )
    return rows


def _in_order(value: str) -> tuple[float, str]:
    """Numbers by size, and before words."""
    try:
        return float(value), ""
    except ValueError:
        return math.inf, value


def spread(table: pd.DataFrame, told: pd.DataFrame) -> list[dict[str, Any]]:
    """By axis, the chance of values that differ in ln(predicted / best) as much as these if none did.

    Kruskal and Wallis 1952, over values with five settings and more. It takes settings to be independent.
    """
    table = table.loc[told.index]
    residuals = np.log(told["lr"] / table["best_lr"])
    rows = []
    for axis, value_of in AXES.items():
        parts = [part for _, part in residuals.groupby(value_of(table)) if len(part) >= LEAST]
        if len(parts) > 1:
            medians = [float(part.median()) for part in parts]
            apart = math.exp(max(medians) - min(medians))
            rows.append(
                {"axis": axis, "values": len(parts), "apart": apart, "p": float(kruskal(*parts).pvalue)}
            )
    return rows


def study(table: pd.DataFrame, later: pd.DataFrame) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Rows of both files.

    Args:
        table: The bench's settings, scored.
        later: Those in no fit.
    """
    rows, spreads = [], []
    for name in SHIPPED:
        half = math.exp(getattr(load_calibration(), name).log_half_width)
        parts = [(split, table, held_out(table, name, split)) for split in SPLITS]
        for split, own, told in [*parts, (NO_FIT, later, as_shipped(later, name))]:
            named = {"law": name, "left_out": split}
            rows += [named | row for row in along(own, told, half)]
            spreads += [named | row for row in spread(own, told)]
    return rows, spreads


def shown(rows: list[dict[str, Any]], law: str) -> str:
    """A law's rows in Markdown, each with a group left out in three ways."""
    lines = [
        "| axis | value | settings | predicted / best | factor, median / 90% | range holds |",
        "|---" * 6 + "|",
    ]
    own = [row for row in rows if row["law"] == law and row["left_out"] != NO_FIT]
    table = {(row["left_out"], row["axis"], row["value"]): row for row in own}
    for axis, value in dict.fromkeys((row["axis"], row["value"]) for row in own):
        three = [table[split, axis, value] for split in SPLITS]
        if three[0]["settings"] >= LEAST and axis != "optimizer":
            bias = ", ".join(f"{row['bias']:.2f}" for row in three)
            off = ", ".join(f"{row['median_factor']:.2f} / {row['p90_factor']:.2f}" for row in three)
            holds = ", ".join(f"{row['coverage']:.0%}" for row in three)
            lines.append(f"| {axis} | {value} | {three[0]['settings']} | {bias} | {off} | {holds} |")
    return "\n".join(lines) + "\n"


def shown_unseen(rows: list[dict[str, Any]], axes: tuple[str, ...]) -> str:
    """What the shipped constants make of settings in no fit, in Markdown, a law in a column."""
    lines = [f"| axis | value | {' | '.join(SHIPPED)} |", "|---" * (2 + len(SHIPPED)) + "|"]
    own = [
        row for row in rows if row["left_out"] == NO_FIT and row["axis"] in axes and row["settings"] >= FEW
    ]
    table = {(row["law"], row["axis"], row["value"]): row for row in own}
    for axis, value in dict.fromkeys((row["axis"], row["value"]) for row in own):
        cells = []
        for law in SHIPPED:
            row = table.get((law, axis, value))
            cells.append(
                f"{row['bias']:.2f}, {row['median_factor']:.2f} / {row['p90_factor']:.2f}, "
                f"{row['held']} of {row['settings']}"
                if row
                else ""
            )
        lines.append(f"| {axis} | {value} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def shown_spread(spreads: list[dict[str, Any]]) -> str:
    """How far apart the values of each axis lie, and the chance of that, in Markdown."""
    lines = [f"| axis | values | {' | '.join(SHIPPED)} |", "|---" * (2 + len(SHIPPED)) + "|"]
    table = {(row["axis"], row["law"], row["left_out"]): row for row in spreads}
    for axis in AXES:
        if (axis, SHIPPED[0], "method") in table:
            cells = []
            for law in SHIPPED:
                three = [table[axis, law, split] for split in SPLITS]
                cells.append(", ".join(f"{row['apart']:.2f} ({row['p']:.1g})" for row in three))
            values = table[axis, SHIPPED[0], "method"]["values"]
            lines.append(f"| {axis} | {values} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


#: The axes that the settings in no fit differ on in more than a setting or two.
UNSEEN_AXES = ("all", "steps", "task and model", "family", "optimizer")


def main() -> None:
    rows, spreads = study(scored(read()[0]), unseen())
    pd.DataFrame(rows).to_csv(FILE, index=False, float_format="%.6g", lineterminator="\n")
    write_json(FILE.with_suffix(".json"), {"schema": 1, "spread": spreads})
    for law in SHIPPED:
        print(law, shown(rows, law), sep="\n\n")
    print(shown_unseen(rows, UNSEEN_AXES))
    print(shown_spread(spreads))


if __name__ == "__main__":
    main()
