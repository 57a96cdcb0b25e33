"""What every result carries: which model, how it was measured, and a mean with its interval."""

from __future__ import annotations

import functools
import platform
import shlex
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
from jaxtyping import Float

from headscope.heads import Support, Unread
from headscope.model.model import Model
from headscope.stats import LOSS_RESOLUTION, mean_intervals, ratio_interval, share_interval

if TYPE_CHECKING:
    from headscope.model.load import Opened


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelInfo:
    """Which model was measured."""

    id: str
    """Hub id, folder, `demo`, or the class of a model object."""
    revision: str | None
    """Commit of the hub repository, where it is known."""
    family: str
    """Name of the architecture: transformers' own, like `gpt2`, or the class of another module."""
    n_layers: int
    """Decoder layers, with or without attention."""
    n_heads: int
    """Query heads of a layer; the largest number, where layers differ."""
    n_kv_heads: int | None
    """Key-value heads of a layer; None where the model's own code hides them."""
    support: Support
    """The self-check's verdict."""
    reason: str
    """Why that verdict."""
    path: Literal["interface", "hooks", "module"] | None = None
    """How attention is reached: `interface` is our attention function, `hooks` a family's own code, watched; `module`
    any module, watched. None if it cannot be, and in documents older than this field."""
    d_model: int | None = None
    """Width of an embedding; None where no module is one, and in documents older than this field."""
    n_embeddings: int | None = None
    """Token ids that can be read; None in documents older than this field."""
    embedding_corner: tuple[tuple[float, ...], ...] | None = None
    """First and last three numbers of the embeddings of ids 0, 1 and 2, by which a published model is known; None where
    they cannot be read, and in documents older than this field."""
    unread: Unread | None = None
    """Where tokens are also mixed in another way than by these heads, as in a hybrid; None where they are not, and in
    documents older than this field."""

    @classmethod
    def of(cls, model: Opened) -> ModelInfo:
        """What a result keeps of a loaded model."""
        return cls(
            id=model.id,
            revision=model.revision,
            family=model.family,
            n_layers=model.n_layers,
            n_heads=model.n_heads,
            n_kv_heads=model.n_kv_heads,
            support=model.check.support,
            reason=model.check.reason,
            path=model.check.route.path if isinstance(model, Model) else None,
            d_model=model.d_model,
            n_embeddings=model.n_embeddings,
            embedding_corner=model.embedding_corner,
            unread=model.check.unread,
        )

    def unlike(self, other: ModelInfo) -> str:
        """What tells another model from this one, like `n_heads 8, not 12`; empty where they are one."""
        names = ("id", "revision", "family", "n_layers", "n_heads", "n_kv_heads")
        pairs = {name: (getattr(other, name), getattr(self, name)) for name in names}
        return ", ".join(f"{name} {theirs!r}, not {ours!r}" for name, (theirs, ours) in pairs.items() if theirs != ours)


@dataclass(frozen=True, slots=True, kw_only=True)
class Provenance:
    """What else one needs to repeat the measurement."""

    dtype: str
    """Precision of the model's weights."""
    device: str
    """Where it ran."""
    kernels: tuple[str, ...]
    """What computed attention: `flash`, `tiled`, `reference`, or `own` for the model's own code."""
    seed: int | None
    """Seed of the probe; None for the user's own tokens."""
    versions: dict[str, str]
    """Of headscope, torch, transformers and Python."""
    command: str
    """What was run."""

    @classmethod
    def of(cls, model: Model, *, kernels: Iterable[str], seed: int | None) -> Provenance:
        """What a result keeps of the running program."""
        return cls(
            dtype=str(model.dtype).removeprefix("torch."),
            device=str(model.device),
            kernels=tuple(sorted(kernels)),
            seed=seed,
            versions=dict(_versions()),
            command=program(),
        )


@functools.cache
def _versions() -> dict[str, str]:
    """Read once: each is a file of its package."""
    packages = ("headscope", "torch", "transformers")
    return {name: version(name) for name in packages} | {"python": platform.python_version()}


def program() -> str:
    """The running program and its arguments, as a shell reads them; of a notebook, that it is one."""
    path = Path(sys.argv[0])
    if path.stem == "ipykernel_launcher":
        return "a notebook"  # its arguments name a file of the machine, and nothing that was asked
    name = "headscope" if path.parts[-2:] == ("headscope", "__main__.py") else path.name
    return shlex.join([name if name not in ("", "-c") else "python", *sys.argv[1:]])


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """A mean over prompts and its 95% interval; None from a single prompt."""

    mean: float
    """Mean over prompts."""
    ci95: tuple[float, float] | None
    """Over prompts, by `headscope.stats.mean_intervals`; for shares of yes-or-no answers, Wilson's; for ratios,
    Fieller's. Differences of a loss, and what heads take of an effect, are resolved to a stated number of nats: their
    intervals are never narrower on either side."""

    @classmethod
    def of(cls, samples: Float[np.ndarray, " prompt"], *, resolution: float = 0.0) -> Estimate:
        """From one value per prompt; differences of paired values give a paired interval.

        Args:
            samples: The values.
            resolution: No end is nearer to the mean than this: what one prompt in many may do, and none of these did.
        """
        mean, ci95 = mean_intervals(samples)
        if ci95 is None:
            return cls(mean=float(mean), ci95=None)
        low, high = float(ci95[0]), float(ci95[1])
        return cls(mean=float(mean), ci95=(min(low, float(mean) - resolution), max(high, float(mean) + resolution)))

    @classmethod
    def of_loss(cls, samples: Float[np.ndarray, " prompt"]) -> Estimate:
        """Of differences of a loss in nats, resolved to `headscope.stats.LOSS_RESOLUTION`."""
        return cls.of(samples, resolution=LOSS_RESOLUTION)

    @classmethod
    def share(cls, samples: Float[np.ndarray, " prompt"]) -> Estimate:
        """Of yes-or-no answers, 1 or 0, or of their means in independent groups."""
        return cls(mean=float(samples.mean()), ci95=share_interval(samples))

    @classmethod
    def of_ratio(cls, numerator: Float[np.ndarray, " prompt"], denominator: Float[np.ndarray, " prompt"]) -> Estimate:
        """Ratio of two means over the same prompts, with Fieller's interval (`headscope.stats.ratio_interval`)."""
        mean, ci95 = ratio_interval(numerator, denominator)
        return cls(mean=mean, ci95=ci95)


def apart(one: Estimate | None, two: Estimate | None) -> bool:
    """Whether two intervals have nothing in common; not where one is missing."""
    if one is None or two is None or one.ci95 is None or two.ci95 is None:
        return False
    return one.ci95[1] < two.ci95[0] or two.ci95[1] < one.ci95[0]
