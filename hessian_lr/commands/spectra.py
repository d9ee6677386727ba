"""What `spectrum` measures of one method: λ, and whatever else was asked for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any, TypeVar

from ..checkpoints import Checkpoints
from ..curvature.closed_form import closed_form
from ..distributed import FAILURES, require_shared
from ..exhausted import memory_errors
from ..measure import density, grown_sharpness, module_sharpness, sharpness, top_eigenvalues
from ..measure.how import shown
from ..prepare import Prepared
from ..progress import Progress
from ..rows import SpectrumRow
from ..setting import AUTO, Setting

T = TypeVar("T")
# Methods that start as plain LoRA with B = 0, where λ has a closed form.
BRACKETED = ("lora", "rslora", "lora+", "loft")
# Those of them whose learning rate λ at the start tells.
FAST = ("lora", "rslora")
BRACKETED_IN_WORDS = f"methods that start as plain LoRA with B = 0 ({', '.join(BRACKETED)})"


@dataclass(frozen=True)
class Request:
    """What is asked for; the fields are the command's options."""

    rtol: float
    max_products: int
    algorithm: str
    operator: str
    bracket: bool
    top: int | None
    density: bool
    per_module: bool


def may_be_bracketed(setting: Setting) -> bool:
    """Whether there is a closed form, or what the user's own adapter is like has to tell."""
    return setting.peft_config is not None or setting.method in BRACKETED


def measure(
    setting: Setting,
    prepared: Prepared,
    request: Request,
    progress: Progress,
    checkpoints: Checkpoints | None = None,
) -> SpectrumRow:
    """A row of the command's results; λ's iteration can go on from ``checkpoints``."""
    model, dtype, seed = prepared.model, prepared.dtype, setting.seed
    common: dict[str, Any] = {
        "rtol": request.rtol,
        "max_products": request.max_products,
        "algorithm": request.algorithm,
        "operator": request.operator,
        "dtype": dtype,
        "seed": seed,
        "progress": shown(progress.report, "Hessian products"),
        "checkpoints": checkpoints,
    }
    measured = grown_sharpness if setting.samples == AUTO else sharpness
    curvature = measured(model, prepared.batches, held_out=prepared.held_out or None, **common)
    more: dict[str, Any] = {}
    notes: list[str] = []
    if curvature.status != "failed":
        # On the sample that λ was measured on, which may have grown less than it could.
        batches = prepared.batches[: curvature.samples]
        if request.bracket and not may_be_bracketed(setting):
            notes.append(f"no bracket: there is one for {BRACKETED_IN_WORDS}")
        elif request.bracket:
            progress.report("closed form", 0, 1, "")
            more["bracket"] = _try(lambda: closed_form(model, batches, seed=seed), "bracket", notes)
        again: dict[str, Any] = {"operator": request.operator, "dtype": dtype, "seed": seed}
        if (count := request.top) is not None:
            again["progress"] = shown(progress.report, "largest eigenvalues")
            top = _try(
                lambda: top_eigenvalues(model, batches, count=count, rtol=request.rtol, **again),
                f"{count} largest eigenvalues",
                notes,
            )
            if top is not None:
                notes += [f"largest eigenvalues: {one}" for one in top.notes if one not in curvature.notes]
                # As much as many adapters, and nothing here reads them.
                more["top"] = replace(top, vectors=None)
        if request.density:
            again["progress"] = shown(progress.report, "spectral density")
            more["density"] = _try(lambda: density(model, batches, **again), "density", notes)
        if request.per_module:
            more["modules"] = _try(
                lambda: module_sharpness(
                    model,
                    batches,
                    rtol=request.rtol,
                    dtype=dtype,
                    seed=seed,
                    progress=lambda done, total, detail: progress.report("modules", done, total, detail),
                ),
                "per-module spectrum",
                notes,
            )
    found = replace(curvature, notes=(*prepared.notes, *curvature.notes, *notes))
    return SpectrumRow.of(setting.method, found, **more, request=asdict(request))


def _try(work: Callable[[], T], what: str, notes: list[str]) -> T | None:
    """A further result, or None with a note: it does not take λ with it when it fails."""
    try:
        with memory_errors():
            return work()
    except FAILURES as error:
        require_shared(error)
        notes.append(f"no {what}: {str(error) or type(error).__name__}")
        return None
