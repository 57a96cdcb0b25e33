"""Against a hub that runs here: revisions become commits, and two workers fetch the same weights once."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import threading
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

import headscope as hs
from benchmarks.tiny import tiny_causal_lm

COMMITS = {"main": "a" * 40, "step1": "b" * 40}


class Hub(BaseHTTPRequestHandler):
    """One model, `org/tiny`, of which every revision holds the same files."""

    folder: Path
    asked: Counter[str]
    both_here: threading.Barrier

    def do_HEAD(self) -> None:
        self.answer(body=False)

    def do_GET(self) -> None:
        self.answer(body=True)

    def answer(self, *, body: bool) -> None:
        if self.path == "/api/models/org/tiny/refs":
            refs = {
                "branches": [{"name": "main", "ref": "refs/heads/main", "targetCommit": COMMITS["main"]}],
                "tags": [{"name": "step1", "ref": "refs/tags/step1", "targetCommit": COMMITS["step1"]}],
                "converts": [],
            }
            self.asked["refs"] += 1
            return self.send(200, json.dumps(refs).encode(), body, kind="application/json")
        found = re.fullmatch(r"/org/tiny/resolve/(\w+)/([\w./]+)", self.path)
        if found is None:
            missing = "RepoNotFound" if "tiny" not in self.path else "RevisionNotFound"
            return self.send(404, b"", body, **{"X-Error-Code": missing})
        commit, path = COMMITS.get(found[1], found[1]), self.folder / found[2]
        if not path.is_file():
            return self.send(404, b"", body, **{"X-Error-Code": "EntryNotFound", "X-Repo-Commit": commit})
        if path.suffix == ".safetensors":
            self.asked[f"{self.command} {path.name}"] += 1
            if not body:
                # Neither is told of the weights before both have asked, so that both want them at the same time.
                self.both_here.wait(timeout=120)
        return self.send(200, path.read_bytes(), body, **{"ETag": f'"{path.name}"', "X-Repo-Commit": commit})

    def send(
        self, code: int, content: bytes, body: bool, *, kind: str = "application/octet-stream", **headers: str
    ) -> None:
        self.send_response(code)
        for name, value in ({"Content-Type": kind, "Content-Length": str(len(content))} | headers).items():
            self.send_header(name, value)
        self.end_headers()
        if body:
            self.wfile.write(content)

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


@pytest.fixture
def hub(tmp_path):
    tiny_causal_lm("llama").save_pretrained(tmp_path / "hub")
    Hub.folder, Hub.asked, Hub.both_here = tmp_path / "hub", Counter(), threading.Barrier(2)
    with ThreadingHTTPServer(("127.0.0.1", 0), Hub) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_revisions_are_found_and_two_workers_fetch_the_weights_once(hub, tmp_path):
    away = {"HF_ENDPOINT": hub, "HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1"}
    script = Path(__file__).with_name("two_workers.py")
    ran = subprocess.run(
        [sys.executable, str(script), str(tmp_path / "store")],
        env={**os.environ, **away, "HF_HUB_DISABLE_TELEMETRY": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert ran.returncode == 0, ran.stderr
    found = json.loads(ran.stdout)
    assert found["jobs"] == [[None, "a" * 40], ["step1", "b" * 40]]
    (_, revision, why), (none, _, unknown) = found["refused"]
    assert (revision, none) == ("step7", "org/none")
    assert "'org/tiny' has no revision 'step7'; it has 2 branches and tags (step1, main)" in why
    assert "no model 'org/none': the hub has no such id, or gives you no access" in unknown
    assert found["codes"] == [0, 0], ran.stderr
    assert Hub.asked["HEAD model.safetensors"] == 2, "both wanted them"
    assert Hub.asked["GET model.safetensors"] == 1, "one fetched them"
    frames = [hs.open_store(tmp_path / f"store-{number}").to_frame("scan") for number in range(2)]
    assert frames[0].equals(frames[1])
    assert set(frames[0]["content"]) == {"b" * 40}
