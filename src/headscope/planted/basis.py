"""Codes of tokens and positions, and random bases: what models built by hand are written in."""

# pyright: reportUnknownArgumentType=false, reportUnknownVariableType=false
from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor


def digit_code(n_values: int, n_digits: int) -> Float[Tensor, "value direction"]:
    """One row of one-hot digits per value; the base is the smallest whose `n_digits` digits are enough.

    `code[m] . code[n]` is the number of digits that m and n share, `n_digits` only when m = n.
    """
    base = 1
    while base**n_digits < n_values:
        base += 1
    values = torch.arange(n_values)
    digits = [values // base**place % base for place in range(n_digits)]
    return torch.cat([torch.nn.functional.one_hot(d, base) for d in digits], dim=1).double()


def position_code(n_positions: int, n_digits: int, back: int = 0) -> Float[Tensor, "position direction"]:
    """Row i is the code of position `i - back`; zero where there is none.

    Position 0 holds the start token and has a direction of its own, so that it shares no digit with any
    other and no head is drawn to it but by its match; the rest are coded by their digits.
    """
    code = torch.block_diag(
        torch.tensor([[math.sqrt(n_digits)]], dtype=torch.float64), digit_code(n_positions - 1, n_digits)
    )
    return torch.cat([torch.zeros(back, code.shape[1], dtype=torch.float64), code[: n_positions - back]])


@dataclass(frozen=True, slots=True)
class Space:
    """The residual stream's named subspaces, before rotation."""

    slices: dict[str, slice]

    @classmethod
    def of(cls, widths: dict[str, int]) -> Space:
        """Subspaces of these widths, one behind the other."""
        ends = list(itertools.accumulate(widths.values()))
        return cls({name: slice(end - width, end) for (name, width), end in zip(widths.items(), ends, strict=True)})

    def __getitem__(self, name: str) -> slice:
        return self.slices[name]

    def width(self, name: str) -> int:
        """Directions of one subspace."""
        return self.slices[name].stop - self.slices[name].start

    @property
    def n_directions(self) -> int:
        """Directions of all of them."""
        return max(where.stop for where in self.slices.values())


def random_basis(n_directions: int, d_model: int, random: torch.Generator) -> Float[Tensor, "direction d_model"]:
    """Orthonormal rows, orthogonal to the all-ones vector, which LayerNorm's centring removes."""
    columns = normal((d_model, n_directions + 1), random)
    columns[:, 0] = 1.0
    return torch.linalg.qr(columns).Q[:, 1:].T


def random_orthogonal(size: int, random: torch.Generator) -> Float[Tensor, "size size"]:
    """A random rotation, perhaps with a reflection."""
    return torch.linalg.qr(normal((size, size), random)).Q


def normal(shape: tuple[int, int], random: torch.Generator) -> Float[Tensor, "row column"]:
    """Standard normal numbers in float64."""
    return torch.randn(shape, generator=random, dtype=torch.float64)


def integer(n_values: int, random: torch.Generator) -> int:
    """Uniform in 0 .. n_values - 1."""
    return int(torch.randint(n_values, (), generator=random))
