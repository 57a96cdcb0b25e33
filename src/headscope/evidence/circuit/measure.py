"""The circuit: who tells the induction head where to look?

For every receiver, each head of an earlier layer is tried as its sender by path patching
(`headscope.interventions.paths`), into the receiver's key and, as a control, into its query; and for the senders
found the loss at the query is measured with one patched input, key, query or value, at a time.

    effect      stripe(clean) - stripe(clean, but the sender's content at the key is the corrupt twin's)
    share       effect over stripe(clean) - stripe(corrupt), the most that any sender could do
    named       q <= 0.05 (Benjamini-Hochberg, over all senders and receivers) and share >= 0.1
    restored    in the corrupt twin with the named senders' clean content: (stripe - corrupt) / (clean - corrupt).
                What is left to 1 is unexplained.

Weights are asked too: K-composition (`headscope.evidence.composition.measure`) of the same pairs, from products of
weights alone. It says what could be read; patching says what is. Where they disagree, the result says so.

Cost: one pass per head of the layers before the last receiver, over 32 prompts of about 55 tokens, twice (MLPs
recomputed and held); and what `verify` costs where no receivers are given.

It misleads where senders act only together with another head's change (a path of three heads): with all others held
that path is cut, and it shows as unexplained.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from headscope.errors import ArgumentError, ShapeError, TokenError, UnsupportedModel
from headscope.evidence.ablation.each import N_PROMPTS as VERIFY_PROMPTS
from headscope.evidence.composition.measure import Composition, composition
from headscope.evidence.scan.result import Timing
from headscope.evidence.verify.measure import verify
from headscope.evidence.verify.result import Verification
from headscope.heads import HeadId
from headscope.interventions.paths import INPUTS, Contents, Input, Mlps, Paths, Sources
from headscope.model.load import Heads, Model, load
from headscope.probes import Probe, repeated_tokens
from headscope.probes.probe import check_fits
from headscope.probes.twins import Twin, twins
from headscope.records.codec import decode, encode, refuse_repeated
from headscope.records.common import Estimate, ModelInfo, Provenance
from headscope.records.files import read_document, write_whole
from headscope.render.figures import diagram_figure
from headscope.render.graph import Arrow, Node, diagram_svg
from headscope.stats import benjamini_hochberg, p_values

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure
    from transformers import PreTrainedModel

SCHEMA = "headscope.circuit/1"
N_PROMPTS = 32
PERIOD = 24

COLUMNS = (
    "sender",
    "receiver",
    "input",
    "effect",
    "share",
    "q_value",
    "query_effect",
    "loss_nats",
    "k_composition_z",
)
"""Of `Circuit.to_frame`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CircuitRule:
    """Every number that names a sender."""

    share: float = 0.1
    """Least share of the stripe that its content carries."""
    false_discovery: float = 0.05
    """Largest q-value."""
    z: float = 3.0
    """Least z of K-composition for weights to agree."""


RULE = CircuitRule()


