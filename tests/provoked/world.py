"""The folder in which the failures are provoked: models, adapters, rows and results, whole and not."""

from __future__ import annotations

import json
import math
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from tiny_text import VOCABULARY, save, sums, tiny_llama, write_rows
from transformers import GPT2Config, GPT2LMHeadModel

from tests.faults.harness import Server

#: Said of every command that works on a model, where its own arguments do not say otherwise.
COMMON = (
    "--model model --data rows.jsonl --rank 2 --batch-size 1 --steps 3 --samples 2 --device cpu "
    "--dtype float32 --quiet"
)
RESULTS = Path(__file__).parents[2] / "experiments" / "first_light" / "results"


def furnish(server: Server, folder: Path) -> None:
    """Put everything there that ``failures`` names; the server's own model and rows are there already."""
    _rows(folder)
    _models(folder, server.model)
    _adapters(folder)
    _results(folder)
    _sweeps(folder)


def _rows(folder: Path) -> None:
    (folder / "empty.jsonl").touch()
    write_rows(folder / "two.jsonl", sums(2)[:2])
    write_rows(folder / "unanswered.jsonl", [row | {"response": ""} for row in sums(2)])
    write_rows(folder / "long.jsonl", [{"prompt": "=", "response": f"{n}+" * 400} for n in range(16)])
    write_rows(folder / "texts.jsonl", [{"text": "1+1=2"}, {"text": "1+2=3"}])
    write_rows(folder / "chats.jsonl", [{"messages": [{"role": "user", "content": "1+1="}]}] * 3)
    (folder / "rows.json").write_text('{"prompt": "1+1=", "respon')
    (folder / "rows.parquet").write_bytes(b"PAR1, and no more")
    (folder / "rows.txt").write_text("prompt,response\n1+1=,2\n")


def _models(folder: Path, whole: Path) -> None:
    weights = (whole / "model.safetensors").read_bytes()

    def like_the_model(name: str) -> Path:
        made = folder / name
        made.mkdir(parents=True)
        for file in whole.iterdir():
            (made / file.name).write_bytes(file.read_bytes())
        return made

    (like_the_model("cut-short") / "model.safetensors").write_bytes(weights[: len(weights) // 2])
    (like_the_model("no-weights") / "model.safetensors").unlink()
    (like_the_model("pickled") / "model.safetensors").rename(folder / "pickled" / "pytorch_model.bin")
    for file in like_the_model("no-tokenizer").glob("tokenizer*"):
        file.unlink()
    (folder / "no-config").mkdir()
    (folder / "no-config" / "model.safetensors").write_bytes(weights)
    _change_config(like_the_model("foreign"), model_type="gpt2", architectures=["GPT2LMHeadModel"])
    _change_config(like_the_model("quantised"), quantization_config={"quant_method": "awq", "bits": 4})
    _change_config(
        like_the_model("own-code"),
        model_type="their_model",
        auto_map={"AutoConfig": "theirs.Config", "AutoModelForCausalLM": "theirs.Model"},
    )
    _change_config(like_the_model("unknown-kind"), model_type="newer_model")
    save(_tiny(vocab_size=100), folder / "few-embeddings")
    save(_spoiled(math.nan), folder / "nan")
    save(_spoiled(3e38), folder / "overflow")
    save(_scaled(0.0, ""), folder / "zeros")
    save(_scaled(4.0, "lm_head"), folder / "ruined")
    save(_tiny(vocab_size=50_000), folder / "many-tokens")
    save(_gpt2(), folder / "gpt2")
    save(_tiny(hidden_size=512, intermediate_size=768), folder / "large")
    (folder / "cut.gguf").write_bytes(b"GGUF\x03\x00\x00\x00")
    (folder / "model.gguf").write_bytes(b"<!DOCTYPE html>")
    (folder / "closed").mkdir(mode=0o555)
    built_in = folder / "cache" / "models" / "smollm2-135m"
    built_in.mkdir(parents=True)
    (built_in / "manifest.json").write_text(json.dumps({"files": {"model.safetensors": {"bytes": 1000}}}))
    (built_in / "model.safetensors").write_bytes(b"half")


def _tiny(**changes: float) -> torch.nn.Module:
    return tiny_llama(**({"initializer_range": 0.2, "hidden_size": 16, "intermediate_size": 24} | changes))


def _spoiled(value: float) -> torch.nn.Module:
    model = _tiny()
    with torch.no_grad():
        model.model.layers[1].mlp.down_proj.weight[:2] = value
    return model


def _scaled(factor: float, names: str) -> torch.nn.Module:
    """The tiny model with every weight scaled whose name holds ``names``."""
    model = _tiny()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if names in name:
                weight.mul_(factor)
    return model


def _gpt2() -> torch.nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return GPT2LMHeadModel(GPT2Config(n_embd=16, n_layer=1, n_head=2, vocab_size=len(VOCABULARY)))


def _change_config(model: Path, **changes: object) -> None:
    file = model / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def _adapters(folder: Path) -> None:
    adapter = LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM")
    get_peft_model(_tiny(), adapter).save_pretrained(folder / "adapter")
    get_peft_model(_tiny(hidden_size=32), adapter).save_pretrained(folder / "wider-adapter")
    for path in (folder / "adapter", folder / "wider-adapter"):
        assert (path / "adapter_model.safetensors").is_file()


def _results(folder: Path) -> None:
    (folder / "first").mkdir()
    document = json.loads((RESULTS / "validate.json").read_text())
    (folder / "first" / "validate.json").write_text(json.dumps(document))
    (folder / "edited").mkdir()
    document["sha256"] = "0" * 64
    (folder / "edited" / "validate.json").write_text(json.dumps(document))
    (folder / "single").mkdir()
    document = json.loads((RESULTS / "validate.json").read_text())
    del document["sha256"]
    document["results"] = [row | {"best_lr": None} for row in document["results"][:1]]
    (folder / "single" / "validate.json").write_text(json.dumps(document))
    (folder / "other.json").write_text('{"loss": 1.5}')
    (folder / "cut.json").write_text('{"schema": 1, "resu')
    (folder / "in-the-way").write_text("a file")


def _sweeps(folder: Path) -> None:
    for name, text in {
        "key": "method: lora\nranks: [4, 8]\n",
        "method": "rank: 2\nmethod: [lora, pisa]\n",
        "rate": "method: lora\nlr: fast\n",
        "tab": "method: lora\nrank:\t[4\n",
    }.items():
        (folder / f"{name}.yaml").write_text(text)
