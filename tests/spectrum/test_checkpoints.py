"""Lanczos goes on after a kill, to the last bit; what is not its own state is named and not used."""

from __future__ import annotations

import dataclasses
import os

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tiny_models import counting_batch, learned

from hessian_lr.checkpoints import Checkpoints
from hessian_lr.curvature import LossOperator
from hessian_lr.errors import HessianLRError
from hessian_lr.measure import grown_sharpness, sharpness
from hessian_lr.predict import predict_learning_rate
from hessian_lr.records import read_json
from hessian_lr.setting import Setting
from hessian_lr.spectrum import checkpoint, lanczos
from hessian_lr.spectrum.checkpoint import Checkpoint

SETTING = Setting(rank=4, samples=4)
BATCHES = [counting_batch(4, 3, seed=seed) for seed in range(4)]
# What belongs to the process rather than to the measurement.
SPENT = {"seconds", "peak_rss_bytes", "matvecs", "gradient_equivalents"}


class Killed(BaseException):
    """Not an Exception, as a kill would pass every handler."""


@pytest.fixture(autouse=True)
def every_product(monkeypatch: pytest.MonkeyPatch) -> None:
    """A tiny model's product takes less than any disk; keep the state after each all the same."""
    monkeypatch.setattr(checkpoint, "SHARE", float("inf"))


@pytest.fixture
def killed_after(monkeypatch: pytest.MonkeyPatch):
    """Make the operator's n-th product from now on a kill."""
    real = LossOperator.matvec

    def arm(products: int | None) -> None:
        left = [products]

        def matvec(self, vector):
            if left[0] is not None:
                if left[0] == 0:
                    raise Killed
                left[0] -= 1
            return real(self, vector)

        monkeypatch.setattr(LossOperator, "matvec", matvec)

    return arm


def told(measured) -> dict:
    """What a measurement says, without what it cost and how it got there."""
    values = {name: value for name, value in measured.to_dict().items() if name not in SPENT | {"notes"}}
    return {
        name: {n: v for n, v in value.items() if n not in SPENT | {"notes"}}
        if isinstance(value, dict)
        else value
        for name, value in values.items()
    }


def bits(found) -> list[str]:
    """Every number, as hexadecimal: equal only if the last bit is."""
    return [value.hex() if isinstance(value, float) else repr(value) for value in (*told_flat(told(found)),)]


def told_flat(values):
    for value in values.values():
        if isinstance(value, dict):
            yield from told_flat(value)
        elif isinstance(value, (list, tuple)):
            yield from value
        else:
            yield value


@pytest.mark.parametrize(("products", "dtype"), [(1, torch.float32), (9, torch.float32), (4, torch.bfloat16)])
def test_sharpness_goes_on_to_the_last_bit(products, dtype, tmp_path, killed_after):
    common = {"held_out": BATCHES[2:], "rtol": 1e-4, "dtype": dtype}
    whole = sharpness(learned(), BATCHES[:2], **common)
    killed_after(products)
    with pytest.raises(Killed):
        sharpness(learned(), BATCHES[:2], checkpoints=Checkpoints(tmp_path, SETTING), **common)
    killed_after(None)
    again = Checkpoints(tmp_path, SETTING)
    resumed = sharpness(learned(), BATCHES[:2], checkpoints=again, **common)
    assert bits(resumed) == bits(whole)
    assert resumed.matvecs == whole.matvecs - products
    assert again.notes[0].startswith(f"went on after {products} products")
    again.clear()
    assert not tmp_path.exists()


@pytest.fixture(scope="module")
def predicted():
    """The whole prediction that each killed one is to become, and how it is asked for."""
    common = {"warmup_batches": BATCHES[:2], "steps": 20}
    return predict_learning_rate(learned(), BATCHES[2:], **common), common


@pytest.mark.parametrize("products", [2, 9, 16])
def test_a_prediction_goes_on_to_the_last_bit(products, predicted, tmp_path, killed_after):
    whole, common = predicted
    assert whole.matvecs > max(products, 12)
    killed_after(products)
    with pytest.raises(Killed):
        predict_learning_rate(learned(), BATCHES[2:], checkpoints=Checkpoints(tmp_path, SETTING), **common)
    killed_after(None)
    again = Checkpoints(tmp_path, SETTING)
    resumed = predict_learning_rate(learned(), BATCHES[2:], checkpoints=again, **common)
    assert bits(resumed) == bits(whole)
    assert resumed.matvecs < whole.matvecs
    again.clear()
    assert not tmp_path.exists()


