"""How fast a large report opens: 1,024 heads and a prompt of 128 tokens, made up, in Chromium without a window.

python -m benchmarks.page [--json] [--keep FILE] [--also FILE ...]

bytes        size of the file; bar 10 MB
map_s        from the request of the file to the first frame with the finding and the map
open_s       to the first frame with a head's card too; bar 2 s
longest_ms   longest task until all parts are drawn, and while switching maps and opening a card; bar 200 ms
cpu_s        processor time of the page's main thread until that first frame, which a busy machine changes least

Pages given with `--also`, made before a change with `--keep`, are opened in turn with the new one: a fair comparison.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

import numpy as np

from headscope.evidence.head_types import meanings
from headscope.heads import HeadId
from headscope.page.example import BUDGET_BYTES, Example
from headscope.page.report import SCHEMA, write_page
from headscope.records.codec import encode

if TYPE_CHECKING:
    from playwright.sync_api import CDPSession

BARS = {"bytes": 10_000_000, "open_s": 2.0, "longest_open_ms": 200.0, "longest_use_ms": 200.0}
ROLES = ("induction", "induction_recent", "previous_token", "current_token", "first_token", "duplicate_token")
PAUSE_S = 0.05
WATCH = """
window.longTasks = [];
new PerformanceObserver((list) => { for (const one of list.getEntries()) window.longTasks.push(one.duration); })
  .observe({ type: "longtask", buffered: true });
