import csv
import json
import random

import datasets
import pyarrow
import pyarrow.parquet
import pytest
import tiny_text as tiny
import torch

from hessian_lr import data, hub
from hessian_lr.data import sources, task_data, tasks
from hessian_lr.data.encode import Encoder
from hessian_lr.errors import HessianLRError, RequestError

TALK = [
    {"role": "user", "content": "hi"},
    {"role": "assistant", "content": "yes?"},
    {"role": "user", "content": "2+2"},
    {"role": "assistant", "content": "4"},
]

WITHOUT = (
    "Below is an instruction that describes a task. "
    "Write a response that appropriately completes the request.\n\n### Instruction:\n"
)
WITH_INPUT = WITHOUT.replace(" a task.", " a task, paired with an input that provides further context.")


def learned(tokenizer, example):
    return tokenizer.decode([label for label in example.labels if label != -100])


def write_lines(path, rows):
    path.write_text("".join(row if isinstance(row, str) else json.dumps(row) + "\n" for row in rows))
    return str(path)


def numbered(count):
    return [{"prompt": f"question {i}", "response": f"answer {i}"} for i in range(count)]


# The built-in family


def test_held_out_problems_come_from_templates_never_trained_on():
    rows = tasks.generate("math")
    assert (len(rows.train), len(rows.heldout)) == (2_000, 34)
    trained, held = set(rows.train_templates), set(rows.heldout_templates)
    assert not trained & held
    assert (len(trained), len(held)) == (68, 17)
    counts = [rows.heldout_templates.count(template) for template in held]
    assert max(counts) - min(counts) <= 1
    assert not set(rows.train) & set(rows.heldout)


def test_the_recorded_template_is_the_one_a_row_was_made_from():
    # Oracle: a template's own generator. Its fixed words are what two of its texts have in common.
    from reasoning_gym.arithmetic.gsm_symbolic import generators_00_49, generators_50_99

    rows = tasks.generate("math")
    made = [*zip(rows.heldout_templates, rows.heldout, strict=True)]
    for template, (question, _) in made[:17]:
        module = generators_00_49 if template < 50 else generators_50_99
        make = getattr(module, f"generate_{template}")
        fixed = set.intersection(*(set(make(random.Random(s), 1.0)["question"].split()) for s in range(40)))
        assert len(fixed) > 4
        assert fixed <= set(question.split())


def test_the_math_rows_are_the_same_on_every_call_and_leave_the_random_state():
    tokenizer = tiny.byte_tokenizer()
    before = random.getstate(), torch.get_rng_state()
    first, second = (data.load("math", tokenizer, max_length=2_000) for _ in range(2))
    assert first == second
    assert not first.notes
    assert random.getstate() == before[0]
    assert torch.equal(torch.get_rng_state(), before[1])


def test_a_long_value_of_csv_costs_its_own_row_at_most(tmp_path):
    before = csv.field_size_limit()
    path = tmp_path / "rows.csv"
    path.write_text(
        "prompt,response\n" + "".join(f"q{i},{'a' * (1 + 200_000 * (i == 1))}\n" for i in range(3))
    )
    loaded = data.load(str(path), tiny.byte_tokenizer())
    assert len(loaded.train) + len(loaded.heldout) == 3 and "1 rows were longer" in "".join(loaded.notes)
    assert csv.field_size_limit() == before


def test_a_built_in_family_has_no_columns_to_choose():
    with pytest.raises(RequestError, match="fields"):
        data.load("math", tiny.byte_tokenizer(), fields=("a", "b"))


def test_a_length_that_leaves_no_answer_is_refused():
    with pytest.raises(RequestError, match="max_length 8"):
        data.load("math", tiny.byte_tokenizer(), max_length=8)


# Files


