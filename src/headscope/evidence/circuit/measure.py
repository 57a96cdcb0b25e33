"""The circuit: which heads tell the induction head where to look?

For every receiver, each head of an earlier layer is tried as its sender by path patching
(`headscope.interventions.paths`), into the receiver's key and into its query; and for the senders found the loss at the
query is measured with one patched input, key, query or value, at a time.

    asked       the corrupt prompt takes significantly more than nothing of the stripe, and at least a tenth. Where it
                does not, it cannot ask who carries the stripe, and no share is given.
    effect      stripe(clean) - stripe(clean, but the sender's content is that of the corrupt prompt)
    share       effect over stripe(clean) - stripe(corrupt), the most that any sender could do
    named       q <= 0.05 (Benjamini-Hochberg, over all senders, receivers and both inputs) and share >= 0.1
    restored    in the corrupt prompt with the named senders' clean content: (stripe - corrupt) / (clean - corrupt),
                a ratio of means with Fieller's interval. What is left to 1 is unexplained.

Senders that replace each other show nothing one by one. So a set is looked for where more is lost without all senders
together than without each alone (`headscope.evidence.circuit.sets`):

    excess(S)   share lost without all of S, less the sum of the shares lost without each of them alone
    set         the smallest S with half of the excess of all senders; then among those not yet named, until the rest
                has an excess below 0.1. Each member is also tried alone in the corrupt prompt: "any of" them is
                enough where each restores at least half of what they do together.

Two more changes of the prompt, the token two before the key and the token before the query, say whether a head
compares more than one token; where they take half of the stripe, their senders are traced too (`Circuit.context`).

Weights are asked too: composition (`headscope.evidence.composition.measure`) of the same pairs. It says what could be
read; patching says what is. Agreement takes more than chance: a margin over every other head of the model's own.

Cost: over 32 prompts of about 55 tokens, four whole passes; one pass per head of the layers before the last receiver;
a few for each set and for each sender that is named; and what `verify` costs where no receivers are given.

It misleads where senders act only through another head (a path of three heads): with all others held that path is
cut, and it shows as unexplained. The value path is measured, but no corrupt prompt changes the token at the key.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from jaxtyping import Float

from headscope.errors import ArgumentError, ShapeError, TokenError, UnsupportedModel
from headscope.evidence.ablation.each import N_PROMPTS as VERIFY_PROMPTS
from headscope.evidence.circuit.result import RULE, Circuit, Edge, PairComposition, Receiver, SenderSet
from headscope.evidence.circuit.sets import smallest
from headscope.evidence.composition.measure import Composition, composition
from headscope.evidence.scan.result import Timing
from headscope.evidence.verify.measure import verify
from headscope.evidence.verify.result import Verification
from headscope.heads import HeadId, ranking
from headscope.interventions.paths import INPUTS, Contents, Input, Mlps, Paths, Sources
from headscope.model.load import Heads, Model, Source, load
from headscope.probes import Probe, repeated_tokens
from headscope.probes.probe import check_fits
from headscope.probes.twins import CONTEXT, Change, twins
from headscope.records.common import Estimate, ModelInfo, Provenance
from headscope.stats import benjamini_hochberg, p_values, ratio_interval

N_PROMPTS = 32
PERIOD = 24
ROUTES: tuple[Input, ...] = ("k", "q")
"""Inputs through which a sender can move the stripe."""


def trace_circuit(
    model: Source,
    receivers: Heads | None = None,
    *,
    verification: Verification | None = None,
    probe: Probe | None = None,
    seed: int = 0,
    progress: Callable[[str, int, int], None] | None = None,
) -> Circuit:
    """Find and prove the path into each induction head's key, or query.

    Args:
        model: What `headscope.load` takes, or gives.
        receivers: Heads to explain; by default those that the verification calls `induction` or `redundant_induction`.
        verification: What `hs.verify` gave for this model; made where it is needed.
        probe: Repeated tokens; by default 32 prompts with runs of about 24.
        seed: Of the default probe, the corrupt prompts, and the verification.
        progress: Called with (what is being done, done, of).

    Raises:
        ArgumentError: receivers that the model does not have, or of its first layer; a verification of another model.
        TokenError: prompts of which no corrupt one can be made, or of several lengths.
        UnsupportedModel: queries and keys that cannot be seen, or no LM head.
    """
    model = load(model)
    report = progress or (lambda what, done, total: None)
    probe = probe if probe is not None else repeated_tokens(model, n_prompts=N_PROMPTS, period=PERIOD, seed=seed)
    check_fits(probe, model)
    if verification is not None and (differing := ModelInfo.of(model).unlike(verification.model)):
        raise ArgumentError(f"verification= is of another model ({differing}); give that of {model.id}, or none.")
    first = min(model.check.heads)
    if receivers is None:
        verification = verification or _verified(model, probe, seed, progress)
        of = verification.induction_heads()
        chosen = tuple(head for head in (model.named(of) if of else ()) if head.layer > first)
    else:
        chosen = model.named(receivers)
    early = [head for head in chosen if head.layer == first]
    if early and receivers is not None:
        raise ArgumentError(f"{early[0]} lies in the first layer with attention; no head comes before it to feed it.")
    lengths = sorted({len(prompt) for prompt in probe.prompts})
    if len(lengths) > 1:
        raise TokenError(
            f"the prompts have {len(lengths)} lengths, from {lengths[0]} to {lengths[-1]} tokens; a circuit needs "
            "prompts of one length: cut them, or use repeated_tokens."
        )
    pairs = twins(probe, seed=seed)
    started = time.perf_counter()
    verdicts = {one.head: one for one in verification.heads} if verification is not None else {}
    if chosen:
        parts = _traced(model, probe, Paths(model, pairs, chosen), seed, verdicts, report)
    else:
        parts = {
            "receivers": (),
            "edges": (),
            "senders_tried": 0,
            "notes": ("no head is called induction, so none is explained",),
        }
    return Circuit(
        model=ModelInfo.of(model),
        **parts,
        grouped=_grouped(model),
        rule=RULE,
        probe=dict(probe.settings) | {"twins": "one token before the key replaced"},
        provenance=Provenance.of(model, kernels=model.check.kernels, seed=seed),
        timing=Timing(wall_s=time.perf_counter() - started, tokens=2 * sum(map(len, probe.prompts))),
    )


def _verified(model: Model, probe: Probe, seed: int, progress: Callable[[str, int, int], None] | None) -> Verification:
    """The default verification; where the model's context is too short for its prompts, on those of the circuit."""
    try:
        usual = repeated_tokens(model, n_prompts=VERIFY_PROMPTS, seed=seed)
    except ShapeError:
        usual = probe
    return verify(model, probe=usual, seed=seed, progress=progress)


