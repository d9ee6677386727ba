"""The failures: what a user did, the command, and what had to go wrong around it."""

from __future__ import annotations

import os
import shlex
from dataclasses import dataclass
from typing import Any

from .world import COMMON

ON_A_MODEL = ("predict", "spectrum", "validate")
# Root may write wherever it likes.
AS_ANOTHER = {"as_nobody": True} if os.getuid() == 0 else {}


@dataclass(frozen=True, eq=False)
class Failure:
    """One failure.

    Attributes:
        cause: What the user did, or what happened.
        command: The command as it is shown; those that work on a model get ``COMMON`` as well.
        names: What the message must hold: what was wrong, and what was expected or helps.
        status: The exit status.
        quotes: Whether a library's own words are part of the message.
        faults: What is done to the process (see ``faults.server``).
    """

    cause: str
    command: str
    names: tuple[str, ...]
    status: int
    quotes: bool
    faults: dict[str, Any]

    @property
    def arguments(self) -> list[str]:
        command, *own = shlex.split(self.command)
        common = shlex.split(COMMON) if command in ON_A_MODEL else []
        return [command, *common, *own]


def F(cause: str, command: str, *names: str, status: int = 2, quotes: bool = False, **faults: Any) -> Failure:
    return Failure(cause, command, names, status, quotes, faults)


