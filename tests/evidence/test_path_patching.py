"""Path patching: against residual algebra by hand, against hooks on each family's own code, and in any batch.

Both references are written from the definition and share nothing with the code under test. The first adds up the
residual stream from what each head writes, in float64, from the model's named weights: right where MLPs write nothing.
The second runs the model's own eager code with values put into its output projections, MLPs and input projections.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from contextlib import ExitStack

import numpy as np
import pytest
import torch
from torch.nn.functional import layer_norm, rms_norm
from torch.utils._pytree import tree_leaves
from transformers import GPT2LMHeadModel, GPT2Model, LlamaForCausalLM

import headscope as hs
from benchmarks.tiny import tiny_causal_lm, tiny_config
from headscope.errors import ArgumentError, NonFiniteError, UnsupportedModel
from headscope.heads import HeadId
from headscope.interventions import paths as path_patching
from headscope.interventions.paths import Paths, mlps
from headscope.model.replay import Replay
from headscope.planted.handbuilt import DECOYS, handbuilt
from headscope.planted.handbuilt_rotary import handbuilt_rotary
from headscope.probes.corrupt import corrupt_pairs

TOLERANCE = 1e-5
H = HeadId


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    """Tensors this small gain nothing from a second thread, and lose much where cores are shared."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def pairs_of(model, *, n_prompts=4, period=8, seed=0, bos="auto"):
    return corrupt_pairs(hs.repeated_tokens(model, n_prompts=n_prompts, period=period, seed=seed, bos=bos), seed=seed)


def both_runs(paths, direction):
    return (paths.clean, paths.corrupt) if direction == "noising" else (paths.corrupt, paths.clean)


def tokens_of(pairs, direction):
    """Token ids of the base run and of the other one."""
    clean, corrupt = (torch.from_numpy(np.stack([getattr(one, run) for one in pairs])) for run in ("clean", "corrupt"))
    return (clean, corrupt) if direction == "noising" else (corrupt, clean)


# ---- the first reference: residual algebra


class Gpt2ByHand:
    """Embedding, norm, and heads of a GPT-2 whose MLPs write nothing, in float64."""

    def __init__(self, hf):
        self.hf, self.config = hf, hf.config
        assert all(not block.mlp.c_proj.weight.any() and not block.mlp.c_proj.bias.any() for block in hf.transformer.h)
        self.d_head = hf.config.n_embd // hf.config.n_head

    def embedded(self, tokens):
        body = self.hf.transformer
        return body.wte.weight.double()[tokens] + body.wpe.weight.double()[: len(tokens)]

    def norm(self, layer, stream):
        ln = self.hf.transformer.h[layer].ln_1
        return layer_norm(stream, stream.shape[-1:], ln.weight.double(), ln.bias.double(), ln.eps)

    def qkv(self, layer, head, normed):
        """q, k, v [position d_head] of a query head."""
        part = self.hf.transformer.h[layer].attn.c_attn
        mixed = (normed @ part.weight.double() + part.bias.double()).unflatten(-1, (3, -1, self.d_head))
        return mixed[:, 0, head], mixed[:, 1, head], mixed[:, 2, head]

    def written(self, layer, head, z):
        part = self.hf.transformer.h[layer].attn.c_proj
        return z @ part.weight.double()[head * self.d_head : (head + 1) * self.d_head]

    def layer_bias(self, layer):
        return self.hf.transformer.h[layer].attn.c_proj.bias.double()

    @property
    def n_heads(self):
        return self.config.n_head


