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
    layer 2   copy_suppression    attends to the token that layer 1 predicts, and lowers it
              anti_induction      attends after the earlier copy, and lowers what is there: its look-alike
              name_mover          at that end, attends to the names that are not inhibited, copies
              negative_mover      the same, and lowers them
              mover_silent        the same, and writes nothing: a decoy
              mover_relay         the same, and moves the name to `told`: a decoy
              first_name          at that end, attends to where the first name is, copies: a decoy
              lowers_repeated     at that end, attends to the later place of the repeated name, and lowers it: a decoy
              says_first, says_last    at a colon with `do_first` or `do_last`, attend three or one back, copy: movers
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
from headscope.planted.handbuilt import (
    COPY_GAIN,
    DUPLICATE_GAIN,
    MATCH_GAIN,
    POSITION_GAIN,
    Plan,
    PlannedHead,
    assemble,
)

DIGITS = 2
BACKS = {"before": 1, "before_2": 2, "asked": 3, "entity": 4}
"""Subspaces that layer 0 fills, and from how far back."""
MOVERS = {"previous_token": "before", "two_back": "before_2", "three_back": "asked", "four_back": "entity"}
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
}
LAYERS: tuple[tuple[str, ...], ...] = (
    (*MOVERS, "bias", "dormant", "small", "delimiter", "repeated_name", "marks_first", "marks_last"),
    (
        *("induction", "order_2", "retrieval", "last_value", "nth_value", "segments", "delimiter_sink"),
        *("successor", "successor_same", "successor_before", "successor_silent", "lowers_last", "s_inhibition"),
        *("function_vector", "vector_silent"),
    ),
    (
        *("copy_suppression", "anti_induction", "name_mover", "negative_mover", "mover_silent", "mover_relay"),
        *("first_name", "lowers_repeated", "says_first", "says_last"),
    ),
    ("told", "backup_mover", "backup_silent"),
)
NAMES: tuple[str, ...] = tuple(name for layer in LAYERS for name in layer)
LETTERS = tuple(range(1, 9))
"""Ids of eight letters, in order; their codes differ in the last digit alone."""
NAME_IDS = (14, 17, 26, 35, 44, 53)
"""Ids of the names; no two share a digit of their code."""
WORDS: dict[int, str] = {
    **dict(zip(LETTERS, "ABCDEFGH", strict=True)),
    **dict(zip(NAME_IDS, "Mary John Tom James Dan Martin".split(), strict=True)),
    **dict(zip(range(18, 26), "apple horse green table river bread stone window".split(), strict=True)),
    **dict(zip(range(36, 44), "When and went to the store park gave".split(), strict=True)),
    **dict(zip(range(45, 50), "a drink book ring :".split(), strict=True)),
}
"""What the ids mean to a tokenizer; the others mean nothing."""
ASKS = 39
"""Id of the word at the end of a sentence about two people."""
ARROW = 49
"""Id of the colon between a list and its answer."""
SUCCESSOR_GAIN = 6.0
LOWERED = 4.0
"""What is taken off a repeated name, in units of its code."""
SUPPRESSION = 0.3
"""Of what induction writes, what the suppressing heads take off."""
TILT = 6.0
"""How far positions raise the logit of the start token, which never comes next; the bias head takes it off again."""
LOUD = 112.0
"""Frobenius norm of the loud head's OV."""
SMALL_GAIN = 0.4
"""What the small head writes, in units of a token's code; beside it the layer holds loud heads."""
NTH_VALUE = 10
"""Position of the second value of an asking prompt with a start token."""
FIRST_NAME = 2
"""Position of the first name of a sentence about two people, after the start token and one word."""
LAST_VALUE = 4
"""How far before the last token of an asking prompt the most recent value is."""


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
    space = Space.of({**tokens, **dict.fromkeys(marks, 1), **dict.fromkeys(places, place)})
    layers = [[name for name in layer if name in wanted] for layer in LAYERS]
    while len(layers) > 3 and not layers[-1]:
        layers.pop()
    n_heads = max(n_heads, *map(len, layers), len(layers[0]) + 1)
    inside = max(2 * width + 1, width + place + 1, place + 3, math.ceil((space.n_directions + 1) / n_heads))
    plan = _Draws(Plan(space=space, d_head=8 * math.ceil(inside / 8), n_digits=DIGITS, random=random), places["here"])
    built: list[list[PlannedHead]] = []
    heads: dict[str, HeadId] = {}
    for layer, here in enumerate(layers):
        filled = [(name, plan.head(name)) for name in here]
        loud = "small" in here
        filled += [("", plan.loud() if loud else plan.parts.none()) for _ in range(n_heads - len(filled))]
        filled = [filled[one] for one in torch.randperm(n_heads, generator=random).tolist()]
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


