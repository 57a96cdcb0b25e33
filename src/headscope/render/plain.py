r"""Text of others (names of models, folders and families, tokens, answers to SQL) as a terminal or picture may show it.

    shown     control characters and marks that turn the direction of writing, each as its code, like \x1b
    say       print, through `shown`; every line that headscope prints goes through it
    console   rich's, whose text goes through `shown`
    markup    what stands between the tags of an SVG, or in an attribute

A terminal obeys what it is sent: an escape sequence in a model's name could set its title, hide lines, or answer as if
the user had typed. So no printer writes text by any other way, which a test holds.
"""

from __future__ import annotations

import html
import re
import sys
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console

_CONTROLS = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff\ufff9-\ufffb]"
)


def shown(text: object) -> str:
    """Text without a character that a terminal obeys; line ends and tabs stay."""
    return _CONTROLS.sub(lambda found: found[0].encode("unicode_escape").decode(), str(text))


def say(text: object = "", *, err: bool = False, flush: bool = False) -> None:
    """Print a line on stdout, or on stderr."""
    print(shown(text), file=sys.stderr if err else sys.stdout, flush=flush)


def console(*, stderr: bool = False) -> Console:
    """Where rich draws its tables and styled lines: styles stay, and text is `shown`."""
    from rich.console import Console

    made = Console(highlight=False, soft_wrap=not stderr, stderr=stderr)
    made.push_render_hook(_Cleaning())  # pyright: ignore[reportArgumentType]
    return made


class _Cleaning:
    def process_renderables(self, renderables: list[Any]) -> list[Any]:
        return [one if type(one).__name__ == "Control" else _Clean(one) for one in renderables]


class _Clean:
    """Something drawn, its text cleaned after rich has laid it out."""

    def __init__(self, drawn: Any) -> None:
        self._drawn = drawn

    def __rich_console__(self, console: Console, options: Any) -> Iterable[Any]:
        from rich.segment import Segment

        for segment in console.render(self._drawn, options):
            yield segment if segment.control else Segment(shown(segment.text), segment.style)


def markup(text: object) -> str:
    """Text between the tags of an SVG, or in an attribute of it; XML holds no control character at all."""
    return html.escape(shown(text))
