"""The user's own adapter: measured exactly as PEFT builds it, known by its content, refused with a mend."""

from __future__ import annotations

import json
import pickle
from dataclasses import replace

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict
from safetensors.torch import load_file, save_file
from tiny_models import adapted, base_model
from tiny_text import byte_tokenizer, tiny_llama

from hessian_lr import methods
from hessian_lr.cli import main
from hessian_lr.errors import HessianLRError, RequestError
from hessian_lr.setting import Setting
from hessian_lr.sweep.run import run_key

FIELDS = {"peft_type": "LORA", "r": 2, "lora_alpha": 6, "target_modules": "all-linear"}


def written(folder, **changes):
    """A folder with a configuration alone."""
    folder.mkdir(exist_ok=True)
    (folder / "adapter_config.json").write_text(json.dumps(FIELDS | changes))
    return str(folder)


def trained(folder):
    """A folder with the weights of an adapter that has left its start, and the adapter."""
    model = adapted("llama", torch.float32, rank=3, alpha=5)
    model.save_pretrained(folder)
    return model, str(folder)


def same_parameters(left, right):
    pairs = list(zip(left.named_parameters(), right.named_parameters(), strict=True))
    return all(
        m == n and p.requires_grad == q.requires_grad and torch.equal(p, q) for (m, p), (n, q) in pairs
    )


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"use_rslora": True},
        {"use_dora": True, "target_modules": ["q_proj", "down_proj"]},
        {"init_lora_weights": "pissa"},
        {"init_lora_weights": False, "lora_dropout": 0.1},
        {"target_modules": r".*layers\.1\..*(up|gate)_proj", "rank_pattern": {"up_proj": 3}},
        {"target_modules": ["v_proj"], "layers_to_transform": [1], "bias": "lora_only"},
        {"modules_to_save": ["norm"]},
        {"target_modules": None},
    ],
)
def test_a_fresh_adapter_is_what_peft_makes_of_the_file(tmp_path, changes):
    setting = Setting(peft_config=written(tmp_path / "a", **changes), seed=7)
    got = methods.build(base_model("llama"), setting)
    torch.manual_seed(7)
    wanted = get_peft_model(base_model("llama"), LoraConfig(**FIELDS | changes, task_type="CAUSAL_LM"))
    assert same_parameters(got, wanted)


def test_trained_weights_are_what_peft_loads(tmp_path):
    model, folder = trained(tmp_path / "a")
    got = methods.build(base_model("llama"), Setting(peft_config=folder))
    loaded = PeftModel.from_pretrained(base_model("llama"), folder, is_trainable=True)
    assert same_parameters(got, model) and same_parameters(got, loaded)


@pytest.mark.parametrize(
    ("architecture", "target"), [("qwen2", "lm_head"), ("llama", "embed_tokens"), ("gpt2", "wte")]
)
def test_a_saved_adapter_of_the_head_or_the_embedding_is_what_peft_loads(tmp_path, architecture, target):
    fields = FIELDS | {"target_modules": [target], "task_type": "CAUSAL_LM"}
    model = get_peft_model(base_model(architecture), LoraConfig(**fields))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(float(parameter.requires_grad))
    model.save_pretrained(tmp_path / "a")
    setting = Setting(peft_config=str(tmp_path / "a"))
    methods.check(base_model(architecture), setting)
    got = methods.build(base_model(architecture), setting)
    loaded = PeftModel.from_pretrained(base_model(architecture), tmp_path / "a", is_trainable=True)
    assert same_parameters(got, model) and same_parameters(got, loaded)


def test_a_head_of_another_width_is_refused(tmp_path):
    model = get_peft_model(base_model("qwen2"), LoraConfig(**FIELDS | {"target_modules": ["lm_head"]}))
    model.save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "adapter_model.safetensors")
    (name,) = (name for name in tensors if "base_layer" in name)
    save_file(tensors | {name: torch.zeros(3, 4)}, tmp_path / "adapter_model.safetensors")
    with pytest.raises(RequestError, match=r"base_layer.weight is \(3, 4\), expected .*another model"):
        methods.check(base_model("qwen2"), Setting(peft_config=str(tmp_path)))


