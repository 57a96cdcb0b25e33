"""Every error headscope raises on purpose.

    HeadscopeError
    ├── ModelError               the model cannot be used
    │   ├── ModelNotFound        no such hub id or folder, or no weights in it
    │   ├── ModelTooLarge        its weights need more memory than there is
    │   ├── MemoryRanOut         a single prompt needs more memory than there is
    │   ├── UnsafeWeights        pickled weights or remote code, without the flag that allows them
    │   ├── UnsupportedModel     loaded, but its attention heads cannot be seen
    │   └── NonFiniteError       NaN or infinity in weights or scores
    └── ArgumentError            an argument is wrong (also a ValueError)
        ├── ShapeError           a tensor's shape, or a length, does not fit
        └── TokenError           token ids or text that the model cannot read

Each message is one line: what was given, what is needed, what to do. The command line prints it and exits with 2.
"""

from __future__ import annotations

import re


class HeadscopeError(Exception):
    """Root of every error that the user can fix."""


class ModelError(HeadscopeError):
    """The model cannot be used."""


class ModelNotFound(ModelError):
    """No such hub id or folder, or there are no weights in it."""


class ModelTooLarge(ModelError):
    """The weights need more memory than there is."""


class MemoryRanOut(ModelError):
    """A single prompt needs more memory than there is beside the weights."""


class UnsafeWeights(ModelError):
    """Pickled weights or remote code, without the flag that allows them."""


class UnsupportedModel(ModelError):
    """The model was loaded, but its attention heads cannot be seen."""


class NonFiniteError(ModelError):
    """NaN or infinity in weights or scores."""


class ArgumentError(HeadscopeError, ValueError):
    """An argument is wrong."""


class ShapeError(ArgumentError):
    """A tensor's shape, or a length, does not fit."""


class TokenError(ArgumentError):
    """Token ids or text that the model cannot read."""


QUOTED = 200
"""Characters of the user's own input, or of another library's words, that an error repeats at most."""


def brief(text: object) -> str:
    """Something given, as an error may repeat it: on one line, and cut off where it is long."""
    line = " ".join(str(text).split())
    return line if len(line) <= QUOTED else f"{line[:QUOTED]}..."


def clipped(message: str) -> str:
    """An error's line in which a long word, or a long part of a path, is cut off: all that was given may be in it."""
    return re.sub(rf"([^\s/]{{{QUOTED}}})[^\s/]+", r"\1...", message)
