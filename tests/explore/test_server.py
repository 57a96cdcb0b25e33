"""The server over real HTTP: what it answers, to whom, and what a thousand bad requests leave of it."""

from __future__ import annotations

import concurrent.futures
import dataclasses
import http.client
import json
import random
import socket
import threading
import time

import pytest
from pytest import approx

from headscope.errors import ArgumentError, UnsupportedModel
from headscope.explore import guard
from headscope.explore.guard import MAX_BODY
from headscope.explore.reading import Reader
from headscope.explore.server import listening, serve
from headscope.explore.starting import SENTENCE
from headscope.explore.work_queue import WorkQueue
from headscope.records.codec import encode

PATIENCE_S = 30


def rounded(value):
    """JSON and back, as a client sees it."""
    return json.loads(json.dumps(value))


def test_answers_are_the_readers(running, reader, text):
    server = running()
    off = {"off": ["L1H0"], "method": "zero"}
    assert server.ask("read", {"text": text, **off}) == rounded(encode(reader.read(text, **off)))
    assert server.ask("looks", {"text": text, "query": 30, "key": 9}) == rounded(encode(reader.looks(text, 30, 9)))
    assert server.ask("writes", {"text": text, "position": 30}) == rounded(encode(reader.writes(text, 30)))
    assert len(server.ask("pattern", {"text": text, "head": "L1H1"})["bytes"]) > 100


def test_a_client_learns_what_can_be_asked(running, reader):
    about = running().send("/api/model")[1]
    assert about["schema"] == "headscope.explore/1"
    assert about["model"]["id"] == "demo"
    assert about["heads"] == encode(reader.heads)
    assert (about["max_tokens"], about["suggestion"]) == (512, SENTENCE)


def test_the_report_says_how_far_it_is_and_then_comes(running):
    gate, begun = threading.Event(), threading.Event()

    def report(model, *, seed, behavior, progress):
        progress("verifying", 3, 7)
        begun.set()
        assert gate.wait(PATIENCE_S)
        return {"schema": "headscope.report/1", "token": "\ud800"}

    server = running(report=report)
    assert begun.wait(PATIENCE_S)
    assert server.send("/api/report")[:2] == (202, {"what": "verifying", "done": 3, "total": 7})
    assert server.ask("read", {"text": "the"})["tokens"]  # prompts are answered before it is there
    gate.set()
    deadline = time.monotonic() + PATIENCE_S
    while (answer := server.send("/api/report")[:2])[0] == 202:
        assert time.monotonic() < deadline
    assert answer == (200, {"schema": "headscope.report/1", "token": "\ud800"})


@pytest.mark.parametrize(
    ("error", "status", "says"),
    [(UnsupportedModel("it has no LM head."), 422, "it has no LM head."), (KeyError("x"), 500, "a defect")],
)
def test_a_report_that_cannot_be_made_says_why(running, capsys, error, status, says):
    def report(model, *, seed, behavior, progress):
        raise error

    server = running(report=report)
    for _ in range(100):
        found, answer, _ = server.send("/api/report")
        if found != 202:
            break
        time.sleep(0.05)
    assert found == status
    assert says in answer["error"]
    assert server.ask("read", {"text": "the"})["tokens"]


def test_every_answer_is_sealed(running):
    server = running()
    for path, body in (("/", None), ("/api/model", None), ("/nothing", None), ("/api/read", {})):
        _, _, headers = server.send(path, body)
        given = {name.lower(): value for name, value in headers.items()}
        assert "frame-ancestors 'none'" in given["content-security-policy"]
        assert "default-src 'none'" in given["content-security-policy"]
        assert given["x-content-type-options"] == "nosniff"
        assert given["referrer-policy"] == "no-referrer"
        assert given["cache-control"] == "no-store"
        assert given["cross-origin-opener-policy"] == "same-origin"
        assert given["cross-origin-resource-policy"] == "same-origin"
        assert not [name for name in given if name.startswith("access-control") or name in ("server", "set-cookie")]
    page = server.send("/")[1].decode()
    assert server.token not in page
    assert "connect-src 'self'" in page


def test_it_listens_on_loopback_alone(running):
    server = running()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.2", server.port), timeout=PATIENCE_S)
    with listening(0) as listener:
        assert listener.getsockname()[0] == "127.0.0.1"


