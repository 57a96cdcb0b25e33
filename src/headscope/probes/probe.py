"""A probe: the prompts a scan reads, each with an optional control, and how they were made.

Prompts are ragged: each is a plain array of token ids, and padding is cut off before it is kept, so padding never
reaches a model and cannot change a score.
"""

# pyright: reportUnknownArgumentType=false
from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np
from jaxtyping import Int

from headscope.errors import TokenError
from headscope.model.load import Model, Source, load
from headscope.model.tokenizer import tokenizing

# With its underscore the axis binds nothing: prompts of one call may differ in length.
Tokens = Int[np.ndarray, " _position"]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Probe:
    """Prompts, their controls, and their provenance."""

    prompts: tuple[Tokens, ...]
    """Token ids of each prompt."""
    controls: tuple[Tokens, ...] | None
    """For each prompt one of the same length without its repetition, scored at the prompt's own targets; or None."""
    settings: dict[str, Any]
    """How the probe was made, JSON-ready: `kind` and its arguments."""
    more: Callable[[int], Probe] | None = field(default=None, repr=False)
    """Draws this many further prompts, independent of these; None for a user's own tokens."""

    @property
    def n_tokens(self) -> int:
        """Tokens a model reads for this probe, controls included."""
        return sum(map(len, self.prompts)) * (1 if self.controls is None else 2)


def probe_tokens(token_ids: Any, *, attention_mask: Any | None = None) -> Probe:
    """A probe from your own token ids. It has no control.

    Args:
        token_ids: Tensor or array [prompt, position], one list of ids, or a list of such lists of any lengths.
        attention_mask: [prompt, position], 1 or True for tokens and 0 for padding, on either side; padding is cut off.
            Without one, a prompt that begins or ends with the model's padding token is refused where it is read.

    Raises:
        TokenError: no prompt, an empty one, an id that is not a whole number or is negative, or a mask that does
            not fit.
    """
    rows = [_row(row, index, "iu") for index, row in enumerate(_listed(token_ids))]
    masked = {} if attention_mask is None else {"attention_mask": True}
    if attention_mask is not None:
        masks = [_row(row, index, "iufb") for index, row in enumerate(_listed(attention_mask))]
        if [len(mask) for mask in masks] != [len(row) for row in rows]:
            raise TokenError("the attention mask and the token ids differ in shape; give one mask value per token.")
        rows = [_unpadded(row, mask != 0, index) for index, (row, mask) in enumerate(zip(rows, masks, strict=True))]
    _refuse_bad_rows(rows)
    return Probe(prompts=tuple(rows), controls=None, settings={"kind": "tokens", "n_prompts": len(rows)} | masked)


def probe_text(model: Source, text: str | Sequence[str], *, bos: bool = True) -> Probe:
    """A probe from your own text, as the model's tokenizer reads it. It has no control.

    Args:
        model: What `headscope.load` takes, with a tokenizer.
        text: One prompt, or several.
        bos: Start each prompt with the model's start token, where it has one and the tokenizer adds none.

    Raises:
        TokenError: the model has no tokenizer, there is no text, or a text gives no token or is not Unicode.
    """
    model = load(model)
    if model.tokenizer is None:
        raise TokenError(
            f"{model.id} has no tokenizer, so it cannot read text; give token ids, or load it with tokenizer=."
        )
    texts = [text] if isinstance(text, str) else list(text)
    if not texts or any(not one.strip() for one in texts):
        raise TokenError("the text is empty; give at least one prompt of at least one token.")
    for index, one in enumerate(texts):
        try:
            one.encode("utf-8")
        except UnicodeEncodeError as error:
            raise TokenError(
                f"text {index} holds half of a surrogate pair at character {error.start}, which no tokenizer reads; "
                "read the file as UTF-8 with errors='replace'."
            ) from error
    rows = [text_ids(model, one, bos=bos) for one in texts]
    _refuse_bad_rows(rows)
    return Probe(prompts=tuple(rows), controls=None, settings={"kind": "text", "n_prompts": len(rows), "bos": bos})


def text_ids(model: Model, text: str, *, special: bool = True, bos: bool = True) -> Tokens:
    """One text as the model's tokenizer reads it, with one start token where the model has one.

    A text that begins with the start token written out, as a chat template gives it, has its special tokens already:
    the tokenizer adds none.

    Args:
        model: What `headscope.load` takes, with a tokenizer.
        text: Any, of no tokens too.
        special: Whether the tokenizer may add its special tokens.
        bos: Whether a start token is put in front where neither the text nor the tokenizer gives one.
    """
    tokenizer: Any = model.tokenizer
    start, written = model.bos_token_id, getattr(tokenizer, "bos_token", None)
    templated = bool(written) and text.startswith(written)
    with tokenizing(model.id):
        ids = tokenizer(text, add_special_tokens=special and not templated, verbose=False)["input_ids"]
    row = np.asarray(ids, dtype=np.int64)
    if special and bos and start is not None and (len(row) == 0 or row[0] != start):
        row = np.concatenate([[start], row])
    return row


