"""The options that several commands share, each defined once."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Annotated, Any

import typer

from .. import job
from ..errors import RequestError
from ..overwriting import check_writable
from ..peft_config import read, refuse_contradiction
from ..records import dump_json, write_json
from ..setting import AUTO, Setting

DEFAULTS = Setting()


def expanded(text: str) -> str:
    """A path of the command line. A shell leaves the home folder of ``--out=~/x`` for the command to find."""
    return os.path.expanduser(text)


def settings(
    model: Annotated[
        str, typer.Option(help="Built-in model, hub id, local folder, or .gguf file.")
    ] = DEFAULTS.model,
    data: Annotated[
        str,
        typer.Option(help="Built-in task, local .json, .jsonl, .csv or .parquet file, or hub dataset id."),
    ] = DEFAULTS.data,
    fields: Annotated[
        str | None,
        typer.Option(
            metavar="PROMPT,RESPONSE",
            help="The prompt's and the response's column, or one column of chat messages.",
            show_default="found by their usual names",
        ),
    ] = None,
    method: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="LoRA method (see `hessian-lr list`); repeat it for several.",
            show_default=DEFAULTS.method,
        ),
    ] = None,
    peft_config: Annotated[
        str | None,
        typer.Option(
            metavar="FOLDER",
            help="Your own adapter instead of --method: a folder with adapter_config.json (trained weights "
            "as safetensors), or a LoraConfig's JSON file. Rank, alpha and modules are its own.",
        ),
    ] = None,
    rank: Annotated[int | None, typer.Option(help="Adapter rank r.", show_default=str(DEFAULTS.rank))] = None,
    alpha: Annotated[
        float | None, typer.Option(help="LoRA's alpha; the scaling is alpha / r.", show_default="the rank")
    ] = None,
    target_modules: Annotated[
        str | None,
        typer.Option(metavar="all-linear|A,B", help="Modules to adapt.", show_default="all-linear"),
    ] = None,
    optimizer: Annotated[
        str, typer.Option(metavar="adamw|sgd", help="Optimizer of the runs.")
    ] = DEFAULTS.optimizer,
    batch_size: Annotated[int, typer.Option(help="Samples in an optimizer step.")] = DEFAULTS.batch_size,
    steps: Annotated[int, typer.Option(help="Optimizer steps of a run.")] = DEFAULTS.steps,
    seed: Annotated[int, typer.Option(help="Seed of the initialization.")] = DEFAULTS.seed,
    samples: Annotated[
        str,
        typer.Option(
            metavar="N|auto",
            help="Samples on which curvature is measured; auto (spectrum): until λ is known, at most 64.",
        ),
    ] = str(DEFAULTS.samples),
    max_length: Annotated[int, typer.Option(help="Tokens a sample is cut to.")] = DEFAULTS.max_length,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, …")] = DEFAULTS.device,
    dtype: Annotated[
        str, typer.Option(metavar="auto|float32|bfloat16", help="Precision of the matrix products.")
    ] = DEFAULTS.dtype,
) -> list[Setting]:
    """One setting a method, all else equal, checked as far as is possible without the model.

    Raises:
        RequestError: a value is out of range, or a name is unknown.
    """
    targets = target_modules and (
        target_modules if target_modules == "all-linear" else tuple(names(target_modules))
    )
    adapter: dict[str, Any] = {"rank": rank, "alpha": alpha, "target_modules": targets}
    adapter = {name: value for name, value in adapter.items() if value is not None}
    if peft_config is not None:
        given = adapter | ({"method": ",".join(method)} if method else {})
        refuse_contradiction(peft_config, read(peft_config)[1], given)
        adapter = {"peft_config": peft_config}
    common: dict[str, Any] = {
        "model": model,
        "data": data,
        "fields": None if fields is None else tuple(part.strip() for part in fields.split(",")),
        **adapter,
        "optimizer": optimizer,
        "batch_size": batch_size,
        "steps": steps,
        "seed": seed,
        "samples": samples if samples == AUTO else _count(samples),
        "max_length": max_length,
        "device": device,
        "dtype": dtype,
    }
    made = [Setting(method=name, **common) for name in dict.fromkeys(method or [DEFAULTS.method])]

    # Seconds of imports, which a bad number needs not wait for.
    from ..study.loading import check

    check(made)
    return made


@dataclass(frozen=True)
class Output:
    """Where results go, and what is said beside them.

    Attributes:
        json: File for the JSON, ``"-"`` for standard output, or None.
        quiet: No progress, no notes: only the result.
    """

    json: str | None
    quiet: bool

    @property
    def tables(self) -> bool:
        """Whether standard output is free for people to read."""
        return self.json != "-"

    def write(self, document: dict[str, Any]) -> None:
        """Write the result's JSON if it was asked for."""
        if self.json == "-":
            sys.stdout.write(dump_json(document))
            sys.stdout.flush()
        elif self.json is not None:
            write_json(self.json, document)

    @contextmanager
    def written(self, document: dict[str, Any]) -> Iterator[None]:
        """On leaving, also by an error, the result's JSON is written: what is shown within needs no disk."""
        try:
            yield
        finally:
            self.write(document)


def output(
    json: Annotated[
        str | None,
        typer.Option(
            metavar="FILE|-",
            parser=expanded,
            help="Write the result as JSON; - is standard output, nothing else then.",
        ),
    ] = None,
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress and no notes.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> Output:
    """Where results go (``main`` looks at ``--debug`` itself).

    Raises:
        RequestError: the file cannot be written.
    """
    if job.rank():
        return Output(None, True)  # rank 0 tells and writes
    if json is not None and json != "-":
        check_writable(json, "--json")
    return Output(json, quiet)


Calibrated = Annotated[
    str | None,
    typer.Option(
        "--calibration",
        metavar="FILE",
        parser=expanded,
        help="Constants written by `hessian-lr calibrate`.",
        show_default="those of the package",
    ),
]
Checkpoint = Annotated[
    str | None,
    typer.Option(
        "--checkpoint",
        metavar="DIR",
        parser=expanded,
        help="Keep the state of Lanczos (and short runs) here: the same command goes on after a kill.",
    ),
]
PREDICTOR = typer.Option(
    metavar="combined|adam|eigenvalue|probe",
    help="adam: sharpness in Adam's geometry after a short warm-up; "
    "eigenvalue: the Hessian's at initialization; combined: both; probe: adam's, and a few runs a tenth "
    "as long.",
    show_default="combined",
)
Runs = Annotated[
    list[str],
    typer.Argument(
        metavar="RUNS...", parser=expanded, help="Folders that `validate` or `sweep` wrote, or their JSON."
    ),
]


def _count(samples: str) -> int:
    try:
        return int(samples)
    except ValueError as error:
        raise RequestError(f"--samples takes a whole number or {AUTO!r}, not {samples!r}") from error


def names(text: str) -> list[str]:
    """The comma-separated parts of ``text``, without spaces and empty ones."""
    return [part.strip() for part in text.split(",") if part.strip()]


def numbers(text: str, kind: type[int] | type[float], option: str) -> tuple[Any, ...]:
    """Comma-separated numbers.

    Raises:
        RequestError: a part is no number of that kind, or there is none.
    """
    try:
        found = tuple(kind(part) for part in names(text))
    except ValueError as error:
        what = "whole numbers" if kind is int else "numbers"
        raise RequestError(f"{option} takes {what} separated by commas, not {text!r}") from error
    if not found:
        raise RequestError(f"{option} needs at least one number, not {text!r}")
    return found
