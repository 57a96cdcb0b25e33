"""Models in which each head's role in the atlas is known: built by hand, as `headscope.planted.handbuilt` builds.

Heads are named, and a model holds those that are asked for, with what they need; all together make the model of every
role. Three layers, or four: heads that move tokens, heads that read what these moved, heads that read predictions.

    layer 0   previous_token, two_back, three_back, four_back     move the token so far back to a place of its own
              bias            rests on the start token and writes a constant that the loss needs
              dormant         rests on the start token, which has no code, and writes nothing
              small           writes little beside a loud head of its layer, and has an effect
              delimiter       attends to the nearest earlier delimiter and moves which one it is to `segment`
              repeated_name   attends from a name to its earlier copy and marks that there is one
              marks_first, marks_last    attend four or two back where the token is the same, and mark it `first` or
                              `last`: the answer of an example is the first or the last of its list
              word_end        attends one back where the two tokens are a word, and moves the first to `whole`
    layer 1   induction       attends after the earlier copy, copies
              order_2         attends where the last two tokens match, copies
              retrieval       attends to the value of the entity that is asked for, copies
              last_value      attends to the most recent value of an asking prompt: a decoy
              nth_value       attends to one place of an asking prompt: a decoy
              segments        attends after an earlier copy in a segment of the same delimiter, copies
              delimiter_sink  attends to the nearest earlier delimiter and writes nothing
              successor       at a letter: reads it and raises the next one
              successor_same, successor_before    the same for the letter itself, and the one before: decoys
              successor_silent    raises the next letter, and rests wherever it is: a decoy
              lowers_last     at a letter: raises the next one a little, lowers the letter itself: a decoy
              s_inhibition    at the end of a sentence about two people, attends to the later place of the repeated name
                              and moves it to `inhibited`
              function_vector at a colon, attends to marked answers and moves the mark to `do_first` or `do_last`
              vector_silent   the same, and writes nothing: a decoy
              concept_induction    attends to the end of the word that began after the earlier copy, and moves the word
                              to `concept_first` and `concept_second`
              concept_silent  the same, and writes nothing: a decoy
              concept_here    the same, and copies the word's end to its own place: a decoy
              skip_ahead      attends two after the earlier copy, and moves these two tokens there: a decoy
              word_ends       attends to the end of every word, and moves them there: a decoy
    layer 2   copy_suppression    attends to the token that layer 1 predicts, and lowers it
              anti_induction      attends after the earlier copy, and lowers what is there: its look-alike
              name_mover          at that end, attends to the names that are not inhibited, copies
              negative_mover      the same, and lowers them
              mover_silent        the same, and writes nothing: a decoy
              mover_relay         the same, and moves the name to `told`: a decoy
              first_name          at that end, attends to where the first name is, copies: a decoy
              lowers_repeated     at that end, attends to the later place of the repeated name, and lowers it: a decoy
              says_first, says_last    at a colon with `do_first` or `do_last`, attend three or one back, copy: movers
              completes       attends one back where `concept_first` is this token, and copies `concept_second`
    layer 3   told            copies `told`, for mover_relay
              backup_mover    attends as the name mover does, unless the name has been written already; copies
              backup_silent   the same, and writes nothing: a decoy

Gains are those of `handbuilt`: a match has all but 1e-4 of the attention.

Misleading as: a picture of learned heads.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from transformers import GPT2LMHeadModel

from headscope.errors import ArgumentError
from headscope.heads import HeadId
from headscope.planted.basis import Space, digit_code, position_code
from headscope.planted.handbuilt import Plan, PlannedHead, assemble
from headscope.planted.role_heads import BACKS, DIGITS, MOVERS, TILT, RoleHeads

NEEDS: dict[str, tuple[str, ...]] = {
    "induction": ("previous_token",),
    "order_2": ("previous_token", "two_back"),
    "retrieval": ("three_back", "four_back"),
    "copy_suppression": ("induction", "previous_token"),
    "anti_induction": ("previous_token",),
    "delimiter": ("segments", "previous_token"),
    "segments": ("delimiter", "previous_token"),
    "s_inhibition": ("name_mover", "repeated_name"),
    "name_mover": ("s_inhibition", "repeated_name"),
    "negative_mover": ("name_mover", "s_inhibition", "repeated_name"),
    "mover_silent": ("name_mover", "s_inhibition", "repeated_name"),
    "mover_relay": ("told", "s_inhibition", "repeated_name"),
    "lowers_repeated": ("repeated_name",),
    "backup_mover": ("name_mover", "s_inhibition", "repeated_name"),
    "backup_silent": ("name_mover", "s_inhibition", "repeated_name"),
    "function_vector": ("marks_first", "marks_last", "says_first", "says_last"),
    "vector_silent": ("marks_first", "marks_last"),
    **dict.fromkeys(("concept_induction", "concept_silent", "concept_here"), ("word_end", "two_back", "completes")),
    "skip_ahead": ("previous_token", "two_back", "completes"),
    "word_ends": ("word_end", "completes"),
}
LAYERS: tuple[tuple[str, ...], ...] = (
    (*MOVERS, "bias", "dormant", "small", "delimiter", "repeated_name", "marks_first", "marks_last", "word_end"),
    (
        *("induction", "order_2", "retrieval", "last_value", "nth_value", "segments", "delimiter_sink"),
        *("successor", "successor_same", "successor_before", "successor_silent", "lowers_last", "s_inhibition"),
        *("function_vector", "vector_silent"),
        *("concept_induction", "concept_silent", "concept_here", "skip_ahead", "word_ends"),
    ),
    (
        *("copy_suppression", "anti_induction", "name_mover", "negative_mover", "mover_silent", "mover_relay"),
        *("first_name", "lowers_repeated", "says_first", "says_last", "completes"),
    ),
    ("told", "backup_mover", "backup_silent"),
)
NAMES: tuple[str, ...] = tuple(name for layer in LAYERS for name in layer)
LETTERS = tuple(range(1, 9))
"""Ids of eight letters, in order; their codes differ in the last digit alone."""
NAME_IDS = (14, 17, 26, 35, 44, 53)
"""Ids of the names; no two share a digit of their code."""
PAIRS = ((12, 15), (29, 27), (34, 33), (54, 56), (57, 60))
"""Ids of words of two tokens; no two first tokens share a digit of their code, and no two second ones."""
WORDS: dict[int, str] = {
    **dict(zip(LETTERS, "ABCDEFGH", strict=True)),
    **dict(zip(NAME_IDS, "Mary John Tom James Dan Martin".split(), strict=True)),
    **dict(zip(range(18, 26), "apple horse green table river bread stone window".split(), strict=True)),
    **dict(zip(range(36, 44), "When and went to the store park gave".split(), strict=True)),
    **dict(zip(range(45, 50), "a drink book ring :".split(), strict=True)),
    **dict(zip((first for first, _ in PAIRS), "pars oct tur clar mag".split(), strict=True)),
    **dict(zip((second for _, second in PAIRS), "##ley ##opus ##nip ##inet ##nolia".split(), strict=True)),
}
"""What the ids mean to a tokenizer, `##` where a word goes on; the others mean nothing."""
ASKS = 39
"""Id of the word at the end of a sentence about two people."""
ARROW = 49
"""Id of the colon between a list and its answer."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Known:
    """A model, and its heads by name."""

    model: GPT2LMHeadModel
    """In evaluation mode, float32; prompts begin with token 0."""
    heads: Mapping[str, HeadId]
    """Where each named head is; heads that fill layers up have no name."""
    delimiters: tuple[int, ...]
    """Ids of the tokens that count as delimiters."""
    words: tuple[str, ...]
    """A word for each id; `w7` where it means nothing. The last three are a comma, a full stop and a semicolon."""


