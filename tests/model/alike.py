"""How far two results are apart."""

from __future__ import annotations

APART = ("wall_s", "/command", "/id", "/reason", "/device")
"""Ends of the paths of what differs between two runs."""

CORNER = "/embedding_corner"
"""None of an embedding in parts."""


def numbers(value, at=""):
    """Every leaf of a document by its path."""
    if isinstance(value, (dict, list)):
        for key, one in value.items() if isinstance(value, dict) else enumerate(value):
            yield from numbers(one, f"{at}/{key}")
    else:
        yield at, value


def difference(given, wanted):
    """The largest between two documents, but for how they came about; infinite where something else differs."""
    one, other = (
        {at: leaf for at, leaf in numbers(document) if not at.endswith(APART) and CORNER not in at}
        for document in (given, wanted)
    )
    if set(one) != set(other):
        return float("inf")
    pairs = [(one[at], other[at]) for at in one if one[at] != other[at]]
    if any(not isinstance(a, float) or not isinstance(b, float) for a, b in pairs):
        return float("inf")
    # A q-value of an effect that is nothing but rounding moves by far more than the effect does; the end of a skewed
    # interval of four prompts moves by up to 50 times as much as the prompts' values.
    loose = {at: 100.0 for at in one if at.endswith("q_value") or "/ci95/" in at}
    return max((abs(one[at] - other[at]) / loose.get(at, 1.0) for at in one if one[at] != other[at]), default=0.0)
