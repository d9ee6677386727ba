import pytest
import tiny_text as tiny
import torch
from tokenizers import processors

from hessian_lr.data import Example, make_batches
from hessian_lr.data.encode import BadRow, Encoder
from hessian_lr.errors import RequestError

# The same conversation, with the marks by which a template tells its own assistant tokens.
OWN_MASK = (
    "{% for m in messages %}{% if m['role'] == 'assistant' %}"
    "<s>assistant:{% generation %}{{ m['content'] }}</s>{% endgeneration %}"
    "{% else %}<s>{{ m['role'] }}:{{ m['content'] }}</s>{% endif %}{% endfor %}"
)
# A template that shows a turn otherwise once another follows (as those that drop old reasoning do).
FORGETFUL = (
    "{% for m in messages %}<s>{{ m['role'] }}:{% if loop.last %}{{ m['content'] }}{% endif %}</s>"
    "{% endfor %}"
    "{% if add_generation_prompt %}<s>assistant:{% endif %}"
)
TALK = [
    {"role": "user", "content": "hi"},
    {"role": "assistant", "content": "yes?"},
    {"role": "user", "content": "2+2"},
    {"role": "assistant", "content": "4"},
]


def learned(tokenizer, example):
    return tokenizer.decode([label for label in example.labels if label != -100])


@pytest.mark.parametrize("adds_bos", [False, True])
def test_a_pair_learns_exactly_the_response_and_the_end(adds_bos):
    tokenizer = tiny.byte_tokenizer(adds_bos=adds_bos)
    example = Encoder(tokenizer, 100).pair("ask", "reply")
    assert tokenizer.decode(example.input_ids) == ("<s>" if adds_bos else "") + "ask\nreply</s>"
    assert learned(tokenizer, example) == "reply</s>"
    assert all(label in (-100, token) for token, label in zip(example.input_ids, example.labels, strict=True))


def test_a_response_that_ends_in_the_end_of_text_gets_no_second_one():
    tokenizer = tiny.byte_tokenizer()
    encoder = Encoder(tokenizer, 100)
    assert encoder.pair("a", f"b{tokenizer.eos_token}") == encoder.pair("a", "b")


def test_all_that_a_tokenizer_begins_texts_with_is_put_first():
    """As GLM-4's does, which names none of it a bos_token."""
    tokenizer = tiny.byte_tokenizer()
    tokenizer.add_tokens(["[gMASK]", "<sop>"], special_tokens=True)
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="[gMASK] <sop> $A </s>", special_tokens=[("[gMASK]", 259), ("<sop>", 260), ("</s>", 1)]
    )
    tokenizer.bos_token = None
    example = Encoder(tokenizer, 100).pair("ask", "reply")
    assert tokenizer.decode(example.input_ids) == "[gMASK]<sop>ask\nreply</s>"


def test_a_row_too_long_is_cut_and_a_cut_is_counted():
    tokenizer = tiny.byte_tokenizer()
    encoder = Encoder(tokenizer, 7)
    assert learned(tokenizer, encoder.pair("ask", "reply")) == "rep"
    assert encoder.cut == 1
    with pytest.raises(BadRow):
        encoder.pair("ask more", "reply")
    assert encoder.cut == 1  # the other one was left out


@pytest.mark.parametrize(
    ("prompt", "response", "reason"),
    [
        ("a prompt of more than ten", "x", "no response token within the first 10 tokens (--max-length)"),
        ("ask", " \n", "an empty response"),
        ("", "reply", "an empty prompt"),
        ("ask", float("nan"), "a response that is not text (a number)"),
        ("ask", 10**400, "a response that is not text (a number)"),
        ("ask", True, "a response that is not text (true or false)"),
        (None, "reply", "a prompt that is not text (null)"),
        ("ask", {"text": "reply"}, "a response that is not text (an object)"),
    ],
)
def test_a_bad_pair_says_why(prompt, response, reason):
    with pytest.raises(BadRow) as caught:
        Encoder(tiny.byte_tokenizer(), 10).pair(prompt, response)
    assert str(caught.value) == reason


def test_numbers_are_written_out():
    encoder = Encoder(tiny.byte_tokenizer(), 500)
    assert encoder.pair(7, 2.5) == encoder.pair("7", "2.5")


