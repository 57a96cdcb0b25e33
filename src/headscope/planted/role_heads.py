"""Heads of the atlas's roles and their decoys, by name; `headscope.planted.known_roles` says what each does."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from headscope.planted.handbuilt import (
    COPY_GAIN,
    DUPLICATE_GAIN,
    MATCH_GAIN,
    POSITION_GAIN,
    Plan,
    PlannedHead,
)

DIGITS = 2
BACKS = {"before": 1, "before_2": 2, "asked": 3, "entity": 4}
"""Subspaces that layer 0 fills, and from how far back."""
MOVERS = {"previous_token": "before", "two_back": "before_2", "three_back": "asked", "four_back": "entity"}
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


@dataclass(frozen=True, slots=True)
class RoleHeads:
    """Draws up heads by name."""

    parts: Plan
    """Of the model."""
    places: torch.Tensor
    """Codes of its positions [position, direction]."""

    def head(self, name: str) -> PlannedHead:
        """The head of this name, one of `known_roles.NAMES`."""
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
            case "word_end":
                return plan.head("none", self._one_back("partner", "embedded"), plan.write("embedded", "whole", 1.0))
            case "concept_induction":
                return plan.head("none", self._ends("before_2"), self._tells("whole"))
            case "concept_silent":
                return plan.head("none", self._ends("before_2"), nothing)
            case "concept_here":
                return plan.head("none", self._ends("before_2"), copy)
            case "skip_ahead":
                return plan.head("none", self._pair("embedded", "before_2"), self._tells("before"))
            case "word_ends":
                return plan.head("none", self._ends(None), self._tells("whole"))
            case "completes":
                pattern = self._one_back("embedded", "concept_first")
                return plan.head("none", pattern, plan.write("concept_second", "token", COPY_GAIN))
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
        """Sets a mark at every place where it reads a token."""
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

    def _one_back(self, query: str, key: str) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Attends one back where two subspaces have the same code; both must match."""
        return self._rests(
            self.parts.pattern(("back_1", "here", MATCH_GAIN), (query, key, MATCH_GAIN)), 2 * DIGITS - 0.5
        )

    def _ends(self, after: str | None) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Attends to ends of words, of those words alone that have the current token in this subspace; None for all."""
        plan = self.parts
        pairs = [] if after is None else [("embedded", after, MATCH_GAIN)]
        q, q_bias, k = self._rests(plan.pattern(*pairs), (1 + len(pairs)) * DIGITS - 0.5)
        q_bias, k = q_bias.clone(), k.clone()
        inner = int(k[plan.space["start"]].abs().argmax()) + 1
        k[plan.space["whole"], inner] = 1.0
        q_bias[inner] = MATCH_GAIN
        return q, q_bias, k

    def _tells(self, first: str) -> tuple[torch.Tensor, torch.Tensor]:
        """Moves a word's two tokens, the first from this subspace."""
        plan = self.parts
        width = plan.space.width("embedded")
        v = torch.zeros(plan.space.n_directions, plan.d_head, dtype=torch.float64)
        o = torch.zeros(plan.d_head, plan.space.n_directions, dtype=torch.float64)
        for at, (source, target) in enumerate(((first, "concept_first"), ("embedded", "concept_second"))):
            inner = torch.arange(width)
            v[inner + plan.space[source].start, inner + at * width] = 1.0
            o[inner + at * width, inner + plan.space[target].start] = 1.0
        return v, o

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
