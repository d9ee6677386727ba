"""Whatever stands in a file that a user gives: an object, or the project's own error; soon, in little memory.

A longer search: ``pytest tests/safety/test_fuzz.py --hypothesis-profile=fuzz`` (see ``conftest.py``).
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import resource
import time

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from nasty import NUMBERS, SCALARS, TEXT, as_json, changed, json_files, spoiled
from report_files import FIRST_LIGHT, predict_document, spectrum_document
from tiny_models import base_model
from tiny_text import CHAT, byte_tokenizer

from hessian_lr import cli, data, methods, validated
from hessian_lr.commands import options
from hessian_lr.errors import HessianLRError
from hessian_lr.figures.rows import eigenvalue_points
from hessian_lr.methods import METHODS
from hessian_lr.models import alias
from hessian_lr.predict import PREDICTORS, load_calibration
from hessian_lr.predict.law import Quantities
from hessian_lr.predict.rate import rate
from hessian_lr.predict.transfer import transfer
from hessian_lr.records import read_json
from hessian_lr.report import write_report
from hessian_lr.setting import Setting
from hessian_lr.sweep.grid import expand
from hessian_lr.sweep.request import read as read_request
from hessian_lr.sweep.run import RunResult

MEGABYTES = 400  # that no file of a few kilobytes may cost
SECONDS = 20  # of the processor, that no such file may take
VALIDATED = read_json(FIRST_LIGHT / "validate.json")
RUN = read_json(next(iter(sorted((FIRST_LIGHT / "runs").glob("*.json")))))
CALIBRATION = load_calibration().to_dict()
ADAPTER = {
    **{"peft_type": "LORA", "r": 2, "lora_alpha": 6, "target_modules": ["q_proj"], "task_type": "CAUSAL_LM"},
    **{"init_lora_weights": True, "rank_pattern": {"q_proj": 3}, "auto_mapping": None, "lora_dropout": 0.1},
    **{"layers_to_transform": [0], "modules_to_save": None, "use_dora": False, "bias": "none"},
}
QUANTITIES = Quantities(4, 60, lr_stability=1e-2, lr_critical_start=1e-2, lr_eigenvalue=1e-2)
ROWS = (
    [{"prompt": "2+3", "response": "5"}, {"prompt": "1+1", "response": "2"}],
    [
        {"instruction": "add", "input": "1 2", "output": "3"},
        {"instruction": "add", "input": "", "output": "3"},
    ],
    [
        {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": text}]}
        for text in ("b", "c")
    ],
    [{"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": text}]} for text in "bc"],
)
SWEEP = """\
method: [lora, &one pissa]
rank: [4, 16]
alpha: rank
steps: 8
seed: [0, 1]
target_modules: [[q_proj, v_proj], all-linear]
lr: {from: 1e-4, to: 1e-2, per_decade: 2}
exclude: [{method: *one, rank: 4}]
include: [{method: dora, rank: 4, lr: auto}]
"""
YAML_JUNK = st.sampled_from(
    [
        *("!!int ''", "!!float ''", "!!bool x", "!!timestamp x", "!!python/object/apply:os.system [x]"),
        *(
            "!!binary a",
            "0x",
            "1:99:99",
            "2001-99-99",
            "!!set {a}",
            "!!omap [a]",
            "&a [*a]",
            "*none",
            "<<: *one",
        ),
        *(
            ".inf",
            ".nan",
            "1e400",
            "9" * 5_000,
            "'\\0'",
            '"\\ud800"',
            "- " * 3_000,
            "[" * 3_000,
            "? ",
            "%YAML 9",
        ),
        *(
            "{from: 5e-324, to: 1.7e308}",
            "{auto: 1e-400}",
            "lora\n---\nlora",
            "\t",
            "!<x> y",
            "\x00",
            "\ud800",
        ),
    ]
)
FUZZED = settings(
    deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large]
)  # `assert_answered` counts the processor's time, which a busy machine does not lengthen
# Those that draw figures take a fifth of a second each.
DRAWN = settings(FUZZED, max_examples=settings.default.max_examples // 5)
TOKENIZER = byte_tokenizer(chat_template=CHAT)


@pytest.fixture(scope="module", autouse=True)
def little_memory():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    yield
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024 < MEGABYTES


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("fuzz")


@pytest.fixture(scope="module")
def model():
    return base_model("llama").requires_grad_(False)


def assert_answered(path, content, work):
    """What ``work`` makes of a file, or None where it refuses it with an error that can be shown."""
    path.write_bytes(content)
    before = time.process_time()
    try:
        return work(path)
    except HessianLRError as error:
        assert str(error).strip()
        assert "\n" not in str(error)
        str(error).encode("utf-8", "replace")
        return None
    finally:
        assert time.process_time() - before < SECONDS


@FUZZED
@given(content=json_files(Setting(fields=("a", "b"), target_modules=("q_proj",)).to_dict()))
def test_settings(folder, content):
    found = assert_answered(folder / "setting.json", content, Setting.read)
    if found is not None:
        assert Setting.from_dict(json.loads(json.dumps(found.to_dict(), allow_nan=False))) == found


@FUZZED
@given(content=json_files(RUN))
def test_runs(folder, content):
    found = assert_answered(folder / "run.json", content, RunResult.read)
    if found is not None:
        found.write(folder / "again.json")
        assert RunResult.read(folder / "again.json") == found


@FUZZED
@given(content=json_files(CALIBRATION))
def test_calibrations_give_a_learning_rate_or_are_refused(folder, content):
    constants = assert_answered(folder / "calibration.json", content, load_calibration)
    if constants is not None:
        for predictor in PREDICTORS:
            with contextlib.suppress(HessianLRError):
                assert all(0 < number < math.inf for number in rate(predictor, constants, QUANTITIES).ends)
        own = Setting()
        with contextlib.suppress(HessianLRError):
            assert transfer(constants.transfer, [(own, 1e-3)], own).lr == pytest.approx(1e-3)


@FUZZED
@given(content=json_files(ADAPTER))
def test_adapters(folder, model, content):
    def adapter(path):
        setting = Setting(peft_config=str(path))
        methods.check(model, setting)
        return setting

    assert_answered(folder / "adapter_config.json", content, adapter)


@FUZZED
@given(text=st.data())
def test_sweeps(folder, text):
    lines = SWEEP.splitlines()
    for _ in range(text.draw(st.integers(1, 3))):
        key = text.draw(st.integers(0, len(lines) - 1))
        junk = text.draw(YAML_JUNK | SCALARS.map(str) | TEXT)
        name = lines[key].split(":")[0]
        lines[key] = text.draw(
            st.sampled_from([f"{name}: {junk}", f"{name}: [{junk}, 1]", junk, f"{junk}: 1"])
        )
    content = "\n".join(lines).encode("utf-8", "surrogatepass")
    content = text.draw(spoiled(content)) if text.draw(st.booleans()) else content
    grid = assert_answered(folder / "sweep.yaml", content, lambda path: expand(read_request(path)))
    if grid is not None:
        assert all(grid.label(one.setting) for one in grid.wanted)


@pytest.mark.parametrize("suffix", ["json", "jsonl"])
@FUZZED
@given(content=st.data())
def test_rows_of_text(folder, suffix, content):
    rows = content.draw(changed(*ROWS))
    lines = suffix == "jsonl" and isinstance(rows, list)
    text = content.draw(spoiled(b"\n".join(map(as_json, rows)) if lines else as_json(rows)))
    found = assert_answered(folder / f"rows.{suffix}", text, lambda path: data.load(str(path), TOKENIZER))
    if found is not None:
        assert found.train and found.heldout
        assert data.make_batches(found.train, 2, 2)


CSV = b'prompt,response\n"1, ""2""\n+",3\n2+2=,4\n3+3=,6\n'


@FUZZED
@given(content=spoiled(CSV))
def test_rows_of_csv(folder, content):
    assert_answered(folder / "rows.csv", content, lambda path: data.load(str(path), TOKENIZER))


def _parquet() -> bytes:
    sink = pyarrow.BufferOutputStream()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS[0] + ROWS[1]), sink)
    return sink.getvalue().to_pybytes()


@FUZZED
@given(content=spoiled(_parquet()))
def test_rows_of_parquet(folder, content):
    assert_answered(
        folder / "rows.parquet",
        content,
        lambda path: data.load(str(path), TOKENIZER, fields=("prompt", "response")),
    )


@FUZZED
@given(
    rows=st.lists(st.dictionaries(st.sampled_from(["prompt", "response"]), SCALARS), min_size=2, max_size=4)
)
def test_rows_of_any_type_in_parquet(folder, rows):
    try:
        table = pyarrow.Table.from_pylist(rows)
    except (pyarrow.ArrowException, OverflowError, UnicodeEncodeError):
        return
    sink = pyarrow.BufferOutputStream()
    pyarrow.parquet.write_table(table, sink)
    assert_answered(
        folder / "types.parquet", sink.getvalue().to_pybytes(), lambda path: data.load(str(path), TOKENIZER)
    )


@FUZZED
@given(content=json_files(VALIDATED))
def test_results_of_validate(folder, content):
    def work(path):
        rows = validated.read_validated([path])
        return (
            [validated.observation(one) for one in rows],
            eigenvalue_points(rows),
            (validated.best_learning_rates(rows)),
        )

    assert_answered(folder / "validate.json", content, work)


@DRAWN
@given(content=json_files(predict_document(), spectrum_document()))
def test_reports_of_measurements(folder, content):
    assert_answered(folder / "predict.json", content, lambda path: write_report([path], folder / "page.html"))


@DRAWN
@given(content=json_files(VALIDATED | {"results": VALIDATED["results"][:1]}))
def test_reports_of_sweeps(folder, content):
    assert_answered(
        folder / "validate.json", content, lambda path: write_report([path], folder / "page.html")
    )


@FUZZED
@given(content=json_files({"schema": 1, "files": {"config.json": {"bytes": 2, "sha256": "0"}}}))
def test_manifests_of_the_cache(folder, content):
    (folder / "config.json").write_text("{}")
    assert_answered(folder / alias.MANIFEST, content, lambda path: alias.verify(path.parent))


OPTIONS = {field.name: TEXT | st.sampled_from(["1", "a,b"]) for field in dataclasses.fields(Setting)}
OPTIONS |= dict.fromkeys(("rank", "batch_size", "steps", "seed", "max_length"), st.integers())
OPTIONS |= {"alpha": st.floats() | st.integers(), "method": st.lists(TEXT | st.sampled_from(sorted(METHODS)))}
OPTIONS |= {"data": TEXT | st.just("math"), "peft_config": st.none() | TEXT}


@FUZZED
@given(given_options=st.fixed_dictionaries({}, optional=OPTIONS))
def test_options(given_options):
    try:
        made = options.settings(**given_options)
    except HessianLRError as error:
        assert str(error)
    else:
        assert all(isinstance(one, Setting) for one in made)


@FUZZED
@given(text=TEXT | NUMBERS.map(str) | st.lists(NUMBERS.map(str)).map(",".join))
def test_lists_of_numbers(text):
    for kind in (int, float):
        try:
            assert options.numbers(text, kind, "--lrs")
        except HessianLRError as error:
            assert str(error)


@pytest.mark.parametrize("name", ["predict.json", "sweep.yaml", "rows.jsonl"])
def test_what_is_refused_ends_with_status_2_and_one_line(folder, capsys, name):
    file = folder / name
    file.write_bytes(b"[" * 100_000)
    commands = {
        "predict.json": ["report", str(file), "--out", str(folder / "page.html")],
        "sweep.yaml": ["sweep", str(file), "--dry-run"],
        "rows.jsonl": ["predict", "--data", str(file)],
    }
    assert cli.main(commands[name]) == 2
    assert capsys.readouterr().err.count("\n") == 1
