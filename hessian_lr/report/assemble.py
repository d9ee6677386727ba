"""From documents to what a report shows: one part for each setting, its sections in order."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ..records import digest
from ..setting import Setting
from . import drawings, sections
from .advice import advice
from .command import commands
from .documents import Document
from .sections import Sourced
from .view import Part, Section

# Fields that do not make another setting of it: what is compared, and how it is measured.
_SAME = ("method", "seed", "samples", "device", "dtype")
# Nor do these where nothing is trained: a spectrum goes with every run of its adapter.
_UNTRAINED = ("optimizer", "batch_size", "steps")

MISSING = {
    "Learning rates": "a prediction: `hessian-lr predict --json predict.json`",
    "Sharpness": "λ: `hessian-lr spectrum --json spectrum.json`",
    "Sweeps": "a sweep: `hessian-lr validate --out DIR`",
    "Eigenvalue against best learning rate": "λ beside a best learning rate: `hessian-lr validate --out DIR`",
    "Module by module": "λ module by module: `hessian-lr spectrum --per-module --json modules.json`",
    "Spectral density": "the spectral density: `hessian-lr spectrum --density --json density.json`",
    "Cost against the sweep it replaces": "what a prediction costs: `hessian-lr predict --json predict.json`",
}


def assemble(documents: Sequence[Document]) -> list[Part]:
    """The parts of a report, in the order in which their settings come in ``documents``."""
    trained: dict[str, list[Document]] = {}
    spectra = [document for document in documents if document.command == "spectrum"]
    for document in documents:
        if document.command != "spectrum":
            trained.setdefault(_key(document), []).append(document)
    groups, placed = list(trained.values()), set()
    for group in groups:
        for spectrum in spectra:
            if _untrained_key(spectrum) == _untrained_key(group[0]):
                group.append(spectrum)
                placed.add(spectrum.file)
    alone: dict[str, list[Document]] = {}
    for spectrum in spectra:
        if spectrum.file not in placed:
            alone.setdefault(_untrained_key(spectrum), []).append(spectrum)
    return [_part(group, f"part{index}") for index, group in enumerate([*groups, *alone.values()])]


def _key(document: Document, same: Sequence[str] = _SAME) -> str:
    setting = document.entries[0].setting
    values = setting.to_dict() | {"model": setting.model_place, "data": setting.data_place}
    return digest({name: value for name, value in values.items() if name not in same})


def _untrained_key(document: Document) -> str:
    return _key(document, (*_SAME, *_UNTRAINED))


def _part(documents: Sequence[Document], prefix: str) -> Part:
    rows = _sourced(documents)
    scored = sections.validated(rows)
    found: dict[str, Section | None] = {
        "Learning rates": sections.learning_rates(sections.fresh(rows)),
        "Sharpness": sections.sharpness(rows),
        "Sweeps": drawings.sweeps(rows, prefix),
        "Eigenvalue against best learning rate": drawings.eigenvalues(scored, prefix),
        "Module by module": drawings.heatmaps(rows, prefix),
        "Spectral density": drawings.densities(rows, prefix),
        "Cost against the sweep it replaces": sections.cost(sections.fresh(rows)),
    }
    shown = [section for section in found.values() if section is not None]
    shown += [sections.setting(documents), sections.versions(documents)]
    shown.append(
        Section("How to make these results again", code=[c for one in documents for c in commands(one)])
    )
    if (notes := sections.notes(documents, rows)) is not None:
        shown.append(notes)
    if lacking := [MISSING[title] for title, section in found.items() if section is None]:
        lead = "Name the file or folder that the command writes when you make the report again."
        shown.append(Section("Not in these results", lead, lines=lacking))
    first = documents[0].entries[0].setting
    title = f"{_named(first.model)} · {_named(first.data)}"
    return Part(title, _subtitle(documents, first), advice([entry for _, entry in rows]), shown)


def _sourced(documents: Sequence[Document]) -> list[Sourced]:
    """The rows of all documents with where they are from, sweeps before what was only measured."""
    ordered = sorted(documents, key=lambda d: ("validate", "predict", "spectrum").index(d.command))
    return [(document.name, entry) for document in ordered for entry in document.entries]


def _named(source: str) -> str:
    """A model or data set as a title has it: a local file by its own name, without the way there."""
    path = Path(source)
    return path.name if path.is_absolute() or source.startswith(".") else source


def _subtitle(documents: Sequence[Document], setting: Setting) -> str:
    said = [f"rank {setting.rank}", f"alpha {setting.alpha:g}"]
    if documents[0].command != "spectrum":
        said += [f"{setting.steps} steps of {setting.batch_size} rows with {setting.optimizer}"]
    return ", ".join(said)
