"""How many forward passes an atlas takes on GPT-2 small's shape: 12 layers of 12 heads.

    python -m benchmarks.atlas [--json] [--n-prompts 4]
    python -m benchmarks.atlas --random 100 [--json]    how many random models name a role

A pass is 4,096 tokens through all layers. Counted are the tokens that each layer's attention really reads, divided by
layers and by 4,096: a pass that starts again at layer 6 counts half. Width and vocabulary do not change the count, so
the model is narrow; its tokenizer has every word that a role asks with. Every probe has the same number of prompts, so
that the full count is made with fewer and scaled to the 32 of the default; the quick one is made with 32.

`full_forwards` is the most that can happen: every role is tested on as many heads as it may test, and 12 heads count as
induction heads. What is left out: the self-check when the model is loaded, and the shares that stay unexplained, which
take one pass, and half a pass for each head that holds a role.

A random model names a role if a head holds one after all tests. A head can hold only what its score allows, so all
roles are tested for models in which a quick atlas finds a score, and for the others those whose score takes
interventions.
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
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

import headscope as hs
from headscope.evidence.atlas.finding import HELD
from headscope.evidence.atlas.ioi import PLACES, TEXT, THINGS
from headscope.evidence.atlas.measure import PASS_TOKENS
from headscope.evidence.atlas.roles import roles
from headscope.evidence.atlas.runner import N_PROMPTS, RoleRunner
from headscope.evidence.atlas.words import LONGER, NAMES, ORDERED, UNORDERED
from headscope.model.model import Model

BARS = {"quick_forwards": 10, "full_forwards": 400}
RANDOM_BAR = 0.05
"""Share of random models that may name a role."""
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
    model = hs.load(GPT2LMHeadModel(config).eval(), tokenizer=tokenizer())
    scale = N_PROMPTS / n_prompts / (LAYERS * PASS_TOKENS)
    hs.atlas(model, "previous_token", n_prompts=4)  # what is tried once per model, like restarting
    with counted(model) as tokens:
        quick = hs.atlas(model, quick=True)
    quick_forwards = tokens[0] / (LAYERS * PASS_TOKENS)
    heads = tuple(hs.HeadId(layer, 0) for layer in range(LAYERS))
    with (
        patch(
            "headscope.evidence.atlas.measure.candidates", lambda role, scored: np.ones(len(scored.heads), dtype=bool)
        ),
        patch.object(RoleRunner, "induction_heads", new_callable=PropertyMock, return_value=heads),
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


def tokenizer() -> PreTrainedTokenizerFast:
    """Every word that a role asks with is one token, or two where it asks for two; ids up to 511."""
    sentence = TEXT.format(first="", second="", place="", giver="", thing="").replace(",", " , ").split()
    classes = [word for one in ORDERED.values() for word in one]
    halves = [half for word in LONGER for half in (word[:3], f"##{word[3:]}")]
    words = dict.fromkeys(["<s>", "<unk>", *",.;", *sentence, *classes, *UNORDERED, *NAMES, *PLACES, *THINGS, *halves])
    vocabulary = [*words, *(f"w{one}" for one in range(512 - len(words)))]
    made = Tokenizer(models.WordPiece({word: at for at, word in enumerate(vocabulary)}, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=made, bos_token="<s>", unk_token="<unk>")


def random_models(n_models: int, n_prompts: int = 6) -> dict[str, Any]:
    """How many random models have a head with a role's score, and how many name a role."""
    words = tokenizer()
    intervening = [role.name for role in roles().values() if role.score_intervenes]
    scored: dict[int, list[str]] = {}
    named: dict[int, list[str]] = {}
    for seed in range(n_models):
        torch.manual_seed(seed)
        config = GPT2Config(
            n_layer=2 + seed % 2,
            n_head=4,
            n_embd=(32, 48)[seed // 2 % 2],
            vocab_size=512,
            n_positions=128,
            initializer_range=(0.02, 0.2, 0.5)[seed % 3],
            bos_token_id=0,
            eos_token_id=0,
        )
        model = hs.load(GPT2LMHeadModel(config).eval(), tokenizer=words)
        quick = hs.atlas(model, quick=True, n_prompts=n_prompts, seed=seed)
        found = {one.role for one in quick.findings if one.has_score}
        full = hs.atlas(model, None if found else intervening, n_prompts=n_prompts, seed=seed)
        found |= {one.role for one in full.findings if one.has_score}
        if found:
            scored[seed] = sorted(found)
        if held := sorted({one.role for one in full.findings if one.outcome in HELD}):
            named[seed] = held
    return {
        "n_models": n_models,
        "n_prompts": n_prompts,
        "with_a_score": scored,
        "name_a_role": named,
        "share": len(named) / n_models,
        "bar": RANDOM_BAR,
    }


def main() -> None:
    """Print what was counted."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.atlas", description="Forward passes of an atlas.")
    parser.add_argument("--json", action="store_true", help="one JSON document")
    parser.add_argument("--n-prompts", type=int, default=4, help="prompts to count with")
    parser.add_argument("--random", type=int, default=0, help="count roles in so many random models instead")
    asked = parser.parse_args()
    if asked.random:
        counts = random_models(asked.random)
        if asked.json:
            print(json.dumps(counts, indent=1))
        else:
            print(f"{len(counts['name_a_role'])} of {asked.random} random models name a role")
        return
    document = measure(asked.n_prompts)
    if asked.json:
        print(json.dumps(document, indent=1))
    else:
        print(f"quick {document['quick_forwards']:.1f}, full {document['full_forwards']:.0f} forward passes")


if __name__ == "__main__":
    main()
