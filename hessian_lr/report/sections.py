"""The sections of a part, each from the results that carry it; None where none does."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from ..digits import rate
from ..measure import TopEigenvalues
from ..predict.law import COVERAGE
from ..rows import MeasuredRow, ScoredRow, SpectrumRow
from ..score import BAND_REGRET
from ..spectrum.certificate import CONFIDENCE
from ..validated import Validated
from ..verdict import no_best
from .documents import Document, Entry
from .numbers import ABSENT, count, duration, factor, interval, measured, number, regret
from .view import Section, Table

# A row of the results and the file it is from, as readers know it.
Sourced = tuple[str, Entry]

STATUS = {"converged": "converged", "budget": "stopped at its limit", "failed": "failed"}


def labels(rows: Sequence[Sourced]) -> list[str]:
    """A name for each row: its method, and its file where the method comes again."""
    often = Counter(entry.method for _, entry in rows)
    return [e.method if often[e.method] == 1 else f"{e.method} ({source})" for source, e in rows]


def fresh(rows: Sequence[Sourced]) -> list[Sourced]:
    """The rows without those of ``predict`` that say again what stands beside a sweep."""
    told = {(e.method, *e.predicted) for _, e in rows if e.validated is not None}
    return [(s, e) for s, e in rows if e.validated is not None or (e.method, *e.predicted) not in told]


def _heads(rows: Sequence[Sourced]) -> tuple[list[str], list[list[str]]]:
    """The first columns of a table and their cells: the method, and the file where there are several."""
    if len({source for source, _ in rows}) == 1:
        return ["method"], [[entry.method] for _, entry in rows]
    return ["method", "from"], [[entry.method, source] for source, entry in rows]


def learning_rates(rows: Sequence[Sourced]) -> Section | None:
    """Prediction and sweep side by side."""
    shown = [(source, entry) for source, entry in rows if not isinstance(entry.row, SpectrumRow)]
    if not shown:
        return None
    swept = any(entry.panel is not None for _, entry in shown)
    columns, heads = _heads(shown)
    columns += ["predicted", f"{COVERAGE:.0%} range"]
    if swept:
        columns += ["best found", "within 1%", "held-out loss", "prediction off by", "cost of the prediction"]
    cells = []
    for head, (_, entry) in zip(heads, shown, strict=True):
        row, (lr, low, high) = entry.row, entry.predicted
        # Of gradient descent there is no prediction that could fail.
        none = ABSENT if isinstance(row, ScoredRow) and row.predictor is None else "failed"
        line = [*head, none if lr is None else rate(lr), interval(low, high)]
        if swept:
            line += _found(row) if isinstance(row, ScoredRow) else [ABSENT] * 5
        cells.append(line)
    caption = "Learning rates are the peak of a cosine schedule with warm-up."
    if swept:
        caption += (
            f" Within 1%: the learning rates that keep {1 - BAND_REGRET:.0%} of the improvement; an open end "
            "lies beyond what was run. Held-out loss in nats per token. Cost of the prediction: the share of "
            "the improvement that training at the predicted learning rate gives up, with its standard error "
            "where there are several seeds."
        )
    return Section("Learning rates", tables=[Table(caption, columns, cells)])


def _found(row: ScoredRow) -> list[str]:
    """What a sweep tells: its best, the band, the loss, and how far off the prediction was."""
    scored = (ABSENT, ABSENT) if row.censored else (factor(row.factor_error), regret(row))
    loss = ABSENT if row.best_loss is None else f"{row.best_loss:.3f}"
    return [_best(row), interval(row.band_low, row.band_high), loss, *scored]


def _best(row: ScoredRow) -> str:
    if row.best_lr is None:
        return no_best(row) if row.runs else ABSENT
    return f"{rate(row.best_lr)}, at the edge" if row.censored else rate(row.best_lr)


def sharpness(rows: Sequence[Sourced]) -> Section | None:
    """λ with its certificate."""
    shown = [
        (source, entry)
        for source, entry in rows
        if entry.row.lambda_max is not None
        or (isinstance(entry.row, MeasuredRow) and entry.row.lambda_preconditioned is not None)
        or entry.row.measured_status == "failed"
    ]
    if not shown:
        return None
    # Columns that no row fills are left out.
    columns: dict[str, list[str]] = {
        "λ": [],
        "at least": [],
        f"at most ({CONFIDENCE:.0%})": [],
        "held out": [],
        "smallest": [],
        "λ_P": [],
        "status": [],
    }
    for _, entry in shown:
        row = entry.row
        adam = row.lambda_max is None
        cells = (
            measured(row.lambda_max, None if adam else row.sampling_error),
            number(row.lambda_lower),
            number(row.lambda_upper),
            measured(row.held_out, row.held_out_error) if isinstance(row, SpectrumRow) else ABSENT,
            number(row.lambda_min),
            _preconditioned(row) if isinstance(row, MeasuredRow) else ABSENT,
            STATUS.get(row.measured_status, row.measured_status),
        )
        for column, cell in zip(columns.values(), cells, strict=True):
            column.append(cell)
    kept = {name: cells for name, cells in columns.items() if any(cell != ABSENT for cell in cells)}
    names, heads = _heads(shown)
    table = Table(
        "In nats per token. ± is one standard error over the samples of the data.",
        [*names, *kept],
        [[*head, *(cells[index] for cells in kept.values())] for index, head in enumerate(heads)],
    )
    return Section("Sharpness", _sharpness_lead(kept), tables=[table])


def _preconditioned(row: MeasuredRow) -> str:
    error = row.sampling_error_preconditioned
    if error is None and row.lambda_max is None:
        error = row.sampling_error  # earlier versions tell one, of the eigenvalue that was measured
    return measured(row.lambda_preconditioned, error)


def _sharpness_lead(columns: dict[str, list[str]]) -> str:
    lead = []
    if "λ" in columns:
        lead.append(
            "λ is the largest eigenvalue of the loss's Hessian over the adapter's parameters, at "
            "initialization. The true one is at least the value found, and exceeds the upper bound with a "
            f"probability of at most {1 - CONFIDENCE:.0%} over the random start."
        )
    if "held out" in columns:
        lead.append("Held out: the same direction's curvature on rows it has not seen.")
    if "λ_P" in columns:
        lead.append("λ_P is the same in Adam's own geometry, after ten small warm-up steps.")
    return " ".join(lead)


def largest(rows: Sequence[Sourced]) -> Section | None:
    """The eigenvalues below λ, a column a method."""
    found = [(source, entry) for source, entry in rows if _top(entry) is not None]
    if not found:
        return None
    columns = [top for _, entry in found if (top := _top(entry)) is not None]
    cells = [
        [str(place + 1), *(_at(top, place) for top in columns)]
        for place in range(max(len(top.values) for top in columns))
    ]
    cells.append(["status", *(STATUS.get(top.status, top.status) for top in columns)])
    table = Table(
        "Each as often as it occurs, in nats per token. ± is the residual: some eigenvalue lies within it.",
        ["place", *labels(found)],
        cells,
    )
    return Section("Largest eigenvalues", tables=[table])


def _top(entry: Entry) -> TopEigenvalues | None:
    return entry.row.top if isinstance(entry.row, SpectrumRow) else None


def _at(top: TopEigenvalues, place: int) -> str:
    return measured(top.values[place], top.residuals[place]) if place < len(top.values) else ABSENT


def cost(rows: Sequence[Sourced]) -> Section | None:
    """What the predictions took, against the sweep each replaces."""
    shown = [
        (source, entry, entry.row)
        for source, entry in rows
        if isinstance(entry.row, MeasuredRow) and entry.row.predictor is not None
    ]
    if not shown:
        return None
    columns, heads = _heads([(source, entry) for source, entry, _ in shown])
    columns += ["prediction: gradients", "prediction: time", "sweep: runs", "sweep: gradients", "sweep: time"]
    cells, spent, replaced = [], 0.0, 0.0
    for head, (_, entry, row) in zip(heads, shown, strict=True):
        setting, seconds = entry.setting, row.seconds or 0.0
        per_run = setting.steps * setting.batch_size
        # Of the rows there were; earlier versions tell only those asked for.
        gradients = (row.gradient_equivalents or 0.0) * (row.samples or int(setting.samples))
        line = [*head, count(gradients), duration(seconds)]
        if isinstance(row, ScoredRow) and row.runs:
            steps, swept = sum(run.steps for run in row.runs), row.sweep_seconds or 0.0
            line += [str(len(row.runs)), count(steps * setting.batch_size), duration(swept)]
            line.append(factor(swept / seconds if seconds else None))
            spent, replaced = spent + seconds, replaced + swept
        else:
            runs = dict.fromkeys(entry.planned)  # one number where they are the same
            line += [
                "–".join(map(str, runs)),
                "–".join(count(one * per_run) for one in runs),
                "not run",
                ABSENT,
            ]
        cells.append(line)
    lead = ""
    if replaced:
        lead = f"The predictions took {duration(spent)}, the sweeps they are to replace {duration(replaced)}."
    caption = (
        "A gradient here is that of the loss over one row of data; a product with the Hessian counts as its "
        "share of them. Evaluations on held-out rows are in a sweep's time only."
    )
    scored = {row.predictor for _, _, row in shown if isinstance(row, ScoredRow)}
    if scored - {"combined"}:
        caption += (
            " Before a sweep all predictors' quantities are measured: the cost of the prediction is that of "
            "all, and more than the one that is scored takes by itself."
        )
    table = Table(
        caption,
        [*columns, "sweep / prediction"],
        cells,
    )
    return Section("Cost against the sweep it replaces", lead, tables=[table])


def setting(documents: Sequence[Document]) -> Section:
    """What was measured and trained: values that differ between files stand side by side."""
    found: dict[str, list[str]] = {}
    for document in documents:
        values = {name: value for name, value in document.whole["setting"].items() if name != "methods"}
        values |= {
            name: document.whole[name]
            for name in ("seeds", "data_digest", "model_fingerprint")
            if name in document.whole
        }
        for entry in document.entries:
            if isinstance(entry.row, MeasuredRow):
                values |= {"predictor": entry.row.predictor, "calibration": entry.row.calibration}
        for name, value in values.items():
            text = valued(name, value)
            if text not in found.setdefault(name, []):
                found[name].append(text)
    methods = list(dict.fromkeys(entry.method for document in documents for entry in document.entries))
    rows = [["methods", ", ".join(methods)], *([named(name), " or ".join(v)] for name, v in found.items())]
    table = Table(
        "Values that differ between the files are joined by “or”.", ["field", "value"], rows, prose=True
    )
    return Section("Setting", tables=[table])


def named(name: str) -> str:
    """A field of a setting as a table has it."""
    own = {"seed": "seed of the initialization", "seeds": "seeds of the runs"}
    return own.get(name, name.replace("_", " "))


def valued(name: str, value: Any) -> str:
    """The field's value, as it stands in a file."""
    if value is None:
        return "found by their usual names" if name == "fields" else ABSENT
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, list):
        return ", ".join(map(str, value))
    return str(value["path"]) if isinstance(value, dict) and "path" in value else str(value)


def versions(documents: Sequence[Document]) -> Section:
    """What each file was made with."""
    names = list(dict.fromkeys(name for document in documents for name in document.whole.get("versions", {})))
    if not names:
        return Section("Versions", "These files do not name the versions they were made with.")
    rows = [
        [document.name, *(str(document.whole.get("versions", {}).get(name, ABSENT)) for name in names)]
        for document in documents
    ]
    return Section("Versions", tables=[Table("What each file was made with.", ["file", *names], rows)])


def notes(documents: Sequence[Document], rows: Sequence[Sourced], again: Sequence[str]) -> Section | None:
    """What the measurements said of themselves, which results were found ``again``, and what is left out."""
    lines = [f"data: {note}" for document in documents for note in document.whole.get("notes", [])]
    lines += [f"{entry.method}: {note}" for _, entry in rows for note in entry.row.notes]
    lines += again
    lines += [note for document in documents for note in document.beside]
    return Section("Notes", lines=list(dict.fromkeys(lines))) if lines else None


def validated(rows: Sequence[Sourced]) -> list[Validated]:
    """The rows that have scores."""
    return [entry.validated for _, entry in rows if entry.validated is not None]
