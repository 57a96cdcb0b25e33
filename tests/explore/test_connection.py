"""Connections that say nothing, little, or too much: they end, they are few, and the user's page stays alive."""

from __future__ import annotations

import contextlib
import json
import resource
import socket
import time

import pytest

from headscope.explore import connection as module
from headscope.explore.guard import MAX_BODY

PATIENCE_S = 30
HEAD = "POST /api/read HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nAuthorization: Bearer {token}\r\n"


@pytest.fixture
def opened():
    """Open a connection and say something; all are closed at the end."""
    with contextlib.ExitStack() as stack:

        def connect(server, sent=b""):
            one = stack.enter_context(socket.create_connection(("127.0.0.1", server.port), timeout=PATIENCE_S))
            one.sendall(sent)
            return one

        yield connect


def ended(one):
    """Whether the server closed it, and nothing more came."""
    try:
        return one.recv(1) == b""
    except ConnectionResetError:
        return True


def silent(one):
    """Whether it is open, and nothing came."""
    try:
        one.recv(1)
    except BlockingIOError:
        return True
    except ConnectionResetError:
        return False
    return False


def head(server, *lines):
    return "".join([HEAD.format(port=server.port, token=server.token), *(f"{line}\r\n" for line in lines)]).encode()


@pytest.fixture
def hurried(monkeypatch):
    monkeypatch.setattr(module, "REQUEST_S", 0.3)
    monkeypatch.setattr(module, "ANSWER_S", 0.3)


def test_half_a_request_is_not_waited_for(running, opened, hurried):
    server = running()
    json_of = "Content-Type: application/json"
    halves = [
        b"",
        b"G",
        head(server),
        head(server, json_of, "Content-Length: 100", ""),
        head(server, json_of, "Content-Length: 100", "") + b'{"text": ',
        head(server, json_of, "Transfer-Encoding: chunked", "") + b'5\r\n{"tex\r\n',
    ]
    for one in [opened(server, half) for half in halves]:
        assert ended(one), "it is still open"
    assert server.ask("read", {"text": "still here"})["tokens"]


def test_a_request_in_drops_is_not_waited_for(running, opened, hurried):
    one = opened(running())
    began = time.monotonic()
    with contextlib.suppress(OSError):
        while time.monotonic() - began < PATIENCE_S:
            one.sendall(b"G")
            time.sleep(0.05)
    assert time.monotonic() - began < PATIENCE_S


def test_the_second_request_of_a_connection_has_its_time_too(running, opened, hurried):
    server = running()
    one = opened(server, f"GET / HTTP/1.1\r\nHost: 127.0.0.1:{server.port}\r\n\r\n".encode())
    time.sleep(0.1)
    one.sendall(b"GET / HT")
    while (read := one.recv(2**20)) != b"":
        assert b"400" not in read[:20]


def test_who_does_not_read_is_not_waited_for(running, hurried):
    server = running()
    ask = f"GET / HTTP/1.1\r\nHost: 127.0.0.1:{server.port}\r\n\r\n".encode()
    size = 0
    with socket.socket() as one:
        one.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        one.settimeout(PATIENCE_S)
        one.connect(("127.0.0.1", server.port))
        one.sendall(ask * 200)
        time.sleep(1)
        with contextlib.suppress(ConnectionResetError):
            while part := one.recv(2**20):
                size += len(part)
    assert size < 200 * len(server.send("/")[1])


def test_1300_half_open_requests_leave_the_page_alive_and_the_log_short(running, opened, capfd, monkeypatch):
    monkeypatch.setattr(module, "REQUEST_S", 600.0)  # their number alone must end them
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    number = 1300 if hard == resource.RLIM_INFINITY or hard > 3000 else hard // 3
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 2 * number), hard))
    server = running()
    try:
        held = [opened(server, b"GET / HTTP/1.1\r\nHost: 127.0.0.1") for _ in range(number)]
        assert server.send("/", timeout=PATIENCE_S)[0] == 200
        assert server.ask("read", {"text": "still here"})["tokens"]
        began = time.monotonic()
        for one in held:
            one.setblocking(False)
        while sum(map(silent, held)) > module.WAITING:
            assert time.monotonic() - began < PATIENCE_S, "more wait than may"
            time.sleep(0.05)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert len("".join(capfd.readouterr())) < 500


@pytest.mark.parametrize("size", [MAX_BODY + 1, 2**22, 2**25])
def test_a_body_that_is_too_large_gets_its_sentence(running, size):
    # On a plain close, what was not read resets the connection, and the answer is lost with it.
    status, answer, _ = running().send("/api/read", b"x" * size)
    assert status == 413
    assert answer == {"error": f"the request is longer than {MAX_BODY} bytes; shorten the text."}


def test_a_body_that_never_ends_gets_its_sentence_and_an_end(running, opened, hurried):
    server = running()
    one = opened(server, head(server, "Content-Type: application/json", "Transfer-Encoding: chunked", ""))
    chunk = b"10000\r\n" + b"x" * 0x10000 + b"\r\n"
    began = time.monotonic()
    with contextlib.suppress(OSError):
        while time.monotonic() - began < PATIENCE_S:
            one.sendall(chunk)
    assert time.monotonic() - began < PATIENCE_S


def test_a_refusal_reaches_who_is_still_sending(running):
    server = running()
    status, answer, _ = server.send("/api/read", b"x" * 2**25, headers={"Authorization": "Bearer wrong"})
    assert (status, list(answer)) == (401, ["error"])


LONG = "x" * 5000


@pytest.mark.parametrize(
    "body",
    [
        {"text": "a", "off": [LONG]},
        {"text": "a", "off": [f"L{number}H0" for number in range(9, 3000)]},
        {"text": "a", "off": ["L" + "9" * 4000 + "H1"]},
        {"text": "a", "off": ["\u0661.\u0661"]},
        {"text": "a", "off": ["L\u0661H\u0661"]},
        {"text": "a", "off": ["L\uff11H\uff11"]},
        {"text": "a", LONG: 1},
        {"text": "a", "method": LONG},
        {"text": "a", "off": [{LONG: LONG}]},
    ],
    ids=range(9),
)
def test_an_error_repeats_little_and_digits_are_ascii(running, body):
    status, answer, _ = running().send("/api/read", body)
    assert status == 422
    assert len(json.dumps(answer, ensure_ascii=False)) < 420


def test_an_error_about_a_place_repeats_little(running):
    status, answer, _ = running().send("/api/writes", {"text": "a b", "position": 10**4200})
    assert status == 422
    assert len(answer["error"]) < 320


def test_a_tokenizer_that_panics_is_a_sentence(running, reader, monkeypatch):
    class PanicException(BaseException):
        pass

    def panic(*_, **__):
        raise PanicException("no entry found for key")

    server = running()
    monkeypatch.setattr(type(reader.model.tokenizer), "__call__", panic)
    status, answer, _ = server.send("/api/read", {"text": "the"})
    assert status == 422
    assert answer["error"].startswith("the tokenizer of demo fails on this text (PanicException: no entry found for")
