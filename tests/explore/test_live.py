"""The live page in a browser: a prompt is typed, a head is switched off, the prediction is watched."""

from __future__ import annotations

import csv
import dataclasses
import io
import re
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any
from xml.etree import ElementTree

import pytest
from playwright.sync_api import Browser, Page, expect
from pytest import approx

import headscope as hs
from benchmarks.page import synthetic
from headscope.explore.against import Against
from headscope.explore.reading import Reader
from tests.axe import violations
from tests.widths import EVERYWHERE, turned
from tests.window import Window

PATIENCE_S = 30
TYPED = "The quick brown fox jumps. The quick brown fox ju"


def report(model, *, seed, behavior, progress):
    """A report of the right shape, without its minutes of work."""
    return synthetic(2, 6, 16)


@dataclass
class Opened:
    """A live page, and what it did that it should not."""

    page: Page
    port: int
    console: list[str]
    outside: list[str]
    asked: list[str]

    def assert_quiet(self) -> None:
        assert self.console == []
        assert self.outside == []

    def type(self, text: str) -> None:
        """Put a text into the box, and wait until it is read."""
        self.page.get_by_label("Your prompt").and_(self.page.locator("textarea")).fill(text)
        self.settle()

    def settle(self) -> None:
        """Wait until no answer is due."""
        frame = "new Promise(done => requestAnimationFrame(() => setTimeout(done)))"
        for _ in range(2):
            self.page.evaluate(frame)
            self.page.wait_for_selector("#prompt[aria-busy=false]")

    def saved(self, button: str) -> str:
        with self.page.expect_download() as waiting:
            self.page.get_by_role("button", name=button).click()
        return waiting.value.path().read_text()

    def next(self) -> dict[str, tuple[float, float | None]]:
        """What comes next, from the figure's own file: token to probability, clean and without."""
        rows = csv.DictReader(io.StringIO(self.saved("What comes next, by probability: save as CSV")))
        return {
            row["next_token"]: (float(row["probability"]), float(row["probability_without"] or "nan")) for row in rows
        }


@pytest.fixture(scope="session")
def window(browser: Browser) -> Iterator[Window]:
    """A window that may use the clipboard."""
    opened = Window(browser, permissions=["clipboard-read", "clipboard-write"])
    yield opened
    opened.close()


@pytest.fixture
def show(window: Window, running: Any) -> Iterator[Callable[..., Opened]]:
    """Serve and open: `show(width=820, dark=True, state="&text=...")`; the report comes last, if none is named."""
    closing = threading.Event()

    def later(model: Any, **options: Any) -> Any:
        closing.wait()
        return report(model, **options)

    def run(
        *,
        width: int = 1280,
        dark: bool = False,
        state: str = "",
        report: Any = later,
        reader: Reader | None = None,
        against: Against | None = None,
        token: str | None = None,
        wait: bool = True,
    ) -> Opened:
        server = running(report=report, against=against, **({"reader": reader} if reader else {}))
        home = f"http://127.0.0.1:{server.port}/"
        console: list[str] = []
        outside: list[str] = []
        asked: list[str] = []

        def note(request: Any) -> None:
            asked.append(request.url)
            if not request.url.startswith((home, "blob:")):
                outside.append(request.url)

        page = window.page(
            width=width,
            dark=dark,
            console=lambda one: console.append(one.text),
            pageerror=lambda one: console.append(str(one)),
            request=note,
        )
        page.goto(f"{home}#token={server.token if token is None else token}{state}")
        if wait:
            page.wait_for_selector("#writes table")
            page.wait_for_selector("#pattern-yours canvas")
        return Opened(page, server.port, console, outside, asked)

    yield run
    closing.set()
    window.take_back()


def test_a_head_is_switched_off_and_the_repeated_token_falls(show, reader, eager):
    opened = show()
    page = opened.page
    opened.type(TYPED)
    tokens = reader.tokens(TYPED)
    assert page.locator(".tokens .chip").count() == len(tokens)
    before = eager.run(tokens).logits[0, -1].softmax(-1)
    due = int(tokens[1 + tokens.tolist().index(tokens[-1])])  # what followed "ju" the first time
    assert reader.model.tokenizer.decode([due]) == "mp"
    clean, nothing = opened.next()["mp"]
    assert clean == approx(float(before[due]), abs=1e-4)
    assert clean > 0.5
    assert nothing != nothing
    strongest = hs.scan(reader.model).heads("induction")[0].head
    page.get_by_label("Head", exact=True).select_option(str(strongest))
    page.get_by_role("button", name=f"Switch {strongest} off").click()
    opened.settle()
    means = eager.means(reader, [(strongest.layer, strongest.head)], len(tokens))
    after = eager.run(tokens, means)
    again, without = opened.next()["mp"]
    assert again == clean
    assert without == approx(float(after.logits[0, -1].softmax(-1)[due]), abs=1e-4)
    assert without < 0.3 * clean
    # The bars and the sentence say the same.
    figure = page.locator("#next svg").text_content()
    assert f"{100 * clean:.0f}%" in figure
    change = reader.read(TYPED, off=[strongest]).delta_loss_nats
    assert page.locator("#loss-change").inner_text() == f"{change:+.2f}"
    # And on again.
    page.get_by_role("button", name=f"{strongest} ×: switch it on again").click()
    opened.settle()
    assert page.locator("#loss-change").count() == 0
    opened.assert_quiet()


