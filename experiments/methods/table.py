"""The rows of ``results.json`` as the Markdown table of the README."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hessian_lr.atomic import write_bytes

BEGIN, END = "<!-- table -->\n", "<!-- end of table -->\n"
HEAD = (
    *("method", "model", "builds", "logits off by", "joint λ", "λ of a module", "predicted"),
    "swept: best of three, loss",
)


def write_table(document: dict[str, Any], readme: Path) -> str:
    """Put the table between the README's two markers, and return it."""
    text = readme.read_text(encoding="utf-8")
    before, rest = text.split(BEGIN)
    table = markdown(document)
    write_bytes(readme, (before + BEGIN + "\n" + table + "\n" + END + rest.split(END)[1]).encode())
    return table


def markdown(document: dict[str, Any]) -> str:
    """One line a method and architecture, methods together; a refusal's reason stands below."""
    order: dict[str, list[dict[str, Any]]] = {}
    for row in document["results"]:
        order.setdefault(row["method"], []).append(row)
    reasons: list[str] = []
    lines = [_line(HEAD), _line(["---"] * len(HEAD))]
    for row in (row for rows in order.values() for row in rows):
        lines.append(_line([row["method"], row["architecture"], *_cells(row, document["lrs"], reasons)]))
    notes = [f"{number}. {reason}" for number, reason in enumerate(reasons, 1)]
    return "\n".join([*lines, "", *notes]) + "\n"


def _cells(row: dict[str, Any], lrs: list[float], reasons: list[str]) -> list[str]:
    builds = "yes" if row["logits"] is not None else f"no {_footnote(row['refused'], reasons)}"
    if row["logits"] is None:
        return [builds, "", "", "", "", ""]
    modules = f"{row['module_least']:.3g} … {row['module_most']:.3g} ({row['modules']})"
    if row["modules_converged"] < row["modules"]:
        modules += f", {row['modules_converged']} converged"
    if row["predicted"] is not None:
        predicted = "{:.2g} ({:.2g} … {:.2g})".format(*row["predicted"])
    else:
        predicted = f"no {_footnote('; '.join(row['notes']), reasons)}"
    cells = [builds, _distance(row["logits"]), _joint(row), modules, predicted]
    if row["losses"] is None:
        return [*cells, f"no {_footnote(row['refused'], reasons)}"]
    loss, lr = min((loss, lr) for loss, lr in zip(row["losses"], lrs, strict=True) if loss is not None)
    diverged = sum(loss is None for loss in row["losses"])
    tail = f" ({diverged} diverged)" if diverged else ""
    return [*cells, f"{lr:.0e}, {row['initial_loss']:.3f} → {loss:.3f}{tail}"]


def _distance(logits: float) -> str:
    return f"{logits:.0e}" if logits else "0"


def _joint(row: dict[str, Any]) -> str:
    return f"{row['joint']:.3g}" + ("" if row["joint_status"] == "converged" else f" ({row['joint_status']})")


def _footnote(reason: str, reasons: list[str]) -> str:
    if reason not in reasons:
        reasons.append(reason)
    return f"[{reasons.index(reason) + 1}]"


def _line(cells: Any) -> str:
    return "| " + " | ".join(cells) + " |"
