"""Path patching: does what one head writes reach another head's key, and is that why it looks there?

On pairs of a clean and a corrupt prompt (`headscope.probes.corrupt`) that differ in one token:

    1. The base run is repeated with every head's z held at its base value, but the sender's, which is set to that of
       the other run. So nothing moves but what the sender wrote, and what follows from it without another head's help:
       the residual stream, norms, and MLPs, which recompute, or keep their base values too.
    2. The receiver's input is read there: its key at the target, or its query, or its value at the target.
    3. It replaces that of the base run, nothing else, and the receiver's stripe is computed: with l' the new logit,

           p' = exp(l') / (exp(l') + sum over other keys of exp(l))       exact; a new query changes its whole row

    effect = stripe(base) - stripe(with the sender's other content)

Noising takes the clean run as base and the corrupt one as other: what breaks. Denoising is the other way round: what a
set of senders restores by itself. No weights are used, so rotary embedding, query-key norm, grouped queries and norms
on either side are right by construction. Under grouped queries the key is changed for the one query head, though
heads of its group share it.

Cost: for each sender a pass from its layer to the last receiver's, no unembedding; many senders ride in one batch.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from headscope.errors import ArgumentError, NonFiniteError, UnsupportedModel
from headscope.heads import HeadId
from headscope.interventions.ablation import BATCH_TOKENS, token_losses
from headscope.model import kernels
from headscope.model.attention import Attention
from headscope.model.kernels import AttentionSpec, additive
from headscope.model.load import Model
from headscope.model.memory import in_batches
from headscope.model.precision import widened, widest
from headscope.model.replay import Replay, copied, decoder_layers
from headscope.model.scope import around
from headscope.model.taps import Stop
from headscope.probes.corrupt import CorruptPair

Input = Literal["q", "k", "v"]
INPUTS: tuple[Input, ...] = ("k", "q", "v")
Mlps = Literal["recompute", "held"]

Sources = frozenset[HeadId]
"""The senders whose content is swapped, together."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Asked:
    """A receiver's row at the query, in one run."""

    q: Float[Tensor, "prompt d_qk"]
    k: Float[Tensor, "prompt key d_qk"]
    v: Float[Tensor, "prompt key d_v"]
    row: Callable[[Tensor], Tensor]
    """From queries [world prompt d_qk] to their rows' logits [world prompt key], sink last."""
    at: Callable[[Tensor, Tensor, Tensor], Tensor]
    """From queries and keys [world prompt d_qk], and the keys' places [prompt], to logits [world prompt]."""

    def stripe(self, target: Tensor, q: Tensor | None = None, k: Tensor | None = None) -> Float[Tensor, "world prompt"]:
        """Attention at the target; with another query, another key at the target, or both."""
        queries = self.q[None] if q is None else widened(q)
        prompt = torch.arange(len(target), device=target.device)
        others = self.row(queries)
        logit = others[:, prompt, target] if k is None else self.at(queries, k, target)
        others[:, prompt, target] = -torch.inf
        return torch.sigmoid(logit - torch.logsumexp(others, dim=-1))


Contents = dict[Input, Float[Tensor, "world prompt _d"]]
"""A receiver's q at the query, k and v at the target."""


@dataclass(slots=True)
class _Run:
    """One pass over clean or corrupt prompts, and what it left."""

    replay: Replay
    z: dict[tuple[int, int], Tensor] = field(default_factory=dict[tuple[int, int], Tensor])
    asked: dict[HeadId, _Asked] = field(default_factory=dict[HeadId, "_Asked"])
    held: dict[nn.Module, Any] = field(default_factory=dict[nn.Module, Any])


