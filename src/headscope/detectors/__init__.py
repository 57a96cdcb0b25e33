"""What a head may attend to, as sparse (query, key) targets."""

from headscope.detectors.detector import Detector, Targets
from headscope.detectors.standard import (
    DETECTORS,
    current_token,
    duplicate_token,
    first_token,
    induction,
    induction_recent,
    previous_token,
    resolve,
)

__all__ = [
    "DETECTORS",
    "Detector",
    "Targets",
    "current_token",
    "duplicate_token",
    "first_token",
    "induction",
    "induction_recent",
    "previous_token",
    "resolve",
]
