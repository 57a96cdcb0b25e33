"""The docs' pictures of the page: those that the script makes are those that are there and shown."""

from __future__ import annotations

import re
import struct
from pathlib import Path

from scripts.pictures import DPI, FOLDER, HEIGHT, PAGES, PICTURES, WIDTH, WIDTH_IN

ROOT = Path(__file__).parents[2]
MOST_BYTES = 150_000


def test_the_script_names_exactly_the_pictures_that_are_there():
    assert sorted(one.name for one in FOLDER.iterdir()) == sorted(PICTURES)


def test_every_picture_is_shown_beside_the_command_that_makes_it():
    shown = set()
    for page in [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]:
        text = page.read_text()
        names = re.findall(r"pictures/([\w-]+\.png)", text)
        assert set(names) <= set(PICTURES), page
        assert not names or "python -m scripts.pictures" in text, page
        shown |= set(names)
    assert shown == set(PICTURES)


def test_every_picture_is_sharp_and_small():
    for name in PICTURES:
        held = (FOLDER / name).read_bytes()
        assert held.startswith(b"\x89PNG\r\n\x1a\n")
        width, height = struct.unpack(">II", held[16:24])
        if name in PAGES:
            assert (width, height) == (WIDTH, HEIGHT)
        else:
            assert width == WIDTH_IN * DPI
            assert height < width
        assert len(held) < MOST_BYTES, name
