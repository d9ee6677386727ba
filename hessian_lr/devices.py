"""Where a model runs, and in which precision, by the names that users give."""

from __future__ import annotations

from pathlib import Path

import torch

from .errors import RequestError, unknown_name
from .job import launched, local_rank
from .setting import DTYPES

_DEVICES = "expected auto, cpu, cuda, or cuda:0, cuda:1, …"


def resolve_device(name: str) -> torch.device:
    """The device ``name`` asks for; ``"auto"`` is the first CUDA GPU, or the CPU where there is none.

    Raises:
        RequestError: there is no such device on this machine.
    """
    if launched() and name in ("auto", "cuda") and torch.cuda.is_available():
        name = f"cuda:{local_rank()}"
    elif launched() and name.startswith("cuda:"):
        raise RequestError(f"device {name!r} is one GPU for all ranks; with cuda each takes its own")
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise RequestError(f"unknown device {name!r}: {_DEVICES}") from error
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        found = torch.cuda.device_count()
        raise RequestError(
            f"device {name!r} is not on this machine ({found} CUDA devices found); use auto or cpu"
        )
    if device.type not in ("cpu", "cuda"):
        raise RequestError(f"device {name!r} is not supported: {_DEVICES}")
    return device


def resolve_dtype(name: str, device: torch.device) -> torch.dtype:
    """The precision of matrix products: ``"auto"`` is bfloat16 where ``device`` multiplies it natively.

    Raises:
        RequestError: the name is none of ``setting.DTYPES``.
    """
    if name not in DTYPES:
        raise unknown_name("dtype", name, DTYPES)
    if name != "auto":
        return torch.float32 if name == "float32" else torch.bfloat16
    return torch.bfloat16 if _multiplies_bfloat16(device) else torch.float32


def precision_notes(name: str, device: torch.device) -> tuple[str, ...]:
    """What to know of a precision that was asked for by name: that ``device`` has no instructions for it."""
    if name != "bfloat16" or _multiplies_bfloat16(device):
        return ()
    return (
        "this processor has no instructions for bfloat16, which may make products tens of times slower than "
        "in float32; --dtype auto takes what it multiplies",
    )


def _multiplies_bfloat16(device: torch.device) -> bool:
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device)[0] >= 8
    return bool({"avx512_bf16", "amx_bf16"} & _cpu_flags())


def _cpu_flags() -> set[str]:
    # The kernel's list: torch has no public question for it. Elsewhere than on Linux: none, so float32.
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return set()
    return next((set(line.split(":", 1)[1].split()) for line in lines if line.startswith("flags")), set())
