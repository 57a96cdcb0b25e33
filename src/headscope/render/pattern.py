"""Attention patterns to look at: CircuitsVis's view in a notebook, and a light still picture.

    show_pattern        every cell can be pointed at; the script (1.3 MB) is in the cell's output
    pattern_picture     an SVG without scripts; a role's places are outlined, by default the induction stripe

Both run the model once and show its exact probabilities. Rows are queries, columns are keys.

CircuitsVis asks the network at every display whether there is one, and then loads its script from elsewhere. Here its
view is built from the script that its package brings: nothing is asked, nothing is fetched, and CircuitsVis itself is
left as it is.

Cost: the pattern of each chosen head, n_tokens^2 numbers. A browser draws every cell of the view, so large ones are
refused, and their limits are written below. A picture leaves out cells below 0.02, which are nearly all.

It misleads past a few dozen tokens: a picture is one prompt, and the eye finds stripes. `scan` measures.
"""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from uuid import uuid4
from zlib import crc32

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from headscope.detectors import Detector
from headscope.detectors.standard import resolve
from headscope.errors import ArgumentError, HeadscopeError, TokenError
from headscope.heads import HeadId
from headscope.model.load import Heads, Model, Source, load
from headscope.model.patterns import patterns
from headscope.probes import probe_text, probe_tokens
from headscope.probes.probe import Tokens, check_fits
from headscope.records.files import write_whole
from headscope.render.plain import markup as escape
from headscope.render.theme import GROUND, LIGHT, shade

MAX_CELLS = 20_000
"""tokens * tokens * (heads + 1) that `show_pattern` draws: the chosen head is drawn twice, small and large. So
many take a browser two seconds."""
MAX_TOKENS = 256
"""Tokens of a picture."""
SHOWN = 0.02
"""Probabilities below this are left out of a picture."""
LABEL = 10
"""Characters of a token's label."""


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class PatternView:
    """CircuitsVis's attention view. A notebook shows it when it is the last value of a cell."""

    html: str
    """A piece of a page, in ASCII: a place and the script that draws into it. It fetches nothing."""
    heads: tuple[HeadId, ...]
    """Whose patterns."""
    n_tokens: int
    """Tokens read."""

    def _repr_html_(self) -> str:
        return self.html

    def __repr__(self) -> str:
        return f"PatternView({', '.join(map(str, self.heads))}; {self.n_tokens} tokens)"


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Picture:
    """A still picture. A notebook shows it when it is the last value of a cell."""

    svg: str
    """One SVG element, without scripts."""
    title: str
    """What it shows."""

    def save(self, path: str | Path) -> Path:
        """Write it to a file, which a browser opens; returns the path."""
        path = Path(path)
        write_whole(path, self.svg.encode())
        return path

    def _repr_svg_(self) -> str:
        return self.svg

    def __repr__(self) -> str:
        return f"Picture({self.title})"


def show_pattern(
    model: Source,
    text_or_tokens: str | Sequence[int] | Any,
    heads: Heads,
    *,
    bos: bool = True,
) -> PatternView:
    """Heads' attention on one prompt, in CircuitsVis's view; needs `headscope[notebook]`.

    Args:
        model: What `headscope.load` takes, or gives.
        text_or_tokens: A text, or the token ids of one prompt.
        heads: Which, like `["L1H1", "0.4"]`.
        bos: Start a text with the model's start token, where it has one.

    Raises:
        HeadscopeError: CircuitsVis is not installed.
        ArgumentError: a head that the model does not have, or more cells than a browser draws.
        TokenError: more than one prompt, or tokens that the model cannot read.
    """
    script = bundled_script()
    model = load(model)
    chosen, tokens = model.named(heads), _tokens(model, text_or_tokens, bos)
    cells = len(tokens) ** 2 * (len(chosen) + 1)
    if cells > MAX_CELLS:
        raise ArgumentError(
            f"{len(chosen)} heads on {len(tokens)} tokens are {cells:,} cells, tokens * tokens * (heads + 1), and "
            f"would freeze a browser; at most {MAX_CELLS:,}. Use fewer heads, a shorter prompt, or pattern_picture."
        )
    found = _patterns(model, tokens, chosen)
    props = {
        "attention": [found[head].round(4).tolist() for head in chosen],
        "attentionHeadNames": [str(head) for head in chosen],
        "maxValue": 1,
        "minValue": -1,
        "tokens": token_labels(model, tokens),
    }
    return PatternView(html=_view(script, "AttentionHeads", props), heads=chosen, n_tokens=len(tokens))


