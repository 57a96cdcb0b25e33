"""Who may speak to the server, and how much at once.

    Host      127.0.0.1 or localhost, with our port: blocks DNS rebinding
    Origin    ours, where there is one: another page's requests are refused
    token     on every request but that for the page itself, which holds no data
    body      JSON, at most 256 kB, counted while it is read
    time      `headscope.explore.connection`: a request is whole within seconds, and few are waited for
    answers   carry a policy of their own, are kept by nobody, and may be embedded nowhere

The token is 256 random bits that die with the server. It comes to the page in the fragment of the address that the
terminal prints, since a fragment is the one part of an address that no browser sends: it is in no request line, no log
and no Referer. The page moves it into its own storage and takes it out of the address bar, so that an address that is
copied or bookmarked holds the state and no secret, and opens in the same browser alone. From there it goes into the
`Authorization` header. A cookie would go to every server on 127.0.0.1, whatever its port; storage belongs to one port.
And a page of another origin can set no such header without leave, which is never given.

Comparison takes the same time for every wrong token. Whoever can read this terminal or the memory of the user's
programs can read the token: it protects from other users and other pages, not from the user.
"""

from __future__ import annotations

import asyncio
import json
import secrets
from collections.abc import Mapping
from contextlib import suppress

from starlette.types import ASGIApp, Message, Receive, Scope, Send

MAX_BODY = 256 * 1024
"""Bytes of a request: the longest text, every character of it escaped."""
API = "/api/"
"""What needs the token begins with this."""

HEADERS: Mapping[str, str] = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
    "Cross-Origin-Embedder-Policy": "require-corp",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}
"""On every answer that does not set its own."""


class Guard:
    """An ASGI application behind these rules.

    Args:
        app: What answers whoever passes.
        port: Ours.
        token: The secret.
    """

    def __init__(self, app: ASGIApp, *, port: int, token: str) -> None:
        self._app, self._token = app, token.encode()
        self._hosts = {f"{name}:{port}".encode() for name in ("127.0.0.1", "localhost")}
        self._origins = {b"http://" + host for host in self._hosts}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request, or refuse it."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        assert scope["type"] == "http", "the server is started without websockets"

        async def sealed(message: Message) -> None:
            if message["type"] == "http.response.start":
                given = {name.lower() for name, _ in message["headers"]}
                extra = [(name.lower().encode(), value.encode()) for name, value in HEADERS.items()]
                message["headers"] = [*message["headers"], *(one for one in extra if one[0] not in given)]
            await send(message)

        refusal = self._refusal(scope)
        body = b"" if refusal else await _read(receive)
        if body is None:
            refusal = 413, f"the request is longer than {MAX_BODY} bytes; shorten the text."
        if refusal:
            await _refuse(sealed, *refusal)
            return
        first = True

        async def again() -> Message:
            nonlocal first
            if first:
                first = False
                return {"type": "http.request", "body": body, "more_body": False}
            return await receive()

        try:
            await self._app(scope, again, sealed)
        except asyncio.CancelledError:  # the server ends, and has waited long enough
            with suppress(RuntimeError):  # an answer may have begun
                await _refuse(sealed, 503, "the server is ending.")

    def _refusal(self, scope: Scope) -> tuple[int, str] | None:
        """Status and sentence for whoever may not pass."""

        def given(name: bytes) -> list[bytes]:
            return [value for key, value in scope["headers"] if key == name]

        hosts, origins = given(b"host"), given(b"origin")
        if len(hosts) != 1 or hosts[0].lower() not in self._hosts:
            return 403, f"this server answers to {_either(self._hosts)} alone; open the address that it printed."
        if any(origin not in self._origins for origin in origins):
            return 403, "the request comes from another page; only the page of this server may ask."
        if scope["path"].startswith(API) and not self._knows(given(b"authorization")):
            return 401, "the request has no valid token; open the address that headscope explore printed."
        if scope["method"] == "POST" and not any(_is_json(one) for one in given(b"content-type")):
            return 415, "the request is not JSON; send it as application/json."
        declared = given(b"content-length")
        if any(not one.isdigit() or len(one) > 12 or int(one) > MAX_BODY for one in declared):
            return 413, f"the request is longer than {MAX_BODY} bytes; shorten the text."
        return None

    def _knows(self, given: list[bytes]) -> bool:
        scheme, _, token = (given[0] if len(given) == 1 else b"").partition(b" ")
        return scheme.lower() == b"bearer" and secrets.compare_digest(token, self._token)


async def _read(receive: Receive) -> bytes | None:
    """The body, or None as soon as it is too long; what the client did not finish is empty."""
    parts: list[bytes] = []
    size, more = 0, True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            return b""
        parts.append(message.get("body", b""))
        size += len(parts[-1])
        if size > MAX_BODY:
            return None
        more = message.get("more_body", False)
    return b"".join(parts)


def _is_json(kind: bytes) -> bool:
    return kind.partition(b";")[0].strip().lower() == b"application/json"


async def _refuse(send: Send, status: int, sentence: str) -> None:
    body = json.dumps({"error": sentence}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": [*headers, (b"connection", b"close")]})
    await send({"type": "http.response.body", "body": body})


def _either(hosts: set[bytes]) -> str:
    return " or ".join(sorted(host.decode() for host in hosts))