@dataclass(frozen=True, slots=True, kw_only=True)
class Weights:
    """What K-composition says of a pair."""

    score: float
    """In [0, 1]."""
    ratio: float
    """Over what a random rotation gives."""
    z: float | None
    """Its distance from that in standard deviations; None where no rotation changes it."""
    rank: int
    """Among all heads before the receiver, from 1."""
    of: int
    """How many there are."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Edge:
    """A sender that matters to a receiver through one input."""

    sender: HeadId
    """Who writes."""
    receiver: HeadId
    """Who reads."""
    input: Input
    """Through its key, query or value."""
    effect: Estimate
    """Stripe lost, in probability; MLPs recompute."""
    share: float
    """Of the most that any sender could do."""
    q_value: float
    """Significance of the effect."""
    mlps_held: Estimate | None
    """The effect with MLPs held; None where the model has none of its own."""
    loss_nats: dict[str, Estimate]
    """Loss at the query with the sender's other content in the receiver's key, query or value alone, minus clean."""
    query_effect: Estimate
    """The control: stripe lost through the receiver's query."""
    previous_token: float | None
    """The sender's attention to the token before, if a verification was made."""
    weights: Weights | None
    """What the weights say; None where they cannot be told apart by head, or one of the two has only zeros."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Receiver:
    """A head whose stripe is explained."""

    head: HeadId
    """Which."""
    verdict: str | None
    """Its verdict, if a verification was made."""
    stripe: Estimate
    """Attention from the query to the key, clean."""
    corrupt: Estimate
    """The same in the corrupt twin."""
    restored: Estimate | None
    """Share of the difference that the named senders' clean content restores; None without any."""
    restored_mlps_held: Estimate | None
    """The same with MLPs held."""
    unexplained: float
    """What is left to 1; below 0 where they restore more than all of it."""
    strongest_other: Estimate | None
    """Effect of the strongest sender that is not named; None if all are."""
    strongest_query: Estimate
    """The control: the strongest effect of any sender through the query."""
    weights_agree: bool | None
    """Whether the strongest named sender's K-composition is out of chance's reach; None where not known."""


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Circuit:
    """Who feeds whom."""

    model: ModelInfo
    """Which model."""
    receivers: tuple[Receiver, ...]
    """Heads whose stripe is explained, in order."""
    edges: tuple[Edge, ...]
    """Named senders, strongest first for each receiver."""
    senders_tried: int
    """Heads before the last receiver's layer."""
    grouped: bool
    """Whether heads share keys: each was patched for its one query head."""
    notes: tuple[str, ...]
    """What a reader must know."""
    rule: CircuitRule
    """The numbers that name a sender."""
    probe: dict[str, Any]
    """How the twins were made."""
    provenance: Provenance
    """How to repeat it."""
    timing: Timing
    """What it cost."""

    def to_dict(self) -> dict[str, Any]:
        """The document `headscope.circuit/1`, JSON-ready."""
        return {"schema": SCHEMA, **encode(self)}

    def to_json(self) -> str:
        """The document as text."""
        return json.dumps(self.to_dict(), indent=1, allow_nan=False)

    def to_frame(self) -> pd.DataFrame:
        """One row per edge: `COLUMNS`, also where there is none."""
        import pandas as pd

        return pd.DataFrame(
            [
                (
                    str(one.sender),
                    str(one.receiver),
                    one.input,
                    one.effect.mean,
                    one.share,
                    one.q_value,
                    one.query_effect.mean,
                    one.loss_nats[one.input].mean,
                    None if one.weights is None else one.weights.z,
                )
                for one in self.edges
            ],
            columns=list(COLUMNS),
        )

    def save(self, folder: str | Path) -> tuple[Path, Path]:
        """Write `circuit.json` and `circuit.svg` into a folder, which is made if need be. Returns both paths."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        document, drawing = folder / "circuit.json", folder / "circuit.svg"
        write_whole(document, (self.to_json() + "\n").encode())
        write_whole(drawing, self.drawing().encode())
        return document, drawing

    def drawing(self) -> str:
        """The circuit as SVG."""
        return diagram_svg(*self._graph())

    def plot(self) -> Figure:
        """The circuit as a matplotlib figure; it needs the extra `notebook`.

        Raises:
            ArgumentError: matplotlib is not installed.
        """
        return diagram_figure(*self._graph())

    def _graph(self) -> tuple[list[Node], list[Arrow]]:
        nodes = {
            **{one.sender: Node(label=str(one.sender), layer=one.sender.layer, note="sender") for one in self.edges},
            **{
                one.head: Node(label=str(one.head), layer=one.head.layer, note=one.verdict or "")
                for one in self.receivers
            },
        }
        arrows = [
            Arrow(
                source=str(one.sender),
                target=str(one.receiver),
                weight=max(0.0, min(1.0, one.share)),
                note=f"{one.sender} to the key of {one.receiver}: {one.share:.0%} of its stripe",
            )
            for one in self.edges
        ]
        return [nodes[head] for head in sorted(nodes)], arrows

    @classmethod
    def load(cls, path: str | Path) -> Circuit:
        """Read `circuit.json`, or the folder that holds it.

        Raises:
            ArgumentError: there is no such file, or it is not a circuit.
        """
        return cls.from_dict(read_document(path, "circuit.json"))

    @classmethod
    def from_dict(cls, document: dict[str, Any]) -> Circuit:
        """The result that `to_dict` wrote.

        Raises:
            ArgumentError: the document is not a `headscope.circuit/1`.
        """
        found = decode(cls, document, schema=SCHEMA)
        refuse_repeated(one.head for one in found.receivers)
        return found

    def __repr__(self) -> str:
        found = ", ".join(f"{one.sender} -> {one.receiver}.{one.input} {one.share:.2f}" for one in self.edges[:4])
        return f"Circuit({self.model.id}: {found or 'no sender found'})"

    def _repr_html_(self) -> str:
        return self.drawing()


def trace_circuit(
    model: Model | PreTrainedModel | str | Path,
    receivers: Heads | None = None,
    *,
    verification: Verification | None = None,
    probe: Probe | None = None,
    seed: int = 0,
    progress: Callable[[str, int, int], None] | None = None,
) -> Circuit:
    """Find and prove the path into each induction head's key.

    Args:
        model: What `headscope.load` takes, or gives.
        receivers: Heads to explain; by default those that the verification calls `induction` or `redundant_induction`.
        verification: What `hs.verify` gave for this model; made anew where it is needed.
        probe: Repeated tokens; by default 32 prompts with runs of about 24.
        seed: Of the default probe, the twins, and the verification.
        progress: Called with (what is being done, done, of).

    Raises:
        ArgumentError: receivers that the model does not have, or that lie in its first layer; a verification of
            another model.
        TokenError: prompts of which no twin can be made, or of several lengths.
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
    if not chosen:
        return _assembled(
            model, probe, seed, started, (), (), 0, ("no head is called induction, so none is explained",)
        )
    tracing = _Tracing(model, pairs, chosen, report)
    weights = _composition(model)
    names = {one.head: one for one in verification.heads} if verification is not None else {}
    receivers_found, edges = tracing.found(weights, names)
    return _assembled(model, probe, seed, started, receivers_found, edges, len(tracing.senders), tracing.notes(weights))


