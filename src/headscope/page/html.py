"""One HTML file: the bundle, its styles and the document inlined, and a policy that forbids all else.

The bundle (`bundle/page.js`, built from `web/`) reads the document from the page, or asks the server that the page
came from. A report inlines it; `headscope explore` names the path that its answers lie under.

    default-src 'none'            no network of any kind, no frames, no plugins, no forms, no base
    script-src 'sha256-...'       the bundle alone, by its hash: a script that data smuggled in does not run
    style-src 'unsafe-inline'     the plotting library brings its own style element; styles can fetch nothing here
    img-src data: blob:           figures on their way to a file
    trusted-types 'none'          no text becomes HTML or script, whoever asks

Tokens and names are data. In the document every `<`, `>` and `&` is escaped, and all that is not ASCII, so that no
token can end the element that it is in; the bundle puts text on the page as text.
"""

from __future__ import annotations

import base64
import hashlib
import json
from functools import lru_cache
from html import escape
from importlib.resources import files
from typing import Any


@lru_cache
def bundle() -> tuple[str, str]:
    """The built script and its styles, as the package holds them."""
    folder = files("headscope.page") / "bundle"
    script, styles = (folder.joinpath(name).read_text(encoding="utf-8") for name in ("page.js", "page.css"))
    for text, closing in ((script, "</script"), (script, "<!--"), (styles, "</style")):
        assert closing not in text.lower(), f"the bundle holds {closing}, which would end its element"
    assert "\r" not in script, "a carriage return would change the script's hash"
    return script, styles


def policy(*, live: bool) -> str:
    """What the page may do; a live one may also speak to the server that it came from, and to no other."""
    script, _ = bundle()
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return "; ".join(
        [
            "default-src 'none'",
            f"script-src 'sha256-{digest}'",
            "style-src 'unsafe-inline'",
            "img-src data: blob:",
            *(["connect-src 'self'"] if live else []),
            "base-uri 'none'",
            "form-action 'none'",
            "require-trusted-types-for 'script'",
            "trusted-types 'none'",
        ]
    )


def page_html(document: dict[str, Any] | None = None, *, title: str, source: str | None = None) -> str:
    """The page, with the document inlined, or with the path of the API to ask.

    Args:
        document: JSON-ready; exactly one of this and `source`.
        title: Of the window.
        source: What the paths on the page's own server begin with.
    """
    assert (document is None) != (source is None), "the page reads its document in one way"
    script, styles = bundle()
    where = "" if source is None else f' data-source="{escape(source)}"'
    return (
        "<!doctype html>\n"
        '<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy(live=source is not None)}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        '<meta name="referrer" content="no-referrer">\n'
        f"<title>{escape(plain(title))}</title>\n"
        f"<style>{styles}</style>\n</head>\n<body>\n"
        '<div id="page"><noscript>This page draws its figures with a script that it holds itself; allow it to run.'
        "</noscript></div>\n"
        f'<script type="application/json" id="document"{where}>{"" if document is None else inlined(document)}'
        "</script>\n"
        f"<script>{script}</script>\n</body>\n</html>\n"
    )


def framed(page: str, *, title: str, height: int) -> str:
    """A whole page as a frame of another: it has an origin of its own, and reads and changes nothing outside.

    Args:
        page: What `page_html` gave.
        title: What the frame is called.
        height: In pixels; the page scrolls in it.
    """
    return (
        f'<iframe srcdoc="{escape(page)}" sandbox="allow-scripts allow-downloads" title="{escape(plain(title))}" '
        f'style="width:100%;height:{height}px;border:1px solid #8886;border-radius:6px"></iframe>'
    )


def inlined(document: dict[str, Any]) -> str:
    """A document as JSON that can be put into a script element, in ASCII."""
    text = json.dumps(document, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def plain(text: str) -> str:
    """Text that UTF-8 can hold: halves of surrogate pairs become the replacement character."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
