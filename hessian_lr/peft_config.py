"""The user's own adapter: a PEFT LoraConfig in a file, with or without weights, known by its content."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .errors import RequestError
from .records import Record, read_json

MOST = 2**31  # no rank, and no alpha that anyone trains with
CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
#: What results call the method of a setting with such an adapter.
METHOD = "peft-config"
NO_CHOICE = "PEFT's choice"
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


@dataclass(frozen=True)
class PeftSource(Record):
    """Where an adapter is, and what it was when it was read.

    Attributes:
        path: A folder with ``adapter_config.json`` and, if the adapter has been trained,
            ``adapter_model.safetensors``; or a configuration's JSON file by itself.
        digest: Hash of the bytes of these files: another content is another setting.
    """

    path: str
    digest: str

    def __str__(self) -> str:
        return self.path

    @property
    def config(self) -> Path:
        """The configuration's file."""
        return _locate(self.path)[0]

    @property
    def weights(self) -> Path | None:
        """The file of trained weights, or None: the adapter starts as its configuration says."""
        return _locate(self.path)[1]

    def values(self) -> dict[str, Any]:
        """The configuration's fields as they stand in the file.

        Raises:
            RequestError: the files are gone, or no longer what they were when the setting was made.
        """
        if _digest(*_locate(self.path)) != self.digest:
            raise RequestError(
                f"{self.path} has changed since this setting was made of it; start the command again, or put "
                "back what was there"
            )
        return _lora(self.config)


def read(path: str | Path) -> tuple[PeftSource, dict[str, Any]]:
    """Find an adapter and what its configuration says of a setting's own fields.

    Returns:
        The source, and ``method``, ``rank``, ``alpha`` and ``target_modules``. The modules are those of the
        file, which may also be a pattern; PEFT's other ways to choose modules and ranks (``rank_pattern``,
        ``layers_to_transform``, …) stay in the file and count in its digest.

    Raises:
        RequestError: there is no such adapter, it is not a LoRA, or its weights are not safetensors.
    """
    config, weights = _locate(path)
    values = _lora(config)
    source = PeftSource(str(path), _digest(config, weights))
    targets = values.get("target_modules")
    described = {
        "method": METHOD,
        "rank": values["r"],
        "alpha": float(values["lora_alpha"]),
        "target_modules": _described(targets, values.get("target_parameters")),
    }
    return source, described


def _described(modules: str | list[str] | None, parameters: Any) -> str | tuple[str, ...]:
    if isinstance(modules, list):
        # Saved sets have no order. A mixture's fused experts are parameters, and may be all there is.
        return tuple(sorted([*modules, *(parameters or [])])) or NO_CHOICE
    # Where none is named, PEFT has a choice for each architecture.
    return modules or NO_CHOICE


def refuse_contradiction(path: str | Path, described: dict[str, Any], given: dict[str, Any]) -> None:
    """Refuse a given value of a field that the adapter decides otherwise.

    Raises:
        RequestError: names the first such field and both values.
    """
    for name, value in given.items():
        own = described[name]
        order = sorted if isinstance(own, tuple) and isinstance(value, tuple) else (lambda same: same)
        if order(value) != order(own):
            option = "--" + name.replace("_", "-")
            if name == "method":
                raise RequestError(
                    f"the method {value!r} contradicts {path}, which is a method of its own: give either "
                    f"{option} or --peft-config"
                )
            raise RequestError(
                f"{name} {_text(value)} contradicts {path}, which says {_text(own)}: leave {option} out, or "
                "change it there"
            )


def refuse_empty(name: str, value: object) -> None:
    """Refuse an empty name, which as a path would be the folder that the command is given in.

    Raises:
        RequestError: it is empty.
    """
    if value == "":
        raise RequestError(
            f"{name} is empty: name one, or leave it out (in a shell, a variable that is not set is empty)"
        )


def _locate(path: str | Path) -> tuple[Path, Path | None]:
    """The configuration and the weights."""
    refuse_empty("peft_config", path)
    given = Path(path).expanduser()
    if given.is_file():
        return given, None
    if not given.is_dir():
        hint = (
            f", or fetch that id first: hf download {path} --local-dir adapter"
            if _HUB_ID.fullmatch(str(path))
            else ""
        )
        raise RequestError(
            f"there is no adapter {path}: give the folder that save_pretrained of a PEFT model wrote, or the "
            f"JSON file of a LoraConfig{hint}"
        )
    config, weights = given / CONFIG, given / WEIGHTS
    if not config.is_file():
        found = ", ".join(sorted(p.name for p in given.iterdir())[:8]) or "nothing"
        other = "; it is a model's folder, which is for --model" if (given / "config.json").is_file() else ""
        raise RequestError(f"{path} has no {CONFIG} (found: {found}){other}")
    if weights.is_file():
        return config, weights
    pickled = sorted(p.name for p in given.glob("adapter_model*") if p.suffix in (".bin", ".pt", ".pth"))
    if pickled:
        raise RequestError(
            f"{path} holds its weights as {pickled[0]}, a pickle, which is never read here: save the adapter "
            f"again with safe_serialization=True, which writes {WEIGHTS}; or give {config} alone for a fresh "
            "start"
        )
    return config, None


def _lora(config: Path) -> dict[str, Any]:
    values = read_json(config)
    if not isinstance(values, dict):
        raise RequestError(f"{config} is not a LoraConfig: expected a JSON object")
    kind = values.get("peft_type")
    if kind != "LORA":
        raise RequestError(
            f"{config} has peft_type {kind!r}; expected 'LORA'. Other kinds go by "
            "name: `hessian-lr list methods`"
        )
    for name in ("r", "lora_alpha"):
        value = values.get(name)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not abs(value) < MOST:
            raise RequestError(f"{config} must give {name} as a number, not {value!r}")
    targets = values.get("target_modules")
    if not (
        targets is None
        or isinstance(targets, str)
        or (isinstance(targets, list) and all(isinstance(name, str) for name in targets))
    ):
        raise RequestError(f"{config} must give target_modules as text or a list of names, not {targets!r}")
    parameters = values.get("target_parameters")
    if parameters is not None and not (
        isinstance(parameters, list) and all(isinstance(name, str) for name in parameters)
    ):
        raise RequestError(f"{config} must give target_parameters as a list of names, not {parameters!r}")
    return values


def _digest(config: Path, weights: Path | None) -> str:
    sha = hashlib.sha256()
    for file in (config, weights):
        if file is not None:
            try:
                with file.open("rb") as handle:
                    while block := handle.read(1 << 20):
                        sha.update(block)
            except OSError as error:
                raise RequestError(f"cannot read {file}: {error.strerror or error}") from error
        sha.update(b"|")
    return sha.hexdigest()[:16]


def _text(value: Any) -> str:
    return (
        ",".join(value)
        if isinstance(value, tuple)
        else f"{value:g}"
        if isinstance(value, float)
        else str(value)
    )
