"""The public names and their homes: the one list, read by type checkers and by the loader."""

from .detectors import DETECTORS as DETECTORS, Detector as Detector, Targets as Targets
from .errors import HeadscopeError as HeadscopeError
from .evidence.ablation.each import HeadEffects as HeadEffects, ablate_each as ablate_each
from .evidence.ablation.measure import Ablation as Ablation, ablate as ablate
from .evidence.atlas.measure import atlas as atlas
from .evidence.atlas.result import Atlas as Atlas
from .evidence.behavior.files import load_contrast as load_contrast
from .evidence.behavior.result import BehaviorResult as BehaviorResult
from .evidence.behavior.search import behavior as behavior
from .evidence.circuit.measure import trace_circuit as trace_circuit
from .evidence.circuit.result import Circuit as Circuit
from .evidence.compare.measure import compare as compare
from .evidence.compare.result import Comparison as Comparison
from .evidence.composition.measure import composition as composition
from .evidence.composition.result import Composition as Composition
from .evidence.emergence.measure import Emergence as Emergence, emergence as emergence
from .evidence.emergence.tracker import Snapshot as Snapshot, Tracker as Tracker
from .evidence.icl.measure import InContext as InContext, icl as icl
from .evidence.known.agreement import known as known
from .evidence.known.lists import KnownHead as KnownHead
from .evidence.scan.measure import scan as scan
from .evidence.scan.result import HeadScore as HeadScore, Scan as Scan
from .evidence.token_space import ov_table as ov_table, qk_table as qk_table, virtual_circuit as virtual_circuit
from .evidence.verify.measure import verify as verify
from .evidence.verify.result import Verification as Verification
from .heads import HeadId as HeadId
from .lesson import (
    InductionBehavior as InductionBehavior,
    InductionHead as InductionHead,
    InductionHeads as InductionHeads,
    compute_induction_score as compute_induction_score,
    detect_induction_heads as detect_induction_heads,
    find_induction_heads as find_induction_heads,
    make_repeated_tokens as make_repeated_tokens,
    verify_induction_behavior as verify_induction_behavior,
)
from .model.load import Model as Model, load as load
from .model.selfcheck import Check as Check
from .page.report import report as report
from .page.view import PageView as PageView, view as view
from .probes import (
    Probe as Probe,
    probe_text as probe_text,
    probe_tokens as probe_tokens,
    repeated_tokens as repeated_tokens,
)
from .probes.pairs import Contrast as Contrast, Pair as Pair
from .render.pattern import pattern_picture as pattern_picture, show_pattern as show_pattern
from .sweeps.mosaic import Mosaic as Mosaic, mosaic as mosaic
from .sweeps.role_mosaic import RoleMosaic as RoleMosaic, role_mosaic as role_mosaic
from .sweeps.store import Store as Store, open_store as open_store
from .sweeps.sweep import Sweep as Sweep, sweep as sweep
from .training.callback import HeadscopeCallback as HeadscopeCallback
from .training.watch import Trained as Trained, train as train

__version__: str
__all__: list[str]
