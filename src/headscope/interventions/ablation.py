"""Worlds: one set of prompts under many interventions, and the loss of each.

A world is a set of heads whose z is replaced, before the output projection, in one copy of the prompts:

    zero       z = 0
    mean       z = its mean per position over a clean corpus, disjoint from the prompts
    resample   z = what it was in one prompt of that corpus, another for each prompt

All worlds of a batch share the layers before the first that is edited (`headscope.model.replay`), and the unembedding
reads only the tokens whose loss is asked for. So ablating every head of n layers costs about n / 2 layers each, where a
full pass costs n.

Losses are means over a prompt's queries in nats, one number per world, prompt and kind of query. In their place
`headscope.interventions.choices` asks which of two tokens comes next.
"""

# pyright: reportUnknownArgumentType=false, reportUnknownVariableType=false
from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from headscope.errors import ArgumentError, NonFiniteError, ShapeError, TokenError
from headscope.heads import HeadId
from headscope.interventions.choices import Choices, ChoiceTargets
from headscope.model.attention import Attention
from headscope.model.interface import Visit
from headscope.model.load import Model
from headscope.model.memory import in_batches
from headscope.model.replay import Replay
from headscope.probes.probe import Probe, Tokens, check_fits, probe_of

Method = Literal["zero", "mean", "resample"]
METHODS: tuple[Method, ...] = ("zero", "mean", "resample")


def method_named(name: str) -> Method:
    """The method of this name.

    Raises:
        ArgumentError: there is none.
    """
    for method in METHODS:
        if method == name:
            return method
    raise ArgumentError(f"ablation method {name!r} is not known; use one of {', '.join(METHODS)}.")


AblatedHeads = frozenset[HeadId]
"""The heads that one world ablates; empty for the clean one."""

Queries = dict[str, list[np.ndarray]]
"""For each kind of query its places in each prompt; the loss at query i is that of the token at i + 1."""

Losses = dict[str, Float[np.ndarray, "world prompt"]]
"""For each kind of query the mean loss in nats."""

BATCH_TOKENS = {"cpu": 2048, "cuda": 65536}
"""Tokens in one forward pass, before memory runs out."""
BATCH_LOGITS = {"cpu": 2**25, "cuda": 2**30}
"""Logits in one forward pass, before memory runs out: a world's tokens by the vocabulary."""
CORPUS_PROMPTS = 32
"""Prompts of the default corpus."""


