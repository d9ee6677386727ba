import errno
import json
import os
import sys
from pathlib import Path

import pytest
import safetensors.torch
import tiny_text as tiny
import torch
import transformers

from hessian_lr import hub, models, package
from hessian_lr.causal import looks_ahead
from hessian_lr.errors import HessianLRError, RequestError


@pytest.fixture
def saved(tmp_path):
    folder = tmp_path / "model"
    tiny.tiny_llama().save_pretrained(folder)
    tiny.byte_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(autouse=True)
def no_hub(monkeypatch):
    monkeypatch.setattr(hub, "reachable", lambda: False)


# A local folder


def test_a_folder_is_loaded_ready_to_be_adapted(saved):
    loaded = models.load(str(saved), device="cpu")
    for name, value in tiny.tiny_llama().state_dict().items():
        assert torch.equal(loaded.model.state_dict()[name], value)
    assert not loaded.model.training
    assert not loaded.model.config.use_cache
    assert not any(p.requires_grad for p in loaded.model.parameters())
    assert loaded.tokenizer.pad_token == "<pad>"
    assert loaded.name == str(saved)


def test_half_precision_files_become_float32(tmp_path):
    tiny.tiny_llama().to(torch.bfloat16).save_pretrained(tmp_path)
    tiny.byte_tokenizer().save_pretrained(tmp_path)
    model = models.load(str(tmp_path), device="cpu").model
    assert {p.dtype for p in model.parameters()} == {torch.float32}


def test_loading_changes_no_switch_of_the_libraries_and_prints_nothing(saved, capfd):
    from huggingface_hub.utils import are_progress_bars_disabled

    log = transformers.utils.logging

    def switches():
        return log.get_verbosity(), log.is_progress_bar_enabled(), are_progress_bars_disabled(), sys.stderr

    log.set_verbosity_info()
    before, state = switches(), torch.get_rng_state()
    try:
        models.load(str(saved), device="cpu")
        assert switches() == before
    finally:
        log.set_verbosity_warning()
    assert torch.equal(torch.get_rng_state(), state)
    assert capfd.readouterr() == ("", "")


def test_end_of_text_pads_where_there_is_no_padding_token(saved):
    tiny.byte_tokenizer(pad=None).save_pretrained(saved)
    tokenizer = models.load(str(saved), device="cpu").tokenizer
    assert tokenizer.pad_token_id == tokenizer.eos_token_id == 1


def test_a_tokenizer_without_either_is_refused(saved):
    tiny.byte_tokenizer(pad=None, eos=None).save_pretrained(saved)
    with pytest.raises(RequestError, match="neither a padding nor an end-of-text token"):
        models.load(str(saved), device="cpu")


def test_a_tokenizer_of_another_model_is_refused(saved):
    tiny.tiny_llama(vocab_size=100).save_pretrained(saved)
    with pytest.raises(RequestError, match="259 tokens but the model only 100 embeddings"):
        models.load(str(saved), device="cpu")


def test_a_folder_without_a_tokenizer_is_told_from_one_whose_tokenizer_cannot_be_read(saved):
    (saved / "tokenizer.json").write_text("{")
    with pytest.raises(HessianLRError, match="cannot read the tokenizer of ") as caught:
        models.load(str(saved), device="cpu")
    assert caught.value.exit_status == 1
    (saved / "tokenizer.json").unlink()
    expected = (
        r"has no tokenizer \(found: config.json, .*model.safetensors.*\)\. Expected tokenizer.json beside"
    )
    with pytest.raises(RequestError, match=expected):
        models.load(str(saved), device="cpu")


@pytest.mark.parametrize("value", [float("nan"), float("-inf")])
def test_a_weight_that_is_no_number_is_named(saved, value):
    model = tiny.tiny_llama()
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight[3, 5] = value
    model.save_pretrained(saved)
    with pytest.raises(HessianLRError, match=r"model\.layers\.1\.mlp\.up_proj\.weight has 1 NaN or infinite"):
        models.load(str(saved), device="cpu")


def test_a_truncated_file_of_weights_is_named_with_its_size(saved):
    weights = saved / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(HessianLRError, match=f"model.safetensors {weights.stat().st_size:,} bytes") as caught:
        models.load(str(saved), device="cpu")
    assert caught.value.exit_status == 1


