"""The packaged model, read by us and by transformers' own eager code, and a server that runs in this process."""

from __future__ import annotations

import http.client
import json
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

import headscope as hs
from headscope.explore.reading import SHORTEST, Reader
from headscope.explore.server import listening, server_of
from headscope.explore.work_queue import WorkQueue
from headscope.interventions.ablation import CORPUS_PROMPTS
from headscope.probes import random_tokens
from headscope.training.demo import demo_path

TOKEN = "a-token-for-tests"


@pytest.fixture(scope="session")
def reader() -> Reader:
    return Reader(hs.load("demo"))


@pytest.fixture(scope="session")
def text() -> str:
    """Words that repeat, and stop amid their second copy."""
    run = (
        " raise class code def the line has time and header start text import print path module except cal default char"
    )
    return run + run[: run.index(" import")]


class Eager:
    """transformers' own eager attention; heads are changed by a hook before the output projection."""

    def __init__(self) -> None:
        self.model = AutoModelForCausalLM.from_pretrained(demo_path(), attn_implementation="eager").eval()

    def run(self, tokens: Any, without: dict[tuple[int, int], Any] | None = None) -> Any:
        """One pass; `without` maps a head to what its z becomes: [position, d_head], or a number."""
        ids = torch.as_tensor(tokens)[None]
        handles = []
        for (layer, head), value in (without or {}).items():

            def put(module: Any, arguments: Any, *, head: int = head, value: Any = value) -> Any:
                z = arguments[0].clone().unflatten(-1, (6, 32))
                z[..., head, :] = value
                return (z.flatten(-2),)

            handles.append(self.model.model.layers[layer].self_attn.o_proj.register_forward_pre_hook(put))
        try:
            with torch.no_grad():
                return self.model(ids, output_attentions=True, output_hidden_states=True)
        finally:
            for handle in handles:
                handle.remove()

    def z(self, tokens: Any, layer: int) -> Any:
        """What the output projection reads: [position, head, d_head]."""
        seen = []
        projection = self.model.model.layers[layer].self_attn.o_proj
        handle = projection.register_forward_pre_hook(lambda module, arguments: seen.append(arguments[0]))
        self.run(tokens)
        handle.remove()
        return seen[0][0].unflatten(-1, (6, 32))

    def means(self, reader: Reader, heads: Any, length: int) -> dict[tuple[int, int], Any]:
        """Mean z of each head at each position over the corpus, by hand."""
        corpus = random_tokens(reader.model, n_prompts=CORPUS_PROMPTS, length=SHORTEST, seed=0).prompts
        return {
            (layer, head): torch.stack([self.z(prompt, layer)[:length, head] for prompt in corpus]).mean(0)
            for layer, head in heads
        }


@pytest.fixture(scope="session")
def eager() -> Eager:
    return Eager()


@dataclass
class Running:
    """A server, and how to speak to it."""

    port: int
    token: str = TOKEN

    def send(
        self,
        path: str,
        body: Any = None,
        *,
        method: str | None = None,
        headers: dict[str, str | None] | None = None,
        timeout: float = 300,
    ) -> tuple[int, Any, dict[str, str]]:
        """Status, answer, headers. A dict is sent as JSON, bytes as they are; a header that is None is left out."""
        given: dict[str, str | None] = {"Authorization": f"Bearer {self.token}", "Content-Type": "application/json"}
        given |= headers or {}
        content = json.dumps(body).encode() if isinstance(body, (dict, list)) else body
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout)
        try:
            connection.putrequest(method or ("GET" if body is None else "POST"), path, skip_host="Host" in given)
            for name, value in given.items():
                if value is not None:
                    connection.putheader(name, value)
            if content is not None:
                connection.putheader("Content-Length", str(len(content)))
            connection.endheaders(content)
            answer = connection.getresponse()
            raw = answer.read()
            kind = answer.headers["Content-Type"] or ""
            return answer.status, json.loads(raw) if "json" in kind else raw, dict(answer.headers)
        finally:
            connection.close()

    def ask(self, what: str, body: dict[str, Any]) -> Any:
        """The answer to a good question."""
        status, answer, _ = self.send(f"/api/{what}", body)
        assert status == 200, answer
        return answer


@pytest.fixture
def running(reader: Reader, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Running]]:
    """Start a server: `running(report=..., work=..., reader=...)`; its report is made at once."""
    stop: list[Callable[[], None]] = []

    def start(
        *,
        report: Callable[..., Any] | None = None,
        work: WorkQueue | None = None,
        reader: Reader = reader,
        against: Any = None,
    ) -> Running:
        made = report or (lambda model, *, seed, behavior, progress: {"schema": "headscope.report/1"})
        monkeypatch.setattr("headscope.explore.server.report_document", made)
        listener = listening(0)
        port = listener.getsockname()[1]
        server = server_of(reader, port=port, token=TOKEN, work=work, against=against)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()

        def end() -> None:
            server.should_exit = True
            thread.join(30)
            assert not thread.is_alive()

        stop.append(end)
        while not server.started:
            assert thread.is_alive()
            time.sleep(0.01)
        return Running(port)

    yield start
    for end in stop:
        end()