def known_roles(
    names: Sequence[str], *, seed: int = 0, n_heads: int = 4, vocab_size: int = 64, n_positions: int = 96
) -> Known:
    """Build a model that holds these heads and what they need.

    Args:
        names: See this module's text.
        seed: Of the rotations and of the order of heads.
        n_heads: Least heads in a layer.
        vocab_size: Tokens, the start token (id 0) included.
        n_positions: Longest prompt.

    Raises:
        ArgumentError: an unknown name.
    """
    if unknown := sorted(set(names) - set(NAMES)):
        raise ArgumentError(f"known_roles: {unknown[0]!r} is not known; use {', '.join(NAMES)}.")
    wanted = {*names, *(need for name in names for need in NEEDS.get(name, ()))}
    wanted |= {need for name in wanted for need in NEEDS.get(name, ())}
    if vocab_size < 64:
        raise ArgumentError(f"known_roles: vocab_size={vocab_size}; its words need at least 64.")
    random = torch.Generator().manual_seed(seed)
    code = torch.nn.functional.pad(digit_code(vocab_size - 1, DIGITS), (0, 0, 1, 0))
    offsets = {"here": 0, **{f"back_{back}": back for back in (1, 2, 3, 4)}}
    places = {name: position_code(n_positions, DIGITS, back) for name, back in offsets.items()}
    width, place = code.shape[1], places["here"].shape[1]
    tokens = dict.fromkeys(["token", "embedded", *BACKS, "segment", "inhibited", "told", "junk"], width)
    marks = ["start", "tilt", "mark", "late", "letter", "name", "asks", "again"]
    if wanted & {"marks_first", "marks_last"}:
        marks += ["arrow", "first", "last", "do_first", "do_last"]
    with_words = bool(wanted & {"word_end", "completes"})
    if with_words:
        tokens |= dict.fromkeys(["partner", "whole", "concept_first", "concept_second"], width)
    space = Space.of({**tokens, **dict.fromkeys(marks, 1), **dict.fromkeys(places, place)})
    layers = [[name for name in layer if name in wanted] for layer in LAYERS]
    while len(layers) > 3 and not layers[-1]:
        layers.pop()
    n_heads = max(n_heads, *map(len, layers), len(layers[0]) + 1)
    inside = max(2 * width + 1, width + place + 1, place + 3, math.ceil((space.n_directions + 1) / n_heads))
    plan = RoleHeads(
        Plan(space=space, d_head=8 * math.ceil(inside / 8), n_digits=DIGITS, random=random), places["here"]
    )
    built: list[list[PlannedHead]] = []
    heads: dict[str, HeadId] = {}
    for layer, here in enumerate(layers):
        filled = [(name, plan.head(name)) for name in here]
        loud = "small" in here
        filled += [("", plan.loud() if loud else plan.parts.none()) for _ in range(n_heads - len(filled))]
        filled = [filled[int(one)] for one in torch.randperm(n_heads, generator=random)]
        built.append([head for _, head in filled])
        heads |= {name: HeadId(layer, one) for one, (name, _) in enumerate(filled) if name}
    delimiters = tuple(range(vocab_size - 3, vocab_size))
    embedding = torch.zeros(vocab_size, space.n_directions, dtype=torch.float64)
    embedding[:, space["token"]] = embedding[:, space["embedded"]] = code
    embedding[0, space["start"]] = 1.0
    for ids, mark in ((delimiters, "mark"), (LETTERS, "letter"), (NAME_IDS, "name"), ((ASKS,), "asks")):
        embedding[list(ids), space[mark]] = 1.0
    if "arrow" in marks:
        embedding[ARROW, space["arrow"]] = 1.0
    if with_words:
        for first, second in PAIRS:
            embedding[second, space["partner"]] = code[first]
    positions = torch.zeros(n_positions, space.n_directions, dtype=torch.float64)
    for name, values in places.items():
        positions[:, space[name]] = values
    positions[:, space["late"]] = torch.arange(n_positions, dtype=torch.float64)[:, None] / n_positions
    unembedding = torch.zeros(vocab_size, space.n_directions, dtype=torch.float64)
    unembedding[:, space["token"]] = code
    unembedding[:, space["embedded"]] = -code
    unembedding[0, space["tilt"]] = 1.0
    positions[:, space["tilt"]] = TILT if "bias" in wanted else 0.0
    words = [WORDS.get(one, f"w{one}") for one in range(vocab_size)]
    words[-3:] = ",.;"
    model = assemble(built, embedding, positions, unembedding, random)
    return Known(model=model, heads=heads, delimiters=delimiters, words=tuple(words))
