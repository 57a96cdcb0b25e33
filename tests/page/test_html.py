"""The file: its policy, its bundle, and JSON that cannot leave its element."""

from __future__ import annotations

import base64
import hashlib
import html.parser
import json
import re
from pathlib import Path

import pytest

from benchmarks.page import synthetic
from headscope.page.html import bundle, inlined, page_html, plain

WEB = Path(__file__).parents[2] / "web"


class Elements(html.parser.HTMLParser):
    """What a page is made of: scripts with their text, and every attribute that could fetch."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.scripts: list[tuple[dict, str]] = []
        self.fetches: list[str] = []
        self.metas: list[dict] = []
        self._inside = False
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self._inside = tag == "script"
        if tag == "script":
            self.scripts.append((dict(attributes), ""))
        if tag == "meta":
            self.metas.append(dict(attributes))
        self.fetches += [f"{tag} {name}" for name, _ in attributes if name in ("src", "href", "srcset", "action")]

    def handle_endtag(self, tag):
        self._inside = False

    def handle_data(self, data):
        if self._inside:
            attributes, text = self.scripts[-1]
            self.scripts[-1] = attributes, text + data


def test_the_policy_allows_one_script_by_its_hash():
    elements = Elements(page_html({"a": 1}, title="t"))
    (data, held), (none, script) = elements.scripts
    assert (data["type"], json.loads(held), none) == ("application/json", {"a": 1}, {})
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    (policy,) = [one["content"] for one in elements.metas if one.get("http-equiv") == "Content-Security-Policy"]
    rules = dict(part.split(" ", 1) for part in policy.split("; "))
    assert rules["default-src"] == "'none'"
    assert rules["script-src"] == f"'sha256-{digest}'"
    assert "connect-src" not in rules
    assert rules["require-trusted-types-for"] == "'script'"
    assert elements.fetches == []


def test_a_served_page_speaks_to_its_server_alone():
    elements = Elements(page_html(title="t", source='/data?a="b'))
    assert elements.scripts[0] == ({"type": "application/json", "id": "document", "data-source": '/data?a="b'}, "")
    (policy,) = [one["content"] for one in elements.metas if one.get("http-equiv") == "Content-Security-Policy"]
    assert "connect-src 'self'" in policy


@pytest.mark.parametrize("given", [{}, {"document": {}, "source": "/data"}])
def test_a_page_has_its_data_from_one_place(given):
    with pytest.raises(AssertionError, match="one way"):
        page_html(given.get("document"), title="t", source=given.get("source"))


@pytest.mark.parametrize(
    "text",
    [
        "</script><script>alert(1)</script>",
        "<!--<script>",
        "]]>",
        "&lt;",
        "\ud800",
        "\u2028\u202e",
        "\x00",
        "x" * 10_000,
    ],
)
def test_no_token_ends_its_element(text):
    held = inlined({"token": text})
    assert held.isascii()
    assert not set("<>&\n\u2028") & set(held)
    assert json.loads(held) == {"token": text}
    page = page_html({"token": text}, title=text)
    page.encode()  # UTF-8 can hold it
    assert len(Elements(page).scripts) == 2
    assert json.loads(Elements(page).scripts[0][1]) == {"token": text}


def test_numbers_that_json_does_not_know_are_refused():
    with pytest.raises(ValueError, match="not JSON compliant"):
        inlined({"loss": float("nan")})


def test_half_a_surrogate_pair_is_replaced_in_a_title():
    assert plain("a\ud800b") == "a\ufffdb"
    assert plain("\U0001f600") == "\U0001f600"


def test_the_bundle_is_small_and_fetches_nothing():
    script, styles = bundle()
    assert len(script.encode()) + len(styles.encode()) <= 600_000
    assert not re.search(r"@import|url\(", styles)
    # Names of XML namespaces, which nothing fetches, are the only addresses.
    hosts = set(re.findall(r"https?://([\w.-]+)", script))
    assert hosts <= {"www.w3.org"}, hosts


def test_every_package_of_the_page_is_pinned():
    package = json.loads((WEB / "package.json").read_text())
    lock = json.loads((WEB / "package-lock.json").read_text())
    assert all(re.fullmatch(r"\d+\.\d+\.\d+", one) for one in package["devDependencies"].values())
    assert "dependencies" not in package
    held = {name.removeprefix("node_modules/"): one for name, one in lock["packages"].items() if name}
    assert {name: held[name]["version"] for name in package["devDependencies"]} == package["devDependencies"]
    assert all("integrity" in one for one in held.values())


@pytest.mark.parametrize(("size", "most"), [((12, 12, 128), 3_000_000), ((32, 32, 128), 10_000_000)])
def test_a_page_can_be_mailed(size, most):
    document = synthetic(*size)
    assert len(page_html(document, title="x").encode()) < most
    assert document["example"]["patterns"], "with the patterns that there is room for"
