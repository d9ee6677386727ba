"""Load a causal language model: built-in alias, hub id, local folder, or GGUF file."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch

from .. import hub
from ..causal import looks_ahead
from ..devices import resolve_device
from ..errors import HessianLRError, RequestError, hint, unknown_name
from ..exhausted import memory_errors, ran_out
from ..package import cache_folder
from . import alias, gguf
from .identity import fingerprint

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

ALIASES: dict[str, str] = {
    "smollm2-135m": "SmolLM2-135M-Instruct (Apache-2.0): 135 million parameters, dequantised from 4 bits",
}

_NUMBERED = re.compile(r"(.*?\.)(\d+)(\..*)")  # a weight of one of several like layers
# What tokenizers keep their tokens in; of the older ones each kind has its own names.
_VOCABULARIES = ("tokenizer.*", "vocab*", "*.model", "*.spm", "*.tiktoken", "tekken.json")
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")


@dataclass(frozen=True)
class LoadedModel:
    """A model ready to be adapted, with its tokenizer.

    Attributes:
        model: Float32 weights that need no gradient, in evaluation mode, without a key-value cache.
        tokenizer: Has a padding token.
        name: What the caller asked for.
        fingerprint: Tells two checkpoints apart (see ``fingerprint``).
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    name: str
    fingerprint: str


def load(ref: str, *, device: str = "auto", quiet: bool = False) -> LoadedModel:
    """Load a model and its tokenizer.

    Args:
        ref: A name in ``ALIASES`` (these win over a folder of the same name), a ``.gguf`` file, a
            local folder of safetensors, or a hub id. Code inside a repository is never run.
        device: See ``devices.resolve_device``.
        quiet: Show no progress. It is shown on standard error only, and only on a terminal.

    Raises:
        RequestError: the name, folder or device is wrong, or the model cannot be adapted.
        HessianLRError: the model cannot be fetched, its files or weights are damaged, or memory is short.
    """
    target = resolve_device(device)
    try:
        with memory_errors():
            model, tokenizer = _found(ref, quiet)
            _check_weights(model, ref)
            _check_tokenizer(model, tokenizer, ref)
            model.config.use_cache = False
            told = fingerprint(model)  # while it lies in this machine's own memory
            model.requires_grad_(False).eval().to(target)
            _check_causal(model, ref)
    except MemoryError as error:
        raise HessianLRError(
            f"out of memory while loading {ref}, whose weights are held in float32, 4 bytes each; "
            "free memory, or use a smaller model"
        ) from error
    except torch.cuda.OutOfMemoryError as error:
        raise HessianLRError(
            f"{ref} ({model.num_parameters():,} parameters in float32) does not fit the memory of {target}; "
            "free it, or use --device cpu"
        ) from error
    return LoadedModel(model, tokenizer, ref, told)


def _found(ref: str, quiet: bool) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    path = Path(ref).expanduser()
    if ref in ALIASES:
        model, tokenizer = _read(str(alias.folder(cache_folder(), ref, quiet)), ref, local=True)
        # The folder may have been made by a transformers that mistook them.
        gguf.name_special_tokens(tokenizer, model.config)
        return model, tokenizer
    if path.suffix.lower() == ".gguf":
        with hub.status(f"dequantising {path.name}", quiet):
            return gguf.read(path)
    if path.is_dir():
        _check_folder(path)
        return _read(str(path), ref, local=True)
    _check_hub_id(ref, path)
    with hub.status(f"loading {ref}", quiet):
        return _read(ref, ref, local=not hub.reachable())


def _names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:8]) or "nothing"


