"""How many forward passes an atlas takes on GPT-2 small's shape: 12 layers of 12 heads.

    python -m benchmarks.atlas [--json] [--n-prompts 4]

A pass is 4,096 tokens through all layers. Counted are the tokens that each layer's attention really reads, divided by
layers and by 4,096: a pass that starts again at layer 6 counts half. Width and vocabulary do not change the count, so
the model is narrow. Every probe has the same number of prompts, so that fewer are read, and the count is scaled to the
32 of the default.

`full_forwards` is the most that can happen: every role is tested on as many heads as it may test, and 12 heads count as
induction heads. What is left out: the self-check when the model is loaded, and a pass or less for each head whose
unexplained share is measured.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import PropertyMock, patch

import numpy as np
import torch
from transformers import GPT2Config, GPT2LMHeadModel

import headscope as hs
from headscope.evidence.atlas.bench import N_PROMPTS, Bench
from headscope.evidence.atlas.measure import PASS_TOKENS
from headscope.model.model import Model

BARS = {"quick_forwards": 10, "full_forwards": 400}
LAYERS = HEADS = 12


@contextmanager
def counted(model: Model) -> Iterator[list[int]]:
    """Within the block, the tokens that each attention module reads are added up in the list's only entry."""
    total = [0]

    def note(module: Any, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
        stream = arguments[0] if arguments else named["hidden_states"]
        total[0] += stream.shape[0] * stream.shape[1]

    with ExitStack() as stack:
        for name in model.route.layers:
            handle = model.module.get_submodule(name).register_forward_pre_hook(note, with_kwargs=True)
            stack.callback(handle.remove)
        yield total


def measure(n_prompts: int) -> dict[str, Any]:
    """Both counts, as a JSON-ready document."""
    torch.manual_seed(0)
    config = GPT2Config(
        n_layer=LAYERS, n_head=HEADS, n_embd=4 * HEADS, n_inner=8, vocab_size=512, bos_token_id=0, eos_token_id=0
    )
    model = hs.load(GPT2LMHeadModel(config).eval())
    scale = N_PROMPTS / n_prompts / (LAYERS * PASS_TOKENS)
    hs.atlas(model, "previous_token", n_prompts=4)  # what is tried once per model, like restarting
    with counted(model) as tokens:
        quick = hs.atlas(model, quick=True, n_prompts=n_prompts)
    quick_forwards = tokens[0] * scale
    heads = tuple(hs.HeadId(layer, 0) for layer in range(LAYERS))
    with (
        patch(
            "headscope.evidence.atlas.measure.candidates", lambda role, scored: np.ones(len(scored.heads), dtype=bool)
        ),
        patch.object(Bench, "induction_heads", new_callable=PropertyMock, return_value=heads),
        counted(model) as tokens,
    ):
        plans: list[Any] = []
        full = hs.atlas(model, n_prompts=n_prompts, planned=plans.append)
    return {
        "n_prompts": n_prompts,
        "roles": [role.name for role in full.roles],
        "not_asked": quick.not_asked,
        "quick_forwards": quick_forwards,
        "full_forwards": tokens[0] * scale,
        "estimated_forwards": plans[0].passes * N_PROMPTS / n_prompts,
        "bars": BARS,
    }


def main() -> None:
    """Print what was counted."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.atlas", description="Forward passes of an atlas.")
    parser.add_argument("--json", action="store_true", help="one JSON document")
    parser.add_argument("--n-prompts", type=int, default=4, help="prompts to count with")
    asked = parser.parse_args()
    document = measure(asked.n_prompts)
    if asked.json:
        print(json.dumps(document, indent=1))
    else:
        print(f"quick {document['quick_forwards']:.1f}, full {document['full_forwards']:.0f} forward passes")


if __name__ == "__main__":
    main()
