"""Damage to files and documents, drawn at random from a seed.

Bytes are cut off, flipped, overwritten, inserted, removed, moved or zeroed. A JSON document loses, gains or renames a
key, or one of its values becomes something it must not be: of another type, too large, negative, not a number, nested.
"""

from __future__ import annotations

import copy
import json
from random import Random
from typing import Any

ODD: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 7, 2**31, 2**63, 10**30, -(2**63), 0.5, 1e308, -1e-308, float("nan"), float("inf"),
    "", "x", "L1H1", "../../x", "\x00", "\ud800", "x" * 10_000, [], {}, [[]], [None], {"": {}}, [1, "x", None],
)  # fmt: skip
"""What a value may become."""


def damaged_bytes(data: bytes, random: Random) -> bytes:
    """A copy with one kind of damage, sometimes two."""
    for _ in range(random.choice((1, 1, 1, 2))):
        data = _damage(data, random)
    return data


def _damage(data: bytes, random: Random) -> bytes:
    if not data:
        return random.randbytes(random.randint(1, 16))
    # Headers are at the front, where damage is noticed or not, so half of it goes there.
    length = len(data) if random.random() < 0.5 else min(len(data), 256)
    at = random.randrange(length)
    run = min(len(data) - at, random.choice((1, 1, 2, 8, 64, 1024)))
    match random.randrange(8):
        case 0:
            return data[:at]
        case 1:
            flipped = bytearray(data)
            for _ in range(random.choice((1, 1, 4, 32))):
                flipped[random.randrange(length)] ^= 1 << random.randrange(8)
            return bytes(flipped)
        case 2:
            return data[:at] + random.randbytes(run) + data[at + run :]
        case 3:
            return data[:at] + random.randbytes(run) + data[at:]
        case 4:
            return data[:at] + data[at + run :]
        case 5:
            return data[:at] + bytes(run) + data[at + run :]
        case 6:
            return data[:at] + data[at : at + run] + data[at:]
        case _:
            return data[at:] + data[:at]


def damaged_document(document: Any, random: Random) -> Any:
    """A copy of a JSON document with one thing wrong in it, somewhere."""
    document = copy.deepcopy(document)
    places = list(_places(document))
    if not places:
        return random.choice(ODD)
    holder, key = random.choice(places)
    match random.randrange(6):
        case 0:
            del holder[key]
        case 1 if isinstance(holder, dict):
            holder[f"{key}?"] = holder.pop(key)
        case 2 if isinstance(holder, list):
            holder.insert(key, copy.deepcopy(holder[key]))
        case 3:
            holder[key] = [holder[key]]
        case 4 if isinstance(holder[key], (int, float)) and not isinstance(holder[key], bool):
            holder[key] = random.choice((-holder[key], holder[key] + 1, holder[key] * 10, holder[key] / 3))
        case _:
            holder[key] = copy.deepcopy(random.choice(ODD))
    return document


def damaged_json(text: str, random: Random) -> bytes:
    """A document's text with damage, mostly to its values, else to its bytes."""
    if random.random() < 0.25:
        return damaged_bytes(text.encode(), random)
    return json.dumps(damaged_document(json.loads(text), random)).encode()


def _places(document: Any) -> Any:
    """Every (holder, key), the outer ones as likely as all the inner ones beneath them."""
    items = list(document.items() if isinstance(document, dict) else enumerate(document)) if document else []
    for key, value in items:
        yield document, key
        if isinstance(value, (dict, list)):
            yield from _places(value)
