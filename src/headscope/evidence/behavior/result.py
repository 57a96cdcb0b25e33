"""The result of `behavior`, as objects, JSON, Parquet and frames."""

# pyright: reportUnknownArgumentType=false, reportUnknownVariableType=false
from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from headscope.evidence.behavior.conclusion import ConclusionRule
from headscope.evidence.behavior.findings import BehaviorControls, Cost, HeadFinding, Item, Score, SetFinding
from headscope.heads import HeadId
from headscope.records.common import ModelInfo, Provenance
from headscope.records.document import SavedDocument, parquet

if TYPE_CHECKING:
    import pandas as pd

SCHEMA = "headscope.behavior/1"


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class BehaviorResult(SavedDocument):
    """How strong a behaviour is, which heads carry it, and what was tried against that."""

    schema: ClassVar[str] = SCHEMA
    model: ModelInfo
    """Which model."""
    behavior: str
    """Which behaviour."""
    contrast: str
    """The pairs on which heads were searched."""
    score: Score
    """Of all pairs, before any head is named."""
    forms: dict[str, Score]
    """By how the pairs are put."""
    verbatim: Score | None
    """Of the pairs whose answer is in the prompt; None where there are fewer than eight."""
    paraphrase: Score | None
    """Of the others; None where there are fewer than eight."""
    heads: tuple[HeadFinding, ...]
    """Heads that passed the triage, largest effect first."""
    head_set: SetFinding | None
    """Heads together; None where no head lowers the effect in the search pairs."""
    controls: BehaviorControls
    """The controls of the findings."""
    conclusion: str
    """One of five; see `headscope.evidence.behavior.conclusion`."""
    reasons: tuple[str, ...]
    """Why, in words."""
    rule: ConclusionRule
    """The numbers of the rule."""
    items: tuple[Item, ...]
    """Every pair, and how the model answers it."""
    left_out: dict[str, str]
    """Pairs that the model cannot read, by contrast and id, and why."""
    problems: tuple[str, ...]
    """Lines of a file that could not be used, each with its number."""
    cost: Cost
    """What it took."""
    provenance: Provenance
    """How to repeat it."""

    @property
    def named(self) -> tuple[HeadId, ...]:
        """The heads that carry the effect, alone or as a set."""
        return tuple(one.head for one in self.heads if one.named)

    def to_frame(self) -> pd.DataFrame:
        """One row per head that passed the triage: layer, head, call, removed, ci_low, ci_high, q_value, ..., model."""
        import pandas as pd

        return pd.DataFrame([_row(one) for one in self.heads], columns=COLUMNS).assign(model=self.model.id)

    def to_parquet(self) -> bytes:
        """The frame as a Parquet file, with the rest of the document in its metadata under `headscope`."""
        import pyarrow as pa

        about = {key: value for key, value in self.to_dict().items() if key not in ("heads", "items")}
        return parquet(pa.Table.from_pandas(self.to_frame(), preserve_index=False), about)

    def __repr__(self) -> str:
        names = ", ".join(map(str, self.named)) or "no head"
        return f"BehaviorResult({self.behavior} in {self.model.id}: {self.conclusion}; {names})"

    def listed(self) -> Iterable[HeadId]:
        """See `Document.listed`."""
        return (one.head for one in self.heads)

    def beside(self) -> dict[str, bytes]:
        """See `SavedDocument.beside`."""
        return {"parquet": self.to_parquet()}


COLUMNS = (
    "layer head call triage_neutral triage_twin removed ci_low ci_high q_value patched patched_q_value share attention "
    "direct induction carries named"
).split()


def _row(one: HeadFinding) -> dict[str, Any]:
    low, high = one.removed.ci95 or (float("nan"), float("nan"))
    missing = float("nan")
    return {
        "layer": one.head.layer,
        "head": one.head.head,
        "call": one.head.call,
        "triage_neutral": one.triage.get("neutral", missing),
        "triage_twin": one.triage.get("twin", missing),
        "removed": one.removed.mean,
        "ci_low": low,
        "ci_high": high,
        "q_value": one.q_value,
        "patched": one.patched.mean,
        "patched_q_value": one.patched_q_value,
        "share": missing if one.share is None else one.share,
        "attention": one.attention.mean,
        "direct": missing if one.direct is None else one.direct.mean,
        "induction": missing if one.induction is None else one.induction,
        "carries": one.carries,
        "named": one.named,
    }