def test_the_setting_says_what_the_file_says(tmp_path):
    setting = Setting(peft_config=written(tmp_path / "a", target_modules=["v_proj", "q_proj"]))
    told = (setting.method, setting.rank, setting.alpha, setting.target_modules)
    assert told == ("peft-config", 2, 6.0, ("q_proj", "v_proj"))
    assert Setting.from_dict(json.loads(json.dumps(setting.to_dict()))) == setting
    assert Setting(peft_config=str(tmp_path / "a" / "adapter_config.json")).rank == 2
    assert replace(setting, seed=3).peft_config == setting.peft_config


def test_another_content_is_another_setting_and_another_run(tmp_path):
    folder = written(tmp_path / "a")
    first = Setting(peft_config=folder)
    written(tmp_path / "a", lora_dropout=0.1)
    second = Setting(peft_config=folder)
    (tmp_path / "a" / "adapter_model.safetensors").write_bytes(b"weights")
    third = Setting(peft_config=folder)
    assert len({one.key for one in (first, second, third)}) == 3
    assert len({run_key(one, 1e-3, "data", "model") for one in (first, second, third)}) == 3
    # A run is told by the content, wherever it lies.
    moved = Setting(peft_config=written(tmp_path / "b", lora_dropout=0.1))
    assert run_key(moved, 1e-3, "data", "model") == run_key(second, 1e-3, "data", "model")
    with pytest.raises(RequestError, match="has changed since this setting was made"):
        methods.build(base_model("llama"), first)


def test_settings_without_an_adapter_keep_the_keys_they_had():
    assert "peft_config" not in Setting().to_dict()


@pytest.mark.parametrize("module", ["attn.c_proj", "c_attn"])  # a square weight and another
def test_olora_is_refused_where_peft_would_make_another_model_of_it(tmp_path, module):
    setting = Setting(peft_config=written(tmp_path / "a", target_modules=[module], init_lora_weights="olora"))
    with pytest.raises(RequestError, match=rf"'olora' cannot adapt transformer\.h\.0.*{module}.*Conv1D"):
        methods.check(base_model("gpt2"), setting)
    methods.check(
        base_model("llama"), Setting(peft_config=written(tmp_path / "b", init_lora_weights="olora"))
    )


@pytest.mark.parametrize("start", ["pissa", "pissa_niter_4", "olora"])
def test_a_start_that_is_taken_out_of_a_tied_head_is_refused(tmp_path, start):
    fields = FIELDS | {"target_modules": ["lm_head"], "init_lora_weights": start}
    model, ids = base_model("llama"), torch.arange(8)[None]
    before = model(ids).logits
    made = get_peft_model(model, LoraConfig(**fields, task_type="CAUSAL_LM"))
    assert (made(ids).logits - before).abs().max() > 0.1  # what is refused
    with pytest.raises(RequestError, match=rf"'{start}' would make another model: lm_head shares"):
        methods.check(base_model("llama"), Setting(peft_config=written(tmp_path / "a", **fields)))
    plain = written(tmp_path / "b", **fields | {"init_lora_weights": "gaussian"})
    methods.check(base_model("llama"), Setting(peft_config=plain))
    methods.check(base_model("qwen2"), Setting(peft_config=str(tmp_path / "a")))  # not tied


def test_what_was_trained_from_such_a_start_is_taken(tmp_path):
    fields = FIELDS | {"target_modules": ["lm_head"], "init_lora_weights": "pissa"}
    made = get_peft_model(base_model("llama"), LoraConfig(**fields, task_type="CAUSAL_LM"))
    made.save_pretrained(tmp_path)
    setting = Setting(peft_config=str(tmp_path))
    methods.check(base_model("llama"), setting)
    assert same_parameters(methods.build(base_model("llama"), setting), made)


def test_weights_beside_a_start_that_was_drawn_are_refused(tmp_path):
    config = LoraConfig(**FIELDS | {"init_lora_weights": "pissa_niter_4"}, task_type="CAUSAL_LM")
    adapter = get_peft_model(base_model("llama"), config)
    adapter.peft_config["default"].init_lora_weights = True  # to save the start for the conversion below
    adapter.save_pretrained(tmp_path / "start")
    adapter.peft_config["default"].init_lora_weights = "pissa_niter_4"
    adapter.save_pretrained(tmp_path / "trained")
    with pytest.raises(RequestError, match=r"finds otherwise now.*path_initial_model_for_weight_conversion"):
        methods.check(base_model("llama"), Setting(peft_config=str(tmp_path / "trained")))
    # What the error asks for.
    adapter.save_pretrained(
        tmp_path / "converted", path_initial_model_for_weight_conversion=str(tmp_path / "start")
    )
    methods.check(base_model("llama"), Setting(peft_config=str(tmp_path / "converted")))
    alone = str(tmp_path / "trained" / "adapter_config.json")
    methods.check(base_model("llama"), Setting(peft_config=alone))


