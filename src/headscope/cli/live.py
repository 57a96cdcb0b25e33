"""The live view of a training run on stderr: a bar, the losses, and the curves of the three figures that matter.

On a terminal it is drawn in place; elsewhere each look at the model is a line.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable, Mapping
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from rich.console import Console, Group
from rich.live import Live
from rich.padding import Padding
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from headscope.render.plain import console as terminal
from headscope.render.plain import say
from headscope.training.run import is_done

if TYPE_CHECKING:
    from headscope.training.config import TrainConfig
    from headscope.training.run import Row

WIDTH = 28
"""Columns of the bar and of the longest curve."""
RECENT = 40
"""Steps whose pace predicts the rest."""
_BLOCKS = "▁▂▃▄▅▆▇"


class Screen:
    """Follows one run. A context: on exit the last picture stays.

    Args:
        config: Of the run.
        console: Where to draw; stderr if None.
    """

    def __init__(self, config: TrainConfig, *, console: Console | None = None) -> None:
        self.config = config
        self.console: Console = console or terminal(stderr=True)
        self.rows: list[Row] = []
        self.done: int = 0
        self.losses: dict[str, float] = {}
        self._stamps: deque[tuple[int, float]] = deque(maxlen=RECENT)
        self._live: Live | None = None

    def __enter__(self) -> Screen:
        if self.console.is_terminal:
            self._live = Live(self, console=self.console, refresh_per_second=8, transient=False)
            self._live.start()
        else:
            say(_title(self.config), err=True)
        return self

    def __exit__(self, *error: object) -> None:
        if self._live is not None:
            self._live.stop()

    def row(self, row: Row) -> None:
        """A look at the model."""
        self.rows.append(row)
        self.done = max(self.done, row.step)
        if self._live is None:
            say(_line(row), err=True, flush=True)

    def step(self, step: int, losses: Mapping[str, float]) -> None:
        """A step of training."""
        self._stamps.append((step, time.monotonic()))
        self.done = step
        for kind, loss in losses.items():
            # A mean over some ten steps: single batches jump.
            self.losses[kind] = loss if kind not in self.losses else 0.9 * self.losses[kind] + 0.1 * loss

    def left_s(self) -> float | None:
        """Seconds that the steps still to do take at the present pace; None before there is one."""
        if len(self._stamps) < 2:
            return None
        (first, began), (last, now) = self._stamps[0], self._stamps[-1]
        return (self.config.steps - self.done) * (now - began) / (last - first)

    def __rich__(self) -> Any:
        parts: list[Any] = [Text(_title(self.config), style="bold"), Text(), self._bar(), Text(), self._figures()]
        return Padding(Group(*parts), (1, 2))

    def _bar(self) -> Table:
        table = Table.grid(padding=(0, 2))
        most = "at most " if self.config.preset.until else ""
        ended = bool(self.rows) and is_done(self.rows, self.config.preset.until, steps=self.config.steps)
        left = self.left_s()
        if ended:
            where, when = f"{self.done:,} steps", f"took {_duration(self.rows[-1].wall_s)}"
        else:
            where = f"step {self.done:,} of {self.config.steps:,}"
            when = "" if left is None else f"{most}{_duration(left)} left"
        if not self.rows and self.config.preset.reads_text:
            when = "reading the source ..."
        total = self.done if ended else self.config.steps
        bar = ProgressBar(total=total, completed=self.done, width=WIDTH, complete_style="cyan", finished_style="green")
        table.add_row(bar, Text(where), Text(when, style="dim"))
        return table

    def _figures(self) -> Table:
        table = Table.grid(padding=(0, 2))
        if self.rows:
            figures = [row.figures for row in self.rows]
            last = figures[-1]
            stripes = [one.induction.score for one in figures]
            previous = [one.previous_token.score for one in figures]
            losses = [one.second_copy_loss_nats for one in figures]
            for name, head, value, curve, top, style in (
                ("induction", str(last.induction.head), f"{stripes[-1]:.2f}", stripes, 1.0, "cyan"),
                ("previous token", str(last.previous_token.head), f"{previous[-1]:.2f}", previous, 1.0, "cyan"),
                ("second copy", "", f"{losses[-1]:.2f} nats", losses, max(losses), "yellow"),
            ):
                table.add_row(
                    Text(name, style="dim"), Text(head, style="bold"), Text(value), Text(spark(curve, top), style=style)
                )
        for kind, loss in self.losses.items():
            table.add_row(Text(f"loss on {kind}", style="dim"), "", Text(f"{loss:.2f} nats"), "")
        return table


def spark(values: Iterable[float], top: float) -> str:
    """Values from 0 to `top` as a row of blocks; of a long row the mean of each stretch."""
    values = list(values)
    if not values:
        return ""
    stretches = min(len(values), WIDTH)
    bounds = [round(i * len(values) / stretches) for i in range(stretches + 1)]
    means = [sum(values[a:b]) / (b - a) for a, b in pairwise(bounds)]
    return "".join(_BLOCKS[min(len(_BLOCKS) - 1, int(len(_BLOCKS) * max(0.0, one) / top))] for one in means)


def _title(config: TrainConfig) -> str:
    layers = "1 layer" if config.layers == 1 else f"{config.layers} layers"
    heads = "1 head" if config.heads == 1 else f"{config.heads} heads"
    return (
        f"{config.recipe}: {layers} of {heads}, width {config.d_model}, {config.positions} positions, "
        f"seed {config.seed}, {config.device}"
    )


def _line(row: Row) -> str:
    figures = row.figures
    losses = "".join(f"  {kind} {loss:.2f}" for kind, loss in row.loss_nats.items())
    return (
        f"step {row.step:5d}  {row.wall_s:5.0f} s  induction {figures.induction.head} {figures.induction.score:.2f}  "
        f"previous token {figures.previous_token.head} {figures.previous_token.score:.2f}  "
        f"second copy {figures.second_copy_loss_nats:.2f}{losses}"
    )


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min"
