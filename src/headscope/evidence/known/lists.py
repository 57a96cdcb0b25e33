"""Published heads: which models have a list, and how a model is recognised.

A model is recognised by its hub id, if nothing that is known of it says otherwise, or else by the numbers of its
config: family, layers, heads, key-value heads, width and embeddings. Models trained again or further have the same
numbers and other heads, so a match by shape alone is shown as such. Where a list has some of its model's embedding, as
public notebooks print it, a model of that shape and with these numbers is that model, whatever it is called.

The lists are in `lists.toml`, each entry with its source; nothing in them was measured here.
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal, cast

from headscope.heads import HeadId
from headscope.records.common import ModelInfo

Agreement = Literal["agrees", "differs", "not_tested"]
Matched = Literal["id", "weights", "shape"]
SHAPE = ("family", "n_layers", "n_heads", "n_kv_heads", "d_model", "n_embeddings")
"""The numbers of a config that are compared."""
DECIDE = ("family", "n_layers", "n_heads", "d_model")
"""Those by which a model that is called as a list's model shows that it is another, in a folder of that name. The
embedding is none of them: it may have been made larger."""
ROUNDED = 5e-5
"""What four decimals leave open."""
HALF = 2.0**-8
"""What bfloat16 leaves open, of a number's size."""
_CONFIG = {
    "family": ("model_type",),
    "n_layers": ("num_hidden_layers", "n_layer"),
    "n_heads": ("num_attention_heads", "n_head"),
    "n_kv_heads": ("num_key_value_heads", "num_attention_heads", "n_head"),
    "d_model": ("hidden_size", "n_embd"),
    "n_embeddings": ("vocab_size",),
}
"""What `config.json` may call them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class KnownHead:
    """One head that was published, and what an atlas says of it."""

    head: HeadId
    """Which head."""
    model: str
    """Of which model it was published."""
    role: str
    """The role of the atlas that asks for the same."""
    called: str
    """What the source calls it."""
    source: str
    """Paper or repository."""
    checked: bool = True
    """Whether the entry was seen in the source; False where it was only recalled."""
    variant: str | None = None
    """Which kind of the role it must be, for roles that have kinds."""
    matched: Matched | None = None
    """How the model was recognised; None where no model was asked about."""
    agreement: Agreement = "not_tested"
    """Whether the atlas finds the role there."""
    why: str = "no atlas of the model was given"
    """What the agreement rests on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class KnownModel:
    """A model that has a list."""

    name: str
    """For people."""
    ids: tuple[str, ...]
    """Hub ids."""
    shape: dict[str, Any]
    """Numbers of its config, `SHAPE`."""
    heads: tuple[KnownHead, ...]
    """Its heads."""
    embedding_corner: tuple[tuple[float, ...], ...] | None = None
    """As `headscope.records.common.ModelInfo` has it; None where it is not known."""


@cache
def known_models() -> tuple[KnownModel, ...]:
    """Every model with a list."""
    read = tomllib.loads(files("headscope.evidence.known").joinpath("lists.toml").read_text(encoding="utf-8"))
    of: dict[str, list[KnownHead]] = {one["name"]: [] for one in read["model"]}
    for entry in read["list"]:
        called = entry.get("called", entry["role"].replace("_", " "))
        of[entry["model"]] += [
            KnownHead(
                head=HeadId.parse(head),
                model=entry["model"],
                role=entry["role"],
                called=called,
                source=entry["source"],
                checked=entry.get("checked", True),
                variant=entry.get("variant"),
            )
            for head in entry["heads"]
        ]
    return tuple(
        KnownModel(
            name=one["name"],
            ids=tuple(one["ids"]),
            shape=one["shape"],
            heads=tuple(of[one["name"]]),
            embedding_corner=tuple(map(tuple, one["embedding_corner"])) if "embedding_corner" in one else None,
        )
        for one in read["model"]
    )


def matching(
    id: str, shape: dict[str, Any], embedding_corner: tuple[tuple[float, ...], ...] | None = None
) -> tuple[Matched | None, tuple[KnownModel, ...]]:
    """The models with a list that a model may be, and how it was recognised.

    Args:
        id: Hub id, or whatever the model is called.
        shape: Numbers of its config, `SHAPE`; key-value heads may be missing or None, the others must be there.
        embedding_corner: Some of its embedding, where it is known.
    """
    given = {name: value for name, value in shape.items() if value is not None}
    by_id = tuple(
        one
        for one in known_models()
        if id.lower() in [name.lower() for name in one.ids]
        and not any(one.shape[name] != given.get(name, one.shape[name]) for name in DECIDE)
        and (one.embedding_corner is None or embedding_corner is None or _equal(one.embedding_corner, embedding_corner))
    )
    if by_id:
        return "id", by_id
    if not set(SHAPE) - {"n_kv_heads"} <= set(given):
        return None, ()
    by_shape = tuple(one for one in known_models() if all(one.shape[name] == value for name, value in given.items()))
    by_weights = tuple(one for one in by_shape if _equal(one.embedding_corner, embedding_corner))
    if by_weights:
        return "weights", by_weights
    return ("shape", by_shape) if by_shape else (None, ())


def _equal(one: tuple[tuple[float, ...], ...] | None, other: tuple[tuple[float, ...], ...] | None) -> bool:
    """Whether both are known and equal, as far as four decimals and half precision say."""
    if one is None or other is None or [*map(len, one)] != [*map(len, other)]:
        return False
    pairs = [(a, b) for row, its in zip(one, other, strict=True) for a, b in zip(row, its, strict=True)]
    return all(abs(a - b) <= 2 * ROUNDED + HALF * abs(a) for a, b in pairs)


def known_heads(model: ModelInfo) -> tuple[KnownHead, ...]:
    """What was published of a measured model's heads; empty where no list is of it."""
    return _heads(*matching(model.id, {name: getattr(model, name) for name in SHAPE}, model.embedding_corner))


def known_as(model: ModelInfo) -> dict[HeadId, str]:
    """For each head that was published what it is called, with a `?` where only the shape matches."""
    found: dict[HeadId, list[str]] = {}
    for one in known_heads(model):
        found.setdefault(one.head, []).append(one.called + ("" if one.matched != "shape" and one.checked else "?"))
    return {head: ", ".join(dict.fromkeys(names)) for head, names in found.items()}


def remark(model: ModelInfo) -> str:
    """One sentence on where "known as" comes from."""
    heads = known_heads(model)
    names = " or ".join(dict.fromkeys(one.model for one in heads))
    if heads[0].matched == "id":
        return f"known as: published for {names}; `headscope known {model.id}` names the sources."
    if heads[0].matched == "weights":
        return f"known as: published for {names}, whose config and embedding this model has."
    return (
        f"known as: published for {names}, whose config has the same numbers; another model of this shape has other "
        "heads."
    )


def heads_named(model: str) -> tuple[KnownHead, ...]:
    """What was published of the heads of a hub model, or of a folder with a `config.json`."""
    return _heads(*matching(model, _config_shape(Path(model))))


def _heads(matched: Matched | None, models: Sequence[KnownModel]) -> tuple[KnownHead, ...]:
    return tuple(replace(head, matched=matched) for one in models for head in one.heads)


def _config_shape(folder: Path) -> dict[str, Any]:
    """The numbers of a model folder's config; empty where it is none."""
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, RecursionError, ValueError):
        return {}
    held = cast("dict[str, Any]", config) if isinstance(config, dict) else {}
    return {name: next((held[key] for key in keys if key in held), None) for name, keys in _CONFIG.items() if held}