@runtime_checkable
class Intervention(Protocol):
    """What is put in the place of a head's z."""

    @property
    def model(self) -> Model:
        """Whose heads."""
        ...

    def substitutes(self, index: Sequence[int], length: int) -> Callable[[Attention], Tensor]:
        """What replaces z in these prompts: from an attention call to [prompt or 1, position, head, d_head]."""
        ...

    def edited(self, attention: Attention, mask: Tensor, substitute: Tensor) -> Tensor:
        """Z [copy * prompt, position, head, d_head] with the heads of `mask` [copy, head] replaced."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Ablator:
    """How heads are taken out of one model: method, corpus, and where."""

    model: Model
    method: Method
    corpus: Probe | None
    """Clean prompts, none of them scored; None for `zero`."""
    positions: tuple[int, int] | None
    """First position to edit and the one after the last; None for all."""
    seed: int
    """Of the draw of `resample`."""
    _means: dict[tuple[int, int], Tensor] = field(default_factory=dict[tuple[int, int], Tensor])

    @classmethod
    def of(
        cls,
        model: Model,
        probe: Probe,
        *,
        method: Method,
        corpus: Any | None = None,
        positions: tuple[int, int] | None = None,
        seed: int = 0,
    ) -> Ablator:
        """An ablator for a probe's prompts. The default corpus is the controls of further prompts of that probe.

        A corpus is what `probe=` takes: a Probe, token ids, or text.

        Raises:
            ArgumentError: an unknown method, no corpus for prompts of your own, or positions outside the prompts.
            ShapeError: the corpus has fewer than two prompts, or one that is shorter than the longest prompt.
            TokenError: the corpus does not fit the model.
        """
        longest = max(map(len, probe.prompts))
        method = method_named(method)
        if positions is not None and not 0 <= positions[0] < positions[1] <= longest:
            raise ArgumentError(
                f"positions={positions} do not lie in prompts of {longest} tokens; give the first to edit and the one "
                f"after the last, like (0, {longest})."
            )
        if method == "zero":
            corpus = None
        elif corpus is None:
            further = probe.more(CORPUS_PROMPTS) if probe.more is not None else None
            if further is None or further.controls is None:
                raise ArgumentError(
                    f"{method} ablation on prompts of your own needs corpus=, clean prompts that are not among them; "
                    "give one, or use method='zero'."
                )
            corpus = Probe(prompts=further.controls, controls=None, settings={"kind": "controls of further prompts"})
        if corpus is not None:
            corpus = probe_of(model, corpus)
            check_fits(corpus, model)
            shortest = min(map(len, corpus.prompts))
            if shortest < longest:
                raise ShapeError(
                    f"the corpus is too short: its shortest prompt has {shortest} tokens, and every position of the "
                    f"prompts, {longest}, needs one; give longer prompts."
                )
            if len(corpus.prompts) < 2:
                raise ShapeError(
                    "the corpus is too short: it has one prompt, and a mean or a draw needs at least two; give more."
                )
        return cls(model=model, method=method, corpus=corpus, positions=positions, seed=seed)

    def substitutes(self, index: Sequence[int], length: int) -> Callable[[Attention], Tensor]:
        """What replaces z in these prompts: from an attention call to [prompt or 1, position, head, d_head]."""
        if self.method == "mean":
            means = self._mean_z()
            return lambda attention: means[attention.layer, attention.call][None, :length].to(attention.z.device)
        if self.method == "resample":
            drawn = self._drawn_z(index, length)
            return lambda attention: drawn[attention.layer, attention.call]
        return lambda attention: attention.z.new_zeros(1, 1, 1, 1)

    def _mean_z(self) -> dict[tuple[int, int], Tensor]:
        """Mean of z over the corpus at each position."""
        if not self._means:
            assert self.corpus is not None
            length = min(map(len, self.corpus.prompts))
            totals: dict[tuple[int, int], Tensor] = {}
            rows = np.stack([prompt[:length] for prompt in self.corpus.prompts])
            size = max(1, _limit(BATCH_TOKENS, self.model) // length)

            def run(part: Sequence[np.ndarray]) -> dict[tuple[int, int], Tensor]:
                sums: dict[tuple[int, int], Tensor] = {}

                def visit(attention: Attention) -> None:
                    wide = torch.promote_types(attention.z.dtype, torch.float32)
                    sums[attention.layer, attention.call] = attention.z.sum(0, dtype=wide)

                self._pass(np.stack(part), visit)
                return sums

            for _, sums in in_batches(list(rows), size, run):
                for at, total in sums.items():
                    totals[at] = totals[at] + total if at in totals else total
            self._means.update({at: total / len(rows) for at, total in totals.items()})
        return self._means

    def _drawn_z(self, index: Sequence[int], length: int) -> dict[tuple[int, int], Tensor]:
        """Z of one prompt of the corpus for each of these prompts; prompt i always gets the same."""
        assert self.corpus is not None
        n = len(self.corpus.prompts)
        chosen = [int(np.random.default_rng([self.seed, one]).integers(n)) for one in index]
        drawn: dict[tuple[int, int], Tensor] = {}

        def visit(attention: Attention) -> None:
            drawn[attention.layer, attention.call] = attention.z.clone()

        self._pass(np.stack([self.corpus.prompts[one][:length] for one in chosen]), visit)
        return drawn

    def _pass(self, rows: np.ndarray, visit: Callable[[Attention], None]) -> None:
        tokens = torch.from_numpy(rows).to(self.model.device)
        self.model.run(tokens, visit, stop_at_last=True)

    def edited(self, attention: Attention, mask: Tensor, substitute: Tensor) -> Tensor:
        """Z [copy * prompt, position, head, d_head] with the heads of `mask` [copy, head] replaced."""
        n_copies = mask.shape[0]
        z = attention.z.unflatten(0, (n_copies, -1))
        where = mask[:, None, None, :, None]
        if self.positions is not None:
            place = torch.arange(z.shape[2], device=z.device)
            inside = (place >= self.positions[0]) & (place < self.positions[1])
            where = where & inside[None, None, :, None, None]
        return torch.where(where, substitute.to(z.dtype)[None], z).flatten(0, 1)


def losses(
    ablator: Intervention,
    prompts: Sequence[Tokens],
    queries: Queries | Choices,
    worlds: Sequence[AblatedHeads],
    *,
    index: Sequence[int] | None = None,
    base: AblatedHeads = frozenset(),
    progress: Callable[[int], None] | None = None,
) -> Losses:
    """Mean loss of each kind of query in each world and prompt.

    Args:
        ablator: How heads are taken out.
        prompts: Token ids, of any lengths.
        queries: Places whose loss counts, at least one of each kind in each prompt; or two tokens for each prompt,
            whose difference counts.
        worlds: Sets of heads; the empty set is the clean model.
        index: Which prompts, in this order; by default all. What `resample` draws for a prompt goes by its number here.
        base: The world whose pass the others start from, each at the first layer where it differs; by default the
            clean model. It changes the cost alone.
        progress: Called with the number of (world, prompt) pairs done since the last call.

    Raises:
        ArgumentError: a head of a second call in a model that does not loop.
        UnsupportedModel: the model gives no logits over its vocabulary.
        NonFiniteError: a loss is NaN or infinite.
        MemoryRanOut: memory runs out with a single world of a single prompt.
    """
    index = range(len(prompts)) if index is None else index
    kinds = queries.kinds if isinstance(queries, Choices) else tuple(queries)
    found = {kind: np.empty((len(worlds), len(index)), dtype=np.float64) for kind in kinds}

    def run(part: Sequence[int]) -> Losses:
        return _losses(ablator, prompts, queries, [index[one] for one in part], worlds, base)

    for same in same_length([prompts[one] for one in index]):
        size = prompts_at_once(ablator.model, len(prompts[index[same[0]]]))
        for part, values in in_batches(same, size, run):
            for kind in kinds:
                found[kind][:, list(part)] = values[kind]
            if progress is not None:
                progress(len(part) * len(worlds))
    if not all(np.isfinite(values).all() for values in found.values()):
        raise NonFiniteError("a loss is NaN or infinite; load the model in a wider dtype.")
    return found


def _losses(
    ablator: Intervention,
    prompts: Sequence[Tokens],
    queries: Queries | Choices,
    index: Sequence[int],
    worlds: Sequence[AblatedHeads],
    base: AblatedHeads,
) -> Losses:
    """Losses of all worlds in some prompts of one length."""
    model, targets = ablator.model, targets_of(prompts, queries, index)
    substitute = (
        ablator.substitutes(targets.index, targets.tokens.shape[1])
        if base or any(world != base for world in worlds)
        else None
    )

    def editing(copies: Sequence[AblatedHeads]) -> Visit:
        """Replaces z of each copy's heads."""

        def visit(attention: Attention) -> Tensor | None:
            at = (attention.layer, attention.call)
            mask = torch.zeros(len(copies), attention.n_heads, dtype=torch.bool)
            for copy, world in enumerate(copies):
                for head in world:
                    if (head.layer, head.call) == at:
                        mask[copy, head.head] = True
            if substitute is None or not bool(mask.any()):
                return None
            return ablator.edited(attention, mask.to(attention.z.device), substitute(attention))

        return visit

    replay = Replay(model, torch.from_numpy(targets.tokens).to(model.device))
    places = targets.places(1).to(model.device)
    first = targets.losses(replay.clean(editing([base]) if base else None, places=places), 1)
    found = {kind: np.repeat(values, len(worlds), axis=0) for kind, values in first.items()}
    edited = [number for number, world in enumerate(worlds) if world != base]
    start = {number: min(_start(replay, model, head) for head in worlds[number] ^ base) for number in edited}
    size = max(1, min(_limit(BATCH_TOKENS, model) // targets.tokens.size, _logits(model) // targets.n_places))

    def run(part: Sequence[int]) -> Losses:
        n_copies = len(part)
        begin = min(start[number] for number in part)
        places = targets.places(n_copies).to(model.device)
        visit = editing([worlds[number] for number in part])
        return targets.losses(replay.logits(visit, start=begin, copies=n_copies, places=places), n_copies)

    for together in _together(edited, start, size):
        for part, values in in_batches(together, len(together), run):
            for kind in found:
                found[kind][list(part)] = values[kind]
    return found


def _together(worlds: Sequence[int], start: Mapping[int, int], size: int) -> Iterator[list[int]]:
    """Batches of at most `size` worlds, which compute from the first layer that any of them edits.

    Those that start at one layer are split evenly; they wait for those of the next while they fill less than half.
    """
    waiting: list[int] = []
    for _, same in groupby(sorted(worlds, key=start.__getitem__), key=start.__getitem__):
        waiting += same
        if 2 * len(waiting) >= size:
            yield from (part.tolist() for part in np.array_split(waiting, -(-len(waiting) // size)))
            waiting = []
    if waiting:
        yield waiting


def _start(replay: Replay, model: Model, head: HeadId) -> int:
    start = replay.start_of(head.layer, head.call)
    if start is None:
        raise ArgumentError(
            f"{model.id} never reaches {head}: its layer {head.layer} does not run its attention {head.call + 1} "
            "times in one pass; name the head without '#'."
        )
    return start


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class LossTargets:
    """Some prompts of one length, and the queries whose losses they are asked for."""

    index: Sequence[int]
    """Which prompts."""
    tokens: np.ndarray
    row: np.ndarray
    """[query]: the prompt's place in this targets."""
    query: np.ndarray
    """[query]: position, each place once."""
    weights: dict[str, np.ndarray]
    """For each kind [prompt, query]: 1 / queries of that kind in the prompt."""

    @classmethod
    def of(cls, prompts: Sequence[Tokens], queries: Queries, index: Sequence[int]) -> LossTargets:
        """Those of `index`, which have one length."""
        tokens = np.stack([prompts[one] for one in index])
        asked = np.zeros(tokens.shape, dtype=bool)
        for places in queries.values():
            for row, one in enumerate(index):
                asked[row, places[one]] = True
        row, query = np.nonzero(asked)
        number = np.full(tokens.shape, -1)
        number[row, query] = np.arange(len(row))
        weights: dict[str, np.ndarray] = {}
        for kind, places in queries.items():
            weights[kind] = np.zeros((len(index), len(row)))
            for at, one in enumerate(index):
                weights[kind][at, number[at, places[one]]] = 1 / len(places[one])
        return cls(index=index, tokens=tokens, row=row, query=query, weights=weights)

    @property
    def n_places(self) -> int:
        """Tokens whose logits are asked for."""
        return len(self.query)

    def places(self, copies: int) -> Tensor:
        """[token, 2]: batch row and position of every query in every copy."""
        rows = np.concatenate([self.row + copy * len(self.tokens) for copy in range(copies)])
        return torch.from_numpy(np.stack([rows, np.tile(self.query, copies)], axis=1))

    def losses(self, logits: Tensor, copies: int) -> Losses:
        """[copy, prompt] mean loss of each kind, from the logits at `places`."""
        by_token = token_losses(logits, self.next_tokens(logits.device).repeat(copies))
        values = by_token.cpu().double().numpy().reshape(copies, -1)
        return {kind: values @ weight.T for kind, weight in self.weights.items()}

    def total(self, logits: Tensor) -> Float[Tensor, ""]:
        """Sum of all prompts' mean losses of all kinds, whose gradient is each prompt's own."""
        by_token = token_losses(logits, self.next_tokens(logits.device))
        weights = np.sum([one.sum(0) for one in self.weights.values()], axis=0)
        return (by_token * torch.from_numpy(weights).to(by_token)).sum()

    def next_tokens(self, device: torch.device) -> Tensor:
        """The token after each query."""
        return torch.from_numpy(self.tokens[self.row, self.query + 1]).to(device)


def targets_of(
    prompts: Sequence[Tokens], queries: Queries | Choices, index: Sequence[int]
) -> LossTargets | ChoiceTargets:
    """What is asked of these prompts, which have one length."""
    return queries.targets(prompts, index) if isinstance(queries, Choices) else LossTargets.of(prompts, queries, index)


def token_losses(logits: Float[Tensor, "token vocabulary"], target: Tensor) -> Float[Tensor, " token"]:
    """-log softmax(logits)[target] in nats, float32 or wider.

    Raises:
        TokenError: a target without a logit.
    """
    largest = int(target.max()) if len(target) else 0
    if largest >= logits.shape[-1]:
        raise TokenError(
            f"the model reads token {largest} but never predicts it: its logits end at {logits.shape[-1] - 1}; "
            "leave it out of the tokens whose loss is measured."
        )
    wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return torch.nn.functional.cross_entropy(wide, target.to(wide.device), reduction="none")


def same_length(prompts: Sequence[Tokens]) -> list[list[int]]:
    """Which prompts share each length."""
    groups: dict[int, list[int]] = {}
    for one, prompt in enumerate(prompts):
        groups.setdefault(len(prompt), []).append(one)
    return list(groups.values())


def prompts_at_once(model: Model, length: int) -> int:
    """Prompts whose layers are kept together: half of a batch's tokens, so that worlds fit beside."""
    return max(1, _limit(BATCH_TOKENS, model) // 2 // length)


def _limit(limits: dict[str, int], model: Model) -> int:
    return limits.get(model.device.type, limits["cpu"])


def _logits(model: Model) -> int:
    """Tokens whose logits fit into one pass."""
    return max(1, _limit(BATCH_LOGITS, model) // model.n_embeddings)
