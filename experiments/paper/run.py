"""Hold our tables against the study, and write the README's: `python -m experiments.paper.run`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hessian_lr.atomic import write_bytes
from hessian_lr.records import read_json, write_json

from ..lr_bench.table import read
from .findings import (
    alignments,
    between_seeds,
    distinct,
    exponents,
    groups,
    peak_gaps,
    published_alignment,
    published_exponents,
)

HERE = Path(__file__).parent
RESULTS = HERE / "results.json"
BEGIN, END = "<!-- tables -->\n", "<!-- end of tables -->\n"


def found() -> dict[str, Any]:
    """Everything the README tells, from the tables as they are."""
    published = read_json(HERE / "published.json")
    settings, runs = read()
    rates = published["best_learning_rate"]
    return {
        "schema": 1,
        "settings": len(settings),
        "groups": [
            {
                "title": group.title,
                "censored": group.censored,
                "distinct": distinct(group, rates),
                "gaps": peak_gaps(group),
                "alignments": alignments(group),
                "between_seeds": between_seeds(group),
            }
            for group in groups(settings, runs)
        ],
        "alignment_published": published_alignment(published),
        "exponents": exponents(settings),
        "exponents_published": published_exponents(published),
        "exponents_told": published["exponents"],
    }


def tables(told: dict[str, Any]) -> str:
    """The tables of the README.

    Args:
        told: What ``found`` gives, as ``results.json`` holds it.
    """
    return "\n".join([_distinct(told), _gaps(told), _seeds(told), _exponents(told), _alignments(told)])


def _distinct(told: dict[str, Any]) -> str:
    lines = [
        "**Best learning rates** (τ: Kendall's, with the study's, over the methods both have)\n",
        "| | methods | lowest | highest | apart | in the study | bands disjoint | τ (p) |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for group in told["groups"]:
        one = group["distinct"]
        lines.append(
            f"| {group['title']} | {one['methods']} | {one['lowest'][0]} {one['lowest'][1]:.1e} "
            f"| {one['highest'][0]} {one['highest'][1]:.1e} "
            f"| {one['times']:.1f}× | {one['times_published']:.1f}× "
            f"| {one['bands_apart']} of {one['pairs']} pairs "
            f"| {one['kendall_tau_with_published']:+.2f} ({one['kendall_p']:.2f}) |"
        )
    return "\n".join(lines) + "\n"


def _gaps(told: dict[str, Any]) -> str:
    lines = [
        "**Loss above the best method's**, as a share of the loss reduction\n",
        "| | each at its own best: median, worst | all at plain LoRA's best | not swept there |",
        "|---|---|---|---|",
    ]
    for group in told["groups"]:
        one = group["gaps"]
        there = _spread(one["at_loras"]) if one["at_loras"] else "no plain LoRA"
        lines.append(
            f"| {group['title']} | {_spread(one['tuned'])} | {there} | {', '.join(one['not_swept_there'])} |"
        )
    return "\n".join(lines) + "\n"


def _seeds(told: dict[str, Any]) -> str:
    lines = [
        "**Beside the noise between two seeds**, in nats\n",
        "| | worst tuned method less the best | standard error of a mean of two "
        "| the two seeds' best learning rates differ |",
        "|---|---|---|---|",
    ]
    for group in told["groups"]:
        if one := group["between_seeds"]:
            lines.append(
                f"| {group['title']} | {one['worst_less_best']:.3f} | {one['standard_error']:.3f} "
                f"| {', '.join(one['another_best']) or 'nowhere'} |"
            )
    return "\n".join(lines) + "\n"


def _spread(gaps: dict[str, float]) -> str:
    ordered = sorted(gaps.values())
    middle = (ordered[(len(ordered) - 1) // 2] + ordered[len(ordered) // 2]) / 2
    worst = max(gaps, key=gaps.__getitem__)
    return f"{middle:.1%}, {gaps[worst]:.1%} ({worst})"


def _exponents(told: dict[str, Any]) -> str:
    lines = [
        "**Exponents of the best learning rate**\n",
        "| | here (95%) | the study's points | noted of it |",
        "|---|---|---|---|",
    ]
    for name, (value, low, high) in told["exponents"].items():
        points = told["exponents_published"].get(name, [])
        ends = dict.fromkeys(f"{end(points):+.2f}" for end in (min, max) if points)
        noted = told["exponents_told"].get(name)
        lines.append(
            f"| {name} | {value:+.2f} ({low:+.2f} … {high:+.2f}) | {' to '.join(ends)} "
            f"| {'' if noted is None else f'{noted:+.2f}'} |"
        )
    return "\n".join(lines) + "\n"


def _alignments(told: dict[str, Any]) -> str:
    kinds = list(told["groups"][0]["alignments"])
    lines = [
        "**Slope of log η\\* on log λ** (95%; points)\n",
        "| | " + " | ".join(kinds) + " |",
        "|---" * (len(kinds) + 1) + "|",
    ]
    for group in told["groups"]:
        cells = [_slope(group["alignments"][kind]) for kind in kinds]
        lines.append(f"| {group['title']} | " + " | ".join(cells) + " |")
    theirs = told["alignment_published"]
    lines.append(
        f"| the study, `q_proj` medians | {_slope(theirs)} | " + " | ".join([""] * (len(kinds) - 1)) + " |"
    )
    return "\n".join(lines) + "\n"


def _slope(one: dict[str, Any]) -> str:
    if one["slope"] is None:
        return f"({one['points']})"
    return f"{one['slope']:+.2f} ({one['slope_low']:+.2f} … {one['slope_high']:+.2f}; {one['points']})"


def main() -> None:
    write_json(RESULTS, found())
    readme = HERE / "README.md"
    before, rest = readme.read_text(encoding="utf-8").split(BEGIN)
    text = tables(read_json(RESULTS))
    write_bytes(readme, (before + BEGIN + "\n" + text + "\n" + END + rest.split(END)[1]).encode())
    print(text)


if __name__ == "__main__":
    main()
