"""A window of the browser, whose pages are lent to one test after another.

A new window costs a second of processor time, a page that is emptied and used again a third of that. Lent again it is a
page without content, script or listener; its size and colour are what the next test asks for. Each server of a test has
a port of its own, and with it a storage of its own. Nothing moves smoothly: what is clicked next stays where it is.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from playwright.sync_api import Browser, Page


class Window:
    """`options` are those of `browser.new_context`."""

    def __init__(self, browser: Browser, **options: Any) -> None:
        self._context = browser.new_context(reduced_motion="reduce", **options)
        self._pages: list[Page] = []
        self._lent: list[dict[str, Callable[..., None]]] = []

    def page(self, *, width: int, dark: bool, **listeners: Callable[..., None]) -> Page:
        """An empty page, 900 high; what listens to it goes by the event's name."""
        if len(self._lent) == len(self._pages):
            self._pages.append(self._context.new_page())
        page = self._pages[len(self._lent)]
        page.set_viewport_size({"width": width, "height": 900})
        page.emulate_media(media="null", color_scheme="dark" if dark else "light")
        for event, listener in listeners.items():
            page.on(event, listener)  # pyright: ignore
        self._lent.append(listeners)
        return page

    def take_back(self) -> None:
        """Empty what was lent, and close what a test opened beside it."""
        for page, listeners in zip(self._pages, self._lent, strict=False):
            for event, listener in listeners.items():
                page.remove_listener(event, listener)
            page.goto("about:blank")
        self._lent.clear()
        for page in self._context.pages:
            if page not in self._pages:
                page.close()

    def close(self) -> None:
        """Close it and its pages."""
        self._context.close()
