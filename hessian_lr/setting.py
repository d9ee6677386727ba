"""What a fine-tuning setting is: everything that decides how a run goes, except its learning rate."""

from __future__ import annotations

import os
import reprlib
import sys
from dataclasses import dataclass, fields
from numbers import Integral
from typing import Any

from . import peft_config as own
from .errors import RequestError, unknown_name
from .peft_config import PeftSource
from .records import Record, digest

ADAMW, SGD = "adamw", "sgd"
OPTIMIZERS = (ADAMW, SGD)
# AdamW's in every run and every warm-up: 38/λ_P is the threshold of this β₁.
BETAS, EPSILON = (0.9, 0.999), 1e-8
DTYPES = ("auto", "float32", "bfloat16")
# A sample that grows: by doubling, from the default to at most so many rows.
AUTO, MOST_SAMPLES = "auto", 64
# Fields that the fingerprints of the data and of the model tell by themselves, wherever both lie.
CONTENTS = ("model", "data", "fields", "max_length")
# Of a whole number: what random generators take as a seed, and far more than there is room for.
MOST = 2**31 - 1


@dataclass(frozen=True)
class Setting(Record):
    """One fine-tuning setting.

    Attributes:
        model: Built-in alias, hub id, local folder, or GGUF file.
        data: Built-in task family, local JSON/JSONL/CSV/Parquet file, or hub dataset id.
        fields: The prompt's and the response's column, or one column of chat messages;
            None: found by their usual names.
        method: Name of a LoRA method (see ``hessian-lr list``).
        rank: Adapter rank r.
        alpha: LoRA's alpha, scaling s = alpha / r; None becomes ``rank``.
        target_modules: ``"all-linear"`` or the module names to adapt.
        optimizer: The optimizer a run is trained with: ``"adamw"``, or ``"sgd"``, plain gradient descent
            (see ``sweep.recipe`` for both recipes).
        batch_size: Samples in an optimizer step.
        steps: Optimizer steps of a run, the first of them at the learning rate 0.
        seed: Seed of the adapter's initialization and of the order of the data.
        samples: Samples on which curvature is measured; ``"auto"``: as many as its error asks for, but no
            more than 64.
        max_length: Tokens a sample is cut to.
        device: ``"auto"``, ``"cpu"``, ``"cuda"``, ``"cuda:1"``, …
        dtype: Precision of the matrix products: ``"float32"``, ``"bfloat16"`` (autocast, the
            adapter itself stays float32), or ``"auto"`` (bfloat16 where the hardware has it).
        peft_config: The user's own adapter, by its folder or its configuration's file, which is read
            here: method, rank, alpha and target modules are then its own.

    Raises:
        RequestError: a value is out of its range, or contradicts ``peft_config``.
    """

    model: str = "smollm2-135m"
    data: str = "math"
    fields: tuple[str, ...] | None = None
    method: str = "lora"
    rank: int = 16
    alpha: float | None = None
    target_modules: str | tuple[str, ...] = "all-linear"
    optimizer: str = "adamw"
    batch_size: int = 4
    steps: int = 60
    seed: int = 0
    samples: int | str = 8
    max_length: int = 512
    device: str = "auto"
    dtype: str = "auto"
    peft_config: PeftSource | str | None = None

    def __post_init__(self) -> None:
        for name in ("model", "data", "peft_config"):
            if isinstance(value := getattr(self, name), os.PathLike):
                object.__setattr__(self, name, os.fspath(value))
        if isinstance(self.peft_config, str):
            self._take_from(self.peft_config)
        elif self.peft_config is not None and self.method != own.METHOD:
            # As dataclasses.replace makes it of a setting with an adapter.
            own.refuse_contradiction(str(self.peft_config), {"method": own.METHOD}, {"method": self.method})
        for name in ("model", "data"):
            own.refuse_empty(name, getattr(self, name))
        for name in LEAST:
            value = getattr(self, name)
            if name == "samples" and value == AUTO:
                continue
            check_counts(**{name: value})
            object.__setattr__(self, name, int(value))  # NumPy's have no place in JSON
            if value > MOST:
                raise RequestError(f"{name} must be at most {MOST:,}, not {reprlib.repr(value)}")
        alpha = self.rank if self.alpha is None else self.alpha
        if not isinstance(alpha, (int, float)) or not 0 < alpha <= sys.float_info.max:
            raise RequestError(f"alpha must be a positive number, not {alpha!r}")
        # 16 and 16.0 are one alpha, and must give one key.
        object.__setattr__(self, "alpha", float(alpha))
        if self.optimizer not in OPTIMIZERS:
            raise unknown_name("optimizer", self.optimizer, OPTIMIZERS)
        if self.dtype not in DTYPES:
            raise unknown_name("dtype", self.dtype, DTYPES)
        if self.fields is not None and (len(self.fields) not in (1, 2) or not all(self.fields)):
            raise RequestError(
                "fields must name the prompt's and the response's column (prompt,response) "
                f"or one column of chat messages, not {','.join(self.fields)!r}"
            )
        if not self.target_modules:
            raise RequestError("target_modules must be 'all-linear' or at least one module name")
        if not isinstance(self.target_modules, str):
            # A set of names: in any order they are one setting, and must give one key.
            object.__setattr__(self, "target_modules", tuple(sorted(set(self.target_modules))))

    def _take_from(self, path: str) -> None:
        source, described = own.read(path)
        usual = {field.name: field.default for field in fields(self)}
        # Whether a default was given or left out cannot be told; alpha's is the rank.
        given = {name: getattr(self, name) for name in described if getattr(self, name) != usual[name]}
        if given.get("alpha") == usual["rank"]:
            del given["alpha"]
        own.refuse_contradiction(path, described, given)
        for name, value in {**described, "peft_config": source}.items():
            object.__setattr__(self, name, value)

    @property
    def model_place(self) -> str:
        """The model's name; of one on disk its whole path, however it was given."""
        return _place(self.model)

    @property
    def data_place(self) -> str:
        """The same of the data."""
        return _place(self.data)

    @property
    def most_samples(self) -> int:
        """Rows to have at hand for the curvature sample."""
        return self.samples if isinstance(self.samples, int) else MOST_SAMPLES

    @property
    def scaling(self) -> float:
        """s = alpha / r, the factor in W + s·B·A of plain LoRA."""
        assert self.alpha is not None
        return self.alpha / self.rank

    def to_dict(self) -> dict[str, Any]:
        """The setting as plain JSON types."""
        values = super().to_dict()
        # Left out where there is none: settings from before it existed keep their keys.
        if self.peft_config is None:
            del values["peft_config"]
        return values

    def training_identity(self, *, contents: bool = True) -> dict[str, Any]:
        """The fields that decide how a training run goes (not where it runs, nor the curvature sample).

        Args:
            contents: Model and data are among them; False: fingerprints tell these.
        """
        values = self.to_dict()
        for name in ("samples", "device", *(() if contents else CONTENTS)):
            del values[name]
        if isinstance(self.peft_config, PeftSource):
            values["peft_config"] = self.peft_config.digest
        return values

    @property
    def key(self) -> str:
        """A short hash of all its fields."""
        return digest(self.to_dict(), 12)


def _place(name: str) -> str:
    return os.path.realpath(name) if os.path.exists(name) else name


# The first step of a run's warm-up has the learning rate 0: one step alone trains nothing.
LEAST = {"rank": 1, "batch_size": 1, "steps": 2, "seed": 0, "samples": 1, "max_length": 2}


def check_counts(**counts: object) -> None:
    """Refuse what is no whole number, or less than its ``LEAST``, which of other names is 1.

    Raises:
        RequestError: names the first.
    """
    for name, value in counts.items():
        if not isinstance(value, Integral) or isinstance(value, bool) or value < LEAST.get(name, 1):
            why = " (the first has the learning rate 0)" if name == "steps" else ""
            raise RequestError(
                f"{name} must be a whole number of at least {LEAST.get(name, 1)}{why}, not {value!r}"
            )
