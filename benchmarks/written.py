"""Language models written by hand, from choices that such models differ in; each keeps its own softmax and z.

`Written(**choices)` computes `patterns[layer]` [batch head query key] and, with `without=(layer, head)`,
the logits when that head's block of W_O is zero: what headscope's patterns and ablations must equal.
"""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

D, HEADS, VOCABULARY, CONTEXT = 24, 4, 30, 40

CHOICES = {
    "project": ("separate", "fused", "parameters"),
    "attend": ("softmax", "einsum", "sdpa", "batched", "batched heads first", "by hand"),
    "positions": ("learned", "rotary", "alibi"),
    "n_kv": (4, 2, 1),
    "order": ("h d", "d h"),
    "out": ("linear", "F.linear", "matmul", "einsum", "tensordot", "multiplied"),
    "block": ("pre", "post", "parallel"),
    "tied": (False, True),
    "gives": ("tensor", "tuple", "dict", "object"),
    "twist": ("none", "gate", "talking", "talking before", "differential", "norm over heads", "added values"),
}
"""Every choice; the first of each is the default."""

REFUSED = {
    "talking": "heads are mixed after the softmax",
    "differential": "two softmaxes are combined",
    "norm over heads": "mixed, normalised or added to",
    "added values": "mixed, normalised or added to",
}
"""Twists whose heads have no part of their own in the output, and the reason that is said."""


