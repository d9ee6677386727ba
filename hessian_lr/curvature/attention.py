"""Scaled dot-product attention whose first and second derivatives are written out.

Fused attention kernels have no second derivative, and what automatic differentiation makes of the plain
formula keeps a dozen matrices of tokens × tokens in memory for each head. Here nothing of that size
outlives a block of queries, and keys that no query of a block may see are never touched.

With S = c·Q·Kᵀ + mask, P = softmax(S), O = P·V and a cotangent dO of O, the gradient is

    dV = Pᵀ·dO,   dP = dO·Vᵀ,   dS = P∘(dP − D),  D = rowsum(dO∘O),   dQ = c·dS·K,   dK = c·dSᵀ·Q.

Its own derivative along cotangents (q, k, v) of (dQ, dK, dV) is the change of O and of this gradient
when Q, K, V move along (q, k, v), because second derivatives are symmetric:

    Ṡ = c·(q·Kᵀ + Q·kᵀ),   Ṗ = P∘(Ṡ − rowsum(P∘Ṡ)),   Ȯ = Ṗ·V + P·v,
    dṖ = dO·vᵀ,   dṠ = Ṗ∘(dP − D) + P∘(dṖ − rowsum(Ṗ∘dP + P∘dṖ)),
    (c·(dṠ·K + dS·k),  c·(dṠᵀ·Q + dSᵀ·q),  Ṗᵀ·dO)  and Ȯ for dO.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..precision import working_type

# Bytes of one float32 matrix of queries × keys over all heads: several of them should fit a core's cache.
_BLOCK_BYTES = {"cpu": 1 << 20, "cuda": 1 << 28}


@dataclass(frozen=True)
class Block:
    """A run of queries with the keys they may see.

    Attributes:
        first, last: The queries first … last − 1.
        start, stop: The keys start … stop − 1.
        bias: Added to the scores, broadcast over (batch, key heads, group, queries, keys), or None.
        blind: Marks the queries that may see no key, likewise with one key, or None.
    """

    first: int
    last: int
    start: int
    stop: int
    bias: Tensor | None
    blind: Tensor | None


def causal_blocks(query: Tensor, keys: int) -> tuple[Block, ...]:
    """Blocks of ``query``'s rows, each seeing the keys up to its own position."""
    queries = query.shape[-2]
    blocks = []
    for first, last in _runs(query, keys):
        stop = min(last, keys)
        row = torch.arange(first, last, device=query.device).unsqueeze(1)
        hidden = torch.arange(stop, device=query.device) > row
        blocks.append(_block(first, last, 0, stop, ~hidden, query))
    assert blocks[-1].last == queries
    return tuple(blocks)


def masked_blocks(query: Tensor, keys: int, mask: Tensor | None, key_heads: int) -> tuple[Block, ...]:
    """Blocks of ``query``'s rows under a mask as ``scaled_dot_product_attention`` takes it.

    Args:
        query: (batch, heads, queries, width).
        keys: The number of keys.
        mask: Broadcasts to (batch, heads, queries, keys); boolean (True: visible) or added to the scores.
        key_heads: The number of key heads, a divisor of the heads.
    """
    if mask is None:
        return tuple(Block(first, last, 0, keys, None, None) for first, last in _runs(query, keys))
    mask = mask.reshape((1,) * (4 - mask.dim()) + mask.shape).expand(-1, -1, query.shape[-2], keys)
    visible = mask if mask.dtype is torch.bool else mask > torch.finfo(mask.dtype).min / 2
    seen = visible.flatten(0, 1).any(dim=0)
    blocks = []
    for first, last in _runs(query, keys):
        columns = seen[first:last].any(dim=0).nonzero()
        start, stop = (int(columns.min()), int(columns.max()) + 1) if len(columns) else (0, keys)
        part = mask[:, :, first:last, start:stop]
        # (batch, heads, …) becomes (batch, key heads, group, …); one mask for all heads stays one.
        part = part.unflatten(1, (key_heads, -1)) if part.shape[1] > 1 else part.unsqueeze(2)
        blocks.append(_block(first, last, start, stop, part, query))
    return tuple(blocks)


