"""A second `validate` into one folder: rows are kept, or the folder is refused."""

from __future__ import annotations

import errno
import fcntl
import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import tiny_sweep as tiny
from predictions import predicted

from hessian_lr import devices, results
from hessian_lr.errors import RequestError
from hessian_lr.files import VALIDATE_FILE
from hessian_lr.predict import load_calibration
from hessian_lr.predict.prediction import Prediction
from hessian_lr.progress import Progress
from hessian_lr.records import read_json, write_sealed
from hessian_lr.results import Document
from hessian_lr.rows import ScoredRow
from hessian_lr.study import joined, predicting
from hessian_lr.study import validating as module
from hessian_lr.study.measured import Predicting
from hessian_lr.study.validating import Asked, Job
from hessian_lr.sweep import RunResult, engine, run_key
from hessian_lr.validated import observations, read_validated

SETTING = replace(tiny.SETTING, steps=3)
DRAW = module._draw


pytestmark = pytest.mark.usefixtures("undrawn")


@pytest.fixture(autouse=True)
def measured(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """No model is measured or trained; the precisions of the measurements."""
    precisions = []

    def predict(*_: Any, dtype: Any, calibration: Any, **__: Any) -> Prediction:
        precisions.append(str(dtype))
        return replace(Prediction.failed("combined", calibration.version, "not measured"), status="budget")

    def train(setting: Any, lr: float, loaded: Any, data: Any, _: Any) -> RunResult:
        key = run_key(setting, lr, data.digest, loaded.fingerprint)
        return RunResult(key, setting, lr, 2.0, 1.0 + (lr != 0.1), 3, False, 1.0, 10)

    monkeypatch.setattr(predicting, "predict_learning_rate", predict)
    monkeypatch.setattr(engine, "train_once", train)
    return precisions


def run(out: Path, *methods: str, **changed: Any) -> Document[ScoredRow]:
    asked = {
        **{"settings": [replace(SETTING, method=method) for method in methods], "out": out, "seeds": (0,)},
        **{"lrs": (0.03, 0.1, 0.3), "predicting": Predicting("combined", load_calibration())},
    }
    job = {"loaded": tiny.tiny_model(), "data": tiny.tiny_data()}
    job |= {name: changed.pop(name) for name in ("loaded", "data", "engine") if name in changed}
    return Job(Asked(**asked | changed), **job).run(Progress(quiet=True))


def methods(found: Document[ScoredRow] | dict[str, Any]) -> list[str]:
    document = found if isinstance(found, dict) else found.to_dict()
    names = [row["method"] for row in document["results"]]
    assert names == document["setting"]["methods"]
    return names


def test_rows_of_other_methods_stay_in_their_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(tmp_path, "lora", "pissa")
    before = read_json(tmp_path / VALIDATE_FILE)
    monkeypatch.setattr(module, "_draw", DRAW)
    mine = Predicting("combined", load_calibration(), "mine.json")
    assert methods(run(tmp_path, "olora", predicting=mine)) == ["olora"], "of the job alone"
    after = read_json(tmp_path / VALIDATE_FILE)
    assert methods(after) == ["lora", "pissa", "olora"]
    assert after["results"][:2] == before["results"]
    assert [row["calibration_file"] for row in after["results"]] == [None, None, "mine.json"]
    drawn = (tmp_path / "sweep.svg").read_text()
    assert all(name in drawn for name in ("lora", "pissa", "olora"))


@pytest.mark.parametrize("locks", [True, False])
def test_calls_at_the_same_time_keep_each_others_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, locks: bool
) -> None:
    document = run(tmp_path / "one", "lora", "pissa")
    shares = []
    for row in document.rows:
        setting = {**document.head["setting"], "methods": [row.method]}
        shares.append(replace(document, head={"setting": setting}, rows=(row,)))

    def slow(*arguments: Any) -> Any:
        found = earlier(*arguments)
        time.sleep(0.2)
        return found

    def unable(*_: Any) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    earlier = joined.earlier
    monkeypatch.setattr(joined, "earlier", slow)
    if not locks:
        monkeypatch.setattr(fcntl, "flock", unable)
    path = tmp_path / "both" / VALIDATE_FILE
    with ThreadPoolExecutor() as pool:
        list(pool.map(partial(joined.write_joined, path), shares))
    assert len(read_json(path)["results"]) == 2 or not locks


def test_rows_that_stay_say_their_own_versions_and_notes(tmp_path: Path) -> None:
    run(tmp_path, "lora")
    path = tmp_path / VALIDATE_FILE
    before = read_json(path)
    old = before["versions"] | {"torch": "1.13"}
    write_sealed(path, before | {"versions": old, "notes": ["two rows are alike"]})
    for method in ("pissa", "olora"):
        run(tmp_path, method)
    after = read_json(path)
    assert methods(after) == ["lora", "pissa", "olora"] and after["versions"] == before["versions"]
    assert after["results"][0] == before["results"][0] | {"versions": old}
    assert not any("versions" in row for row in after["results"][1:])
    assert after["notes"] == ["two rows are alike"]


