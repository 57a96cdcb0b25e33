"""Does headscope agree with each family's own eager attention, and what else can it do with it?

    python -m benchmarks.families --json
    python -m benchmarks.families --write docs/generated/families.md

For every causal language model in the installed transformers a tiny random model is built (`benchmarks.tiny`). Three
things are compared with the family's own eager code on the same tokens:

* the logits, ours against its own;
* every head's scores, ours against the mean over the same places of the probabilities that its own eager function
  returned (recorded by wrapping that function; for families without one, from `output_attentions`);
* the verdict of `headscope check`, which must not claim more than these two allow.

`exact`: verdict exact, and both differences within tolerance. `degraded`: verdict degraded, both within tolerance.
`unsupported`: the verdict's reason. A family whose numbers contradict its verdict is under `disagrees`: a defect.

Then `verify`, `trace_circuit` and the weights of each head, which copying and composition need, are tried: each works,
or is refused in one line. Any other error is listed under `breaks`: a defect.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from torch import Tensor
from transformers import PreTrainedModel

import headscope as hs
from benchmarks.tiny import causal_lm_families, tiny_causal_lm
from headscope.errors import HeadscopeError, UnsupportedModel
from headscope.model.load import Model, open_model
from headscope.model.weights import layer_weights

LOGITS_TOLERANCE = 1e-4
"""Of the largest logit."""
SCORES_TOLERANCE = 1e-5
USES = {
    "verify": "`verify`: what removing heads costs",
    "circuit": "`circuit`: path patching into queries, keys and values",
    "weights": "weights by head: copying scores, composition, token tables",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """One family."""

    family: str
    verdict: str
    reason: str
    logits_diff: float | None = None
    scores_diff: float | None = None
    oracle: str = ""
    n_heads_compared: int = 0
    unread: str = ""
    """Where it also mixes tokens in a way that is not read; empty where it does not."""
    refused: dict[str, str] = field(default_factory=dict)
    """Why not, by what was asked for."""
    breaks: dict[str, str] = field(default_factory=dict)
    """Errors that are none of headscope's own, by what was asked for."""


def prompts(vocab_size: int) -> np.ndarray:
    """[2, 24] token ids in which 11 tokens repeat, so that every detector has targets."""
    rng = np.random.default_rng(0)
    run = np.stack([rng.permutation(vocab_size - 4)[:11] + 4 for _ in range(2)])
    first = np.full((2, 1), 3)
    return np.concatenate([first, run, run, first], axis=1)


@contextmanager
def recorded_eager() -> Iterator[list[Tensor]]:
    """Within the block, the probabilities that any family's own eager function returns are collected.

    Some families rescale what they return (a sink applied to z alone). What is recorded is what mixed the values: the
    returned rows times the one factor per row by which z differs from them, checked against z.
    """
    seen: list[Tensor] = []
    homes = [module for name, module in sys.modules.items() if name.startswith("transformers.models.")]
    originals = {
        id(home): (home, vars(home)["eager_attention_forward"])
        for home in homes
        if "eager_attention_forward" in vars(home)
    }

    def wrap(original: Any) -> Any:
        def recording(module: Any, query: Tensor, key: Tensor, value: Tensor, *args: Any, **named: Any) -> Any:
            z, weights = original(module, query, key, value, *args, **named)
            group = query.shape[1] // value.shape[1]
            mixed = (weights.double() @ value.double().repeat_interleave(group, dim=1)).transpose(1, 2)
            size = (mixed * mixed).sum(-1)
            factor = torch.where(size > 0, (z.double() * mixed).sum(-1) / size, 1.0)
            unexplained = float((factor[..., None] * mixed - z.double()).abs().max())
            assert unexplained < 1e-5 * max(1.0, float(z.abs().max())), "its weights do not explain its z"
            seen.append(weights.double() * factor.transpose(1, 2)[..., None])
            return z, weights

        return recording

    try:
        for home, original in originals.values():
            vars(home)["eager_attention_forward"] = wrap(original)
        yield seen
    finally:
        for home, original in originals.values():
            vars(home)["eager_attention_forward"] = original


@contextmanager
def eager(model: PreTrainedModel) -> Iterator[None]:
    """The model's configs say `eager`, as `attn_implementation="eager"` would."""
    before = model.config._attn_implementation
    model.config._attn_implementation = "eager"
    try:
        yield
    finally:
        model.config._attn_implementation = before


def own_patterns(model: PreTrainedModel, tokens: Tensor, n_calls: int) -> tuple[Tensor, list[Tensor], str]:
    """Logits, the probabilities of each attention call, and where these come from."""
    with torch.no_grad(), eager(model), recorded_eager() as seen:
        logits = model(input_ids=tokens, use_cache=False).logits
    if len(seen) == n_calls:
        return logits, seen, "own eager function"
    with torch.no_grad(), eager(model):
        given = model(input_ids=tokens, use_cache=False, output_attentions=True)
    attentions = [one.double() for one in given.attentions or () if one is not None]
    return logits, attentions, "output_attentions"


