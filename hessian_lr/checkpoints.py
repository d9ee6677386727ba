"""Where a measurement keeps the state of its iterations, and what that state belongs to."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import platform
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from . import __version__
from .curvature.loss_operator import LossOperator
from .distributed import team
from .errors import RequestError
from .models.identity import fingerprint, raw, scalings
from .records import digest, read_json
from .setting import Setting
from .spectrum.checkpoint import STATE, Checkpoint

_PACKAGES = ("torch", "transformers", "peft", "numpy", "scipy")


class Checkpoints:
    """The states of one measurement's iterations, in a folder: one folder each, named by what it belongs to.

    Each is kept until the measurement is done, also after its own iteration has ended.

    Args:
        folder: Of all of them; other measurements may keep theirs there too.
        setting: What is measured. Where its model and data lie does not matter: their contents do.

    Attributes:
        unfinished: Some of the measurement is still to be had, by another attempt: the states stay for it.
    """

    def __init__(self, folder: str | Path, setting: Setting) -> None:
        self.folder = Path(folder)
        self.unfinished = False
        identity = setting.training_identity(contents=False)
        del identity["dtype"]
        self._setting = {**identity, "samples": setting.samples}
        self._open: list[Checkpoint] = []
        self._foreign: dict[Path, str] = {}

    @property
    def notes(self) -> tuple[str, ...]:
        """What a reader should know: which iterations went on, and which states were not used, and why."""
        # A measurement may have several iterations of one stage: a state that one leaves alone is another's.
        used = {one.folder for one in self._open}
        foreign = [note for folder, note in self._foreign.items() if folder not in used]
        return tuple(dict.fromkeys([*foreign, *(note for one in self._open for note in one.notes)]))

    def of(self, operator: LossOperator, *more: Tensor, stage: str, **asked: Any) -> Checkpoint:
        """The state of one iteration.

        Args:
            operator: Its products, at the weights where they are taken.
            more: Tensors beside the weights and the sample that decide the products.
            stage: Which of the measurement's iterations it is.
            asked: Its own arguments.
        """
        identity = {
            "stage": stage,
            "setting": self._setting,
            "model": fingerprint(operator.model),
            # The setting's alpha need not be that of a model that was made elsewhere.
            "scalings": digest(scalings(operator.model), 12),
            "point": _hash([*operator.parameters, *more]),
            "sample": _hash([batch[name] for batch in operator.batches for name in sorted(batch)]),
            "matrix": type(operator).__name__,
            "dtype": str(operator.dtype),
            "asked": asked,
            "versions": {"hessian-lr": __version__, "python": platform.python_version()}
            | {name: importlib.metadata.version(name) for name in _PACKAGES},
            "machine": _machine(operator.device) | {"ranks": team().size},
        }
        folder = self.folder / f"lanczos-{stage}-{digest(identity, 12)}"
        self._name_foreign(folder, identity)
        self._open.append(Checkpoint(folder, identity))
        return self._open[-1]

    def clear(self) -> None:
        """Remove the states of this measurement, if it is done; and their folder, if that leaves it empty."""
        if self.unfinished:
            return
        for one in self._open:
            one.clear()
        with contextlib.suppress(OSError):
            self.folder.rmdir()

    def _name_foreign(self, own: Path, identity: dict[str, Any]) -> None:
        """Note states of the same stage and method that belong to something else, and in what they differ."""
        for path in sorted(self.folder.glob(f"lanczos-{identity['stage']}-*/{STATE}")):
            if path.parent == own or any(path.parent == one.folder for one in self._open):
                continue
            try:
                other = read_json(path)["identity"]
                theirs, ours = dict(_flat(other)), dict(_flat(identity))
            except (RequestError, KeyError, TypeError, AttributeError) as error:
                self._foreign[path.parent] = f"{path} was not used: it is damaged ({error})"
                continue
            if theirs.get("setting.method") != ours["setting.method"]:
                continue  # of another row of the same command
            differing = [name for name in ours if ours[name] != theirs.get(name)]
            self._foreign[path.parent] = (
                f"{path.parent} was not used: it is the state of another measurement, which differs in "
                f"{', '.join(differing)}; delete it unless that is to go on"
            )


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


def _hash(tensors: Sequence[Tensor]) -> str:
    """Of every byte, and of the shapes and types."""
    total = hashlib.sha256()
    for tensor in tensors:
        total.update(f"{tuple(tensor.shape)}{tensor.dtype}".encode())
        total.update(raw(tensor))
    return total.hexdigest()[:16]


def _machine(device: torch.device) -> dict[str, Any]:
    """What the last bits of a product depend on beside the software."""
    if device.type == "cuda":
        return {"device": torch.cuda.get_device_name(device)}
    kind = torch.backends.cpu.get_cpu_capability()
    return {"device": f"{platform.machine()} {kind}", "threads": torch.get_num_threads()}