FILES = ["rows.jsonl", "rows.json", "data.json", "lines.json", "rows.parquet", "rows.csv"]
FORMS = [*FILES, "saved", "split", "shards", "copied"]


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_file_gives_the_same_examples(tmp_path, form):
    rows, path = numbered(12), tmp_path / form
    if form == "rows.parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    elif form == "rows.csv":
        with path.open("w", newline="") as handle:
            table = csv.DictWriter(handle, rows[0])
            table.writeheader()
            table.writerows(rows)
    elif form in ("saved", "split"):
        whole = datasets.Dataset.from_list(rows)
        (whole if form == "saved" else datasets.DatasetDict(train=whole)).save_to_disk(path)
    elif form == "shards":
        path.mkdir()
        for part in (0, 6):
            write_lines(path / f"part-{part}.jsonl", rows[part : part + 6])
    elif form == "copied":  # as a hub dataset's repository is, with other splits beside
        (path / "data").mkdir(parents=True)
        for split, its in (("train-0", rows[:6]), ("train-1", rows[6:]), ("test-0", numbered(13)[12:])):
            pyarrow.parquet.write_table(pyarrow.Table.from_pylist(its), path / f"data/{split}.parquet")
    elif form in ("rows.json", "data.json"):
        path.write_text(json.dumps(rows if form == "rows.json" else {"data": rows}))
    else:
        write_lines(path, rows)
    tokenizer = tiny.byte_tokenizer()
    loaded = data.load(str(path), tokenizer)
    texts = {tokenizer.decode(row.input_ids) for row in (*loaded.train, *loaded.heldout)}
    assert texts == {f"question {i}\nanswer {i}</s>" for i in range(12)}
    assert (len(loaded.train), len(loaded.heldout)) == (11, 1)


@pytest.mark.parametrize(
    ("row", "text"),
    [
        ({"prompt": "p", "completion": "c"}, "p\nc"),
        # Alpaca's prompt, with and without an input.
        (
            {"instruction": "i", "input": "x", "output": "o"},
            f"{WITH_INPUT}i\n\n### Input:\nx\n\n### Response:\no",
        ),
        ({"instruction": "i", "input": "", "output": "o"}, f"{WITHOUT}i\n\n### Response:\no"),
        ({"instruction": "i", "output": "o"}, f"{WITHOUT}i\n\n### Response:\no"),
        # commonsense_15k: the answer alone stands in a column of its own, and is not what is learned.
        (
            {"instruction": "i", "input": "", "output": "the correct answer is true", "answer": "true"},
            f"{WITHOUT}i\n\n### Response:\nthe correct answer is true",
        ),
        # MetaMathQA
        ({"type": "GSM_Rephrased", "query": "q", "original_question": "o", "response": "r"}, "q\nr"),
        # CodeFeedback, and its Python part as instructions
        ({"query": "q", "answer": "def f(): {}", "resource": "x", "lang": "python"}, "q\ndef f(): {}"),
        ({"instruction": "{i}", "output": "o", "type": "python"}, f"{WITHOUT}{{i}}\n\n### Response:\no"),
        ({"question": "q", "answer": "a", "id": 3}, "q\na"),
        ({"query": "q", "response": "r"}, "q\nr"),
        ({"conversations": [{"from": "human", "value": "h"}, {"from": "gpt", "value": "g"}]}, None),
        ({"messages": [{"role": "user", "content": "h"}, {"role": "assistant", "content": "g"}]}, None),
    ],
)
def test_the_usual_columns_are_found(tmp_path, row, text):
    # A second row, so that there is something to hold out.
    other = {
        key: value + "!" if isinstance(value, str) else [*value, *value][:4]
        for key, value in row.items()
        if key != "id"
    }
    tokenizer = tiny.byte_tokenizer(chat_template=tiny.CHAT)
    loaded = data.load(write_lines(tmp_path / "rows.jsonl", [row, other]), tokenizer)
    texts = [tokenizer.decode(e.input_ids) for e in (*loaded.train, *loaded.heldout)]
    assert (f"{text}</s>" if text else "<s>user:h</s><s>assistant:g</s>") in texts


def test_named_columns_win_and_one_name_is_a_chat(tmp_path):
    rows = [
        {"prompt": "no", "response": "no", "q": f"q{i}", "a": "a", "talk": [*TALK, TALK[i]]} for i in (0, 1)
    ]
    path, tokenizer = write_lines(tmp_path / "rows.jsonl", rows), tiny.byte_tokenizer(chat_template=tiny.CHAT)
    pairs = data.load(path, tokenizer, fields=("q", "a"))
    assert {tokenizer.decode(e.input_ids) for e in (*pairs.train, *pairs.heldout)} == {
        "q0\na</s>",
        "q1\na</s>",
    }
    chats = data.load(path, tokenizer, fields=("talk",))
    assert learned(tokenizer, (*chats.train, *chats.heldout)[0]).startswith("yes?</s>4</s>")


def test_instructions_named_as_columns_are_trained_on_as_they_are(tmp_path):
    rows = [{"instruction": f"i{n}", "input": "x", "output": "o"} for n in (0, 1)]
    path, tokenizer = write_lines(tmp_path / "rows.jsonl", rows), tiny.byte_tokenizer()
    loaded = data.load(path, tokenizer, fields=("instruction", "output"))
    texts = {tokenizer.decode(e.input_ids) for e in (*loaded.train, *loaded.heldout)}
    assert texts == {"i0\no</s>", "i1\no</s>"}