def _verified(model: Model, probe: Probe, seed: int, progress: Callable[[str, int, int], None] | None) -> Verification:
    """The default verification; where the model's context is too short for its prompts, on those of the circuit."""
    try:
        usual = repeated_tokens(model, n_prompts=VERIFY_PROMPTS, seed=seed)
    except ShapeError:
        usual = probe
    return verify(model, probe=usual, seed=seed, progress=progress)


def _assembled(
    model: Model,
    probe: Probe,
    seed: int,
    started: float,
    receivers: tuple[Receiver, ...],
    edges: tuple[Edge, ...],
    n_senders: int,
    notes: tuple[str, ...],
) -> Circuit:
    return Circuit(
        model=ModelInfo.of(model),
        receivers=receivers,
        edges=edges,
        senders_tried=n_senders,
        grouped=_grouped(model),
        notes=notes,
        rule=RULE,
        probe=dict(probe.settings) | {"twins": "one token before the key replaced"},
        provenance=Provenance.of(model, kernels=model.check.kernels, seed=seed),
        timing=Timing(wall_s=time.perf_counter() - started, tokens=2 * sum(map(len, probe.prompts))),
    )


class _Tracing:
    """All paths into the receivers."""

    def __init__(
        self,
        model: Model,
        pairs: Sequence[Twin],
        receivers: Sequence[HeadId],
        report: Callable[[str, int, int], None],
    ) -> None:
        self.model, self.receivers = model, tuple(receivers)
        last = max(head.layer for head in receivers)
        self.senders = [
            HeadId(layer, one) for layer, n in sorted(model.check.heads.items()) if layer < last for one in range(n)
        ]
        self._report = report
        self.paths = Paths(model, pairs, receivers)
        self._clean = self.paths.stripe(self.paths.clean)
        self._corrupt = self.paths.stripe(self.paths.corrupt)
        self._mlps: list[Mlps] = ["recompute", "held"] if self.paths.can_hold_mlps else ["recompute"]

    def found(
        self, weights: Composition | None, names: dict[HeadId, Any]
    ) -> tuple[tuple[Receiver, ...], tuple[Edge, ...]]:
        """Receivers and their named senders."""
        singles: list[Sources] = [frozenset([sender]) for sender in self.senders]
        contents: dict[Mlps, dict[HeadId, Contents]] = {
            mlp: self._contents("clean", singles, mlp, f"patching, MLPs {'held' if mlp == 'held' else 'recomputed'}")
            for mlp in self._mlps
        }
        lost: dict[Mlps, dict[tuple[int, str], np.ndarray]] = {
            mlp: {
                (row, name): self._clean[row] - self.paths.patched(self.paths.clean, head, name, by[head][name])
                for row, head in enumerate(self.receivers)
                for name in ("k", "q")
            }
            for mlp, by in contents.items()
        }
        tested = [
            (row, column)
            for row, head in enumerate(self.receivers)
            for column, sender in enumerate(self.senders)
            if sender.layer < head.layer
        ]
        p = np.asarray([float(p_values(lost["recompute"][row, "k"][column])) for row, column in tested])
        q = dict(zip(tested, benjamini_hochberg(p).tolist(), strict=True))
        most = (self._clean - self._corrupt).mean(1)
        edges: list[Edge] = []
        receivers: list[Receiver] = []
        for row, head in enumerate(self.receivers):
            before = [column for column, sender in enumerate(self.senders) if sender.layer < head.layer]
            effects = lost["recompute"][row, "k"].mean(1)
            shares = effects / most[row] if most[row] > 0 else np.zeros_like(effects)
            named = [
                column for column in before if q[row, column] <= RULE.false_discovery and shares[column] >= RULE.share
            ]
            named.sort(key=lambda column: -effects[column])
            losses = self._losses(head, [contents["recompute"][head]] * len(named), named)
            of_head = [
                self._edge(head, row, column, float(shares[column]), q[row, column], lost, loss, weights, names)
                for column, loss in zip(named, losses, strict=True)
            ]
            edges += of_head
            receivers.append(self._receiver(head, row, named, before, lost, of_head, weights, names))
        return tuple(receivers), tuple(edges)

    def notes(self, weights: Composition | None) -> tuple[str, ...]:
        """What a reader must know."""
        notes = []
        if _grouped(self.model):
            notes.append(
                "grouped queries: heads of a group share one key; each was patched for its one query head alone, which "
                "the model itself cannot do"
            )
        if not self.paths.can_hold_mlps:
            notes.append("the model has no MLPs apart from its attention that could be held, so they recompute")
        if weights is None:
            notes.append("its weights cannot be told apart by head, so composition is not known")
        else:
            notes += list(weights.notes)
        return tuple(notes)

    @cached_property
    def _clean_loss(self) -> np.ndarray:
        """At each prompt's query."""
        return self.paths.loss(self.paths.clean)

    def _contents(self, base: str, worlds: Sequence[Sources], mlp: Mlps, label: str) -> dict[HeadId, Contents]:
        clean, corrupt = self.paths.clean, self.paths.corrupt
        runs = (clean, corrupt) if base == "clean" else (corrupt, clean)
        return self.paths.contents(
            *runs, worlds, mlp=mlp, progress=lambda done, total: self._report(label, done, total)
        )

    def _losses(self, head: HeadId, contents: Sequence[Contents], columns: Sequence[int]) -> list[dict[str, Estimate]]:
        """For each sender: change of the loss at the query when its content reaches one input alone."""
        if not columns:
            return []
        changes: list[tuple[HeadId, Input, Tensor]] = [
            (head, name, by[name][column]) for by, column in zip(contents, columns, strict=True) for name in INPUTS
        ]
        rows = self.paths.losses(self.paths.clean, changes) - self._clean_loss
        by_sender = rows.reshape(len(columns), len(INPUTS), -1)
        return [{name: Estimate.of(row) for name, row in zip(INPUTS, one, strict=True)} for one in by_sender]

    def _edge(
        self,
        head: HeadId,
        row: int,
        column: int,
        share: float,
        q: float,
        lost: dict[Mlps, dict[tuple[int, str], np.ndarray]],
        losses: dict[str, Estimate],
        weights: Composition | None,
        names: dict[HeadId, Any],
    ) -> Edge:
        sender = self.senders[column]
        verdict = names.get(sender)
        return Edge(
            sender=sender,
            receiver=head,
            input="k",
            effect=Estimate.of(lost["recompute"][row, "k"][column]),
            share=share,
            q_value=q,
            mlps_held=Estimate.of(lost["held"][row, "k"][column]) if "held" in lost else None,
            loss_nats=losses,
            query_effect=Estimate.of(lost["recompute"][row, "q"][column]),
            previous_token=None if verdict is None else verdict.attention.get("previous_token"),
            weights=_weights(weights, sender, head),
        )

    def _receiver(
        self,
        head: HeadId,
        row: int,
        named: Sequence[int],
        before: Sequence[int],
        lost: dict[Mlps, dict[tuple[int, str], np.ndarray]],
        edges: Sequence[Edge],
        weights: Composition | None,
        names: dict[HeadId, Any],
    ) -> Receiver:
        together = frozenset(self.senders[column] for column in named)
        restored = {mlp: self._restored(head, row, together, mlp) if together else None for mlp in self._mlps}
        others = [column for column in before if column not in named]
        through_key, through_query = lost["recompute"][row, "k"], lost["recompute"][row, "q"]
        strongest = max(others, key=lambda column: abs(through_key[column].mean()), default=None)
        control = max(before, key=lambda column: abs(through_query[column].mean()))
        explained = restored["recompute"]
        best = edges[0].weights if edges else None
        verdict = names.get(head)
        return Receiver(
            head=head,
            verdict=None if verdict is None else verdict.verdict,
            stripe=Estimate.of(self._clean[row]),
            corrupt=Estimate.of(self._corrupt[row]),
            restored=explained,
            restored_mlps_held=restored.get("held"),
            unexplained=1.0 - (explained.mean if explained is not None else 0.0),
            strongest_other=None if strongest is None else Estimate.of(through_key[strongest]),
            strongest_query=Estimate.of(through_query[control]),
            weights_agree=None if best is None or best.z is None else best.z >= RULE.z,
        )

    def _restored(self, head: HeadId, row: int, senders: Sources, mlp: Mlps) -> Estimate:
        by = self._contents("corrupt", [senders], mlp, "restoring")
        stripe = self.paths.patched(self.paths.corrupt, head, "k", by[head]["k"])[0]
        most = float((self._clean[row] - self._corrupt[row]).mean())
        return Estimate.of((stripe - self._corrupt[row]) / most)


def _composition(model: Model) -> Composition | None:
    try:
        return composition(model, kinds=("k",))
    except UnsupportedModel:
        return None


def _weights(scores: Composition | None, sender: HeadId, receiver: HeadId) -> Weights | None:
    if scores is None:
        return None
    ranked = scores.ranked(receiver, "k")
    for rank, pair in enumerate(ranked, start=1):
        if pair.sender == sender:
            return Weights(score=pair.score, ratio=pair.ratio, z=pair.z, rank=rank, of=len(ranked))
    return None


def _grouped(model: Model) -> bool:
    return model.n_kv_heads is not None and model.n_kv_heads < model.n_heads
