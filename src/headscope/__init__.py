"""headscope finds, verifies and explains attention heads in any decoder-only language model.

    import headscope as hs
    scan = hs.scan("gpt2")
    scan.heads("induction")

Names are loaded when first used, so that `import headscope` costs nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from headscope.behaviors.files import load_contrast
    from headscope.behaviors.result import BehaviorResult
    from headscope.behaviors.search import behavior
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
    from headscope.probes.pairs import Contrast, Pair
    from headscope.results import HeadScore, Scan
    from headscope.sweeps.mosaic import Mosaic, mosaic
    from headscope.sweeps.store import Store, open_store
    from headscope.sweeps.sweep import Sweep, sweep
    from headscope.tracking.callback import HeadscopeCallback
    from headscope.tracking.emergence import Emergence, emergence
    from headscope.tracking.tracker import Snapshot, Tracker
    from headscope.tracking.train import Trained, train
    from headscope.types import HeadId

__version__ = "0.1.0"

_HOMES = {
    "Ablation": "headscope.evidence.ablation",
    "BehaviorResult": "headscope.behaviors.result",
    "Check": "headscope.model.selfcheck",
    "Circuit": "headscope.evidence.circuit",
    "Composition": "headscope.evidence.composition",
    "Contrast": "headscope.probes.pairs",
    "DETECTORS": "headscope.detectors",
    "Detector": "headscope.detectors",
    "Emergence": "headscope.tracking.emergence",
    "HeadEffects": "headscope.evidence.every_head",
    "HeadId": "headscope.types",
    "HeadScore": "headscope.results",
    "HeadscopeCallback": "headscope.tracking.callback",
    "HeadscopeError": "headscope.errors",
    "InContext": "headscope.evidence.icl",
    "InductionBehavior": "headscope.lesson",
    "InductionHead": "headscope.lesson",
    "InductionHeads": "headscope.lesson",
    "Model": "headscope.model.load",
    "Mosaic": "headscope.sweeps.mosaic",
    "Pair": "headscope.probes.pairs",
    "Probe": "headscope.probes",
    "Scan": "headscope.results",
    "Snapshot": "headscope.tracking.tracker",
    "Store": "headscope.sweeps.store",
    "Sweep": "headscope.sweeps.sweep",
    "Targets": "headscope.detectors",
    "Tracker": "headscope.tracking.tracker",
    "Trained": "headscope.tracking.train",
    "Verification": "headscope.evidence.verification",
    "ablate": "headscope.evidence.ablation",
    "ablate_each": "headscope.evidence.every_head",
    "behavior": "headscope.behaviors.search",
    "composition": "headscope.evidence.composition",
    "compute_induction_score": "headscope.lesson",
    "detect_induction_heads": "headscope.lesson",
    "emergence": "headscope.tracking.emergence",
    "find_induction_heads": "headscope.lesson",
    "icl": "headscope.evidence.icl",
    "load": "headscope.model.load",
    "load_contrast": "headscope.behaviors.files",
    "make_repeated_tokens": "headscope.lesson",
    "mosaic": "headscope.sweeps.mosaic",
    "open_store": "headscope.sweeps.store",
    "ov_table": "headscope.evidence.token_space",
    "pattern_picture": "headscope.notebook",
    "probe_text": "headscope.probes",
    "probe_tokens": "headscope.probes",
    "qk_table": "headscope.evidence.token_space",
    "repeated_tokens": "headscope.probes",
    "report": "headscope.page.report",
    "scan": "headscope.evidence.attention",
    "show_pattern": "headscope.notebook",
    "sweep": "headscope.sweeps.sweep",
    "trace_circuit": "headscope.evidence.circuit",
    "train": "headscope.tracking.train",
    "verify": "headscope.evidence.verify",
    "verify_induction_behavior": "headscope.lesson",
    "virtual_circuit": "headscope.evidence.token_space",
}

__all__ = [
    "DETECTORS",
    "Ablation",
    "BehaviorResult",
    "Check",
    "Circuit",
    "Composition",
    "Contrast",
    "Detector",
    "Emergence",
    "HeadEffects",
    "HeadId",
    "HeadScore",
    "HeadscopeCallback",
    "HeadscopeError",
    "InContext",
    "InductionBehavior",
    "InductionHead",
    "InductionHeads",
    "Model",
    "Mosaic",
    "Pair",
    "Probe",
    "Scan",
    "Snapshot",
    "Store",
    "Sweep",
    "Targets",
    "Tracker",
    "Trained",
    "Verification",
    "ablate",
    "ablate_each",
    "behavior",
    "composition",
    "compute_induction_score",
    "detect_induction_heads",
    "emergence",
    "find_induction_heads",
    "icl",
    "load",
    "load_contrast",
    "make_repeated_tokens",
    "mosaic",
    "open_store",
    "ov_table",
    "pattern_picture",
    "probe_text",
    "probe_tokens",
    "qk_table",
    "repeated_tokens",
    "report",
    "scan",
    "show_pattern",
    "sweep",
    "trace_circuit",
    "train",
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