def pattern_picture(
    model: Source,
    text_or_tokens: str | Sequence[int] | Any,
    heads: Heads,
    *,
    mark: Detector | str | None = "induction",
    bos: bool = True,
) -> Picture:
    """Heads' attention on one prompt, as a still picture with a role's places outlined.

    Args:
        model: What `headscope.load` takes, or gives.
        text_or_tokens: A text, or the token ids of one prompt, of at most 256 tokens.
        heads: Which, like `["L1H1", "0.4"]`; one panel each.
        mark: Role whose targets are outlined: a name, like `previous_token`, or a `Detector`; None for no outline.
        bos: Start a text with the model's start token, where it has one.

    Raises:
        ArgumentError: a head that the model does not have, an unknown role, or too many tokens.
        TokenError: more than one prompt, or tokens that the model cannot read.
    """
    model = load(model)
    chosen, tokens = model.named(heads), _tokens(model, text_or_tokens, bos)
    if len(tokens) > MAX_TOKENS:
        raise ArgumentError(
            f"{len(tokens)} tokens are too many for a picture, which shows at most {MAX_TOKENS}; use a shorter prompt, "
            "or measure it with scan."
        )
    role = None if mark is None else resolve([mark])[0]
    places: list[tuple[int, int]] = []
    if role is not None:
        targets = role.targets(tokens)
        places = list(zip(targets.query.tolist(), targets.key.tolist(), strict=True))
    found = _patterns(model, tokens, chosen)
    labels = token_labels(model, tokens)
    panels = [_Panel(str(head), found[head], labels, places, None if role is None else role.name) for head in chosen]
    return Picture(
        svg=_svg(panels),
        title=f"attention of {', '.join(map(str, chosen))} on {len(tokens)} tokens"
        + ("" if role is None else f", {role.name} outlined"),
    )


def token_label(text: str) -> str:
    """A token on one line: spaces as `·`, what cannot be seen as an escape, at most 10 characters."""
    shown = "".join(_visible(one) for one in text)
    if shown and unicodedata.combining(shown[0]):
        shown = "◌" + shown
    return shown if len(shown) <= LABEL else shown[: LABEL - 1] + "…"


def _visible(one: str) -> str:
    if one == " ":
        return "·"
    # Other blanks, controls, marks that turn the direction of writing, surrogates, what has no meaning yet.
    if unicodedata.category(one)[0] in "CZ":
        return one.encode("unicode_escape").decode()
    return one


def token_labels(model: Model, tokens: Tokens) -> list[str]:
    """Each token on one line, or its id where there is no tokenizer."""
    if model.tokenizer is None:
        return [str(one) for one in tokens.tolist()]
    return [token_label(str(model.tokenizer.decode([one]))) for one in tokens.tolist()]


def _tokens(model: Model, given: Any, bos: bool) -> Tokens:
    probe = probe_text(model, given, bos=bos) if isinstance(given, str) else probe_tokens(given)
    if len(probe.prompts) != 1:
        raise TokenError(f"{len(probe.prompts)} prompts were given; a pattern is that of one: pass one of them.")
    check_fits(probe, model)
    return probe.prompts[0]


def _patterns(model: Model, tokens: Tokens, heads: Sequence[HeadId]) -> dict[HeadId, Float[np.ndarray, "query key"]]:
    found: dict[HeadId, np.ndarray] = {}

    def see(head: HeadId, pattern: Tensor) -> None:
        found[head] = pattern[0].float().cpu().numpy()

    patterns(model, torch.from_numpy(tokens)[None].to(model.device), see, heads)
    return found


# ---- the view


def bundled_script() -> str:
    """CircuitsVis's script as its package brings it, fit for a script element; the package is not imported."""
    package = find_spec("circuitsvis")
    bundle = None if package is None or package.origin is None else Path(package.origin).parent / "dist/cdn/iife.js"
    if bundle is None or not bundle.is_file():
        raise HeadscopeError(
            "show_pattern needs CircuitsVis, which is not installed; run `pip install 'headscope[notebook]'`, "
            "or use pattern_picture."
        )
    # A script element ends at the first `</script`, even in a string; there `<\/` means `</`.
    code = bundle.read_text(encoding="utf-8").partition("//# sourceMappingURL")[0].replace("</script", "<\\/script")
    assert code.isascii(), "an encoding could spoil it"
    assert "<!--" not in code, "after it a script element ends elsewhere"
    return code