def test_a_token_is_hovered_and_two_are_clicked(show, reader, eager):
    opened = show()
    page = opened.page
    opened.type(TYPED)
    page.get_by_label("Head", exact=True).select_option("L1H1")
    chips = page.locator(".tokens .chip")
    chips.nth(33).hover()
    opened.settle()
    attention = eager.run(reader.tokens(TYPED)).attentions[1][0, 1, 33, :34]
    found = re.search(r"at (\d+), it puts ([\d.]+) on .* at (\d+)\.", page.locator("#note-yours").inner_text())
    assert (int(found[1]), int(found[3])) == (33, int(attention.argmax()))
    assert float(found[2]) == approx(float(attention.max()), abs=0.006)
    assert page.locator("#writes h3 bdi").inner_text() == "j"
    # The chip that is looked at most is the darkest of those that can be seen.
    colours = [chips.nth(one).evaluate("one => getComputedStyle(one).backgroundColor") for one in range(34)]
    light = [sum(map(int, re.findall(r"\d+", one)[:3])) for one in colours]
    assert light.index(min(light)) == int(attention.argmax())
    # Two clicks, in any order: the later looks at the earlier.
    chips.nth(16).click()
    chips.nth(33).click()
    page.wait_for_selector("#looks table")
    opened.settle()
    assert re.search(r"from\s+.*at 33\s+to\s+.*at 16", page.locator("#looks h3").inner_text(), re.DOTALL)
    best = reader.looks(TYPED, 33, 16)[0]
    row = page.locator("#looks tbody tr").first.inner_text()
    assert row.startswith(str(best.head))
    assert f"{100 * best.attention:.0f}%" in row
    # A head of that table becomes the one that is looked at.
    second = str(reader.looks(TYPED, 33, 16)[1].head)
    page.locator("#looks").get_by_role("button", name=second).click()
    opened.settle()
    assert page.locator("#pattern-yours h3").inner_text() == f"What {second} attends to in your prompt"
    opened.assert_quiet()


def test_it_works_by_keyboard_alone(show):
    opened = show()
    page = opened.page
    opened.type(TYPED)
    page.keyboard.press("Tab")
    chip = "document.activeElement.textContent"
    assert page.evaluate(chip) == "u"  # the last token
    page.keyboard.press("ArrowLeft")
    assert page.evaluate(chip) == "j"
    page.keyboard.press("Enter")
    page.keyboard.press("Home")
    assert page.evaluate(chip) == "<|bos|>"
    page.keyboard.press("Enter")
    page.wait_for_selector("#looks table")
    for _ in range(2):
        page.keyboard.press("Tab")
    assert page.evaluate(chip).startswith("Switch L")
    page.keyboard.press("Enter")
    page.wait_for_selector("#loss-change")
    opened.settle()
    opened.assert_quiet()


def test_a_state_is_shared_without_the_secret(show, reader):
    opened = show()
    page = opened.page
    assert "token" not in page.url
    opened.type(TYPED)
    page.get_by_label("Head", exact=True).select_option("L1H5")
    page.get_by_role("button", name="Switch L1H5 off").click()
    page.locator("label:has(input[name=method][value=zero])").click()
    page.locator(".tokens .chip").nth(9).click()
    opened.settle()
    page.get_by_role("button", name="Copy link").click()
    link = page.evaluate("navigator.clipboard.readText()")
    assert link == page.url
    assert "a-token-for-tests" not in link
    assert not [one for one in opened.asked if "a-token-for-tests" in one or "quick" in one]
    # Another tab of this browser opens it; a browser that never saw the token does not.
    other = page.context.new_page()
    other.goto(link)
    other.wait_for_selector("#loss-change")
    assert other.locator("textarea").input_value() == TYPED
    assert other.get_by_label("Head", exact=True).input_value() == "L1H5"
    assert other.locator("input[name=method][value=zero]").is_checked()
    assert other.locator(".chip.picked").all_inner_texts() == ["w"]
    assert other.locator("#loss-change").inner_text() == page.locator("#loss-change").inner_text()
    stranger = page.context.browser.new_context()
    alone = stranger.new_page()
    alone.goto(link)
    expect(alone.locator("body")).to_contain_text("no valid token")
    stranger.close()
    opened.assert_quiet()