@dataclass(frozen=True, slots=True)
class _Draws:
    """Draws up heads by name."""

    parts: Plan
    places: torch.Tensor

    def head(self, name: str) -> PlannedHead:
        plan = self.parts
        copy = plan.write("token", "token", COPY_GAIN)
        nothing = plan.write("token", "token", 0.0)
        if name in MOVERS:
            to = MOVERS[name]
            pattern = plan.pattern((f"back_{BACKS[to]}", "here", POSITION_GAIN), rest_gain=POSITION_GAIN)
            return plan.head("none", pattern, plan.write("embedded", to, 1.0))
        match name:
            case "bias":
                return self._constant(self._resting(), "start", "tilt")
            case "dormant":
                return plan.head("none", self._resting(), plan.write("token", "junk", 1.0))
            case "small":
                pattern = plan.pattern(("here", "here", POSITION_GAIN))
                return plan.head("none", pattern, plan.write("token", "token", -SMALL_GAIN))
            case "induction":
                return plan.head("none", self._pair("embedded", "before"), copy)
            case "order_2":
                # Both must match: one alone stays half a match below the rest.
                pattern = plan.pattern(
                    ("embedded", "before", MATCH_GAIN), ("before", "before_2", MATCH_GAIN), rest_gain=0.0
                )
                return plan.head("none", self._rests(pattern, 2 * DIGITS - 0.5), copy)
            case "retrieval":
                return plan.head("none", self._pair("asked", "entity"), copy)
            case "last_value":
                pattern = plan.pattern((f"back_{LAST_VALUE}", "here", POSITION_GAIN), rest_gain=POSITION_GAIN)
                return plan.head("none", pattern, copy)
            case "nth_value":
                return plan.head("none", self._at(NTH_VALUE), copy)
            case "delimiter":
                return plan.head("none", self._marked(), plan.write("embedded", "segment", 1.0))
            case "segments":
                pattern = plan.pattern(("embedded", "before", MATCH_GAIN), ("segment", "segment", MATCH_GAIN))
                return plan.head("none", self._rests(pattern, 2 * DIGITS - 0.5), copy)
            case "delimiter_sink":
                return plan.head("none", self._marked(), nothing)
            case "copy_suppression":
                return plan.head("none", self._predicted(), self._lowers())
            case "anti_induction":
                return plan.head("none", self._pair("embedded", "before"), self._lowers())
            case "successor":
                return plan.head("none", self._at_letters(), self._shifted(next=SUCCESSOR_GAIN))
            case "successor_same":
                return plan.head("none", self._at_letters(), self._shifted(same=SUCCESSOR_GAIN))
            case "successor_before":
                return plan.head("none", self._at_letters(), self._shifted(before=SUCCESSOR_GAIN))
            case "successor_silent":
                return plan.head("none", self._resting(), self._shifted(next=SUCCESSOR_GAIN))
            case "lowers_last":
                return plan.head("none", self._at_letters(), self._shifted(next=1.0, same=-3.0))
            case "repeated_name":
                return plan.head("none", self._earlier_copy(), self._moves("name", "again"))
            case "s_inhibition":
                return plan.head("none", self._asking("again"), plan.write("embedded", "inhibited", 1.0))
            case "lowers_repeated":
                return plan.head("none", self._asking("again"), plan.write("embedded", "token", -LOWERED))
            case "name_mover":
                return plan.head("none", self._asking("name", inhibited=True), copy)
            case "negative_mover":
                return plan.head("none", self._asking("name", inhibited=True), self._lowers())
            case "mover_silent":
                return plan.head("none", self._asking("name", inhibited=True), nothing)
            case "mover_relay":
                return plan.head("none", self._asking("name", inhibited=True), plan.write("embedded", "told", 1.0))
            case "first_name":
                return plan.head("none", self._gated(self._at(FIRST_NAME), "asks", DIGITS * POSITION_GAIN), copy)
            case "backup_mover":
                return plan.head("none", self._unless_said(), copy)
            case "backup_silent":
                return plan.head("none", self._unless_said(), nothing)
            case "marks_first":
                return plan.head("none", self._same_token(4), self._into("first"))
            case "marks_last":
                return plan.head("none", self._same_token(2), self._into("last"))
            case "function_vector":
                return plan.head("none", self._examples(), self._told_tasks(1.0))
            case "vector_silent":
                return plan.head("none", self._examples(), self._told_tasks(0.0))
            case "says_first":
                return plan.head("none", self._told_to("do_first", 3), copy)
            case "says_last":
                return plan.head("none", self._told_to("do_last", 1), copy)
            case "told":
                pattern = plan.pattern(("here", "here", POSITION_GAIN))
                return plan.head("none", pattern, plan.write("told", "token", COPY_GAIN))
            case _:
                raise AssertionError(name)

    def loud(self) -> PlannedHead:
        """A random head that writes much where nothing reads."""
        return self.parts.random_head("noise", ov_norm=LOUD)

    def _pair(self, query: str, key: str) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        return self.parts.pattern((query, key, MATCH_GAIN), rest_gain=MATCH_GAIN)

    def _rests(
        self, pattern: tuple[torch.Tensor, torch.Tensor, torch.Tensor], digits: float
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """The pattern with the start token worth so many digits of a match."""
        q, q_bias, k = pattern
        inner = int(k[self.parts.space["start"]].abs().argmax())
        q_bias = q_bias.clone()
        q_bias[inner] = MATCH_GAIN * digits
        return q, q_bias, k

    def _gated(
        self, pattern: tuple[torch.Tensor, torch.Tensor, torch.Tensor], mark: str, gain: float
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """The pattern at queries with a mark; all others rest on the start token."""
        q, q_bias, k = pattern
        inner = int(k[self.parts.space["start"]].abs().argmax())
        q, q_bias = q.clone(), q_bias.clone()
        q[self.parts.space[mark], inner] -= gain
        q_bias[inner] += gain
        return q, q_bias, k

    def _at_letters(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Attends to its own place, if a letter is there."""
        pattern = self.parts.pattern(("here", "here", POSITION_GAIN), rest_gain=POSITION_GAIN)
        return self._gated(pattern, "letter", POSITION_GAIN)

    def _shifted(self, **gains: float) -> tuple[torch.Tensor, torch.Tensor]:
        """Writes the token whose last digit is the `next`, the `same` or the one `before`, at these gains."""
        width = self.parts.space.width("token")
        base = width // DIGITS
        matrix = torch.zeros(width, width, dtype=torch.float64)
        for name, gain in gains.items():
            step = {"next": 1, "same": 0, "before": -1}[name]
            one = torch.eye(width, dtype=torch.float64)
            one[:base, :base] = torch.roll(torch.eye(base, dtype=torch.float64), step, dims=1)
            matrix += gain * one
        return self.parts.write("embedded", "token", matrix)

    def _earlier_copy(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Attends to the earlier copy of the token; as `handbuilt`'s duplicate-token head."""
        penalty = (0.5 / DIGITS + 0.5 / (DIGITS - 1)) / 2
        pairs = (("embedded", "embedded", DUPLICATE_GAIN), ("here", "here", -penalty * DUPLICATE_GAIN))
        return self.parts.pattern(*pairs, rest_gain=DUPLICATE_GAIN)

    def _moves(self, source: str, target: str) -> tuple[torch.Tensor, torch.Tensor]:
        return self.parts.write(source, target, 1.0)

    def _asking(self, mark: str, *, inhibited: bool = False) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """From the end of a sentence about two people to keys with a mark, but for those whose token is inhibited."""
        pairs = [("asks", mark, DIGITS * MATCH_GAIN)]
        if inhibited:
            pairs.append(("inhibited", "embedded", -MATCH_GAIN))
        q, q_bias, k = self.parts.pattern(*pairs, rest_gain=0.0)
        q_bias = q_bias.clone()
        q_bias[int(k[self.parts.space["start"]].abs().argmax())] = MATCH_GAIN * (DIGITS - 0.5)
        return q, q_bias, k

    def _unless_said(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """As a name mover, but for a name that was written to `token` beyond the embedding."""
        q, q_bias, k = self._asking("name", inhibited=True)
        space = self.parts.space
        column = int(k[space["embedded"].start].abs().argmax())
        inner = torch.arange(space.width("token"))
        q[inner + space["token"].start, inner + column] -= MATCH_GAIN / COPY_GAIN
        q[inner + space["embedded"].start, inner + column] += MATCH_GAIN / COPY_GAIN
        return q, q_bias, k

    def _same_token(self, back: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Attends so far back where the token is the same; both must match."""
        pattern = self.parts.pattern((f"back_{back}", "here", MATCH_GAIN), ("embedded", "embedded", MATCH_GAIN))
        return self._rests(pattern, 2 * DIGITS - 0.5)

    def _into(self, mark: str) -> tuple[torch.Tensor, torch.Tensor]:
        """Sets a mark wherever it reads a token."""
        width = self.parts.space.width("embedded")
        return self.parts.write("embedded", mark, torch.full((width, 1), 1 / DIGITS, dtype=torch.float64))

    def _examples(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """From a colon to all answers that are marked alike."""
        gain = DIGITS * MATCH_GAIN
        return self._rests(self.parts.pattern(("arrow", "first", gain), ("arrow", "last", gain)), DIGITS - 0.5)

    def _told_tasks(self, gain: float) -> tuple[torch.Tensor, torch.Tensor]:
        plan = self.parts
        v = torch.zeros(plan.space.n_directions, plan.d_head, dtype=torch.float64)
        o = torch.zeros(plan.d_head, plan.space.n_directions, dtype=torch.float64)
        for inner, (source, target) in enumerate((("first", "do_first"), ("last", "do_last"))):
            v[plan.space[source], inner] = 1.0
            o[inner, plan.space[target]] = gain
        return v, o

    def _told_to(self, mark: str, back: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Attends so far back where the mark is set."""
        pattern = self.parts.pattern((f"back_{back}", "here", POSITION_GAIN), rest_gain=POSITION_GAIN)
        return self._gated(pattern, mark, POSITION_GAIN)

    def _resting(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        return self._rests(self.parts.pattern(), float(DIGITS))

    def _constant(
        self, pattern: tuple[torch.Tensor, torch.Tensor, torch.Tensor], source: str, target: str
    ) -> PlannedHead:
        """Takes off the tilt along one direction, by what it reads of another."""
        plan = self.parts
        v = torch.zeros(plan.space.n_directions, plan.d_head, dtype=torch.float64)
        o = torch.zeros(plan.d_head, plan.space.n_directions, dtype=torch.float64)
        v[plan.space[source], 0] = 1.0
        o[0, plan.space[target]] = -TILT
        return plan.head("none", pattern, (v, o))

    def _at(self, position: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Attends to one position, and rests where it is not there yet."""
        plan = self.parts
        q, q_bias, k = plan.pattern(rest_gain=0.0)
        q_bias, k = q_bias.clone(), k.clone()
        width = plan.space.width("here")
        inner = torch.arange(1, 1 + width)
        k[torch.arange(width) + plan.space["here"].start, inner] = 1.0
        q_bias[inner] = POSITION_GAIN * self.places[position]
        q_bias[0] = POSITION_GAIN * (DIGITS - 0.5)
        return q, q_bias, k

    def _marked(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Attends to the latest key with a mark; the start token where there is none."""
        plan = self.parts
        q, q_bias, k = plan.pattern(rest_gain=0.0)
        q_bias, k = q_bias.clone(), k.clone()
        n = len(self.places)
        k[plan.space["mark"], 1] = 1.0
        k[plan.space["late"], 2] = 1.0
        # Ten per position; a mark outweighs them all, and the start token all but a mark.
        q_bias[0], q_bias[1], q_bias[2] = 11.0 * n, 22.0 * n, 10.0 * n
        return q, q_bias, k

    def _predicted(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Compares what was written to `token` beyond the embedding with each key's embedded token."""
        plan = self.parts
        q, q_bias, k = plan.pattern(("token", "embedded", MATCH_GAIN / COPY_GAIN), rest_gain=MATCH_GAIN)
        width = plan.space.width("token")
        inner = torch.arange(width)
        q[inner + plan.space["embedded"].start, inner] = -MATCH_GAIN / COPY_GAIN
        return q, q_bias, k

    def _lowers(self) -> tuple[torch.Tensor, torch.Tensor]:
        return self.parts.write("embedded", "token", -SUPPRESSION * COPY_GAIN)
