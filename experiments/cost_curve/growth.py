"""How costs grow along an axis: exponents fitted on logarithms."""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy.stats import linregress

from .points import AXES, DTYPES, GRAPHS, QUICK_AXES, axis_shapes

QUANTITIES = ("ratio", "product_seconds", "gradient_seconds", "peak_bytes", "own_bytes")


def growths(points: list[dict[str, Any]], quick: bool) -> list[dict[str, Any]]:
    """Exponent p of quantity ∝ axisᵖ with its standard error, for every axis, precision and kind of graph.

    ``own_bytes`` is the peak less what was resident before: without the model's weights.
    """
    found = []
    for axis in QUICK_AXES if quick else AXES:
        for dtype in DTYPES:
            for graphs in GRAPHS:
                line = series(points, axis, dtype, graphs, quick)
                for quantity in QUANTITIES:
                    pairs = [(x, p[quantity]) for x, p in line if p.get(quantity)]
                    if len(pairs) >= 3:
                        fit = linregress(np.log([x for x, _ in pairs]), np.log([y for _, y in pairs]))
                        found.append(
                            {
                                "axis": axis,
                                "dtype": dtype,
                                "graphs": graphs,
                                "quantity": quantity,
                                "exponent": float(fit.slope),
                                "standard_error": float(fit.stderr),
                                "points": len(pairs),
                            }
                        )
    return found


def series(
    points: list[dict[str, Any]], axis: str, dtype: str, what: str, quick: bool
) -> list[tuple[int, dict[str, Any]]]:
    """(number on the axis, measurement) for those points of a line that were measured."""
    line = []
    for number, shape in axis_shapes(axis, quick):
        for point in points:
            if (point["shape"], point["dtype"], point["what"]) == (
                shape,
                dtype,
                what,
            ) and "failed" not in point:
                own = {}
                if point.get("resident_before"):
                    own["own_bytes"] = point["peak_bytes"] - point["resident_before"]
                line.append((number, point | own))
    return line


def growth_table(growth: list[dict[str, Any]]) -> str:
    """The exponents in Markdown, one line for each axis, precision and kind of graph."""
    lines = [
        "| along | precision | graphs | " + " | ".join(QUANTITIES) + " |",
        "|---" * (3 + len(QUANTITIES)) + "|",
    ]
    for key in dict.fromkeys((g["axis"], g["dtype"], g["graphs"]) for g in growth):
        fits = {g["quantity"]: g for g in growth if (g["axis"], g["dtype"], g["graphs"]) == key}
        cells = [
            f"{fits[q]['exponent']:.2f} ± {fits[q]['standard_error']:.2f}" if q in fits else "–"
            for q in QUANTITIES
        ]
        lines.append("| " + " | ".join((*key, *cells)) + " |")
    return "\n".join(lines)