def probe_of(model: Model, given: Any) -> Probe:
    """What a user gives as a probe, as one.

    Args:
        model: Whose tokenizer reads text and chats.
        given: A Probe; text, one or several; token ids as `probe_tokens` takes them; what a tokenizer gives, with its
            attention mask; or a chat, a list of messages with `role` and `content`, in the tokenizer's template.

    Raises:
        TokenError: none of these, or it does not fit; see `probe_tokens` and `probe_text`.
    """
    if isinstance(given, Probe):
        return given
    if isinstance(given, str) or (isinstance(given, (list, tuple)) and given and isinstance(given[0], str)):
        return probe_text(model, given)
    if isinstance(given, Mapping) and "input_ids" in given:
        return probe_tokens(given["input_ids"], attention_mask=given.get("attention_mask"))
    if isinstance(given, (list, tuple)) and given and isinstance(given[0], Mapping):
        if model.tokenizer is None or getattr(model.tokenizer, "chat_template", None) is None:
            raise TokenError(f"{model.id} has no chat template, so it cannot read messages; give text or token ids.")
        with tokenizing(model.id):
            ids = model.tokenizer.apply_chat_template(list(given), tokenize=True, return_dict=True)["input_ids"]
        return probe_tokens(ids)
    return probe_tokens(given)


def check_fits(probe: Probe, model: Model) -> None:
    """Raise TokenError unless every prompt, and its control, fits the model's vocabulary and context."""
    rows = [*probe.prompts, *(probe.controls or ())]
    _refuse_bad_rows(rows)
    if probe.controls is not None and [*map(len, probe.controls)] != [*map(len, probe.prompts)]:
        raise TokenError(
            "the controls and the prompts differ in length; each prompt needs one control of its own length."
        )
    longest = max(map(len, rows))
    if model.max_tokens is not None and longest > model.max_tokens:
        raise TokenError(
            f"a prompt has {longest} tokens, but {model.id} reads at most {model.max_tokens}; "
            "shorten the prompt or the period."
        )
    largest = max(int(row.max()) for row in rows)
    if largest >= model.n_embeddings:
        raise TokenError(
            f"token id {largest} is outside the vocabulary of {model.id}, whose ids run from 0 to "
            f"{model.n_embeddings - 1}; use ids of this model's own tokenizer."
        )
    if probe.settings.get("kind") == "tokens" and not probe.settings.get("attention_mask"):
        _refuse_padding(probe.prompts, model)


def _refuse_padding(rows: Sequence[Tokens], model: Model) -> None:
    """Raise TokenError where a prompt begins or ends with padding.

    A padding token that also starts or ends texts counts where two are together.
    """
    pad = model.pad_token_id
    if pad is None:
        return
    least = 2 if pad in model.start_and_end_ids else 1
    for index, row in enumerate(rows):
        text = np.flatnonzero(row != pad)
        before, after = (int(text[0]), len(row) - 1 - int(text[-1])) if len(text) else (len(row), 0)
        for count, where in ((before, "begins"), (after, "ends")):
            if count >= least and len(row) > 1:
                what = "1 padding token" if count == 1 else f"{count} padding tokens"
                raise TokenError(
                    f"prompt {index} {where} with {what} (id {pad}), which the model would read as text; "
                    "give attention_mask=, or cut it off."
                )


def _listed(token_ids: Any) -> list[Any]:
    """One entry per prompt."""
    if hasattr(token_ids, "detach"):
        token_ids = token_ids.detach().cpu().numpy()
    n_axes = getattr(token_ids, "ndim", None)
    if n_axes is None and isinstance(token_ids, Iterable):
        each = list(cast("Iterable[Any]", token_ids))
        several = not each or isinstance(each[0], (list, tuple)) or hasattr(each[0], "__len__")
        return each if several else [each]
    if n_axes not in (1, 2):
        raise TokenError("token ids must be [prompt, position] or a list of lists of whole numbers.")
    return [token_ids] if n_axes == 1 else list(token_ids)


def _row(row: Any, index: int, kinds: str) -> Tokens:
    if hasattr(row, "detach"):
        row = row.detach().cpu().numpy()
    try:
        array = np.asarray(row)
    except ValueError:
        array = np.asarray(None)
    if array.ndim != 1 or (array.size and array.dtype.kind not in kinds):
        raise TokenError(f"prompt {index} is not a list of whole numbers; token ids must be whole numbers from 0 up.")
    return array.astype(np.int64)


def _unpadded(row: Tokens, kept: np.ndarray, index: int) -> Tokens:
    places = np.flatnonzero(kept)
    if len(places) and not kept[places[0] : places[-1] + 1].all():
        raise TokenError(f"the attention mask of prompt {index} has a hole; padding can be cut off only at either end.")
    return row[kept]


def _refuse_bad_rows(rows: Sequence[Tokens]) -> None:
    if not rows:
        raise TokenError("there is no prompt; give at least one list of token ids.")
    empty = [index for index, row in enumerate(rows) if len(row) == 0]
    if empty:
        raise TokenError(f"prompt {empty[0]} is empty; every prompt needs at least one token.")
    negative = [(index, int(row.min())) for index, row in enumerate(rows) if row.min() < 0]
    if negative:
        index, smallest = negative[0]
        raise TokenError(f"prompt {index} holds token id {smallest}; token ids must be whole numbers from 0 up.")
