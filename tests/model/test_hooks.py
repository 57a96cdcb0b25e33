"""The second path on toy models whose attention is written out in the test."""

from __future__ import annotations

import weakref

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from headscope.model.hooks import discovering, hooked, is_projection

N, D, HEADS = 7, 12, 3


class Toy(nn.Module):
    """One layer: 3 heads of 4, attention by `attend(q, k, v)`, then an output projection and a linear after it."""

    def __init__(self, attend):
        super().__init__()
        self.qkv, self.out, self.after = nn.Linear(D, 3 * D), nn.Linear(D, D), nn.Linear(D, D)
        self.attend = attend

    def split(self, x):
        return (t.reshape(*x.shape[:2], HEADS, -1).transpose(1, 2) for t in self.qkv(x).chunk(3, dim=-1))

    def forward(self, x):
        z = self.attend(*self.split(x))
        return self.after(self.out(z.transpose(1, 2).flatten(2)))


def masked_logits(q, k):
    return (q @ k.mT / 2).masked_fill(torch.ones(N, N, dtype=torch.bool).triu(1), float("-inf"))  # 2 = sqrt(4)


WAYS = {
    "F.softmax": lambda q, k, v: F.softmax(masked_logits(q, k), dim=-1) @ v,
    "torch.softmax": lambda q, k, v: torch.softmax(masked_logits(q, k), -1) @ v,
    "Tensor.softmax": lambda q, k, v: masked_logits(q, k).softmax(-1) @ v,
    "nn.Softmax": lambda q, k, v: nn.Softmax(dim=-1)(masked_logits(q, k)) @ v,
    "batch and heads in one": lambda q, k, v: (
        F.softmax(masked_logits(q, k).flatten(0, 1), dim=-1) @ v.flatten(0, 1)
    ).unflatten(0, v.shape[:2]),
    "dot-product, causal": lambda q, k, v: F.scaled_dot_product_attention(q, k, v, is_causal=True),
    "dot-product, boolean mask": lambda q, k, v: F.scaled_dot_product_attention(
        q, k, v, attn_mask=torch.ones(N, N, dtype=torch.bool).tril()
    ),
    "dot-product, mask to add": lambda q, k, v: F.scaled_dot_product_attention(
        q, k, v, torch.zeros(2, 1, N, N).masked_fill(torch.ones(N, N, dtype=torch.bool).triu(1), -1e38)
    ),
    "dot-product, mask per head": lambda q, k, v: F.scaled_dot_product_attention(
        q, k, v, torch.ones(HEADS, N, N, dtype=torch.bool).tril()
    ),
    "dot-product, scale": lambda q, k, v: F.scaled_dot_product_attention(2 * q, k, v, is_causal=True, scale=0.25),
}


def once():
    seen = []

    def number(module):
        seen.append(module)
        return 0, len(seen) - 1

    return number


def tapped(model, x, visit):
    with hooked([model.out], x.shape[1], visit, once()):
        return model(x)


@pytest.mark.parametrize("way", WAYS)
def test_every_way_to_attend_is_seen_and_can_be_edited(way):
    model, x = Toy(WAYS[way]), torch.randn(2, N, D)
    q, k, v = model.split(x)
    wanted = torch.softmax(masked_logits(q, k), dim=-1)
    plain = model(x)

    with discovering(model, N) as names:
        model(x)
    assert names == ["out"]

    seen = []
    torch.testing.assert_close(tapped(model, x, seen.append), plain, atol=1e-6, rtol=0)
    (attention,) = seen
    torch.testing.assert_close(attention.pattern(), wanted, atol=1e-6, rtol=0)
    torch.testing.assert_close(attention.z, (wanted @ v).transpose(1, 2), atol=1e-6, rtol=0)
    assert attention.kernel == ("flash" if way.startswith("dot") else "own")

    def without_head_1(attention):
        z = attention.z.clone()
        z[:, :, 1] = 0
        return z

    mixed = (wanted @ v).transpose(1, 2).flatten(2).clone()
    mixed[..., 4:8] = 0  # heads of 4: head 1 is columns 4..7
    torch.testing.assert_close(tapped(model, x, without_head_1), model.after(model.out(mixed)), atol=1e-6, rtol=0)


