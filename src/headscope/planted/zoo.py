"""Small trained models with real, learned heads, for tests.

    copy-0, copy-1, copy-2     the recipe `copy` at three seeds: attention only, two layers
    one-layer                  the same with one layer, which cannot learn it
    llama, gpt-neox, gpt2      stock architectures with MLPs, on the standard library's source mixed with repeats

    python -m headscope.planted.zoo --out DIR

trains them again on one thread, some ten minutes in all, and writes each to a folder of its own as float16 safetensors.

Misleading as: small language models. They have seen as many random tokens as words.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from jaxtyping import Int
from torch import Tensor
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from headscope.probes.corpus import stdlib_sources
from headscope.training.config import build_model, train_config
from headscope.training.demo_training import BOS_TOKEN, BOS_TOKEN_ID, token_stream, train_tokenizer
from headscope.training.loop import Recipe, train
from headscope.training.recipes import Phase, phase_sources, seeded_phases

VOCAB_SIZE, N_POSITIONS = 512, 256
D_MODEL, N_HEADS, N_LAYERS, D_MLP = 96, 4, 2, 192
_TEXT = {"n_prompts": 12, "n_tokens": 96}
_SHORT = {"n_prompts": 40, "n_tokens": 48, "period": (4, 20), "gap": (0, 4)}
_LONG = {"n_prompts": 12, "n_tokens": 160, "period": (4, 70), "gap": (0, 16)}
PHASES = (
    Phase(recipe=Recipe(n_steps=700, learning_rate=3e-3), batches={"text": (_TEXT,), "repeats": (_SHORT,)}),
    Phase(
        recipe=Recipe(n_steps=800, learning_rate=3e-3, warmup_steps=10, decay_steps=400),
        batches={"text": (_TEXT,), "repeats": (_SHORT, _LONG)},
    ),
)
"""Short repeats first, as in the recipe `copy`, with text beside them throughout."""
LEARNED_PHASES = (
    Phase(
        recipe=Recipe(n_steps=1500, learning_rate=1.5e-3, decay_steps=300),
        batches={
            "text": ({"n_prompts": 8, "n_tokens": 80},),
            "repeats": ({"n_prompts": 40, "n_tokens": 80, "period": (4, 36), "gap": (0, 6)},),
        },
    ),
)
"""Where each position learns by itself, windows are of the one length that the model is for."""


def _llama() -> PreTrainedModel:
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=VOCAB_SIZE,
            hidden_size=D_MODEL,
            intermediate_size=D_MLP,
            num_hidden_layers=N_LAYERS,
            num_attention_heads=N_HEADS,
            num_key_value_heads=N_HEADS,
            max_position_embeddings=N_POSITIONS,
            attention_bias=True,
            initializer_range=0.05,
            bos_token_id=BOS_TOKEN_ID,
            eos_token_id=None,
        )
    )


def _gpt_neox() -> PreTrainedModel:
    return GPTNeoXForCausalLM(
        GPTNeoXConfig(
            vocab_size=VOCAB_SIZE,
            hidden_size=D_MODEL,
            intermediate_size=D_MLP,
            num_hidden_layers=N_LAYERS,
            num_attention_heads=N_HEADS,
            max_position_embeddings=N_POSITIONS,
            rope_parameters={"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5},
            initializer_range=0.05,
            bos_token_id=BOS_TOKEN_ID,
            eos_token_id=None,
        )
    )


def _gpt2() -> PreTrainedModel:
    return GPT2LMHeadModel(
        GPT2Config(
            vocab_size=VOCAB_SIZE,
            n_embd=128,
            n_inner=256,
            n_layer=N_LAYERS,
            n_head=N_HEADS,
            n_positions=N_POSITIONS,
            initializer_range=0.05,
            resid_pdrop=0.0,
            embd_pdrop=0.0,
            attn_pdrop=0.0,
            bos_token_id=BOS_TOKEN_ID,
            eos_token_id=None,
        )
    )


def _look_back(model: PreTrainedModel) -> None:
    """Draw biases of queries and keys wide, where there are such, as in `attention_only_llama`."""
    for name, parameter in model.named_parameters():
        if name.endswith(("q_proj.bias", "k_proj.bias")):
            torch.nn.init.normal_(parameter, std=0.5)
        elif name.endswith("query_key_value.bias"):
            # Head by head: query, key, value.
            torch.nn.init.normal_(parameter.data.view(N_HEADS, 3, -1)[:, :2], std=0.5)


FAMILIES: Mapping[str, Callable[[], PreTrainedModel]] = {"llama": _llama, "gpt-neox": _gpt_neox, "gpt2": _gpt2}
COPIES: Mapping[str, Mapping[str, int]] = {
    "copy-0": {"seed": 0},
    "copy-1": {"seed": 1},
    "copy-2": {"seed": 2},
    "one-layer": {"seed": 0, "layers": 1},
}
COPY_STEPS = 450
"""Some hundred more than the recipe's own stopping rule asks for at most seeds."""


