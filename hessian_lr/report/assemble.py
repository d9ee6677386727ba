"""From documents to what a report shows: one part for each setting, its sections in order."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..copies import once
from ..peft_config import PeftSource
from ..records import digest
from ..setting import SGD, Setting
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
# By which a file tells what it was measured on, and what a reader knows them as.
_CONTENTS = {"data_digest": "data", "model_fingerprint": "model"}

MISSING = {
    "Learning rates": "a prediction: `hessian-lr predict --json predict.json`",
    "Sharpness": "λ: `hessian-lr spectrum --json spectrum.json`",
    "Sweeps": "a sweep: `hessian-lr validate --out DIR`",
    "Eigenvalue against best learning rate": "λ beside a best learning rate: `hessian-lr validate --out DIR`",
    "Largest eigenvalues": "the eigenvalues below λ: `hessian-lr spectrum --top 10 --json top.json`",
    "Module by module": "λ module by module: `hessian-lr spectrum --per-module --json modules.json`",
    "Spectral density": "the spectral density: `hessian-lr spectrum --density --json density.json`",
    "Cost against the sweep it replaces": "what a prediction costs: `hessian-lr predict --json predict.json`",
}


def assemble(documents: Sequence[Document]) -> list[Part]:
    """The parts of a report, in the order in which their settings come in ``documents``.

    Data and models of one name may be different ones: files of ``validate`` tell them by their contents.
    The others do not, and go with those of their setting where these are of one content.
    """
    told: dict[str, set[str]] = {}
    for document in documents:
        if content := _content(document):
            told.setdefault(_key(document), set()).add(content)
    trained: dict[tuple[str, str], list[Document]] = {}
    spectra: list[Document] = []
    for document in documents:
        if document.command == "spectrum":
            spectra.append(document)
            continue
        key = _key(document)
        content = _content(document) or (min(told[key]) if len(told.get(key, ())) == 1 else "")
        trained.setdefault((key, content), []).append(document)
    alone: dict[str, list[Document]] = {}
    for spectrum in spectra:
        key = _untrained_key(spectrum)
        fits = {place: group for place, group in trained.items() if _untrained_key(group[0]) == key}
        if fits and len({content for _, content in fits if content}) <= 1:
            for group in fits.values():
                group.append(spectrum)
        else:
            alone.setdefault(key, []).append(spectrum)
    groups = [*trained.values(), *alone.values()]
    heads = [_head(group) for group in groups]
    parts = []
    for index, (group, head) in enumerate(zip(groups, heads, strict=True)):
        alike = [other for other, its in zip(groups, heads, strict=True) if its == head]
        title, said = head
        subtitle = ", ".join([*said, *(_apart(group, alike) if len(alike) > 1 else ())])
        parts.append(_part(title, subtitle, group, f"part{index}"))
    return parts


def _content(document: Document) -> str:
    """What tells the data and the model, whatever they are called; empty where the file does not."""
    told = [document.whole.get(name) for name in _CONTENTS]
    return digest(told) if any(told) else ""


def _key(document: Document, same: Sequence[str] = _SAME) -> str:
    return digest(_compared(document.entries[0].setting, same))


def _compared(setting: Setting, same: Sequence[str] = _SAME) -> dict[str, Any]:
    """The fields that make another setting of it: a path by its place, an adapter by its content."""
    values = setting.training_identity() | {"model": setting.model_place, "data": setting.data_place}
    return {name: value for name, value in values.items() if name not in same}


def _untrained_key(document: Document) -> str:
    return _key(document, (*_SAME, *_UNTRAINED))


def _part(title: str, subtitle: str, documents: Sequence[Document], prefix: str) -> Part:
    rows, again = _sourced(documents)
    scored = sections.validated(rows)
    found: dict[str, Section | None] = {
        "Learning rates": sections.learning_rates(sections.fresh(rows)),
        "Sharpness": sections.sharpness(rows),
        "Sweeps": drawings.sweeps(rows, prefix),
        "Eigenvalue against best learning rate": drawings.eigenvalues(scored, prefix),
        "Largest eigenvalues": sections.largest(rows),
        "Module by module": drawings.heatmaps(rows, prefix),
        "Spectral density": drawings.densities(rows, prefix),
        "Cost against the sweep it replaces": sections.cost(sections.fresh(rows)),
    }
    shown = [section for section in found.values() if section is not None]
    shown += [sections.setting(documents), sections.versions(documents)]
    shown.append(
        Section("How to make these results again", code=[c for one in documents for c in commands(one)])
    )
    if (notes := sections.notes(documents, rows, again)) is not None:
        shown.append(notes)
    lacking = [MISSING[title] for title, section in found.items() if section is None]
    if documents[0].entries[0].setting.optimizer == SGD:  # which has no prediction
        lacking = [line for line in lacking if "`hessian-lr predict" not in line]
    if lacking:
        lead = "Name the file or folder that the command writes when you make the report again."
        shown.append(Section("Not in these results", lead, lines=lacking))
    return Part(title, subtitle, advice(rows), shown)


def _sourced(documents: Sequence[Document]) -> tuple[list[Sourced], list[str]]:
    """The rows of all documents with where they are from, sweeps before what was only measured.

    A sweep counts once, wherever its runs are told again; the notes say where they were. Of one whose longest
    row has no curvature that with one stays as well.
    """
    ordered = sorted(documents, key=lambda d: ("validate", "predict", "spectrum").index(d.command))
    return once(
        [(_source(document, ordered), entry) for document in ordered for entry in document.entries],
        key=lambda row: row[1].validated.identity if row[1].validated else id(row[1]),
        told=lambda row: row[1].validated.told if row[1].validated else (),
        name=lambda row: f"{row[1].row.name} of {row[0]}",
    )


def _source(document: Document, documents: Sequence[Document]) -> str:
    """Where rows are from: their file, and the precision where one file has several, as a sweep's may."""
    own = document.entries[0].setting.dtype
    of_file = {one.entries[0].setting.dtype for one in documents if one.file == document.file}
    return document.name if len(of_file) == 1 else f"{document.name}, dtype {own}"


