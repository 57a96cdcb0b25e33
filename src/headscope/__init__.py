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
    from headscope.evidence.ablation.each import HeadEffects, ablate_each
    from headscope.evidence.ablation.measure import Ablation, ablate
    from headscope.evidence.behavior.files import load_contrast
    from headscope.evidence.behavior.result import BehaviorResult
    from headscope.evidence.behavior.search import behavior
    from headscope.evidence.circuit.measure import trace_circuit
    from headscope.evidence.circuit.result import Circuit
    from headscope.evidence.compare.measure import compare
    from headscope.evidence.compare.result import Comparison
    from headscope.evidence.composition.measure import Composition, composition
    from headscope.evidence.emergence.measure import Emergence, emergence
    from headscope.evidence.emergence.tracker import Snapshot, Tracker
    from headscope.evidence.icl.measure import InContext, icl
    from headscope.evidence.scan.measure import scan
    from headscope.evidence.scan.result import HeadScore, Scan
    from headscope.evidence.token_space import ov_table, qk_table, virtual_circuit
    from headscope.evidence.verify.measure import verify
    from headscope.evidence.verify.result import Verification
    from headscope.heads import HeadId
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
    from headscope.page.report import report
    from headscope.probes import Probe, probe_text, probe_tokens, repeated_tokens
    from headscope.probes.pairs import Contrast, Pair
    from headscope.render.pattern import pattern_picture, show_pattern
    from headscope.sweeps.mosaic import Mosaic, mosaic
    from headscope.sweeps.store import Store, open_store
    from headscope.sweeps.sweep import Sweep, sweep
    from headscope.training.callback import HeadscopeCallback
    from headscope.training.watch import Trained, train

__version__ = "0.1.0"
import_module("headscope.moved").install()

_HOMES = {
    "Ablation": "headscope.evidence.ablation.measure",
    "BehaviorResult": "headscope.evidence.behavior.result",
    "Check": "headscope.model.selfcheck",
    "Circuit": "headscope.evidence.circuit.result",
    "Comparison": "headscope.evidence.compare.result",
    "Composition": "headscope.evidence.composition.measure",
    "Contrast": "headscope.probes.pairs",
    "DETECTORS": "headscope.detectors",
    "Detector": "headscope.detectors",
    "Emergence": "headscope.evidence.emergence.measure",
    "HeadEffects": "headscope.evidence.ablation.each",
    "HeadId": "headscope.heads",
    "HeadScore": "headscope.evidence.scan.result",
    "HeadscopeCallback": "headscope.training.callback",
    "HeadscopeError": "headscope.errors",
    "InContext": "headscope.evidence.icl.measure",
    "InductionBehavior": "headscope.lesson",
    "InductionHead": "headscope.lesson",
    "InductionHeads": "headscope.lesson",
    "Model": "headscope.model.load",
    "Mosaic": "headscope.sweeps.mosaic",
    "Pair": "headscope.probes.pairs",
    "Probe": "headscope.probes",
    "Scan": "headscope.evidence.scan.result",
    "Snapshot": "headscope.evidence.emergence.tracker",
    "Store": "headscope.sweeps.store",
    "Sweep": "headscope.sweeps.sweep",
    "Targets": "headscope.detectors",
    "Tracker": "headscope.evidence.emergence.tracker",
    "Trained": "headscope.training.watch",
    "Verification": "headscope.evidence.verify.result",
    "ablate": "headscope.evidence.ablation.measure",
    "ablate_each": "headscope.evidence.ablation.each",
    "behavior": "headscope.evidence.behavior.search",
    "compare": "headscope.evidence.compare.measure",
    "composition": "headscope.evidence.composition.measure",
    "compute_induction_score": "headscope.lesson",
    "detect_induction_heads": "headscope.lesson",
    "emergence": "headscope.evidence.emergence.measure",
    "find_induction_heads": "headscope.lesson",
    "icl": "headscope.evidence.icl.measure",
    "load": "headscope.model.load",
    "load_contrast": "headscope.evidence.behavior.files",
    "make_repeated_tokens": "headscope.lesson",
    "mosaic": "headscope.sweeps.mosaic",
    "open_store": "headscope.sweeps.store",
    "ov_table": "headscope.evidence.token_space",
    "pattern_picture": "headscope.render.pattern",
    "probe_text": "headscope.probes",
    "probe_tokens": "headscope.probes",
    "qk_table": "headscope.evidence.token_space",
    "repeated_tokens": "headscope.probes",
    "report": "headscope.page.report",
    "scan": "headscope.evidence.scan.measure",
    "show_pattern": "headscope.render.pattern",
    "sweep": "headscope.sweeps.sweep",
    "trace_circuit": "headscope.evidence.circuit.measure",
    "train": "headscope.training.watch",
    "verify": "headscope.evidence.verify.measure",
    "verify_induction_behavior": "headscope.lesson",
    "virtual_circuit": "headscope.evidence.token_space",
}

__all__ = [
    "DETECTORS",
    "Ablation",
    "BehaviorResult",
    "Check",
    "Circuit",
    "Comparison",
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
    "compare",
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