def attention(query: Tensor, key: Tensor, value: Tensor, blocks: Sequence[Block], scale: float) -> Tensor:
    """softmax(scale·Q·Kᵀ + mask)·V, differentiable twice.

    Args:
        query: Q, (batch, heads, queries, width).
        key, value: K and V, (batch, key heads, keys, width); each key head serves heads / key heads
            neighbouring heads.
        blocks: The mask, from ``causal_blocks`` or ``masked_blocks``.
        scale: c.

    Returns:
        O, (batch, heads, queries, width of V), in the type of ``query``. A query that may see no key
        has O = 0.
    """
    output: Tensor = _Attention.apply(query, key, value, tuple(blocks), scale)
    return output


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, blocks: tuple[Block, ...], scale: float
    ) -> Tensor:
        heads = _Heads(query, key, scale)
        output = query.new_empty(*query.shape[:-1], value.shape[-1])
        for block in blocks:
            weights = heads.weights(block, heads.rows(query, block), heads.columns(key, block))
            v = heads.columns(value, block)
            heads.put(output, block, torch.bmm(weights.to(v.dtype), v))
        ctx.save_for_backward(query, key, value, output)
        ctx.blocks, ctx.scale = blocks, scale
        return output

    @staticmethod
    def backward(ctx: Any, d_output: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, output = ctx.saved_tensors
        # Detached: how the gradient depends on O is part of its derivative with respect to Q, K, V.
        gradients = _AttentionGradient.apply(
            query, key, value, output.detach(), d_output, ctx.blocks, ctx.scale
        )
        return (*gradients, None, None)


class _AttentionGradient(torch.autograd.Function):
    """(dQ, dK, dV) as a function of Q, K, V and dO."""

    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        output: Tensor,
        d_output: Tensor,
        blocks: tuple[Block, ...],
        scale: float,
    ) -> tuple[Tensor, Tensor, Tensor]:
        ctx.save_for_backward(query, key, value, output, d_output)
        ctx.blocks, ctx.scale = blocks, scale
        heads = _Heads(query, key, scale)
        d_query, d_key, d_value = torch.empty_like(query), _zeros(key), _zeros(value)
        delta = _row_sum(d_output, output)
        for block in blocks:
            keys = slice(block.start, block.stop)
            q, do = heads.rows(query, block), heads.rows(d_output, block)
            k, v = heads.columns(key, block), heads.columns(value, block)
            weights = heads.weights(block, q, k)
            d_scores = torch.bmm(do, v.transpose(1, 2)).sub(heads.rows(delta, block)).mul_(weights)
            d_scores = d_scores.mul_(scale).to(q.dtype)
            heads.put(d_query, block, torch.bmm(d_scores, k))
            d_key[:, keys] += torch.bmm(d_scores.transpose(1, 2), q)
            d_value[:, keys] += torch.bmm(weights.to(q.dtype).transpose(1, 2), do)
        return d_query, d_key.view(key.shape).to(key.dtype), d_value.view(value.shape).to(value.dtype)

    @staticmethod
    def backward(
        ctx: Any, along_query: Tensor, along_key: Tensor, along_value: Tensor
    ) -> tuple[Tensor | None, ...]:
        query, key, value, output, d_output = ctx.saved_tensors
        blocks, scale = ctx.blocks, ctx.scale
        heads = _Heads(query, key, scale)
        by_query, by_key, by_value = torch.empty_like(query), _zeros(key), _zeros(value)
        change = torch.empty_like(d_output)
        delta = _row_sum(d_output, output)
        for block in blocks:
            keys = slice(block.start, block.stop)
            q, do, q_dot = (heads.rows(t, block) for t in (query, d_output, along_query))
            k, v, k_dot, v_dot = (heads.columns(t, block) for t in (key, value, along_key, along_value))
            weights = heads.weights(block, q, k)
            narrow = weights.to(q.dtype)
            # Both halves of Ṡ, and of every other pair of products, in one multiplication.
            s_dot = torch.bmm(torch.cat((q_dot, q), -1), torch.cat((k, k_dot), -1).transpose(1, 2))
            s_dot = (
                s_dot.mul(scale).mul_(weights) if s_dot.dtype is weights.dtype else weights * s_dot * scale
            )
            p_dot = s_dot.addcmul_(weights, s_dot.sum(-1, keepdim=True), value=-1)
            p_dot_narrow = p_dot.to(q.dtype)
            both = torch.cat((p_dot_narrow, narrow), -1)
            heads.put(change, block, torch.bmm(both, torch.cat((v, v_dot), 1)))
            by_value[:, keys] += torch.bmm(p_dot_narrow.transpose(1, 2), do)
            # dP − D, in which dP's own row sum under Ṗ needs D too: Σ Ṗ = 0, so D drops out of it.
            gap = torch.bmm(do, v.transpose(1, 2)).sub(heads.rows(delta, block))
            d_scores = (weights * gap).mul_(scale).to(q.dtype)
            p_change = torch.bmm(do, v_dot.transpose(1, 2)).mul(weights)
            moved = p_dot.mul_(gap).add_(p_change)
            moved = moved.addcmul_(weights, moved.sum(-1, keepdim=True), value=-1).mul_(scale).to(q.dtype)
            both = torch.cat((moved, d_scores), -1)
            heads.put(by_query, block, torch.bmm(both, torch.cat((k, k_dot), 1)))
            both = torch.cat((moved, d_scores), 1)
            by_key[:, keys] += torch.bmm(both.transpose(1, 2), torch.cat((q, q_dot), 1))
        return (
            by_query,
            by_key.view(key.shape).to(key.dtype),
            by_value.view(value.shape).to(value.dtype),
            None,
            change,
            None,
            None,
        )