def _check_folder(path: Path) -> None:
    names = _names(path)
    found = _listed(names)
    if {"config.json", "adapter_config.json"} <= set(names):
        raise RequestError(
            f"{path} holds a model and an adapter, which would be loaded into it: move adapter_config.json "
            "and adapter_model.safetensors into a folder of their own, and give that as --peft-config"
        )
    if "config.json" not in names:
        if "adapter_config.json" in names:
            raise RequestError(
                f"{path} is a PEFT adapter, not a model; give its base model as --model, and the adapter as "
                "--peft-config (or merge them first)"
            )
        raise RequestError(
            f"{path} has no config.json, so it is not a model folder (found: {found}); "
            "give the folder that save_pretrained wrote"
        )
    if any(name.endswith(".safetensors") for name in names):
        return
    if pickled := [name for name in names if name.endswith((".bin", ".pt", ".pth"))]:
        raise RequestError(
            f"{path} holds its weights as {pickled[0]}, a pickle, which is never read here. Only safetensors "
            "are read: where you trust the file, load it with from_pretrained and write them with "
            "save_pretrained"
        )
    raise RequestError(
        f"{path} has no weights (found: {found}). Only safetensors are read: copy or download them into it, "
        "or give a .gguf file by its own name"
    )


def _check_hub_id(ref: str, path: Path) -> None:
    if "/" not in ref and hint(ref.lower(), ALIASES):
        raise unknown_name("model", ref, ALIASES)
    if path.is_file():
        raise RequestError(f"{ref} is a file; a model is a folder with a config.json, or a .gguf file")
    if not _HUB_ID.fullmatch(ref):
        raise RequestError(
            f"there is no model folder {ref!r} and it is no hub id; give a folder, a .gguf file, a hub id "
            f"(owner/name), or one of: {', '.join(ALIASES)}"
        )


def _read(source: str, ref: str, *, local: bool) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """``from_pretrained`` with every failure as one line that names the mend."""
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    options: dict[str, Any] = {"local_files_only": local, "trust_remote_code": False}
    with hub.silenced(), torch.random.fork_rng(devices=[]):
        try:
            config = AutoConfig.from_pretrained(source, **options)
        except Exception as error:
            raise _unreadable(source, ref, local, "configuration", error) from error
        if getattr(config, "quantization_config", None) is not None:
            raise RequestError(f"{ref} holds quantised weights; give the unquantised model (or a .gguf file)")
        try:
            # Typed by hand: with the loading report asked for, the result is a pair.
            both: Any = AutoModelForCausalLM.from_pretrained(
                source, dtype=torch.float32, use_safetensors=True, output_loading_info=True, **options
            )
        except Exception as error:
            raise _unreadable(source, ref, local, "weights", error) from error
        try:
            tokenizer = AutoTokenizer.from_pretrained(source, **options)
        except Exception as error:
            raise _unreadable(source, ref, local, "tokenizer", error) from error
    model, info = both
    # Weights that are not in the files would be random numbers: no prediction can follow from them.
    if absent := sorted(info["missing_keys"]):
        raise HessianLRError(
            f"{ref} lacks {len(absent)} weights of a {type(model).__name__} (first: {absent[0]}); "
            "it is incomplete, its config.json is another model's, or it is no causal language model: copy "
            "or download all of it again"
        )
    if layer := _layer_without_place(model.state_dict(), info["unexpected_keys"]):
        raise HessianLRError(
            f"{ref} holds weights of {layer}, a layer that its config.json does not count: it is another "
            "model's config.json, or its number of layers was changed"
        )
    return model, tokenizer


def _layer_without_place(known: Iterable[str], left_out: Iterable[str]) -> str | None:
    """A layer among the weights that were left out which is like one that the model has, or None.

    Others may stay: transformers leaves out heads and towers that a causal language model does not have.
    """

    def split(names: Iterable[str]) -> Iterator[tuple[str, str, str]]:
        for name in names:
            if found := _NUMBERED.fullmatch(name):
                yield found[1], found[2], found[3]

    like = {(head, tail) for head, _, tail in split(known)}
    layers: dict[str, list[bool]] = {}
    for head, number, tail in split(left_out):
        layers.setdefault(f"{head}{number}", []).append((head, tail) in like)
    return next((layer for layer, alike in layers.items() if all(alike)), None)


