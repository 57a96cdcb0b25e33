"""All paths into some receivers that one change of the prompts can ask about: senders, sets of them, what they restore.

The rule, the cost and what misleads are in `headscope.evidence.circuit.measure`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import torch
from jaxtyping import Float

from headscope.evidence.circuit.result import RULE, Edge, Receiver, SenderSet
from headscope.evidence.circuit.sets import smallest
from headscope.heads import HeadId, ranking
from headscope.interventions.paths import INPUTS, Contents, Input, Mlps, Paths, Sources
from headscope.probes.corrupt import ChangedToken
from headscope.records.common import Estimate
from headscope.stats import benjamini_hochberg, p_values, ratio_interval

ROUTES: tuple[Input, ...] = ("k", "q")
"""Inputs through which a sender can move the stripe."""
EDGE_LOSS_RESOLUTION = 0.02
"""Nats. One query is asked in each prompt, and an edge may matter to few: a change of 2 nats in one prompt of a hundred
moves the mean by so much, and 128 prompts miss it in 0.28 of all draws (0.99^128)."""


class Tracing:
    """All paths into the receivers of which one change of the prompts can ask something."""

    def __init__(
        self,
        paths: Paths,
        asked: Sequence[HeadId],
        senders: Sequence[HeadId],
        report: Callable[[str, int, int], None],
        *,
        search: Tracing | None = None,
    ) -> None:
        """`search`, of a part of the prompts, tries every sender; without one these prompts do."""
        self.paths: Paths = paths
        self.asked: tuple[HeadId, ...] = tuple(asked)
        self.senders: tuple[HeadId, ...] = tuple(senders)
        self._report = report
        self._search: Tracing = search or self
        self.sets: list[SenderSet] = []
        self.restored: dict[tuple[HeadId, Mlps], Estimate] = {}
        self._clean = dict(zip(paths.receivers, paths.stripe(paths.clean), strict=True))
        self._corrupt = dict(zip(paths.receivers, paths.stripe(paths.corrupt), strict=True))
        self._known: dict[tuple[str, Mlps, Sources], dict[HeadId, Contents]] = {}

    def edges(self, change: ChangedToken, verdicts: Mapping[HeadId, Any]) -> list[Edge]:
        """Named senders and sets of all receivers, strongest first for each; their weights are not yet asked."""
        found: list[Edge] = []
        for head, worlds in self._search.named().items():
            held = [world for world, _ in worlds]
            single = {(sender, name) for world, name in worlds if len(world) == 1 for sender in world}
            members = [frozenset([sender]) for world in held for sender in sorted(world)]
            self._learn("clean", "recompute", [*held, *members], "measuring what was found")
            self._restore(head, worlds)
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

    def named(self) -> dict[HeadId, dict[tuple[Sources, Input], float]]:
        """For each receiver the senders and sets that the rule names, each with its q-value."""
        if not self.asked:
            return {}
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
        found: dict[HeadId, dict[tuple[Sources, Input], float]] = {}
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
            found[head] = worlds
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
            world: {
                name: Estimate.of(row, resolution=EDGE_LOSS_RESOLUTION) for name, row in zip(INPUTS, one, strict=True)
            }
            for world, one in zip(worlds, by_world, strict=True)
        }

    def _edge(
        self,
        head: HeadId,
        name: Input,
        sender: HeadId,
        world: Sources,
        change: ChangedToken,
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
        strongest = {name: self._strongest(head, name, named if name == "k" else set[HeadId]()) for name in routes}
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
            strongest_other=strongest.get("k"),
            strongest_query=strongest.get("q"),
            weights_agree=None
            if best is None or best.z is None or best.margin is None
            else best.z >= RULE.z and best.margin >= RULE.margin,
            asked=asked,
            offset=self.paths.offsets.get(head, 0),
        )

    def _strongest(self, head: HeadId, name: Input, but: set[HeadId]) -> Estimate | None:
        """The largest effect, up or down, of a sender that is none of these."""
        search, senders = self._search, [sender for sender in self._before(head) if sender not in but]

        def size(sender: HeadId) -> float:
            return abs(search._lost(head, name, frozenset([sender])).mean()).round(6)

        strongest = max(senders, key=size, default=None)
        return None if strongest is None else Estimate.of(self._lost(head, name, frozenset([strongest])))
