"""A request's settings: each combination once, without what is excluded; and their shares."""

import itertools
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig

from hessian_lr.errors import RequestError
from hessian_lr.setting import Setting
from hessian_lr.sweep.grid import expand, share
from hessian_lr.sweep.request import START_LR, read
from hessian_lr.sweep.wanted import Wanted


@pytest.fixture
def grid(tmp_path):
    """Expands the file with this text."""

    def expanded(text):
        path = tmp_path / "sweep.yaml"
        path.write_text(text)
        return expand(read(path))

    return expanded


def runs(wanted):
    """Every run as (setting, seed, learning rate); a search's learning rate is None."""
    return Counter(
        (one.setting.method, one.setting.rank, one.setting.alpha, one.setting.steps, seed, lr)
        for one in wanted
        for seed in one.seeds
        for lr in one.lrs or (None,)
    )


def test_what_a_file_does_not_name_has_its_default(grid):
    (one,) = grid("rank: 8").wanted
    assert one == Wanted(Setting(rank=8), (0,), None, START_LR)


def test_every_combination_is_there_once(grid):
    found = grid(
        "method: [lora, pissa]\nrank: [8, 16]\nalpha: [rank, fixed, 5]\nsteps: [10, 20]\nseed: [3, 1]\n"
        "lr: [1e-4, 1e-3]"
    )
    product = itertools.product(
        ("lora", "pissa"), (8, 16), ("rank", 16.0, 5.0), (10, 20), (1, 3), (1e-4, 1e-3)
    )
    expected = {
        (method, rank, float(rank) if alpha == "rank" else alpha, steps, seed, lr)
        for method, rank, alpha, steps, seed, lr in product
    }
    assert runs(found.wanted) == Counter(dict.fromkeys(expected, 1))
    assert all(one.seeds == (1, 3) for one in found.wanted)
    # At rank 16 the rule gives the fixed alpha, for each method and number of steps.
    (note,) = found.notes
    assert note.startswith("4 settings come up more than once; each is run once (lora, rank 16, alpha 16")


def test_adapters_of_the_users_own_are_an_axis(grid, tmp_path):
    for name, rank in (("a", 4), ("b", 6)):
        LoraConfig(r=rank, lora_alpha=8, target_modules=["q_proj"]).save_pretrained(tmp_path / name)
    paths = f"peft_config: [{tmp_path}/a, {tmp_path}/b]\nlr: 1e-3\n"
    found = grid(paths)
    assert [(one.setting.rank, one.setting.alpha) for one in found.wanted] == [(4, 8.0), (6, 8.0)]
    (one,) = grid(paths + f"exclude: {{peft_config: {tmp_path}/a}}").wanted
    assert one.setting.rank == 6
    with pytest.raises(RequestError, match=r"sweep\.yaml, line 1: .*rank"):
        grid(paths + "rank: 5")


def test_what_decides_nothing_in_a_run_makes_no_second_one(grid):
    found = grid("rank: 8\nsamples: [2, 4]\ndevice: [cpu, auto]")
    assert len(found.wanted) == 1 and "1 setting comes up more than once" in found.notes[0]


@pytest.mark.parametrize(
    ("more", "doubled"), [("seed: [1, 2]", 0), ("lr: 0.1", 0), ("seed: [0, 1]", 1), ("lr: [0.01, 0.1]", 1)]
)
def test_only_what_comes_up_twice_is_said_to(grid, more, doubled):
    found = grid(f"lr: 0.01\nseed: 0\ninclude: {{{more}}}")
    assert len(found.notes) == doubled


def test_exclusions_take_out_what_fits_all_their_keys(grid):
    found = grid(
        "method: [lora, pissa]\nrank: [8, 16]\nseed: [0, 1]\nlr: 1e-3\n"
        "exclude:\n  - {method: pissa, rank: 16}\n  - {method: lora, seed: 1}"
    )
    assert {(one.setting.method, one.setting.rank): one.seeds for one in found.wanted} == {
        ("lora", 8): (0,),
        ("lora", 16): (0,),
        ("pissa", 8): (0, 1),
    }


def test_an_exclusion_knows_the_rules_of_alpha(grid):
    found = grid("rank: [4, 8]\nalpha: [rank, 16]\nlr: 1e-3\nexclude: {alpha: rank, rank: 8}")
    assert {(one.setting.rank, one.setting.alpha) for one in found.wanted} == {(4, 4), (4, 16), (8, 16)}
    found = grid("rank: [4, 8]\nalpha: [rank, fixed]\nlr: 1e-3\nexclude: {alpha: fixed}")
    assert {(one.setting.rank, one.setting.alpha) for one in found.wanted} == {(4, 4), (8, 8)}


