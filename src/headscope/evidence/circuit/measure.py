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

Senders are searched in the first 32 prompts, q-values are from there; what was found is measured in all prompts. A
circuit asks one query in each, so its values scatter more, and are more skewed, than scores that average many queries.

Cost: over prompts of about 55 tokens, four whole passes over all 128; one pass over 32 per head of the layers before
the last receiver; a few over 32 for each set, and over all 128 for each sender that is named; and what `verify` costs
where no receivers are given.

It misleads where senders act only through another head (a path of three heads): with all others held that path is
cut, and it shows as unexplained. The value path is measured, but no corrupt prompt changes the token at the key.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from headscope.errors import ArgumentError, ShapeError, TokenError, UnsupportedModel
from headscope.evidence.ablation.each import N_PROMPTS as VERIFY_PROMPTS
from headscope.evidence.circuit.result import RULE, Circuit, Edge, PairComposition
from headscope.evidence.circuit.tracing import Tracing
from headscope.evidence.composition.measure import composition
from headscope.evidence.composition.result import Composition
from headscope.evidence.scan.result import Timing
from headscope.evidence.verify.measure import verify
from headscope.evidence.verify.result import Verification
from headscope.heads import HeadId
from headscope.interventions.paths import Paths
from headscope.model.load import Heads, Model, Source, load
from headscope.probes import Probe, repeated_tokens
from headscope.probes.corrupt import CONTEXT, CorruptPair, corrupt_pairs
from headscope.probes.probe import check_fits, probe_of
from headscope.probes.repeated import fitting_period
from headscope.records.common import Estimate, ModelInfo, Provenance
from headscope.stats import p_values

N_PROMPTS, PERIOD = 128, 24
SEARCH_PROMPTS = 32
"""Of all prompts, those in which every sender is tried."""


def trace_circuit(
    model: Source,
    receivers: Heads | None = None,
    *,
    verification: Verification | None = None,
    probe: Any | None = None,
    seed: int = 0,
    progress: Callable[[str, int, int], None] | None = None,
) -> Circuit:
    """Find and prove the path into each induction head's key, or query.

    Args:
        model: What `headscope.load` takes, or gives.
        receivers: Heads to explain; by default those that the verification calls `induction` or `redundant_induction`.
        verification: What `hs.verify` gave for this model; made where it is needed.
        probe: Repeated tokens; by default 128 prompts with runs of about 24.
        seed: Of the default probe, the corrupt prompts, and the verification.
        progress: Called with (what is being done, done, of).

    Raises:
        ArgumentError: receivers that the model does not have, or of its first layer; a verification of another model.
        TokenError: prompts of which no corrupt one can be made, or of several lengths.
        UnsupportedModel: queries and keys that cannot be seen, or no LM head.
    """
    model = load(model)
    report: Callable[[str, int, int], None] = progress or (lambda what, done, total: None)
    if probe is None:
        probe = repeated_tokens(model, n_prompts=N_PROMPTS, period=fitting_period(model, PERIOD), seed=seed)
    probe = probe_of(model, probe)
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
        raise ArgumentError(f"{early[0]} is in the first layer with attention; no head comes before it to feed it.")
    lengths = sorted({len(prompt) for prompt in probe.prompts})
    if len(lengths) > 1:
        raise TokenError(
            f"the prompts have {len(lengths)} lengths, from {lengths[0]} to {lengths[-1]} tokens; a circuit needs "
            "prompts of one length: cut them, or use repeated_tokens."
        )
    pairs = corrupt_pairs(probe, seed=seed)
    started = time.perf_counter()
    verdicts = {one.head: one for one in verification.heads} if verification is not None else {}
    if chosen:
        parts = _traced(model, probe, Paths(model, pairs, chosen), seed, verdicts, report)
    else:
        parts: dict[str, Any] = {
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
    senders = [head for head in model.heads if head.layer < last]
    asked = _asked(paths)
    tracing = _tracing(paths, corrupt_pairs(probe, seed=seed), asked, senders, report)
    edges = tracing.edges("before_key", verdicts)
    context, lost = list[Edge](), dict[HeadId, dict[str, Estimate]]()
    for change in CONTEXT if asked else ():
        pairs = corrupt_pairs(probe, seed=seed, change=change)
        if all(pair.changed is None for pair in pairs):
            continue
        other = Paths(model, pairs, asked, clean=paths.clean, offsets=paths.offsets)
        clean, corrupt = other.stripe(other.clean), other.stripe(other.corrupt)
        for row, head in enumerate(asked):
            lost.setdefault(head, {})[change] = Estimate.of_ratio(clean[row] - corrupt[row], clean[row])
        compared = [head for head in asked if lost[head][change].mean >= RULE.context]
        if compared:
            context += _tracing(other, pairs, compared, senders, report).edges(change, verdicts)
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


def _tracing(
    paths: Paths,
    pairs: Sequence[CorruptPair],
    asked: Sequence[HeadId],
    senders: Sequence[HeadId],
    report: Callable[[str, int, int], None],
) -> Tracing:
    """All prompts, with a search in the first of them."""
    search = None
    if asked and len(pairs) > SEARCH_PROMPTS:
        few = Paths(paths.model, pairs[:SEARCH_PROMPTS], asked, offsets=paths.offsets)
        search = Tracing(few, asked, senders, report)
    return Tracing(paths, asked, senders, report, search=search)


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