# What is wrong, the status, and a part of the sentence. `{port}` is the server's.
BAD = [
    (dict(path="/api/model", headers={"Authorization": None}), 401, "no valid token"),
    (dict(path="/api/model", headers={"Authorization": "Bearer x"}), 401, "no valid token"),
    (dict(path="/api/model", headers={"Authorization": "Bearer "}), 401, "no valid token"),
    (dict(path="/api/model", headers={"Authorization": "Basic a-token-for-tests"}), 401, "no valid token"),
    (dict(path="/api/model?token=a-token-for-tests", headers={"Authorization": None}), 401, "no valid token"),
    (dict(path="/api/nothing", headers={"Authorization": None}), 401, "no valid token"),
    (dict(path="/", headers={"Host": "evil.example"}), 403, "answers to 127.0.0.1:"),
    (dict(path="/api/model", headers={"Host": "evil.example:{port}"}), 403, "answers to 127.0.0.1:"),
    (dict(path="/api/model", headers={"Host": "127.0.0.1:1"}), 403, "answers to 127.0.0.1:"),
    (dict(path="/api/model", headers={"Host": "127.0.0.1"}), 403, "answers to 127.0.0.1:"),
    (dict(path="/api/model", headers={"Origin": "http://evil.example"}), 403, "another page"),
    (dict(path="/api/model", headers={"Origin": "null"}), 403, "another page"),
    (dict(path="/api/model", headers={"Origin": "https://127.0.0.1:{port}"}), 403, "another page"),
    (dict(path="/nothing"), 404, "nothing at this path"),
    (dict(path="/docs"), 404, "nothing at this path"),
    (dict(path="/openapi.json"), 404, "nothing at this path"),
    (dict(path="/api/"), 404, "nothing at this path"),
    (dict(path="/../../etc/passwd"), 404, "nothing at this path"),
    (dict(path="/api/read"), 405, "GET is not answered"),
    (dict(path="/api/model", body={}), 405, "POST is not answered"),
    (dict(path="/", method="DELETE"), 405, "DELETE is not answered"),
    (dict(path="/api/read", method="OPTIONS", headers={"Origin": "http://evil.example"}), 403, "another page"),
    (dict(path="/api/read", body=b"{", headers={"Content-Type": "text/plain"}), 415, "not JSON"),
    (dict(path="/api/read", body=b"text=x", headers={"Content-Type": None}), 415, "not JSON"),
    (dict(path="/api/read", body=b"{"), 400, "not JSON"),
    (dict(path="/api/read", body=b"\xff\xfe"), 400, "not JSON"),
    (dict(path="/api/read", body=b"[" * 100_000), 400, "not JSON"),
    (dict(path="/api/read", body=b"9" * 10_000), 400, "not JSON"),
    (dict(path="/api/read", body=b""), 422, "field required"),
    (dict(path="/api/read", body=b"null"), 422, "valid dictionary"),
    (dict(path="/api/read", body=[1]), 422, "valid dictionary"),
    (dict(path="/api/read", body={}), 422, "the field 'text' is not as it should be"),
    (dict(path="/api/read", body={"text": 1}), 422, "valid string"),
    (dict(path="/api/read", body={"text": "a", "more": 1}), 422, "not permitted"),
    (dict(path="/api/read", body={"text": "a", "method": "resample"}), 422, "'zero' or 'mean'"),
    (dict(path="/api/read", body={"text": "a", "off": "L1H1"}), 422, "valid list"),
    (dict(path="/api/read", body={"text": "a", "off": [11]}), 422, "valid string"),
    (dict(path="/api/read", body={"text": "a", "off": ["L9H9"]}), 422, "demo has no head L9H9"),
    (dict(path="/api/read", body={"text": "a", "off": ["<img src=x>"]}), 422, "'<img src=x>' is not a head"),
    (dict(path="/api/read", body={"text": ""}), 422, "the text is empty"),
    (dict(path="/api/read", body={"text": " \t\n"}), 422, "the text is empty"),
    (dict(path="/api/read", body={"text": "\ud800"}), 422, "half of a surrogate pair"),
    (dict(path="/api/read", body={"text": "x" * 20_001}), 422, "20001 characters"),
    (dict(path="/api/read", body={"text": " the" * 600}), 422, "601 tokens"),
    (dict(path="/api/read", body=b'{"text": "' + b"x" * MAX_BODY + b'"}'), 413, "longer than 262144 bytes"),
    (dict(path="/api/pattern", body={"text": "a b"}), 422, "the field 'head'"),
    (dict(path="/api/pattern", body={"text": "a b", "head": "L2H0"}), 422, "demo has no head L2H0"),
    (dict(path="/api/looks", body={"text": "a b", "query": 1, "key": 2}), 422, "sees nothing of it"),
    (dict(path="/api/looks", body={"text": "a b", "query": 10**30, "key": 0}), 422, "the text has no token"),
    (dict(path="/api/looks", body={"text": "a b", "query": True, "key": 0}), 422, "valid integer"),
    (dict(path="/api/looks", body={"text": "a b", "query": 1.5, "key": 0}), 422, "valid integer"),
    (dict(path="/api/writes", body={"text": "a b", "position": -1}), 422, "the text has no token -1"),
]


