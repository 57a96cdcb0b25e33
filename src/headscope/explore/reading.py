"""A user's own text, read by one model while some of its heads are switched off.

    read       the loss of each token and what is predicted after it, with all heads and without those switched off
    pattern    where one head looks
    glance     where every head looks, small, and its stripe on this text
    looks      which heads look from one token to another: one probability of each head, p_ij = exp(l_ij - lse_i), and
               no matrix
    writes     what each head adds to the logits at one token (`headscope.explore.writing`)

Off means that z of a head is replaced in the whole text, before the output projection: by zero, or by its mean at that
position over 32 prompts of random tokens (`headscope.interventions.ablation`). The last three describe the model as it
then is, so that one sees what a head told the others.

Cost: one pass over the text, for `read` a second one from the first layer that is edited. The means need one pass over
their prompts for each power of two of tokens, then they are kept.

One text proves nothing: it shows what `headscope verify` measures over many.
"""

# pyright: reportUnknownArgumentType=false, reportUnknownVariableType=false
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from headscope.detectors.standard import induction
from headscope.errors import ArgumentError, NonFiniteError, TokenError, UnsupportedModel, brief
from headscope.explore.starting import ids_of
from headscope.explore.writing import Writes, Writing
from headscope.heads import HeadId, ranking
from headscope.interventions.ablation import CORPUS_PROMPTS, Ablator, token_losses
from headscope.model.attention import Attention
from headscope.model.interface import Visit
from headscope.model.load import Model
from headscope.model.patterns import as_bytes, patterns
from headscope.model.replay import Replay
from headscope.model.tokenizer import token_text, tokenizing
from headscope.probes import probe_text, probe_tokens, random_tokens
from headscope.probes.probe import Tokens, check_fits

Off = Literal["zero", "mean"]
"""What takes the place of a head that is switched off."""

MAX_CHARACTERS = 20_000
"""Longest text that a tokenizer is given."""
MAX_TOKENS = 512
"""Longest text that a model reads, where its context is not shorter: a pattern takes the square of it."""
TOP = 8
"""Tokens predicted at each place, of each of the two models."""
MOST_DOTS = 48
"""Places a side of a pattern that is shown small."""
MOST_BYTES = 4
"""Of a character in UTF-8."""
SHORTEST = 64
"""Tokens of the shortest prompts that means are taken over."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Word:
    """One token of the text."""

    id: int
    """Its id."""
    text: str | None
    """As the tokenizer shows it; None without one."""
    part: tuple[int, int] | None = None
    """Where several tokens are the bytes of one character, which `text` then is: which of them, of how many."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Option:
    """A token that may come next."""

    id: int
    """Its id."""
    text: str | None
    """As the tokenizer shows it; None without one."""
    clean: float
    """Its probability with all heads."""
    ablated: float | None
    """Without those switched off; None where none is."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """What a model makes of a text."""

    tokens: tuple[Word, ...]
    """The text as the model reads it, its start token included."""
    off: tuple[HeadId, ...]
    """Heads switched off."""
    method: Off
    """What takes their place."""
    clean: tuple[float, ...]
    """Loss of each token but the first, in nats, with all heads."""
    ablated: tuple[float, ...] | None
    """Without those switched off; None where none is."""
    mean_clean: float | None
    """Mean of `clean`; None where nothing is predictable."""
    delta_loss_nats: float | None
    """Mean of `ablated` minus mean of `clean`; positive: the heads helped."""
    next: tuple[tuple[Option, ...], ...]
    """After each token: the most probable of both models and the one that does come, the most probable first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    """How one head looks from one token to another."""

    head: HeadId
    """Which."""
    attention: float
    """Probability, exact."""
    chance: float
    """1 / keys that the query may see there; 0 where this key is not among them."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Small:
    """One head's attention on a text, small."""

    head: HeadId
    """Which."""
    pattern: UInt8[np.ndarray, " place"]
    """Lower triangle, row by row, 255 for a probability of 1; of each square of places the largest."""
    stripe: float | None
    """Mean attention to the tokens after earlier copies, the induction score of this text; None without copies."""
    chance: float | None
    """The same of a head that attends to all tokens alike."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Glance:
    """Every head on a text."""

    side: int
    """Places a side of each pattern: the tokens, or `MOST_DOTS` where they are more."""
    targets: tuple[tuple[int, int], ...]
    """Query and key of every token that comes after an earlier copy of the query's."""
    heads: tuple[Small, ...]
    """Of each head."""