@pytest.mark.parametrize(
    "error",
    [
        MemoryError("Cannot allocate memory (os error 12)"),
        RuntimeError("unable to mmap 16801976 bytes from file <model>: Cannot allocate memory (12)"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:124] DefaultCPUAllocator: can't allocate memory"),
        OSError(errno.ENOMEM, "Cannot allocate memory"),
    ],
)
@pytest.mark.parametrize("kind", ["folder", "gguf", "alias"])
def test_memory_that_ran_out_is_not_put_down_to_the_files(saved, tmp_path, monkeypatch, error, kind):
    # The errors as safetensors, torch and the system raised them under a limit on the process's memory.
    def short(*_, **__):
        raise error

    monkeypatch.setattr(transformers.AutoModelForCausalLM, "from_pretrained", short)
    file = tmp_path / "some.gguf"
    file.write_bytes(b"GGUF")
    monkeypatch.setattr(models.alias, "_make", lambda _: models.gguf.read(file))
    monkeypatch.setenv("HESSIAN_LR_CACHE", str(tmp_path / "cache"))
    ref = {"folder": saved, "gguf": file, "alias": "smollm2-135m"}[kind]
    with pytest.raises(HessianLRError, match=f"^out of memory while loading {ref}") as caught:
        models.load(str(ref), device="cpu")
    assert caught.value.exit_status == 1
    assert "again" not in str(caught.value)


def save_bert(folder, **changes):
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = transformers.BertConfig(vocab_size=len(tiny.VOCABULARY), **sizes, **changes)
    tiny.save(transformers.BertLMHeadModel(config), folder)


def test_a_model_that_sees_what_it_is_to_predict_is_refused(tmp_path):
    save_bert(tmp_path / "both ways")
    with pytest.raises(RequestError, match="BertLMHeadModel that sees the tokens it is to predict"):
        models.load(str(tmp_path / "both ways"), device="cpu")
    # What the error asks for.
    save_bert(tmp_path / "decoder", is_decoder=True)
    models.load(str(tmp_path / "decoder"), device="cpu")


@pytest.mark.parametrize(
    "name", ["MambaConfig", "MixtralConfig", "Gemma2Config", "BloomConfig", "CTRLConfig"]
)
def test_no_other_model_is_taken_for_one(name):
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "vocab_size": 32}
    more = {
        "MixtralConfig": {"num_key_value_heads": 1},
        "Gemma2Config": {"head_dim": 8, "num_key_value_heads": 1},
    }
    config = getattr(transformers, name)(**sizes, **more.get(name, {}), pad_token_id=0)
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    assert not looks_ahead(model)