def _named(source: str) -> str:
    """A model or data set as a title has it: a local file by its own name, without the way there."""
    path = Path(source)
    return path.name if path.is_absolute() or source.startswith(".") else source


def _head(documents: Sequence[Document]) -> tuple[str, list[str]]:
    """A part's title, and the words of its subtitle."""
    setting = documents[0].entries[0].setting
    said = [f"rank {setting.rank}", f"alpha {setting.alpha:g}"]
    if documents[0].command != "spectrum":
        said += [f"{setting.steps} steps of {setting.batch_size} rows with {setting.optimizer}"]
    return f"{_named(setting.model)} · {_named(setting.data)}", said


def _apart(documents: Sequence[Document], alike: Sequence[Sequence[Document]]) -> list[str]:
    """What tells a part from others of its head: other data or another model, other fields, and its files."""
    said: list[str] = []
    told = set()
    for name, what in _CONTENTS.items():
        found = {str(one.whole[name]) for group in alike for one in group if one.whole.get(name)}
        if len(found) > 1 and (own := found & {str(one.whole.get(name)) for one in documents}):
            said += [f"{what} {one}" for one in sorted(own)]
            told.add(what)
    said += [_field(name, documents, alike) for name in _differing(alike) if name not in told]
    return [*said, f"from {', '.join(dict.fromkeys(document.name for document in documents))}"]


def _differing(groups: Sequence[Sequence[Document]]) -> list[str]:
    """The fields by which the settings of groups differ; of spectra alone those that have a part in them."""
    same = (*_SAME, *_UNTRAINED) if groups[0][0].command == "spectrum" else _SAME
    values = [_compared(group[0].entries[0].setting, same) for group in groups]
    names = dict.fromkeys(name for one in values for name in one)
    return [name for name in names if any(one.get(name) != values[0].get(name) for one in values)]


def _field(name: str, documents: Sequence[Document], alike: Sequence[Sequence[Document]]) -> str:
    """A field of a part's setting in words."""
    own, *others = (getattr(group[0].entries[0].setting, name) for group in (documents, *alike))
    # A list's own commas would not be told from those between fields.
    text = " ".join(own) if isinstance(own, tuple) else sections.valued(name, own)
    if isinstance(own, PeftSource) and any(str(one) == text and one != own for one in others):
        text += f" ({own.digest})"  # the file was another one before
    return f"{sections.named(name)} {text}"