class Attention(nn.Module):
    """Attention by the choices given; it keeps its softmax and z."""

    def __init__(self, **choices):
        super().__init__()
        self.choices = SimpleNamespace(**choices)
        self.d_head = D // HEADS
        d_kv = self.choices.n_kv * self.d_head
        match self.choices.project:
            case "separate":
                self.q, self.k, self.v = nn.Linear(D, D), nn.Linear(D, d_kv), nn.Linear(D, d_kv)
            case "fused":
                self.qkv = nn.Linear(D, D + 2 * d_kv)
            case "parameters":
                self.w_q = nn.Parameter(torch.randn(HEADS, D, self.d_head) * 0.3)
                self.w_k = nn.Parameter(torch.randn(self.choices.n_kv, D, self.d_head) * 0.3)
                self.w_v = nn.Parameter(torch.randn(self.choices.n_kv, D, self.d_head) * 0.3)
        if self.choices.out == "linear":
            self.o = nn.Linear(D, D)
        else:
            self.w_o = nn.Parameter(torch.randn(D, D) * 0.3)  # [in, out]
        self.heads = nn.Parameter(torch.eye(HEADS) + 0.3 * torch.randn(HEADS, HEADS))
        self.gate, self.norm = nn.Linear(D, D), nn.LayerNorm(D)
        self.without: int | None = None
        self.pattern: Any = None

    def project(self, x):
        match self.choices.project:
            case "separate":
                q, k, v = self.q(x), self.k(x), self.v(x)
            case "fused":
                d_kv = self.choices.n_kv * self.d_head
                q, k, v = self.qkv(x).split([D, d_kv, d_kv], dim=-1)
            case _:
                return tuple(torch.einsum("btm,hmd->bhtd", x, w) for w in (self.w_q, self.w_k, self.w_v))
        return tuple(one.view(*x.shape[:2], -1, self.d_head).transpose(1, 2) for one in (q, k, v))

    def bias(self, n):
        """What is added to the logits: the mask, and ALiBi's slopes."""
        distance = torch.arange(n)[None, :] - torch.arange(n)[:, None]
        bias = torch.zeros(HEADS, n, n)
        if self.choices.positions == "alibi":
            bias = bias + distance * 2.0 ** -torch.arange(1, HEADS + 1)[:, None, None]
        return bias.masked_fill(distance > 0, float("-inf"))

    def forward(self, x):
        q, k, v = self.project(x)
        n, twist = x.shape[1], self.choices.twist
        if self.choices.positions == "rotary":
            q, k = rotated(q), rotated(k)
        bias, scale = self.bias(n), 1 / math.sqrt(self.d_head)
        whole_k, whole_v = (one.repeat_interleave(HEADS // self.choices.n_kv, dim=1) for one in (k, v))
        logits = q.matmul(whole_k.transpose(-2, -1)) * scale + bias
        if twist == "talking before":
            logits = torch.einsum("gh,bhqk->bgqk", self.heads, logits.masked_fill(logits == -torch.inf, 0.0)) + bias
        with torch.no_grad():
            self.pattern = torch.exp(logits - torch.logsumexp(logits, -1, keepdim=True))  # not by softmax: unseen
        if twist in ("none", "gate", "norm over heads", "added values"):
            z = self.attend(q, k, v, whole_k, whole_v, logits, bias, scale)
        else:
            pattern = logits.softmax(-1)
            if twist == "talking":
                pattern = torch.einsum("gh,bhqk->bgqk", self.heads, pattern)
            elif twist == "differential":
                pattern = pattern - 0.5 * (logits.flip(1) * 0.5).softmax(-1)
            z = pattern @ whole_v
        if twist == "added values":
            z = z + whole_v.flip(1)
        z = z.transpose(1, 2)  # batch query head d
        z = (z if self.choices.order == "h d" else z.transpose(2, 3)).reshape(*x.shape[:2], D)
        if twist == "gate":
            z = z * torch.sigmoid(self.gate(x))
        elif twist == "norm over heads":
            z = self.norm(z)
        return self.output(z)

    def attend(self, q, k, v, whole_k, whole_v, logits, bias, scale):
        rows = q.shape[0]
        match self.choices.attend:
            case "softmax":
                return F.softmax(logits, dim=-1) @ whole_v
            case "einsum":
                logits = torch.einsum("bhqd,bhkd->bhqk", q, whole_k) * scale + bias
                return torch.einsum(
                    "bkhd,bhqk->bhqd", whole_v.transpose(1, 2), F.dropout(logits.softmax(-1), 0.1, False)
                )
            case "sdpa":
                return F.scaled_dot_product_attention(
                    q, k, v, attn_mask=bias[None], enable_gqa=self.choices.n_kv < HEADS
                )
            case "batched":
                dots = torch.bmm(q.flatten(0, 1), whole_k.flatten(0, 1).transpose(1, 2))
                pattern = torch.softmax(dots * scale + bias.repeat(rows, 1, 1), -1)
                return torch.bmm(pattern, whole_v.flatten(0, 1)).unflatten(0, (rows, HEADS))
            case "batched heads first":
                heads = [one.transpose(0, 1).flatten(0, 1) for one in (q, whole_k)]
                dots = torch.bmm(heads[0], heads[1].mT)
                pattern = torch.softmax(dots * scale + bias.repeat_interleave(rows, dim=0), -1)
                z = torch.bmm(pattern, whole_v.transpose(0, 1).flatten(0, 1))
                return z.unflatten(0, (HEADS, rows)).transpose(0, 1)
            case _:  # by hand
                parts = [logits[:, head].softmax(-1) @ whole_v[:, head] for head in range(HEADS)]
                return torch.stack(parts, dim=1)

    def output(self, z):
        weight = self.o.weight.T if self.choices.out == "linear" else self.w_o
        if self.without is not None:
            d, h = self.d_head, self.without
            rows = torch.arange(d) + h * d if self.choices.order == "h d" else torch.arange(d) * HEADS + h
            weight = weight.clone()
            weight[rows] = 0
            return z @ weight + (self.o.bias if self.choices.out == "linear" else 0)
        match self.choices.out:
            case "linear":
                return self.o(z)
            case "F.linear":
                return F.linear(z, self.w_o.T)
            case "matmul":
                return z @ self.w_o
            case "einsum":
                return torch.einsum("bti,io->bto", z, self.w_o)
            case "tensordot":
                return torch.tensordot(z, self.w_o, dims=1)
            case "multiplied":
                return (z[..., None] * self.w_o).sum(-2)


def rotated(x):
    half = x.shape[-1] // 2
    angle = torch.arange(x.shape[2])[:, None] * 100.0 ** -(torch.arange(half) / half)
    cos, sin = angle.cos(), angle.sin()
    a, b = x[..., :half], x[..., half:]
    return torch.cat([a * cos - b * sin, a * sin + b * cos], -1)


class Block(nn.Module):
    """Attention and MLP, in the order that the choices say."""

    def __init__(self, **choices):
        super().__init__()
        self.how = choices["block"]
        self.attention = Attention(**choices)
        self.norm_1, self.norm_2 = nn.LayerNorm(D), nn.LayerNorm(D)
        self.mlp = nn.Sequential(nn.Linear(D, 2 * D), nn.GELU(), nn.Linear(2 * D, D))

    def forward(self, x):
        match self.how:
            case "pre":
                x = x + self.attention(self.norm_1(x))
                return x + self.mlp(self.norm_2(x))
            case "post":
                x = self.norm_1(x + self.attention(x))
                return self.norm_2(x + self.mlp(x))
            case "parallel":
                y = self.norm_1(x)
                return x + self.attention(y) + self.mlp(y)


class Written(nn.Module):
    """A model of two layers with these choices."""

    def __init__(self, **choices):
        super().__init__()
        choices = {name: values[0] for name, values in CHOICES.items()} | choices
        self.gives = choices["gives"]
        self.embed = nn.Embedding(VOCABULARY, D)
        self.position = nn.Parameter(torch.randn(CONTEXT, D) * 0.5) if choices["positions"] == "learned" else None
        self.blocks: Any = nn.ModuleList(Block(**choices) for _ in range(2))
        self.unembed = nn.Linear(D, VOCABULARY, bias=False)
        if choices["tied"]:
            self.unembed.weight = self.embed.weight

    def forward(self, ids):
        x = self.embed(ids)
        if self.position is not None:
            x = x + self.position[: ids.shape[1]]
        for block in self.blocks:
            x = block(x)
        logits = self.unembed(x)
        loss = logits.square().mean()
        return {
            "tensor": logits,
            "tuple": (loss, logits),
            "dict": {"loss": loss, "logits": logits},
            "object": SimpleNamespace(loss=loss, logits=logits),
        }[self.gives]

    def logits(self, ids, without=None):
        """Logits with the block of W_O of head `without` (layer, head) zero."""
        for layer, block in enumerate(self.blocks):
            block.attention.without = without[1] if without is not None and without[0] == layer else None
        with torch.no_grad():
            given = self(ids)
        for block in self.blocks:
            block.attention.without = None
        if isinstance(given, tuple):
            return given[1]
        if isinstance(given, dict):
            return given["logits"]
        return getattr(given, "logits", given)

    @property
    def patterns(self):
        """Each layer's attention in the last pass, by the module's own logits."""
        return [block.attention.pattern for block in self.blocks]


def agree(written, model, tolerance=1e-5):
    """Assert that headscope's patterns and zero ablations of every head are the module's own."""
    ids = torch.randint(VOCABULARY, (3, 13), generator=torch.Generator().manual_seed(1))
    seen = {}
    model.run(ids, lambda attention: seen.update({attention.layer: attention.pattern().clone()}))
    own = written.logits(ids)
    for layer, pattern in enumerate(written.patterns):
        torch.testing.assert_close(seen[layer], pattern, atol=tolerance, rtol=0)
    for layer in range(2):
        for head in range(HEADS):

            def without(attention, layer=layer, head=head):
                if attention.layer == layer:
                    z = attention.z.clone()
                    z[:, :, head] = 0
                    return z
                return None

            given = model.backbone.logits(model.run(ids, without))
            wanted = written.logits(ids, (layer, head))
            assert float((wanted - own).abs().max()) > 1e-3, "zeroing the block changes nothing, so nothing is shown"
            torch.testing.assert_close(given, wanted, atol=tolerance, rtol=tolerance)