class LlamaByHand:
    """The same of a Llama: RMSNorm, rotary embedding from its definition, biases, key-value heads that are shared."""

    def __init__(self, hf):
        self.hf, self.config = hf, hf.config
        assert all(not layer.mlp.down_proj.weight.any() for layer in hf.model.layers)
        self.d_head = hf.config.head_dim

    def embedded(self, tokens):
        return self.hf.model.embed_tokens.weight.double()[tokens]

    def norm(self, layer, stream):
        weight = self.hf.model.layers[layer].input_layernorm.weight.double()
        return rms_norm(stream, stream.shape[-1:], weight, self.config.rms_norm_eps)

    def turned(self, vectors):
        """Row n turned by n theta_i in each pair (i, i + d_head / 2), theta_i = base^(-2 i / d_head)."""
        half = self.d_head // 2
        base = self.config.rope_parameters["rope_theta"]
        angle = torch.arange(len(vectors)).double()[:, None] * base ** -(torch.arange(half).double() / half)
        first, second = vectors[:, :half], vectors[:, half:]
        return torch.cat(
            [first * angle.cos() - second * angle.sin(), second * angle.cos() + first * angle.sin()], dim=-1
        )

    def qkv(self, layer, head, normed):
        attention = self.hf.model.layers[layer].self_attn
        shared = head * self.config.num_key_value_heads // self.config.num_attention_heads

        def through(linear, index):
            rows = slice(index * self.d_head, (index + 1) * self.d_head)
            return normed @ linear.weight.double()[rows].T + linear.bias.double()[rows]

        q, k = through(attention.q_proj, head), through(attention.k_proj, shared)
        return self.turned(q), self.turned(k), through(attention.v_proj, shared)

    def written(self, layer, head, z):
        weight = self.hf.model.layers[layer].self_attn.o_proj.weight.double()
        return z @ weight[:, head * self.d_head : (head + 1) * self.d_head].T

    def layer_bias(self, layer):
        return self.hf.model.layers[layer].self_attn.o_proj.bias.double()

    @property
    def n_heads(self):
        return self.config.num_attention_heads


def row_of(by_hand, q, k, query):
    """Attention logits of one query over the keys it sees."""
    return k[: query + 1] @ q[query] / math.sqrt(by_hand.d_head)


@functools.cache
def heads_written(by_hand, token_ids, n_layers):
    """What every head of the first layers writes, {head: [position d_model]}, and the stream without them."""
    tokens = torch.tensor(token_ids)
    rest, found = by_hand.embedded(tokens), {}
    stream = rest
    for layer in range(n_layers):
        normed = by_hand.norm(layer, stream)
        rest = rest + by_hand.layer_bias(layer)
        for head in range(by_hand.n_heads):
            q, k, v = by_hand.qkv(layer, head, normed)
            logits = (q @ k.T / math.sqrt(by_hand.d_head)).masked_fill(
                torch.ones(len(tokens), len(tokens)).triu(1).bool(), -torch.inf
            )
            found[H(layer, head)] = by_hand.written(layer, head, logits.softmax(-1) @ v)
        stream = rest + sum(found.values())
    return found, rest


def stripe_by_hand(by_hand, twin, direction, senders, receiver, name):
    """The receiver's attention from query to key in the base run, one input as the senders' other content has it."""
    clean, corrupt = (heads_written(by_hand, tuple(run.tolist()), receiver.layer) for run in (twin.clean, twin.corrupt))
    (own, rest), (swapped, _) = (clean, corrupt) if direction == "noising" else (corrupt, clean)

    def qk(parts):
        normed = by_hand.norm(receiver.layer, rest + sum(parts.values()))
        return by_hand.qkv(receiver.layer, receiver.head, normed)[:2]

    q, k = qk(own)
    new_q, new_k = qk({head: (swapped if head in senders else own)[head] for head in own})
    if name == "q":
        q = new_q
    logits = row_of(by_hand, q, k, twin.query)
    if name == "k":
        logits[twin.key] = row_of(by_hand, q, new_k, twin.query)[twin.key]
    return float(logits.softmax(0)[twin.key])


@functools.cache
def without_mlps(name):
    """Model, its reference, a receiver, and senders that matter."""
    if name == "demo":
        model = hs.load("demo")
        return model, LlamaByHand(model.hf), H(1, 1), [H(0, 4), H(0, 1)]
    if name == "gpt2":
        built = handbuilt(vocab_size=96, n_positions=64, n_layers=3, decoys=DECOYS, seed=3)
        model, by_hand = hs.load(built.model), Gpt2ByHand(built.model)
    else:
        built = handbuilt_rotary(vocab_size=96, n_positions=64, grouped=name == "grouped", seed=3)
        model, by_hand = hs.load(built.model), LlamaByHand(built.model)
    return model, by_hand, *built.heads("induction"), built.heads("previous_token")


