"""headscope finds, verifies and explains attention heads in any decoder-only language model.

    import headscope as hs
    scan = hs.scan("gpt2")
    scan.heads("induction")

Names are loaded when first used, so that `import headscope` costs nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from headscope.detectors import DETECTORS, Detector, Targets
    from headscope.errors import HeadscopeError
    from headscope.evidence.attention import scan
    from headscope.model.load import Model, load
    from headscope.model.selfcheck import Check
    from headscope.probes import Probe, probe_text, probe_tokens, repeated_tokens
    from headscope.results import HeadScore, Scan
    from headscope.types import HeadId

__version__ = "0.1.0"

_HOMES = {
    "Check": "headscope.model.selfcheck",
    "DETECTORS": "headscope.detectors",
    "Detector": "headscope.detectors",
    "HeadId": "headscope.types",
    "HeadScore": "headscope.results",
    "HeadscopeError": "headscope.errors",
    "Model": "headscope.model.load",
    "Probe": "headscope.probes",
    "Scan": "headscope.results",
    "Targets": "headscope.detectors",
    "load": "headscope.model.load",
    "probe_text": "headscope.probes",
    "probe_tokens": "headscope.probes",
    "repeated_tokens": "headscope.probes",
    "scan": "headscope.evidence.attention",
}

__all__ = [
    "DETECTORS",
    "Check",
    "Detector",
    "HeadId",
    "HeadScore",
    "HeadscopeError",
    "Model",
    "Probe",
    "Scan",
    "Targets",
    "load",
    "probe_text",
    "probe_tokens",
    "repeated_tokens",
    "scan",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'headscope' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
