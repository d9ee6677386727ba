"""What the tools' records come to, once the true λ is known."""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from itertools import groupby, pairwise
from pathlib import Path
from typing import Any

from hessian_lr.records import read_json

from .names import PER_MODULE, TOOLS

TOLERANCE = 0.05


@dataclass(frozen=True)
class Row:
    """One tool on one method and sample.

    Attributes:
        truth: λ of this package in float32 to 0.1%; None where that run is missing.
        second_truth: λ of the naive recipe to 0.1%.
        build: Seconds before the first product could begin, estimated: the end of the first product
            less the median product.
        per_product: Median seconds of a product.
        reached: (products, seconds) after which the tool's estimate was within 5% of the truth for good.
        stop: (products, seconds) at which its own rule stopped it.
        value: λ it gave: at its own stop, else the last estimate.
        error: (value − truth) / truth.
        peak: Bytes, the process's peak while the tool worked.
        modules: Per-module tools: (modules measured, seconds for all of them).
        record: The whole result.
    """

    tool: str
    method: str
    samples: int
    status: str
    reason: str | None
    truth: float | None
    second_truth: float | None
    build: float | None
    per_product: float | None
    reached: tuple[int, float] | None
    stop: tuple[int, float] | None
    value: float | None
    error: float | None
    peak: int | None
    modules: tuple[int, float] | None
    record: dict[str, Any]


def read_rows(folder: Path) -> list[Row]:
    """All results of a folder, by sample and method, each group in the order of running."""
    results = [read_json(path) for path in folder.glob("*.json")]
    by_name = {name_of(result): result for result in results}
    rows = []
    for (samples, method, _tool), result in by_name.items():
        truth = by_name.get((samples, method, "truth"), {}).get("value")
        naive = by_name.get((samples, method, "naive"), {}).get("value")
        rows.append(summarise(result, truth, naive))
    return sorted(rows, key=lambda row: (row.samples, row.method, TOOLS.index(row.tool)))


def name_of(result: dict[str, Any]) -> tuple[int, str, str]:
    request = result["request"]
    return request["samples"], request["method"], request["tool"]


def summarise(result: dict[str, Any], truth: float | None, second_truth: float | None) -> Row:
    """A tool's record against the truth."""
    samples, method, tool = name_of(result)
    products, stop = result["products"], result["stop"]
    ends = [entry["seconds"] for entry in products]
    gaps = [after - before for before, after in pairwise(ends)]
    per_product = statistics.median(gaps) if gaps else None
    estimates = [entry["estimate"] for entry in products if entry["estimate"] is not None]
    value = stop["value"] if stop else (estimates[-1] if estimates else None)
    modules = [one["seconds"] for one in result["modules"]]
    if modules and None in modules:  # all at once
        modules = [result["seconds"]] + [0.0] * (len(modules) - 1)
    return Row(
        tool=tool,
        method=method,
        samples=samples,
        status=result["status"],
        reason=result["reason"],
        truth=truth,
        second_truth=second_truth,
        build=max(0.0, ends[0] - per_product) if per_product is not None else None,
        per_product=per_product,
        reached=within(products, truth) if truth else None,
        stop=(stop["products"], stop["seconds"]) if stop else None,
        value=value,
        error=(value - truth) / truth if truth and value is not None else None,
        peak=result.get("peak_rss"),
        modules=(len(modules), sum(modules)) if modules else None,
        record=result,
    )


def within(products: list[dict[str, Any]], truth: float) -> tuple[int, float] | None:
    """(products, seconds) from which on every estimate lies within 5% of ``truth``."""
    first = None
    for count, entry in enumerate(products, start=1):
        estimate = entry["estimate"]
        if estimate is None or abs(estimate - truth) > TOLERANCE * abs(truth):
            first = None
        elif first is None:
            first = (count, entry["seconds"])
    return first


def markdown(rows: list[Row]) -> str:
    """The tables, one for each sample and method, then the per-module ones."""
    parts = []
    for (samples, method), group in groupby(rows, key=lambda row: (row.samples, row.method)):
        members = list(group)
        parts.append(_joint_table(samples, method, [r for r in members if r.tool not in PER_MODULE]))
        single = [r for r in members if r.tool in PER_MODULE]
        if single:
            parts.append(_module_table(single))
    return "\n\n".join(parts) + "\n"


def _joint_table(samples: int, method: str, rows: list[Row]) -> str:
    some = next((row for row in rows if row.truth), None)
    head = f"### {method}, {samples} sample{'s' * (samples > 1)}"
    sizes = next((row.record for row in rows if "tokens" in row.record), None)
    if sizes:
        threads = sizes["request"]["threads"]
        head += f" ({sizes['tokens']} tokens, {sizes['parameters']} parameters, {threads} threads)"
    lines = [head, ""]
    if some:
        second = f"; the naive recipe: {some.second_truth:.5g}" if some.second_truth else ""
        lines += [f"True λ: {some.truth:.5g} (this package, float32, residual 0.1%{second}).", ""]
    lines += [
        "| tool | build s | s/product | to 5%: products | to 5%: s | × ours | own stop: products "
        "| own stop: s | peak GB | λ | error | remark |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    ours = next((row.reached for row in rows if row.tool == "ours-bfloat16"), None)
    for row in rows:
        ratio = row.reached[1] / ours[1] if row.reached and ours else None
        cells = [
            row.tool,
            _number(row.build, ".1f"),
            _number(row.per_product, ".2f"),
            str(row.reached[0]) if row.reached else "never" if row.record["products"] else "–",
            _number(row.reached and row.reached[1], ".1f"),
            _number(ratio, ".1f"),
            str(row.stop[0]) if row.stop else "–",
            _number(row.stop and row.stop[1], ".1f"),
            _number(row.peak and row.peak / 1e9, ".2f"),
            _number(row.value, ".4g"),
            _number(row.error, "+.1%"),
            row.reason or row.status,
        ]
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines)


def _module_table(rows: list[Row]) -> str:
    lines = [
        "Single modules:",
        "",
        "| tool | modules | s | s/module | peak GB | remark |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        count, seconds = row.modules or (0, None)
        each = seconds / count if seconds and count else None
        cells = [
            row.tool,
            str(count),
            _number(seconds, ".1f"),
            _number(each, ".2f"),
            _number(row.peak and row.peak / 1e9, ".2f"),
            row.reason or "",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    pair = {row.tool: {one["name"]: one["value"] for one in row.record["modules"]} for row in rows}
    both = set(pair.get(PER_MODULE[0], {})) & set(pair.get(PER_MODULE[1], {}))
    if both:
        apart = max(abs(pair[PER_MODULE[0]][n] / pair[PER_MODULE[1]][n] - 1) for n in both)
        lines += ["", f"Largest difference of λ between the two, over {len(both)} modules: {apart:.1%}."]
    return "\n".join(lines)


def _number(value: float | None, form: str) -> str:
    return "–" if value is None else format(value, form)
