"""The colours of everything that is drawn, here and on the page, for a light and a dark ground.

Every kind of colour vision tells them from each other: one hue in even steps of lightness for numbers (`low` to
`high`), and a letter beside each colour that means something. The colour of a verdict or of a role is in its own
record (`evidence.head_types`, `evidence.atlas.roles`). `tests/page/test_theme.py` compares the page's own copy.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Theme:
    """Colours, as #rrggbb, on one ground."""

    ink: str
    """Text that matters."""
    soft: str
    """Labels, ticks, notes."""
    line: str
    """Grid lines and rules."""
    paper: str
    """The ground of a picture."""
    empty: str
    """A place of a map where nothing was measured, and the ground of a pattern."""
    box: str
    """The ground of a node."""
    low: str
    """A value of 0 on a map."""
    high: str
    """A value of 1 on a map."""
    below: str
    """A value of -1 on a map."""
    mark: str
    """What the eye is to find: frames, the step of a change."""
    clean: str
    """Data, and whatever is unchanged; also the page's links."""
    ablated: str
    """Data after an ablation."""
    behind: str
    """Thin curves behind those that matter."""
    runs: tuple[str, str, str, str]
    """Curves of training runs, in order."""


LIGHT = Theme(
    ink="#1b2430",
    soft="#5b6675",
    line="#d5dae1",
    paper="#ffffff",
    empty="#f1f3f6",
    box="#eff3f9",
    low="#eff3f9",
    high="#08306b",
    below="#8c4200",
    mark="#d55e00",
    clean="#0b62a4",
    ablated="#c04a00",
    behind="#b9c4d1",
    runs=("#0b62a4", "#c04a00", "#007a5a", "#9a3f77"),
)
"""On white: what is saved as a picture, printed, or read by day."""

DARK = Theme(
    ink="#e6eaf0",
    soft="#9aa6b5",
    line="#333d4b",
    paper="#171d26",
    empty="#1f2732",
    box="#222c39",
    low="#212a37",
    high="#d6ebff",
    below="#ffbe82",
    mark="#ff9f45",
    clean="#6cb8ff",
    ablated="#ffa35c",
    behind="#46525f",
    runs=("#6cb8ff", "#ffa35c", "#45d6a8", "#f0a3cf"),
)
"""The page where the reader's system is dark."""


GROUND: str = f"max-width:100%;height:auto;background:{LIGHT.paper}"
"""Style of a picture that may be placed on a dark page: its own ground, and no wider than its place."""


def shade(value: float, theme: Theme = LIGHT) -> str:
    """From `low` (0) to `high` (1), as #rrggbb; values outside are cut off."""
    share = min(1.0, max(0.0, value))
    ends = zip(_rgb(theme.low), _rgb(theme.high), strict=True)
    return "#" + "".join(f"{round(a + (b - a) * share):02x}" for a, b in ends)


def _rgb(colour: str) -> tuple[int, int, int]:
    return int(colour[1:3], 16), int(colour[3:5], 16), int(colour[5:7], 16)
