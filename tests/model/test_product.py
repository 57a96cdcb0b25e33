"""Products that a module's code may be written with: labels say which axes are multiplied, whatever the call."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from pytest import approx
from torch import Tensor

from headscope.model.product import (
    Seen,
    Site,
    axes_of,
    by_token,
    fitted_scale,
    placed,
    product_of,
    queries_and_keys,
    tensors_in,
)

B, H, N, D = 2, 3, 5, 4


def drawn(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)), dtype=torch.float64)


Q, K, P, V = drawn(B, H, N, D), drawn(B, H, N, D), drawn(B, H, N, N), drawn(B, H, N, D)
ONE_KEY = drawn(B, 1, N, D)
CALLS = {
    "matmul": (torch.matmul, (P, V), {}),
    "a method": (Tensor.matmul, (P, V), {}),
    "the operator": (Tensor.__matmul__, (P, V), {}),
    "bmm": (torch.bmm, (P[0], V[0]), {}),
    "one key head for all": (torch.matmul, (Q, ONE_KEY.mT), {}),
    "a matrix for all": (torch.matmul, (P, V[0, 0]), {}),
    "einsum": (torch.einsum, ("bhqk,bhkd->bqhd", P, V), {}),
    "einsum with spaces": (torch.einsum, ("b h q d, b h k d -> b h q k", Q, K), {}),
    "einsum of a list": (torch.einsum, ("bhqd,bhkd->bhqk", [Q, K]), {}),
    "einsum with leading axes": (torch.einsum, ("...qd,...kd->...qk", Q, K), {}),
    "einsum with fewer axes on one side": (torch.einsum, ("...qk,...kd->...qd", P, V[0]), {}),
    "baddbmm": (torch.baddbmm, (torch.zeros(H, N, D, dtype=torch.float64), P[0], V[0]), {}),
    "baddbmm by name": (torch.baddbmm, (torch.zeros(H, N, D, dtype=torch.float64),), {"batch1": P[0], "batch2": V[0]}),
    "addmm": (torch.addmm, (torch.zeros(N, D, dtype=torch.float64), P[0, 0], V[0, 0]), {}),
}  # fmt: skip


def multiplied(operands, inputs, out):
    """The product that labels describe, by an einsum of letters of our own."""
    letters = {
        one: chr(ord("a") + place)
        for place, one in enumerate(sorted({one for labels in (*inputs, out) for one in labels}))
    }
    sides = ["".join(letters[one] for one in labels) for labels in inputs]
    return torch.einsum(f"{','.join(sides)}->{''.join(letters[one] for one in out)}", *operands)


@pytest.mark.parametrize("call", CALLS)
def test_the_labels_of_a_product_are_those_of_its_result(call):
    func, args, kwargs = CALLS[call]
    product = product_of(func, args, kwargs)
    left, right, out = product.labels
    again = multiplied([product.left, product.right], [left, right], list(out))
    torch.testing.assert_close(again, func(*args, **kwargs))
    operands, inputs, result = axes_of(func, args, kwargs)
    torch.testing.assert_close(multiplied(operands, inputs, result), func(*args, **kwargs))


def test_three_factors_have_axes_and_are_no_product_of_two():
    args = ("bhqk,bhkd,de->bhqe", P, V, drawn(D, D))
    assert product_of(torch.einsum, args, {}) is None
    operands, inputs, out = axes_of(torch.einsum, args, {})
    torch.testing.assert_close(multiplied(operands, inputs, out), torch.einsum(*args))


@pytest.mark.parametrize(
    ("func", "args"),
    [
        (torch.einsum, ("bhqk,bhkd", P, V)),  # its result's axes are not written
        (torch.einsum, (P, [0, 1, 2, 3], V, [0, 1, 3, 4], [0, 1, 2, 4])),
        (torch.matmul, (P, V[0, 0, :, 0])),  # a vector
        (torch.add, (P, P)),
        (torch.baddbmm, (P[0],)),
    ],
    ids=["no arrow", "numbers for axes", "a vector", "a sum", "too few"],
)
def test_what_is_no_product_of_two_matrices_is_none(func, args):
    assert product_of(func, args, {}) is None


def test_queries_and_keys_are_told_apart_by_the_axes_of_the_result():
    for equation, first, second in (("bhqd,bhkd->bhqk", Q, K), ("bhkd,bhqd->bhqk", K, Q)):
        q, k = queries_and_keys(product_of(torch.einsum, (equation, first, second), {}))
        torch.testing.assert_close(q, Q)
        torch.testing.assert_close(k, K)
    by_head = product_of(torch.einsum, ("bqhd,bkhd->bhqk", Q.transpose(1, 2), K.transpose(1, 2)), {})
    torch.testing.assert_close(queries_and_keys(by_head)[0], Q)


@pytest.mark.parametrize(
    ("equation", "factors"),
    [
        ("bhqde,bhkde->bhqk", (drawn(B, H, N, D, 2), drawn(B, H, N, D, 2))),  # two axes are summed
        ("qd,kd->qk", (Q[0, 0], K[0, 0])),  # no axis of prompts or heads
        ("bhqd,bhqd->bhq", (Q, K)),  # each query with its own key
    ],
)
def test_other_products_have_no_queries_and_keys(equation, factors):
    assert queries_and_keys(product_of(torch.einsum, (equation, *factors), {})) is None


def test_axes_are_put_in_order_and_those_that_are_missing_have_size_one():
    given = drawn(N, B)
    assert placed(given, ["k", "b"], ["b", "h", "k"]).shape == (B, 1, N)
    torch.testing.assert_close(placed(given, ["k", "b"], ["b", "h", "k"])[:, 0], given.T)


def test_tensors_are_found_however_deep_they_are():
    assert [id(one) for one in tensors_in(({"a": [P, (V, 3)]}, Q))] == [id(P), id(V), id(Q)]


PLAIN = Site(layer=0, call=0, n_heads=H)


def test_queries_and_keys_that_were_not_seen_in_the_axes_of_the_pattern_are_not_believed():
    logits = Q @ K.mT
    seen = Seen(owner="", result=P @ V, pattern=P, logits=logits, q=Q, k=K, v=V)
    assert by_token(seen, PLAIN, B) is not None
    for change in (
        {"q": None},
        {"k": None},
        {"logits": None},
        {"logits": logits[..., :-1]},  # other numbers than the pattern's
        {"q": Q[:, :2]},  # of fewer heads
        {"k": K[:, :2]},  # neither one key head nor all
        {"k": K[:1]},  # one prompt's
        {"k": K[0]},  # an axis fewer
    ):
        assert by_token(replace(seen, **change), PLAIN, B) is None, change


def test_a_scale_is_fitted_where_one_explains_the_logits_and_else_none():
    bias = drawn(N, N)  # the same for both prompts, so that it cancels
    seen = Seen(owner="", result=P @ V, pattern=P, logits=0.3 * (Q @ K.mT) + bias, q=Q, k=K, v=V)
    assert fitted_scale(seen, PLAIN, B, 1e-6) == approx(0.3)
    assert fitted_scale(replace(seen, logits=seen.logits.square()), PLAIN, B, 1e-6) is None
    assert fitted_scale(replace(seen, logits=None), PLAIN, B, 1e-6) is None
    same = {"q": Q[:1].expand(B, -1, -1, -1), "k": K[:1].expand(B, -1, -1, -1)}
    assert fitted_scale(replace(seen, **same), PLAIN, B, 1e-6) is None  # two prompts alike tell nothing
