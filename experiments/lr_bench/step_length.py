"""How far a step of Adam's goes in the sharpest direction: `python -m experiments.lr_bench.step_length`.

η in each of n parameters is a step η·√n long. Were all of it in the sharpest direction, √(L/λ)/√n would tell
the best learning rate; the settings say which power of n does. The fits are to the small models alone; the
real one's settings are held against them.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from hessian_lr.records import write_json

from .evaluate import scored
from .held_out import fit, left_out, predict, usable
from .laws import SETTING, THEORY, Law
from .table import HERE, read

POWERS = (0.0, 0.125, 0.25, 0.375, 0.5)
DRAWS, SEED = 300, 20_261_127
SMALL = ("llama-3m", "gpt2-2m")
FREE = Law("free power of n", {"lr_full": THEORY, "parameters": (0.0, 0.5)} | SETTING)
FREE_AND_RANK = Law("and of rank", FREE.terms | {"rank": (0.0, 0.5)})
HELD = Law("held power of n", {"lr_held": THEORY} | SETTING)


def study(table: pd.DataFrame) -> dict[str, Any]:
    """The power of n with its 95% interval, and the errors with several powers held.

    Args:
        table: The bench's settings, scored.
    """
    table = table.assign(lr_full=table["lr_sharpness"] * np.sqrt(table["parameters"]))
    small = table[table["model"].isin(SMALL) & usable(FREE, table)].reset_index(drop=True)
    real = table[~table["model"].isin(SMALL)]
    draw = np.random.default_rng(SEED)
    drawn = [power_of_n(FREE, small.iloc[draw.integers(0, len(small), len(small))]) for _ in range(DRAWS)]
    return {
        "settings": len(small),
        "parameters": [int(small["parameters"].min()), int(small["parameters"].max())],
        "power": power_of_n(FREE, small),
        "interval": np.quantile(drawn, [0.025, 0.975]).tolist(),
        "power_by_model": {name: power_of_n(FREE, small[small["model"] == name]) for name in SMALL},
        "power_beside_rank": power_of_n(FREE_AND_RANK, small),
        "held": [{"power": power, **_errors(power, small, real)} for power in POWERS],
    }


def power_of_n(law: Law, rows: pd.DataFrame) -> float:
    """a in η ∝ √(L/λ) / n^a."""
    return -float(fit(law, rows)[1 + list(law.terms).index("parameters")])


def _errors(power: float, small: pd.DataFrame, real: pd.DataFrame) -> dict[str, Any]:
    small, real = (
        rows.assign(lr_held=rows["lr_full"] / rows["parameters"] ** power) for rows in (small, real)
    )
    found: dict[str, Any] = {}
    for kind in ("method", "data", "model"):
        found[f"{kind}_left_out"] = _summary(left_out(HELD, small, small[kind]) / small["best_lr"])
    ratio = pd.Series(predict(HELD, fit(HELD, small), real)) / real["best_lr"].to_numpy()
    return found | {"real": _summary(ratio), "real_bias": float(ratio.median()), "real_settings": len(real)}


def _summary(ratio: pd.Series) -> list[float]:
    """Median and 90% quantile of how far off, either way."""
    factors = np.exp(np.abs(np.log(ratio)))
    return [float(factors.median()), float(factors.quantile(0.9))]


def main() -> None:
    found = study(scored(read()[0]))
    write_json(HERE / "step_length.json", {"schema": 1, **found})
    low, high = found["interval"]
    print(f"√(L/λ) / n^{found['power']:.3f} ({low:.3f} to {high:.3f}) over {found['settings']} settings")
    print({name: round(power, 3) for name, power in found["power_by_model"].items()}, end=", ")
    print(f"beside a power of the rank {found['power_beside_rank']:.3f}")
    for row in found["held"]:
        told = {
            name: " / ".join(f"{x:.2f}" for x in value)
            for name, value in row.items()
            if isinstance(value, list)
        }
        print(f"n^{row['power']:g}: {told}, real model {row['real_bias']:.2f} times in the median")


if __name__ == "__main__":
    main()
