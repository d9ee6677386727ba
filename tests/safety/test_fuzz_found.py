"""Files that fuzzing found a traceback for, each told as an error that names what is wrong."""

from __future__ import annotations

import json

import pyarrow
import pyarrow.parquet
import pytest
from report_files import FIRST_LIGHT, spectrum_document
from tiny_text import byte_tokenizer

from hessian_lr import data
from hessian_lr.errors import HessianLRError
from hessian_lr.figures.rows import eigenvalue_points
from hessian_lr.models import alias
from hessian_lr.predict import load_calibration
from hessian_lr.records import read_json
from hessian_lr.report import write_report
from hessian_lr.setting import Setting
from hessian_lr.sweep.request import read as read_request
from hessian_lr.validated import read_validated

VALIDATED = read_json(FIRST_LIGHT / "validate.json")
DIGITS = "1" * 400


def validated(**changed):
    return json.dumps(VALIDATED | {"results": [VALIDATED["results"][0] | changed]}).encode()


def calibration(**changed):
    whole = load_calibration().to_dict()
    return json.dumps(whole | {"combined": whole["combined"] | changed}).encode()


def spectrum(**changed):
    document = spectrum_document()
    document["results"][0]["density"] |= changed
    return json.dumps(document).encode()


def a_column_whose_name_is_no_text():
    sink = pyarrow.BufferOutputStream()
    pyarrow.parquet.write_table(pyarrow.table({"prompt": ["2+3"], "response": ["5"]}), sink)
    return sink.getvalue().to_pybytes().replace(b"response", b"\xf2esponse")


def rows(path):
    return data.load(str(path), byte_tokenizer())


def report(path):
    return write_report([path], path.with_suffix(".html"))


def eigenvalues(path):
    return eigenvalue_points(read_validated([path]))


FOUND = {
    "an error bar that is text": (
        "validate.json",
        validated(sampling_error="0.1"),
        eigenvalues,
        "its row 'lora' is not as it is written here: sampling_error is '0.1' where a number",
    ),
    "an eigenvalue of 400 digits": (
        "validate.json",
        validated(lambda_max=int(DIGITS)),
        eigenvalues,
        "lambda_max is more than a number can be",
    ),
    "a time of 400 digits": (
        "validate.json",
        validated(seconds=int(DIGITS)),
        report,
        "seconds is more than a number can be",
    ),
    "no list of notes": (
        "validate.json",
        json.dumps(VALIDATED | {"notes": None}).encode(),
        report,
        "the notes of the data are not a list of sentences",
    ),
    "a range inside out": (
        "calibration.json",
        calibration(log_half_width=-3e3),
        load_calibration,
        "a constant is -3000.0; expected a finite number of at least 0",
    ),
    "a rank of 400 digits": (
        "setting.json",
        json.dumps(Setting().to_dict() | {"alpha": None}).replace('"rank": 16', f'"rank": {DIGITS}').encode(),
        Setting.read,
        "rank must be at most 2,147,483,647, not 1111",
    ),
    "an alpha of 400 digits": (
        "sweep.yaml",
        f"alpha: {DIGITS}".encode(),
        read_request,
        "line 1, alpha: expected a number, rank or fixed, not 1111",
    ),
    "half a surrogate pair": (
        "rows.jsonl",
        b'{"prompt": "\\ud800", "response": "5"}\n{"prompt": "1+1", "response": "\\udfff"}',
        rows,
        "a prompt with half a surrogate pair",
    ),
    "a column whose name is no text": (
        "rows.parquet",
        a_column_whose_name_is_no_text(),
        rows,
        "is not a readable Parquet file",
    ),
    "a density without points": (
        "spectrum.json",
        spectrum(grid=[]),
        report,
        "needs a grid of two points or more",
    ),
    "a name no file can have": (
        alias.MANIFEST,
        json.dumps({"files": {"x" * 300: {"bytes": 2}}}).encode(),
        lambda path: alias.verify(path.parent),
        "is missing, expected 2 bytes; delete the folder",
    ),
}


@pytest.mark.parametrize("name", FOUND)
def test_it_is_told_what_is_wrong(tmp_path, name):
    file, content, work, told = FOUND[name]
    (tmp_path / file).write_bytes(content)
    with pytest.raises(HessianLRError) as caught:
        work(tmp_path / file)
    assert told in str(caught.value)