FAILURES: dict[str, tuple[Failure, ...]] = {
    "Names and values": (
        F("typo in a method", "predict --method pisa", "'pisa'", "Did you mean 'pissa'?"),
        F("typo in a task", "predict --data maths", "'maths'", "Did you mean 'math'?"),
        F("typo in a model", "predict --model smollm-135m", "'smollm-135m'", "Did you mean 'smollm2-135m'?"),
        F("typo in an option", "predict --ranks 8", "unknown option '--ranks'", "Did you mean '--rank'?"),
        F("typo in a command", "predct", "predct", "--help", quotes=True),
        F("typo in a predictor", "predict --predictor adams", "'adams'", "Did you mean 'adam'?"),
        F("typo in an algorithm", "spectrum --algorithm lanczo", "Did you mean 'lanczos'?"),
        F("typo in a list", "list method", "'method'", "Did you mean 'methods'?"),
        F("an optimizer that is not there", "predict --optimizer adam", "'adam'", "Did you mean 'adamw'?"),
        F("a number that is none", "predict --rank 1.5", "'--rank'", "integer", quotes=True),
        F("rank 0", "predict --rank 0", "rank", "at least 1, not 0"),
        F(
            "rank larger than a module is wide",
            "predict --rank 500",
            "rank 500",
            "the largest possible rank is",
        ),
        F(
            "rank too large for lora-ga",
            "predict --method lora-ga --rank 6",
            "2·rank singular vectors",
            "the largest possible rank is",
        ),
        F("rank that gralora cannot divide", "predict --method gralora --rank 3", "multiple of 2", "not 3"),
        F(
            "a method that PEFT refuses on GPT-2's Conv1D",
            "predict --model gpt2 --method olora",
            "Conv1D",
            "Use another method",
        ),
        F("typo in a target module", "predict --target-modules q_prj", "'q_prj'", "q_proj"),
        F("a device that is not there", "predict --device cuda:7", "'cuda:7'", "use auto or cpu"),
        F("a dtype that is not there", "predict --dtype float16", "'float16'", "bfloat16"),
        F("a sample that grows where it may not", "predict --samples auto", "give a number here"),
        F("--fast without its predictor", "predict --fast", "--predictor eigenvalue"),
        F(
            "--fast for a method without a closed form",
            "predict --fast --predictor eigenvalue --method pissa",
            "pissa needs Lanczos",
        ),
        F("a bracket for a method that has none", "spectrum --bracket --method pissa", "for pissa"),
        F(
            "a run too short for short runs",
            "predict --predictor probe --steps 59",
            "'probe'",
            "59 steps",
            "at least 60",
        ),
        F("learning rates that are none", "validate --lrs 1e-4,fast", "--lrs", "numbers", "1e-4,fast"),
        F("a seed twice", "validate --seeds 1,1", "each named once"),
        F("a stopping rule out of range", "spectrum --rtol 2", "rtol", "between 0 and 1"),
    ),
    "Data": (
        F("missing file", "predict --data nothere.jsonl", "nothere.jsonl", "check the path"),
        F("a kind of file that is not read", "predict --data rows.txt", "rows.txt", ".jsonl"),
        F("a folder", "predict --data model", "model is a folder", ".jsonl"),
        F("empty file", "predict --data empty.jsonl", "empty.jsonl", "no rows"),
        F("JSON cut short", "predict --data rows.json", "rows.json", "copy it again", quotes=True),
        F("damaged Parquet", "predict --data rows.parquet", "rows.parquet", "bytes", "again", quotes=True),
        F("unknown column", "predict --fields prompt,respones", "'respones'", "Did you mean 'response'?"),
        F("columns of other names", "predict --data texts.jsonl", "text", "--fields"),
        F("columns of a built-in task", "predict --data math --fields a,b", "'math'", "has none"),
        F(
            "no labelled token",
            "predict --data unanswered.jsonl",
            "empty response",
            "rows 1, 2",
            "columns prompt and response",
        ),
        F("prompts that fill the length", "predict --max-length 4", "--max-length", "rows.jsonl"),
        F("chats that nobody answers", "predict --data chats.jsonl", "chats.jsonl", "messages"),
        F("too few rows", "predict --data two.jsonl", "two.jsonl", "at least"),
        F("a batch larger than the data", "validate --batch-size 999", "999", "training rows", "or less"),
        F(
            "rows longer than the model's positions",
            "predict --model gpt2 --data long.jsonl --max-length 2000",
            "1,024 positions",
            "1,203 tokens",
            "--max-length 1024",
        ),
        F(
            "a hub dataset that is not there",
            "predict --data owner/nothere",
            "check the id (owner/name, or owner/name:configuration)",
            quotes=True,
        ),
        F("a gated hub dataset", "predict --data owner/gated", "gated", "hf auth login", quotes=True),
        F(
            "a hub dataset, the hub unreachable",
            "predict --data owner/nothere",
            "the hub cannot be reached",
            "local file",
            status=1,
            hub_gone=True,
        ),
    ),
    "Models": (
        F("missing folder", "predict --model path/to/nothing", "path/to/nothing", "smollm2-135m"),
        F(
            "a hub model that is not there",
            "predict --model owner/nothere",
            "Check the id",
            "hf auth login",
            quotes=True,
        ),
        F("a gated hub model", "predict --model owner/gated", "is gated", "hf auth login", "HF_TOKEN"),
        F(
            "a hub model, the hub unreachable",
            "predict --model owner/nothere",
            "the hub cannot be reached",
            "hf download",
            status=1,
            hub_gone=True,
        ),
        F("a folder without a model", "predict --model no-config", "config.json", "save_pretrained"),
        F("an adapter in place of a model", "predict --model adapter", "PEFT adapter", "--peft-config"),
        F(
            "a file in place of a model",
            "predict --model rows.jsonl",
            "is a file",
            "a folder with a config.json",
        ),
        F("weights cut short", "predict --model cut-short", "copy or download", status=1, quotes=True),
        F("no weights", "predict --model no-weights", "no weights", "Only safetensors"),
        F(
            "weights as a pickle",
            "predict --model pickled",
            "pytorch_model.bin",
            "Only safetensors",
            "save_pretrained",
        ),
        F(
            "no tokenizer",
            "predict --model no-tokenizer",
            "has no tokenizer (found: config.json, ",
            "tokenizer.json",
            "save_pretrained",
        ),
        F("a checkpoint of another architecture", "predict --model foreign", "lacks", "GPT2", status=1),
        F("a tokenizer of another model", "predict --model few-embeddings", "tokens", "embeddings"),
        F("NaN in a weight", "predict --model nan", "down_proj", "NaN", "fetch or save it again", status=1),
        F("quantised weights", "predict --model quantised", "quantised", "give the unquantised model"),
        F("code of its own", "predict --model own-code", "code of its own", "never run"),
        F(
            "newer than this transformers",
            "predict --model unknown-kind",
            "newer_model",
            "upgrade",
            status=1,
            quotes=True,
        ),
        F("a page in place of GGUF", "predict --model model.gguf", "model.gguf", "not a GGUF file"),
        F("GGUF cut short", "predict --model cut.gguf", "bytes", "fetch it again", status=1, quotes=True),
        F("a damaged built-in model", "predict --model smollm2-135m", "1,000 bytes", "delete", status=1),
        F("missing adapter", "predict --peft-config nothere", "nothere", "save_pretrained"),
        F("a model in place of an adapter", "predict --peft-config model", "adapter_config.json", "--model"),
        F("another model's adapter", "predict --peft-config wider-adapter", "expected", "another model"),
        F(
            "an adapter and another rank",
            "predict --peft-config adapter --rank 8",
            "rank 8",
            "leave --rank out",
        ),
    ),
    "Files": (
        F("a folder for the JSON", "predict --json model", "is a folder", "name of a file"),
        F("a folder below a file", "validate --out in-the-way/runs", "is a file, not a folder"),
        F(
            "a folder that may not be written",
            "predict --json closed/x.json",
            "no permission",
            **AS_ANOTHER,
        ),
        F(
            "a full disk or quota",
            "list --json list.json",
            "it takes",
            "Make room",
            status=1,
            file_limit=1000,
        ),
        F("a state where a file is", "spectrum --checkpoint in-the-way", "is a file, not a folder"),
        F("an engine that is not there", "validate --engine rya", "'rya'", "Did you mean 'ray'?"),
        F("an engine's option without it", "validate --cpus-per-run 2", "--engine ray"),
        F("nothing to align", "align single", "validate"),
        F("missing results", "report nothere --out report.html", "nothere", "validate --out"),
        F("a file that is no result", "report other.json --out report.html", "other.json", "schema 1"),
        F("a report over its results", "report first --out first/validate.json", "would overwrite"),
        F("a result in the model's folder", "predict --json model/new.json", "the files of model, which"),
        F("results cut short", "report cut.json --out report.html", "cut.json", "restore it", quotes=True),
        F("results edited by hand", "calibrate edited --out constants.json", "checksum", "restore"),
        F("constants that are none", "predict --calibration other.json", "other.json", "Calibration"),
        F("no sweep to start from", "predict --from nothere", "nothere", "validate --out"),
        F("typo in a sweep's key", "sweep key.yaml --dry-run", "line 2", "Did you mean 'rank'?"),
        F("typo in a sweep's method", "sweep method.yaml --dry-run", "line 2", "Did you mean 'pissa'?"),
        F("a sweep's learning rate", "sweep rate.yaml --dry-run", "line 2", "lr", "fast"),
        F("a sweep that is no YAML", "sweep tab.yaml --dry-run", "line 2", "YAML", quotes=True),
        F("a share out of range", "sweep key.yaml --shard 9/8", "9/8"),
        F(
            "no cluster",
            "validate --engine ray --address 127.0.0.1:9",
            "127.0.0.1:9",
            "ray start",
            quotes=True,
        ),
    ),
    "Failures of the work": (
        F("a loss that is not finite", "spectrum --model overflow", "not finite", "down_proj", status=1),
        F(
            "weights that are all zero",
            "predict --model zeros --predictor adam",
            "gradient is zero",
            status=1,
        ),
        F("a model worse than guessing", "predict --model ruined --predictor adam", "guessing", status=1),
        F("no memory for the model", "predict --model large", "out of memory", status=1, memory_limit=8),
        F(
            "no memory to measure in",
            "spectrum --model many-tokens --data long.jsonl --max-length 2000",
            "out of memory",
            "--max-length",
            status=1,
            memory_limit=100,
        ),
    ),
}
