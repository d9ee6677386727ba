"""Exact match on math: which number counts as the answer, and who gets it right."""

from decimal import Decimal
from types import SimpleNamespace

import pytest
import torch
from tiny_text import byte_tokenizer, tiny_llama

from experiments.paper import accuracy
from hessian_lr.data.encode import Encoder

TOKENIZER = byte_tokenizer()
ENCODER = Encoder(TOKENIZER, 64)
ROWS = [
    ENCODER.pair(f"What is {a} and {b}?", f"{a}+{b}={a + b}\n#### {a + b}")
    for a, b in ((1, 2), (30, 4), (500, 6))
]


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("so 3\n#### 687", 687),
        ("#### 1\n#### 1,234.50", Decimal("1234.5")),
        ("#### -7.", -7),
        ("####  12 eggs", 12),
        ("687", None),
        ("####", None),
        ("#### 1.2.3", None),
    ],
)
def test_the_answer_is_the_number_after_the_last_marks(text, number):
    assert accuracy.final_answer(text) == number


class Knows:
    """A model that writes what ``answer`` makes of the prompt; it sees only prompts, padded on the left."""

    def __init__(self, answer):
        self.answer = answer

    def parameters(self):
        return iter([torch.zeros(1)])

    def generate(self, input_ids, attention_mask, max_new_tokens, do_sample, eos_token_id, pad_token_id, **_):
        assert not do_sample
        rows = []
        for ids, mask in zip(input_ids, attention_mask, strict=True):
            assert mask.tolist() == sorted(mask.tolist()) and (ids[mask == 0] == pad_token_id).all()
            text = TOKENIZER.decode(ids[mask == 1])
            assert text.startswith("What is ") and text.endswith("?\n") and "#" not in text
            made = [*TOKENIZER(self.answer(text))["input_ids"], eos_token_id][:max_new_tokens]
            rows.append([*ids.tolist(), *made, *[pad_token_id] * (max_new_tokens - len(made))])
        return torch.tensor(rows)


def added(text):
    first, second = text.removeprefix("What is ").removesuffix("?\n").split(" and ")
    return int(first) + int(second)


@pytest.mark.parametrize(
    ("answer", "right"),
    [
        (lambda text: f"surely\n#### {added(text)}.0", [True, True, True]),
        (lambda text: f"#### {added(text) if '30' in text else 0}", [False, True, False]),
        (lambda text: f"{added(text)}", [False, False, False]),
    ],
)
def test_only_a_right_final_number_counts(answer, right, monkeypatch):
    monkeypatch.setattr(accuracy, "_BATCH", 2)
    assert accuracy.exact_match(Knows(answer), TOKENIZER, ROWS) == right


def test_a_model_of_random_weights_gets_none_right():
    model = tiny_llama().eval()
    model.config.use_cache = False
    assert accuracy.exact_match(model, TOKENIZER, ROWS) == [False, False, False]


def test_what_is_finished_is_not_done_again(tmp_path, monkeypatch, capsys):
    settings = {"a": (accuracy.Setting(rank=2), 1e-3), "b": (accuracy.Setting(rank=4), 2e-3)}
    loaded = SimpleNamespace(model="base", tokenizer=SimpleNamespace(pad_token_id=0))
    task = SimpleNamespace(train=(), heldout=ROWS)
    trained = []
    monkeypatch.setattr(accuracy, "OUT", tmp_path)
    monkeypatch.setattr(accuracy, "settings", lambda: settings)
    monkeypatch.setattr(accuracy.models, "load", lambda *_: loaded)
    monkeypatch.setattr(accuracy.data, "load", lambda *_, **__: task)
    monkeypatch.setattr(accuracy, "adapted", lambda *_: torch.nn.Linear(1, 1))
    monkeypatch.setattr(accuracy, "fit", lambda model, rows, setting, lr, **_: trained.append(lr))
    monkeypatch.setattr(accuracy, "exact_match", lambda *_: [True, False, True])
    accuracy.main()
    accuracy.main()
    assert trained == [1e-3, 2e-3]
    assert capsys.readouterr().out.count("2 of 3 right") == 6
    assert accuracy.read_json(tmp_path / "b.json")["right"] == 2


def test_the_committed_tables_name_settings_of_the_real_model():
    found = accuracy.settings()
    assert found and all(setting.model == "smollm2-135m" and lr > 0 for setting, lr in found.values())