def test_of_a_model_that_needs_more_than_tokens_it_is_not_told():
    class Picky(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.embedding = torch.nn.Embedding(4, 2)

        def get_input_embeddings(self):
            return self.embedding

        def forward(self, input_ids, pixels):
            raise AssertionError("never called without pixels")

    assert not looks_ahead(Picky())


def test_absent_weights_are_not_replaced_by_random_ones(saved):
    model = tiny.tiny_llama()
    del model.model.layers[1].mlp.up_proj
    model.save_pretrained(saved)
    with pytest.raises(HessianLRError, match=r"lacks 1 weights .*model\.layers\.1\.mlp\.up_proj\.weight"):
        models.load(str(saved), device="cpu")


def test_pickled_weights_are_not_read(saved):
    (saved / "model.safetensors").unlink()
    torch.save(tiny.tiny_llama().state_dict(), saved / "pytorch_model.bin")
    with pytest.raises(HessianLRError, match="Only safetensors are read"):
        models.load(str(saved), device="cpu")


@pytest.mark.parametrize(
    ("file", "message"),
    [("weights.txt", r"no config\.json.*found: weights\.txt"), ("adapter_config.json", "is a PEFT adapter")],
)
def test_a_folder_that_is_no_model_is_refused(tmp_path, file, message):
    (tmp_path / file).write_text("{}")
    with pytest.raises(RequestError, match=message):
        models.load(str(tmp_path), device="cpu")


# Names that lead nowhere


@pytest.mark.parametrize(
    ("ref", "message"),
    [
        ("smolm2-135m", "Did you mean 'smollm2-135m'"),
        ("./nowhere", "there is no model folder"),
        ("/no/such/folder", "there is no model folder"),
        ("nowhere/model.gguf", "there is no GGUF file"),
    ],
)
def test_a_wrong_name_is_refused_without_asking_the_hub(monkeypatch, ref, message):
    monkeypatch.setattr(hub, "reachable", lambda: pytest.fail("the hub was asked"))
    with pytest.raises(RequestError, match=message):
        models.load(ref, device="cpu")


def test_a_hub_id_without_a_hub_is_failed_work_with_the_mends():
    with pytest.raises(
        HessianLRError, match=r"cannot be reached\. Did you mean 'smollm2-135m'\? Connect"
    ) as caught:
        models.load("nobody/SmolLM2-135M", device="cpu")
    assert caught.value.exit_status == 1


# Fingerprint, devices, precision, cache


def test_the_fingerprint_tells_checkpoints_apart():
    model, same = tiny.tiny_llama(), tiny.tiny_llama()
    print_ = models.fingerprint(model)
    assert models.fingerprint(same) == print_
    with torch.no_grad():
        same.model.norm.weight[7] += 1e-6
    assert models.fingerprint(same) != print_
    assert models.fingerprint(tiny.tiny_llama(tie_word_embeddings=True)) != print_


@pytest.mark.parametrize(
    ("name", "value"), [("rope_theta", 5e5), ("hidden_act", "relu"), ("rms_norm_eps", 1e-2)]
)
def test_the_same_weights_under_another_configuration_are_another_model(saved, name, value):
    before = models.load(str(saved), device="cpu").fingerprint
    config = json.loads((saved / "config.json").read_text())
    (config["rope_parameters"] if name == "rope_theta" else config)[name] = value
    (saved / "config.json").write_text(json.dumps(config))
    assert models.load(str(saved), device="cpu").fingerprint != before


def test_weights_of_a_layer_that_the_configuration_does_not_count_are_named(saved):
    config = json.loads((saved / "config.json").read_text())
    config["num_hidden_layers"] -= 1
    (saved / "config.json").write_text(json.dumps(config))
    with pytest.raises(
        HessianLRError, match=r"model\.layers\.\d+, a layer that its config\.json does not count"
    ):
        models.load(str(saved), device="cpu")


def test_weights_of_parts_that_no_causal_model_has_are_left_out(saved):
    """Heads and towers of another kind: transformers leaves them out."""
    weights = safetensors.torch.load_file(saved / "model.safetensors")
    before = models.load(str(saved), device="cpu").fingerprint
    weights |= {"vision.layers.0.weight": torch.ones(2), "model.layers.7.eh_proj.weight": torch.ones(2)}
    safetensors.torch.save_file(weights, saved / "model.safetensors", metadata={"format": "pt"})
    assert models.load(str(saved), device="cpu").fingerprint == before


def test_an_adapter_beside_the_model_is_told_where_it_belongs(saved):
    (saved / "adapter_config.json").write_text("{}")
    with pytest.raises(RequestError, match=r"holds a model and an adapter.*--peft-config"):
        models.load(str(saved), device="cpu")


def test_one_trained_token_makes_another_model():
    model, other = tiny.tiny_llama(), tiny.tiny_llama()
    with torch.no_grad():
        other.model.embed_tokens.weight[42] += 3
    assert models.fingerprint(model) != models.fingerprint(other)


def test_where_and_by_what_version_a_model_was_saved_makes_no_other_model(saved, tmp_path):
    before = models.load(str(saved), device="cpu").fingerprint
    config = json.loads((saved / "config.json").read_text())
    config |= {"transformers_version": "4.0.0", "use_cache": False, "dtype": "float16", "eos_token_id": 1}
    del config["attention_bias"]  # as written by a version that did not have it yet: it is at its default
    (saved / "config.json").write_text(json.dumps(config))
    moved = saved.rename(tmp_path / "moved")
    assert models.load(str(moved), device="cpu").fingerprint == before


def test_the_cache_folder_follows_the_environment(monkeypatch):
    monkeypatch.setenv("HESSIAN_LR_CACHE", "~/elsewhere")
    assert package.cache_folder() == Path(os.path.expanduser("~/elsewhere"))
    monkeypatch.delenv("HESSIAN_LR_CACHE")
    assert "hessian-lr" in str(package.cache_folder())
