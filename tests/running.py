"""Models of transformers as tests hold them: run and checked without `headscope.load`."""

from __future__ import annotations

from headscope.model import selfcheck as checking
from headscope.model import taps
from headscope.model.sources.transformers import backbone


def forward(hf, route, tokens, visit, **options):
    """`taps.forward` for a transformers model; its own output."""
    return taps.forward(backbone(hf), route, tokens, visit, **options)


def selfcheck(hf):
    """The self-check of a transformers model."""
    return checking.selfcheck(backbone(hf))