@pytest.mark.parametrize("lrs", [(0.03, 0.1, 0.3), (0.03, 0.1, 0.3, 1.0)])
def test_an_interrupted_second_call_shortens_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lrs: tuple[float, ...]
) -> None:
    run(tmp_path, "lora", "pissa")
    before = (tmp_path / VALIDATE_FILE).read_bytes()
    measure = module.measure

    def interrupted(setting: Any, *given: Any, **named: Any) -> Any:
        if setting.method == "pissa":
            raise KeyboardInterrupt
        return measure(setting, *given, **named)

    monkeypatch.setattr(module, "measure", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, "lora", "pissa", lrs=lrs)
    assert (tmp_path / VALIDATE_FILE).read_bytes() == before
    monkeypatch.setattr(module, "measure", measure)
    run(tmp_path, "pissa", "lora", lrs=lrs)
    after = read_json(tmp_path / VALIDATE_FILE)
    assert methods(after) == ["lora", "pissa"] and after["lrs"] == list(lrs)
    assert all([run["lr"] for run in row["runs"]] == list(lrs) for row in after["results"])


def out_of_memory(monkeypatch: pytest.MonkeyPatch, *rates: float) -> None:
    train = engine.train_once

    def fails(setting: Any, lr: float, *more: Any) -> RunResult:
        if lr in rates:
            raise MemoryError
        return train(setting, lr, *more)

    monkeypatch.setattr(engine, "train_once", fails)


def test_the_row_of_a_sweep_that_failed_has_the_runs_that_stand(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out_of_memory(monkeypatch, 1.0)
    (row,) = run(tmp_path, "lora", lrs=(0.03, 0.1, 0.3, 1.0)).rows
    assert row.status == "failed" and "sweep failed: MemoryError" in row.notes[-1]
    assert [run.lr for run in row.runs] == [0.03, 0.1, 0.3]
    assert row.best_loss == 1.0 and row.sweep_seconds == 3.0
    assert read_json(tmp_path / VALIDATE_FILE)["results"] == [row.to_dict()]


def test_no_best_is_told_where_a_seed_has_no_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(tmp_path, "lora")
    (tmp_path / VALIDATE_FILE).unlink()
    out_of_memory(monkeypatch, 0.03, 0.1, 0.3)
    (row,) = run(tmp_path, "lora", seeds=(0, 1)).rows
    assert len(row.runs) == 3 and row.best_lr is None and row.censored


@pytest.mark.parametrize("lrs", [(0.03, 0.1, 0.3), (0.03, 0.1, 0.3, 1.0)])
def test_a_row_that_failed_replaces_none_that_tells_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lrs: tuple[float, ...]
) -> None:
    run(tmp_path, "lora")
    before = read_json(tmp_path / VALIDATE_FILE)
    shutil.rmtree(tmp_path / "runs")
    out_of_memory(monkeypatch, *lrs)
    (row,) = run(tmp_path, "lora", lrs=lrs).rows
    assert row.status == "failed" and not row.runs
    assert f"{tmp_path / VALIDATE_FILE} keeps the row of an earlier call" in row.notes[0]
    assert read_json(tmp_path / VALIDATE_FILE) == before


OTHER = {
    "rank 4, now 2": {"settings": [replace(SETTING, rank=2)]},
    "samples 8, now 4": {"settings": [replace(SETTING, samples=4)]},
    "seeds [0], now [1]": {"seeds": (1,)},
    "lrs [0.03, 0.1, 0.3], now auto": {"lrs": None},
    "data_digest": {"data": replace(tiny.tiny_data(), digest="other")},
    "model_fingerprint": {"loaded": replace(tiny.tiny_model(), fingerprint="other")},
}


@pytest.mark.parametrize("told", OTHER)
def test_results_of_something_else_are_not_written_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, told: str
) -> None:
    run(tmp_path, "lora")
    before = (tmp_path / VALIDATE_FILE).read_bytes()
    monkeypatch.setattr(module, "measure", None)
    with pytest.raises(RequestError, match="another folder with --out") as caught:
        run(tmp_path, "pissa", **OTHER[told])
    assert f"({told}" in str(caught.value) and (tmp_path / VALIDATE_FILE).read_bytes() == before


def test_where_model_and_data_lie_and_where_it_runs_may_differ(tmp_path: Path) -> None:
    run(tmp_path, "lora")
    moved = replace(SETTING, model="moved", data="moved", device="auto", method="pissa")
    run(tmp_path, settings=[moved])
    assert methods(read_json(tmp_path / VALIDATE_FILE)) == ["lora", "pissa"]


