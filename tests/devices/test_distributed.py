"""One sample over several processes: the same numbers as in one, and one end for all of them."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import rank_programs
import ranks
import torch
from tiny_models import adapted, dense_hessian
from tiny_text import byte_tokenizer, save, sums, tiny_llama, write_rows
from tolerances import BFLOAT16, DENSE64, RANKS32, SAME_LAMBDA

import hessian_lr as hlr
from hessian_lr.cli import main
from hessian_lr.distributed import team

TROUBLES = {
    "killed": "error: rank 1 (process ",
    "terminated": "rank 1: interrupted",
    "stopped": "error: rank 1 (process ",
    "memory": "error: rank 1: out of memory",
    "mistake": "error: rank 1: unexpected IndexError: list index out of range",
}


@pytest.fixture(scope="module")
def ended(common, tmp_path_factory):
    """How the programs of this file ended, and what they left in their folders."""
    out = tmp_path_factory.mktemp("programs")
    (out / "density").mkdir()
    programs = {
        "measure": (3, {}, "measure", [str(out)]),
        "density": (2, {}, "densities", [str(out / "density")]),
    }
    for trouble in TROUBLES:
        (out / trouble).mkdir()
        arguments = ["spectrum", *common, "--rtol", "1e-6", "--json", str(out / trouble / "out.json")]
        patience = {"HESSIAN_LR_TIMEOUT": "8"} if trouble == "stopped" else {}
        programs[trouble] = (2, patience, "command", [trouble, *arguments])
    return out, ranks.start(out, programs)


@pytest.fixture(scope="module")
def found(ended):
    """What each of three ranks found together with others, and this process by itself."""
    out, programs = ended
    ranks.assert_ended_well(programs["measure"])
    together = [json.loads((out / f"{rank}.json").read_text()) for rank in range(3)]
    before = torch.get_num_threads()
    torch.set_num_threads(1)  # as the ranks have
    alone = json.loads(json.dumps(rank_programs.answers()))
    torch.set_num_threads(before)
    return [one | {"1": alone} for one in together]


@pytest.fixture(scope="module")
def truth():
    return dense_hessian(adapted(), rank_programs.sample())


@pytest.fixture(scope="module")
def common(tmp_path_factory):
    """Arguments of a small measurement by command."""
    root = tmp_path_factory.mktemp("world")
    rows = sums(8)
    # Something is to be lost by a step that is too long, or no critical learning rate is found.
    model, tokenizer = tiny_llama(), byte_tokenizer()
    tokens = tokenizer([row["prompt"] + row["response"] for row in rows], padding=True, return_tensors="pt")
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(30):
        model(**tokens, labels=tokens["input_ids"]).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    save(model, root / "model")
    write_rows(root / "rows.jsonl", rows)
    where = ["--model", root / "model", "--data", root / "rows.jsonl", "--device", "cpu"]
    sizes = ["--samples", 5, "--batch-size", 3, "--steps", 3, "--dtype", "float32"]
    return list(map(str, [*where, *sizes]))


def test_ranks_agree_whether_a_densitys_probes_go_in_lock_step(ended):
    """Though each has its own memory: what one of them must rebuild, or has no room for, decides for all."""
    out, programs = ended
    ranks.assert_ended_well(programs["density"])
    first, second = (json.loads((out / "density" / f"{rank}.json").read_text()) for rank in range(2))
    assert first == second
    expected = hlr.density(adapted(), rank_programs.sample(), probes=2, steps=3)
    together = {"first keeps none", "second keeps none", "room for both"}
    assert together < first.keys()
    for name, (widths, trace, nodes) in first.items():
        assert widths == ([2] * 3 if name in together else [1] * 6), name
        assert trace == pytest.approx(expected.trace, rel=SAME_LAMBDA), name
        assert nodes == [pytest.approx(one, rel=SAME_LAMBDA) for one in expected.nodes], name


def test_outside_a_group_this_process_is_alone():
    assert (team().rank, team().size, team().share([1, 2, 3])) == (0, 1, [0, 1, 2])


@pytest.mark.parametrize(
    "size, graphs", [("1", "kept"), ("1", "rebuilt"), ("2", "kept"), ("3", "kept"), ("3", "rebuilt")]
)
def test_products_and_sharpness_are_those_of_the_dense_hessian(size, graphs, found, truth):
    vector = torch.ones(len(truth), dtype=torch.float64)
    expected = torch.linalg.eigvalsh(truth)[-1]
    one = found[0][size][graphs]
    for name, v in (("product", vector), ("block", vector.cumsum(0))):
        product = torch.tensor(one[name], dtype=torch.float64)
        assert (product - truth @ v).norm() < DENSE64 * (truth @ v).norm()
    assert one["lambda_max"] == pytest.approx(float(expected), rel=SAME_LAMBDA)


@pytest.mark.parametrize("size", ["2", "3"])
def test_several_ranks_find_and_report_what_one_does(size, found):
    alone = found[0]["1"]
    for graphs in found[0][size].keys() & {"kept", "rebuilt"}:
        one, together = dict(alone[graphs]), dict(found[0][size][graphs])
        del one["mine"], together["mine"]
        for name, value in one.items():
            assert together[name] == pytest.approx(value, rel=SAME_LAMBDA, abs=1e-12), name


def test_what_else_is_measured_is_what_one_rank_finds(found):
    for name in ("gauss-newton", "modules", "closed"):
        assert found[0]["3"][name] == pytest.approx(found[0]["1"][name], rel=SAME_LAMBDA), name


@pytest.mark.parametrize(
    "size, dtype, rounding",
    [("3", "float32", RANKS32), ("2", "bfloat16", BFLOAT16), ("3", "bfloat16", BFLOAT16)],
)
def test_several_ranks_predict_what_one_does_at_the_same_cost(size, dtype, rounding, found):
    alone, together = found[0]["1"][dtype], found[0][size][dtype]
    for name in ("status", "matvecs", "work"):
        assert together[name] == alone[name], name
    for name in ("lr", "lambda_max", "lambda_preconditioned", "lr_critical_start"):
        assert together[name] == pytest.approx(alone[name], rel=rounding), name


@pytest.mark.parametrize("size", ["2", "3"])
def test_all_ranks_have_the_same_bits_though_their_shares_differ(size, found):
    members = [found[rank][size] for rank in range(int(size))]
    shares = [one["kept"].pop("mine") for one in members]
    assert sum(shares) == found[0]["1"]["kept"]["mine"]
    assert all(one == members[0] for one in members)


def test_the_split_is_balanced_and_leaves_nothing_out(found):
    assert [one["shares"] for one in found] == [[0], [1, 4], [2, 3]]


def test_the_same_settings_give_the_same_bits_in_another_process(found):
    alone = found[2]["alone"]
    assert {name: found[0]["1"][name] for name in alone} == alone


def test_graphs_kept_or_rebuilt_give_the_same_bits(found):
    kept, rebuilt = (dict(found[0]["1"][graphs]) for graphs in ("kept", "rebuilt"))
    for name in ("mine", "work", "cost"):
        assert kept.pop(name) != rebuilt.pop(name), name
    assert kept == rebuilt


def test_what_ranks_must_not_do_is_refused_on_all_of_them(found):
    for one in found:
        assert one["no group"][0] == "RequestError" and "init_process_group" in one["no group"][1]
        assert one["other sample"][0] == "RequestError"
        assert one["other sample"][1].startswith("rank 2 has another sample than rank 0")
        assert one["other vector"][1].startswith("rank 1 has another vector than rank 0")


@pytest.mark.parametrize(
    "what, named",
    [
        ("warm-up", "warm-up"),
        ("adapter", "adapter"),
        ("adapter by modules", "adapter"),
        ("base", "model"),
        ("scaling", "model"),
        ("number", "model"),
        ("operator", "operator or dtype"),
        ("dtype", "operator or dtype"),
    ],
)
def test_ranks_that_do_not_measure_the_same_are_told_so(what, named, found):
    for one in found:
        kind, message = one[f"other {what}"]
        assert kind == "RequestError"
        assert message.startswith(f"rank 2 has another {named} than rank 0")


def test_a_failure_on_one_rank_is_told_on_all_and_the_work_goes_on(found):
    for one in found:
        status, value, note = one["failure"]
        assert (status, value) == ("failed", None)
        assert note.startswith("rank 1: the loss is not finite")
        assert one["after it"] == found[0]["3"]["kept"]["lambda_max"]


def test_all_ranks_go_on_from_the_state_that_the_first_has_or_all_begin(found):
    for rank, one in enumerate(found):
        kept = one["interrupted"]
        *value, products, notes = kept["whole"]
        assert products > 4 and notes == []
        # Only the first writes; the others, which have no folder, get it from there.
        assert ("state.json" in kept["files"]) == (rank == 0) and bool(kept["files"]) == (rank == 0)
        assert kept["resumed"][:3] == [*value, products - 4]
        assert kept["damaged"][:3] == [*value, products]
        assert [*value, products, notes] == found[0]["interrupted"]["whole"]
        if rank == 0:
            assert kept["resumed"][3][0].startswith("went on after 4 products")
            assert "is damaged): measured from the start" in kept["damaged"][3][0]


def test_torchrun_predicts_what_one_process_does_and_says_it_once(common, tmp_path):
    # By λ alone: in float32 the warm-up's Adam makes whole steps of rounding. Float64 is compared above.
    one, two = tmp_path / "one.json", tmp_path / "two.json"
    common = [*common, "--predictor", "eigenvalue"]
    assert main(["predict", *common, "--json", str(one)]) == 0
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [*torchrun, "-m", "hessian_lr", "predict", *common, "--json", str(two)],
        cwd=ranks.HERE.parents[2],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("learning rate") == 1
    alone, together = (json.loads(path.read_text())["results"][0] for path in (one, two))
    for name in ("lr", "lr_low", "lr_high", "lambda_max", "lambda_upper"):
        assert together[name] == pytest.approx(alone[name], rel=RANKS32), name
    assert together["matvecs"] == alone["matvecs"]
    assert together["gradient_equivalents"] == alone["gradient_equivalents"]


@pytest.mark.parametrize("trouble", TROUBLES)
def test_a_rank_that_is_lost_ends_all_with_one_message_and_no_result(trouble, ended):
    out, programs = ended
    assert all(status != 0 for status, _, _ in programs[trouble])
    text = "".join(said for _, _, said in programs[trouble])
    lines = [line for line in text.splitlines() if line.startswith("hessian-lr:")]
    assert len(lines) == 1 and lines[0].startswith(f"hessian-lr: {TROUBLES[trouble]}"), text
    assert not any(printed for _, printed, _ in programs[trouble])
    assert list((out / trouble).iterdir()) == []


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
