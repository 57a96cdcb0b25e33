"""What a circuit holds: receivers, their senders, sets of senders that replace each other, and the document."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from headscope.evidence.head_types import meanings
from headscope.evidence.scan.result import Timing
from headscope.heads import HeadId
from headscope.interventions.paths import Input
from headscope.probes.corrupt import ChangedToken
from headscope.records.common import Estimate, ModelInfo, Provenance
from headscope.records.document import SavedDocument
from headscope.render.figures import diagram_figure
from headscope.render.graph import Arrow, Node, diagram_svg

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

SCHEMA = "headscope.circuit/1"

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
    """Least share of the stripe that its content carries; also the least that the corrupt prompt must take."""
    false_discovery: float = 0.05
    """Largest q-value."""
    z: float = 3.0
    """Least z of the composition for weights to agree."""
    margin: float = 1.1
    """Least composition over that of the best head that is not named, for weights to agree."""
    context: float = 0.5
    """Least share of the stripe that another token of context must take for its senders to be traced too."""
    set_size: int = 8
    """Most senders in a set that is looked for."""


INPUT_NAMES: dict[str, str] = {"k": "key", "q": "query", "v": "value"}
"""In words."""


RULE = CircuitRule()


@dataclass(frozen=True, slots=True, kw_only=True)
class PairComposition:
    """How the weights of a sender and a receiver compose, beside the model's other heads."""

    score: float
    """In [0, 1]."""
    ratio: float
    """Over what a random rotation gives."""
    z: float | None
    """Its distance from that in standard deviations; None where no rotation changes it. Most pairs of a trained model
    are far from a random rotation: read the rank and the margin."""
    rank: int
    """Among all heads before the receiver, from 1."""
    of: int
    """How many there are."""
    margin: float | None = None
    """Score over the largest of a head that is not named as this receiver's sender; None where there is none."""


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
    """Stripe lost, in probability; MLPs recompute. For one of a set (`any_of`) this and the numbers below are those of
    the whole set."""
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
    weights: PairComposition | None
    """What the weights say; None where they cannot be assigned to heads, or one of the two has only zeros."""
    any_of: tuple[HeadId, ...] = ()
    """The set that this sender belongs to, where the stripe is lost only without all of them; empty for a sender
    whose own removal takes its share."""
    share_ci95: tuple[float, float] | None = None
    """95% interval of the share (Fieller)."""
    changed: ChangedToken = "before_key"
    """Which token differs in the corrupt prompts of this edge."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SenderSet:
    """Senders that replace each other: more is lost without all of them than one by one."""

    receiver: HeadId
    """Who reads."""
    input: Input
    """Through its key or query."""
    senders: tuple[HeadId, ...]
    """No smaller part of them will do: without all but one the loss stays below half of this."""
    effect: Estimate
    """Stripe lost without all of them."""
    share: float
    """Of the most that any sender could do."""
    singles: float
    """Sum of what is lost without each alone, as a share."""
    alone: tuple[Estimate, ...]
    """For each sender: share of the stripe that its clean content restores in the corrupt prompt, beside that of the
    senders which are needed by themselves."""
    any_one_is_enough: bool
    """Whether each alone restores at least half of what they do together."""


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
    """The same in the corrupt prompt."""
    restored: Estimate | None
    """Share of the difference that the named senders' clean content restores, a ratio of means with Fieller's interval;
    None without any."""
    restored_mlps_held: Estimate | None
    """The same with MLPs held."""
    unexplained: float | None
    """What is left to 1; below 0 where they restore more than all of it. None where `asked` is False: it is 0 / 0."""
    strongest_other: Estimate | None
    """Effect through the key of the strongest sender that is not named there; None if all are, or where `asked` is
    False."""
    strongest_query: Estimate | None
    """The strongest effect of any sender through the query; None where `asked` is False."""
    weights_agree: bool | None
    """Whether the strongest named sender composes more than chance, and by the margin of the rule more than every head
    that is not named; None where not known."""
    asked: bool = True
    """Whether the corrupt prompts take enough of the stripe to ask who carries it: significantly more than nothing,
    and at least the share of the rule."""
    offset: int = 0
    """How far after the stripe's key the attention was traced; 1 where the stripe itself does not depend on the
    changed token, but attention to the key after it does."""
    context: dict[str, Estimate] | None = None
    """Share of the stripe lost where another token differs: two before the key, or before the query. Near 1 for a head
    that compares two tokens. None where `asked` is False."""


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Circuit(SavedDocument):
    """Who feeds whom."""

    schema: ClassVar[str] = SCHEMA
    model: ModelInfo
    """Which model."""
    receivers: tuple[Receiver, ...]
    """Heads whose stripe is explained, in order."""
    edges: tuple[Edge, ...]
    """Named senders, strongest first for each receiver and input."""
    senders_tried: int
    """Heads before the last receiver's layer."""
    grouped: bool
    """Whether heads share keys: each was patched for its one query head."""
    notes: tuple[str, ...]
    """What a reader must know."""
    rule: CircuitRule
    """The numbers that name a sender."""
    probe: dict[str, Any]
    """How clean and corrupt prompts were made."""
    provenance: Provenance
    """How to repeat it."""
    timing: Timing
    """What it cost."""
    sets: tuple[SenderSet, ...] = ()
    """Senders that replace each other."""
    context: tuple[Edge, ...] = ()
    """Named senders of other tokens that a receiver compares, such as the token two before the key."""

    def to_frame(self) -> pd.DataFrame:
        """One row per edge: `COLUMNS` and `model`, also where there is none."""
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
        ).assign(model=self.model.id)

    def drawing(self) -> str:
        """The circuit as SVG."""
        return diagram_svg(*self._graph())

    def plot(self, *, width_in: float | None = None) -> Figure:
        """The circuit as a matplotlib figure; it needs the extra `notebook`.

        Args:
            width_in: Width in inches, like 6.75 for both columns of a paper; by default what its heads need.

        Raises:
            ArgumentError: matplotlib is not installed.
        """
        return diagram_figure(*self._graph(), width_in=width_in)

    def _graph(self) -> tuple[list[Node], list[Arrow]]:
        colours = {one.name: one.colour for one in meanings()}
        nodes = {
            **{one.sender: Node(label=str(one.sender), layer=one.sender.layer, note="sender") for one in self.edges},
            **{
                one.head: Node(
                    label=str(one.head),
                    layer=one.head.layer,
                    note=(one.verdict or "").replace("_", " "),
                    colour=colours.get(one.verdict or ""),
                )
                for one in self.receivers
            },
        }
        arrows = [
            Arrow(
                source=str(one.sender),
                target=str(one.receiver),
                weight=max(0.0, min(1.0, one.share)),
                label=f"{one.share:.0%}{'' if one.input == 'k' else ' ' + one.input}",
                note=f"{one.sender} to the {INPUT_NAMES[one.input]} of {one.receiver}: {one.share:.0%} of its stripe"
                + (f", with all of {', '.join(map(str, one.any_of))}" if one.any_of else ""),
            )
            for one in self.edges
        ]
        return [nodes[head] for head in sorted(nodes)], arrows

    def __repr__(self) -> str:
        found = ", ".join(f"{one.sender} -> {one.receiver}.{one.input} {one.share:.2f}" for one in self.edges[:4])
        return f"Circuit({self.model.id}: {found or 'no sender found'})"

    def _repr_html_(self) -> str:
        return self.drawing()

    def listed(self) -> Iterable[HeadId]:
        """See `Document.listed`."""
        return (one.head for one in self.receivers)

    def beside(self) -> dict[str, bytes]:
        """See `SavedDocument.beside`."""
        return {"svg": self.drawing().encode()}