def test_grouped_queries_are_seen_with_few_keys():
    model, x = Toy(None), torch.randn(2, N, D)
    model.attend = lambda q, k, v: F.scaled_dot_product_attention(
        q, k[:, :1], v[:, :1], is_causal=True, enable_gqa=True
    )
    q, k, _ = model.split(x)
    seen = []
    tapped(model, x, seen.append)
    assert seen[0].scores.k.shape[1] == 1
    wanted = torch.softmax(masked_logits(q, k[:, :1]), dim=-1)
    torch.testing.assert_close(seen[0].pattern(), wanted, atol=1e-6, rtol=0)


def test_softmaxes_over_other_things_are_not_attention():
    # over 7 experts, over 3 past layers of each token, and attention among 3 summaries: none is 7 by 7 tokens
    def attend(q, k, v):
        torch.softmax(torch.randn(2 * N, N), dim=-1)
        torch.softmax(torch.randn(2, N, 3), dim=-1)
        F.scaled_dot_product_attention(torch.randn(2, N, 3, 4), torch.randn(2, N, 3, 4), torch.randn(2, N, 3, 4))
        F.scaled_dot_product_attention(q[:, :, :1], k, v)
        return v

    model, x = Toy(attend), torch.randn(2, N, D)
    with discovering(model, N) as names:
        model(x)
    assert names == []
    tapped(model, x, lambda attention: pytest.fail("seen"))


def test_only_the_first_linear_after_attention_is_its_projection():
    model, x = Toy(WAYS["F.softmax"]), torch.randn(2, N, D)
    visits = []
    with hooked([model.out, model.after], N, visits.append, once()):
        model(x)
    assert len(visits) == 1


@pytest.mark.parametrize("way", ["F.softmax", "dot-product, causal"])
def test_a_visit_may_run_another_model_of_the_same_length(way):
    # its softmaxes must not be taken for those of the model that is watched
    model, other, x = Toy(WAYS[way]), Toy(WAYS["F.softmax"]), torch.randn(2, N, D)
    plain, other_plain = model(x), other(x)
    inside = []

    def visit(attention):
        assert torch.equal(other(x), other_plain)
        assert torch.equal(tapped(other, x, inside.append), other_plain)

    with hooked([model.out, model.after], N, visit, once()):
        torch.testing.assert_close(model(x), plain, atol=1e-6, rtol=0)
    assert len(inside) == 1


def test_a_pattern_is_dropped_when_its_layer_is_done():
    layers = nn.Sequential(*(Toy(WAYS["F.softmax"]) for _ in range(3)))
    alive = []

    def visit(attention):
        assert [reference() for reference in alive] == [None] * len(alive)
        alive.append(weakref.ref(attention.own_pattern))

    with hooked([layer.out for layer in layers], N, visit, once()), torch.no_grad():
        layers(torch.randn(2, N, D))
    assert len(alive) == 3


@pytest.mark.parametrize("fails", [False, True])
def test_hooks_and_watch_are_gone_afterwards(fails):
    model, x = Toy(WAYS["F.softmax"]), torch.randn(2, N, D)
    kept = model.out.register_forward_pre_hook(lambda *_: None)

    def visit(attention):
        if fails:
            raise KeyboardInterrupt

    try:
        tapped(model, x, visit)
    except KeyboardInterrupt:
        assert fails
    assert list(model.out._forward_pre_hooks) == [kept.id]
    assert torch.overrides._get_current_function_mode_stack() == []
    with discovering(model, N):
        pass
    assert not model.after._forward_pre_hooks


def test_what_counts_as_a_linear_layer():
    assert is_projection(nn.Linear(2, 3))
    assert not is_projection(nn.Embedding(2, 3))
    assert not is_projection(nn.LayerNorm(3))
    assert not is_projection(nn.Sequential(nn.Linear(2, 3)))
