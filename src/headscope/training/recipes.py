"""Recipes: what a lab model is trained on, in which shape, and when it is done.

    copy      random tokens that repeat at varied distances; only repeated tokens count
    code      the Python standard library's source
    mixed     both at once, as the packaged demo was made
    bigram    Markov chains, each with a transition matrix of its own; every token counts

A recipe is data: phases of training in turn, each with its batches and its learning rate, and optionally two figures
at which training is done. Each phase starts with a fresh optimizer and batches of its own, from the weights that the
phase before left.

Short windows come first in `copy`: among few keys the right one is found by chance often enough for the circuit to
form, in 150 to 250 steps instead of 500. What forms there does not reach far, so long windows follow, and short ones
stay among them for a seed that forms late.
"""

# pyright: reportUnknownArgumentType=false, reportUnknownVariableType=false
from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from headscope.training.demo import demo_path
from headscope.training.demo_training import BOS_TOKEN_ID, PHASES, SHAPE, VOCAB_SIZE
from headscope.training.loop import BatchSource, Recipe, either, repeats_source, text_source
from headscope.training.markov import markov_source


@dataclass(frozen=True, slots=True, kw_only=True)
class Phase:
    """A stretch of training."""

    recipe: Recipe
    """Its length and learning rate; its seed gives way to the run's."""
    batches: Mapping[str, tuple[Mapping[str, Any], ...]]
    """By kind (`repeats`, `chains` or `text`): the shapes of its batches, drawn with equal chances. Each kind is a
    loss; the losses are added."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Until:
    """When training is done before its last step."""

    stripe: float
    """Least score of the strongest induction head."""
    second_copy_loss_nats: float
    """Greatest loss on the second copy."""
    steps: int
    """For how many steps both must have held."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Preset:
    """One recipe, with the shape of model that it is made for."""

    about: str
    """What the model reads, and what counts."""
    phases: tuple[Phase, ...]
    """In turn."""
    vocab_size: int
    """Rows of the embedding; the id of the start token is 0."""
    layers: int = 2
    """Layers, where the caller names none."""
    heads: int = 4
    """Heads of each layer, likewise."""
    d_model: int = 64
    """Width, likewise."""
    nearby: bool = True
    """Whether heads with rotary positions start out looking nearby, as `attention_only_llama` has it."""
    until: Until | None = None
    """When to stop early, if ever."""
    measure_every: int = 25
    """Steps between two looks at the heads."""

    @property
    def steps(self) -> int:
        """Of all phases together."""
        return sum(phase.recipe.n_steps for phase in self.phases)

    @property
    def reads_text(self) -> bool:
        """Whether it needs a corpus and a tokenizer."""
        return any("text" in phase.batches for phase in self.phases)


_SHORT = {"n_prompts": 64, "n_tokens": 48, "period": (4, 20), "gap": (0, 4)}
_LONG = {"n_prompts": 20, "n_tokens": 160, "period": (4, 70), "gap": (0, 12)}

RECIPES: Mapping[str, Preset] = {
    "copy": Preset(
        about="random tokens that repeat at varied distances; only repeated tokens count",
        vocab_size=256,
        phases=(
            Phase(recipe=Recipe(n_steps=200, learning_rate=4e-3), batches={"repeats": (_SHORT,)}),
            Phase(
                recipe=Recipe(n_steps=600, learning_rate=4e-3, warmup_steps=10), batches={"repeats": (_SHORT, _LONG)}
            ),
        ),
        until=Until(stripe=0.7, second_copy_loss_nats=0.2, steps=50),
    ),
    "code": Preset(
        about="the Python standard library's source, read by the demo's tokenizer; every token counts",
        vocab_size=VOCAB_SIZE,
        d_model=128,
        phases=(
            Phase(
                recipe=Recipe(n_steps=3000, learning_rate=3e-3, decay_steps=1000),
                batches={"text": ({"n_prompts": 16, "n_tokens": 160},)},
            ),
        ),
        measure_every=50,
    ),
    "mixed": Preset(
        about="code and random repeats at once, as the packaged demo was made",
        vocab_size=VOCAB_SIZE,
        layers=SHAPE["n_layers"],
        heads=SHAPE["n_heads"],
        d_model=SHAPE["d_model"],
        nearby=False,
        phases=tuple(
            Phase(recipe=phase["recipe"], batches={kind: (phase[kind],) for kind in ("text", "repeats")})
            for phase in PHASES
        ),
        measure_every=50,
    ),
    "bigram": Preset(
        about="Markov chains over 16 tokens, each with a transition matrix of its own; every token counts",
        vocab_size=17,
        phases=(
            Phase(
                recipe=Recipe(n_steps=1200, learning_rate=4e-3, decay_steps=400),
                batches={"chains": ({"n_prompts": 24, "n_tokens": 160, "n_states": 16, "concentration": 0.2},)},
            ),
        ),
    ),
}


def phase_sources(
    phase: Phase, *, vocab_size: int, stream: Int[Tensor, " position"] | None = None
) -> dict[str, BatchSource]:
    """The batch sources of a phase, by kind.

    Args:
        phase: Which phase.
        vocab_size: Of the model.
        stream: The text, for a phase that reads one.
    """
    makers: dict[str, Callable[..., BatchSource]] = {"repeats": repeats_source, "chains": markov_source}

    def made(kind: str, shape: Mapping[str, Any]) -> BatchSource:
        if kind == "text":
            assert stream is not None, "a phase that reads text gets one"
            return text_source(stream, bos_token_id=BOS_TOKEN_ID, **shape)
        return makers[kind](vocab_size=vocab_size, bos_token_id=BOS_TOKEN_ID, **shape)

    sources = {kind: [made(kind, shape) for shape in shapes] for kind, shapes in phase.batches.items()}
    return {kind: some[0] if len(some) == 1 else either(*some) for kind, some in sources.items()}


def seeded_phases(preset: Preset, *, seed: int, steps: int) -> tuple[Phase, ...]:
    """The phases of a run: each with a seed of its own, the last one made longer if `steps` asks for more.

    Fewer steps change nothing here: such a run is the beginning of the longer one.
    """
    spare = max(0, steps - preset.steps)
    phases: list[Phase] = []
    for number, phase in enumerate(preset.phases):
        last = number == len(preset.phases) - 1
        recipe = replace(
            phase.recipe,
            seed=len(preset.phases) * seed + number,
            n_steps=phase.recipe.n_steps + (spare if last else 0),
        )
        phases.append(replace(phase, recipe=recipe))
    return tuple(phases)


def text_material() -> tuple[Any, Int[Tensor, " position"]]:
    """The demo's tokenizer, and the training half of the standard library read by it; about 15 s."""
    from transformers import PreTrainedTokenizerFast

    from headscope.probes.corpus import stdlib_sources
    from headscope.training.demo_training import token_stream

    tokenizer = PreTrainedTokenizerFast.from_pretrained(demo_path())
    return tokenizer, token_stream(tokenizer.backend_tokenizer, stdlib_sources(held_out=False))


def try_sources(sources: Mapping[str, BatchSource]) -> None:
    """Draw one batch of each, to learn before training that it can be drawn.

    Raises:
        ArgumentError: its shape is impossible.
    """
    for draw in sources.values():
        draw(torch.Generator().manual_seed(0))
