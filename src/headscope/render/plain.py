r"""Text of others (names of models, folders and families, tokens, answers to SQL) as a terminal or picture may show it.

    shown     control characters and marks that turn the direction of writing, each as its code, like \x1b
    say       print, through `shown`; every line that headscope prints goes through it
    console   rich's, whose text goes through `shown`
    room      how many characters a line of the terminal has; what is longer is wrapped between words
    counted   a number of things, in the singular or the plural
    markup    what is between the tags of an SVG, or in an attribute

A terminal obeys what it is sent: an escape sequence in a model's name could set its title, hide lines, or answer as if
the user had typed. So no printer writes text by any other way, which a test holds.
"""

from __future__ import annotations

import html
import re
import shutil
import sys
import textwrap
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

_CONTROLS = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff\ufff9-\ufffb]"
)

NARROWEST = 40
"""Characters of the narrowest terminal that lines are wrapped for."""
HANGING = 2
"""Characters by which continued lines are indented."""
UNBOUNDED = 100_000
"""Characters of a line that is not broken."""


def shown(text: object) -> str:
    """Text without a character that a terminal obeys; line ends and tabs stay."""
    return _CONTROLS.sub(lambda found: found[0].encode("unicode_escape").decode(), str(text))


def room(stream: Any) -> int | None:
    """Characters in a line, where a stream is a terminal; None for a file or a pipe, whose lines are never broken."""
    return max(NARROWEST, shutil.get_terminal_size().columns) if stream.isatty() else None


def say(text: object = "", *, err: bool = False, flush: bool = False, wrap: bool = True) -> None:
    """Print a line on stdout, or on stderr; on a terminal it is wrapped between words, but for a document or a map."""
    stream = sys.stderr if err else sys.stdout
    written, characters = shown(text), room(stream)
    if wrap and characters is not None:
        written = "\n".join(part for line in written.split("\n") for part in _wrapped(line, characters))
    print(written, file=stream, flush=flush)


def _wrapped(line: str, characters: int) -> list[str]:
    if len(line) <= characters:
        return [line]
    after = " " * (_indent(line) + HANGING)
    return textwrap.wrap(
        line, characters, subsequent_indent=after, break_long_words=False, break_on_hyphens=False, expand_tabs=False
    )


def _indent(line: str) -> int:
    return len(line) - len(line.lstrip(" "))


def console(*, stderr: bool = False) -> Console:
    """Where rich draws its tables and styled lines: styles stay, text is `shown`, nothing is cut off.

    On a terminal lines are wrapped between words, and a table that is too wide for it is written row by row.
    """
    from rich.console import Console

    characters = None if stderr else room(sys.stdout)
    made = Console(highlight=False, soft_wrap=not stderr, stderr=stderr, width=characters)
    made.push_render_hook(_Cleaning(characters, stderr=stderr))  # pyright: ignore[reportArgumentType]
    return made


@dataclass(frozen=True, slots=True)
class _Cleaning:
    """What rich is about to draw, fitted to the terminal and cleaned."""

    characters: int | None
    stderr: bool

    def process_renderables(self, renderables: list[Any]) -> list[Any]:
        return [one if type(one).__name__ == "Control" else _Clean(one, self) for one in renderables]


@dataclass(frozen=True, slots=True)
class _Clean:
    """Something drawn, its text cleaned after rich has laid it out."""

    drawn: Any
    cleaning: _Cleaning

    def __rich_console__(self, console: Console, options: Any) -> Iterable[Any]:
        from rich.segment import Segment
        from rich.table import Table
        from rich.text import Text

        drawn, characters = self.drawn, self.cleaning.characters
        if isinstance(drawn, Table) and not self.cleaning.stderr:
            options = options.update(width=UNBOUNDED, max_width=UNBOUNDED)
            drawn = _fitted(drawn, console, options, characters)
        elif isinstance(drawn, Text) and characters is not None:
            drawn = _hung(drawn, console, characters)
        for segment in console.render(drawn, options):
            yield segment if segment.control else Segment(shown(segment.text), segment.style)


def _fitted(table: Table, console: Console, options: Any, characters: int | None) -> Any:
    """A table as it is where there is room, with narrower gaps and headers, or each of its rows as a few lines."""
    if characters is None or table.__rich_measure__(console, options).maximum <= characters:
        return table
    table.collapse_padding = True
    for column in table.columns:
        column.header = "\n".join(str(column.header).rsplit(" ", 1))
    if table.__rich_measure__(console, options).maximum <= characters:
        return table
    return _rows(table, console, characters)


def _rows(table: Table, console: Console, characters: int) -> Text:
    """What names a row in bold, then its other cells, each after its column's header."""
    from rich.text import Text

    def written(cell: object) -> Text:
        return cell if isinstance(cell, Text) else Text.from_markup(str(cell))

    lines: list[Text] = []
    headers = [written(column.header) for column in table.columns]
    for row, cells in zip(table.rows, zip(*(list(column.cells) for column in table.columns), strict=True), strict=True):
        texts = [written(cell) for cell in cells]
        named = max(1, next((at for at, column in enumerate(table.columns) if column.justify == "right"), 1))
        if name := [one for one in texts[:named] if one.plain]:
            lines.append(Text("  ").join(name))
            lines[-1].stylize(row.style or "bold")
        told = [
            Text(f"{header.plain.replace(chr(10), ' ')} ", style="dim") + cell
            for header, cell in zip(headers[named:], texts[named:], strict=True)
            if cell.plain
        ]
        if told:
            lines.append(Text("  ") + Text(", ").join(told))
    return _hung(Text("\n").join(lines), console, characters)


def _hung(text: Text, console: Console, characters: int) -> Text:
    """Each line wrapped between words, what is carried over a little further in."""
    from rich.text import Text

    parts: list[Text] = []
    for line in text.split("\n", allow_blank=True):
        if line.cell_len <= characters:
            parts.append(line)
            continue
        indent = _indent(line.plain)
        body = line[indent:] if indent else line
        pieces = list(body.wrap(console, characters - indent - HANGING))
        parts += [Text(" " * (indent + HANGING * (at > 0))) + piece for at, piece in enumerate(pieces)]
    wrapped = Text("\n").join(parts)
    wrapped.style, wrapped.no_wrap = text.style, True
    return wrapped


def counted(number: int, what: str) -> str:
    """Like `1 head` or `2 heads`."""
    return f"{number} {what}" + ("" if number == 1 else "s")


def markup(text: object) -> str:
    """Text between the tags of an SVG, or in an attribute of it; XML holds no control character at all."""
    return html.escape(shown(text))
