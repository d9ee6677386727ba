"""Which tokens of a chat are learned, and what is said of the rest, whatever the template does."""

import pytest
import tiny_text as tiny

from hessian_lr.data.encode import BadRow, Encoder

# As templates of models that reason: the answer to the last question has its thoughts, empty ones if none,
# and earlier answers have none.
THINKS = (
    "{% set last = namespace(user=0) %}"
    "{% for m in messages %}{% if m.role == 'user' %}{% set last.user = loop.index0 %}{% endif %}{% endfor %}"
    "{% for m in messages %}<{{ m.role }}>"
    "{% set said = m.content.split('</think>')[-1].strip() if m.role == 'assistant' else m.content %}"
    "{% if m.role == 'assistant' and loop.index0 > last.user %}"
    "<think>{% if '</think>' in m.content %}"
    "{{ m.content.split('</think>')[0].split('<think>')[-1] }}{% endif %}"
    "</think>"
    "{% endif %}{{ said }}<end>\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
KNOWS_THREE = (
    "{% for m in messages %}{% if m.role in ('system', 'user', 'assistant') %}"
    "<{{ m.role }}>{{ m.content }}<end>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
MARKS = tiny.CHAT.replace("{{ m['content'] }}", "{% generation %}{{ m['content'] }}{% endgeneration %}")
U, A = "user", "assistant"


def chat(*turns):
    return [{"role": role, "content": content} for role, content in turns]


def encoded(template, messages, beside=None):
    """What the chat becomes, and the learned parts of it, apart where something else lies between."""
    encoder = Encoder(tiny.byte_tokenizer(chat_template=template), 500)
    example = encoder.chat(messages, beside)
    text = encoder.tokenizer.decode(example.input_ids)
    parts, open_part = [], []
    for label in (*example.labels, -100):
        if label != -100:
            open_part.append(label)
        elif open_part:
            parts.append(encoder.tokenizer.decode(open_part))
            open_part = []
    return text, parts, encoder


def test_earlier_answers_are_learned_as_they_stand_where_only_the_last_has_thoughts():
    text, parts, _ = encoded(THINKS, chat((U, "1+1?"), (A, "2"), (U, "+3?"), (A, " 5\n")))
    assert text == "<user>1+1?<end>\n<assistant>2<end>\n<user>+3?<end>\n<assistant><think></think>5<end>\n"
    assert parts == ["2<end>\n", "<think></think>5<end>\n"]


def test_thoughts_that_the_template_leaves_out_of_earlier_answers_do_not_cost_the_row():
    turns = chat((U, "1+1?"), (A, "<think>one</think>\n2"), (U, "+3?"), (A, "<think>two</think>5"))
    text, parts, _ = encoded(THINKS, turns)
    assert "one" not in text
    assert parts == ["2<end>\n", "<think>two</think>5<end>\n"]


def test_of_equal_answers_each_is_found_in_its_own_place():
    turns = chat((U, "2"), (A, "2"), (U, "2"), (A, "2"), (U, "2"), (A, "2"))
    text, parts, _ = encoded(THINKS, turns)
    assert parts == ["2<end>\n", "2<end>\n", "<think></think>2<end>\n"]
    assert text.count("2<end>") == 6


@pytest.mark.parametrize("template", [tiny.CHAT, THINKS])
def test_a_chat_that_the_assistant_begins_is_learned(template):
    _, parts, _ = encoded(template, chat((A, "Welcome."), (U, "hi"), (A, "yes?")))
    assert [part.replace("<think></think>", "").rstrip("\n") for part in parts] == [
        f"{said}{'</s>' if template == tiny.CHAT else '<end>'}" for said in ("Welcome.", "yes?")
    ]


def test_what_cannot_be_found_costs_the_row_and_says_so():
    # What the template makes of an earlier answer depends on more than the answer.
    counts = tiny.CHAT.replace("m['content']", "m['content'] | length if not loop.last else m['content']")
    with pytest.raises(BadRow, match="cannot be told apart"):
        encoded(counts, chat((U, "hi"), (A, "yes"), (U, "so"), (A, "no")))


@pytest.mark.parametrize("chosen", ["default", "tool_use"])
def test_of_several_templates_the_one_that_serves_decides_whose_mask_counts(chosen):
    other = "tool_use" if chosen == "default" else "default"
    tools = [{"type": "function", "function": {"name": "f", "parameters": {}}}]
    beside = {"tools": tools} if chosen == "tool_use" else {}
    turns = chat((U, "hi"), (A, "yes"))
    assert encoded({chosen: tiny.CHAT, other: MARKS}, turns, beside)[1] == ["yes</s>"]
    assert encoded({chosen: MARKS, other: tiny.CHAT}, turns, beside)[1] == encoded(MARKS, turns)[1]


def test_a_mask_that_marks_nothing_is_the_reason_that_is_told():
    nothing = tiny.CHAT + "{% if false %}{% generation %}{% endgeneration %}{% endif %}"
    with pytest.raises(BadRow, match="the template's own mask marks nothing"):
        encoded(nothing, chat((U, "hi"), (A, "yes")))


def test_turns_that_the_template_leaves_out_are_told():
    turns = chat((U, "12C in Rome?"), ("function_call", "weather(Rome)"), ("observation", "12"), (A, "Yes."))
    told = encoded(KNOWS_THREE, turns)[2].unspoken
    assert sorted(told) == ["turns of the role function_call", "turns of the role observation"]
    assert not encoded(tiny.CHAT, turns)[2].unspoken
    assert not encoded(KNOWS_THREE, chat(("system", "short"), (U, "hi"), (A, "yes")))[2].unspoken


def test_the_fixed_day_is_told_of_chats_that_have_a_date():
    dated = "{% if messages[0].role != 'system' %}{{ strftime_now('%d %b %Y') }}{% endif %}" + tiny.CHAT
    assert encoded(dated, chat((U, "hi"), (A, "yes")))[2].dated
    assert not encoded(dated, chat(("system", "short"), (U, "hi"), (A, "yes")))[2].dated


@pytest.mark.parametrize("before", ["", "\n", "  {% if true %}", "{%- if true %}\n\n"])
def test_the_fixed_day_changes_nothing_else_that_a_template_writes(before):
    end = "{% endif %}" if "if" in before else ""
    turns = chat((U, "hi"), (A, "yes"))
    plain, dated = (f"{before}{day}{end}{MARKS}" for day in ("2026", "{{ strftime_now('%Y') }}"))
    assert encoded(dated, turns)[:2] == encoded(plain, turns)[:2]
