"""TokenSpace that are hard to see: senders that replace each other, two-token matches, induction through the query, one
key further. And what a corrupt prompt cannot ask."""

from __future__ import annotations

import functools
import json

import numpy as np
import pytest
import torch
from pytest import approx

import headscope as hs
from benchmarks.verdicts import verified
from headscope.evidence.circuit.measure import trace_circuit
from headscope.evidence.circuit.sets import smallest
from headscope.evidence.circuit.terminal import print_circuit
from headscope.heads import HeadId
from headscope.interventions.paths import Paths
from headscope.page.finding import _senders
from headscope.planted.reparametrised import CHANGES, reparametrised
from headscope.planted.wirings import wired
from headscope.stats import mean_intervals, ratio_interval


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    """Tensors this small gain nothing from a second thread, and lose much where cores are shared."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def circuit_of(model, receiver, **options):
    model = hs.load(model)
    probe = hs.repeated_tokens(model, **({"n_prompts": 8, "period": 8, "bos": True} | options))
    return trace_circuit(model, [receiver], probe=probe)


@functools.cache
def traced(wiring, seed=0):
    truth = wired(wiring, seed=seed)
    return truth, circuit_of(truth.model, truth.receiver)


def pairs(edges):
    return {(edge.sender, edge.input, edge.changed) for edge in edges}


# ---- senders that replace each other


@pytest.mark.parametrize("seed", range(4))  # `python -m benchmarks.verdicts --only edges` tries 20
def test_senders_that_replace_each_other_are_all_found(seed):
    # Each writes enough alone: without one the stripe stays at 1.000, without all it is gone.
    truth, found = traced(("two", "three")[seed % 2], seed)
    ((some,), (receiver,)) = found.sets, found.receivers
    assert some.senders == truth.previous_token
    assert (some.receiver, some.input) == (truth.receiver, "k")
    assert some.any_one_is_enough
    assert some.share == approx(1.0, abs=1e-3)
    assert some.singles < 0.01
    assert [one.mean for one in some.alone] == approx([1.0] * len(some.senders), abs=1e-3)
    assert [edge.sender for edge in found.edges] == list(truth.previous_token)
    assert all(edge.any_of == truth.previous_token for edge in found.edges)
    assert all(edge.effect == some.effect and edge.q_value < 1e-6 for edge in found.edges)
    assert receiver.restored.mean == approx(1.0, abs=1e-3)
    assert receiver.weights_agree  # no head but these composes


def test_one_sender_alone_is_in_no_set(capsys):
    truth, found = traced("one")
    assert pairs(found.edges) == {(truth.previous_token[0], "k", "before_key")}
    assert (found.sets, found.context, found.edges[0].any_of) == ((), (), ())
    print_circuit(found)
    assert "any of" not in capsys.readouterr().out


def test_a_set_is_said_in_words(capsys):
    truth, found = traced("three")
    a, b, c = truth.previous_token
    print_circuit(found)
    out = capsys.readouterr().out
    assert f"any of {a}, {b} or {c} is enough: without all of them 100% is lost, without each alone 0% in all" in out
    assert f"{a} -> key shares in 100% of it with {a}, {b} or {c}" in out
    assert _senders(found) == f"; any of {a}, {b}, {c} is enough to tell it where to look"
    assert f"{a} to the key of {truth.receiver}: 100% of its stripe, with all of {a}, {b}, {c}" in found.drawing()


def test_a_document_with_sets_is_read_back(tmp_path):
    for wiring in ("two", "two_token"):
        _, found = traced(wiring)
        assert hs.Circuit.load(found.save(tmp_path / wiring)[0]) == found


def test_an_older_document_is_read(tmp_path):
    _, found = traced("one")
    path = found.save(tmp_path)[0]
    document = found.to_dict()
    del document["sets"], document["context"], document["rule"]["margin"]
    for part, names in (("edges", ("any_of", "share_ci95", "changed")), ("receivers", ("asked", "offset", "context"))):
        for one in document[part]:
            for name in names:
                del one[name]
    path.write_text(json.dumps(document))
    old = hs.Circuit.load(path)
    assert old.edges[0].any_of == ()
    assert old.receivers[0].asked


def test_the_sets_cost_few_passes(monkeypatch):
    # Two layers of four heads: one pass per sender, as for a single sender; the set of three and what each member
    # restores, with and without held MLPs, cost fewer than twice as many more.
    worlds, own = [], Paths.contents

    def counted(self, base, other, given, **options):
        worlds.extend(given)
        return own(self, base, other, given, **options)

    monkeypatch.setattr(Paths, "contents", counted)
    truth = wired("one", seed=1)
    circuit_of(truth.model, truth.receiver, n_prompts=4)
    # four senders, one set (the other three), the named sender with MLPs held, and restoring it twice
    assert len(worlds) == 4 + 1 + 1 + 2
    worlds.clear()
    truth = wired("three", seed=1)
    circuit_of(truth.model, truth.receiver, n_prompts=4)
    assert len(worlds) <= 8 + 8


# ---- the smallest set


def test_the_smallest_set_of_known_functions():
    # any of 2, 5, 6: gone only without all three
    assert smallest(lambda gone: {2, 5, 6} <= gone, range(9), most=8) == {2, 5, 6}
    # (1 or 2) and (7 or 8): either pair will do; the one that comes first is preferred
    assert smallest(lambda gone: {1, 2} <= gone or {7, 8} <= gone, range(9), most=8) == {1, 2}
    assert smallest(lambda gone: {1, 2} <= gone or {7, 8} <= gone, range(8, -1, -1), most=8) == {7, 8}
    assert smallest(lambda gone: 3 in gone, range(9), most=8) == {3}
    # one that needs more than it may have
    assert smallest(lambda gone: len(gone) >= 6, range(9), most=5) is None
    assert len(smallest(lambda gone: len(gone) >= 6, range(9), most=6)) == 6


@pytest.mark.parametrize("seed", range(10))
def test_no_part_of_a_smallest_set_will_do_and_it_takes_few_tests(seed):
    # Random monotone functions: gone without all of any of three random sets.
    random = np.random.default_rng(seed)
    cuts = [frozenset(random.choice(64, size=3, replace=False).tolist()) for _ in range(3)]
    tests = []

    def fails(gone):
        tests.append(gone)
        return any(cut <= gone for cut in cuts)

    assert smallest(fails, range(64), most=8) in cuts
    # 2 k log2(n / k) + 2 k = 6 * 4.4 + 6 with k = 3, n = 64
    assert len(tests) <= 33


# ---- other wirings


@pytest.mark.parametrize("seed", range(2))
def test_two_token_induction(seed):
    # The key holds the two tokens before it, by two heads, and the query the one before itself, by the first of them.
    # One corrupt token asks about one of the three.
    truth, found = traced("two_token", seed)
    (before,), (two_back,), (receiver,) = truth.previous_token, truth.two_back, found.receivers
    assert pairs(found.edges) == {(before, "k", "before_key")}
    assert pairs(found.context) == {(two_back, "k", "two_before_key"), (before, "q", "before_query")}
    assert {name: share.mean for name, share in receiver.context.items()} == {
        "two_before_key": approx(1.0, abs=0.01),
        "before_query": approx(1.0, abs=0.01),
    }


def test_what_else_is_compared_is_said(capsys):
    print_circuit(traced("two_token")[1])
    out = capsys.readouterr().out
    assert "it also compares the token two before the key: another one takes 1.000" in out
    assert "where the token before the query differs:" in out


def test_a_single_match_compares_nothing_else():
    _, found = traced("one")
    assert {name: share.mean for name, share in found.receivers[0].context.items()} == {
        "two_before_key": approx(0.0, abs=0.01),
        "before_query": approx(0.0, abs=0.01),
    }


@pytest.mark.parametrize("seed", range(2))
def test_induction_through_the_query(seed, capsys):
    truth, found = traced("pointer", seed)
    (sender,), (receiver,), (edge,) = truth.duplicate_token, found.receivers, found.edges
    assert (edge.sender, edge.input, edge.share) == (sender, "q", approx(1.0, abs=1e-3))
    assert edge.loss_nats["q"].ci95[0] > 3 > abs(edge.loss_nats["k"].mean)
    assert receiver.restored.mean == approx(1.0, abs=1e-3)
    assert edge.weights.rank == 1  # of Q-composition
    print_circuit(found)
    assert f"{sender} -> query carries 100% of it" in capsys.readouterr().out
    assert f"{sender} to the query of {truth.receiver}" in found.drawing()


@pytest.mark.parametrize("seed", range(2))
def test_induction_one_key_further(seed, capsys):
    # The stripe's own key gets nothing in either prompt; attention to the next key is traced, and said to be.
    truth, found = traced("one_further", seed)
    (receiver,) = found.receivers
    assert (receiver.asked, receiver.offset) == (True, 1)
    assert receiver.stripe.mean > 0.99
    assert pairs(found.edges) == {(truth.two_back[0], "k", "before_key")}
    print_circuit(found)
    assert f"{truth.receiver}  attention to the key 1 after the stripe's 1.000" in capsys.readouterr().out


def test_a_prompt_that_takes_nothing_asks_nothing(capsys):
    # A head that attends by position: clean and corrupt prompts give one stripe, and 0 / 0 is no share.
    truth, _ = traced("one")
    filler = HeadId(1, next(head for head in range(4) if HeadId(1, head) != truth.receiver))
    found = circuit_of(truth.model, filler)
    (receiver,) = found.receivers
    assert (receiver.asked, receiver.unexplained, found.edges) == (False, None, ())
    print_circuit(found)
    assert "they cannot ask who carries it" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("wiring", "verdict"), [("two_token", "induction"), ("pointer", "induction"), ("one_further", "matters")]
)
def test_what_verify_says_of_a_receiver(wiring, verdict):
    # The head that looks one key further has no stripe: that it matters is said, and that its role is not known.
    truth = wired(wiring)
    found = verified(truth.model)
    assert found[truth.receiver].verdict == verdict
    assert found[truth.receiver].delta_loss_nats.mean > 1
    assert [one.head for one in found.of("induction")] == ([truth.receiver] if verdict == "induction" else [])


# ---- other weights, one function


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("wiring", ["two", "two_token"])
def test_edges_are_those_of_the_function_not_of_its_weights(wiring, change):
    # "two" has a set through the key; "two_token" has senders through the query too, and of other tokens.
    truth, first = traced(wiring)
    model, where = reparametrised(truth.model, change, seed=3)
    second = circuit_of(model, where[truth.receiver])

    def known(circuit, where):
        return {
            (where[edge.sender], edge.input, edge.changed): (
                {where[head] for head in edge.any_of},
                approx(edge.share, abs=1e-3),
                approx(edge.effect.mean, abs=1e-3),
                approx(edge.query_effect.mean, abs=1e-3),
                {name: approx(loss.mean, abs=1e-2) for name, loss in edge.loss_nats.items()},
                approx(edge.weights.score, rel=1e-3),
            )
            for edge in (*circuit.edges, *circuit.context)
        }

    itself = {head: head for head in where}
    assert len(first.edges) > 0
    assert known(second, itself) == known(first, where)
    ((one,), (two,)) = first.receivers, second.receivers
    assert two.restored.mean == approx(one.restored.mean, abs=1e-3)
    assert two.weights_agree == one.weights_agree
    assert [{*some.senders} for some in second.sets] == [{where[head] for head in some.senders} for some in first.sets]


# ---- the interval of a ratio


def test_a_ratio_that_never_varies_has_no_width():
    part = np.array([0.6, 0.9, 0.5, 0.8])
    ratio, (low, high) = ratio_interval(part, part)
    assert ratio == low == high == 1.0
    ratio, (low, high) = ratio_interval(0.25 * part, part)
    assert (ratio, low, high) == approx((0.25, 0.25, 0.25), abs=1e-7)


def test_a_ratio_by_hand():
    # a - r b has mean 3 - 2 r and, as a = (2, 4), b = (2, 2), variance 2 / 2 = 1 whatever r; t(0.975, 1) = 12.706:
    # |3 - 2 r| <= 12.706, so r is 1.5 -+ 6.353
    ratio, (low, high) = ratio_interval(np.array([2.0, 4.0]), np.array([2.0, 2.0]))
    assert (ratio, low, high) == approx((1.5, 1.5 - 6.353, 1.5 + 6.353), abs=1e-3)


def test_a_ratio_to_nothing_significant_has_no_interval():
    assert ratio_interval(np.array([1.0, 1.0, 1.0]), np.array([1.0, -1.0, 0.5]))[1] is None
    assert ratio_interval(np.array([1.0]), np.array([2.0])) == (0.5, None)
    with pytest.raises(hs.errors.NonFiniteError, match="a denominator other than zero"):
        ratio_interval(np.array([1.0, 1.0]), np.array([1.0, -1.0]))


def test_the_ratio_s_interval_holds_it_95_times_in_100():
    # a = 0.7 b + noise, b skewed: 300 redraws of 16; the standard error of a share of 0.95 is 0.013
    random, held = np.random.default_rng(0), 0
    for _ in range(300):
        b = 0.5 + random.beta(2, 5, 16)
        low, high = ratio_interval(0.7 * b + 0.1 * random.standard_normal(16), b)[1]
        held += low <= 0.7 <= high
    assert held / 300 == approx(0.95, abs=0.04)


@pytest.mark.parametrize("sign", [1, -1])
def test_a_ratio_s_interval_is_where_the_mean_of_a_minus_r_b_may_be_zero(sign):
    # a falls short of b in one prompt of ten, by much: the interval reaches further down than up.
    random = np.random.default_rng(1)
    b = sign * (1 + 0.1 * random.standard_normal(64))
    a = b * (1 - 0.5 * (random.random(64) < 0.1))
    ratio, ends = ratio_interval(a, b)
    assert ratio - ends[0] > 1.1 * (ends[1] - ratio) > 0
    for end, step in zip(ends, (-0.002, 0.002), strict=True):
        inside, outside = (mean_intervals(a - (end + turn * step) * b)[1] for turn in (-1, 1))
        assert inside[0] < 0 < inside[1]
        assert not outside[0] < 0 < outside[1]
