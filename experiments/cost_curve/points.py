"""What is varied, around what, and the request that names each measurement."""

from __future__ import annotations

from typing import Any

# SmolLM2-135M's shape; two rows of 128 tokens are about what a microbatch of the built-in tasks holds.
BASE: dict[str, Any] = {
    "hidden": 576,
    "layers": 30,
    "rank": 16,
    "rows": 2,
    "length": 128,
    "pretrained": False,
}
# Of each axis the field that it varies, the factor from that field to the number shown, and the values.
AXES: dict[str, tuple[str, int, tuple[int, ...]]] = {
    "tokens": ("rows", 128, (1, 2, 4)),
    "length of one row": ("length", 1, (128, 256, 512)),
    "rank": ("rank", 1, (1, 4, 16, 64)),
    "layers": ("layers", 1, (3, 7, 15, 30)),
    "width": ("hidden", 1, (192, 384, 576, 768)),
}
QUICK_BASE = BASE | {"hidden": 192, "layers": 2, "length": 32}
QUICK_AXES: dict[str, tuple[str, int, tuple[int, ...]]] = {
    "tokens": ("rows", 32, (1, 2, 4)),
    "rank": ("rank", 1, (4, 16, 64)),
}
DTYPES = ("float32", "bfloat16")
GRAPHS = ("kept", "rebuilt")


def shapes(quick: bool) -> list[dict[str, Any]]:
    """Every shape that some axis needs, once, and the base's twin with pretrained weights."""
    base, axes = (QUICK_BASE, QUICK_AXES) if quick else (BASE, AXES)
    found = [shape for axis in axes for _, shape in axis_shapes(axis, quick)]
    if not quick:
        found.append(base | {"pretrained": True})
    return list({str(sorted(shape.items())): shape for shape in found}.values())


def axis_shapes(axis: str, quick: bool) -> list[tuple[int, dict[str, Any]]]:
    """(number shown, shape) along an axis."""
    base, axes = (QUICK_BASE, QUICK_AXES) if quick else (BASE, AXES)
    field, factor, values = axes[axis]
    # One row that grows, rather than two.
    fixed = {"rows": 1} if field == "length" else {}
    return [(value * factor, base | fixed | {field: value}) for value in values]


def requests(quick: bool) -> list[dict[str, Any]]:
    """Every measurement: products with graphs kept and rebuilt, and one training step, in each precision."""
    return [
        {"shape": shape, "dtype": dtype, "what": what}
        for shape in shapes(quick)
        for dtype in DTYPES
        for what in (*GRAPHS, "step")
    ]
