"""Where a model runs, and in which precision."""

import pytest
import torch

from hessian_lr import devices
from hessian_lr.errors import RequestError


@pytest.mark.parametrize("name", ["gpu", "cuda:99", "meta", ""])
def test_a_device_that_is_not_here_is_refused(name):
    with pytest.raises(RequestError, match="device"):
        devices.resolve_device(name)


def test_auto_takes_a_gpu_where_there_is_one():
    assert devices.resolve_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")
    assert devices.resolve_device("cpu") == torch.device("cpu")


@pytest.mark.parametrize(
    ("flags", "expected"),
    [({"avx2", "avx512_bf16"}, torch.bfloat16), ({"amx_bf16"}, torch.bfloat16), ({"avx2"}, torch.float32)],
)
def test_auto_precision_is_bfloat16_only_where_the_cpu_multiplies_it(monkeypatch, flags, expected):
    monkeypatch.setattr(devices, "_cpu_flags", lambda: flags)
    cpu = torch.device("cpu")
    assert devices.resolve_dtype("auto", cpu) == expected
    assert devices.resolve_dtype("float32", cpu) == torch.float32
    assert devices.resolve_dtype("bfloat16", cpu) == torch.bfloat16
    told = devices.precision_notes("bfloat16", cpu)
    assert bool(told) == (expected is torch.float32)
    assert not told or "no instructions for bfloat16" in told[0]
    assert not devices.precision_notes("auto", cpu) and not devices.precision_notes("float32", cpu)
    with pytest.raises(RequestError, match="unknown dtype 'float16'"):
        devices.resolve_dtype("float16", cpu)