@pytest.mark.parametrize("direction", ["noising", "denoising"])
@pytest.mark.parametrize("name", ["gpt2", "demo", "rotary", "grouped"])
@torch.no_grad()
def test_equal_to_the_residual_stream_added_up_by_hand(name, direction):
    model, by_hand, receiver, senders = without_mlps(name)
    pairs = pairs_of(model, n_prompts=3)
    paths = Paths(model, pairs, [receiver])
    base, other = both_runs(paths, direction)
    singles = [frozenset([H(layer, head)]) for layer in range(receiver.layer) for head in range(by_hand.n_heads)]
    worlds = [*singles, frozenset(senders), frozenset().union(*singles)]
    contents = paths.contents(base, other, worlds)[receiver]
    for given in ("k", "q"):
        ours = paths.patched(base, receiver, given, contents[given])
        wanted = [
            [stripe_by_hand(by_hand, one, direction, world, receiver, given) for one in pairs] for world in worlds
        ]
        assert np.abs(ours - np.array(wanted)).max() < TOLERANCE
        if given == "k":  # and it is no small matter: these senders carry the stripe
            assert np.abs(ours[-2] - paths.stripe(base)[0]).min() > 0.3
    own = [[stripe_by_hand(by_hand, one, direction, (), receiver, "k") for one in pairs]]
    assert np.abs(paths.stripe(base) - np.array(own)).max() < TOLERANCE


# ---- the second reference: hooks on the family's own code, with MLPs that matter

N_LAYERS = 4


@functools.cache
def with_mlps(family):
    """A random model of four layers whose MLPs write as much as its heads."""
    config = tiny_config(family)
    setattr(config, {"gpt2": "n_layer", "llama": "num_hidden_layers"}[family], N_LAYERS)
    config.initializer_range = 0.15
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        hf = {"gpt2": GPT2LMHeadModel, "llama": LlamaForCausalLM}[family](config).eval()
        with torch.no_grad():
            for weight in hf.parameters():
                weight.add_(0.1 * torch.randn_like(weight))
    assert hf.config._attn_implementation == "eager"
    return hs.load(hf)


