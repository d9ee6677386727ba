"""A sweep's file: what it may say, and how a mistake in it is told."""

import itertools
import math

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from hessian_lr.errors import RequestError
from hessian_lr.sweep import plan
from hessian_lr.sweep.request import START_LR, read


@pytest.fixture
def asked(tmp_path):
    """Reads a file with this text."""

    def read_text(text):
        path = tmp_path / "sweep.yaml"
        path.write_text(text, encoding="utf-8")
        return read(path)

    return read_text


def test_a_value_may_stand_alone_or_in_a_list(asked):
    base = asked("rank: 8\nmethod: [lora, pissa]\nsteps:\n  - 20\n  - 40\nmodel: some/folder").base
    assert base.axes == {
        "rank": (8,),
        "method": ("lora", "pissa"),
        "steps": (20, 40),
        "model": ("some/folder",),
    }


def test_names_are_one_value_with_commas_or_in_an_inner_list(asked):
    base = asked(
        "target_modules: [all-linear, 'q_proj, v_proj', [k_proj, o_proj], up_proj]\nfields: q,a"
    ).base
    assert base.axes["target_modules"] == (
        "all-linear",
        ("q_proj", "v_proj"),
        ("k_proj", "o_proj"),
        ("up_proj",),
    )
    assert base.axes["fields"] == (("q", "a"),)


def test_alpha_is_a_number_or_a_rule(asked):
    assert asked("alpha: [rank, 32, fixed, 1.5]").base.axes["alpha"] == ("rank", 32.0, "fixed", 1.5)


# YAML 1.1, which PyYAML reads, takes the first three for text.
@pytest.mark.parametrize("text", ["1e-5", "1E-5", "1e-05", "1.0e-5", "0.00001", ".1e-4", "1.e-5"])
def test_each_way_to_write_a_number_is_one(asked, text):
    assert asked(f"lr: {text}").base.lrs == (1e-5,)


@pytest.mark.parametrize("text", ["16", "+16", "0o20", "0x10"])
def test_each_way_to_write_a_whole_number_is_one(asked, text):
    assert asked(f"rank: {text}").base.axes["rank"] == (16,)


@pytest.mark.parametrize("text", ["010", "1:30", "1_0", "0b10", "0o9"])
def test_what_readers_take_for_other_numbers_is_refused(asked, text):
    with pytest.raises(RequestError, match=f"line 1, rank: expected a whole number, not {text}"):
        asked(f"rank: {text}")


@pytest.mark.parametrize("text", ["1:30.5", "1_0.5", "010"])
def test_what_readers_take_for_other_rates_is_refused(asked, text):
    with pytest.raises(RequestError, match=f"line 1, lr: expected a positive number, not {text}"):
        asked(f"lr: {text}")


def test_a_list_of_learning_rates_is_sorted_and_each_is_there_once(asked):
    request = asked("lr: [1e-3, 1e-4, 0.001]")
    assert request.base.lrs == (1e-4, 1e-3)
    assert request.notes == ("line 1, lr: a learning rate stands there twice",)


def test_auto_is_a_search_from_a_start(asked):
    for text, start in (("lr: auto", START_LR), ("lr: {auto: 2e-3}", 2e-3)):
        base = asked(text).base
        assert (base.lrs, base.start_lr) == (None, start)


def test_a_range_has_the_learning_rates_of_a_search_to_the_last_digit(asked):
    lrs = asked("lr: {from: 1e-5, to: 1e-2, per_decade: 4}").base.lrs
    assert lrs == tuple(plan.learning_rate(point) for point in range(-20, -7))
    assert asked("lr: {from: 1e-5, to: 1e-2}").base.lrs == lrs


@settings(max_examples=50, deadline=None)
@given(low=st.floats(1e-7, 0.1), decades=st.floats(0, 3), per_decade=st.integers(1, 12))
def test_a_range_is_geometric_and_ends_within_its_last_step(low, decades, per_decade):
    high = low * 10**decades
    lrs = plan.geometric(low, high, per_decade)
    steps = [math.log10(b / a) * per_decade for a, b in itertools.pairwise(lrs)]
    assert lrs[0] == pytest.approx(low) and lrs[-1] <= high * (1 + 1e-8)
    assert steps == pytest.approx([1.0] * len(steps))
    assert math.log10(high / lrs[-1]) * per_decade < 1


def test_a_value_that_stands_twice_counts_once_and_is_told(asked):
    request = asked("rank: 8\nmethod: [lora, lora]")
    assert request.base.axes["method"] == ("lora",)
    assert request.notes == ("line 2, method: lora stands there twice",)