def assert_refused(server, request, status, says):
    request = dict(request)
    headers = request.pop("headers", {})
    headers = {name: value and value.replace("{port}", str(server.port)) for name, value in headers.items()}
    found, answer, _ = server.send(**request, headers=headers)
    assert (found, list(answer)) == (status, ["error"]), answer
    assert says in answer["error"]
    assert answer["error"].endswith(".")
    assert "\n" not in answer["error"]
    assert len(answer["error"]) < 250


def test_bad_requests_are_refused_in_one_sentence(running):
    server = running()
    for request, status, says in BAD:
        assert_refused(server, request, status, says)


def test_our_own_names_and_origins_pass(running):
    server = running()
    for name in ("127.0.0.1", "localhost", "LOCALHOST"):
        host = f"{name}:{server.port}"
        headers = {"Host": host, "Origin": f"http://{host.lower()}"}
        assert server.send("/api/model", headers=headers)[0] == 200


def test_a_body_without_a_length_is_counted_while_it_is_read(running):
    server = running()
    with socket.create_connection(("127.0.0.1", server.port), timeout=PATIENCE_S) as connection:
        head = (
            f"POST /api/read HTTP/1.1\r\nHost: 127.0.0.1:{server.port}\r\nAuthorization: Bearer {server.token}\r\n"
            "Content-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
        )
        connection.sendall(head.encode())
        chunk = b"10000\r\n" + b"x" * 0x10000 + b"\r\n"
        for _ in range(5):  # the sixth would not come: it is never asked for
            connection.sendall(chunk)
        answer = connection.recv(4096)
    assert answer.startswith(b"HTTP/1.1 413 ")


def test_the_token_is_compared_in_constant_time(monkeypatch):
    compared = []
    monkeypatch.setattr(guard.secrets, "compare_digest", lambda a, b: compared.append((a, b)) or a == b)
    wall = guard.Guard(lambda *a: None, port=1, token="secret")
    assert wall._knows([b"Bearer secret"])
    assert not wall._knows([b"Bearer secre"])
    assert not wall._knows([b"Bearer secret", b"Bearer secret"])
    assert compared == [(b"secret", b"secret"), (b"secre", b"secret")]


def test_a_thousand_bad_requests_and_two_hundred_good_ones_at_once(running, reader):
    server = running()
    words = " time line header start text import print path module default object name other have should".split(" ")[1:]
    draw = random.Random(0)
    # 200 prompts, each its own, with heads off or not.
    asked = []
    for number in range(200):
        body = {"text": "".join(f" {draw.choice(words)}" for _ in range(3 + number % 9)) + f" {number}"}
        if number % 3 == 0:
            body |= {"off": [f"L{number % 2}H{number % 6}"], "method": "mean" if number % 2 else "zero"}
        asked.append(body)
    assert len({body["text"] for body in asked}) == 200
    barrier = threading.Barrier(200)

    def good(body):
        barrier.wait(PATIENCE_S)
        return server.ask("read", body)

    def bad(number):
        assert_refused(server, *BAD[number % len(BAD)])

    with concurrent.futures.ThreadPoolExecutor(208) as pool:
        answers = [pool.submit(good, body) for body in asked]
        refused = [pool.submit(bad, number) for number in range(1000)]
        found = [one.result(120) for one in answers]
        for one in refused:
            one.result(120)
    for body, answer in zip(asked, found, strict=True):
        wanted = rounded(encode(reader.read(**body)))
        assert "".join(one["text"] for one in answer["tokens"][1:]) == body["text"]
        assert answer["off"] == wanted["off"]
        assert answer["clean"] == approx(wanted["clean"], abs=1e-5)
        assert answer["ablated"] == approx(wanted["ablated"], abs=1e-5)
    assert server.ask("read", {"text": "still here"})["tokens"]


