"""A tokenizer whose tokens are bytes, and a model to match: what the tests of models and data load."""

import json

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

SPECIAL = ("<s>", "</s>", "<pad>")
VOCABULARY = {token: i for i, token in enumerate((*SPECIAL, *sorted(pre_tokenizers.ByteLevel.alphabet())))}
CHAT = (
    "{% for m in messages %}<s>{{ m['role'] }}:{{ m['content'] }}</s>{% endfor %}"
    "{% if add_generation_prompt %}<s>assistant:{% endif %}"
)


def byte_tokenizer(*, adds_bos=False, pad="<pad>", eos="</s>", chat_template=None):
    """Each ASCII character is one token, so that decoded tokens can be read and counted."""
    core = Tokenizer(models.BPE(vocab=VOCABULARY, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    core.decoder = decoders.ByteLevel()
    if adds_bos:
        core.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, bos_token="<s>", eos_token=eos, pad_token=pad)
    tokenizer.chat_template = chat_template
    return tokenizer


def tiny_llama(**changes):
    sizes = {
        "vocab_size": len(VOCABULARY),
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return LlamaForCausalLM(LlamaConfig(**(sizes | changes)))


def save(model, folder):
    """A folder as users have one: the model with the byte tokenizer."""
    model.save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)


def sums(numbers):
    """Rows of a task that the tiny model can learn a little of."""
    return [{"prompt": f"{a}+{b}=", "response": str(a + b)} for a in range(numbers) for b in range(numbers)]


def write_rows(path, rows):
    path.write_text("\n".join(map(json.dumps, rows)))