def trained_copy(report: Callable[[str], None], **settings: int) -> PreTrainedModel:
    """A model of the recipe `copy`, for a fixed number of steps."""
    config = train_config(recipe="copy", steps=COPY_STEPS, device="cpu", **settings)
    model, left = build_model(config), COPY_STEPS
    for phase in seeded_phases(config.preset, seed=config.seed, steps=config.steps):
        recipe = replace(phase.recipe, n_steps=min(left, phase.recipe.n_steps))
        for progress in train(model, phase_sources(phase, vocab_size=config.preset.vocab_size), recipe):
            report(str(progress))
        left -= recipe.n_steps
    return model


def trained_family(
    name: str,
    stream: Int[Tensor, " position"],
    report: Callable[[str], None],
    *,
    phases: Sequence[Phase] | None = None,
) -> PreTrainedModel:
    """A stock architecture with MLPs, on text and repeats."""
    if phases is None:
        phases = LEARNED_PHASES if name == "gpt2" else PHASES
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = FAMILIES[name]()
        _look_back(model)
    for phase in phases:
        for progress in train(model, phase_sources(phase, vocab_size=VOCAB_SIZE, stream=stream), phase.recipe):
            report(str(progress))
    return model


def build_zoo(out: Path, *, names: Sequence[str], report: Callable[[str], None] = lambda line: None) -> None:
    """Train these models and write each to a folder of its name.

    Args:
        out: Folder of the folders.
        names: Of `COPIES` and `FAMILIES`.
        report: Receives one line of progress at a time.
    """
    material = _material() if set(names) & set(FAMILIES) else None
    for name in names:
        tell = partial(_tell, report, name)
        if name in COPIES:
            model, tokenizer = trained_copy(tell, **COPIES[name]), None
        else:
            assert material is not None, "a family reads text"
            tokenizer, stream = material
            model = trained_family(name, stream, tell)
        model.half().save_pretrained(out / name)
        if tokenizer is not None:
            tokenizer.save_pretrained(out / name)


def _material() -> tuple[PreTrainedTokenizerFast, Int[Tensor, " position"]]:
    """A tokenizer, and the text that it reads."""
    texts = stdlib_sources(held_out=False)
    tokenizer = train_tokenizer(texts, vocab_size=VOCAB_SIZE)
    wrapped = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=BOS_TOKEN, model_max_length=N_POSITIONS)
    return wrapped, token_stream(tokenizer, texts)


def _tell(report: Callable[[str], None], name: str, line: str) -> None:
    report(f"{name:10s} {line}")


def main(arguments: list[str] | None = None) -> None:
    """The command in this module's text, with progress on stderr."""
    known = (*COPIES, *FAMILIES)
    parser = argparse.ArgumentParser(
        prog="python -m headscope.planted.zoo",
        description="Train the models of the zoo again.",
        epilog="example: python -m headscope.planted.zoo --out zoo copy-0 llama",
    )
    parser.add_argument("--out", type=Path, required=True, help="folder to write to")
    parser.add_argument("names", nargs="*", choices=[*known, []], metavar="NAME", help=f"of {', '.join(known)}; or all")
    given = parser.parse_args(arguments)
    # One thread adds in one order, whatever the machine.
    torch.set_num_threads(1)
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(message)s")
    build_zoo(given.out, names=given.names or known, report=logging.info)


if __name__ == "__main__":
    main()
