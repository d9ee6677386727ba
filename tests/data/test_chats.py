"""All that a chat says reaches the template: tools, tool calls, reasoning, a system column."""

import datetime
import json
from types import SimpleNamespace

import pyarrow
import pyarrow.parquet
import pytest
import tiny_text as tiny

from hessian_lr import data
from hessian_lr.data.encode import BadRow, Encoder

# In what matters here the templates of models that call tools and reason are like this one.
TOOLS = (
    "{% if tools %}<s>tools:{{ tools | tojson }}</s>{% endif %}"
    "{% for m in messages %}<s>{{ m['role'] }}:"
    "{% if m.reasoning_content %}<think>{{ m.reasoning_content }}</think>{% endif %}{{ m['content'] }}"
    "{% for c in m.tool_calls or [] %}<call>{{ c.function | tojson }}</call>{% endfor %}</s>{% endfor %}"
    "{% if add_generation_prompt %}<s>assistant:{% endif %}"
)
WEATHER = {"type": "function", "function": {"name": "weather", "parameters": {}}}


def asked(city, **changes):
    """A row in which the assistant thinks, calls a tool, and answers."""
    call = {"type": "function", "function": {"name": "weather", "arguments": {"city": city}}}
    turn = {"role": "assistant", "content": "", "reasoning_content": "a tool", "tool_calls": [call]}
    messages = [
        {"role": "user", "content": f"{city}?"},
        turn | changes,
        {"role": "tool", "content": "12 C"},
        {"role": "assistant", "content": "12."},
    ]
    return {"messages": messages, "tools": [WEATHER]}


def loaded(path, rows, template=TOOLS, fields=None):
    """The rows' texts, what is learned of each, and the notes."""
    tokenizer = tiny.byte_tokenizer(chat_template=template)
    if path.suffix == ".parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    else:
        tiny.write_rows(path, rows)
    found = data.load(str(path), tokenizer, fields=fields)
    examples = [*found.train, *found.heldout]
    texts = {tokenizer.decode(one.input_ids) for one in examples}
    learned = {tokenizer.decode([label for label in one.labels if label != -100]) for one in examples}
    return texts, learned, tuple(note for note in found.notes if "held out" not in note)


@pytest.mark.parametrize("form", ["rows.jsonl", "rows.parquet", "tools as text.jsonl"])
def test_tools_calls_and_reasoning_are_what_the_template_makes_of_them(tmp_path, form):
    rows = [asked("Rome"), asked("Bonn")]
    stored = [row | {"tools": json.dumps(row["tools"])} if "text" in form else row for row in rows]
    if form.endswith("parquet"):  # which cannot hold an object without keys
        for row in rows:
            row["tools"] = [{"type": "function", "function": {"name": "weather"}}]
    texts, learned, notes = loaded(tmp_path / form, stored)
    # Oracle: the library's own rendering of the row.
    template = tiny.byte_tokenizer(chat_template=TOOLS).apply_chat_template
    assert texts == {template(row["messages"], tools=row["tools"], tokenize=False) for row in rows}
    call = '<think>a tool</think><call>{"name": "weather", "arguments": {"city": "Rome"}}</call></s>12.</s>'
    assert learned == {call, call.replace("Rome", "Bonn")}
    assert not notes


def test_a_content_in_parts_is_their_text(tmp_path):
    rows = [asked("Rome", content="So: 12."), asked("Bonn", content="So: 12.")]
    parts = [{"type": "text", "text": "So: "}, {"type": "text", "text": "12."}]
    in_parts = [asked("Rome", content=parts), asked("Bonn", content=parts)]
    assert loaded(tmp_path / "a.jsonl", in_parts) == loaded(tmp_path / "b.jsonl", rows)
    picture = asked("Ulm", content=[{"type": "image_url", "image_url": {"url": "x"}}])
    _, _, notes = loaded(tmp_path / "c.jsonl", [*rows, picture])
    assert "1 with a message with a part of its content that is not text (image_url) (row 3)" in notes[0]


def test_prompts_and_responses_of_messages_have_tools_too(tmp_path):
    chats = [asked("Rome"), asked("Bonn")]
    pairs = [
        {"prompt": r["messages"][:3], "completion": r["messages"][3:], "tools": r["tools"]} for r in chats
    ]
    texts, learned, _ = loaded(tmp_path / "pairs.jsonl", pairs)
    assert texts == loaded(tmp_path / "chats.jsonl", chats)[0] and learned == {"12.</s>"}


def test_a_turn_that_only_calls_a_tool_needs_no_content(tmp_path):
    rows = [asked("Rome", content=None), asked("Bonn", content=None)]
    assert loaded(tmp_path / "a.jsonl", rows) == loaded(tmp_path / "b.jsonl", [asked("Rome"), asked("Bonn")])


