"""One sample over several processes: the same numbers as in one, and one end for all of them."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import ranks
import torch
from tiny_models import adapted, dense_hessian
from tiny_text import byte_tokenizer, tiny_llama
from tolerances import ADAMS_EPSILON, DENSE64, SAME_LAMBDA

from hessian_lr.cli import main
from hessian_lr.distributed import team

SIZES = ("1", "2", "3")


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """What each of three ranks found, by itself and together with others."""
    out = tmp_path_factory.mktemp("answers")
    for status, _, said in ranks.start(3, "measure", out):
        assert status == 0, said
    return [json.loads((out / f"{rank}.json").read_text()) for rank in range(3)]


@pytest.fixture(scope="module")
def common(tmp_path_factory):
    """Arguments of a small measurement by command."""
    root = tmp_path_factory.mktemp("world")
    tiny_llama().save_pretrained(root / "model")
    byte_tokenizer().save_pretrained(root / "model")
    rows = [{"prompt": f"{a}+{b}=", "response": str(a + b)} for a in range(8) for b in range(8)]
    (root / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    where = ["--model", root / "model", "--data", root / "rows.jsonl", "--device", "cpu"]
    sizes = ["--samples", 5, "--batch-size", 3, "--steps", 3, "--dtype", "float32"]
    return list(map(str, [*where, *sizes]))


def test_outside_a_group_this_process_is_alone():
    assert (team().rank, team().size, team().share([1, 2, 3])) == (0, 1, [0, 1, 2])


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("graphs", ["kept", "rebuilt"])
def test_products_and_sharpness_are_those_of_the_dense_hessian(size, graphs, found):
    truth = dense_hessian(adapted(), ranks.sample())
    vector = torch.ones(len(truth), dtype=torch.float64)
    expected = torch.linalg.eigvalsh(truth)[-1]
    for rank in range(int(size)):
        one = found[rank][size][graphs]
        for name, v in (("product", vector), ("block", vector.cumsum(0))):
            assert (torch.tensor(one[name]).double() - truth @ v).norm() < DENSE64 * (truth @ v).norm()
        assert one["lambda_max"] == pytest.approx(float(expected), rel=SAME_LAMBDA)


@pytest.mark.parametrize("size", ["2", "3"])
def test_several_ranks_find_and_report_what_one_does(size, found):
    alone = found[0]["1"]
    for graphs in ("kept", "rebuilt"):
        one, together = dict(alone[graphs]), dict(found[0][size][graphs])
        del one["mine"], together["mine"]
        for name, value in one.items():
            assert together[name] == pytest.approx(value, rel=SAME_LAMBDA, abs=1e-12), name


def test_what_else_is_measured_and_the_learning_rate_are_those_of_one_rank(found):
    alone, together = found[0]["1"], found[0]["3"]
    for name in ("gauss-newton", "modules", "closed"):
        assert together[name] == pytest.approx(alone[name], rel=SAME_LAMBDA), name
    assert together["lr"] == pytest.approx(alone["lr"], rel=ADAMS_EPSILON)
    assert together["lr_cost"] == alone["lr_cost"]


@pytest.mark.parametrize("size", ["2", "3"])
def test_all_ranks_have_the_same_bits_though_their_shares_differ(size, found):
    members = [found[rank][size] for rank in range(int(size))]
    shares = [one["kept"].pop("mine") for one in members]
    assert sum(shares) == found[0]["1"]["kept"]["mine"]
    assert all(one == members[0] for one in members)


def test_the_split_is_balanced_and_leaves_nothing_out(found):
    assert [one["shares"] for one in found] == [[0, 4], [1], [2, 3]]


def test_the_same_settings_give_the_same_bits_in_fresh_processes(found):
    # Three processes that did the same alone, before they worked together.
    assert found[0]["1"] == found[1]["1"] == found[2]["1"]
    kept, rebuilt = (found[0]["1"][graphs] for graphs in ("kept", "rebuilt"))
    assert kept["lambda_max"] == rebuilt["lambda_max"]
    assert kept["product"] == rebuilt["product"]


def test_what_ranks_must_not_do_is_refused_on_all_of_them(found):
    for one in found:
        assert one["no group"][0] == "RequestError" and "init_process_group" in one["no group"][1]
        assert one["other sample"][0] == "RequestError"
        assert one["other sample"][1].startswith("rank 2 has another sample than rank 0")
        assert one["other vector"][1].startswith("rank 1 has another vector than rank 0")


def test_a_failure_on_one_rank_is_told_on_all_and_the_work_goes_on(found):
    for one in found:
        status, value, note = one["failure"]
        assert (status, value) == ("failed", None)
        assert note.startswith("rank 1: the loss is not finite")
        assert one["after it"] == found[0]["3"]["kept"]["lambda_max"]


def test_torchrun_predicts_what_one_process_does_and_says_it_once(common, tmp_path):
    one, two = tmp_path / "one.json", tmp_path / "two.json"
    assert main(["predict", *common, "--json", str(one)]) == 0
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [*torchrun, "-m", "hessian_lr", "predict", *common, "--json", str(two)],
        cwd=ranks.HERE.parents[1],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("learning rate") == 1
    alone, together = (json.loads(path.read_text())["results"][0] for path in (one, two))
    for name in ("lr", "lr_low", "lr_high", "lambda_max", "lambda_preconditioned"):
        assert together[name] == pytest.approx(alone[name], rel=ADAMS_EPSILON), name
    assert together["matvecs"] == alone["matvecs"]
    assert together["gradient_equivalents"] == alone["gradient_equivalents"]


@pytest.mark.parametrize(
    "trouble, said",
    [
        ("killed", "hessian-lr: error: rank 1 (process "),
        ("stopped", "hessian-lr: error: rank 1 (process "),
        ("memory", "hessian-lr: error: rank 1: out of memory"),
    ],
)
def test_a_rank_that_is_lost_ends_all_with_one_message_and_no_result(trouble, said, common, tmp_path):
    out = tmp_path / "out.json"
    ended = ranks.start(
        2, trouble, "spectrum", *common, "--rtol", "1e-6", "--json", out, HESSIAN_LR_TIMEOUT="5"
    )
    assert all(status != 0 for status, _, _ in ended)
    lines = [line for _, _, text in ended for line in text.splitlines() if line.startswith("hessian-lr:")]
    assert len(lines) == 1 and lines[0].startswith(said), ended
    assert not any(text for _, text, _ in ended)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("command", ["validate", "sweep", "report", "align", "calibrate"])
def test_other_commands_are_refused_in_one_line_before_any_work(command, monkeypatch, capsys):
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank, lines in (("0", 1), ("1", 0)):
        monkeypatch.setenv("RANK", rank)
        assert main([command, *(["runs"] if command != "validate" else [])]) == 2
        out, err = capsys.readouterr()
        assert out == "" and err.count("\n") == lines
        if lines:
            assert f"`{command}` works in one process, and torchrun started 2" in err