def _traced(
    model: Model,
    probe: Probe,
    paths: Paths,
    seed: int,
    verdicts: Mapping[HeadId, Any],
    report: Callable[[str, int, int], None],
) -> dict[str, Any]:
    """Everything about the receivers that a circuit holds."""
    last = max(head.layer for head in paths.receivers)
    senders = [HeadId(layer, one) for layer, n in sorted(model.check.heads.items()) if layer < last for one in range(n)]
    asked = _asked(paths)
    tracing = _Tracing(paths, asked, senders, report)
    edges = tracing.edges("before_key", verdicts)
    context, lost = list[Edge](), dict[HeadId, dict[str, Estimate]]()
    for change in CONTEXT if asked else ():
        pairs = twins(probe, seed=seed, change=change)
        if all(pair.changed is None for pair in pairs):
            continue
        other = Paths(model, pairs, asked, clean=paths.clean, offsets=paths.offsets)
        clean, corrupt = other.stripe(other.clean), other.stripe(other.corrupt)
        for row, head in enumerate(asked):
            lost.setdefault(head, {})[change] = Estimate.of_ratio(clean[row] - corrupt[row], clean[row])
        compared = [head for head in asked if lost[head][change].mean >= RULE.context]
        if compared:
            context += _Tracing(other, compared, senders, report).edges(change, verdicts)
    notes, weights = list[str](), _composition(model, {edge.input for edge in (*edges, *context)})
    if _grouped(model):
        notes.append(
            "grouped queries: heads of a group share one key; each was patched for its one query head alone, which "
            "the model itself cannot do"
        )
    if not paths.can_hold_mlps:
        notes.append("the model has no MLPs apart from its attention that could be held, so they recompute")
    notes += (
        ["its weights cannot be assigned to heads, so composition is not known"] if weights is None else weights.notes
    )
    edges, context = _weighed(edges, weights), _weighed(context, weights)
    found = tracing.receivers(edges, verdicts)
    return {
        "receivers": tuple(replace(one, context=lost.get(one.head)) for one in found),
        "edges": tuple(edges),
        "senders_tried": len(senders),
        "notes": tuple(notes),
        "sets": tuple(tracing.sets),
        "context": tuple(context),
    }


