"""A second device that needs no hardware: ``other:0``, whose tensors wrap some on the CPU.

What lies on two devices cannot be tried on a machine with one. Within ``second_device`` every operation runs
on the CPU, but one on tensors of both devices fails, as it does between two GPUs. It is built on torch's
backend in Python for its private device type, which changes what the process has, so it is for a process of
its own: as a script, it prints what is measured of a tiny model on one device and on two.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from accelerate import dispatch_model
from tiny_models import counting_batch, learned
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_map_only
from torch.utils.backend_registration import _DummyBackendModule, _setup_privateuseone_for_python_backend

import hessian_lr as hlr
from hessian_lr.curvature.closed_form import closed_form

NAME = "other"
_COPIES = (torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default)


class Elsewhere(torch.Tensor):
    """A tensor on the other device."""

    inner: Tensor

    @staticmethod
    def __new__(cls, inner: Tensor) -> Elsewhere:
        made = torch.Tensor._make_wrapper_subclass(
            cls,
            inner.size(),
            strides=inner.stride(),
            storage_offset=inner.storage_offset(),
            dtype=inner.dtype,
            device=torch.device(NAME, 0),
        )
        made.inner = inner
        return made

    __torch_function__ = torch._C._disabled_torch_function_impl

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


class _Module(_DummyBackendModule):
    """What torch asks ``torch.other`` for."""

    def get_rng_state(self, device: object = None) -> Tensor:
        return torch.empty(0)

    def set_rng_state(self, state: Tensor, device: object = None) -> None:
        pass


class _SecondDevice(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


@contextmanager
def second_device() -> Iterator[torch.device]:
    """Within it there is a second device, once ``register`` was called."""
    with _SecondDevice():
        yield torch.device(NAME, 0)


def register() -> None:
    """Let the process know the device; to be called before the first derivative is taken in it."""
    _setup_privateuseone_for_python_backend(NAME, backend_module=_Module())


def _run(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    tensors = list(_tensors((args, tuple(kwargs.values()))))
    target = kwargs.get("device")
    if target is None and not any(isinstance(tensor, Elsewhere) for tensor in tensors):
        return func(*args, **kwargs)
    # A number goes anywhere, as on real devices.
    where = {tensor.device.type for tensor in tensors if tensor.dim()}
    if len(where) > 1 and func not in _COPIES:
        raise RuntimeError(f"{func} of tensors on {' and '.join(sorted(where))}")
    inside = {name: _inside(value) for name, value in kwargs.items()}
    if target is not None:
        inside["device"] = torch.device("cpu")
    found = func(*_inside(args), **inside)
    if func is torch.ops.aten.copy_.default:
        return args[0]
    if target is not None and torch.device(target).type != NAME:
        return found
    return return_and_correct_aliasing(func, args, kwargs, tree_map_only(Tensor, Elsewhere, found))


def _tensors(value: Any) -> Iterator[Tensor]:
    """The tensors among an operation's arguments; torch's own walk through them costs more than all else."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, list | tuple):
        for one in value:
            yield from _tensors(one)


def _inside(value: Any) -> Any:
    """An operation's arguments with what lies on the second device as it lies on the CPU."""
    if isinstance(value, Elsewhere):
        return value.inner
    if isinstance(value, list | tuple):
        return type(value)(map(_inside, value))
    return value


# Whatever few products find, they find on two devices too; in Python each takes long.
ROUGH = {"rtol": 0.3}
BATCHES = [counting_batch(8, 3, seed) for seed in range(12)]
# As accelerate puts the parts of a model that device_map="auto" spreads; the head shares its weight with the
# embedding.
SPREAD = {
    **dict.fromkeys(("model.embed_tokens", "lm_head", "model.rotary_emb", "model.layers.0"), "cpu"),
    **dict.fromkeys(("model.layers.1", "model.norm"), f"{NAME}:0"),
}


def model(spread: bool, method: str = "pissa") -> Any:
    """A tiny Llama with an adapter, whole or with its second layer elsewhere."""
    made = learned(method=method)
    if spread:
        dispatch_model(made.get_base_model(), SPREAD, main_device="cpu", force_hooks=True)
        assert {p.device.type for p in made.parameters() if p.requires_grad} == {"cpu", NAME}
    return made


def measured(spread: bool) -> dict[str, Any]:
    """Everything that is measured of a model, by name."""
    found: dict[str, Any] = {}
    for operator in ("hessian", "gauss-newton", "central-differences"):
        found[operator] = hlr.sharpness(model(spread), BATCHES, operator=operator, **ROUGH).lambda_max
    rebuilt = hlr.sharpness(model(spread), BATCHES, memory_budget=0, **ROUGH)
    found["rebuilt"] = rebuilt.lambda_max
    predicted = hlr.predict_learning_rate(model(spread), BATCHES, steps=60)
    found["lr"], found["lambda_preconditioned"] = predicted.lr, predicted.adam.lambda_preconditioned
    fast = hlr.predict_learning_rate(model(spread, "lora"), BATCHES, predictor="eigenvalue", fast=True)
    found["fast"] = fast.lr
    found["bracket"] = closed_form(model(spread, "lora"), BATCHES, seed=0).estimate
    modules = hlr.module_sharpness(model(spread), BATCHES, **ROUGH).modules
    found |= {one.name: one.lambda_max for one in modules}
    found["tracked"] = _tracked(model(spread))
    return found


def _tracked(trained: Any) -> float:
    parameters = [p for p in trained.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=1e-3, foreach=False)
    for _ in range(2):
        optimizer.zero_grad()
        trained(**BATCHES[0], use_cache=False).loss.backward()
        optimizer.step()
    before = [p.detach().cpu() for p in parameters]
    value = hlr.SharpnessTracker(BATCHES).update(trained, 2, optimizer).lambda_max
    assert all(torch.equal(p.detach().cpu(), b) for p, b in zip(parameters, before, strict=True))
    return value


def main() -> None:
    torch.set_num_threads(1)
    register()
    one = measured(False)
    with second_device() as device:
        try:
            torch.ones(3) + torch.ones(3, device=device)
        except RuntimeError as error:
            mixed = str(error)
        else:
            mixed = ""
        two = measured(True)
    print(json.dumps({"one": one, "two": two, "mixed": mixed}))


if __name__ == "__main__":
    main()
