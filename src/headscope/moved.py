"""Modules that live elsewhere since 0.2: the old path still imports for one release, with a warning.

    from headscope.results import Scan   ->   from headscope.evidence.scan.result import Scan

An old module is an alias whose names are looked up in its new homes when they are used, so nothing is loaded early.
"""

from __future__ import annotations

import sys
import warnings
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

HOMES = {
    "types": "heads",
    "documents": "records.codec",
    "results": "evidence.scan.result records.common records.files",
    "figures": "render.figures",
    "heatmap": "render.maps",
    "intervals": "render.effects",
    "diagram": "render.graph",
    "notebook": "render.pattern",
    "evidence.worlds": "interventions.ablation",
    "evidence.choices": "interventions.choices",
    "evidence.path_patching": "interventions.paths",
    "evidence.every_head": "evidence.ablation.each",
    "evidence.attention": "evidence.scan.measure",
    "evidence.verdict": "evidence.verify.verdict",
    "evidence.verification": "evidence.verify.result",
    "evidence.parameters": "evidence.params.measure",
    "evidence.agreement": "evidence.check.measure",
    "behaviors": "evidence.behavior",
    "behaviors.conclusion": "evidence.behavior.conclusion",
    "behaviors.files": "evidence.behavior.files",
    "behaviors.findings": "evidence.behavior.findings",
    "behaviors.measure": "evidence.behavior.measure",
    "behaviors.result": "evidence.behavior.result",
    "behaviors.search": "evidence.behavior.search evidence.behavior.disproof",
    "behaviors.sets": "evidence.behavior.sets",
    "behaviors.swap": "interventions.patch",
    "tracking": "evidence.emergence",
    "tracking.callback": "training.callback",
    "tracking.change": "evidence.emergence.change",
    "tracking.checkpoints": "evidence.emergence.checkpoints",
    "tracking.curves": "evidence.emergence.curves",
    "tracking.emergence": "evidence.emergence.measure",
    "tracking.live": "evidence.emergence.live",
    "tracking.tracker": "evidence.emergence.tracker",
    "tracking.train": "training.watch",
    "probes.twins": "probes.corrupt",
    "explore.desk": "explore.work_queue",
    "sweeps.course": "sweeps.over_steps",
    "lab": "training",
    "lab.checkpoints": "training.checkpoints",
    "lab.config": "training.config",
    "lab.corpus": "probes.corpus",
    "lab.demo": "training.demo",
    "lab.demo_training": "training.demo_training",
    "lab.deferring": "planted.deferring",
    "lab.handbuilt": "planted.handbuilt",
    "lab.handbuilt_rotary": "planted.handbuilt_rotary",
    "lab.markov": "training.markov",
    "lab.measure": "training.measure",
    "lab.recipes": "training.recipes",
    "lab.repeats": "training.repeats",
    "lab.run": "training.run",
    "lab.training": "training.loop",
    "lab.zoo": "planted.zoo",
}
"""Old module -> new homes, both without the leading `headscope.`; where a module was split, several."""


class _Moved(ModuleType):
    """An old module: its names are those of its new homes."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        for home in _homes(self.__name__):
            module = import_module(home)
            if hasattr(module, name):
                return getattr(module, name)
        raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")


def _homes(name: str) -> list[str]:
    return [f"headscope.{home}" for home in HOMES[name.removeprefix("headscope.")].split()]


class _Finder(MetaPathFinder, Loader):
    """Finds the old names; everything else is left to Python's own finders."""

    def find_spec(self, fullname: str, path: Any, target: ModuleType | None = None) -> ModuleSpec | None:
        if fullname.removeprefix("headscope.") not in HOMES or not fullname.startswith("headscope."):
            return None
        return ModuleSpec(fullname, self, is_package=True)

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        warnings.warn(
            f"{spec.name} is now {' and '.join(_homes(spec.name))}; the old path goes with the next release.",
            DeprecationWarning,
            stacklevel=2,
        )
        return _Moved(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        """Nothing runs: names are looked up when used."""


def install() -> None:
    """Let old module paths be imported; once per process."""
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.append(_Finder())