def test_the_report_stands_beneath_and_shares_its_head(show):
    gate = threading.Event()

    def later(model, *, seed, behavior, progress):
        progress("verifying", 1, 4)
        assert gate.wait(PATIENCE_S)
        return report(model, seed=seed, behavior=behavior, progress=progress)

    opened = show(report=later)
    page = opened.page
    assert "verifying 25%" in page.locator(".waiting").inner_text()
    opened.type(TYPED)
    assert page.locator("#head-map").count() == 0  # a prompt is read before the report is there
    gate.set()
    page.wait_for_selector("#head-map svg")
    assert page.locator(".finding .quoted p").inner_text() == synthetic(2, 6, 16)["finding"]["sentence"]
    assert page.locator("nav a").all_inner_texts()[0] == "Your prompt"
    # The head of the prompt is the head of the card, and the address keeps the state when the page is moved about in.
    page.locator("#head-map rect[data-head=L0H4]").click()
    expect(page.locator("#card-title")).to_be_focused()
    assert page.locator("#card-title").inner_text() == "L0H4"
    assert page.get_by_label("Head", exact=True).input_value() == "L0H4"
    page.get_by_role("link", name="Loss").click()
    assert "text=" in page.url
    head_set = page.get_by_role("button", name=re.compile(r"Switch the \d induction heads off"))
    head_set.click()
    opened.settle()
    assert page.locator(".off button").count() > 2
    page.get_by_role("button", name="All on").click()
    opened.settle()
    assert page.locator(".off").count() == 0
    opened.assert_quiet()


def test_a_report_that_cannot_be_made_leaves_the_prompt(show):
    def fail(model, *, seed, behavior, progress):
        raise hs.errors.UnsupportedModel("it has no <b>LM head</b>.")

    opened = show(report=fail)
    opened.page.wait_for_selector(".waiting .warn")
    assert opened.page.locator(".waiting .warn").inner_text() == "It cannot be made: it has no <b>LM head</b>."
    opened.type(TYPED)
    assert opened.next()
    assert all("422" in one for one in opened.console), opened.console  # Chromium's own line about the status


def test_nothing_is_wider_than_the_window(show):
    opened = show(report=report, state="&text=" + "+window" * 80 + "&off=L1H1&at=30+6")
    for part in ("#looks table", "#loss-change", "#made h2"):
        opened.page.wait_for_selector(part)
    for width, scheme in EVERYWHERE:
        turned(opened.page, width, scheme)
        assert opened.page.evaluate("document.documentElement.scrollWidth") <= width
        assert opened.page.get_by_label("Head", exact=True).is_visible()
        assert opened.page.locator(".examples button").count() == 3
    opened.assert_quiet()


HOSTILE = [
    "</script><script>window.hurt = 1</script>",
    "<img src=x onerror='window.hurt = 2'>",
    "\u202egnp.exe \u05e9\u05dc\u05d5\u05dd",
    "x" * 10_000,
    "\x00\x1b[31m\u2028",
    "\U0001f468\u200d\U0001f469",
]


def test_hostile_prompts_are_text(show, reader):
    class Whole:
        """Each prompt is one token, whose text it is; the other tokens are hostile too."""

        bos_token_id, all_special_ids = 0, (0,)
        __len__ = staticmethod(lambda: 1024)
        decode = staticmethod(lambda ids: HOSTILE[ids[0] % len(HOSTILE)])
        convert_ids_to_tokens = staticmethod(lambda ids: ["x"] * len(ids))

        def __call__(self, text, **options):
            token = len(HOSTILE) + HOSTILE.index(text) if text in HOSTILE else 5
            return {"input_ids": [0, token, token]}

    opened = show(reader=Reader(dataclasses.replace(reader.model, tokenizer=Whole())), wait=False)
    page = opened.page
    page.wait_for_selector("#writes table")
    for text in HOSTILE:
        opened.type(text)
        page.locator(".tokens .chip").nth(1).click()
        page.locator(".tokens .chip").nth(2).click()
        page.wait_for_selector("#looks table")
        opened.settle()
        assert page.evaluate("window.hurt") is None
        assert page.locator("img, iframe, object, embed, b, script:not([type])").count() == 1  # the bundle
        assert page.evaluate("document.documentElement.scrollWidth") <= 1280
        ElementTree.fromstring(opened.saved("What comes next, by probability: save as SVG"))
        if not text.startswith("\x00"):  # a control character is shown by its picture
            visible = page.locator(".tokens .chip").nth(1).inner_text()
            assert visible.startswith(text[0] if text[0] != "\u202e" else "\u27e8U+202E\u27e9")
    opened.assert_quiet()