WRONG = {
    "unknown key": ("rnak: 8", "line 1: unknown key 'rnak'. Did you mean 'rank'?"),
    "plural": ("method: lora\nseeds: [0]", "line 2: unknown key 'seeds'. Did you mean 'seed'?"),
    "merge key": ("a: &a {rank: 1}\n<<: *a", "line 1: unknown key 'a'"),
    "key twice": ("rank: 8\nsteps: 3\nrank: 9", "line 3, rank: stands there already, on line 1"),
    "text for a number": ("steps: 9\nrank: eight", "line 2, rank: expected a whole number, not eight"),
    "quoted number": ("rank: '8'", "line 1, rank: expected a whole number, not '8'"),
    "fraction": ("rank: [8,\n 4.5]", "line 2, rank: expected a whole number, not 4.5"),
    "truth": ("rank: yes", "line 1, rank: expected a whole number, not yes"),
    "number for text": ("model: 7", "line 1, model: expected text, not 7; put it in quotes"),
    "nothing": ("rank:", "line 1, rank: expected a whole number, not nothing"),
    "empty list": ("rank: []", "line 1, rank: the list is empty"),
    "mapping": ("rank: {of: 8}", "line 1, rank: expected a whole number, not a mapping"),
    "list in a list": ("rank: [[8]]", "line 1, rank: expected a whole number, not a list"),
    "out of range": (
        "steps: 5\nrank: [8, 0]",
        "line 2, rank: rank must be a whole number of at least 1, not 0",
    ),
    "method": ("method: [lora,\n  pisa]", "line 2, method: unknown method 'pisa'. Did you mean 'pissa'?"),
    "device": ("device: gpu", "line 1, device: unknown device 'gpu'"),
    "dtype": ("dtype: float16", "line 1, dtype: unknown dtype 'float16'"),
    "alpha": ("alpha: ranks", "line 1, alpha: expected a number, rank or fixed, not ranks"),
    "negative alpha": ("alpha: -1", "line 1, alpha: alpha must be a positive number"),
    "modules": ("target_modules: 3", "line 1, target_modules: expected names"),
    "no modules": ("target_modules: ','", "line 1, target_modules: target_modules must be"),
    "date": ("model: 2026-13-77", "line 1, model: expected text, not 2026-13-77"),
    "negative rate": ("lr: [1e-3, -1]", "line 1, lr: expected a positive number, not -1"),
    "infinite rate": ("lr: .inf", "line 1, lr: expected a positive number, not .inf"),
    "rate": ("lr: fast", "line 1, lr: expected a positive number, not fast"),
    "half a range": ("lr: {from: 1e-3}", "line 1, lr: expected {from: 1e-5"),
    "range key": ("lr: {form: 1e-3, to: 1}", "line 1: unknown key 'form'. Did you mean 'from'?"),
    "backward range": ("lr: {from: 1e-2, to: 1e-3}", "from 0.01 is above to 0.001; exchange them"),
    "dense range": ("lr: {from: 1e-5, to: 1, per_decade: 999999999}", "more than 1000 learning rates"),
    "density": ("lr: {from: 1e-5, to: 1, per_decade: 0}", "per_decade: expected a whole number of 1 to"),
    "huge density": (
        f"lr: {{from: 1, to: 1, per_decade: 1{400 * '0'}}}",
        "per_decade: expected a whole number",
    ),
    "no mapping": ("- rank", "line 1, the file: expected `key: value` lines, not a list"),
    "text": ("rank 8", "line 1, the file: expected `key: value` lines, not rank 8"),
    "empty": ("# nothing\n", "is empty; name at least one key"),
    "exclude key": ("exclude:\n  - {rnk: 8}", "line 2: unknown key 'rnk'. Did you mean 'rank'?"),
    "exclude rates": ("exclude: {lr: 1e-3}", "line 1: unknown key 'lr'"),
    "exclude nothing": ("exclude:\n  - {}", "line 2, exclude: names nothing"),
    "include text": ("include: dora", "line 1, include: expected `key: value` lines, not dora"),
    "syntax": ("rank: 8\nsteps: [1, 2", "is not valid YAML: line"),
    "two documents": ("rank: 8\n---\nrank: 9", "is not valid YAML"),
    "object": ("model: !!python/name:os.system ''", "is not valid YAML"),
    "depth": ("rank: " + "[" * 5000, "nested too deeply"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_mistake_is_told_with_its_line_and_key(asked, name):
    text, message = WRONG[name]
    with pytest.raises(RequestError) as caught:
        asked(text)
    assert message in str(caught.value) and "sweep.yaml" in str(caught.value)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 400


def test_no_object_is_made_and_nothing_called(asked, tmp_path):
    with pytest.raises(RequestError):
        asked(f"rank: !!python/object/apply:pathlib.Path.mkdir [{tmp_path / 'made'}]")
    assert not (tmp_path / "made").exists()


def test_aliases_that_multiply_are_refused_at_once(asked):
    layers = [f"&l{i} [{', '.join([f'*l{i - 1}'] * 9)}]" for i in range(1, 30)]
    with pytest.raises(RequestError):
        asked(f"rank: [&l0 [8], {', '.join(layers)}]")


def test_files_that_cannot_be_read_are_named(tmp_path):
    with pytest.raises(RequestError, match=r"cannot read .*none\.yaml: No such file"):
        read(tmp_path / "none.yaml")
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(RequestError, match="is not text in UTF-8"):
        read(tmp_path / "binary.yaml")
    (tmp_path / "null.yaml").write_bytes(b"rank: 8\x00")
    with pytest.raises(RequestError, match="is not valid YAML"):
        read(tmp_path / "null.yaml")


SCALARS = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=8), st.dates())
NESTED = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
)
KEYS = st.sampled_from(
    ["rank", "alpha", "method", "model", "target_modules", "lr", "exclude", "include", "seed", "lora", "from"]
)


@settings(max_examples=300, deadline=None)
@given(st.one_of(st.text(max_size=40), st.dictionaries(KEYS, NESTED, max_size=3).map(yaml.safe_dump)))
def test_any_text_is_read_or_refused(tmp_path_factory, text):
    path = tmp_path_factory.getbasetemp() / "fuzz.yaml"
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    try:
        request = read(path)
    except RequestError:
        return
    assert all(request.base.axes.values())