def compare(family: str) -> Outcome:
    """Build, check, scan and compare one family."""
    hf = tiny_causal_lm(family)
    try:
        model = open_model(hf)
        if not isinstance(model, Model):
            return Outcome(family=family, verdict="unsupported", reason=model.check.reason)
        ids = prompts(min(100, model.n_embeddings))
        if model.pad_token_id is not None:  # padding at the start of a prompt is refused
            ids[ids == model.pad_token_id] = 1 if model.pad_token_id != 1 else 2
        scan = hs.scan(model, probe=hs.probe_tokens(ids))
    except HeadscopeError as error:
        return Outcome(family=family, verdict="unsupported", reason=str(error))
    tokens = torch.from_numpy(ids)
    ours = model.run(tokens, lambda attention: None).logits
    own, patterns, oracle = own_patterns(hf, tokens, model.route.calls)
    logits_diff = float((ours - own).abs().max()) / max(1.0, float(own.abs().max()))
    heads = sorted({score.head for score in scan.scores}, key=lambda head: (head.layer, head.call, head.head))
    total = sum(pattern.shape[1] for pattern in patterns)
    if total != len(heads):
        return Outcome(
            family=family,
            verdict="disagrees",
            reason=f"{len(heads)} heads were scored, its own code shows {total} ({oracle})",
            logits_diff=logits_diff,
        )
    # Calls in the order of the forward pass; heads of one call are in the order of its pattern.
    order: list[hs.HeadId] = []
    model.run(
        tokens,
        lambda seen: order.extend(hs.HeadId(seen.layer, head, seen.call) for head in range(seen.n_heads)),
    )
    flat = [(pattern, head) for pattern in patterns for head in range(pattern.shape[1])]
    got = {(score.head, score.detector): score.mean for score in scan.scores}
    worst = 0.0
    for detector in hs.DETECTORS:
        for place, (pattern, head) in zip(order, flat, strict=True):
            means = []
            for row in range(len(ids)):
                targets = detector.targets(ids[row])
                queries = sorted(set(targets.query.tolist()))
                mass = sum(float(pattern[row, head, q, k]) for q, k in zip(targets.query, targets.key, strict=True))
                means.append(mass / len(queries))
            worst = max(worst, abs(float(np.mean(means)) - got[place, detector.name]))
    right = logits_diff <= LOGITS_TOLERANCE and worst <= SCORES_TOLERANCE
    return Outcome(
        family=family,
        verdict=model.check.support if right else "disagrees",
        reason=model.check.reason,
        logits_diff=logits_diff,
        scores_diff=worst,
        oracle=oracle,
        n_heads_compared=len(heads),
        unread="" if model.check.unread is None else str(model.check.unread),
    )


def tried(outcome: Outcome) -> Outcome:
    """The same, with what else of headscope works on this family."""
    model = hs.load(tiny_causal_lm(outcome.family))
    probe = hs.repeated_tokens(model, n_prompts=2, period=6)
    last = hs.HeadId(max(model.check.heads), 0)
    refused, breaks = {}, {}
    for name, use in {
        "verify": lambda: hs.verify(model, probe=probe, top=2),
        "circuit": lambda: hs.trace_circuit(model, [last], probe=probe),
        "weights": lambda: layer_weights(model),
    }.items():
        try:
            if name == "circuit" and len(model.check.heads) == 1:
                refused[name] = "not tried: its tiny model has one layer with attention"
            else:
                use()
        except UnsupportedModel as error:
            refused[name] = str(error)
        except Exception as error:  # what this is looking for
            breaks[name] = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
    return replace(outcome, refused=refused, breaks=breaks)