def test_a_sample_that_grows_goes_on_in_its_last_round(tmp_path, killed_after):
    rows = [counting_batch(1, 3, seed=seed) for seed in range(32)]
    whole = grown_sharpness(learned(), rows, rtol=0.01)
    assert whole.samples == 32
    killed_after(whole.matvecs - 3)
    with pytest.raises(Killed):
        grown_sharpness(learned(), rows, rtol=0.01, checkpoints=Checkpoints(tmp_path, SETTING))
    killed_after(None)
    again = Checkpoints(tmp_path, SETTING)
    resumed = grown_sharpness(learned(), rows, rtol=0.01, checkpoints=again)
    assert bits(resumed) == bits(whole)
    # Each round's state is its own; none is another measurement's, to be deleted.
    assert len(again.notes) > 1 and all(note.startswith("went on after") for note in again.notes)
    assert resumed.matvecs < whole.matvecs / 2


def half_done(folder, killed_after, model=None, setting=SETTING, batches=BATCHES[:2], **changes):
    killed_after(5)
    with pytest.raises(Killed):
        sharpness(model or learned(), batches, rtol=1e-4, checkpoints=Checkpoints(folder, setting), **changes)
    killed_after(None)


def other_model():
    model = learned()
    with torch.no_grad():
        next(p for p in model.parameters() if not p.requires_grad).view(-1)[0] += 1e-3
    return model


def other_point():
    model = learned()
    with torch.no_grad():
        next(p for p in model.parameters() if p.requires_grad).view(-1)[1] += 1e-7
    return model


def other_alpha():
    model = learned()
    for module in model.modules():
        if hasattr(module, "lora_A") and module.lora_A:
            module.set_scale("default", 2.0)
    return model


FOREIGN = {
    "asked.seed": {"seed": 1},
    "asked.max_products": {"max_products": 39},
    "setting.rank": {"setting": dataclasses.replace(SETTING, rank=5)},
    "sample": {"batches": BATCHES[1:3]},
    "point": {"model": other_point},
    "model": {"model": other_model},
    "scalings": {"model": other_alpha},
    "dtype": {"dtype": torch.bfloat16},
    "matrix": {"operator": "gauss-newton"},
}


@pytest.fixture(scope="module")
def undisturbed():
    return sharpness(learned(), BATCHES[:2], rtol=1e-4)


@pytest.mark.parametrize("name", FOREIGN)
def test_the_state_of_something_else_is_named_and_neither_used_nor_lost(
    name, undisturbed, tmp_path, killed_after
):
    changes = dict(FOREIGN[name])
    model = changes.pop("model", learned)()
    half_done(tmp_path, killed_after, model, **changes)
    (kept,) = tmp_path.iterdir()
    before = {path.name: path.read_bytes() for path in kept.iterdir()}
    here = Checkpoints(tmp_path, SETTING)
    found = sharpness(learned(), BATCHES[:2], rtol=1e-4, checkpoints=here)
    assert bits(found) == bits(undisturbed)
    (note,) = here.notes
    assert note.startswith(f"{kept} was not used: it is the state of another measurement, which differs in ")
    assert name in note
    here.clear()
    assert {path.name: path.read_bytes() for path in kept.iterdir()} == before


@pytest.mark.parametrize("changed", ["version", "threads"])
def test_another_version_or_number_of_threads_is_something_else(changed, tmp_path, killed_after, monkeypatch):
    half_done(tmp_path, killed_after)
    if changed == "version":
        monkeypatch.setattr("hessian_lr.checkpoints.__version__", "0.0.1")
    else:
        monkeypatch.setattr(torch, "get_num_threads", lambda: 99)
    here = Checkpoints(tmp_path, SETTING)
    sharpness(learned(), BATCHES[:2], rtol=1e-4, checkpoints=here)
    assert len(here.notes) == 1
    assert ("hessian-lr" if changed == "version" else "machine.threads") in here.notes[0]