def test_an_inclusion_is_the_file_with_its_axes_in_the_place_of_others(grid):
    found = grid(
        "method: [lora, pissa]\nrank: [8, 16]\nlr: [1e-4, 1e-3]\n"
        "include:\n  - {method: dora, rank: 4}\n  - {method: lora, lr: [1e-2]}\n  - {method: pissa, seed: 7}"
    )
    by_setting = {(o.setting.method, o.setting.rank): (o.lrs, o.seeds) for o in found.wanted}
    assert by_setting == {
        ("lora", 8): ((1e-4, 1e-3, 1e-2), (0,)),
        ("lora", 16): ((1e-4, 1e-3, 1e-2), (0,)),
        ("pissa", 8): ((1e-4, 1e-3), (0, 7)),
        ("pissa", 16): ((1e-4, 1e-3), (0, 7)),
        ("dora", 4): ((1e-4, 1e-3), (0,)),
    }


def test_an_inclusion_brings_back_what_was_excluded_with_its_own_plan(grid):
    found = grid(
        "method: [lora, dora]\nlr: [1e-3]\nexclude: {method: dora}\ninclude: {method: dora, lr: auto}"
    )
    assert {one.setting.method: one.lrs for one in found.wanted} == {"lora": (1e-3,), "dora": None}


@pytest.mark.parametrize("lr", ["{auto: 0.1}", "0.1"])
def test_plain_gradient_descent_is_searched_from_where_the_file_says(grid, lr):
    (one,) = grid(f"optimizer: sgd\nlr: {lr}").wanted
    assert (one.start_lr if one.lrs is None else one.lrs[0]) == 0.1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("method: lora\nexclude:\n  - {method: lora}\n  - {rank: 3}", "line 4, exclude: fits none"),
        ("method: lora\nexclude: {method: lora}", "exclude leaves no setting"),
        ("lr: [1e-3]\ninclude: {lr: auto}", "line 2, include: gives a setting that is there already (lora"),
        ("lr: [1e-3]\ninclude: {lr: [1e-2], seed: 1}", "another plan of learning rates"),
        ("optimizer: [adamw, sgd]", "for optimizer sgd say where it starts, such as {auto: 0.1}"),
        (f"rank: {list(range(1, 400))}\nseed: {list(range(400))}", "159,600 runs are more than the 100,000"),
    ],
)
def test_what_cannot_be_meant_is_refused(grid, text, message):
    with pytest.raises(RequestError) as caught:
        grid(text)
    assert message in str(caught.value)


def test_labels_tell_settings_apart_and_leave_out_what_follows_from_the_rest(grid):
    found = grid(
        "method: [lora, dora]\nrank: [4, 8]\ntarget_modules: [all-linear, 'q_proj,v_proj']\nlr: 1e-3"
    )
    labels = [found.label(one.setting) for one in found.wanted]
    assert len(set(labels)) == 8 and labels[1] == "lora, rank 4, target modules q_proj v_proj"
    assert found.common().startswith("smollm2-135m, math, optimizer adamw, batch size 4, steps 60")
    assert "None" not in found.common()
    assert grid("lr: 1e-3").label(Setting()) == "lora"


WANTED = [
    Wanted(Setting(rank=rank, method=method), (0, 1), lrs, 1e-3)
    for rank in range(1, 6)
    for method, lrs in (("lora", (1e-4, 1e-3, 1e-2)), ("pissa", None))
]


@settings(max_examples=40, deadline=None)
@given(count=st.integers(1, 30))
def test_shares_are_all_runs_once_and_as_many_as_each_other(count):
    shares = [share(WANTED, index, count) for index in range(1, count + 1)]
    assert sum((runs(one) for one in shares), Counter()) == runs(WANTED)
    sizes = [sum(len(one.lrs or (None,)) for one in part) for part in shares]
    assert max(sizes) - min(sizes) <= 1
    for part in shares:
        assert all(one.seeds == (0, 1) for one in part), "seeds of one learning rate stay together"


def test_a_share_depends_on_the_settings_only():
    forwards = share(WANTED, 2, 4)
    backwards = share([*reversed(WANTED)], 2, 4)
    assert runs(forwards) == runs(backwards)
    moved = [
        Wanted(Setting(**{**vars(o.setting), "device": "cpu", "seed": 9}), o.seeds, o.lrs, 1e-3)
        for o in WANTED
    ]
    assert runs(share(moved, 2, 4)) == runs(forwards)