@pytest.mark.parametrize("template", [tiny.CHAT, OWN_MASK], ids=["by prefixes", "by the template's mask"])
def test_of_a_prompt_and_a_response_of_messages_the_response_is_learned(template):
    tokenizer = tiny.byte_tokenizer(chat_template=template)
    encoder = Encoder(tokenizer, 500)
    example = encoder.pair(TALK[:3], TALK[3:])
    assert example.input_ids == encoder.chat(TALK).input_ids
    assert learned(tokenizer, example) == "4</s>"  # not the prompt's "yes?"
    assert encoder.unlearned == 0  # which no weight of 0 is the reason of
    with pytest.raises(BadRow, match="no assistant turn"):
        encoder.pair(TALK, TALK[:1])


@pytest.mark.parametrize("template", [tiny.CHAT, OWN_MASK], ids=["by prefixes", "by the template's mask"])
def test_a_chat_learns_the_assistants_turns_only(template):
    tokenizer = tiny.byte_tokenizer(chat_template=template)
    example = Encoder(tokenizer, 500).chat(TALK)
    assert tokenizer.decode(example.input_ids) == (
        "<s>user:hi</s><s>assistant:yes?</s><s>user:2+2</s><s>assistant:4</s>"
    )
    assert learned(tokenizer, example) == "yes?</s>4</s>"


@pytest.mark.parametrize("template", [tiny.CHAT, OWN_MASK], ids=["by prefixes", "by the template's mask"])
@pytest.mark.parametrize("off", [{"weight": 0}, {"weight": 0.0}, {"train": False}])
def test_turns_of_weight_0_are_read_and_not_learned(template, off):
    tokenizer = tiny.byte_tokenizer(chat_template=template)
    for first, last, expected in ((off, {"weight": 1}, "4</s>"), ({}, off, "yes?</s>")):
        example = Encoder(tokenizer, 500).chat([TALK[0], TALK[1] | first, TALK[2], TALK[3] | last])
        assert example.input_ids == Encoder(tokenizer, 500).chat(TALK).input_ids
        assert learned(tokenizer, example) == expected


def test_older_chat_sets_with_from_and_value_are_read():
    tokenizer = tiny.byte_tokenizer(chat_template=tiny.CHAT)
    old = [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "yes?"}]
    assert Encoder(tokenizer, 500).chat(old) == Encoder(tokenizer, 500).chat(TALK[:2])


@pytest.mark.parametrize(
    ("template", "messages", "reason"),
    [
        (FORGETFUL, TALK, "cannot be told apart"),
        ("{{ raise_exception('roles must alternate') }}", TALK, "roles must alternate"),
        (tiny.CHAT, TALK[:1], "no assistant turn"),
        (tiny.CHAT, [TALK[0], TALK[1] | {"weight": 0}], "no assistant turn of weight 1"),
        (tiny.CHAT, [TALK[0], TALK[1] | {"weight": 0.5}], "a message whose weight is neither 0 nor 1"),
        (tiny.CHAT, [], "no messages"),
        (tiny.CHAT, "hi", "not a list"),
        (tiny.CHAT, ["hi"], "not an object"),
        (tiny.CHAT, [{"role": "assistant", "content": None}], "that are text"),
        (tiny.CHAT, [TALK[0], {"role": "assistant", "content": " "}], "an empty assistant turn"),
    ],
)
def test_a_bad_chat_says_why(template, messages, reason):
    with pytest.raises(BadRow, match=reason):
        Encoder(tiny.byte_tokenizer(chat_template=template), 500).chat(messages)


def test_chats_need_a_chat_template():
    with pytest.raises(RequestError, match="no chat template"):
        Encoder(tiny.byte_tokenizer(), 500).chat(TALK)


def test_batches_are_padded_on_the_right_to_their_own_longest_row():
    rows = [Example((5, 6, 7), (-100, 6, 7)), Example((8, 9), (-100, 9)), Example((4,) * 5, (4,) * 5)]
    first, second = make_batches(rows, 2, pad_id=2)
    assert first["input_ids"].tolist() == [[5, 6, 7], [8, 9, 2]]
    assert first["attention_mask"].tolist() == [[1, 1, 1], [1, 1, 0]]
    assert first["labels"].tolist() == [[-100, 6, 7], [-100, 9, -100]]
    assert {tensor.dtype for tensor in first.values()} == {torch.int64}
    assert second["input_ids"].shape == (1, 5)
