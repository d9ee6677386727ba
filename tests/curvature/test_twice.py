"""The written-out derivatives: attention, frozen linear layers, activations, against automatic ones."""

from __future__ import annotations

import pytest
import torch
from tiny_models import adapted
from tolerances import DENSE64
from torch.nn import functional

from hessian_lr.curvature import attention as attention_module
from hessian_lr.curvature import layers
from hessian_lr.curvature.attention import attention, causal_blocks, masked_blocks
from hessian_lr.curvature.twice import TwiceDifferentiable

TOKENS, SCALE = 37, 0.3


def random(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64).requires_grad_()


def plain_attention(query, key, value, visible):
    """The formula, with every matrix of tokens × tokens in full."""
    group = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(group, 1), value.repeat_interleave(group, 1)
    scores = (SCALE * query @ key.transpose(-1, -2)).masked_fill(~visible, -1e9)
    return (torch.softmax(scores, -1) * visible) @ value


def both_derivatives(output, inputs):
    """Output, first derivative and second derivative along fixed random directions."""
    cotangent = random(*output.shape, seed=5)
    first = torch.autograd.grad((output.sin() * cotangent).sum(), inputs, create_graph=True)
    along = [random(*t.shape, seed=6 + i).detach() for i, t in enumerate(inputs)]
    pairing = sum((a * b).sum() for a, b in zip(first, along, strict=True))
    return output, *first, *torch.autograd.grad(pairing, (*inputs, cotangent))


def masks():
    causal = torch.ones(TOKENS, TOKENS).tril().bool()
    padded = causal.expand(2, 1, TOKENS, TOKENS).clone()
    padded[0, ..., -3:] = False
    window = causal & ~torch.ones(TOKENS, TOKENS).tril(-4).bool()
    left = padded.clone()
    left[0, ..., :4] = False  # the first queries see no key at all
    return {"causal": causal, "padded": padded, "window": window, "left-padded": left, "none": None}


@pytest.mark.parametrize("heads", [(6, 2), (4, 4)], ids=["grouped", "one-to-one"])
@pytest.mark.parametrize("room", [1500, 1 << 20], ids=["many-blocks", "one-block"])
@pytest.mark.parametrize("name", masks())
def test_attention_has_the_plain_formulas_derivatives(name, room, heads, monkeypatch):
    monkeypatch.setitem(attention_module._BLOCK_BYTES, "cpu", room)
    mask = masks()[name]
    query, key, value = (
        random(2, h, TOKENS, 5, seed=i) for i, h in enumerate((heads[0], heads[1], heads[1]))
    )
    blocks = masked_blocks(query, TOKENS, mask, heads[1])
    assert (len(blocks) > 1) is (room == 1500)
    visible = torch.ones(TOKENS, TOKENS, dtype=torch.bool) if mask is None else mask
    inputs = (query, key, value)
    expected = both_derivatives(plain_attention(*inputs, visible), inputs)
    for chosen in (blocks, causal_blocks(query, TOKENS)) if name == "causal" else (blocks,):
        found = both_derivatives(attention(*inputs, chosen, SCALE), inputs)
        for a, b in zip(found, expected, strict=True):
            assert float((a - b).abs().max()) < DENSE64


def test_a_mask_that_is_added_and_one_for_each_head():
    inputs = tuple(random(2, 4, TOKENS, 5, seed=i) for i in range(3))
    bias = torch.randn(2, 4, TOKENS, TOKENS, generator=torch.Generator().manual_seed(3)).double()
    blocks = masked_blocks(inputs[0], TOKENS, bias, 4)
    found = both_derivatives(attention(*inputs, blocks, SCALE), inputs)
    scores = SCALE * inputs[0] @ inputs[1].transpose(-1, -2) + bias
    expected = both_derivatives(torch.softmax(scores, -1) @ inputs[2], inputs)
    for a, b in zip(found, expected, strict=True):
        assert float((a - b).abs().max()) < DENSE64


def test_keys_no_query_may_see_are_not_touched(monkeypatch):
    monkeypatch.setitem(attention_module._BLOCK_BYTES, "cpu", 1500)
    query = random(1, 2, 64, 4)
    assert [block.stop for block in causal_blocks(query, 64)] == [16, 32, 48, 64]
    window = torch.ones(64, 64).tril().bool() & ~torch.ones(64, 64).tril(-8).bool()
    assert [block.start for block in masked_blocks(query, 64, window, 2)] == [0, 9, 25, 41]


ACTIVATIONS = {
    "silu": (layers.silu, functional.silu),
    "gelu": (layers.gelu, functional.gelu),
    "gelu-tanh": (layers.gelu_tanh, lambda x: functional.gelu(x, approximate="tanh")),
}


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activations_have_their_functions_derivatives(name):
    written, function = ACTIVATIONS[name]
    x = torch.linspace(-6, 6, 101, dtype=torch.float64).requires_grad_()
    for a, b in zip(
        both_derivatives(layers.activation(x, written), (x,)),
        both_derivatives(function(x), (x,)),
        strict=True,
    ):
        assert float((a - b).abs().max()) < DENSE64


def test_a_frozen_linear_layer_has_its_functions_derivatives():
    x, weight, bias = random(3, 4, 5), random(7, 5, seed=1).detach(), random(7, seed=2).detach()
    found = both_derivatives(layers.frozen_linear(x, weight, bias), (x,))
    expected = both_derivatives(functional.linear(x, weight, bias), (x,))
    for a, b in zip(found, expected, strict=True):
        assert float((a - b).abs().max()) < DENSE64


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_a_models_outputs_stay_and_the_mode_ends_with_its_block(architecture, batches):
    model = adapted(architecture)
    inputs = {name: value for name, value in batches[1].items() if name != "labels"}
    plain = model(**inputs).logits
    with TwiceDifferentiable(torch.float64, {}):
        inside = model(**inputs).logits
    seen = inputs["attention_mask"].bool()
    assert float((inside - plain)[seen].abs().max().detach()) < 1e3 * DENSE64
    assert torch.equal(model(**inputs).logits, plain)
    assert functional.silu is torch.nn.functional.silu
