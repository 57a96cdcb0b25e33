"""The report: scan, verification and circuit of one model, on one page that opens with no network.

    scan, verify, trace_circuit     what the page shows, each whole and as it was computed
    one readable prompt             every head's pattern on it, and the loss of each of its tokens
    token space                     what the heads with a role write and look for
    runs, behaviours                results made before, where they are given: how it emerged, what the heads carry

The document `headscope.report/1` holds all of it; `headscope.page.html` makes it a page. Files are written whole.

Cost: that of verify, which begins with the scan, and of the circuit; and a few passes over one prompt.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from headscope.errors import ArgumentError, UnsupportedModel
from headscope.evidence.ablation.each import N_PROMPTS, TOP
from headscope.evidence.circuit.measure import N_PROMPTS as CIRCUIT_PROMPTS
from headscope.evidence.circuit.measure import PERIOD, trace_circuit
from headscope.evidence.circuit.result import Circuit
from headscope.evidence.kinds import kind_of
from headscope.evidence.scan.measure import scan as read_attention
from headscope.evidence.scan.result import Scan
from headscope.evidence.verify.measure import verified
from headscope.evidence.verify.result import Verification
from headscope.heads import HeadId, Heads
from headscope.interventions.ablation import method_named
from headscope.model.load import Source, load
from headscope.page.call import python_call
from headscope.page.curves import refuse_other_runs, run_curves
from headscope.page.example import example
from headscope.page.finding import finding
from headscope.page.html import page_html
from headscope.page.tables import token_tables
from headscope.probes import Probe, repeated_tokens
from headscope.probes.repeated import fitting_period
from headscope.records.codec import encode
from headscope.records.common import ModelInfo, Provenance
from headscope.records.files import write_whole

if TYPE_CHECKING:
    from headscope.evidence.behavior.result import BehaviorResult
    from headscope.evidence.emergence.measure import Emergence

SCHEMA = "headscope.report/1"
TABLES = 32
"""Heads with tables in token space, at most: those with a role, then those with the largest effect."""
TABLE_TOKENS = 6
"""Tokens of the example that the tables ask about."""


def report(
    model: Source,
    path: str | Path,
    *,
    seed: int = 0,
    natural: str | None = None,
    scan: Scan | None = None,
    verification: Verification | None = None,
    circuit: Circuit | None = None,
    emergence: Sequence[Emergence] = (),
    behavior: Sequence[BehaviorResult] = (),
    results: Sequence[Any] = (),
    heads: Heads | None = None,
    n_prompts: int | None = None,
    period: int | None = None,
    top: int | None = None,
    progress: Callable[[str, int, int], None] | None = None,
) -> Path:
    """Write all that headscope knows of a model's heads as one HTML file.

    Args:
        model: What `headscope.load` takes, or gives.
        path: The file. Its folder is made if need be; a file that is there is replaced, once the new one is whole.
        seed: Of all probes.
        natural: A text on which removals are tried too.
        scan: What `hs.scan` gave for this model; computed by default, like the next two.
        verification: What `hs.verify` gave.
        circuit: What `hs.trace_circuit` gave.
        emergence: What `hs.emergence` gave, to be drawn over each other: the model's own run, and runs of models that
            differ from it in depth alone.
        behavior: What `hs.behavior` gave for this model.
        results: Results of further kinds for this model, each shown in the section of its kind.
        heads: Judge these alone, and explain those of them that do induction; by default every head.
        n_prompts: Random prompts of each of the three that is measured here; by default 32, and 128 in the circuit.
        period: Length of their repeated run, at least 3; by default 50, and 24 in the circuit, or what fits.
        top: Heads with the largest effects to measure exactly; by default 10.
        progress: Called with (what is being done, done, of); what begins with the stage, like `1 of 2 verify`.

    Returns:
        The file.

    Raises:
        ArgumentError: results of another model, a setting that nothing is measured with, since the results that it
            would have changed are ready, or a path that cannot be written.
        TokenError: a natural text that is too short, or a model that cannot read text.
        UnsupportedModel: the model has no LM head, so that no loss is defined.
        NonFiniteError: a loss or score is not a number.
    """
    path = writable(path)
    asked: dict[str, Any] = {
        "seed": seed,
        "natural": natural,
        "scan": scan,
        "verification": verification,
        "circuit": circuit,
        "emergence": emergence,
        "behavior": behavior,
        "results": results,
        "heads": heads,
        "n_prompts": n_prompts,
        "period": period,
        "top": top,
    }
    command = python_call("report", model, path, **asked)
    return write_page(report_document(model, **asked, progress=progress, command=command), path)


def report_document(
    model: Source,
    *,
    seed: int = 0,
    natural: str | None = None,
    scan: Scan | None = None,
    verification: Verification | None = None,
    circuit: Circuit | None = None,
    emergence: Sequence[Emergence] = (),
    behavior: Sequence[BehaviorResult] = (),
    results: Sequence[Any] = (),
    heads: Heads | None = None,
    n_prompts: int | None = None,
    period: int | None = None,
    top: int | None = None,
    progress: Callable[[str, int, int], None] | None = None,
    command: str | None = None,
) -> dict[str, Any]:
    """The document `headscope.report/1`, JSON-ready; arguments and errors are those of `report`.

    `command` is what the page says it was made by; by default the running program and its arguments.
    """
    model = load(model)
    step = progress or (lambda what, done, total: None)
    info = ModelInfo.of(model)
    refuse_unused(
        {"natural": natural, "heads": heads, "top": top, "n_prompts": n_prompts, "period": period},
        scan=scan is not None,
        verification=verification is not None,
        circuit=circuit is not None,
    )
    refuse_other_models(info, (scan, verification, circuit, *behavior, *results))
    refuse_other_runs(info, list(emergence))
    due = [name for name, one in (("scan", scan), ("verify", verification), ("circuit", circuit)) if one is None]
    if verification is None and scan is None:
        due.remove("scan")  # verify begins with it

    def staged(stage: str) -> Callable[[str, int, int], None]:
        of = f"{due.index(stage) + 1} of {len(due)} {stage}"
        return lambda what, done, total: step(f"{of}: {what}", done, total)

    def drawn(default: int, period: int | None) -> Probe:
        return repeated_tokens(model, n_prompts=n_prompts or default, period=period, seed=seed)

    if verification is None:
        verification, read, _ = verified(
            model,
            heads,
            probe=drawn(N_PROMPTS, period),
            top=TOP if top is None else top,
            natural=natural,
            seed=seed,
            progress=staged("verify"),
        )
        scan = scan or read
    elif scan is None:
        told = staged("scan")
        probe = drawn(N_PROMPTS, period)
        scan = read_attention(model, probe=probe, progress=lambda done, total: told("reading", done, total))
    reason = None
    if circuit is None:
        try:
            circuit = trace_circuit(
                model,
                verification=verification,
                probe=drawn(CIRCUIT_PROMPTS, fitting_period(model, PERIOD) if period is None else period),
                seed=seed,
                progress=staged("circuit"),
            )
        except UnsupportedModel as error:
            reason = str(error)
    head_set = verification.sets[0].heads if verification.sets else ()
    wanted = by_interest(verification)
    shown = example(
        model, wanted=wanted, without=head_set, method=method_named(verification.ablation["method"]), seed=seed
    )
    first = shown.tokens[shown.first[0] : shown.first[1]]
    asked = [int(one) for one in first[:: max(1, len(first) // TABLE_TOKENS)][:TABLE_TOKENS]]
    tables = token_tables(model, wanted[:TABLES], asked, circuit, seed=seed)
    step("writing", 1, 1)
    provenance = Provenance.of(model, kernels=scan.provenance.kernels, seed=seed)
    return {
        "schema": SCHEMA,
        "model": encode(info),
        "finding": encode(finding(scan, verification, circuit)),
        "scan": scan.to_dict(),
        "verify": verification.to_dict(),
        "circuit": None if circuit is None else circuit.to_dict(),
        "circuit_reason": reason,
        "example": shown.to_dict(model),
        "tables": encode(tables),
        "emergence": [run_curves(run) for run in emergence],
        "behavior": [result.to_dict() for result in behavior],
        "results": [{"kind": kind_of(result).name, **result.to_dict()} for result in results],
        "provenance": encode(provenance if command is None else replace(provenance, command=command)),
    }


def write_page(document: dict[str, Any], path: str | Path) -> Path:
    """Write a document `headscope.report/1` as a page."""
    path = writable(path)
    html = page_html(document, title=f"{document['model']['id']} - headscope")
    try:
        write_whole(path, html.encode())
    except OSError as error:
        raise ArgumentError(f"{str(path)!r} cannot be written: {error.strerror}; name another file.") from error
    return path


def refuse_other_models(info: ModelInfo, results: Iterable[Any]) -> None:
    """A report holds results of its own model alone.

    Raises:
        ArgumentError: a result of another.
    """
    for result in results:
        if result is not None and (differing := info.unlike(result.model)):
            raise ArgumentError(
                f"a {type(result).__name__} of {result.model.id} cannot go into a report of {info.id} ({differing}); "
                "give results of the same model, or none."
            )


def refuse_unused(settings: Mapping[str, Any], **ready: bool) -> None:
    """A setting changes something, or is refused.

    Args:
        settings: What was given, by name; None for what was not.
        ready: Whether the scan, the verification and the circuit are there already.

    Raises:
        ArgumentError: a setting of measurements that are all there.
    """
    measured = {"natural": ["verification"], "heads": ["verification"], "top": ["verification"]}
    for name, value in settings.items():
        of = measured.get(name, list(ready))
        if value is not None and all(ready[one] for one in of):
            raise ArgumentError(
                f"{name}= and a ready {' and '.join(of)} were both given, so that {name} would change nothing; "
                f"leave {name} out, or have the {of[0]} made again."
            )


def to_json(document: dict[str, Any]) -> str:
    """The document as text."""
    return json.dumps(document, indent=1, allow_nan=False)


def writable(path: str | Path) -> Path:
    """The path of a file that can be written; its folder is made.

    Raises:
        ArgumentError: it is a folder, or its folder cannot be made.
    """
    path = Path(path)
    if path.is_dir():
        raise ArgumentError(f"{str(path)!r} is a folder; name a file in it, like {str(path / 'report.html')!r}.")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ArgumentError(f"{str(path)!r} cannot be written: {error.strerror}; name another file.") from error
    return path


def by_interest(verification: Verification) -> list[HeadId]:
    """Heads with a role or an effect, largest effect first; then the others, likewise."""
    named, rest = verification.by_effect()
    return [one.head for one in (*named, *rest)]
