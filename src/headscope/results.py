"""Frozen results with provenance, as objects, JSON, Parquet and frames.

A result is data: it was computed once, and every table, page and picture is rendered from it. Files are written under
a temporary name and renamed, so a reader never sees half of one.
"""

from __future__ import annotations

import json
import math
import os
import platform
import sys
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float

from headscope.documents import decode, encode, refuse_repeated
from headscope.errors import ArgumentError, brief
from headscope.figures import maps_figure
from headscope.heatmap import Panel, heatmap_svg
from headscope.stats import mean_intervals
from headscope.types import HeadId, Support

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

    from headscope.model.load import Model

SCHEMA = "headscope.scan/1"
THRESHOLD = 0.4
"""A head is found for a role when its mean score reaches this."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelInfo:
    """Which model was measured."""

    id: str
    """Hub id, folder, `demo`, or the class of a model object."""
    revision: str | None
    """Commit of the hub repository, where it is known."""
    family: str
    """Transformers' name of the architecture."""
    n_layers: int
    """Decoder layers, with or without attention."""
    n_heads: int
    """Query heads of a layer; the largest number, where layers differ."""
    n_kv_heads: int | None
    """Key-value heads of a layer; None where the model's own code hides them."""
    support: Support
    """The self-check's verdict."""
    reason: str
    """Why that verdict."""

    @classmethod
    def of(cls, model: Model) -> ModelInfo:
        """What a result keeps of a loaded model."""
        return cls(
            id=model.id,
            revision=model.revision,
            family=model.family,
            n_layers=model.n_layers,
            n_heads=model.n_heads,
            n_kv_heads=model.n_kv_heads,
            support=model.check.support,
            reason=model.check.reason,
        )

    def unlike(self, other: ModelInfo) -> str:
        """What tells another model from this one, like `n_heads 8, not 12`; empty where they are one."""
        names = ("id", "revision", "family", "n_layers", "n_heads", "n_kv_heads")
        pairs = {name: (getattr(other, name), getattr(self, name)) for name in names}
        return ", ".join(f"{name} {theirs!r}, not {ours!r}" for name, (theirs, ours) in pairs.items() if theirs != ours)


