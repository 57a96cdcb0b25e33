"""Names for a head and for how well a model is supported: the words every other module shares."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from headscope.errors import ArgumentError, brief

Support = Literal["exact", "degraded", "unsupported"]
"""What the self-check concluded about a model; see `headscope.model.selfcheck`."""

_HEAD = re.compile(r"(?:L(D)H(D)|(D)\.(D))(?:#(D))?".replace("D", "[0-9]{1,9}"))  # \d takes the digits of all scripts


@dataclass(frozen=True, slots=True, order=True)
class HeadId:
    """One attention head. Prints `L5H1`; parses `L5H1` and `5.1`.

    `layer` counts every decoder layer from 0, also those without attention in hybrid models.
    `call` counts from 0 how often the layer's attention has run before in one forward pass; it is 0 in all but
    looped models, where the second pass of layer 5 prints `L5H1#1`.
    """

    layer: int
    head: int
    call: int = 0

    def __str__(self) -> str:
        return f"L{self.layer}H{self.head}" + (f"#{self.call}" if self.call else "")

    __repr__ = __str__

    @classmethod
    def parse(cls, text: str) -> HeadId:
        """Read `L5H1`, `5.1` or `L5H1#1`.

        Raises:
            ArgumentError: the text has another form.
        """
        match = _HEAD.fullmatch(text.strip())
        if match is None:
            raise ArgumentError(f"{brief(repr(text))} is not a head; write layer and head from 0, like L5H1 or 5.1.")
        layer, head = match[1] or match[3], match[2] or match[4]
        return cls(int(layer), int(head), int(match[5] or 0))
