"""The candidate laws: which quantities each makes its learning rate from, and what its exponents are held to.

Every law is ln η = c + Σ w·ln(quantity). An exponent is drawn to its prior mean (theory's, or 0) with the
prior's standard deviation; where that is 0 the exponent is fixed, and only the constant is fitted.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

# What was measured after the package's warm-up, and after one to a quarter of its learning rate.
AFTER, GENTLE = "after_", "gentle_"
# Quantities of the setting that any law may take; a priori they have no influence.
SETTING = {"steps": (0.0, 0.3), "batch_size": (0.0, 0.3)}
THEORY = (1.0, 0.0)  # a learning rate of theory's, or a threshold for one
HALF = (-0.5, 0.0)
FREE = (-0.5, 0.5)
SHARE = (1 / 3, 0.5)


@dataclass(frozen=True)
class Law:
    """Exponents by quantity, as (prior mean, prior standard deviation)."""

    name: str
    terms: dict[str, tuple[float, float]]


def _law(name: str, *terms: tuple[str, tuple[float, float]], setting: bool = False) -> Law:
    return Law(name, dict(terms) | (SETTING if setting else {}))


LAWS = (
    # What users do without measuring.
    _law("constant fitted"),
    _law("constant fitted, steps, batch", setting=True),
    # Curvature at the start.
    _law("c / lambda", ("lambda_start", (-1.0, 0.0))),
    _law("c / sqrt lambda", ("lambda_start", HALF)),
    _law("lambda", ("lambda_start", FREE), setting=True),
    _law("lambda over gradient", ("lambda_ratio", FREE), setting=True),
    _law("lambda of B", ("lambda_b_start", FREE), setting=True),
    _law("Gauss-Newton", ("gauss_newton_start", FREE), setting=True),
    _law("gradient l2", ("gradient_l2", FREE), setting=True),
    _law("gradient l1", ("gradient_l1", FREE), setting=True),
    _law("critical at start", ("lr_critical_start", THEORY)),
    _law("critical at start, free", ("lr_critical_start", (1.0, 0.5)), setting=True),
    # In Adam's geometry, after the warm-up.
    _law("38 / lambda_P", (AFTER + "lr_stability", THEORY)),
    _law("38 / lambda_P, free", (AFTER + "lr_stability", (1.0, 0.5)), setting=True),
    _law("38 / lambda_P gentle, free", (GENTLE + "lr_stability", (1.0, 0.5)), setting=True),
    _law("edge", ("edge", THEORY)),
    _law("edge, free", ("edge", (1.0, 0.5)), setting=True),
    _law("trace_P", (AFTER + "preconditioned_trace", FREE), setting=True),
    _law("directional", (AFTER + "lr_directional", THEORY)),
    _law("critical after", (AFTER + "lr_critical", THEORY)),
    _law("critical after, free", (AFTER + "lr_critical", (1.0, 0.5)), setting=True),
    # Two views at once.
    _law(
        "38 / lambda_P and critical at start",
        (AFTER + "lr_stability", (0.5, 0.5)),
        ("lr_critical_start", (0.5, 0.5)),
        setting=True,
    ),
    _law(
        "38 / lambda_P near and gentle",
        (AFTER + "lr_stability", (0.5, 0.5)),
        (GENTLE + "lr_stability", (0.5, 0.5)),
        setting=True,
    ),
    _law(
        "38 / lambda_P near and gentle, critical at start",
        (AFTER + "lr_stability", (0.4, 0.5)),
        (GENTLE + "lr_stability", (0.3, 0.5)),
        ("lr_critical_start", (0.3, 0.5)),
        setting=True,
    ),
    _law(
        "lambda ratio and critical at start",
        ("lambda_ratio", FREE),
        ("lr_critical_start", (0.5, 0.5)),
        setting=True,
    ),
    _law(
        "lambda ratio and 38 / lambda_P",
        ("lambda_ratio", FREE),
        (AFTER + "lr_stability", (0.5, 0.5)),
        setting=True,
    ),
    _law(
        "lambda ratio, critical at start, 38 / lambda_P",
        ("lambda_ratio", FREE),
        ("lr_critical_start", (0.5, 0.5)),
        (AFTER + "lr_stability", (0.5, 0.5)),
        setting=True,
    ),
    # Held to what theory demands: parameters × k, learning rate × k; the loss × c, nothing.
    _law(
        "critical at start and lambda ratio, invariant",
        ("lr_critical_start", THEORY),
        ("root_over_critical", SHARE),
        setting=True,
    ),
    _law(
        "38 / lambda_P, critical, lambda ratio, invariant",
        ("lr_critical_start", THEORY),
        ("stability_over_critical", SHARE),
        ("root_over_critical", SHARE),
        setting=True,
    ),
    _law("Polyak", ("lr_polyak", THEORY), setting=True),
    _law("Polyak and 38 / lambda_P", ("lr_polyak", THEORY), ("stability_over_polyak", SHARE), setting=True),
    _law("eigenvalue", ("lr_eigenvalue", THEORY), setting=True),
    _law("adam", ("lr_critical_start", THEORY), ("stability_over_critical", SHARE), setting=True),
    _law(
        "eigenvalue and 38 / lambda_P",
        ("lr_eigenvalue", THEORY),
        ("stability_over_eigenvalue", SHARE),
        setting=True,
    ),
    _law(
        "eigenvalue and critical at start",
        ("lr_eigenvalue", THEORY),
        ("critical_over_eigenvalue", SHARE),
        setting=True,
    ),
    _law(
        "combined",
        ("lr_eigenvalue", THEORY),
        ("critical_over_eigenvalue", SHARE),
        ("stability_over_eigenvalue", SHARE),
        setting=True,
    ),
    _law(
        "combined and Polyak",
        ("lr_eigenvalue", THEORY),
        ("critical_over_eigenvalue", SHARE),
        ("stability_over_eigenvalue", SHARE),
        ("polyak_over_eigenvalue", SHARE),
        setting=True,
    ),
    # With n in √n's place, as up to 2026.11-e, and with whatever power of n fits (see ``step_length``).
    _law("sharpness", ("lr_sharpness", THEORY), setting=True),
    _law(
        "combined with sharpness",
        ("lr_sharpness", THEORY),
        ("critical_over_sharpness", SHARE),
        ("stability_over_sharpness", SHARE),
        setting=True,
    ),
    _law("eigenvalue, free n", ("lr_sharpness", THEORY), ("parameters", (0.0, 0.5)), setting=True),
    # Joined with runs a tenth as long, which the law ``adam`` tells where to start (see ``probe``).
    _law("probe", ("lr_probe", THEORY), ("stability_over_probe", SHARE)),
    _law("probe alone", ("lr_probe", THEORY)),
    _law("probe and eigenvalue", ("lr_probe", THEORY), ("eigenvalue_over_probe", SHARE)),
    _law(
        "probe, free",
        ("lr_probe", (0.5, 0.5)),
        (AFTER + "lr_stability", (0.5, 0.5)),
        setting=True,
    ),
    # The rival: the same sweep at a tenth of the steps.
    _law("tenth of the steps", ("tenth_best_lr", THEORY)),
    _law("tenth of the steps, free", ("tenth_best_lr", (1.0, 0.5)), setting=True),
    _law(
        "tenth and 38 / lambda_P",
        ("tenth_best_lr", (0.5, 0.5)),
        (AFTER + "lr_stability", (0.5, 0.5)),
        setting=True,
    ),
)


def derived(table: pd.DataFrame) -> pd.DataFrame:
    """The table with what follows from its measurements."""
    table = table.copy()
    table["lambda_ratio"] = table["lambda_start"] / table["weight_gradient_norm"]
    table["edge"] = _edge(table)
    stability, critical = table[AFTER + "lr_stability"], table["lr_critical_start"]
    # The sign-like step that would take a loss that fell in a straight line to zero (Polyak 1987).
    table["lr_polyak"] = table["loss_start"] / table["gradient_l1"]
    own = np.sqrt(table["loss_start"] / table["lambda_start"])
    for name, power in (("lr_eigenvalue", 0.25), ("lr_sharpness", 0.5)):
        mine = own / table["parameters"] ** power
        table[name] = mine.fillna(table[name]) if name in table else mine
    table["root_over_critical"] = table["lambda_ratio"] ** -0.5 / critical
    table["stability_over_critical"] = stability / critical
    table["stability_over_polyak"] = stability / table["lr_polyak"]
    for name in ("eigenvalue", "sharpness"):
        table[f"stability_over_{name}"] = stability / table[f"lr_{name}"]
        table[f"critical_over_{name}"] = critical / table[f"lr_{name}"]
    # Runs of fewer than 60 steps have no tenth.
    table["lr_probe"] = table.get("lr_probe", np.nan)
    table["stability_over_probe"] = stability / table["lr_probe"]
    table["eigenvalue_over_probe"] = table["lr_eigenvalue"] / table["lr_probe"]
    table["polyak_over_eigenvalue"] = table["lr_polyak"] / table["lr_eigenvalue"]
    return table


def _edge(table: pd.DataFrame) -> np.ndarray:
    """Where 38/λ_P, measured after warm-ups to two learning rates, would meet the warm-up's own.

    ln(38/λ_P) is taken to be linear in ln η between the two and beyond.
    """
    near, gentle = np.log(table[AFTER + "warmup_lr"]), np.log(table[GENTLE + "warmup_lr"])
    low, high = np.log(table[AFTER + "lr_stability"]), np.log(table[GENTLE + "lr_stability"])
    slope = np.clip((high - low) / (gentle - near), -2.0, 0.8)
    return np.exp((low - slope * near) / (1 - slope))