@pytest.mark.parametrize(("empty", "reason"), [(" ", "an empty prompt"), (None, "not text")])
def test_an_alpaca_row_without_an_instruction_is_left_out(tmp_path, empty, reason):
    rows = [{"instruction": f"i{n}", "input": "x", "output": "o"} for n in range(3)]
    rows[1]["instruction"] = empty
    loaded = data.load(write_lines(tmp_path / "rows.jsonl", rows), tiny.byte_tokenizer())
    assert len(loaded.train) + len(loaded.heldout) == 2
    assert reason in loaded.notes[0]
    assert "(row 2)" in loaded.notes[0]


def test_bad_rows_are_left_out_and_named(tmp_path):
    good = numbered(9)
    rows = [
        *good[:2],
        "{not json\n",  # line 3
        {"prompt": "p", "response": ""},  # 4
        "\n",  # a blank line is no row
        "[1, 2]\n",  # 6
        {"prompt": "p", "response": "  "},  # 7
        {"prompt": "only"},  # 8
        *good[2:],
    ]
    loaded = data.load(write_lines(tmp_path / "rows.jsonl", rows), tiny.byte_tokenizer())
    assert len(loaded.train) + len(loaded.heldout) == 9
    note, few = loaded.notes
    assert few.startswith("of 9 distinct rows only one is held out")
    assert note == (
        "5 of 14 rows left out: 1 with invalid JSON (row 3); 2 with an empty response (rows 4, 7); "
        "1 with something that is not an object (row 6); 1 with a response that is not text (null) (row 8)"
    )


def test_text_that_is_not_utf8_is_one_bad_row(tmp_path):
    path = tmp_path / "rows.jsonl"
    write_lines(path, numbered(3))
    path.write_bytes(b'{"prompt": "\xff", "response": "r"}\n' + path.read_bytes())
    loaded = data.load(str(path), tiny.byte_tokenizer())
    assert len(loaded.train) + len(loaded.heldout) == 3
    assert "not UTF-8 (row 1)" in loaded.notes[0]


def test_duplicates_never_stand_on_both_sides(tmp_path):
    path = write_lines(tmp_path / "rows.jsonl", numbered(40) * 3)
    loaded = data.load(path, tiny.byte_tokenizer())
    assert len(loaded.heldout) == len(set(loaded.heldout)) == 4  # a tenth of the 40 distinct rows
    assert not set(loaded.train) & set(loaded.heldout)
    assert len(loaded.train) == 36 * 3


def test_rows_that_become_one_example_by_the_cut_never_stand_on_both_sides(tmp_path):
    rows = [{"prompt": "p", "response": f"same beginning{i}"} for i in range(30)] + numbered(2)
    loaded = data.load(write_lines(tmp_path / "rows.jsonl", rows), tiny.byte_tokenizer(), max_length=12)
    assert not set(loaded.train) & set(loaded.heldout)
    assert loaded.notes == ("32 rows were longer than 12 tokens and were cut there",)


def test_the_order_of_a_file_does_not_matter(tmp_path):
    """Nor do its first and last rows, on which curvature is measured, come from one end of it."""
    rows = numbered(50) + numbered(20)  # some of them twice
    first = data.load(write_lines(tmp_path / "a.jsonl", rows), tiny.byte_tokenizer())
    random.Random(0).shuffle(rows)
    second = data.load(write_lines(tmp_path / "b.jsonl", rows), tiny.byte_tokenizer())
    assert first == second
    ends = sorted(rows, key=lambda row: row["prompt"])[:10], sorted(rows, key=lambda row: row["prompt"])[-10:]
    sorted_file = data.load(write_lines(tmp_path / "c.jsonl", sorted(rows, key=str)), tiny.byte_tokenizer())
    encoder = Encoder(tiny.byte_tokenizer(), 512)
    for end in ends:
        examples = {encoder.pair(row["prompt"], row["response"]) for row in end}
        assert not set(sorted_file.train[-8:]) <= examples and not set(sorted_file.train[:8]) <= examples


