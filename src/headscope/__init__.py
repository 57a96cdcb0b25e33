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
    from headscope.evidence.ablation import Ablation, ablate
    from headscope.evidence.attention import scan
    from headscope.evidence.circuit import Circuit, trace_circuit
    from headscope.evidence.composition import Composition, composition
    from headscope.evidence.every_head import HeadEffects, ablate_each
    from headscope.evidence.icl import InContext, icl
    from headscope.evidence.token_space import ov_table, qk_table, virtual_circuit
    from headscope.evidence.verification import Verification
    from headscope.evidence.verify import verify
    from headscope.lesson import (
        InductionBehavior,
        InductionHead,
        InductionHeads,
        compute_induction_score,
        detect_induction_heads,
        find_induction_heads,
        make_repeated_tokens,
        verify_induction_behavior,
    )
    from headscope.model.load import Model, load
    from headscope.model.selfcheck import Check
    from headscope.notebook import pattern_picture, show_pattern
    from headscope.page.report import report
    from headscope.probes import Probe, probe_text, probe_tokens, repeated_tokens
    from headscope.results import HeadScore, Scan
    from headscope.types import HeadId

__version__ = "0.1.0"

_HOMES = {
    "Ablation": "headscope.evidence.ablation",
    "Check": "headscope.model.selfcheck",
    "Circuit": "headscope.evidence.circuit",
    "Composition": "headscope.evidence.composition",
    "DETECTORS": "headscope.detectors",
    "Detector": "headscope.detectors",
    "HeadEffects": "headscope.evidence.every_head",
    "HeadId": "headscope.types",
    "HeadScore": "headscope.results",
    "HeadscopeError": "headscope.errors",
    "InContext": "headscope.evidence.icl",
    "InductionBehavior": "headscope.lesson",
    "InductionHead": "headscope.lesson",
    "InductionHeads": "headscope.lesson",
    "Model": "headscope.model.load",
    "Probe": "headscope.probes",
    "Scan": "headscope.results",
    "Targets": "headscope.detectors",
    "Verification": "headscope.evidence.verification",
    "ablate": "headscope.evidence.ablation",
    "ablate_each": "headscope.evidence.every_head",
    "composition": "headscope.evidence.composition",
    "compute_induction_score": "headscope.lesson",
    "detect_induction_heads": "headscope.lesson",
    "find_induction_heads": "headscope.lesson",
    "icl": "headscope.evidence.icl",
    "load": "headscope.model.load",
    "make_repeated_tokens": "headscope.lesson",
    "ov_table": "headscope.evidence.token_space",
    "pattern_picture": "headscope.notebook",
    "probe_text": "headscope.probes",
    "probe_tokens": "headscope.probes",
    "qk_table": "headscope.evidence.token_space",
    "repeated_tokens": "headscope.probes",
    "report": "headscope.page.report",
    "scan": "headscope.evidence.attention",
    "show_pattern": "headscope.notebook",
    "trace_circuit": "headscope.evidence.circuit",
    "verify": "headscope.evidence.verify",
    "verify_induction_behavior": "headscope.lesson",
    "virtual_circuit": "headscope.evidence.token_space",
}

__all__ = [
    "DETECTORS",
    "Ablation",
    "Check",
    "Circuit",
    "Composition",
    "Detector",
    "HeadEffects",
    "HeadId",
    "HeadScore",
    "HeadscopeError",
    "InContext",
    "InductionBehavior",
    "InductionHead",
    "InductionHeads",
    "Model",
    "Probe",
    "Scan",
    "Targets",
    "Verification",
    "ablate",
    "ablate_each",
    "composition",
    "compute_induction_score",
    "detect_induction_heads",
    "find_induction_heads",
    "icl",
    "load",
    "make_repeated_tokens",
    "ov_table",
    "pattern_picture",
    "probe_text",
    "probe_tokens",
    "qk_table",
    "repeated_tokens",
    "report",
    "scan",
    "show_pattern",
    "trace_circuit",
    "verify",
    "verify_induction_behavior",
    "virtual_circuit",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'headscope' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