def diagonal(vector):
    return torch.arange(1, 41, dtype=vector.dtype) * vector


def iterate(folder, products):
    """Lanczos on diag(1…40), killed after some products; its result if it was not."""
    left = [products]

    def matvec(vector):
        if left[0] == 0:
            raise Killed
        left[0] -= 1
        return diagonal(vector)

    kept = Checkpoint(folder, {"of": "diag(1…40)"})
    return lanczos(matvec, 40, rtol=1e-3, dtype=torch.float64, checkpoint=kept), kept


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_cut_or_flipped_file_is_never_gone_on_from(data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("state")
    with pytest.raises(Killed):
        iterate(folder, 6)
    path = data.draw(st.sampled_from(sorted(folder.iterdir())), label="file")
    content = bytearray(path.read_bytes())
    at = data.draw(st.integers(0, len(content) - 1), label="byte")
    if data.draw(st.booleans(), label="cut"):
        content = content[:at]
    else:
        content[at] ^= 1 << data.draw(st.integers(0, 7), label="bit")
    path.write_bytes(content)
    found, kept = iterate(folder, -1)
    whole = lanczos(diagonal, 40, rtol=1e-3, dtype=torch.float64)
    assert (found.value.hex(), found.residual.hex(), found.upper.hex()) == (
        *(whole.value.hex(), whole.residual.hex(), whole.upper.hex()),
    )
    # A flip that changes nothing, as of a space, does no harm: then it did go on.
    assert kept.notes[0].startswith((f"the state in {folder} cannot be used (", "went on after 6 products"))
    if path.suffix == ".bin":
        assert "damaged" in kept.notes[0]


def test_only_new_vectors_are_written(tmp_path, monkeypatch):
    written = []
    real = checkpoint.write_bytes

    def write(path, *vectors):
        written.append((path.name, len(vectors)))
        real(path, *vectors)

    monkeypatch.setattr(checkpoint, "write_bytes", write)
    for products in (6, 3):
        with pytest.raises(Killed):
            iterate(tmp_path, products)
    assert written == [("basis-0000.bin", 2), *((f"basis-{i:04d}.bin", 1) for i in range(1, 9))]


def test_a_full_disk_ends_the_keeping_and_not_the_measurement(tmp_path, monkeypatch):
    def full(path, *vectors):
        raise HessianLRError(f"cannot write {path}: No space left on device")

    monkeypatch.setattr(checkpoint, "write_bytes", full)
    found, kept = iterate(tmp_path / "new", -1)
    whole = lanczos(diagonal, 40, rtol=1e-3, dtype=torch.float64)
    assert torch.equal(found.vector, whole.vector) and torch.equal(found.second, whole.second)
    assert found == dataclasses.replace(whole, vector=found.vector, second=found.second)
    (note,) = kept.notes
    assert note.startswith("its state could not be kept: cannot write ")


def test_writing_stays_within_its_share_of_the_time(tmp_path, monkeypatch):
    """A clock that only the test moves: a product takes 1 s, a write 0.1 s."""
    now = [0.0]
    monkeypatch.setattr(checkpoint, "SHARE", 0.02)
    monkeypatch.setattr(checkpoint.time, "perf_counter", lambda: now[0])
    real, spent = checkpoint.write_bytes, []

    def write(path, *vectors):
        now[0] += 0.1
        spent.append(0.1)
        real(path, *vectors)

    monkeypatch.setattr(checkpoint, "write_bytes", write)

    def matvec(vector):
        now[0] += 1.0
        return diagonal(vector)

    lanczos(matvec, 40, rtol=1e-12, max_products=39, dtype=torch.float64, checkpoint=Checkpoint(tmp_path, {}))
    assert spent
    # The first was allowed by a guess of 0.04 s; from then on by what it took.
    assert sum(spent) <= 0.02 * now[0] + 0.1
    assert len(spent) >= 5
    state = read_json(tmp_path / "state.json")
    assert sum(count for count, _ in state["parts"]) == len(state["alphas"]) + 1 > 30
    assert len(state["parts"]) == len(os.listdir(tmp_path)) - 1 == len(spent)