class OwnCode:
    """A model's own eager code, with values put in by plain hooks."""

    def __init__(self, family):
        self.family, self.hf = family, with_mlps(family).hf
        body = self.hf.transformer.h if family == "gpt2" else self.hf.model.layers
        attention = [layer.attn if family == "gpt2" else layer.self_attn for layer in body]
        self.output = [one.c_proj if family == "gpt2" else one.o_proj for one in attention]
        self.input = [one.c_attn if family == "gpt2" else (one.q_proj, one.k_proj, one.v_proj) for one in attention]
        self.mlp = [layer.mlp for layer in body]
        config = self.hf.config
        self.n_heads = config.num_attention_heads
        self.n_kv_heads = self.n_heads if family == "gpt2" else config.num_key_value_heads
        self.d_head = config.hidden_size // self.n_heads if family == "gpt2" else config.head_dim

    def columns(self, head):
        return slice(head * self.d_head, (head + 1) * self.d_head)

    def place_of(self, receiver, name):
        """The input projection that gives a head's q, k or v, and its columns there."""
        shared = receiver.head if name == "q" else receiver.head * self.n_kv_heads // self.n_heads
        if self.family == "gpt2":
            first = "qkv".index(name) * self.n_heads * self.d_head
            return self.input[receiver.layer], slice(first + shared * self.d_head, first + (shared + 1) * self.d_head)
        return self.input[receiver.layer]["qkv".index(name)], self.columns(shared)

    @torch.no_grad()
    def run(self, tokens, *, on_z=None, on_mlp=None, project=(), **options):
        """One pass; `on_z(layer, z)`, `on_mlp(layer, out)`, and each (module, edit) of `project` may change it."""
        with ExitStack() as hooks:
            for layer, module in enumerate(self.output):
                if on_z is not None:
                    hooks.callback(
                        module.register_forward_pre_hook(
                            lambda _, given, layer=layer: None if (z := on_z(layer, given[0])) is None else (z,)
                        ).remove
                    )
            for layer, module in enumerate(self.mlp):
                if on_mlp is not None:
                    hooks.callback(
                        module.register_forward_hook(lambda _, given, out, layer=layer: on_mlp(layer, out)).remove
                    )
            for module, edit in project:
                hooks.callback(module.register_forward_hook(lambda _, given, out, edit=edit: edit(out)).remove)
            return self.hf(input_ids=tokens, use_cache=False, **options)

    def kept(self, tokens):
        """Each layer's z and MLP output."""
        z, mlp = {}, {}
        self.run(
            tokens, on_z=lambda layer, one: z.update({layer: one}), on_mlp=lambda layer, one: mlp.update({layer: one})
        )
        return z, mlp

    def contents(self, base, other, senders, mlp, asked):
        """What input projections give when the senders write their other content: {(receiver, input): [prompt d_head]}.

        Args:
            base: Tokens and what `kept` gave for them.
            other: The same of the other run.
            senders: Whose z is the other run's.
            mlp: `held` or `recompute`.
            asked: The position of each prompt, by (receiver, input).
        """
        (tokens, (z, held)), (_, (z_other, _)) = base, other

        def frozen(layer, _):
            new = z[layer].clone()
            for head in senders:
                if head.layer == layer:
                    new[..., self.columns(head.head)] = z_other[layer][..., self.columns(head.head)]
            return new

        seen = {}

        def look(one):
            module, columns = self.place_of(*one)

            def keep(out):
                seen[one] = out[torch.arange(len(tokens)), asked[one]][:, columns]

            return module, keep

        self.run(
            tokens,
            on_z=frozen,
            on_mlp=(lambda layer, _: held[layer]) if mlp == "held" else None,
            project=[look(one) for one in asked],
        )
        return seen

    def with_input(self, base, receiver, name, at, content):
        """The base run with one projection's columns replaced at `at`: patterns, and the receiver's z."""
        module, columns = self.place_of(receiver, name)

        def put(out):
            out = out.clone()
            out[torch.arange(len(base)), at, columns] = content
            return out

        z = {}
        ran = self.run(
            base, on_z=lambda layer, one: z.update({layer: one}), project=[(module, put)], output_attentions=True
        )
        return ran.attentions[receiver.layer][:, receiver.head], z[receiver.layer][..., self.columns(receiver.head)]

    def loss(self, base, pairs, receiver, z_of_head):
        """Loss at the query of the base run with the receiver's z replaced, other heads' of its layer held."""

        def put(layer, z):
            if layer == receiver.layer:
                z = z.clone()
                z[..., self.columns(receiver.head)] = z_of_head
            return z

        logp = self.run(base, on_z=put).logits.double().log_softmax(-1)
        return np.array([-float(logp[row, one.query, one.clean[one.query + 1]]) for row, one in enumerate(pairs)])


WORLDS = [
    frozenset([H(0, 1)]),
    frozenset([H(2, 0)]),
    frozenset([H(0, 0), H(1, 2), H(2, 3)]),
    frozenset(H(layer, head) for layer in range(3) for head in range(4)),
]
RECEIVERS = [H(3, 2), H(2, 1), H(1, 3)]


