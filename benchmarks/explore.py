"""How fast `headscope explore` answers, over HTTP, on `demo`: median milliseconds of each endpoint; bar 300 ms.

python -m benchmarks.explore [--json] [--rounds N]

quiet           when nothing else is computed
beside_report   while the report is being made, which steps aside

The prompt has 43 tokens; `read` is asked with a head off by mean and by zero ablation, and with none. Each round asks
every question once, so that a busy machine slows all alike.
"""

from __future__ import annotations

import argparse
import http.client
import json
import secrets
import statistics
import threading
import time
from typing import Any

import headscope as hs
from headscope.cli.quiet import silence
from headscope.explore.reading import Reader
from headscope.explore.server import listening, server_of

TEXT = "def first(values):\n    return values[0]\n\ndef last(values):\n    return values[-1]"
QUESTIONS: dict[str, tuple[str, dict[str, Any] | None]] = {
    "page": ("/", None),
    "model": ("/api/model", None),
    "read": ("/api/read", {}),
    "read_off_mean": ("/api/read", {"off": ["L1H0"], "method": "mean"}),
    "read_off_zero": ("/api/read", {"off": ["L1H0"], "method": "zero"}),
    "pattern": ("/api/pattern", {"head": "L1H0"}),
    "looks": ("/api/looks", {"query": 30, "key": 10}),
    "writes": ("/api/writes", {"position": 30}),
}


def ask(port: int, token: str, path: str, body: dict[str, Any] | None) -> tuple[int, float]:
    """Status and milliseconds of one question on a connection of its own."""
    headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
    content = None if body is None else json.dumps({"text": TEXT, **body})
    began = time.perf_counter()
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=600)
    connection.request("GET" if content is None else "POST", path, content, headers)
    answer = connection.getresponse()
    answer.read()
    connection.close()
    return answer.status, 1000 * (time.perf_counter() - began)


def measure(port: int, token: str, rounds: int) -> dict[str, float]:
    """Median milliseconds of each question; the first round warms up."""
    taken: dict[str, list[float]] = {name: [] for name in QUESTIONS}
    for turn in range(rounds + 1):
        for name, (path, body) in QUESTIONS.items():
            status, wall_ms = ask(port, token, path, body)
            assert status == 200, f"{name} was answered {status}"
            if turn:
                taken[name].append(wall_ms)
    return {name: round(statistics.median(times), 1) for name, times in taken.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="one JSON document")
    parser.add_argument("--rounds", type=int, default=15, help="questions of each kind")
    arguments = parser.parse_args()
    silence()
    token = secrets.token_urlsafe(32)
    with listening(0) as listener:
        port = listener.getsockname()[1]
        server = server_of(Reader(hs.load("demo")), port=port, token=token)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        beside = measure(port, token, arguments.rounds)
        assert ask(port, token, "/api/report", None)[0] == 202, "the report was there before the rounds were over"
        while ask(port, token, "/api/report", None)[0] == 202:
            time.sleep(0.5)
        quiet = measure(port, token, arguments.rounds)
        found = {
            "schema": "headscope.benchmark.explore/1",
            "slowest_ms": max(*quiet.values(), *beside.values()),
            "bars": {"slowest_ms": 300.0},
            "quiet": quiet,
            "beside_report": beside,
        }
        server.should_exit = True
        thread.join()
    if arguments.json:
        print(json.dumps(found, indent=1))
        return
    for name in QUESTIONS:
        print(f"{name:>14} {quiet[name]:8.1f} ms  beside the report {beside[name]:8.1f} ms")


if __name__ == "__main__":
    main()
