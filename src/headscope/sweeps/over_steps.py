"""How a role emerged over the revisions of one model in a store: the strongest head at each step, and the phase change.

    steps of `org/model`     in the names of its revisions: step1000 is 1000
    steps of a run's folder  in the names of the folders in it: checkpoint-500 is 500

Names are read as `headscope.emergence` reads them (`headscope.evidence.emergence.checkpoints.step_of`).
Nothing is measured: the store's scans are read. `headscope.emergence` measures checkpoints, and more of each.
"""

# pyright: reportUnknownArgumentType=false
from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import TYPE_CHECKING, Any

from headscope.errors import ArgumentError
from headscope.evidence.emergence.change import Change, phase_change
from headscope.evidence.emergence.checkpoints import step_of
from headscope.heads import HeadId
from headscope.records.common import Estimate

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class RoleOverSteps:
    """One role over the steps of a run."""

    model: str
    """Hub id, or the folder that holds the checkpoints."""
    detector: str
    """Which role."""
    period: int | None
    """Length of the repeated run that all scans read: another length gives the same head another score."""
    steps: tuple[int, ...]
    """In order."""
    best: tuple[HeadId, ...]
    """The strongest head at each step."""
    scores: tuple[Estimate, ...]
    """Its score."""
    change: Change
    """The phase change of these scores, or why there is none to tell."""
    missing: dict[str, str]
    """Revisions whose scan failed, and why."""

    def __repr__(self) -> str:
        found = self.change.found
        what = "no phase change" if found is None else f"phase change at step {found.step.mean:.0f}"
        on = "" if self.period is None else f", runs of about {self.period} tokens,"
        return f"RoleOverSteps({self.model}: {self.detector}{on} over {len(self.steps)} steps, {what})"


def over_steps(
    jobs: Sequence[dict[str, Any]], scans: pd.DataFrame, model: str, *, detector: str, store: str
) -> RoleOverSteps:
    """Follow a role through the revisions of a model.

    Args:
        jobs: Rows of a store's table `jobs`, all with the same settings.
        scans: Its table `scan`.
        model: Hub id, or the folder that holds the checkpoints.
        detector: Which role.
        store: The store's path, for messages.

    Raises:
        ArgumentError: the store has no scan of this role of that model, or two of one step.
    """
    own = [job for job in jobs if job["what"] == "scan" and _of(job, model) is not None]
    by_job: dict[Any, Any] = dict(iter(scans[scans["detector"] == detector].groupby("job")))
    found: dict[int, tuple[HeadId, Estimate]] = {}
    missing: dict[str, str] = {}
    periods = {json.loads(job["settings"]).get("period") for job in own}
    if len(periods) > 1:
        lengths = ", ".join(sorted(map(str, periods)))
        raise ArgumentError(
            f"the scans of {model!r} in the store {store!r} read runs of different lengths ({lengths}), "
            "whose scores are not one curve; keep each period in a store of its own."
        )
    for job in own:
        name = str(_of(job, model))
        step = step_of(name)
        if job["status"] == "failed" or step is None:
            missing[name] = job["reason"] or "its name holds no step"
            continue
        if job["job"] not in by_job:
            continue
        if step in found:
            raise ArgumentError(
                f"the store {store!r} has two scans of step {step} of {model!r}; keep other settings, or "
                "checkpoints that were written again, in a store of their own."
            )
        best = by_job[job["job"]].sort_values(["mean", "layer", "head"], ascending=[False, True, True]).iloc[0]
        ends = None if best[["ci_low", "ci_high"]].isna().any() else (float(best["ci_low"]), float(best["ci_high"]))
        head = HeadId(int(best["layer"]), int(best["head"]), int(best["call"]))
        found[step] = head, Estimate(mean=float(best["mean"]), ci95=ends)
    if not found:
        raise ArgumentError(f"the store {store!r} has no scan of {detector!r} of {model!r}; sweep its revisions.")
    steps = sorted(found)
    scores = [found[step][1] for step in steps]
    ends = [one.ci95 for one in scores if one.ci95 is not None]
    return RoleOverSteps(
        model=model,
        detector=detector,
        period=next(iter(periods)),
        steps=tuple(steps),
        best=tuple(found[step][0] for step in steps),
        scores=tuple(scores),
        change=phase_change(steps, [one.mean for one in scores], ends if len(ends) == len(scores) else None),
        missing=missing,
    )


def _of(job: dict[str, str | None], model: str) -> str | None:
    """What names the checkpoint among those of a model: its revision, or its folder; None for another model's."""
    name = str(job["model"])
    if name == model:
        return job["revision"]
    place = PurePath(name)
    return place.name if place.is_absolute() and place.parent == PurePath(model) else None