@pytest.mark.parametrize("mlp", ["recompute", "held"])
@pytest.mark.parametrize("direction", ["noising", "denoising"])
@pytest.mark.parametrize("family", ["gpt2", "llama"])
@torch.no_grad()
def test_equal_to_hooks_on_the_model_s_own_code(family, direction, mlp):
    model, own = with_mlps(family), OwnCode(family)
    pairs = pairs_of(model)
    paths = Paths(model, pairs, RECEIVERS)
    assert paths.can_hold_mlps
    assert len(mlps(model)) == N_LAYERS
    base, other = both_runs(paths, direction)
    tokens, other_tokens = tokens_of(pairs, direction)
    query, key = (torch.tensor([getattr(one, name) for one in pairs]) for name in ("query", "key"))
    rows = torch.arange(len(pairs))
    given = paths.contents(base, other, WORLDS, mlp=mlp)
    asked = {(head, name): query if name == "q" else key for head in RECEIVERS for name in ("k", "q", "v")}
    kept, kept_other = (tokens, own.kept(tokens)), (other_tokens, own.kept(other_tokens))
    before = dict(zip(RECEIVERS, paths.stripe(base), strict=True))
    moved = dict.fromkeys(asked, 0.0)
    for world, senders in enumerate(WORLDS):
        contents = own.contents(kept, kept_other, senders, mlp, asked)
        for (head, name), at in asked.items():
            pattern, z = own.with_input(tokens, head, name, at, contents[head, name])
            wanted = pattern[rows, query, key].numpy()
            ours = paths.patched(base, head, name, given[head][name][world : world + 1])[0]
            assert np.abs(ours - wanted).max() < TOLERANCE, (head, name, senders)
            moved[head, name] = max(moved[head, name], np.abs(wanted - before[head]).max())
            if mlp == "recompute" and len(senders) > 1:
                (loss,) = paths.losses(base, [(head, name, given[head][name][world])])
                assert np.abs(loss - own.loss(tokens, pairs, head, z)).max() < TOLERANCE, (head, name, senders)
    for (head, name), most in moved.items():  # it is no small matter, but for values, on which no stripe depends
        assert (most < TOLERANCE) if name == "v" else (most > 1e-3), (head, name)


def test_mlps_make_a_difference():
    # The two settings are not the same number twice.
    model = with_mlps("llama")
    paths = Paths(model, pairs_of(model), [H(3, 2)])
    held, free = (
        paths.contents(paths.clean, paths.corrupt, WORLDS, mlp=mlp)[H(3, 2)]["k"] for mlp in ("held", "recompute")
    )
    assert (held - free).abs().amax((1, 2)).min() > 1e-3


# ---- what must not matter


@pytest.fixture(scope="module")
def deep():
    model = with_mlps("llama")
    return Paths(model, pairs_of(model), RECEIVERS)


def same(given, wanted, tolerance=1e-6):
    for head in wanted:
        for name in ("k", "q", "v"):
            assert given[head][name].shape == wanted[head][name].shape
            assert (given[head][name] - wanted[head][name]).abs().max() <= tolerance, (head, name)


def own_content(paths, run, n_worlds=1):
    return {
        head: {name: part.expand(n_worlds, -1, -1) for name, part in paths.own(run, head).items()} for head in run.asked
    }