def _asked(paths: Paths) -> list[HeadId]:
    """Receivers of which the corrupt prompts can ask something, at the stripe or at the key after it."""

    def taken() -> dict[HeadId, bool]:
        rows = zip(paths.receivers, paths.stripe(paths.clean), paths.stripe(paths.corrupt), strict=True)
        return {
            head: bool(
                (clean - corrupt).mean() >= RULE.share * clean.mean() > 0
                and float(p_values(clean - corrupt)) <= RULE.false_discovery
            )
            for head, clean, corrupt in rows
        }

    at_stripe = taken()
    paths.offsets.update({head: 1 for head, holds in at_stripe.items() if not holds})
    further = taken()
    for head in paths.receivers:
        if not at_stripe[head] and not further[head]:
            paths.offsets.pop(head)
    return [head for head in paths.receivers if at_stripe[head] or further[head]]


class _Tracing:
    """All paths into the receivers of which one change of the prompts can ask something."""

    def __init__(
        self,
        paths: Paths,
        asked: Sequence[HeadId],
        senders: Sequence[HeadId],
        report: Callable[[str, int, int], None],
    ) -> None:
        self.paths, self.asked, self.senders, self._report = paths, tuple(asked), tuple(senders), report
        self.sets: list[SenderSet] = []
        self.restored: dict[tuple[HeadId, Mlps], Estimate] = {}
        self._clean = dict(zip(paths.receivers, paths.stripe(paths.clean), strict=True))
        self._corrupt = dict(zip(paths.receivers, paths.stripe(paths.corrupt), strict=True))
        self._known: dict[tuple[str, Mlps, Sources], dict[HeadId, Contents]] = {}

    def edges(self, change: Change, verdicts: Mapping[HeadId, Any]) -> list[Edge]:
        """Named senders and sets of all receivers, strongest first for each; their weights are not yet asked."""
        if not self.asked:
            return []
        alone = [frozenset([sender]) for sender in self.senders]
        self._learn("clean", "recompute", alone, "patching, MLPs recomputed")
        tests: list[tuple[HeadId, Input, HeadId]] = [
            (head, name, sender)
            for head in self.asked
            for name in ROUTES
            for sender in self.senders
            if sender.layer < head.layer
        ]
        p = np.asarray([float(p_values(self._lost(head, name, frozenset([sender])))) for head, name, sender in tests])
        q = dict(zip(tests, benjamini_hochberg(p).tolist(), strict=True))
        found: list[Edge] = []
        for head in self.asked:
            worlds: dict[tuple[Sources, Input], float] = {
                (frozenset([sender]), name): q[head, name, sender]
                for name in ROUTES
                for sender in self._before(head)
                if q[head, name, sender] <= RULE.false_discovery
                and self._share(head, name, frozenset([sender])) >= RULE.share
            }
            single = {(next(iter(world)), name) for world, name in worlds}
            for name in ROUTES:
                worlds |= self._replacing(head, name, {sender for sender, route in single if route == name})
            self._restore(head, worlds)
            held = [world for world, _ in worlds]
            if self.paths.can_hold_mlps:
                self._learn("clean", "held", held, "patching, MLPs held")
            losses = self._losses(head, list(dict.fromkeys(held)))
            of_head = [
                self._edge(head, name, sender, world, change, q_value, losses[world], verdicts)
                for (world, name), q_value in worlds.items()
                for sender in sorted(world)
                if len(world) == 1 or (sender, name) not in single
            ]
            found += sorted(of_head, key=lambda edge: ranking(edge.effect.mean, edge.sender))
        return found

    def receivers(self, edges: Sequence[Edge], verdicts: Mapping[HeadId, Any]) -> tuple[Receiver, ...]:
        """All receivers, also those of which nothing could be asked."""
        return tuple(
            self._receiver(head, [edge for edge in edges if edge.receiver == head], verdicts)
            for head in self.paths.receivers
        )

    @cached_property
    def _clean_loss(self) -> np.ndarray:
        """At each prompt's query."""
        return self.paths.loss(self.paths.clean)

    def _before(self, head: HeadId) -> list[HeadId]:
        return [sender for sender in self.senders if sender.layer < head.layer]

    def _drop(self, head: HeadId) -> Float[np.ndarray, " prompt"]:
        """The most that any sender could do."""
        return self._clean[head] - self._corrupt[head]

    def _learn(self, base: str, mlp: Mlps, worlds: Iterable[Sources], label: str) -> None:
        """Contents of worlds that are not known yet, all in one batch."""
        new = [world for world in dict.fromkeys(worlds) if (base, mlp, world) not in self._known]
        if not new:
            return
        runs = (self.paths.clean, self.paths.corrupt) if base == "clean" else (self.paths.corrupt, self.paths.clean)
        given = self.paths.contents(*runs, new, mlp=mlp, progress=lambda done, total: self._report(label, done, total))
        for row, world in enumerate(new):
            self._known[base, mlp, world] = {
                head: {name: part[row : row + 1] for name, part in by.items()} for head, by in given.items()
            }

    def _lost(self, head: HeadId, name: Input, world: Sources, mlp: Mlps = "recompute") -> Float[np.ndarray, " prompt"]:
        """Stripe lost in the clean run through one input, with the corrupt content of these senders."""
        if mlp == "recompute" and world == frozenset(self._before(head)):
            # With every earlier head swapped the input is that of the corrupt run itself.
            content = self.paths.own(self.paths.corrupt, head)[name]
        else:
            self._learn("clean", mlp, [world], "sets of senders")
            content = self._known["clean", mlp, world][head][name]
        return self._clean[head] - self.paths.patched(self.paths.clean, head, name, content)[0]

    def _share(self, head: HeadId, name: Input, world: Sources) -> float:
        return float(self._lost(head, name, world).mean() / self._drop(head).mean())

    def _gained(
        self, head: HeadId, names: Iterable[Input], world: Sources, mlp: Mlps = "recompute"
    ) -> Float[np.ndarray, " prompt"]:
        """Stripe gained in the corrupt run through these inputs, with the clean content of these senders."""
        if not world:
            return np.zeros_like(self._corrupt[head])
        self._learn("corrupt", mlp, [world], "restoring")
        given = self._known["corrupt", mlp, world][head]
        stripe = self.paths.replaced(self.paths.corrupt, head, {name: given[name] for name in names})[0]
        return stripe - self._corrupt[head]

    def _replacing(self, head: HeadId, name: Input, single: set[HeadId]) -> dict[tuple[Sources, Input], float]:
        """Sets of senders that replace each other, with their p-value times the number of sets that were tried."""
        alone = {sender: max(0.0, self._share(head, name, frozenset([sender]))) for sender in self._before(head)}
        tried: dict[Sources, float] = {}

        def excess(world: Sources) -> float:
            if world not in tried:
                tried[world] = self._share(head, name, world) - sum(alone[sender] for sender in world)
            return tried[world]

        found: dict[tuple[Sources, Input], float] = {}
        for excluded in (set[HeadId](), single):
            while rest := frozenset(alone) - excluded - {sender for world, _ in found for sender in world}:
                whole = excess(rest)
                if whole < RULE.share:
                    break
                least = max(RULE.share, whole / 2)
                order = sorted(rest, key=lambda sender: (-round(alone[sender], 3), sender))
                world = smallest(lambda some, least=least: excess(some) >= least, order, most=RULE.set_size)
                if world is None or len(world) < 2 or excess(world) < least:
                    break
                q_value = min(1.0, float(p_values(self._lost(head, name, world))) * len(tried))
                if q_value > RULE.false_discovery:
                    break
                found[world, name] = q_value
        return found

    def _restore(self, head: HeadId, worlds: Mapping[tuple[Sources, Input], float]) -> None:
        """What all named senders restore, and what each member of a set restores alone."""
        if not worlds:
            return
        names: list[Input] = list(dict.fromkeys(name for _, name in worlds))
        everyone = frozenset(sender for world, _ in worlds for sender in world)
        drop = self._drop(head)
        mlps: tuple[Mlps, ...] = ("recompute", "held") if self.paths.can_hold_mlps else ("recompute",)
        for mlp in mlps:
            self.restored[head, mlp] = Estimate.of_ratio(self._gained(head, names, everyone, mlp), drop)
        for world, name in worlds:
            if len(world) < 2:
                continue
            others = everyone - world
            self._learn("corrupt", "recompute", [others | {sender} for sender in sorted(world)], "restoring")
            base = self._gained(head, names, others)
            alone = tuple(
                Estimate.of_ratio(self._gained(head, names, others | {sender}) - base, drop) for sender in sorted(world)
            )
            together = float((self._gained(head, names, everyone) - base).mean() / drop.mean())
            lost = self._lost(head, name, world)
            self.sets.append(
                SenderSet(
                    receiver=head,
                    input=name,
                    senders=tuple(sorted(world)),
                    effect=Estimate.of(lost),
                    share=float(lost.mean() / drop.mean()),
                    singles=sum(max(0.0, self._share(head, name, frozenset([sender]))) for sender in world),
                    alone=alone,
                    any_one_is_enough=all(one.mean >= together / 2 for one in alone),
                )
            )

    def _losses(self, head: HeadId, worlds: Sequence[Sources]) -> dict[Sources, dict[str, Estimate]]:
        """For each world: change of the loss at the query when its content reaches one input alone."""
        if not worlds:
            return {}
        changes: list[tuple[HeadId, Input, torch.Tensor]] = [
            (head, name, self._known["clean", "recompute", world][head][name][0]) for world in worlds for name in INPUTS
        ]
        rows = self.paths.losses(self.paths.clean, changes) - self._clean_loss
        by_world = rows.reshape(len(worlds), len(INPUTS), -1)
        return {
            world: {name: Estimate.of(row) for name, row in zip(INPUTS, one, strict=True)}
            for world, one in zip(worlds, by_world, strict=True)
        }

    def _edge(
        self,
        head: HeadId,
        name: Input,
        sender: HeadId,
        world: Sources,
        change: Change,
        q_value: float,
        losses: dict[str, Estimate],
        verdicts: Mapping[HeadId, Any],
    ) -> Edge:
        lost, verdict = self._lost(head, name, world), verdicts.get(sender)
        share, share_ci95 = ratio_interval(lost, self._drop(head))
        return Edge(
            sender=sender,
            receiver=head,
            input=name,
            effect=Estimate.of(lost),
            share=share,
            q_value=q_value,
            mlps_held=Estimate.of(self._lost(head, name, world, "held")) if self.paths.can_hold_mlps else None,
            loss_nats=losses,
            query_effect=Estimate.of(self._lost(head, "q", world)),
            previous_token=None if verdict is None else verdict.attention.get("previous_token"),
            weights=None,
            any_of=tuple(sorted(world)) if len(world) > 1 else (),
            share_ci95=share_ci95,
            changed=change,
        )

    def _receiver(self, head: HeadId, edges: Sequence[Edge], verdicts: Mapping[HeadId, Any]) -> Receiver:
        asked, verdict = head in self.asked, verdicts.get(head)
        routes: tuple[Input, ...] = ROUTES if asked else ()
        named = {edge.sender for edge in edges if edge.input == "k"}
        lost = {
            name: {sender: self._lost(head, name, frozenset([sender])) for sender in self._before(head)}
            for name in routes
        }
        others = [by for sender, by in lost.get("k", {}).items() if sender not in named]
        restored = self.restored.get((head, "recompute"))
        best = edges[0].weights if edges else None
        return Receiver(
            head=head,
            verdict=None if verdict is None else verdict.verdict,
            stripe=Estimate.of(self._clean[head]),
            corrupt=Estimate.of(self._corrupt[head]),
            restored=restored,
            restored_mlps_held=self.restored.get((head, "held")),
            unexplained=1.0 - (0.0 if restored is None else restored.mean) if asked else None,
            strongest_other=_strongest(others),
            strongest_query=_strongest(lost.get("q", {}).values()),
            weights_agree=None
            if best is None or best.z is None or best.margin is None
            else best.z >= RULE.z and best.margin >= RULE.margin,
            asked=asked,
            offset=self.paths.offsets.get(head, 0),
        )