@dataclass(frozen=True, slots=True, kw_only=True)
class Provenance:
    """What else one needs to repeat the measurement."""

    dtype: str
    """Precision of the model's weights."""
    device: str
    """Where it ran."""
    kernels: tuple[str, ...]
    """What computed attention: `flash`, `tiled`, `reference`, or `own` for the model's own code."""
    seed: int | None
    """Seed of the probe; None for the user's own tokens."""
    versions: dict[str, str]
    """Of headscope, torch, transformers and Python."""
    command: str
    """What was run."""

    @classmethod
    def of(cls, model: Model, *, kernels: Iterable[str], seed: int | None) -> Provenance:
        """What a result keeps of the running program."""
        packages = ("headscope", "torch", "transformers")
        return cls(
            dtype=str(model.dtype).removeprefix("torch."),
            device=str(model.device),
            kernels=tuple(sorted(kernels)),
            seed=seed,
            versions={name: version(name) for name in packages} | {"python": platform.python_version()},
            command=" ".join([Path(sys.argv[0]).name or "python", *sys.argv[1:]]),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """A mean over prompts and its 95% interval; None from a single prompt."""

    mean: float
    """Mean over prompts."""
    ci95: tuple[float, float] | None
    """Student's t interval over prompts."""

    @classmethod
    def of(cls, samples: Float[np.ndarray, " prompt"]) -> Estimate:
        """From one value per prompt; differences of paired values give a paired interval."""
        mean, half = mean_intervals(samples)
        return cls(
            mean=float(mean), ci95=None if half is None else (float(mean) - float(half), float(mean) + float(half))
        )


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class HeadScore:
    """How much of its attention one head puts on one detector's targets."""

    head: HeadId
    """Which head."""
    detector: str
    """Which role."""
    mean: float
    """Attention on the targets, mean over queries and prompts, in [0, 1]."""
    ci95: tuple[float, float] | None
    """95% interval over prompts; None from a single prompt."""
    chance: float
    """What uniform attention over the keys that each query may see would score."""
    control: float | None
    """The same targets on the matched control; None where the probe has none."""
    selectivity: Estimate | None
    """Score minus control, paired by prompt; None where the probe has no control."""
    n_prompts: int
    """Prompts that have targets."""

    def reaches(self, threshold: float = THRESHOLD, *, content: bool, lost_on_control: float = 0.5) -> bool:
        """Whether the mean reaches `threshold` and, for a role about content, that share of it is gone on the control.

        Where there is no control, the mean alone decides.
        """
        if self.mean < threshold:
            return False
        return not content or self.selectivity is None or self.selectivity.mean >= lost_on_control * self.mean

    def __repr__(self) -> str:
        interval = "" if self.ci95 is None else f" [{self.ci95[0]:.2f}, {self.ci95[1]:.2f}]"
        return f"HeadScore({self.head}, {self.mean:.2f}{interval})"


@dataclass(frozen=True, slots=True, kw_only=True)
class Role:
    """A detector as a result remembers it."""

    name: str
    """Its name."""
    needs_control: bool
    """Whether the role is about content, so that a head must lose most of its score on the control to have it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """What the measurement cost."""

    wall_s: float
    """Seconds from the first prompt to the last score; loading is not counted."""
    tokens: int
    """Tokens read, controls included."""


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Scan:
    """Every head's score for every role."""

    model: ModelInfo
    """Which model."""
    probe: dict[str, Any]
    """How the prompts were made."""
    roles: tuple[Role, ...]
    """The detectors, in the order they were asked for."""
    scores: tuple[HeadScore, ...]
    """One for each head and role, ordered by layer, head, call and role."""
    unscored: dict[str, str]
    """Roles without a score, and why."""
    provenance: Provenance
    """How to repeat it."""
    timing: Timing
    """What it cost."""

    @property
    def widest(self) -> float | None:
        """The longest side of any interval, of a score or its selectivity; None from a single prompt."""
        return widest_of(self.scores)

    def heads(self, detector: str = "induction", threshold: float = THRESHOLD) -> list[HeadScore]:
        """Heads found for a role, best first.

        A head is found when its mean reaches `threshold` and, for a role about content, at least half of its mean is
        gone on the control (selectivity >= mean / 2): a head that looks at the place and not at the token is not.
        Where there is no control, on your own tokens, the mean alone decides.

        Raises:
            ArgumentError: this scan has no such detector, or no score for it; the message says why.
        """
        role = self._role(detector)
        return [score for score in self.ranked(detector) if score.reaches(threshold, content=role.needs_control)]

    def ranked(self, detector: str = "induction") -> list[HeadScore]:
        """Every head's score for a role, best first, whether found or not."""
        self._role(detector)
        of_role = [score for score in self.scores if score.detector == detector]
        return sorted(of_role, key=lambda score: (-score.mean, score.head))

    def _role(self, detector: str) -> Role:
        for role in self.roles:
            if role.name == detector:
                return role
        if detector in self.unscored:
            raise ArgumentError(f"this scan has no score for {detector}: {self.unscored[detector]}.")
        raise ArgumentError(
            f"this scan has no detector {detector!r}; it has {', '.join(role.name for role in self.roles)}."
        )

    def to_frame(self) -> pd.DataFrame:
        """One row per head and role: layer, head, call, detector, mean, ci_low, ci_high, chance, control, ..."""
        import pandas as pd

        frame = pd.DataFrame([_row(score) for score in self.scores], columns=list(COLUMNS))
        return frame.astype({name: "int64" if name in WHOLE else "float64" for name in COLUMNS if name != "detector"})

    def to_dict(self) -> dict[str, Any]:
        """The document `headscope.scan/1`, JSON-ready."""
        return {
            "schema": SCHEMA,
            "model": encode(self.model),
            "probe": dict(self.probe),
            "detectors": [encode(role) for role in self.roles],
            "heads": [
                {**encode(head), "scores": {score.detector: _numbers(score) for score in scores}}
                for head, scores in self._by_head().items()
            ],
            "found": {
                role.name: [{**encode(score.head), "score": score.mean} for score in self.heads(role.name)]
                for role in self.roles
            },
            "unscored": dict(self.unscored),
            "provenance": encode(self.provenance),
            "timing": encode(self.timing),
        }

    def _by_head(self) -> dict[HeadId, list[HeadScore]]:
        grouped: dict[HeadId, list[HeadScore]] = {}
        for score in self.scores:
            grouped.setdefault(score.head, []).append(score)
        return grouped

    @classmethod
    def from_dict(cls, document: dict[str, Any]) -> Scan:
        """The result that `to_dict` wrote.

        Raises:
            ArgumentError: the document is not a `headscope.scan/1`.
        """
        if document.get("schema") != SCHEMA:
            given = brief(repr(document.get("schema")))
            raise ArgumentError(f"schema {given} is not {SCHEMA!r}; give a file that a scan wrote.")
        try:
            found = cls(
                model=decode(ModelInfo, document["model"]),
                probe=dict(document["probe"]),
                roles=tuple(decode(Role, role) for role in document["detectors"]),
                scores=tuple(
                    decode(HeadScore, {**place, "detector": detector, **numbers})
                    for place in ({**entry} for entry in document["heads"])
                    for detector, numbers in place.pop("scores").items()
                ),
                unscored=dict(document["unscored"]),
                provenance=decode(Provenance, document["provenance"]),
                timing=decode(Timing, document["timing"]),
            )
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise ArgumentError(f"the scan document is damaged ({brief(error)}); write it anew.") from error
        for role in {score.detector for score in found.scores}:
            refuse_repeated(score.head for score in found.scores if score.detector == role)
        return found

    def to_json(self) -> str:
        """The document as text."""
        return json.dumps(self.to_dict(), indent=1, allow_nan=False)

    def save(self, folder: str | Path) -> tuple[Path, Path]:
        """Write `scan.json` and `scan.parquet` into a folder, which is made if need be. Returns both paths."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        document, table = folder / "scan.json", folder / "scan.parquet"
        write_whole(document, (self.to_json() + "\n").encode())
        write_whole(table, self.to_parquet())
        return document, table

    def to_parquet(self) -> bytes:
        """The frame as a Parquet file, with the rest of the document in its metadata under `headscope`."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        table = pa.Table.from_pylist([_row(score) for score in self.scores], schema=_arrow_schema())
        about = {key: value for key, value in self.to_dict().items() if key not in ("heads", "found")}
        table = table.replace_schema_metadata({"headscope": json.dumps(about)})
        sink = pa.BufferOutputStream()
        pq.write_table(table, sink)
        return sink.getvalue().to_pybytes()

    @classmethod
    def load(cls, path: str | Path) -> Scan:
        """Read `scan.json`, or the folder that holds it.

        Raises:
            ArgumentError: there is no such file, or it is not a scan.
        """
        return cls.from_dict(read_document(path, "scan.json"))

    def to_transformerlens(self, detector: str = "induction") -> str:
        """Python code that measures the best head of a role again, by TransformerLens's own hooks.

        It draws the same prompts, reads `hook_pattern` and ends with the number in `score`. Where a model object was
        scanned, the code takes it from a variable `model`.

        Raises:
            ArgumentError: this scan has no such detector; a detector or tokens of your own, of which a scan keeps no
                more than the name.
        """
        return _elsewhere(self, detector, _TRANSFORMERLENS)

    def to_nnsight(self, detector: str = "induction") -> str:
        """The same by nnsight: a trace of the layer's attention module, which must run eagerly to give its pattern.

        nnsight reads the source of a trace, so save the code to a file or run it in a notebook cell.

        Raises:
            ArgumentError: as `to_transformerlens`; or the scan's support is not `exact` through our attention function,
                so that it is not known whether the model's attention modules return their pattern.
        """
        if "our attention function" not in self.model.reason:
            raise ArgumentError(
                f"it is not known that the attention modules of {self.model.id} give nnsight their pattern "
                f"({self.model.support}: {self.model.reason}); use to_transformerlens."
            )
        return _elsewhere(self, detector, _NNSIGHT)

    def __repr__(self) -> str:
        found = ", ".join(f"{len(self.heads(role.name))} {role.name}" for role in self.roles if self.heads(role.name))
        return f"Scan({self.model.id}: {found or 'no head found'}, support {self.model.support})"

    def panel(self, detector: str = "induction") -> Panel:
        """The scores of one role as a layer x head map; in looped models the best call of each head."""
        best: dict[tuple[int, int], HeadScore] = {}
        for score in reversed(self.ranked(detector)):
            best[score.head.layer, score.head.head] = score
        places = [[(layer, head) for head in range(self.model.n_heads)] for layer in range(self.model.n_layers)]
        return Panel(
            title=detector,
            values=[[best[place].mean if place in best else None for place in row] for row in places],
            notes=[[_note(best.get(place), place) for place in row] for row in places],
        )

    def plot(self, *detectors: str) -> Figure:
        """The maps as a matplotlib figure, for all roles or those named; it needs the extra `notebook`.

        Raises:
            ArgumentError: this scan has no such detector; matplotlib is not installed.
        """
        return maps_figure([self.panel(name) for name in detectors or [role.name for role in self.roles]])

    def _repr_html_(self) -> str:
        return heatmap_svg([self.panel(role.name) for role in self.roles])


_TRANSFORMERLENS = """\
# {head}, {detector}: headscope says {mean:.4f}. The same by TransformerLens's own hooks.
import copy
import headscope as hs
import torch
from transformer_lens.model_bridge.sources import build_bridge_from_module

{prompts}
hf = copy.deepcopy(model.hf)  # a bridge rewrites its model
bridge = build_bridge_from_module(hf, type(hf).__name__, hf_config=hf.config, tokenizer=model.tokenizer)
scores = []
for prompt in probe.prompts:
    ids = prompt.tolist()
    tokens = torch.tensor([ids], device=model.device)
    _, cache = bridge.run_with_cache(tokens, names_filter=lambda name: name.endswith("hook_pattern"))
    pattern = cache["pattern", {layer}][0, {number}]
{average}
"""

_NNSIGHT = """\
# {head}, {detector}: headscope says {mean:.4f}. The same by nnsight.
import copy
import headscope as hs
import torch
from nnsight import NNsight

{prompts}
hf = copy.deepcopy(model.hf)
hf.set_attn_implementation("eager")  # the others return no pattern
lens = NNsight(hf)
module = next(name for name, layer in model.check.route.layers.items() if layer == {layer})
scores = []
for prompt in probe.prompts:
    ids = prompt.tolist()
    tokens = torch.tensor([ids], device=model.device)
    with torch.no_grad(), lens.trace(tokens):
        weights = lens.get(module).output[1].save()
    pattern = weights[0, {number}]
{average}
"""

_PROMPTS = """\
model = {model}
probe = hs.repeated_tokens(model, {settings})
assert probe.settings["n_token_ids"] == {pool}, "the scan drew its prompts from other tokens"
"""

_AVERAGE = """\
    places = [(q, k) for q in range(len(ids)) for k in {keys}]
    queries = {{q for q, _ in places}}
    if queries:
        scores.append(sum(float(pattern[q, k]) for q, k in places) / len(queries))
score = sum(scores) / len(scores)
print(f"{head} {detector} {{score:.4f}}")"""

_KEYS = {
    "induction": "[j + 1 for j in range(q) if ids[j] == ids[q]]",
    "induction_recent": "[j + 1 for j in range(q) if ids[j] == ids[q]][-1:]",
    "duplicate_token": "[j for j in range(q) if ids[j] == ids[q]]",
    "previous_token": "[q - 1][: q]",
    "current_token": "[q][: q]",
    "first_token": "[0][: q]",
}
"""The built-in roles' targets of query `q`, as Python; the first query has none."""


def _elsewhere(scan: Scan, detector: str, template: str) -> str:
    """Code that measures the best head of a role with another library."""
    best = scan.ranked(detector)[0]
    if detector not in _KEYS:
        raise ArgumentError(f"{detector} is a detector of your own, which a scan keeps no code of; write it out.")
    probe, info = scan.probe, scan.model
    if probe.get("kind") != "repeated_tokens":
        raise ArgumentError(
            f"this scan read a probe of the kind {probe.get('kind')!r}, whose tokens it does not keep; "
            "scan repeated_tokens, the default, to get code that draws the same prompts."
        )
    if best.head.call:
        raise ArgumentError(f"{best.head} is a later call of a looped layer, which the other library does not tell.")
    # A model object without a name goes by its class; hub ids of one word and `demo` are in lower case.
    if info.id.isidentifier() and info.id[0].isupper():
        model = f"hs.load(model)  # the {info.id} that was scanned"
    else:
        revision = "" if info.revision is None else f", revision={info.revision!r}"
        model = f"hs.load({info.id!r}, dtype={scan.provenance.dtype!r}{revision})"
    names = ("n_prompts", "period", "n_repeats", "jitter", "bos", "seed")
    prompts = _PROMPTS.format(
        model=model,
        settings=", ".join(f"{name}={probe[name]!r}" for name in names),
        pool=probe["n_token_ids"],
    )
    return template.format(
        head=best.head,
        detector=detector,
        mean=best.mean,
        layer=best.head.layer,
        number=best.head.head,
        prompts=prompts.rstrip(),
        average=_AVERAGE.format(keys=_KEYS[detector], head=best.head, detector=detector),
    )


def widest_of(scores: Iterable[HeadScore]) -> float | None:
    """The longest side of any interval, of a score or its selectivity; None where there is none."""
    estimates = [one for score in scores for one in (score, score.selectivity) if one is not None]
    # The longer side: the other may be cut off where no score can lie.
    sides = [max(one.ci95[1] - one.mean, one.mean - one.ci95[0]) for one in estimates if one.ci95 is not None]
    return max(sides, default=None)


COLUMNS = (
    "layer",
    "head",
    "call",
    "detector",
    "mean",
    "ci_low",
    "ci_high",
    "chance",
    "control",
    "selectivity",
    "selectivity_low",
    "selectivity_high",
    "n_prompts",
)
WHOLE = ("layer", "head", "call", "n_prompts")
"""The columns that hold whole numbers; `detector` holds text, all others floats."""


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not a number that a document holds")


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text} is not a number that a document holds")
    return value