def _unreadable(
    source: str, ref: str, local: bool, part: str, error: Exception
) -> HessianLRError | MemoryError:
    """What to tell about an exception of ``from_pretrained``; its kinds share no useful type."""
    if ran_out(error):  # nothing is wrong with the files
        return MemoryError(str(error))
    why = hub.first_line(error)
    if "trust_remote_code" in str(error):
        return RequestError(
            f"{ref} needs code of its own, which is never run here; give a model whose architecture "
            "transformers has, or convert it to one"
        )
    if Path(source).is_dir():
        names = _names(Path(source))
        if part == "tokenizer" and not any(fnmatch(one, kind) for one in names for kind in _VOCABULARIES):
            return RequestError(
                f"{ref} has no tokenizer (found: {_listed(names)}). {_mend(Path(source), part)}"
            )
        return HessianLRError(f"cannot read the {part} of {ref}: {why}. {_mend(Path(source), part)}")
    if _gated(error):
        return RequestError(
            f"{ref} is gated: ask for access on https://huggingface.co/{ref}, then log in with `hf auth "
            "login` (or set HF_TOKEN to a token that may read it)"
        )
    meant = hint(ref.split("/")[-1].lower(), ALIASES)
    if local:
        return HessianLRError(
            f"{ref} is no local folder, not in the hub's local cache, and the hub cannot be reached.{meant} "
            f"Connect; or fetch it elsewhere with `hf download {ref} --local-dir DIR` and give that folder; "
            f"or use a built-in model: {', '.join(ALIASES)}"
        )
    return RequestError(
        f"there is no local folder {ref!r}, and the hub gives no {part} for that id: {why}.{meant} Check the "
        "id (owner/name); for a private model, log in with `hf auth login` (or set HF_TOKEN)"
    )


def _mend(folder: Path, part: str) -> str:
    if part == "tokenizer":
        return (
            "Expected tokenizer.json beside the weights: copy it from where the model was, or write it with "
            "the tokenizer's own save_pretrained"
        )
    if part == "configuration":
        return (
            "If config.json is damaged, copy or download it again; if its architecture is newer than this "
            "transformers, upgrade that"
        )
    sizes = (f"{p.name} {p.stat().st_size:,} bytes" for p in sorted(folder.glob("*.safetensors"))[:4])
    return f"Files of weights: {', '.join(sizes)}. If one is incomplete, copy or download it again"


def _gated(error: BaseException | None) -> bool:
    # transformers raises its own error from the hub's.
    from huggingface_hub.errors import GatedRepoError

    while error is not None and not isinstance(error, GatedRepoError):
        error = error.__cause__ or error.__context__
    return error is not None


def _check_weights(model: PreTrainedModel, ref: str) -> None:
    for name, parameter in model.named_parameters():
        if not bool(torch.isfinite(parameter).all()):
            bad = int((~torch.isfinite(parameter)).sum())
            raise HessianLRError(
                f"{ref}: {name} has {bad:,} NaN or infinite values of {parameter.numel():,}; "
                "the checkpoint is damaged: fetch or save it again"
            )


def _check_causal(model: PreTrainedModel, ref: str) -> None:
    if looks_ahead(model):
        raise RequestError(
            f"{ref} is a {type(model).__name__} that sees the tokens it is to predict, so that its loss says "
            "nothing; expected a causal language model (for BERT and its kin, is_decoder true in config.json)"
        )


def _check_tokenizer(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, ref: str) -> None:
    """Give the tokenizer a padding token, and see that every token it makes has an embedding."""
    if tokenizer.pad_token is None:
        if tokenizer.eos_token is None:
            raise RequestError(
                f"the tokenizer of {ref} has neither a padding nor an end-of-text token; set pad_token in "
                "its tokenizer_config.json"
            )
        tokenizer.pad_token = tokenizer.eos_token
    embeddings = cast(torch.Tensor, model.get_input_embeddings().weight).shape[0]
    if len(tokenizer) > embeddings:
        raise RequestError(
            f"the tokenizer of {ref} has {len(tokenizer):,} tokens but the model only {embeddings:,} "
            "embeddings: they do not belong together; copy the files of the model's own tokenizer there"
        )
