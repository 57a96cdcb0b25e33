"""The circuit: found on models that hold it, and not where it is not; its document, its drawing, and bad input."""

from __future__ import annotations

import functools
import json
import xml.etree.ElementTree as xml
from dataclasses import replace

import numpy as np
import pytest
import torch
from pytest import approx

import headscope as hs
from benchmarks.tiny import tiny_causal_lm
from headscope.errors import ArgumentError, TokenError, UnsupportedModel
from headscope.evidence.circuit import measure as tracing
from headscope.evidence.circuit.measure import trace_circuit
from headscope.evidence.circuit.result import RULE, Circuit
from headscope.evidence.circuit.terminal import print_circuit
from headscope.evidence.circuit.tracing import EDGE_LOSS_RESOLUTION
from headscope.heads import HeadId
from headscope.interventions.paths import Paths
from headscope.planted.handbuilt import DECOYS, handbuilt
from headscope.planted.handbuilt_rotary import handbuilt_rotary
from headscope.probes.corrupt import corrupt_pairs
from headscope.records.common import Estimate
from tests.running import seeds

KINDS = ("plain", "rotary", "grouped")
DEMO = ("L1H0", "L1H1", "L1H2", "L1H3", "L1H5")


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    """Tensors this small gain nothing from a second thread, and lose much where cores are shared."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def built(kind, seed):
    sizes = dict(vocab_size=96, n_positions=64, seed=seed)
    if kind == "plain":
        return handbuilt(decoys=DECOYS, **sizes)
    return handbuilt_rotary(grouped=kind == "grouped", **sizes)


def short(model, **options):
    return hs.repeated_tokens(model, **({"n_prompts": 12, "period": 12, "bos": True} | options))


@functools.cache
def traced(seed):
    """A hand-built model of each kind in turn, and its circuit."""
    truth = built(KINDS[seed % 3], seed)
    model = hs.load(truth.model)
    return truth, trace_circuit(model, truth.heads("induction"), probe=short(model, seed=seed), seed=seed)


def assert_zero(estimate, within):
    """The interval holds nothing but rounding."""
    assert max(map(abs, estimate.ci95)) < within


def assert_no_loss(estimate, within):
    """Nothing but rounding is lost, and no interval of a loss is narrower than the resolution."""
    assert abs(estimate.mean) < within
    assert estimate.ci95 == approx((-EDGE_LOSS_RESOLUTION, EDGE_LOSS_RESOLUTION), abs=within)


# ---- models whose circuit we know


@pytest.mark.parametrize("seed", seeds(6))
def test_the_planted_edge_is_the_only_one(seed):
    truth, found = traced(seed)
    (sender,), (receiver,) = truth.heads("previous_token"), truth.heads("induction")
    # Senders that compose alike but look two tokens back, noise of ten times the norm: none of them is named.
    ((edge,), (one,)) = found.edges, found.receivers
    assert (edge.sender, edge.receiver, edge.input) == (sender, receiver, "k")
    assert one.head == receiver
    assert found.senders_tried == sum(head.layer < receiver.layer for head in truth.roles)
    # It carries all of the stripe, from 1 to nothing, whether MLPs (which write nothing) recompute or not.
    assert edge.share == approx(1.0, abs=1e-3)
    assert edge.effect.mean == approx(one.stripe.mean - one.corrupt.mean, abs=1e-3)
    assert edge.mlps_held.mean == approx(edge.effect.mean, abs=1e-6)
    assert edge.q_value < 1e-6
    assert one.stripe.mean > 0.999
    assert one.corrupt.mean < 0.001
    # Put into the twin it restores all of it.
    assert one.restored.mean == approx(1.0, abs=1e-3)
    assert one.restored_mlps_held.mean == approx(1.0, abs=1e-3)
    assert one.unexplained == approx(0.0, abs=1e-3)
    # Through the query nothing comes, from any sender; through the value it costs nothing; through the key all is lost.
    assert_zero(edge.query_effect, 1e-9)
    assert_zero(one.strongest_query, 1e-6)
    assert edge.loss_nats["k"].ci95[0] > 3
    assert_no_loss(edge.loss_nats["q"], 1e-5)
    assert_no_loss(edge.loss_nats["v"], 1e-5)
    assert_zero(one.strongest_other, 1e-6)
    # Weights could not have told: far from a random rotation, but the decoy sender composes as much.
    assert edge.weights.z > 10
    assert edge.weights.margin == approx(1.0, abs=1e-3)
    assert one.weights_agree is False
    assert edge.weights.rank <= 2
    assert edge.weights.ratio == approx(edge.weights.score * np.sqrt(dimensions(truth)), rel=1e-6)


def test_senders_are_searched_in_the_first_prompts_and_measured_in_all(monkeypatch):
    # With room for 5 of 12 prompts in the search: the same edge; its q-value is that of the search, its effect the mean
    # over all 12, and every other sender is tried in 5.
    truth, whole = traced(0)
    monkeypatch.setattr(tracing, "SEARCH_PROMPTS", 5)
    model, tried, own = hs.load(truth.model), [], Paths.contents
    monkeypatch.setattr(
        Paths,
        "contents",
        lambda self, base, other, worlds, **named: (
            tried.append((self.n_prompts, len(worlds))) or own(self, base, other, worlds, **named)
        ),
    )
    found = trace_circuit(model, truth.heads("induction"), probe=short(model))
    (edge,), (same,), (receiver,) = found.edges, whole.edges, found.receivers
    assert (edge.sender, edge.input) == (same.sender, same.input)
    assert edge.effect == same.effect
    assert edge.q_value > same.q_value
    assert receiver.stripe == whole.receivers[0].stripe
    assert receiver.restored == whole.receivers[0].restored
    assert tried[0] == (5, found.senders_tried)
    assert max(n_worlds for n_prompts, n_worlds in tried if n_prompts == 12) == 1


def dimensions(truth):
    """Of the stream: LayerNorm takes one away."""
    config = truth.model.config
    return config.hidden_size - (config.model_type == "gpt2")


def test_grouped_queries_are_said():
    plain, rotary, grouped = (traced(seed)[1] for seed in range(3))
    assert grouped.grouped
    assert any("each was patched for its one query head alone" in note for note in grouped.notes)
    assert not plain.grouped
    assert not rotary.grouped
    assert not any("patched for its one" in note for note in (*plain.notes, *rotary.notes))


def test_two_redundant_induction_heads_have_one_sender():
    truth = handbuilt(vocab_size=96, n_positions=64, copying="redundant", n_layers=4, seed=5)
    model = hs.load(truth.model)
    found = trace_circuit(model, truth.heads("redundant_induction"), probe=short(model))
    assert [(edge.sender, edge.receiver) for edge in found.edges] == [
        (truth.heads("previous_token")[0], head) for head in truth.heads("redundant_induction")
    ]
    # each alone: the other still copies, and the loss hardly moves
    assert all(edge.share > 0.99 and abs(edge.loss_nats["k"].mean) < 0.1 for edge in found.edges)


def test_a_head_that_only_looks_like_induction_has_the_same_sender():
    # `attends_only` has the pattern and writes nothing: its stripe is fed alike, and its loss does not depend on it.
    truth, _ = traced(0)
    model = hs.load(truth.model)
    found = trace_circuit(model, truth.heads("attends_only"), probe=short(model))
    (edge,) = found.edges
    assert [edge.sender] == truth.heads("previous_token")
    assert edge.share > 0.99
    assert abs(edge.loss_nats["k"].mean) < 1e-5


def test_heads_that_no_sender_feeds_have_none():
    truth, _ = traced(0)
    model = hs.load(truth.model)
    given = [*truth.heads("positional"), *(head for head in truth.heads("noise") if head.layer > 0)]
    found = trace_circuit(model, given, probe=short(model))
    assert found.edges == ()
    assert [one.head for one in found.receivers] == list(given)
    # The corrupt prompts leave their stripe as it is: they cannot ask who carries it, and 0 / 0 is no share.
    for one in found.receivers:
        assert not one.asked
        assert one.restored is one.restored_mlps_held is one.weights_agree is one.unexplained is None
        assert one.strongest_other is one.strongest_query is one.context is None


# ---- the demo


@pytest.fixture(scope="module")
def demo():
    model = hs.load("demo")
    return trace_circuit(model, DEMO, probe=hs.repeated_tokens(model, n_prompts=16, period=24))


def test_the_demo_s_sender_is_named_for_every_receiver(demo):
    assert [str(one.head) for one in demo.receivers] == list(DEMO)
    for one in demo.receivers:
        best = next(edge for edge in demo.edges if edge.receiver == one.head)
        assert str(best.sender) == "L0H4"
        assert best.share > 0.9
        assert best.q_value < 1e-6
        assert one.restored.mean >= 0.7
        assert one.unexplained == approx(1 - one.restored.mean)
        assert best.weights.rank == 1
        assert one.weights_agree == (best.weights.margin >= RULE.margin)
        # Query and value do not carry it.
        assert abs(best.query_effect.mean) < 0.01
        assert abs(one.strongest_query.mean) < 0.05
        assert best.loss_nats["k"].ci95[0] > 0.05
        for name in ("q", "v"):
            assert abs(best.loss_nats[name].mean) < 0.15 * best.loss_nats["k"].mean
        # The sender beside it is well behind.
        assert one.strongest_other.mean < 0.1
    assert demo.senders_tried == 6


def test_edges_are_strongest_first_and_within_the_rule(demo):
    for one in demo.receivers:
        effects = [edge.effect.mean for edge in demo.edges if edge.receiver == one.head]
        assert effects == sorted(effects, reverse=True)
    assert all(edge.share >= RULE.share and edge.q_value <= RULE.false_discovery for edge in demo.edges)
    assert demo.rule == RULE


def test_effects_and_shares_are_those_of_the_paths(demo):
    # From the module's definition, with paths of our own.
    model = hs.load("demo")
    pairs = corrupt_pairs(hs.repeated_tokens(model, n_prompts=16, period=24), seed=0)
    receiver = HeadId(1, 1)
    paths = Paths(model, pairs, [receiver])
    clean, corrupt = paths.stripe(paths.clean)[0], paths.stripe(paths.corrupt)[0]
    world = [frozenset([HeadId(0, 4)])]
    given = paths.contents(paths.clean, paths.corrupt, world)[receiver]
    lost = clean - paths.patched(paths.clean, receiver, "k", given["k"])[0]
    edge = next(edge for edge in demo.edges if edge.receiver == receiver)
    one = next(one for one in demo.receivers if one.head == receiver)
    assert edge.effect.mean == approx(lost.mean(), abs=1e-6)
    assert edge.share == approx(lost.mean() / (clean - corrupt).mean(), abs=1e-6)
    assert (one.stripe.mean, one.corrupt.mean) == approx((clean.mean(), corrupt.mean()), abs=1e-6)
    losses = paths.losses(paths.clean, [(receiver, name, given[name][0]) for name in ("k", "q", "v")])
    change = (losses - paths.loss(paths.clean)).mean(1)
    assert [edge.loss_nats[name].mean for name in ("k", "q", "v")] == approx(change.tolist(), abs=1e-5)
    named = [edge.sender for edge in demo.edges if edge.receiver == receiver]
    back = paths.contents(paths.corrupt, paths.clean, [frozenset(named)])[receiver]["k"]
    restored = (paths.patched(paths.corrupt, receiver, "k", back)[0] - corrupt) / (clean - corrupt).mean()
    assert one.restored.mean == approx(restored.mean(), abs=1e-6)


# ---- receivers: given, from a verification, or found


def test_the_terminal_says_what_is_known_of_a_receiver_and_what_is_not(demo, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "240")
    one = demo.receivers[0]

    def shown(**known):
        print_circuit(replace(demo, receivers=(replace(one, **known),), sets=()))
        return capsys.readouterr().out

    some = Estimate(mean=0.25, ci95=(0.2, 0.3))
    told = shown(strongest_other=some, context={"two_before_key": some, "before_query": replace(some, mean=0.01)})
    assert "strongest other sender through the key 0.250 [0.200, 0.300]" in told
    assert told.count("it also compares") == 1  # a share of 0.01 is below the rule's
    assert "another one takes 0.250" in told
    for agree, words in ((True, "weights agree"), (False, "weights do not tell"), (None, None)):
        told = shown(weights_agree=agree)
        assert ("weights " in told) == (words is not None)
        assert words is None or words in told
    assert "nothing found" in shown(restored=None, restored_mlps_held=None, unexplained=1.0)
    lost = shown(asked=False, restored=None, unexplained=None, strongest_other=None, strongest_query=None)
    assert "they cannot ask who carries it" in lost
    assert "strongest" not in lost


@pytest.fixture(scope="module")
def verified():
    truth = handbuilt(vocab_size=64, n_positions=64, seed=1)
    model = hs.load(truth.model)
    return truth, model, hs.verify(model, probe=hs.repeated_tokens(model, n_prompts=6, period=12))


def test_without_receivers_those_that_verification_calls_induction_are_explained():
    truth = handbuilt(vocab_size=160, n_positions=160, seed=1)
    steps = []
    found = trace_circuit(truth.model, progress=lambda what, done, total: steps.append(what))
    assert [one.head for one in found.receivers] == truth.heads("induction")
    assert found.receivers[0].verdict == "induction"
    (edge,) = found.edges
    assert [edge.sender] == truth.heads("previous_token")
    assert edge.previous_token > 0.9
    assert found.probe["n_prompts"] == tracing.N_PROMPTS
    assert found.probe["period"] == tracing.PERIOD
    assert {"patching, MLPs recomputed", "patching, MLPs held", "restoring"} <= set(steps)
    assert len(set(steps)) > 3  # and those of the verification


def test_a_verification_that_is_given_is_not_made_again(verified, monkeypatch):
    truth, model, verification = verified

    def again(*_, **__):
        raise AssertionError("verified once more")

    monkeypatch.setattr(tracing, "verify", again)
    found = trace_circuit(model, verification=verification, probe=short(model))
    assert [one.head for one in found.receivers] == truth.heads("induction")
    assert found.receivers[0].verdict == "induction"
    assert found.edges[0].previous_token == approx(
        next(one for one in verification.heads if one.head == found.edges[0].sender).attention["previous_token"]
    )


def test_a_verification_of_another_model_is_refused(verified):
    _, model, verification = verified
    for name, value in {"id": "gpt2", "revision": "main", "n_layers": 12}.items():
        other = replace(verification, model=replace(verification.model, **{name: value}))
        with pytest.raises(ArgumentError, match=f"verification= is of another model \\({name} {value!r}, not "):
            trace_circuit(model, verification=other, probe=short(model))


def test_the_clean_loss_is_measured_once_for_all_receivers(monkeypatch):
    model, measured, loss = hs.load("demo"), [], Paths.loss
    monkeypatch.setattr(Paths, "loss", lambda self, run: measured.append(run) or loss(self, run))
    found = trace_circuit(model, ["L1H1", "L1H5"], probe=hs.repeated_tokens(model, n_prompts=4, period=12))
    assert {str(one.receiver) for one in found.edges} == {"L1H1", "L1H5"}
    assert len(measured) == 1


def test_receivers_may_be_scores_names_or_heads(verified):
    truth, model, _ = verified
    (head,) = truth.heads("induction")
    score = hs.scan(model, probe=short(model)).ranked("induction")[0]
    assert score.head == head
    for given in (head, str(head), score, f"{head.layer}.{head.head}"):
        found = trace_circuit(model, [given], probe=short(model, n_prompts=3))
        assert [one.head for one in found.receivers] == [head]
        assert found.receivers[0].verdict is None
        assert found.edges[0].previous_token is None


def test_no_head_is_called_induction():
    model = hs.load(tiny_causal_lm("llama"))
    verification = hs.verify(model, probe=hs.repeated_tokens(model, n_prompts=4, period=8))
    found = trace_circuit(model, verification=verification, probe=hs.repeated_tokens(model, n_prompts=4, period=8))
    assert (found.receivers, found.edges, found.senders_tried) == ((), (), 0)
    assert found.notes == ("no head is called induction, so none is explained",)
    assert "no circuit found" in found.drawing()
    assert "no sender found" in repr(found)


def test_random_weights_have_no_circuit():
    model = hs.load(tiny_causal_lm("llama"))
    found = trace_circuit(
        model, [f"1.{head}" for head in range(4)], probe=hs.repeated_tokens(model, n_prompts=12, period=12)
    )
    assert found.edges == ()
    assert len(found.receivers) == 4
    for one in found.receivers:
        assert one.restored is None
        assert one.unexplained is None or one.unexplained == 1.0
    assert "no sender found" in repr(found)


def test_random_models_are_named_a_sender_seldom():
    # Six models of 4 senders and 4 receivers, 96 pairs: at most one false edge.
    n_edges = 0
    for seed in range(1, 7):
        model = hs.load(tiny_causal_lm("llama", seed=seed))
        probe = hs.repeated_tokens(model, n_prompts=12, period=12, seed=seed)
        n_edges += len(trace_circuit(model, [f"1.{head}" for head in range(4)], probe=probe, seed=seed).edges)
    assert n_edges <= 1


def test_the_same_seed_gives_the_same_circuit():
    truth, _ = traced(1)
    model = hs.load(truth.model)

    def document(seed):
        probe = short(model, n_prompts=4)
        found = trace_circuit(model, truth.heads("induction"), probe=probe, seed=seed).to_dict()
        del found["timing"], found["provenance"]
        return found

    assert document(7) == document(7)
    assert document(7) != document(8)


def test_receivers_in_several_layers():
    # A receiver in layer 1 is not fed by heads of layer 1 and 2, which are tried for the one in layer 3.
    config_of = {"n_layers": 4, "vocab_size": 96, "n_positions": 64}
    truth = next(
        one for one in (handbuilt(seed=seed, **config_of) for seed in range(50)) if one.heads("induction")[0].layer == 3
    )
    model = hs.load(truth.model)
    (last,) = truth.heads("induction")
    given = [HeadId(1, 0), last]
    found = trace_circuit(model, given, probe=short(model))
    assert [edge.receiver for edge in found.edges] == [last]
    assert [edge.sender for edge in found.edges] == truth.heads("previous_token")
    assert found.senders_tried == sum(head.layer < 3 for head in truth.roles)


def test_one_prompt_names_nothing():
    truth, _ = traced(0)
    model = hs.load(truth.model)
    probe = short(model, n_prompts=2)
    single = hs.Probe(prompts=probe.prompts[:1], controls=probe.controls[:1], settings=probe.settings)
    found = trace_circuit(model, truth.heads("induction"), probe=single)
    assert found.edges == ()
    assert found.receivers[0].stripe.ci95 is None


# ---- documents


def test_a_document_is_read_back_as_it_was(tmp_path, demo):
    document, drawing = demo.save(tmp_path / "new" / "folder")
    assert document == tmp_path / "new" / "folder" / "circuit.json"
    assert Circuit.load(document) == Circuit.load(tmp_path / "new" / "folder") == demo
    assert drawing.read_text() == demo.drawing()


def test_what_other_programs_rely_on(demo):
    document = json.loads(demo.to_json())
    assert document == demo.to_dict()
    assert document["schema"] == "headscope.circuit/1"
    assert {"model", "receivers", "edges", "notes", "rule", "probe", "provenance", "timing"} <= document.keys()
    first = document["edges"][0]
    assert first["sender"] == {"layer": 0, "head": 4}
    assert first["receiver"] == {"layer": 1, "head": 0}
    assert first["input"] == "k"
    assert {"mean", "ci95"} == first["effect"].keys()
    assert len(first["effect"]["ci95"]) == 2
    assert first["loss_nats"].keys() == {"k", "q", "v"}
    assert first["weights"].keys() == {"score", "ratio", "z", "rank", "of", "margin"}
    assert document["receivers"][0]["layer"] == 1
    assert document["receivers"][0]["restored"]["mean"] >= 0.7
    assert document["rule"] == {
        "share": 0.1,
        "false_discovery": 0.05,
        "z": 3.0,
        "margin": 1.1,
        "context": 0.5,
        "set_size": 8,
    }
    assert document["probe"]["twins"] == "one token before the key replaced"
    assert document["provenance"]["seed"] == 0
    assert document["timing"]["tokens"] == 2 * 16 * document["probe"]["length"]


def test_documents_of_all_kinds_are_read_back(tmp_path):
    truth, found = traced(2)
    assert Circuit.load(found.save(tmp_path / "grouped")[0]) == found
    model = hs.load(truth.model)
    nothing = trace_circuit(model, truth.heads("none")[-1:], probe=short(model))
    assert nothing.edges == ()
    assert list(nothing.to_frame().columns) == list(found.to_frame().columns)
    assert Circuit.load(nothing.save(tmp_path / "nothing")[0]) == nothing


def test_a_frame_has_one_row_per_edge(demo):
    frame = demo.to_frame()
    assert len(frame) == len(demo.edges)
    assert frame["sender"][0] == "L0H4"
    assert frame["effect"].tolist() == [edge.effect.mean for edge in demo.edges]
    assert frame["loss_nats"].tolist() == [edge.loss_nats["k"].mean for edge in demo.edges]
    assert (frame["k_composition_z"] > 3).any()


def test_the_drawing_has_every_head_and_every_edge(demo):
    root = xml.fromstring(demo.drawing())
    texts = {one.text for one in root.iter("{http://www.w3.org/2000/svg}text")}
    assert {str(edge.sender) for edge in demo.edges} | set(DEMO) <= texts
    titles = [one.text for one in root.iter("{http://www.w3.org/2000/svg}title")]
    assert len(titles) == len(demo.edges)
    assert any(title.startswith("L0H4 to the key of L1H5: ") for title in titles)
    assert demo._repr_html_() == demo.drawing()


def test_its_repr_names_the_first_edges(demo):
    first = demo.edges[0]
    assert repr(demo).startswith(f"Circuit(demo: L0H4 -> L1H0.k {first.share:.2f}, ")
    assert repr(demo).count("->") == 4


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{}", "schema None is not 'headscope.circuit/1'"),
        ('{"schema": "headscope.scan/1"}', "schema 'headscope.scan/1' is not 'headscope.circuit/1'"),
        ('{"schema": "headscope.circuit/1"}', "the document is damaged .*lacks model"),
    ],
)
def test_another_document_is_refused(content, message, tmp_path):
    path = tmp_path / "circuit.json"
    path.write_text(content)
    with pytest.raises(ArgumentError, match=message):
        Circuit.load(path)


# ---- models and prompts that cannot be traced


@pytest.mark.parametrize(
    ("receivers", "message"),
    [
        (["L0H1"], "L0H1 is in the first layer with attention; no head comes before it"),
        (["L1H0", "L0H1"], "L0H1 is in the first layer"),
        (["L9H9"], "has no head L9H9"),
        ([], "there is no head; name at least one"),
        (["best"], "'best' is not a head"),
        (["L1H1#1"], "never reaches L1H1#1: .*name the head without '#'"),
    ],
)
def test_receivers_that_cannot_be_explained(receivers, message):
    with pytest.raises(ArgumentError, match=message) as caught:
        trace_circuit(tiny_causal_lm("llama"), receivers)
    assert "\n" not in str(caught.value)


def test_in_a_hybrid_the_first_layer_with_attention_has_no_sender():
    # qwen3_next: layer 0 is linear attention, layer 1 the first and only one with heads that we see.
    model = hs.load(tiny_causal_lm("qwen3_next"))
    assert list(model.check.heads) == [1]
    with pytest.raises(ArgumentError, match="L1H0 is in the first layer with attention"):
        trace_circuit(model, ["L1H0"])
    # Where a verification calls it induction, it is left out.
    probe = hs.repeated_tokens(model, n_prompts=4, period=8)
    verification = hs.verify(model, ["L1H0"], probe=probe)
    called = replace(verification, heads=tuple(replace(one, verdict="induction") for one in verification.heads))
    assert trace_circuit(model, verification=called, probe=probe).receivers == ()


@pytest.mark.parametrize("family", ["mpt"])
def test_hidden_queries_and_keys_are_refused(family):
    with pytest.raises(UnsupportedModel, match="hides its queries and keys") as caught:
        trace_circuit(tiny_causal_lm(family), ["L1H0"])
    assert "\n" not in str(caught.value)


def test_weights_that_cannot_be_told_apart_leave_the_circuit_alone():
    # latent attention: paths are patched all the same, composition is not known and said so
    model = hs.load(tiny_causal_lm("deepseek_v3"))
    found = trace_circuit(model, ["L1H0"], probe=hs.repeated_tokens(model, n_prompts=4, period=8))
    assert "its weights cannot be assigned to heads, so composition is not known" in found.notes
    assert found.receivers[0].weights_agree is None


@pytest.mark.parametrize(
    ("prompts", "message"),
    [
        ([[5, 6, 7, 8, 9, 10]], "prompt 0 has no token that occurs once before its repeat"),
        ([[5, 6, 7, 8, 6, 7, 8], [5, 6, 7, 9, 10, 6, 7, 9]], "the prompts have 2 lengths, from 7 to 8 tokens"),
        ([[5, 6, 7, 8, 6, 7, 200]], "token id 200 is outside the vocabulary"),
    ],
)
def test_prompts_of_which_no_twin_can_be_made(prompts, message):
    with pytest.raises(TokenError, match=message) as caught:
        trace_circuit(tiny_causal_lm("llama"), ["L1H0"], probe=hs.probe_tokens(prompts))
    assert "\n" not in str(caught.value)