def read_document(path: str | Path, name: str) -> dict[str, Any]:
    """The JSON document in a file, or in the file of this name in a folder.

    Raises:
        ArgumentError: there is no such file, or it holds no document.
    """
    path = Path(path)
    file = path / name if os.path.isdir(path) else path  # Path.is_dir raises where the system refuses the name
    kind = Path(name).stem
    try:
        document = json.loads(file.read_text(encoding="utf-8"), parse_constant=_refuse_constant, parse_float=_finite)
    except (OSError, RecursionError, ValueError) as error:
        raise ArgumentError(f"{str(file)!r} cannot be read as a {kind}: {brief(error)}") from error
    return document if isinstance(document, dict) else {}


def write_whole(path: Path, content: bytes) -> None:
    """Write a file under a temporary name beside it, then rename: other readers see the old file or the new one."""
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


def _note(score: HeadScore | None, place: tuple[int, int]) -> str:
    if score is None:
        return f"{HeadId(*place)}: no attention"
    low, high = score.ci95 or (score.mean, score.mean)
    control = "" if score.control is None else f", control {score.control:.3f}"
    return f"{score.head} {score.detector} {score.mean:.3f} [{low:.3f}, {high:.3f}], chance {score.chance:.3f}{control}"


def _umask() -> int:
    current = os.umask(0)
    os.umask(current)
    return current


def _arrow_schema() -> Any:
    import pyarrow as pa

    kinds = {name: pa.int32() if name in WHOLE else pa.float64() for name in COLUMNS} | {"detector": pa.string()}
    return pa.schema([(name, kinds[name]) for name in COLUMNS])


def _numbers(score: HeadScore) -> dict[str, Any]:
    return {key: value for key, value in encode(score).items() if key not in ("layer", "head", "call", "detector")}


def _row(score: HeadScore) -> dict[str, Any]:
    low, high = score.ci95 or (None, None)
    selectivity = score.selectivity
    least, most = (selectivity.ci95 if selectivity is not None else None) or (None, None)
    return {
        "layer": score.head.layer,
        "head": score.head.head,
        "call": score.head.call,
        "detector": score.detector,
        "mean": score.mean,
        "ci_low": low,
        "ci_high": high,
        "chance": score.chance,
        "control": score.control,
        "selectivity": None if selectivity is None else selectivity.mean,
        "selectivity_low": least,
        "selectivity_high": most,
        "n_prompts": score.n_prompts,
    }
