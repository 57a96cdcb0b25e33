"""Make the docs' pictures of the page again.

    python -m scripts.pictures

Serves `demo` as `headscope explore` does, opens the page in Chromium without a window, light and dark, and takes the
picture of its upper part; the report is that server's own, written to a file and opened from there. Colours are reduced
to 128, which keeps each file below 150 kB. The figures are those that `plot()` gives, at the width of two columns.

Cost: about a minute.
"""

from __future__ import annotations

import argparse
import http.client
import io
import json
import secrets
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

from PIL import Image
from playwright.sync_api import Browser, Page, sync_playwright

import headscope as hs
from headscope.cli.quiet import silence
from headscope.explore.reading import Reader
from headscope.explore.server import listening, server_of
from headscope.explore.starting import SENTENCE
from headscope.page.report import write_page
from scripts.browser import find

FOLDER = Path(__file__).parents[1] / "docs" / "pictures"
PAGES = ("explore-light.png", "explore-dark.png", "report-light.png", "report-dark.png")
FIGURES = ("figure-scan.png", "figure-verify.png", "figure-circuit.png")
PICTURES = (*PAGES, *FIGURES)
WIDTH_IN, DPI = 6.75, 160
WIDTH, HEIGHT = 1280, 900
COLOURS = 128


def main() -> None:
    """Make all of them."""
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    silence()
    token = secrets.token_urlsafe(32)
    with listening(0) as listener:
        port = listener.getsockname()[1]
        server = server_of(Reader(hs.load("demo")), port=port, token=token)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            with tempfile.TemporaryDirectory() as folder:
                address = write_page(report(port, token), Path(folder) / "report.html").as_uri()
                take({"report": address, "explore": f"http://127.0.0.1:{port}/#token={token}"})
        finally:
            server.should_exit = True
            thread.join()
    draw()


def report(port: int, token: str) -> dict[str, Any]:
    """The server's report, once it is there."""
    while True:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        connection.request("GET", "/api/report", headers={"Authorization": f"Bearer {token}"})
        answer = connection.getresponse()
        document = json.loads(answer.read())
        connection.close()
        if answer.status != 202:
            assert answer.status == 200, document
            return document
        time.sleep(0.5)


def take(addresses: dict[str, str]) -> None:
    """Open each page and keep its picture."""
    FOLDER.mkdir(exist_ok=True)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=find(), args=["--no-sandbox"])
        for name in PAGES:
            kind, theme = name.removesuffix(".png").split("-")
            shot = picture(browser, kind, theme, addresses[kind])
            keep(name, shot)
        browser.close()


def draw() -> None:
    """The figures that results draw of themselves."""
    model = hs.load("demo")
    judged = hs.verify(model)
    results = {"scan": hs.scan(model), "verify": judged, "circuit": hs.trace_circuit(model, verification=judged)}
    for name in FIGURES:
        kind = name.removesuffix(".png").split("-")[1]
        drawn = io.BytesIO()
        results[kind].plot(width_in=WIDTH_IN).savefig(drawn, format="png", dpi=DPI)
        keep(name, drawn.getvalue(), colours=None)  # a dot of few pixels would lose its colour to its neighbours


def keep(name: str, shot: bytes, *, colours: int | None = COLOURS) -> None:
    """Write a picture, with fewer colours where it has many."""
    path = FOLDER / name
    image = Image.open(io.BytesIO(shot)).convert("RGB")
    if colours is not None:
        image = image.quantize(colours, dither=Image.Dither.NONE)
    image.save(path, optimize=True)
    print(f"{path.relative_to(FOLDER.parents[1])} {path.stat().st_size / 1000:.0f} kB")


def picture(browser: Browser, kind: str, theme: Any, address: str) -> bytes:
    """The upper part of a page, once all of it is drawn."""
    context = browser.new_context(viewport={"width": WIDTH, "height": HEIGHT}, color_scheme=theme)
    page = context.new_page()
    page.goto(address)
    page.wait_for_selector("#head-map svg")
    if kind == "explore":
        switch(page)
    page.mouse.move(2, HEIGHT - 2)
    page.wait_for_timeout(500)
    shot = page.screenshot()
    context.close()
    return shot


def switch(page: Page) -> None:
    """The strongest induction head off; who looks from the last token to the one that is due?"""
    chips = page.locator(".tokens .chip")
    chips.last.wait_for()
    assert page.locator("textarea").input_value() == SENTENCE
    page.get_by_label("Head", exact=True).select_option("L1H0")
    page.get_by_role("button", name="Switch L1H0 off").click()
    texts = chips.all_inner_texts()
    chips.nth(len(texts) - 1).click()
    chips.nth(texts.index(texts[-1]) + 1).click()
    page.wait_for_selector("#looks table")
    page.wait_for_selector("#loss-change")
    page.evaluate("document.activeElement.blur(); window.scrollTo(0, 0)")
    page.wait_for_selector("#prompt[aria-busy=false]")


if __name__ == "__main__":
    main()
