"""Result files for reports, made without a model."""

from __future__ import annotations

import json
from html.parser import HTMLParser
from pathlib import Path

import torch

from hessian_lr import results
from hessian_lr.measure import Curvature, ModuleSharpness, ModuleSpectrum, TopEigenvalues
from hessian_lr.rows import SpectrumRow
from hessian_lr.setting import Setting
from hessian_lr.spectrum import spectral_density

FIRST_LIGHT = Path(__file__).parents[2] / "experiments" / "first_light" / "results"
#: The setting of FIRST_LIGHT.
SETTING = Setting(batch_size=2, steps=16, samples=4)


def curvature(value=1.25, **changed):
    whole = {
        "lambda_max": value,
        "lambda_lower": value,
        "lambda_upper": value * 1.1,
        "confidence": 0.95,
        "lambda_min": -0.5,
        "residual": 0.01,
        "sampling_error": 0.04,
        "status": "converged",
        "matvecs": 11,
        "gradient_equivalents": 12.0,
        "seconds": 3.0,
        "peak_rss_bytes": 1,
        "loss": 1.4,
        "tokens": 100,
        "parameters": 60,
    }
    return Curvature(**(whole | changed))


def modules(layers=3, kinds=("q_proj", "v_proj")):
    made = [
        ModuleSharpness(f"h.{i}.{kind}", i, kind, 10, 1.0 + i + k, 5.0, None, 0.01, "converged", 4)
        for i in range(layers)
        for k, kind in enumerate(kinds)
    ]
    return ModuleSpectrum(tuple(made), 0.95, 24, 5.0, 1.0, 1, 1.4, 100)


def density():
    diagonal = torch.cat([torch.linspace(-0.5, 0.5, 58), torch.tensor([3.0, 4.0])])
    return spectral_density(lambda v: diagonal * v, 60, probes=3, steps=12)


def top():
    return TopEigenvalues((1.05, 0.94, 0.94), (1e-3, 0.012, 0.04), "converged", 27, 28.0, 9.0, 1, 96, 60)


def json_document(settings, rows, **more):
    """What a command writes of rows that are JSON already."""
    return results.document(settings, (), (), **more).to_dict() | {"results": list(rows)}


def spectrum_document(methods=("lora",), setting=SETTING, **more):
    beside = {"top": top(), "density": density(), "modules": modules()}
    rows = [SpectrumRow.of(method, curvature(), **beside).to_dict() for method in methods]
    settings = [Setting(**{**vars(setting), "method": method}) for method in methods]
    return json_document(settings, rows, **more)


def predict_row(method="lora", **changed):
    row = {
        **{"method": method, "status": "converged", "sampling_error": 30.0, "residual": 1.0},
        **dict.fromkeys(("lambda_max", "lambda_lower", "lambda_upper", "lambda_min")),
        **{"matvecs": 9, "gradient_equivalents": 15.0, "seconds": 60.0, "peak_rss_bytes": 1},
        **{"lambda_preconditioned": 4650.0, "lr": 2.1e-3, "lr_low": 9.4e-4, "lr_high": 4.6e-3},
        **{"predictor": "adam", "calibration": "2026.11-b", "fast": False, "notes": []},
    }
    return row | changed


def predict_document(*rows, setting=SETTING):
    rows = rows or (predict_row(),)
    return json_document([Setting(**{**vars(setting), "method": r["method"]}) for r in rows], rows)


def written(path, document):
    path.write_text(json.dumps(document), encoding="utf-8")
    return path


def first_light():
    """The committed study, without the checksum of its file: tests change it."""
    document = json.loads((FIRST_LIGHT / "validate.json").read_text(encoding="utf-8"))
    del document["sha256"]
    return document


VOID = {"meta", "link", "br", "img", "input", "hr"}


class Page(HTMLParser):
    """A page as a browser reads it: its elements with their attributes, and its text outside of styles."""

    def __init__(self, source):
        super().__init__()
        self.elements, self.open, self.texts, self.styles = [], [], [], []
        self.feed(source)
        self.close()
        assert self.open == [], "unclosed elements"

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        (self.styles if self.open and self.open[-1] == "style" else self.texts).append(data)

    @property
    def text(self):
        return " ".join("".join(self.texts).split())

    def tags(self, name):
        return [attributes for tag, attributes in self.elements if tag == name]