def test_what_overflows_is_refused_and_not_tested():
    # q . k of 3e38 * 3e38 is past the numbers of float32, and infinity minus infinity is none
    model = hs.load(tiny_causal_lm("llama"))
    paths = Paths(model, pairs_of(model), [H(1, 0)])
    asked = paths.clean.asked[H(1, 0)]
    content = torch.full_like(asked.q, float("inf"))[None]
    with pytest.raises(NonFiniteError, match="a patched stripe is NaN or infinite; load the model in a wider dtype"):
        paths.patched(paths.clean, H(1, 0), "k", content * torch.tensor([1.0, -1.0] * (content.shape[-1] // 2)))
    with pytest.raises(NonFiniteError, match="a patched loss is NaN or infinite"):
        paths.losses(paths.clean, [(H(1, 0), "v", torch.full_like(content[0], float("nan")))])
    paths.clean.asked[H(1, 0)] = dataclasses.replace(asked, q=asked.q * float("nan"))
    with pytest.raises(NonFiniteError, match="a stripe is NaN"):
        paths.stripe(paths.clean)


@pytest.mark.parametrize("mlp", ["recompute", "held"])
def test_without_a_sender_the_content_is_the_base_s_own(deep, mlp):
    for base, other in ((deep.clean, deep.corrupt), (deep.corrupt, deep.clean)):
        same(deep.contents(base, other, [frozenset()], mlp=mlp), own_content(deep, base), tolerance=0.0)
        same(deep.contents(base, other, [frozenset()] * 3, mlp=mlp), own_content(deep, base, 3))


def test_all_that_differs_comes_through_earlier_heads_and_the_changed_token(deep):
    # With every head swapped, what is left of the difference is the changed token's own embedding, at `changed` alone:
    # the key, which stands after it, is the other run's.
    everyone = frozenset(H(layer, head) for layer in range(N_LAYERS) for head in range(4))
    given = deep.contents(deep.clean, deep.corrupt, [everyone])
    same(given, own_content(deep, deep.corrupt), tolerance=1e-5)


def test_senders_in_the_receiver_s_layer_or_later_do_nothing(deep):
    for receiver in RECEIVERS:
        late = [frozenset([H(layer, 0), H(layer, receiver.head)]) for layer in range(receiver.layer, N_LAYERS)]
        given = deep.contents(deep.clean, deep.corrupt, late)[receiver]
        for name, part in given.items():
            assert (part - deep.own(deep.clean, receiver)[name]).abs().max() <= 1e-6
    # Also where no receiver comes after them at all.
    same(deep.contents(deep.clean, deep.corrupt, [frozenset([H(3, 1)])]), own_content(deep, deep.clean), tolerance=0.0)


def test_worlds_in_one_batch_do_not_influence_each_other(deep):
    together = deep.contents(deep.clean, deep.corrupt, WORLDS)
    for number, world in enumerate(WORLDS):
        alone = deep.contents(deep.clean, deep.corrupt, [world])
        same(
            {head: {name: part[number : number + 1] for name, part in by.items()} for head, by in together.items()},
            alone,
        )


@pytest.mark.parametrize("mlp", ["recompute", "held"])
@pytest.mark.parametrize("limit", [1, 200])
def test_batch_limits_and_order_do_not_matter(deep, limit, mlp, monkeypatch):
    # Alone in its batch, the sender L2H0 starts behind the receiver L1H3: nothing reaches that one.
    worlds = [WORLDS[number] for number in (1, 0, 3, 2)] + [frozenset([H(1, 3)])]
    whole = deep.contents(deep.clean, deep.corrupt, worlds, mlp=mlp)
    changes = [(head, name, whole[head][name][1]) for head in RECEIVERS for name in ("v", "k", "q")]
    losses = deep.losses(deep.clean, changes)
    monkeypatch.setattr(path_patching, "BATCH_TOKENS", {"cpu": limit})
    steps = []
    again = deep.contents(
        deep.clean, deep.corrupt, worlds, mlp=mlp, progress=lambda done, total: steps.append((done, total))
    )
    same(again, whole)
    assert steps[-1] == (5, 5)
    assert len(steps) == {1: 5, 200: 3}[limit]  # 4 prompts of 25 tokens: two worlds in 200
    assert np.abs(deep.losses(deep.clean, changes) - losses).max() < 1e-6


def test_running_out_of_memory_halves_the_batch(deep, monkeypatch):
    whole = deep.contents(deep.clean, deep.corrupt, WORLDS)
    see, tried = Replay.see, []

    def small(self, visit, *, start=0, copies=1):
        tried.append(copies)
        if copies > 2:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory")
        return see(self, visit, start=start, copies=copies)

    monkeypatch.setattr(Replay, "see", small)
    same(deep.contents(deep.clean, deep.corrupt, WORLDS), whole)
    assert tried == [4, 2, 2]


def what_is_in_place(model):
    """Forwards put over a module's own, and hooks. transformers leaves hooks where patterns were asked for."""
    modules = [
        (name, module.__dict__.get("forward"), list(module._forward_pre_hooks), list(module._forward_hooks))
        for name, module in model.hf.named_modules()
    ]
    return modules, model.hf.config._attn_implementation


@pytest.mark.parametrize("mlp", ["recompute", "held"])
def test_the_model_is_left_as_it_was_also_after_an_exception(mlp, monkeypatch):
    model = with_mlps("gpt2")
    before = {name: weight.clone() for name, weight in model.hf.state_dict().items()}
    in_place = what_is_in_place(model)
    paths = Paths(model, pairs_of(model), RECEIVERS)
    assert what_is_in_place(model) == in_place
    paths.contents(paths.clean, paths.corrupt, WORLDS, mlp=mlp)
    assert what_is_in_place(model) == in_place

    def broken(*_):
        raise ZeroDivisionError

    with monkeypatch.context() as patch:
        patch.setattr(Paths, "_contents_of", broken)
        with pytest.raises(ZeroDivisionError):
            paths.contents(paths.clean, paths.corrupt, WORLDS, mlp=mlp)
        assert what_is_in_place(model) == in_place
        patch.setattr(Paths, "_asked", broken)
        with pytest.raises(ZeroDivisionError):
            Paths(model, pairs_of(model), RECEIVERS)
        assert what_is_in_place(model) == in_place
    with monkeypatch.context() as patch:
        patch.setattr(Paths, "_recomputed", broken)
        with pytest.raises(ZeroDivisionError):
            paths.losses(paths.clean, [(RECEIVERS[0], "k", paths.own(paths.clean, RECEIVERS[0])["k"][0])])
    assert what_is_in_place(model) == in_place
    assert all(torch.equal(weight, before[name]) for name, weight in model.hf.state_dict().items())


def test_what_was_kept_is_not_written_to(deep):
    before = {
        at: z.clone() for at, z in (deep.clean.z | {("corrupt", *at): z for at, z in deep.corrupt.z.items()}).items()
    }
    given = deep.contents(deep.clean, deep.corrupt, WORLDS, mlp="held")
    deep.losses(deep.clean, [(RECEIVERS[0], "k", given[RECEIVERS[0]]["k"][0])])
    after = deep.clean.z | {("corrupt", *at): z for at, z in deep.corrupt.z.items()}
    assert all(torch.equal(z, before[at]) for at, z in after.items())


# ---- families

FAMILIES = [
    "gpt_neox",  # fused q, k, v; attention and MLP side by side
    "llama",  # 4 query heads share 2 KV heads
    "qwen3",  # query-key norm
    "deepseek_v3",  # latent attention: values narrower than keys
    "gpt_oss",  # sinks
    "gemma2",  # soft-cap
    "mistral",  # window of 8
]


@functools.cache
def of_family(family):
    model = hs.load(tiny_causal_lm(family))
    pairs = pairs_of(model, n_prompts=6, period=6)
    return model, pairs, Paths(model, pairs, [H(1, 0), H(1, 3)])


@torch.no_grad()
def own_attention(model, pairs, run):
    """The receivers' eager attention from query to key [receiver prompt], and the loss at the query."""
    tokens = torch.from_numpy(np.stack([getattr(one, run) for one in pairs]))
    ran = model.hf(input_ids=tokens, use_cache=False, output_attentions=True)
    stripe = [[float(ran.attentions[1][i, head, one.query, one.key]) for i, one in enumerate(pairs)] for head in (0, 3)]
    logp = ran.logits.double().log_softmax(-1)
    loss = [-float(logp[i, one.query, one.clean[one.query + 1]]) for i, one in enumerate(pairs)]
    return np.array(stripe), np.array(loss)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_run_s_stripe_and_loss_are_those_of_the_model_s_own_code(family):
    model, pairs, paths = of_family(family)
    for name, run in (("clean", paths.clean), ("corrupt", paths.corrupt)):
        stripe, loss = own_attention(model, pairs, name)
        assert np.abs(paths.stripe(run) - stripe).max() < TOLERANCE
        assert np.abs(paths.loss(run) - loss).max() < TOLERANCE


@pytest.mark.parametrize("family", FAMILIES)
def test_its_own_content_put_back_changes_nothing(family):
    _, _, paths = of_family(family)
    for run in (paths.clean, paths.corrupt):
        for row, head in enumerate(paths.receivers):
            own = paths.own(run, head)
            for name in ("k", "q", "v"):
                given = paths.patched(run, head, name, own[name].expand(2, -1, -1))
                assert given.shape == (2, paths.n_prompts)
                assert np.abs(given - paths.stripe(run)[row]).max() < TOLERANCE
                losses = paths.losses(run, [(head, name, own[name][0])])
                assert np.abs(losses - paths.loss(run)).max() < TOLERANCE
    # and other content does not
    head = paths.receivers[0]
    other = paths.losses(
        paths.clean, [(head, name, 1 - paths.own(paths.clean, head)[name][0]) for name in ("k", "q", "v")]
    )
    assert np.abs(other - paths.loss(paths.clean)).max(1).min() > 1e-3


@pytest.mark.parametrize("family", FAMILIES)
def test_all_senders_together_bring_the_other_run_s_key(family):
    _, _, paths = of_family(family)
    everyone = frozenset(H(0, head) for head in range(4))
    given = paths.contents(paths.clean, paths.corrupt, [everyone])
    same(given, own_content(paths, paths.corrupt), tolerance=1e-5)


@pytest.mark.parametrize("family", ["opt", "llama4_text"])
def test_mlps_that_give_a_row_for_every_token_are_held_too(family):
    # [prompt * position, d] and not [prompt, position, d]: a batch of 3 worlds needs every row of each world
    _, _, paths = of_family(family)
    shapes = {part.shape for kept in paths.clean.held.values() for part in tree_leaves(kept) if part.dim() == 2}
    assert paths.clean.replay.tokens.numel() in {shape[0] for shape in shapes}
    same(
        paths.contents(paths.clean, paths.corrupt, [frozenset()] * 3, mlp="held"),
        own_content(paths, paths.clean, 3),
        1e-6,
    )


@pytest.mark.parametrize("n_worlds", [1, 3])
def test_what_a_family_adds_in_place_to_its_mlps_output_is_not_held(n_worlds):
    # Falcon does `mlp_output += attention_output`: what was kept must not be what it adds to, in any pass
    _, _, paths = of_family("falcon")
    for _ in range(2):
        given = paths.contents(paths.clean, paths.corrupt, [frozenset()] * n_worlds, mlp="held")
        same(given, own_content(paths, paths.clean, n_worlds), tolerance=1e-6)


def test_a_key_outside_the_window_has_no_attention_whatever_is_put_there():
    _, pairs, paths = of_family("mistral")
    outside = np.array([one.query - one.key >= 8 for one in pairs])
    assert outside.any()
    assert not outside.all()
    head = paths.receivers[0]
    huge = paths.own(paths.clean, head)["k"] * 100
    for given in (paths.stripe(paths.clean)[0], paths.patched(paths.clean, head, "k", huge)[0]):
        assert (given[outside] == 0).all()
    assert (paths.stripe(paths.clean)[0][~outside] > 0).all()


@pytest.mark.parametrize("family", ["mpt"])
def test_a_model_that_hides_its_queries_and_keys_is_refused_in_one_line(family):
    model = hs.load(tiny_causal_lm(family))
    with pytest.raises(UnsupportedModel, match="hides its queries and keys, so no path into them can be patched") as e:
        Paths(model, pairs_of(model), [H(1, 0)])
    assert "\n" not in str(e.value)


def test_a_model_without_an_lm_head_is_refused():
    with torch.random.fork_rng(devices=[]):
        model = hs.load(GPT2Model(tiny_config("gpt2")).eval())
    with pytest.raises(UnsupportedModel, match="gives no logits over a vocabulary"):
        Paths(model, pairs_of(model), [H(1, 0)])


def test_a_call_that_never_comes_is_refused():
    model = with_mlps("llama")
    with pytest.raises(ArgumentError, match="never reaches L1H3#1: .*name the head without '#'"):
        Paths(model, pairs_of(model), [H(1, 3, 1)])


def test_a_looped_model_s_second_call_is_a_receiver_of_its_own():
    # hrm_text runs layer 0 at executions 0, 2, 4, 8, 10, 12. Its parts run more than once and cannot be held.
    model = hs.load(tiny_causal_lm("hrm_text"))
    paths = Paths(model, pairs_of(model), [H(0, 1), H(0, 1, 1)])
    assert not paths.can_hold_mlps
    early, late = paths.contents(paths.clean, paths.corrupt, [frozenset([H(0, 2)]), frozenset([H(0, 2, 1)])]).values()
    own = {head: paths.own(paths.clean, head) for head in paths.receivers}
    assert (early["k"] - own[H(0, 1)]["k"]).abs().max() <= 1e-6
    assert (late["k"][0] - own[H(0, 1, 1)]["k"][0]).abs().max() > 1e-3
    assert (late["k"][1] - own[H(0, 1, 1)]["k"][0]).abs().max() <= 1e-6
