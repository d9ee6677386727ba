"""What `spectrum` measures of one method: λ, and whatever else was asked for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any, TypeVar

from ..checkpoints import Checkpoints
from ..curvature.closed_form import closed_form
from ..distributed import require_shared
from ..errors import HessianLRError
from ..measure import density, grown_sharpness, module_sharpness, sharpness
from ..prepare import Prepared
from ..progress import Progress
from ..rows import SpectrumRow
from ..setting import AUTO, Setting

T = TypeVar("T")
# Methods with a closed form at B = 0.
BRACKETED = ("lora", "rslora")


@dataclass(frozen=True)
class Request:
    """What is asked for; the fields are the command's options."""

    rtol: float
    max_products: int
    algorithm: str
    operator: str
    bracket: bool
    density: bool
    per_module: bool


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
        "progress": progress.lanczos,
        "checkpoints": checkpoints,
    }
    measured = grown_sharpness if setting.samples == AUTO else sharpness
    curvature = measured(model, prepared.batches, held_out=prepared.held_out or None, **common)
    more: dict[str, Any] = {}
    notes: list[str] = []
    if curvature.status != "failed":
        # On the sample that λ was measured on, which may have grown less than it could.
        batches = prepared.batches[: curvature.samples]
        if request.bracket and setting.method in BRACKETED:
            progress.report("closed form", 0, 1, "")
            more["bracket"] = _try(lambda: closed_form(model, batches, seed=seed), "bracket", notes)
        if request.density:

            def show(done: int, total: int, theta: float, residual: float) -> None:
                progress.report("spectral density", done, total, f"θ {theta:.3g}")

            more["density"] = _try(
                lambda: density(
                    model, batches, operator=request.operator, dtype=dtype, seed=seed, progress=show
                ),
                "density",
                notes,
            )
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
        return work()
    except HessianLRError as error:
        require_shared(error)
        notes.append(f"no {what}: {error}")
        return None
