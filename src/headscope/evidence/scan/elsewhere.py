"""Code that measures a scan's best head again with another library's own hooks."""

from __future__ import annotations

from typing import Any

from headscope.errors import ArgumentError
from headscope.heads import HeadId
from headscope.records.common import ModelInfo

TRANSFORMERLENS = """\
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

NNSIGHT = """\
# {head}, {detector}: headscope says {mean:.4f}. The same by nnsight.
import copy
import headscope as hs
import torch
from nnsight import NNsight

{prompts}
hf = copy.deepcopy(model.hf)
hf.set_attn_implementation("eager")  # the others return no pattern
lens = NNsight(hf)
module = next(name for name, layer in model.route.layers.items() if layer == {layer})
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


def elsewhere(
    template: str, *, detector: str, head: HeadId, mean: float, probe: dict[str, Any], info: ModelInfo, dtype: str
) -> str:
    """Code that measures the best head of a role, and the mean that a scan gave it, with another library.

    Raises:
        ArgumentError: a role or a probe that the scan keeps no code of, or a head that the library does not show.
    """
    if detector not in _KEYS:
        raise ArgumentError(f"{detector} is a detector of your own, which a scan keeps no code of; write it out.")
    if probe.get("kind") != "repeated_tokens":
        raise ArgumentError(
            f"this scan read a probe of the kind {probe.get('kind')!r}, whose tokens it does not keep; "
            "scan repeated_tokens, the default, to get code that draws the same prompts."
        )
    if head.call:
        raise ArgumentError(f"{head} is a later call of a looped layer, which the other library does not distinguish.")
    # A model object without a name goes by its class; hub ids of one word and `demo` are in lower case.
    if info.id.isidentifier() and info.id[0].isupper():
        model = f"hs.load(model)  # the {info.id} that was scanned"
    else:
        revision = "" if info.revision is None else f", revision={info.revision!r}"
        model = f"hs.load({info.id!r}, dtype={dtype!r}{revision})"
    names = ("n_prompts", "period", "n_repeats", "jitter", "bos", "seed")
    prompts = _PROMPTS.format(
        model=model,
        settings=", ".join(f"{name}={probe[name]!r}" for name in names),
        pool=probe["n_token_ids"],
    )
    return template.format(
        head=head,
        detector=detector,
        mean=mean,
        layer=head.layer,
        number=head.head,
        prompts=prompts.rstrip(),
        average=_AVERAGE.format(keys=_KEYS[detector], head=head, detector=detector),
    )