def _strongest(effects: Iterable[Float[np.ndarray, " prompt"]]) -> Estimate | None:
    strongest = max(effects, key=lambda effect: abs(effect.mean()).round(6), default=None)
    return None if strongest is None else Estimate.of(strongest)


def _composition(model: Model, inputs: Iterable[str]) -> Composition | None:
    try:
        return composition(model, kinds=sorted({"k", *inputs}))
    except UnsupportedModel:
        return None


def _weighed(edges: Sequence[Edge], scores: Composition | None) -> list[Edge]:
    """The same edges with what the weights say of them."""
    if scores is None:
        return list(edges)
    return [replace(edge, weights=_pair(scores, edge, edges)) for edge in edges]


def _pair(scores: Composition, edge: Edge, edges: Sequence[Edge]) -> PairComposition | None:
    ranked = scores.ranked(edge.receiver, edge.input)
    named = {one.sender for one in edges if (one.receiver, one.input) == (edge.receiver, edge.input)}
    best_other = next((pair.score for pair in ranked if pair.sender not in named), 0.0)
    for rank, pair in enumerate(ranked, start=1):
        if pair.sender == edge.sender:
            return PairComposition(
                score=pair.score,
                ratio=pair.ratio,
                z=pair.z,
                rank=rank,
                of=len(ranked),
                margin=pair.score / best_other if best_other > 0 else None,
            )
    return None


def _grouped(model: Model) -> bool:
    return model.n_kv_heads is not None and model.n_kv_heads < model.n_heads