"""
LONGEST = "Math.max(0, ...window.longTasks.splice(0))"
USE = """(async () => {
  const later = () => new Promise((done) => setTimeout(done, 250));
  for (const mode of ["effect", "previous_token"]) {
    document.querySelector(`input[value=${mode}]`).click();
    await later();
  }
  document.querySelectorAll("#head-map rect[data-head]")[40].dispatchEvent(new MouseEvent("click", { bubbles: true }));
  await later();
  await later();
})()"""


def seen(*selectors: str) -> str:
    """A script that waits, frame by frame, until the page holds all of these; it gives the time of the frame after."""
    there = " && ".join(f"document.querySelector({json.dumps(one)})" for one in selectors)
    return (
        "new Promise((done) => { const look = () => requestAnimationFrame("
        f"({there}) ? () => done(performance.now()) : look); look(); }})"
    )


def synthetic(n_layers: int = 32, n_heads: int = 32, n_tokens: int = 128, *, seed: int = 0) -> dict[str, Any]:
    """A document `headscope.report/1` of a model that does not exist."""
    rng = np.random.default_rng(seed)
    heads = [HeadId(layer, head) for layer in range(n_layers) for head in range(n_heads)]
    chosen = [heads[one] for one in sorted(rng.permutation(len(heads) // 2)[:20] + len(heads) // 2)]
    sender = heads[n_heads + 3]
    model = {
        "id": "made-up", "revision": None, "family": "llama", "n_layers": n_layers, "n_heads": n_heads,
        "n_kv_heads": n_heads, "support": "exact", "reason": "made up",
    }  # fmt: skip

    def around(mean: float) -> dict[str, Any]:
        return {"mean": mean, "ci95": [mean - 0.01, mean + 0.01]}

    def scores(head: HeadId) -> dict[str, Any]:
        means = {role: float(rng.beta(0.3, 6)) for role in ROLES}
        if head in chosen:
            means["induction"] = 0.5 + 0.5 * float(rng.random())
        return {
            role: {
                **around(mean),
                "chance": 0.011,
                "control": 0.01,
                "selectivity": around(mean - 0.01),
                "n_prompts": 16,
            }
            for role, mean in means.items()
        }

    def verdict(head: HeadId) -> dict[str, Any]:
        called = "induction" if head in chosen else "previous_token" if head == sender else "none"
        delta = float(rng.exponential(0.3 if head in chosen else 0.002))
        return {
            **encode(head), "verdict": called, "exact": head in chosen,
            "reasons": ["attends to the tokens after earlier copies: 0.94 [0.94, 0.95], by chance 0.01"] * 4,
            "attention": dict.fromkeys(ROLES, 0.5), "delta_loss_nats": around(delta), "q_value": 0.01,
            "first_copy": around(0.0), "natural": None, "over_random": around(delta),
            "put_back": {"delta_loss_nats": around(delta), "q_value": 0.01} if head in chosen else None,
            "copying": {"heads": [encode(head)], "eigenvalue": 0.5, "direct": around(0.3), "top1": 0.4},
            "offset": {"offset": 2, "mean": 0.1}, "behind": [], "interchangeable": [],
        }  # fmt: skip

    probe = {"kind": "repeated_tokens", "n_prompts": 16, "period": 50, "seed": 0}
    run = (n_tokens - 8) // 2
    shown = _example(heads, chosen, sender, n_tokens, run, rng)
    texts = [f" word{one}" for one in range(n_tokens)]
    row = {"token": 1, "text": " word1", "best": [[one, f" word{one}", 1.0] for one in range(5)], "own_rank": 2}
    edges = [
        {
            "sender": encode(sender), "receiver": encode(head), "input": "k", "effect": around(0.8), "share": 0.9,
            "q_value": 0.0, "mlps_held": around(0.8), "loss_nats": {name: around(0.1) for name in "kqv"},
            "query_effect": around(0.0), "previous_token": 0.98,
            "weights": {"score": 0.3, "ratio": 4.0, "z": 12.0, "rank": 1, "of": len(heads), "margin": 1.5},
            "any_of": [], "share_ci95": [0.8, 1.0], "changed": "before_key",
        }
        for head in chosen
    ]  # fmt: skip
    return {
        "schema": SCHEMA,
        "model": model,
        "finding": {"sentence": f"In made-up, {len(chosen)} heads do induction.", "details": ["It is made up."]},
        "scan": {
            "model": model, "probe": probe, "unscored": {}, "timing": {"wall_s": 1.0, "tokens": 1},
            "detectors": [{"name": role, "needs_control": False} for role in ROLES],
            "heads": [{**encode(head), "scores": scores(head)} for head in heads],
        },
        "verify": {
            "heads": [verdict(head) for head in heads], "ablation": {"method": "mean"}, "probe": probe,
            "head_types": encode(meanings()),
            "sets": [
                {"heads": [encode(head) for head in chosen], "relation": "redundant", "delta_loss_nats": around(5.0)}
            ],
            "controls": {"held_out_prompts": 32, "tests": 40}, "timing": {"wall_s": 1.0},
        },
        "circuit": {
            "receivers": [
                {
                    **encode(head), "verdict": "induction", "stripe": around(0.9), "corrupt": around(0.0),
                    "restored": around(0.95), "restored_mlps_held": around(0.95), "unexplained": 0.05,
                    "strongest_other": around(0.01), "strongest_query": around(0.0), "weights_agree": True,
                    "asked": True, "offset": 0, "context": {},
                }
                for head in chosen
            ],
            "edges": edges, "sets": [], "context": [],
            "senders_tried": len(heads), "notes": [], "probe": probe, "timing": {"wall_s": 1.0},
        },
        "circuit_reason": None,
        "emergence": [],
        "behavior": [],
        "example": {
            "tokens": [{"id": one, "text": texts[one]} for one in shown.tokens.tolist()],
            **{key: value for key, value in shown.to_dict(None).items() if key != "tokens"},
        },
        "tables": {
            "heads": [
                {**encode(head), "ov": [row] * 6, "qk": [row] * 6, "sender": encode(sender)} for head in chosen
            ],
            "reason": None,
        },
        "provenance": {
            "dtype": "float32", "device": "cpu", "kernels": ["flash"], "seed": 0, "versions": {"headscope": "0"},
            "command": "python -m benchmarks.page",
        },
    }  # fmt: skip


def _example(
    heads: list[HeadId], chosen: list[HeadId], sender: HeadId, n_tokens: int, run: int, rng: np.random.Generator
) -> Example:
    tokens = np.concatenate([np.arange(4), np.arange(4, 4 + run), np.arange(4, 4 + run)])
    tokens = np.concatenate([tokens, np.arange(4 + run, 4 + run + n_tokens - len(tokens))])
    second = 4 + run
    size = len(tokens) * (len(tokens) + 1) // 2
    lower = np.tril_indices(len(tokens))
    kept = list(dict.fromkeys([*chosen, sender, *heads]))[: BUDGET_BYTES // (4 * -(-size // 3))]
    patterns = {}
    for head in sorted(kept):
        pattern = np.zeros((len(tokens), len(tokens)), dtype=np.uint8)
        pattern[:, 0] = 200
        if head in chosen:
            query = np.arange(second, second + run)
            pattern[query] = 0
            pattern[query, query - run + 1] = 230
        else:
            pattern[lower] += rng.integers(0, 30, size).astype(np.uint8)
        patterns[head] = pattern[lower]
    clean = rng.exponential(1.0, len(tokens) - 1)
    return Example(
        tokens=tokens,
        first=(4, second),
        second=(second, second + run),
        patterns=patterns,
        left_out=len(heads) - len(kept),
        clean=clean,
        ablated=clean + 2.0,
        without=tuple(chosen),
    )


def measure(paths: list[Path], *, runs: int = 5) -> list[dict[str, float]]:
    """Open each page several times, one after the other in each round; the medians of each page."""
    from playwright.sync_api import sync_playwright

    from scripts.browser import find

    found: list[list[dict[str, float]]] = [[] for _ in paths]
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=find(), args=["--no-sandbox"])
        session = browser.new_browser_cdp_session()
        for _ in range(runs):
            for path, rows in zip(paths, found, strict=True):
                with Window(session) as window:
                    rows.append(_opened(window, path))
        browser.close()
    return [{key: round(median(row[key] for row in rows), 3) for key in rows[0]} for rows in found]


class Window:
    """A window of the browser that the driver does not follow.

    In its own windows the driver records what is loaded, for which Chromium decodes the whole file a second
    time: 150 ms of processor time that no reader of a page pays.
    """

    def __init__(self, browser: CDPSession) -> None:
        self._browser = browser
        self._answers: dict[int, dict[str, Any]] = {}
        self._sent = 0

    def __enter__(self) -> Window:
        self._context = self._browser.send("Target.createBrowserContext")["browserContextId"]
        target = {"url": "about:blank", "browserContextId": self._context, "width": 1280, "height": 900}
        self._target = self._browser.send("Target.createTarget", target)["targetId"]
        to = {"targetId": self._target, "flatten": False}
        self._session = self._browser.send("Target.attachToTarget", to)["sessionId"]
        self._browser.on("Target.receivedMessageFromTarget", self._received)
        return self

    def __exit__(self, *_: object) -> None:
        self._browser.remove_listener("Target.receivedMessageFromTarget", self._received)
        self._browser.send("Target.disposeBrowserContext", {"browserContextId": self._context})

    def _received(self, event: dict[str, Any]) -> None:
        answer = json.loads(event["message"])
        if event["sessionId"] == self._session and "id" in answer:
            self._answers[answer["id"]] = answer

    def send(self, method: str, **parameters: Any) -> dict[str, Any]:
        self._sent += 1
        message = json.dumps({"id": self._sent, "method": method, "params": parameters})
        self._browser.send("Target.sendMessageToTarget", {"sessionId": self._session, "message": message})
        while self._sent not in self._answers:
            time.sleep(PAUSE_S)  # without it this loop and the driver would take the cores that the page is opened on
            self._browser.send("Target.getTargets")  # the driver hands events out while it waits for an answer
        answer = self._answers.pop(self._sent)
        if "error" in answer:
            raise RuntimeError(f"{method}: {answer['error']['message']}")
        return answer["result"]

    def evaluate(self, expression: str) -> Any:
        found = self.send("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        if "exceptionDetails" in found:
            raise RuntimeError(str(found["exceptionDetails"]))
        return found["result"].get("value")


def _opened(window: Window, path: Path) -> dict[str, float]:
    window.send("Page.enable")
    window.send("Performance.enable", timeDomain="threadTicks")
    window.send("Page.addScriptToEvaluateOnNewDocument", source=WATCH)
    before = _ticks(window)
    window.send("Page.navigate", url=path.as_uri())
    map_ms = window.evaluate(seen("#head-map svg"))
    open_ms = window.evaluate(seen("#head-map svg", "canvas.pattern"))
    cpu_s = _ticks(window) - before
    window.evaluate(seen("#made h2"))  # the last part
    window.evaluate("new Promise((done) => setTimeout(done, 500))")
    first = window.evaluate(LONGEST)
    window.evaluate(USE)
    return {
        "map_s": map_ms / 1000,
        "open_s": open_ms / 1000,
        "longest_open_ms": first,
        "longest_use_ms": window.evaluate(LONGEST),
        "cpu_s": cpu_s,
    }


def _ticks(window: Window) -> float:
    return next(
        one["value"] for one in window.send("Performance.getMetrics")["metrics"] if one["name"] == "TaskDuration"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="one JSON document")
    parser.add_argument("--keep", type=Path, help="write the page here and leave it")
    parser.add_argument(
        "--also", type=Path, nargs="+", default=[], metavar="FILE", help="pages to open in turn with it"
    )
    parser.add_argument("--runs", type=int, default=5, help="how often each is opened")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = write_page(synthetic(), (arguments.keep or Path(folder) / "page.html").absolute())
        paths = [path, *(one.absolute() for one in arguments.also)]
        rows = [
            {"bytes": one.stat().st_size, **row}
            for one, row in zip(paths, measure(paths, runs=arguments.runs), strict=True)
        ]
    also = {str(one): row for one, row in zip(arguments.also, rows[1:], strict=True)}
    if arguments.json:
        print(json.dumps({"heads": 1024, "tokens": 128, **rows[0], "also": also, "bars": BARS}, indent=1))
        return
    for name, row in {"1,024 heads, 128 tokens": rows[0], **also}.items():
        print(name)
        print("\n".join(f"{key:>16} {one}" for key, one in row.items()))


if __name__ == "__main__":
    main()