def bad_weights(folder):
    trained(folder)
    whole = (folder / "adapter_model.safetensors").read_bytes()
    (folder / "adapter_model.safetensors").write_bytes(whole[:100])


def other_model(folder):
    get_peft_model(base_model("gpt2"), LoraConfig(target_modules="all-linear")).save_pretrained(folder)


def wider_model(folder):
    model = tiny_llama()
    get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj"])).save_pretrained(folder)


def only_a_pickle(folder):
    written(folder)
    (folder / "adapter_model.bin").write_bytes(pickle.dumps({}))


def only_a_model(folder):
    base_model("llama").save_pretrained(folder)


# How the folder comes about, and what the error must say.
REFUSED = {
    "absent": (lambda folder: None, "there is no adapter"),
    "a model": (only_a_model, "it is a model's folder, which is for --model"),
    "empty": (lambda folder: folder.mkdir(), "has no adapter_config.json (found: nothing)"),
    "pickle": (only_a_pickle, "a pickle, which is never read here: save the adapter again with safe_ser"),
    "other kind": (lambda f: written(f, peft_type="LOHA"), "has peft_type 'LOHA'; expected 'LORA'"),
    "no rank": (lambda f: written(f, r=None), "must give r as a number, not None"),
    "targets": (lambda f: written(f, target_modules=3), "must give target_modules as text or a list"),
    "typo": (lambda f: written(f, lora_droput=0.1), "Did you mean 'lora_dropout'?"),
    "odd rank": (lambda f: written(f, init_lora_weights="orthogonal", r=3), "needs an even rank, and "),
    "no number": (lambda f: written(f, init_lora_weights="pissa_niter_x"), "needs a number of iterations"),
    "start from data": (lambda f: written(f, init_lora_weights="eva"), "init_lora_weights 'eva' starts from"),
    "start from a file": (lambda f: written(f, corda_config={"cache_file": "x"}), "corda_config is not supp"),
    "task": (lambda f: written(f, task_type="SEQ_CLS"), "is for the task SEQ_CLS; expected CAUSAL_LM"),
    "bad value": (
        lambda f: written(f, bias="some", r=-1),
        "rank must be a whole number of at least 1, not -1",
    ),
    "no module": (lambda f: written(f, target_modules=["qproj"]), "PEFT cannot put the adapter of"),
    "other model": (other_model, "PEFT cannot put the adapter of"),
    "other width": (wider_model, "the adapter belongs to another model"),
    "damaged": (bad_weights, "it is incomplete or damaged"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_an_adapter_that_cannot_be_measured_is_refused_by_name(tmp_path, name):
    make, message = REFUSED[name]
    folder = tmp_path / "a"
    make(folder)
    with pytest.raises(HessianLRError) as caught:
        methods.check(base_model("llama"), Setting(peft_config=str(folder)))
    assert message in str(caught.value)
    assert str(folder) in str(caught.value) or name == "bad value"
    assert caught.value.exit_status == (1 if name == "damaged" else 2)


def test_pickles_are_not_opened(tmp_path, monkeypatch):
    trained(tmp_path / "a")
    (tmp_path / "a" / "adapter_model.bin").write_bytes(b"not a pickle at all")
    monkeypatch.setattr("torch.load", lambda *a, **k: pytest.fail("a pickle was read"))
    built = methods.build(base_model("llama"), Setting(peft_config=str(tmp_path / "a")))
    stored = load_file(tmp_path / "a" / "adapter_model.safetensors")
    held = get_peft_model_state_dict(built)
    assert stored.keys() == held.keys() and all(torch.equal(held[key], stored[key]) for key in stored)


@pytest.fixture(scope="module")
def options(tmp_path_factory):
    root = tmp_path_factory.mktemp("own")
    tiny_llama(initializer_range=0.2).save_pretrained(root / "model")
    byte_tokenizer().save_pretrained(root / "model")
    rows = [{"prompt": f"{a}+{b}=", "response": str(a + b)} for a in range(8) for b in range(8)]
    (root / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return [
        *("--model", str(root / "model"), "--data", str(root / "rows.jsonl"), "--samples", "4"),
        *("--steps", "4", "--device", "cpu", "--dtype", "float32"),
    ]


def rows_of(capsys, *arguments):
    capsys.readouterr()
    status = main([*map(str, arguments), "--json", "-"])
    said = capsys.readouterr()
    assert status == 0, said.err
    return json.loads(said.out)


LAMBDAS = ("lambda_max", "lambda_upper", "residual", "parameters")


@pytest.mark.parametrize(
    ("changes", "method"),
    [({}, "lora"), ({"init_lora_weights": "pissa"}, "pissa"), ({"use_dora": True}, "dora")],
)
def test_spectrum_of_a_file_is_that_of_the_method_it_describes(capsys, options, tmp_path, changes, method):
    own = rows_of(capsys, "spectrum", *options, "--peft-config", written(tmp_path / "a", **changes))
    named = rows_of(capsys, "spectrum", *options, "--method", method, "--rank", 2, "--alpha", 6)
    assert own["setting"]["methods"] == ["peft-config"]
    assert own["setting"]["peft_config"]["path"] == str(tmp_path / "a")
    for name in LAMBDAS:
        assert own["results"][0][name] == named["results"][0][name]


def test_predict_takes_the_file(capsys, options, tmp_path):
    own = rows_of(capsys, "predict", *options, "--peft-config", written(tmp_path / "a"))
    named = rows_of(capsys, "predict", *options, "--rank", 2, "--alpha", 6)
    assert own["results"][0]["lr"] == named["results"][0]["lr"] > 0


def test_validate_takes_the_file_and_does_not_mix_its_runs_up(capsys, options, tmp_path):
    def validated():
        arguments = ("--lrs", "0.01", "--peft-config", tmp_path / "a", "--out", tmp_path / "out")
        (row,) = rows_of(capsys, "validate", *options, *arguments)["results"]
        return row, len(list((tmp_path / "out" / "runs").glob("*.json")))

    written(tmp_path / "a")
    first, one = validated()
    again, still_one = validated()
    assert again["runs"] == first["runs"] and first["method"] == "peft-config"
    written(tmp_path / "a", lora_alpha=12)
    arguments = ["--peft-config", tmp_path / "a", "--out", tmp_path / "out", "--lrs", "0.01"]
    assert main(["validate", *options, *arguments]) == 2
    assert "holds other results (alpha 6.0, now 12.0" in capsys.readouterr().err
    (tmp_path / "out" / "validate.json").unlink()
    other, two = validated()
    assert (one, still_one, two) == (1, 1, 2)
    assert other["lambda_max"] != first["lambda_max"] and other["runs"] != first["runs"]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--rank", "16"], "rank 16 contradicts {folder}, which says 2: leave --rank out"),
        (["--alpha", "2"], "alpha 2 contradicts {folder}, which says 6"),
        (["--target-modules", "q_proj"], "target_modules q_proj contradicts {folder}, which says all-linear"),
        (["--method", "pissa"], "the method 'pissa' contradicts {folder}, which is a method of its own"),
    ],
)
def test_options_that_contradict_the_file_are_refused(capsys, options, tmp_path, given, message):
    folder = written(tmp_path / "a")
    assert main(["predict", *options, "--peft-config", folder, *given]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message.format(folder=folder) in line


def test_options_that_agree_with_the_file_are_no_contradiction(capsys, options, tmp_path):
    folder = written(tmp_path / "a", target_modules=["v_proj", "q_proj"])
    agreed = ("--rank", 2, "--alpha", 6, "--target-modules", "q_proj,v_proj")
    assert rows_of(capsys, "predict", *options, "--peft-config", folder, *agreed)["results"][0]["lr"] > 0


def test_from_python_a_value_that_contradicts_the_file_is_refused(tmp_path):
    with pytest.raises(RequestError, match="rank 4 contradicts"):
        Setting(peft_config=written(tmp_path / "a"), rank=4)