def _view(code: str, element: str, props: dict[str, Any]) -> str:
    data = json.dumps(props).replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
    place = f"headscope-{uuid4().hex[:12]}"
    # Run once on a page, however many views it has: a second run would complain, at length, of the first.
    once = f"globalThis.headscopeCircuitsVis{crc32(code.encode()):08x}"
    return (
        f'<div id="{place}" style="margin:15px 0;max-width:900px;overflow:auto;background:{LIGHT.paper};'
        f'color:{LIGHT.ink}"></div>\n'
        f'<script type="module">\n{once} ??= (() => {{\n{code}\nreturn CircuitsVis; }})();\n'
        f'{once}.render("{place}", {once}.{element}, {data});\n</script>'
    )


# ---- the picture


@dataclass(frozen=True, slots=True)
class _Panel:
    title: str
    pattern: Float[np.ndarray, "query key"]
    labels: list[str]
    places: list[tuple[int, int]]
    role: str | None


def _svg(panels: list[_Panel]) -> str:
    n = len(panels[0].labels)
    cell = 15 if n <= 30 else max(3, round(450 / n))
    every = max(1, -(-11 // cell))  # a label needs 11 units
    margin = 14 + 6.6 * max(map(len, panels[0].labels))
    panel_w, panel_h = margin + n * cell + 24, 34 + n * cell + margin
    columns = max(1, min(len(panels), int(1150 // panel_w)))
    rows = -(-len(panels) // columns)
    width, height = max(columns * panel_w, 260), rows * panel_h + 22
    body = [
        _panel(panel, index % columns * panel_w, index // columns * panel_h, cell, every, margin)
        for index, panel in enumerate(panels)
    ]
    role = panels[0].role
    key = "row: query, column: key; darker: more attention" + ("" if role is None else f"; outlined: {role}")
    body.append(f'<text x="12" y="{height - 8:.0f}" fill="{LIGHT.soft}">{escape(key)}</text>')
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:.0f} {height:.0f}" width="{width:.0f}" '
        f'role="img" style="{GROUND}" font-family="ui-monospace,monospace" '
        f'font-size="11">'
        f"{''.join(body)}</svg>"
    )


def _panel(panel: _Panel, left: float, top: float, cell: int, every: int, margin: float) -> str:
    n = len(panel.labels)
    x0, y0, side = margin, 26, n * cell
    parts = [
        f'<g transform="translate({left:.0f},{top:.0f})">'
        f'<text x="{x0:.0f}" y="17" font-size="13" font-weight="600" fill="{LIGHT.ink}">{escape(panel.title)}</text>'
        f'<path d="M{x0:.0f} {y0}v{side}h{side}z" fill="{LIGHT.empty}"/>'
    ]
    for place, label in enumerate(panel.labels):
        if place % every == 0:
            middle = (place + 0.5) * cell
            shown = escape(label)
            parts.append(
                f'<text x="{x0 - 5:.0f}" y="{y0 + middle + 4:.1f}" text-anchor="end" fill="{LIGHT.soft}">{shown}</text>'
                f'<text transform="translate({x0 + middle + 4:.1f},{y0 + side + 6}) rotate(-90)" text-anchor="end" '
                f'fill="{LIGHT.soft}">{shown}</text>'
            )
    for query, key in np.argwhere(panel.pattern >= SHOWN).tolist():
        value = float(panel.pattern[query, key])
        parts.append(
            f'<rect x="{x0 + key * cell:.0f}" y="{y0 + query * cell}" width="{cell}" height="{cell}" '
            f'fill="{shade(value)}">{_note(panel, query, key)}</rect>'
        )
    edge, stroke = (0.5, 1.6) if cell > 6 else (-0.6, 0.8)  # around small cells, which an outline within would hide
    for query, key in panel.places:
        parts.append(
            f'<rect x="{x0 + key * cell + edge:.1f}" y="{y0 + query * cell + edge:.1f}" '
            f'width="{cell - 2 * edge:.1f}" height="{cell - 2 * edge:.1f}" fill="none" stroke="{LIGHT.mark}" '
            f'stroke-width="{stroke}" pointer-events="none"/>'
        )
    return "".join([*parts, "</g>"])


def _note(panel: _Panel, query: int, key: int) -> str:
    """What a reader sees on pointing at a cell."""
    value = float(panel.pattern[query, key])
    if value < 0.1:
        return ""
    line = f"{panel.title}: {panel.labels[query]} ({query}) → {panel.labels[key]} ({key}): {value:.2f}"
    return f"<title>{escape(line)}</title>"
