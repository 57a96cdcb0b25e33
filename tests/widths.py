"""A page at every width and in both colours that it is made for, without opening it again."""

from __future__ import annotations

import itertools

WIDTHS = (1280, 820, 390)
EVERYWHERE = list(itertools.product(WIDTHS, ("light", "dark")))


def turned(page, width, scheme):
    """The page as it is at a width and in a colour, once it has followed."""
    page.set_viewport_size({"width": width, "height": 900})
    page.emulate_media(color_scheme=scheme)
    page.evaluate("new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")
