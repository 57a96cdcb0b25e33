"""What the model reads: repeated random tokens with matched controls, or the user's own tokens and text."""

from headscope.probes.probe import Probe, probe_text, probe_tokens
from headscope.probes.repeated import random_tokens, repeated_tokens

__all__ = ["Probe", "probe_text", "probe_tokens", "random_tokens", "repeated_tokens"]