class Slow(Reader):
    """Computes when it is let."""

    def __init__(self, model):
        super().__init__(model)
        self.gate, self.begun, self.read_texts = threading.Event(), threading.Event(), []

    def read(self, text, **options):
        self.begun.set()
        assert self.gate.wait(PATIENCE_S)
        self.read_texts.append(text)
        return super().read(text, **options)


def test_a_slow_computation_blocks_neither_page_nor_refusals(running, reader):
    slow = Slow(reader.model)
    server = running(reader=slow)
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(server.ask, "read", {"text": " the"})
        assert slow.begun.wait(PATIENCE_S)
        assert server.send("/")[0] == 200
        assert server.send("/api/model")[0] == 200
        assert server.send("/api/read", {"text": 1})[0] == 422
        assert not waiting.done()
        slow.gate.set()
        assert waiting.result(PATIENCE_S)["tokens"]


def test_what_would_wait_behind_too_many_is_told_so(running):
    work, gate = WorkQueue(waiting=1), threading.Event()
    server = running(work=work)
    held = [work.submit(lambda: gate.wait(PATIENCE_S)) for _ in range(2)]
    status, answer, _ = server.send("/api/read", {"text": "the"})
    assert (status, answer) == (503, {"error": "1 computations wait already; ask again later."})
    gate.set()
    assert [one.result(PATIENCE_S) for one in held] == [True, True]
    assert server.ask("read", {"text": "the"})["tokens"]


def test_nobody_waits_for_a_client_that_has_gone(running, reader):
    slow = Slow(reader.model)
    server = running(reader=slow)
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        first = pool.submit(server.ask, "read", {"text": " stays"})
        assert slow.begun.wait(PATIENCE_S)
        gone = http.client.HTTPConnection("127.0.0.1", server.port)
        headers = {"Authorization": f"Bearer {server.token}", "Content-Type": "application/json"}
        gone.request("POST", "/api/read", json.dumps({"text": " goes"}), headers)
        server.send("/api/model")  # the request before it has been read by now
        gone.close()
        server.send("/api/model")
        slow.gate.set()
        first.result(PATIENCE_S)
    assert server.ask("read", {"text": " last"})["tokens"]
    assert slow.read_texts == [" stays", " last"]


def test_a_defect_is_said_to_be_one(running, reader, monkeypatch, capfd):
    broken = Reader(reader.model)
    monkeypatch.setattr(broken, "read", lambda *a, **o: 1 / 0)
    server = running(reader=broken)
    status, answer, _ = server.send("/api/read", {"text": "a"})
    assert status == 500
    assert "defect" in answer["error"]
    printed = ""
    for _ in range(100):  # the traceback comes after the answer
        printed += capfd.readouterr().err
        if "ZeroDivisionError" in printed:
            break
        time.sleep(0.05)
    assert "ZeroDivisionError: division by zero" in printed
    assert server.ask("looks", {"text": "a", "query": 0, "key": 0})


def test_a_model_without_a_tokenizer_says_so(running, reader):
    server = running(reader=Reader(dataclasses.replace(reader.model, tokenizer=None)))
    status, answer, _ = server.send("/api/read", {"text": "a"})
    assert (status, answer["error"][:22]) == (422, "demo has no tokenizer,")


def test_a_port_that_is_taken_is_refused_in_one_line(reader):
    with listening(0) as listener:
        port = listener.getsockname()[1]
        with pytest.raises(ArgumentError, match=f"port {port} cannot be listened on: Address already in use"):
            serve(reader.model, port=port, announce=lambda address: pytest.fail("it was announced"))
    with pytest.raises(ArgumentError, match="a port is a number from 0 to 65535"):
        listening(70_000)