def test_what_the_template_leaves_out_is_told(tmp_path):
    rows = [asked(city, content="Let me look.") for city in ("Rome", "Bonn")]
    _, learned, notes = loaded(tmp_path / "rows.jsonl", rows, tiny.CHAT)
    assert learned == {"Let me look.</s>12.</s>"}
    assert notes == tuple(
        f"2 rows have {name}, which this model's chat template leaves out"
        for name in ("tools", "tool_calls", "reasoning_content")
    )


def test_turns_that_are_not_learned_are_told(tmp_path):
    rows = [asked("Rome"), asked("Bonn")]
    for row in rows:
        row["messages"][1]["weight"] = 0
    _, learned, notes = loaded(tmp_path / "rows.jsonl", rows)
    assert learned == {"12.</s>"}
    assert notes == ("2 rows have assistant's turns of weight 0, which are not learned",)


def test_a_turn_of_nothing_but_what_the_template_leaves_out_is_empty():
    encoder = Encoder(tiny.byte_tokenizer(chat_template=tiny.CHAT), 500)
    with pytest.raises(BadRow, match="an empty assistant turn"):
        encoder.chat(asked("Rome")["messages"])


def test_a_system_column_is_the_first_turn(tmp_path):
    rows = [
        {"system": "short", "conversations": [{"from": "human", "value": q}, {"from": "gpt", "value": "g"}]}
        for q in "ab"
    ]
    texts, *_ = loaded(tmp_path / "rows.jsonl", rows, tiny.CHAT)
    assert texts == {f"<s>system:short</s><s>user:{q}</s><s>assistant:g</s>" for q in "ab"}
    assert loaded(tmp_path / "rows.jsonl", rows, tiny.CHAT, ("conversations",))[0] == texts


def test_a_rows_own_switches_of_the_template_are_heeded(tmp_path):
    rows = [asked("Rome"), asked("Bonn") | {"chat_template_kwargs": {"quiet": True, "unused": None}}]
    template = TOOLS.replace("{% if m.reasoning_content %}", "{% if m.reasoning_content and not quiet %}")
    texts, *_ = loaded(tmp_path / "rows.jsonl", rows, template)
    assert {("Rome" in text, "<think>" in text) for text in texts} == {(True, True), (False, False)}


@pytest.mark.parametrize(
    ("clock", "shown"),
    [
        ('{%- set date = strftime_now("%d %b %Y") %}', "01 Jan 2026"),
        ("{%- set date = strftime_now('%Y-%m-%d') %}", "2026-01-01"),
        ("{%- set form = '%d %b %Y' %}{% set date = strftime_now(form) %}", "01 Jan 2026"),
        ("{%- set date = strftime_now('%A' ~ ' %d, %%d 100%') %}", "Thursday 01, %d 100%"),
        (
            "{%- macro on(form) %}{{ now(form) }}{% endmacro %}{% set now = strftime_now %}"
            "{% set date = on(form='%B') %}",
            "January",
        ),
    ],
)
def test_the_same_chats_are_the_same_data_tomorrow(tmp_path, monkeypatch, clock, shown):
    from transformers.utils import chat_template_utils

    template = f"{clock}<s>system:{{{{ date }}}}</s>{tiny.CHAT}"
    tiny.write_rows(tmp_path / "rows.jsonl", [asked(city, content="So.") for city in ("Rome", "Bonn")])
    tokenizer = tiny.byte_tokenizer(chat_template=template)

    def on(day):
        date = datetime.datetime(2026, 11, day)
        monkeypatch.setattr(chat_template_utils, "datetime", SimpleNamespace(now=lambda: date))
        return data.load(str(tmp_path / "rows.jsonl"), tokenizer)

    assert on(28) == on(29)
    assert f"<s>system:{shown}</s>" in tokenizer.decode(on(28).train[0].input_ids)
    assert "today's date" in "".join(on(28).notes)


@pytest.mark.parametrize(
    ("beside", "reason"),
    [
        ({"tools": "weather"}, "neither a list nor JSON"),
        ({"tools": ["weather"]}, "not a list of objects"),
        ({"chat_template_kwargs": "think"}, "not an object"),
        ({"chat_template_kwargs": {"tokenize": False}}, r"not for the template \(tokenize\)"),
        ({"system": 4}, "a system column that is not text"),
        ({"system": "long"}, "beside a system turn that says something else"),
    ],
)
def test_what_cannot_be_given_to_the_template_is_a_bad_row(beside, reason):
    talk = [{"role": "system", "content": "short"}, *asked("Rome")["messages"]]
    with pytest.raises(BadRow, match=reason):
        Encoder(tiny.byte_tokenizer(chat_template=TOOLS), 500).chat(talk, beside)