def measure(families: list[str]) -> dict[str, Any]:
    """All families, as one JSON-ready document."""
    started = time.perf_counter()
    outcomes: list[Outcome] = []
    for family in families:
        try:
            found = compare(family)
        except Exception as error:  # one family's failure to build must not hide the others
            first = (str(error).strip() or type(error).__name__).splitlines()[0]
            found = Outcome(
                family=family,
                verdict="unsupported",
                reason=f"could not be run: {type(error).__name__}: {first[:200]}",
            )
        outcomes.append(tried(found) if found.verdict in ("exact", "degraded") else found)
        print(f"\r{len(outcomes)}/{len(families)} {family:<32}", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    by = {
        verdict: [one for one in outcomes if one.verdict == verdict]
        for verdict in ("exact", "degraded", "unsupported", "disagrees")
    }
    worst = max(by["exact"], key=lambda one: one.logits_diff or 0.0, default=None)
    return {
        "schema": "headscope.benchmark.families/1",
        "exact": len(by["exact"]),
        "degraded": [{"family": one.family, "reason": one.reason} for one in by["degraded"]],
        "unsupported": {one.family: one.reason for one in by["unsupported"]},
        "disagrees": [
            {"family": one.family, "reason": one.reason, "logits_diff": one.logits_diff, "scores_diff": one.scores_diff}
            for one in by["disagrees"]
        ],
        "refused": {name: {one.family: one.refused[name] for one in outcomes if name in one.refused} for name in USES},
        "breaks": {one.family: one.breaks for one in outcomes if one.breaks},
        "families": len(outcomes),
        "disagreeing": len(by["disagrees"]),
        "breaking": sum(bool(one.breaks) for one in outcomes),
        "bars": {"disagreeing": 0, "breaking": 0},
        "exact_families": [one.family for one in by["exact"]],
        "unread": {one.family: one.unread for one in outcomes if one.unread},
        "worst_logits_diff": 0.0 if worst is None else worst.logits_diff,
        "worst_logits_family": None if worst is None else worst.family,
        "worst_scores_diff": max((one.scores_diff or 0.0 for one in by["exact"]), default=0.0),
        "wall_s": round(time.perf_counter() - started, 1),
        "versions": {"transformers": transformers.__version__, "torch": torch.__version__},
    }


def summary(found: dict[str, Any]) -> str:
    """The counts in one line."""
    counts = f"{found['exact']} exact, {len(found['degraded'])} degraded, {len(found['unsupported'])} unsupported"
    return f"{found['families']} families: {counts}, {len(found['disagrees'])} disagree, {found['breaking']} break"


def markdown(found: dict[str, Any]) -> str:
    """The page of supported models: the counts, every family that is not exact with its reason, and the exact ones."""
    versions = found["versions"]
    lines = [
        "Made by `python -m benchmarks.families --write docs/generated/families.md` "
        f"with transformers {versions['transformers']} and torch {versions['torch']}.",
        "",
        f"{summary(found)}. Over the exact ones the largest difference of logits is {found['worst_logits_diff']:.1g} "
        f"of the largest logit ({found['worst_logits_family']}), and of a head's score "
        f"{found['worst_scores_diff']:.1g}.",
        "",
        "| family | support | reason |",
        "| --- | --- | --- |",
        *(f"| {one['family']} | degraded | {one['reason']} |" for one in found["degraded"]),
        *(f"| {family} | unsupported | {reason} |" for family, reason in found["unsupported"].items()),
        *(f"| {one['family']} | disagrees | {one['reason']} |" for one in found["disagrees"]),
        "",
        "Exact: " + ", ".join(found["exact_families"]) + ".",
        "",
        "Of these, the check names layers that also mix tokens in a way that is not read: "
        + ", ".join(found["unread"])
        + ".",
        "",
        "Of the families that are not unsupported, these uses leave out some:",
        "",
        "| use | works on | not on | why |",
        "| --- | --- | --- | --- |",
        *_refusals(found),
        "",
    ]
    return "\n".join(lines)


def _refusals(found: dict[str, Any]) -> Iterator[str]:
    read = found["exact"] + len(found["degraded"])
    for name, use in USES.items():
        by_reason: dict[str, list[str]] = {}
        for family, reason in found["refused"][name].items():
            by_reason.setdefault(_short(reason), []).append(family)
        broken = sum(name in one for one in found["breaks"].values())
        yield f"| {use} | {read - len(found['refused'][name]) - broken} | {len(found['refused'][name])} | |"
        for reason, families in sorted(by_reason.items(), key=lambda one: -len(one[1])):
            yield f"| | | {', '.join(families)} | {reason} |"


def _short(reason: str) -> str:
    """A reason without the model's name before it and the advice behind it."""
    found = re.search(r"\([\w-]+\):? (.+?)(?:, so |; )", reason)
    return found[1] if found else reason


def main() -> None:
    """Print the document, or a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    parser.add_argument("--write", type=Path, metavar="FILE", help="write the page of supported models")
    parser.add_argument("families", nargs="*", help="only these")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    transformers.logging.set_verbosity_error()
    found = measure(options.families or causal_lm_families())
    if options.write:
        options.write.write_text(markdown(found), encoding="utf-8")
    if options.json:
        print(json.dumps(found, indent=1))
        return
    print(summary(found))
    for one in found["degraded"]:
        print(f"  degraded     {one['family']}: {one['reason']}")
    for family, reason in found["unsupported"].items():
        print(f"  unsupported  {family}: {reason}")
    for name in USES:
        print(f"  {name} is refused for {len(found['refused'][name])}: {', '.join(found['refused'][name]) or 'none'}")
    for family, errors in found["breaks"].items():
        print(f"  BREAKS       {family}: {errors}")
    for one in found["disagrees"]:
        print(
            f"  DISAGREES    {one['family']}: {one['reason']} logits {one['logits_diff']} scores {one['scores_diff']}"
        )


if __name__ == "__main__":
    main()