def test_what_cannot_be_read_is_said_where_it_is_typed(show):
    opened = show()
    opened.type("   ")
    alert = opened.page.get_by_role("alert")
    assert alert.inner_text() == "the text is empty; give at least one prompt of at least one token."
    opened.type(" the" * 600)
    assert "601 tokens" in alert.inner_text()
    opened.type(TYPED)
    assert alert.count() == 0
    assert all("422" in one for one in opened.console)
    assert opened.outside == []


def test_a_head_that_is_not_there_is_said(show):
    opened = show(state="&text=a+b&off=L9H9", wait=False)
    opened.page.wait_for_selector("[role=alert]")
    assert "demo has no head L9H9" in opened.page.get_by_role("alert").inner_text()


def test_a_wrong_token_shows_nothing(show):
    opened = show(token="wrong", wait=False)
    expect(opened.page.locator("body")).to_contain_text("no valid token")
    assert "open the address that headscope explore printed" in opened.page.locator("#page").inner_text()
    assert opened.page.locator("textarea").count() == 0


def test_the_policy_blocks_scripts_and_other_servers(show, running):
    opened = show()
    tried = """async () => {
      const script = document.createElement('script');
      try { script.textContent = 'window.hurt = 1'; document.body.append(script); } catch {}
      const image = document.createElement('img');
      try { image.setAttribute('onerror', 'window.hurt = 2'); } catch {}
      image.setAttribute('src', 'data:x');
      document.body.append(image);
      let reached = false;
      try { await fetch('https://example.org/'); reached = true; } catch {}
      try { await fetch('http://127.0.0.1:1/'); reached = true; } catch {}
      try { document.body.innerHTML = '<p>x</p>'; reached = true; } catch {}
      await new Promise(done => setTimeout(done, 100));
      // In a task of its own: what a test evaluates may itself call eval.
      const evaluates = () => { try { eval('1'); return true; } catch { return false; } };
      reached ||= await new Promise(done => setTimeout(() => done(evaluates())));
      return [window.hurt ?? null, reached];
    }"""
    assert opened.page.evaluate(tried) == [None, False]
    assert any("Content Security Policy" in one for one in opened.console)


def test_another_page_can_neither_ask_nor_embed(show, browser):
    opened = show(wait=False)
    context = browser.new_context()
    page = context.new_page()
    home = f"http://127.0.0.1:{opened.port}/"
    page.route("http://localhost:1/", lambda route: route.fulfill(body="<p>evil</p>", content_type="text/html"))
    page.goto("http://localhost:1/")
    tried = """async (home) => {
      const found = [];
      const known = {headers: {Authorization: 'Bearer a-token-for-tests'}};
      for (const options of [{}, known, {method: 'POST', body: '{}'}]) {
        try { await fetch(home + 'api/model', options); found.push('reached'); } catch { found.push('blocked'); }
      }
      return found;
    }"""
    assert page.evaluate(tried, home) == ["blocked"] * 3
    page.evaluate(
        "(home) => { const f = document.createElement('iframe'); f.src = home; document.body.append(f); }", home
    )
    page.wait_for_timeout(500)
    assert all(frame.locator("textarea").count() == 0 for frame in page.frames)
    context.close()


def test_a_second_model_reads_the_same_prompt_beside_the_first(show, reader):
    opened = show(against=Against(reader, reader), report=report)
    page = opened.page
    opened.type("the cat sat. the cat")
    part = page.locator("#against")
    part.locator("canvas").nth(1).wait_for()
    assert float(part.locator("strong").inner_text().replace("\u2212", "-")) == 0
    # One prompt, one head, one cursor: both pictures are the same, and every head looks alike in both.
    first, second = (part.locator("canvas").nth(one).evaluate("one => one.toDataURL()") for one in (0, 1))
    assert first == second
    assert set(part.locator("td").all_inner_texts()) == {"0.000"}
    part.get_by_role("button", name="L0H2", exact=True).click()
    page.wait_for_selector("#against >> text=L0H2 of")
    # No rule of accessibility is broken with all of that open, a head off, two tokens chosen, the report beneath.
    page.get_by_role("button", name="Switch L0H2 off").click()
    page.locator(".tokens .chip").nth(1).click()
    page.locator(".tokens .chip").nth(4).click()
    for selector in ("#loss-change", "#looks table", "#made h2"):
        page.wait_for_selector(selector)
    opened.settle()
    assert violations(page, contrast=False) == []
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)
        assert violations(page, "#prompt") == [], scheme
    opened.assert_quiet()
