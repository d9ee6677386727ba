"""Read a GGUF file into a plain float32 model that can be saved, trained and copied."""

from __future__ import annotations

import contextlib
import copy
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from .. import hub
from ..errors import HessianLRError, RequestError
from ..exhausted import ran_out

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase


def read(path: Path) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Dequantise the model in a GGUF file to float32 and build its tokenizer.

    The reader leaves a model that believes it is still quantised: it refuses to be saved. So the
    weights move into a fresh model of the same configuration.

    Raises:
        RequestError: there is no such file, or it is not GGUF.
        HessianLRError: it is damaged, or of an architecture the reader does not know.
        MemoryError, RuntimeError, OSError: as ``exhausted.ran_out`` tells, memory was.
    """
    if not path.is_file():
        raise RequestError(f"there is no GGUF file {path}; check the path")
    with path.open("rb") as handle:
        magic = handle.read(4)
    if magic != b"GGUF":
        raise RequestError(
            f"{path} is not a GGUF file: it begins with {magic!r}, not b'GGUF'; fetch it again"
        )
    from transformers import AutoModelForCausalLM, AutoTokenizer

    try:
        with hub.silenced(), torch.random.fork_rng(devices=[]), _alone(path) as (folder, file):
            # Typed by hand: with the loading report asked for, the result is a pair.
            both: Any = AutoModelForCausalLM.from_pretrained(
                folder, gguf_file=file, dtype=torch.float32, output_loading_info=True
            )
            dequantised, info = both
            config = copy.deepcopy(dequantised.config)
            del config.quantization_config
            # GGUF's own title of the model, which would pass for a path.
            config.__dict__.pop("_model_name_or_path", None)
            config._name_or_path = ""
            model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
            model.load_state_dict(dequantised.state_dict())
            model.tie_weights()
            tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=file)
            name_special_tokens(tokenizer, config)
    except Exception as error:  # the reader's errors have no common type: struct, Key, Value, …
        if ran_out(error):
            raise
        raise HessianLRError(
            f"cannot read {path} ({path.stat().st_size:,} bytes): {hub.first_line(error)}. "
            "It is damaged or incomplete, or an architecture that transformers cannot read from GGUF; "
            "fetch it again, or give the model as a folder of safetensors"
        ) from error
    # Weights that are not in the file would be random numbers: no prediction can follow from them.
    if absent := sorted(info["missing_keys"]):
        raise HessianLRError(
            f"{path} lacks {len(absent)} weights of a {type(model).__name__} (first: {absent[0]}). It is "
            "incomplete, a vocabulary alone, or one part of a split model: fetch all of it, or merge the "
            "parts first (llama.cpp's `llama-gguf-split --merge FIRST-PART WHOLE.gguf`)"
        )
    return model, tokenizer


@contextlib.contextmanager
def _alone(path: Path) -> Iterator[tuple[str, str]]:
    """A folder that holds nothing but a link to the file, and the link's own path.

    transformers prefers a tokenizer.json beside the file to what the file says, follows an
    adapter_config.json there to another model, and a bare name to a file of the working directory.
    """
    with tempfile.TemporaryDirectory() as folder:
        link = Path(folder) / path.name
        link.symlink_to(path.resolve())
        yield str(link.parent), str(link)


def name_special_tokens(tokenizer: PreTrainedTokenizerBase, config: PreTrainedConfig) -> None:
    """Give a tokenizer made from a GGUF file the special tokens that the file, and so the model, names.

    transformers 5.17 takes the token that begins a text for the one that ends it.
    """
    for name in ("bos", "eos", "pad"):
        number = getattr(config, f"{name}_token_id", None)
        if isinstance(number, int) and 0 <= number < len(tokenizer):
            setattr(tokenizer, f"{name}_token", tokenizer.convert_ids_to_tokens(number))