class Reader:
    """One model, asked about any text.

    Args:
        model: A loaded model.
        seed: Of the random tokens that means are taken over.
    """

    def __init__(self, model: Model, *, seed: int = 0) -> None:
        self.model = model
        self.limit: int = min(MAX_TOKENS, model.max_tokens or MAX_TOKENS)
        self._seed = seed
        self._means: dict[int, Ablator] = {}

    @cached_property
    def heads(self) -> tuple[HeadId, ...]:
        """Every head, in looped models every call of it; found in a pass over one token."""
        found: list[HeadId] = []

        def visit(attention: Attention) -> None:
            found.extend(HeadId(attention.layer, head, attention.call) for head in range(attention.n_heads))

        self.model.run(self._ids(np.zeros(1, dtype=np.int64)), visit, stop_at_last=True)
        return tuple(sorted(found))

    def named(self, names: Sequence[HeadId | str]) -> tuple[HeadId, ...]:
        """Heads of this model from their names, each once, in order; none from none.

        Raises:
            ArgumentError: a name that is none, or heads that the model does not have.
        """
        if not names:
            return ()
        found = self.model.named(list(names))
        if missing := [head for head in found if head not in self.heads]:
            raise ArgumentError(
                f"{self.model.id} has no head {brief(', '.join(map(str, missing)))}: its layers do not run that "
                "often in one pass; name the head without '#'."
            )
        return tuple(sorted(found))

    def tokens(self, text: str) -> Tokens:
        """The ids of a text, or those that it names: `ids: 5 17 9`; without a tokenizer it can name them alone.

        Raises:
            TokenError: words without a tokenizer; a text that is empty, too long, gives no token, or is not Unicode;
                ids that the model does not have.
        """
        if len(text) > MAX_CHARACTERS:
            raise TokenError(f"the text has {len(text)} characters; at most {MAX_CHARACTERS} are read: shorten it.")
        if any("\ud800" <= one <= "\udfff" for one in text):
            raise TokenError("the text holds half of a surrogate pair, which is no character; remove it.")
        ids = ids_of(self.model, text)
        if ids is None:
            (tokens,) = probe_text(self.model, text).prompts
        else:
            probe = probe_tokens([ids])
            check_fits(probe, self.model)
            (tokens,) = probe.prompts
        if tokens.tolist() == [self.model.bos_token_id]:
            raise TokenError("the tokenizer finds no token in this text; give another.")
        if len(tokens) > self.limit:
            raise TokenError(f"the text has {len(tokens)} tokens; at most {self.limit} are read: shorten it.")
        return tokens

    def read(self, text: str, *, off: Sequence[HeadId | str] = (), method: Off = "mean") -> Reading:
        """Losses and the tokens predicted, with and without the heads switched off.

        Raises:
            TokenError: see `tokens`.
            ArgumentError: no such head.
            UnsupportedModel: the model has no LM head.
            NonFiniteError: a loss is not a number.
        """
        tokens, heads = self.tokens(text), self.named(off)
        ids = torch.from_numpy(tokens)[None].to(self.model.device)
        replay = Replay(self.model, ids)
        rows = [replay.clean()[0]]
        if heads:
            start = min(replay.start_of(head.layer, head.call) or 0 for head in heads)
            rows.append(replay.logits(self._edit(tokens, heads, method), start=start)[0])
        losses = [token_losses(logits[:-1], ids[0, 1:]) for logits in rows]
        if not all(bool(loss.isfinite().all()) for loss in losses):
            raise NonFiniteError(f"a loss of {self.model.id} is NaN or infinite; load the model in a wider dtype.")
        clean, *ablated = (tuple(loss.tolist()) for loss in losses)
        mean, *without = (float(loss.cpu().double().mean()) if len(loss) else None for loss in losses)
        return Reading(
            tokens=self._words(tokens),
            off=heads,
            method=method,
            clean=clean,
            ablated=ablated[0] if ablated else None,
            mean_clean=mean,
            delta_loss_nats=without[0] - mean if without and without[0] is not None and mean is not None else None,
            next=self._next(rows, tokens),
        )

    def pattern(
        self, text: str, head: HeadId | str, *, off: Sequence[HeadId | str] = (), method: Off = "mean"
    ) -> UInt8[np.ndarray, " place"]:
        """Where one head looks: the lower triangle, row by row, 255 for a probability of 1.

        Raises:
            TokenError: see `tokens`.
            ArgumentError: no such head.
        """
        tokens, heads = self.tokens(text), self.named(off)
        (wanted,) = self.named([head])
        found: list[np.ndarray] = []

        def see(head: HeadId, pattern: Tensor) -> None:
            found.append(as_bytes(pattern[0]))

        patterns(self.model, self._ids(tokens), see, [wanted], edit=self._edit(tokens, heads, method))
        return found[0]

    def whole(
        self, text: str, *, off: Sequence[HeadId | str] = (), method: Off = "mean"
    ) -> dict[HeadId, Float[Tensor, "query key"]]:
        """Every head's pattern on a text, in float16.

        Raises:
            TokenError: see `tokens`.
            ArgumentError: no such head.
        """
        tokens, heads = self.tokens(text), self.named(off)
        found: dict[HeadId, Tensor] = {}

        def see(head: HeadId, pattern: Tensor) -> None:
            found[head] = pattern[0].to("cpu", torch.float16)

        patterns(self.model, self._ids(tokens), see, edit=self._edit(tokens, heads, method))
        return found

    def glance(self, text: str, *, off: Sequence[HeadId | str] = (), method: Off = "mean") -> Glance:
        """Every head's attention on a text, small, and its stripe there.

        Raises:
            TokenError: see `tokens`.
            ArgumentError: no such head.
        """
        tokens, heads = self.tokens(text), self.named(off)
        targets = induction(tokens)
        query, key = (torch.from_numpy(np.ascontiguousarray(one)) for one in (targets.query, targets.key))
        counts = torch.bincount(query, minlength=len(tokens)).double()
        found: list[Small] = []

        def mean(row: Tensor) -> float | None:
            """Mean over queries of what they put on their targets."""
            if not len(query):
                return None
            on = torch.zeros(len(tokens), dtype=torch.float64).index_add_(0, query, row.double())
            return float(on[counts > 0].mean())

        chance = mean(1 / (query + 1.0))

        def see(head: HeadId, pattern: Tensor) -> None:
            rows = pattern[0].float().cpu()
            stripe = mean(rows[query, key])
            found.append(Small(head=head, pattern=as_bytes(_pooled(rows)), stripe=stripe, chance=chance))

        patterns(self.model, self._ids(tokens), see, edit=self._edit(tokens, heads, method))
        return Glance(
            side=min(len(tokens), MOST_DOTS),
            targets=tuple(zip(query.tolist(), key.tolist(), strict=True)),
            heads=tuple(sorted(found, key=lambda one: one.head)),
        )

    def looks(
        self, text: str, query: int, key: int, *, off: Sequence[HeadId | str] = (), method: Off = "mean"
    ) -> tuple[Look, ...]:
        """Every head by how much it looks from one token to another, the most first.

        Raises:
            TokenError: see `tokens`.
            ArgumentError: no such head or token, or a key that comes after the query.
        """
        tokens, heads = self.tokens(text), self.named(off)
        self._placed(tokens, query, key)
        if key > query:
            raise ArgumentError(f"token {query} comes before token {key} and sees nothing of it; ask the other way.")
        found: list[Look] = []
        edit = self._edit(tokens, heads, method)

        def visit(attention: Attention) -> Tensor | None:
            place = [torch.tensor([one], device=attention.z.device) for one in (0, query, key)]
            allowed, keys = attention.allowed(*place)
            chance = float(allowed / keys) if float(keys) else 0.0
            for head, value in enumerate(attention.probabilities(*place)[0].tolist()):
                named = HeadId(attention.layer, head, attention.call)
                found.append(Look(head=named, attention=value, chance=chance))
            return None if edit is None else edit(attention)

        self.model.run(self._ids(tokens), visit, stop_at_last=True)
        return tuple(sorted(found, key=lambda look: ranking(look.attention, look.head)))

    def writes(self, text: str, position: int, *, off: Sequence[HeadId | str] = (), method: Off = "mean") -> Writes:
        """What each head adds to the logits at one token; where that cannot be told, why.

        Raises:
            TokenError: see `tokens`.
            ArgumentError: no such head or token.
        """
        tokens, heads = self.tokens(text), self.named(off)
        self._placed(tokens, position)
        if isinstance(self._writing, str):
            return Writes(heads=(), note=None, reason=self._writing)
        return self._writing.at(tokens, position, self._edit(tokens, heads, method))

    @cached_property
    def _writing(self) -> Writing | str:
        try:
            return Writing(self.model)
        except UnsupportedModel as error:
            return str(error)

    def _edit(self, tokens: Tokens, heads: tuple[HeadId, ...], method: Off) -> Visit:
        """What switches these heads off."""
        if not heads:
            return lambda attention: None
        ablator = self._ablator(tokens, method)
        substitute = ablator.substitutes([0], len(tokens))

        def edit(attention: Attention) -> Tensor | None:
            mask = torch.zeros(1, attention.n_heads, dtype=torch.bool)
            for head in heads:
                mask[0, head.head] |= (head.layer, head.call) == (attention.layer, attention.call)
            if not bool(mask.any()):
                return None
            return ablator.edited(attention, mask.to(attention.z.device), substitute(attention))

        return edit

    def _ablator(self, tokens: Tokens, method: Off) -> Ablator:
        if method == "zero":
            return Ablator.of(self.model, probe_tokens([tokens.tolist()]), method="zero")
        length = SHORTEST
        while length < len(tokens):
            length *= 2
        length = min(length, self.limit)
        if length not in self._means:
            corpus = random_tokens(self.model, n_prompts=CORPUS_PROMPTS, length=length, seed=self._seed)
            self._means[length] = Ablator.of(self.model, corpus, method="mean", corpus=corpus)
        return self._means[length]

    def _ids(self, tokens: Tokens) -> Int[Tensor, "1 position"]:
        return torch.from_numpy(tokens)[None].to(self.model.device)

    def _placed(self, tokens: Tokens, *positions: int) -> None:
        if wrong := [one for one in positions if not 0 <= one < len(tokens)]:
            raise ArgumentError(
                f"the text has no token {brief(wrong[0])}; its {len(tokens)} tokens are counted from 0."
            )

    def _next(
        self, rows: Sequence[Float[Tensor, "position vocabulary"]], tokens: Tokens
    ) -> tuple[tuple[Option, ...], ...]:
        """What may come after each token."""
        probable = [row.to(torch.promote_types(row.dtype, torch.float32)).softmax(-1) for row in rows]
        best = torch.cat([row.topk(min(TOP, row.shape[-1])).indices for row in probable], dim=-1).tolist()
        found: list[tuple[Option, ...]] = []
        for position, ids in enumerate(best):
            wanted = torch.tensor(list(dict.fromkeys([*ids, *tokens[position + 1 : position + 2].tolist()])))
            clean, *ablated = (row[position, wanted.to(row.device)].tolist() for row in probable)
            others = ablated[0] if ablated else [None] * len(clean)
            options = [
                Option(id=one, text=self._word(one).text, clean=before, ablated=after)
                for one, before, after in zip(wanted.tolist(), clean, others, strict=True)
            ]
            found.append(tuple(sorted(options, key=lambda option: (-round(option.clean, 6), option.id))))
        return tuple(found)

    def _word(self, token: int) -> Word:
        return Word(id=token, text=token_text(self.model, token))

    def _words(self, tokens: Tokens) -> tuple[Word, ...]:
        """The tokens as they show; bytes of one character, which show as nothing alone, with the character."""
        words = [self._word(one) for one in tokens.tolist()]
        at = 0
        while at < len(words):
            for n in range(2, min(MOST_BYTES, len(words) - at) + 1) if _broken(words[at].text) else ():
                with tokenizing(self.model.id):
                    whole = str(self.model.tokenizer.decode(tokens[at : at + n].tolist()))  # type: ignore[union-attr]
                if not _broken(whole) and len(whole.strip()) == 1:
                    words[at : at + n] = [
                        Word(id=one.id, text=whole, part=(i + 1, n)) for i, one in enumerate(words[at : at + n])
                    ]
                    at += n - 1
                    break
            at += 1
        return tuple(words)


def _broken(text: str | None) -> bool:
    """Whether a tokenizer shows bytes that are no character."""
    return text is not None and "\ufffd" in text


def _pooled(pattern: Float[Tensor, "query key"]) -> Float[Tensor, "row column"]:
    """A pattern in at most `MOST_DOTS` places a side: the largest of each square, so that a thin line is kept."""
    if len(pattern) <= MOST_DOTS:
        return pattern
    return torch.nn.functional.adaptive_max_pool2d(pattern[None, None], MOST_DOTS)[0, 0]