class _Heads:
    """Queries grouped by the key head they belong to, so that one batched product serves a group."""

    def __init__(self, query: Tensor, key: Tensor, scale: float) -> None:
        self.batch, self.key_heads = key.shape[:2]
        self.scale = scale

    def rows(self, tensor: Tensor, block: Block) -> Tensor:
        """A block's rows of (batch, heads, queries, …) as (batch·key heads, group·rows, …)."""
        grouped = tensor.unflatten(1, (self.key_heads, -1))[:, :, :, block.first : block.last]
        return grouped.reshape(self.batch * self.key_heads, -1, tensor.shape[-1])

    def columns(self, tensor: Tensor, block: Block) -> Tensor:
        """A block's keys of (batch, key heads, keys, width) as (batch·key heads, keys, width)."""
        return tensor.reshape(-1, *tensor.shape[2:])[:, block.start : block.stop]

    def put(self, whole: Tensor, block: Block, part: Tensor) -> None:
        """Write a block's rows back: the inverse of ``rows``."""
        target = whole.unflatten(1, (self.key_heads, -1))[:, :, :, block.first : block.last]
        target.copy_(part.view(target.shape))

    def weights(self, block: Block, q: Tensor, k: Tensor) -> Tensor:
        """P of a block, in the wide type: the exponential would not bear scores of 8 bits."""
        wide = working_type(q)
        scores = torch.bmm(q.to(wide), k.to(wide).transpose(1, 2)).mul_(self.scale)
        shape = (self.batch, self.key_heads, -1, block.last - block.first, block.stop - block.start)
        if block.bias is not None:
            scores.view(shape).add_(block.bias)
        weights = torch.softmax(scores, dim=-1)
        if block.blind is not None:
            weights.view(shape).masked_fill_(block.blind, 0.0)
        return weights


def _row_sum(left: Tensor, right: Tensor) -> Tensor:
    wide = working_type(left)
    return (left.to(wide) * right.to(wide)).sum(-1, keepdim=True)


def _zeros(like: Tensor) -> Tensor:
    """(batch·key heads, keys, width) of zeros to sum blocks in, in the wide type."""
    return torch.zeros(
        (like.shape[0] * like.shape[1], *like.shape[2:]), dtype=working_type(like), device=like.device
    )


def _block(first: int, last: int, start: int, stop: int, mask: Tensor, query: Tensor) -> Block:
    wide = working_type(query)
    if mask.dtype is not torch.bool:
        bias = mask.to(wide)
    elif bool(mask.all()):
        return Block(first, last, start, stop, None, None)
    else:
        bias = torch.zeros(mask.shape, dtype=wide, device=mask.device).masked_fill_(~mask, -torch.inf)
    blind = bias.isneginf().all(dim=-1, keepdim=True)
    return Block(first, last, start, stop, bias, blind if bool(blind.any()) else None)


def _runs(query: Tensor, keys: int) -> list[tuple[int, int]]:
    batch, heads, queries = query.shape[:3]
    room = _BLOCK_BYTES.get(query.device.type, _BLOCK_BYTES["cuda"])
    step = min(queries, max(16, room // (4 * batch * heads * keys)))
    # Equal blocks: a short last one would cost as many calls as a full one.
    step = -(-queries // -(-queries // step))
    return [(first, min(first + step, queries)) for first in range(0, queries, step)]