def test_at_most_64_rows_are_held_out_and_a_large_file_is_thinned_evenly(tmp_path, monkeypatch):
    monkeypatch.setattr(task_data, "ROWS_MOST", 800)
    loaded = data.load(write_lines(tmp_path / "a.jsonl", numbered(2_001)), tiny.byte_tokenizer())
    assert len(loaded.heldout) == 64
    assert len(loaded.train) + 64 == 667  # every third
    assert loaded.notes == ("667 of 2,001 rows are used, evenly spaced",)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", "", "has no rows"),
        ("a.jsonl", "nonsense\n", r"0 distinct usable rows.*1 of 1 rows left out: 1 with invalid JSON"),
        ("a.jsonl", '{"prompt": "p", "response": ""}\n' * 2, "2 with an empty response"),
        ("a.jsonl", '{"prompt": "p", "response": "r"}\n' * 5, "1 distinct usable rows"),
        ("a.jsonl", '{"text": "t"}\n', r"Columns found: text\. Looked for prompt\+response"),
        ("a.json", '[{"prompt": ', "not valid JSON"),
        ("a.json", '{"rows": []}', "must hold a list"),
        ("a.parquet", "PAR1 and nothing", "not a readable Parquet file"),
        ("a.csv", 'prompt,response\n"1+1=,2\n', "not a readable CSV file in UTF-8"),
        ("a.csv", "prompt,prompt\n1,2\n", "two columns have one name"),
        ("a.txt", "p,r", "expected a name that ends in"),
    ],
)
def test_a_file_without_usable_rows_says_what_was_found(tmp_path, name, content, message):
    (tmp_path / name).write_text(content)
    with pytest.raises(RequestError, match=message):
        data.load(str(tmp_path / name), tiny.byte_tokenizer())


def test_a_wrong_column_is_named_with_the_nearest(tmp_path):
    path = write_lines(tmp_path / "a.jsonl", numbered(3))
    with pytest.raises(
        RequestError, match=r"no column 'reponse'\. Did you mean 'response'\?.*prompt, response"
    ):
        data.load(path, tiny.byte_tokenizer(), fields=("prompt", "reponse"))


# Names that lead nowhere


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("mth", "unknown task 'mth'. Did you mean 'math'"),
        ("nowhere/rows.jsonl", "there is no file nowhere/rows.jsonl"),
        ("/nowhere/at/all", "there is no file /nowhere/at/all"),
        (".", "is a folder"),
    ],
)
def test_a_wrong_name_is_refused_without_asking_the_hub(monkeypatch, tmp_path, name, message):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(hub, "reachable", lambda: pytest.fail("the hub was asked"))
    with pytest.raises(RequestError, match=message):
        data.load(name, tiny.byte_tokenizer())


def test_a_models_or_an_adapters_folder_is_no_data(tmp_path):
    for name in ("config.json", "adapter_config.json"):
        folder = tmp_path / name.partition(".")[0]
        folder.mkdir()
        (folder / name).write_text('{"prompt": "a", "response": "b"}')
        with pytest.raises(RequestError, match="is a folder, and no dataset"):
            data.load(str(folder), tiny.byte_tokenizer())


def test_a_hub_dataset_without_a_hub_is_failed_work_and_leaves_the_library_as_it_was(monkeypatch):
    monkeypatch.setattr(hub, "reachable", lambda: False)
    before = datasets.config.HF_HUB_OFFLINE, datasets.is_progress_bar_enabled()
    with pytest.raises(HessianLRError, match="the hub cannot be reached") as caught:
        data.load("nobody/nothing-of-this-name", tiny.byte_tokenizer())
    assert caught.value.exit_status == 1
    assert (datasets.config.HF_HUB_OFFLINE, datasets.is_progress_bar_enabled()) == before


def test_rows_of_csv_keep_line_breaks_and_are_counted_by_line(tmp_path):
    path = tmp_path / "rows.csv"
    path.write_text('\ufeffprompt,response\n"a, ""b""\nc",1\n\nd\ne,f,g\nh,2\n', encoding="utf-8")
    rows, total = sources.read(str(path), 10)
    assert [number for number, _ in rows] == [3, 5, 6, 7] and total == 4
    assert rows[0][1] == {"prompt": 'a, "b"\nc', "response": "1"} and rows[3][1]["response"] == "2"
    assert all("than the 2 columns" in str(row) for _, row in rows[1:3])


@pytest.mark.parametrize(("name", "configuration"), [("owner/name", None), ("owner/name:main", "main")])
def test_a_hub_dataset_is_read_from_its_train_split(monkeypatch, name, configuration):
    asked = []

    def answer(source, chosen, split):
        asked.append((source, chosen, split))
        return datasets.Dataset.from_list(numbered(5))

    monkeypatch.setattr(hub, "reachable", lambda: True)
    monkeypatch.setattr(datasets, "load_dataset", answer)
    rows, total = sources.read(name, 2)
    assert asked == [("owner/name", configuration, "train")]
    assert total == 5
    assert rows == [(1, numbered(5)[0]), (4, numbered(5)[3])]