class Paths:
    """Pairs of prompts of one length, run once clean and once corrupt; then ask for any path.

    Args:
        model: A loaded model whose queries and keys can be seen.
        pairs: Of one length.
        receivers: Heads whose stripe is asked for.
        clean: The clean run of other `Paths` with the same clean prompts and receivers, to save a pass.
        offsets: How far after the key a receiver's target is; 0 where not given.

    Raises:
        ArgumentError: a receiver in a call that its layer never makes.
        UnsupportedModel: the model hides its queries and keys, or has no LM head.
        NonFiniteError: from the methods, a stripe or a loss that is NaN or infinite, as after an overflow in float16.
    """

    def __init__(
        self,
        model: Model,
        pairs: Sequence[CorruptPair],
        receivers: Sequence[HeadId],
        *,
        clean: _Run | None = None,
        offsets: Mapping[HeadId, int] | None = None,
    ) -> None:
        self.model: Model = model
        self.receivers: tuple[HeadId, ...] = tuple(receivers)
        self._query = torch.tensor([pair.query for pair in pairs], device=model.device)
        self._key = torch.tensor([pair.key for pair in pairs], device=model.device)
        self._rows = torch.arange(len(pairs), device=model.device)
        self._next = torch.tensor([int(pair.clean[pair.query + 1]) for pair in pairs], device=model.device)
        self._mlps = mlps(model)
        self.offsets: dict[HeadId, int] = dict(offsets or {})
        self.clean: _Run = clean or self._base([pair.clean for pair in pairs])
        for head in self.receivers:
            if head not in self.clean.asked:
                raise ArgumentError(
                    f"{model.id} never reaches {head}: its layer {head.layer} does not run its attention "
                    f"{head.call + 1} times in a pass; name the head without '#'."
                )
        self.corrupt: _Run = self._base([pair.corrupt for pair in pairs])

    @property
    def n_prompts(self) -> int:
        """Pairs of a clean and a corrupt prompt."""
        return len(self._rows)

    @property
    def can_hold_mlps(self) -> bool:
        """Whether the model has MLPs of its own to hold, each run once."""
        return bool(self._mlps)

    def stripe(self, run: _Run) -> Float[np.ndarray, "receiver prompt"]:
        """Attention from query to target in a run."""
        found = [run.asked[head].stripe(self._target(head, run.asked[head].q))[0] for head in self.receivers]
        return _finite(np.stack([one.cpu().numpy() for one in found]), "a stripe")

    def own(self, run: _Run, head: HeadId) -> Contents:
        """A receiver's q, k and v in a run itself, as one world."""
        asked = run.asked[head]
        place = self._target(head, asked.q)
        prompt = torch.arange(self.n_prompts, device=place.device)
        return {"q": asked.q[None], "k": asked.k[prompt, place][None], "v": asked.v[prompt, place][None]}

    def contents(
        self,
        base: _Run,
        other: _Run,
        worlds: Sequence[Sources],
        *,
        mlp: Mlps = "recompute",
        progress: Callable[[int, int], None] | None = None,
    ) -> dict[HeadId, Contents]:
        """What reaches each receiver when senders write, in the base run, what they write in the other one.

        Args:
            base: `clean` for noising, `corrupt` for denoising.
            other: The other of the two.
            worlds: Sets of senders, one for each world; senders in a receiver's layer or later do not reach it.
            mlp: MLPs recompute, or keep their base values.
            progress: Called with (worlds done, worlds).
        """
        last = max((head.layer, head.call) for head in self.receivers)
        order = sorted(range(len(worlds)), key=lambda one: _start(base, worlds[one]))
        kept: dict[HeadId, dict[Input, list[Tensor]]] = {head: {"q": [], "k": [], "v": []} for head in self.receivers}
        limit = BATCH_TOKENS.get(self.model.device.type, BATCH_TOKENS["cpu"])
        size = max(1, limit // base.replay.tokens.numel())

        def run(part: Sequence[int]) -> dict[HeadId, dict[Input, Tensor]]:
            n_copies, read = len(part), dict[HeadId, dict[Input, Tensor]]()

            def visit(attention: Attention) -> Tensor:
                at = (attention.layer, attention.call)
                for head in self.receivers:
                    if (head.layer, head.call) == at:
                        read[head] = self._contents_of(attention, head, n_copies)
                if at == last:
                    raise Stop
                z = base.z[at].repeat(n_copies, 1, 1, 1)
                for copy, number in enumerate(part):
                    for head in worlds[number]:
                        if (head.layer, head.call) == at:
                            rows = slice(copy * self.n_prompts, (copy + 1) * self.n_prompts)
                            z[rows, :, head.head] = other.z[at][:, :, head.head]
                return z

            with self._holding(base, n_copies) if mlp == "held" else nullcontext():
                base.replay.see(visit, start=min(_start(base, worlds[one]) for one in part), copies=n_copies)
            # Where every sender starts behind a receiver, it did not run: nothing reaches it, its base content stays.
            for head in self.receivers:
                if head not in read:
                    read[head] = {name: own.expand(n_copies, -1, -1) for name, own in self.own(base, head).items()}
            return read

        done = 0
        for part, read in in_batches(order, size, run):
            for head, by_input in read.items():
                for name, vectors in by_input.items():
                    kept[head][name].append(vectors)
            done += len(part)
            if progress is not None:
                progress(done, len(worlds))
        back = torch.from_numpy(np.argsort(order))
        return {head: {name: torch.cat(vectors)[back] for name, vectors in by.items()} for head, by in kept.items()}

    def patched(self, run: _Run, head: HeadId, name: Input, content: Tensor) -> Float[np.ndarray, "world prompt"]:
        """A receiver's stripe in a run, with another q or k put in. Another v leaves it as it is."""
        return self.replaced(run, head, {name: content})

    def replaced(self, run: _Run, head: HeadId, contents: Contents) -> Float[np.ndarray, "world prompt"]:
        """The same with several inputs replaced at once."""
        asked = run.asked[head]
        new = asked.stripe(self._target(head, asked.q), contents.get("q"), contents.get("k"))
        n_worlds = max(len(content) for content in contents.values())
        return _finite(new.expand(n_worlds, -1).cpu().numpy(), "a patched stripe")

    def losses(
        self, run: _Run, changes: Sequence[tuple[HeadId, Input, Float[Tensor, "prompt _d"]]]
    ) -> Float[np.ndarray, "change prompt"]:
        """Loss at the query of a run with one input of one receiver replaced; each change is a world of its own."""
        found = np.empty((len(changes), self.n_prompts))
        limit = BATCH_TOKENS.get(self.model.device.type, BATCH_TOKENS["cpu"])
        order = sorted(range(len(changes)), key=lambda one: (changes[one][0].layer, changes[one][0].call))

        def execute(part: Sequence[int]) -> np.ndarray:
            n_copies = len(part)

            def visit(attention: Attention) -> Tensor | None:
                here = [
                    copy
                    for copy, one in enumerate(part)
                    if (changes[one][0].layer, changes[one][0].call) == (attention.layer, attention.call)
                ]
                if not here:
                    return None
                z = attention.z.clone()
                for copy in here:
                    head, name, content = changes[part[copy]]
                    rows = slice(copy * self.n_prompts, (copy + 1) * self.n_prompts)
                    z[rows, :, head.head] = self._recomputed(attention, rows, head, name, content)
                return z

            places = torch.stack([torch.arange(n_copies * self.n_prompts), self._query.cpu().repeat(n_copies)], dim=1)
            start = min(_start(run, {changes[one][0]}) for one in part)
            logits = run.replay.logits(visit, start=start, copies=n_copies, places=places.to(self.model.device))
            return token_losses(logits, self._next.repeat(n_copies)).cpu().double().numpy().reshape(n_copies, -1)

        for part, values in in_batches(order, max(1, limit // run.replay.tokens.numel()), execute):
            found[list(part)] = values
        return _finite(found, "a patched loss")

    def loss(self, run: _Run) -> Float[np.ndarray, " prompt"]:
        """Loss at the query of an untouched run."""
        places = torch.stack([self._rows, self._query], dim=1)
        logits = run.replay.logits(lambda attention: None, places=places)
        return _finite(token_losses(logits, self._next).cpu().double().numpy(), "a loss")

    def _base(self, prompts: Sequence[np.ndarray]) -> _Run:
        tokens = torch.from_numpy(np.stack(prompts)).to(self.model.device)
        run = _Run(replay=Replay(self.model, tokens))

        def visit(attention: Attention) -> None:
            run.z[attention.layer, attention.call] = attention.z.clone()
            for head in self.receivers:
                if (head.layer, head.call) == (attention.layer, attention.call):
                    run.asked[head] = self._asked(attention, head)

        def keep(module: nn.Module, own: Any, arguments: tuple[Any, ...], named: dict[str, Any]) -> Any:
            given = own(*arguments, **named)
            run.held[module] = _cloned(given)
            return given

        with around(self._mlps, keep):
            run.replay.clean(visit, places=torch.stack([self._rows, self._query], dim=1))
        return run

    @contextmanager
    def _holding(self, base: _Run, n_copies: int) -> Generator[None, None, None]:
        def give(module: nn.Module, own: Any, arguments: tuple[Any, ...], named: dict[str, Any]) -> Any:
            return _cloned(copied(base.held[module], base.replay.tokens, n_copies))

        with around(self._mlps, give):
            yield

    def _contents_of(self, attention: Attention, head: HeadId, n_copies: int) -> dict[Input, Tensor]:
        s = attention.scores
        assert s is not None, "receivers were asked in the base run"
        kv = head.head * s.k.shape[1] // s.q.shape[1]
        rows = torch.arange(n_copies * self.n_prompts, device=s.q.device)
        query, key = self._query.repeat(n_copies).to(s.q.device), self._target(head, s.q).repeat(n_copies)
        parts: dict[Input, Tensor] = {
            "q": s.q[rows, head.head, query],
            "k": s.k[rows, kv, key],
            "v": s.v[rows, kv, key],
        }
        return {name: part.unflatten(0, (n_copies, self.n_prompts)).clone() for name, part in parts.items()}

    def _asked(self, attention: Attention, head: HeadId) -> _Asked:
        s = attention.scores
        if s is None:
            raise UnsupportedModel(
                f"{self.model.id} ({self.model.family}) hides its queries and keys, so no path into them can be "
                "patched; ablation with `headscope verify` works."
            )
        rule, n_heads = s.rule, s.q.shape[1]
        kv = head.head * s.k.shape[1] // n_heads
        rows, query = self._rows.to(s.q.device), self._query.to(s.q.device)
        q, k, v = (widened(one) for one in (s.q[rows, head.head, query], s.k[:, kv], s.v[:, kv]))
        added = _bias_rows(rule, head.head, rows, query, k.shape[1])
        sink = _sinks(rule, head.head, rows, query)

        def scaled(dots: Tensor) -> Tensor:
            dots = dots * rule.scale
            return dots if rule.softcap is None else torch.tanh(dots / rule.softcap) * rule.softcap

        def row(queries: Tensor) -> Tensor:
            logits = scaled(torch.einsum("wpd,pkd->wpk", widened(queries), k)) + added
            return logits if sink is None else torch.cat([logits, sink[None, :, None].expand(len(logits), -1, 1)], -1)

        def at(queries: Tensor, keys: Tensor, place: Tensor) -> Tensor:
            return scaled((widened(keys) * queries).sum(-1)) + added[rows, place]

        return _Asked(q=q, k=k, v=v, row=row, at=at)

    def _target(self, head: HeadId, like: Tensor) -> Int[Tensor, " prompt"]:
        """Where a receiver's key and value are read, on the device of another tensor."""
        return torch.minimum(self._key + self.offsets.get(head, 0), self._query).to(like.device)

    def _recomputed(
        self, attention: Attention, rows: slice, head: HeadId, name: Input, content: Tensor
    ) -> Float[Tensor, "prompt position d_v"]:
        """The receiver's z with one input replaced."""
        s = attention.scores
        assert s is not None, "receivers were asked in the base run"
        kv = head.head * s.k.shape[1] // s.q.shape[1]
        q, k, v = s.q[rows, head.head, None].clone(), s.k[rows, kv, None].clone(), s.v[rows, kv, None].clone()
        target = self._target(head, q)
        part, place = {"q": (q, self._query), "k": (k, target), "v": (v, target)}[name]
        part[self._rows.to(part.device), 0, place.to(part.device)] = content.to(part)
        z, _, _ = kernels.attend(q, k, v, _rule_of_head(s.rule, head.head, rows))
        return z[:, 0]


def _cloned(given: Any) -> Any:
    """What a module gave, safe from a family that adds to it in place (Falcon)."""

    def clone(part: Any) -> Any:
        return part.clone() if isinstance(part, Tensor) else part

    return tree_map(clone, given)


def mlps(model: Model) -> list[nn.Module]:
    """Parts of the decoder layers that have matrices and no attention. Empty where a layer runs more than once.

    Found by structure: the children of each layer that hold a matrix, but not the attention module.
    """
    attending = {model.module.get_submodule(name) for name in model.route.layers}
    if model.route.calls > len(attending):
        return []
    return [
        child
        for layer in decoder_layers(model)
        for child in layer.children()
        if not attending & set(child.modules()) and any(weight.dim() > 1 for weight in child.parameters())
    ]


def _finite(values: np.ndarray, what: str) -> np.ndarray:
    if not np.isfinite(values).all():
        raise NonFiniteError(f"{what} is NaN or infinite; load the model in a wider dtype.")
    return values


def _start(run: _Run, heads: Sequence[HeadId] | Sources | set[HeadId]) -> int:
    """The first layer execution that any of these heads changes; 0 for none."""
    return min((run.replay.start_of(head.layer, head.call) or 0 for head in heads), default=0)


def _bias_rows(rule: AttentionSpec, head: int, rows: Tensor, query: Tensor, n_keys: int) -> Float[Tensor, "prompt key"]:
    """What is added to each prompt's row of logits at its query; minus infinity where a key is masked."""
    place = torch.arange(n_keys, device=rows.device)
    added = torch.zeros(len(rows), n_keys, dtype=widest(rows.device), device=rows.device)
    if rule.bias is not None:
        bias = rule.bias
        at_row = rows if bias.shape[0] > 1 else torch.zeros_like(rows)
        at_query = query if bias.shape[2] > 1 else torch.zeros_like(query)
        added = added + additive(bias[at_row, head if bias.shape[1] > 1 else 0, at_query, :n_keys], added.dtype)
    return added.masked_fill(place > query[:, None], -torch.inf) if rule.causal else added


def _sinks(rule: AttentionSpec, head: int, rows: Tensor, query: Tensor) -> Float[Tensor, " prompt"] | None:
    if rule.sinks is None:
        return None
    sinks = rule.sinks
    at_row = rows if sinks.shape[0] > 1 else torch.zeros_like(rows)
    return widened(sinks[at_row, head, query if sinks.shape[2] > 1 else torch.zeros_like(query)])


def _rule_of_head(rule: AttentionSpec, head: int, rows: slice) -> AttentionSpec:
    """The rule between one head's queries and keys, for some rows of the batch."""
    bias, sinks = rule.bias, rule.sinks
    if bias is not None:
        bias = bias[:, head : head + 1] if bias.shape[1] > 1 else bias
        bias = bias[rows] if bias.shape[0] > 1 else bias
    if sinks is not None:
        sinks = sinks[:, head : head + 1]
        sinks = sinks[rows] if sinks.shape[0] > 1 else sinks
    return AttentionSpec(scale=rule.scale, causal=rule.causal, bias=bias, softcap=rule.softcap, sinks=sinks)