def test_a_damaged_file_is_named_kept_aside_and_written_anew(tmp_path: Path) -> None:
    run(tmp_path, "lora", "pissa")
    path = tmp_path / VALIDATE_FILE
    left = path.read_bytes()[:-50]
    path.write_bytes(left)
    notes = run(tmp_path, "pissa", "olora").notes
    assert methods(read_json(path)) == ["pissa", "olora"]
    (aside,) = tmp_path.glob("validate.json.damaged-*")
    assert aside.read_bytes() == left
    assert any(f"{path} was damaged" in note and aside.name in note for note in notes)


def _newer(path: Path, _: pytest.MonkeyPatch) -> None:
    write_sealed(path, read_json(path) | {"schema": 2})


def _odd(path: Path, _: pytest.MonkeyPatch) -> None:
    whole = read_json(path)
    whole["results"][0]["runs"][0]["lr"] = "fast"
    write_sealed(path, whole)


def _closed(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read_text = Path.read_text

    def refuse(self: Path, **options: Any) -> str:
        if self == path:
            raise PermissionError(13, "Permission denied")
        return read_text(self, **options)

    monkeypatch.setattr(Path, "read_text", refuse)  # root may read what chmod forbids


UNREADABLE = {"schema 1": _newer, "fast": _odd, "Permission denied": _closed}


@pytest.mark.parametrize("told", UNREADABLE)
def test_a_whole_file_that_cannot_be_read_is_not_written_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, told: str
) -> None:
    run(tmp_path, "lora")
    path = tmp_path / VALIDATE_FILE
    UNREADABLE[told](path, monkeypatch)
    before = path.read_bytes()
    monkeypatch.setattr(module, "measure", None)
    with pytest.raises(RequestError, match=f"would be lost: .*{told}.* another folder with --out"):
        run(tmp_path, "pissa")
    assert path.read_bytes() == before


def test_a_measurement_of_another_precision_is_not_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, measured: list[str]
) -> None:
    auto = replace(SETTING, dtype="auto")
    for native in (False, False, True, False):
        monkeypatch.setattr(devices, "_multiplies_bfloat16", lambda _, native=native: native)
        run(tmp_path, settings=[auto])
        (tmp_path / VALIDATE_FILE).unlink()  # as a call leaves it that was killed at its first run
    assert measured == ["torch.float32", "torch.bfloat16"]
    run(tmp_path, settings=[replace(auto, dtype="float32")])
    assert len(measured) == 2, "by its name it is the same"


def test_a_row_that_is_not_in_the_file_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(tmp_path, "pissa")
    before = (tmp_path / VALIDATE_FILE).read_bytes()
    train = engine.train_once

    def fails_for_pissa(setting: Any, *rest: Any) -> RunResult:
        if setting.method == "pissa":
            raise MemoryError("no room")
        return train(setting, *rest)

    monkeypatch.setattr(engine, "train_once", fails_for_pissa)
    lora, pissa = run(tmp_path, "lora", "pissa", lrs=(0.01, 0.1, 1.0)).rows
    assert [run.lr for run in lora.runs] == [0.01, 0.1, 1.0] and len(pissa.runs) == 1
    assert "keeps the rows of an earlier call, of other learning rates or seeds" in lora.notes[0]
    assert "keeps the row of an earlier call, which tells more" in pissa.notes[0]
    assert (tmp_path / VALIDATE_FILE).read_bytes() == before


def test_a_row_tells_the_rows_it_was_measured_on_and_not_those_asked_for(tmp_path: Path) -> None:
    few = replace(SETTING, samples=64)
    (row,) = run(tmp_path, "lora", settings=[few]).rows
    assert row.samples == 20, "half of the data, whose other half warms up"
    (seen,) = observations(read_validated([tmp_path]))[0]
    assert seen.quantities.samples == 20


@pytest.mark.parametrize("predictor", ["combined", "adam"])
def test_a_law_that_gives_nothing_is_noted_and_the_sweep_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, predictor: str
) -> None:
    monkeypatch.setattr(predicting, "predict_learning_rate", lambda *_, **__: predicted())
    known = load_calibration()
    broken = replace(
        known,
        combined=replace(known.combined, exponents={"lr_stability": 1.0}),
        adam=replace(known.adam, log_half_width=1e4),
    )
    run(tmp_path, "lora", predicting=Predicting(predictor, broken))
    (row,) = read_json(tmp_path / VALIDATE_FILE)["results"]
    assert row["best_lr"] and len(row["runs"]) == 3
    assert set(row["predictions"]["adam"].values()) == {None} and row["predictions"]["combined"]["lr"]
    assert "the law 'adam'" in row["notes"][-1]
    assert (row["status"] == "failed") == (predictor == "adam")


def test_a_measurement_of_another_version_is_not_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, measured: list[str]
) -> None:
    run(tmp_path, "lora")
    run(tmp_path, "lora")
    assert len(measured) == 1
    monkeypatch.setattr(results, "__version__", "9.9.9")
    run(tmp_path, "lora")
    assert len(measured) == 2
