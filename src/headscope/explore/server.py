"""`headscope explore`: the report's page, live on the user's own prompt.

    GET  /             the page: the same bundle as the report's, without data
    GET  /api/model    which model, its heads, and what can be asked
    GET  /api/report   the document `headscope.report/1`, or 202 and how far it has come
    POST /api/read     {"text", "off": [head], "method"}          `Reader.read`
    POST /api/pattern  {... "head"}                               `Reader.pattern`
    POST /api/patterns {"text", "off": [head], "method"}        `Reader.glance`
    POST /api/looks    {... "query", "key"}                       `Reader.looks`
    POST /api/writes   {... "position"}                           `Reader.writes`
    POST /api/against  {"text", "off": [head], "method"}          `Against.read`, where there is a second model

What was asked wrongly gets a 4xx answer, what would wait behind too many others 503, each with one sentence:
{"error": "..."}. `"of": "against"` in a question asks the second model. `headscope.explore.guard` says who may ask,
`headscope.explore.work_queue` when it is computed, and `headscope.explore.reading` what. Answers are made in the
computing thread, so that the page and quick answers wait for nothing.
"""

from __future__ import annotations

import asyncio
import base64
import json
import secrets
import signal
import socket
import threading
from collections.abc import AsyncGenerator, Callable, Generator, Sequence
from contextlib import asynccontextmanager, contextmanager
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import uvicorn
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ConfigDict
from starlette.exceptions import HTTPException

from headscope.errors import ArgumentError, HeadscopeError
from headscope.explore.against import Against
from headscope.explore.connection import Connection
from headscope.explore.guard import API, Guard
from headscope.explore.reading import MAX_CHARACTERS, Reader
from headscope.explore.starting import starts
from headscope.explore.work_queue import BackgroundTask, Failed, Full, Progress, WorkQueue
from headscope.model.load import Model
from headscope.page.html import page_html, policy
from headscope.page.report import refuse_other_models, report_document
from headscope.records.codec import encode
from headscope.records.common import ModelInfo

if TYPE_CHECKING:
    from headscope.evidence.behavior.result import BehaviorResult

SCHEMA = "headscope.explore/1"
ADDRESS = "127.0.0.1"
BACKLOG = 128
"""Connections that may wait to be accepted; as many may be accepted at once."""
PATIENCE_S = 3
"""Seconds that answers on their way have when the server ends."""


class Asked(BaseModel):
    """A text, and the heads that are switched off while it is read."""

    model_config: ClassVar[ConfigDict] = ConfigDict(strict=True, extra="forbid")
    text: str
    off: list[str] = []
    method: Literal["zero", "mean"] = "mean"
    of: Literal["model", "against"] = "model"


class AskedPattern(Asked):
    """Where one head looks."""

    head: str


class AskedLooks(Asked):
    """Who looks from one token to another."""

    query: int
    key: int


class AskedWrites(Asked):
    """What is written at one token."""

    position: int


def serve(
    model: Model,
    *,
    port: int = 0,
    seed: int = 0,
    behavior: Sequence[BehaviorResult] = (),
    against: Model | None = None,
    announce: Callable[[str], None],
) -> None:
    """Serve the page of a model to this machine until Ctrl-C or SIGTERM.

    Args:
        model: A loaded model.
        port: To listen on; 0 takes a free one.
        seed: Of all probes.
        behavior: What `hs.behavior` gave for this model, for the report.
        against: A second model of the same vocabulary, which reads every prompt too.
        announce: Called with the page's address, which holds the token, once it can be opened.

    Raises:
        ArgumentError: the port cannot be listened on, results of another model, or a second model of another
            vocabulary.
    """
    refuse_other_models(ModelInfo.of(model), behavior)
    reader = Reader(model, seed=seed)
    both = None if against is None else Against(reader, Reader(against, seed=seed))
    with listening(port) as listener:
        token, port = secrets.token_urlsafe(32), listener.getsockname()[1]
        server = server_of(reader, port=port, token=token, seed=seed, behavior=behavior, against=both)
        with _told_to_end(server):
            announce(f"http://{ADDRESS}:{port}/#token={token}")  # a fragment: see `headscope.explore.guard`
            server.run(sockets=[listener])


@contextmanager
def _told_to_end(server: uvicorn.Server) -> Generator[None, None, None]:
    """Ctrl-C, or SIGTERM, which service managers send, ends the server. Main thread only, as signals are."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def end(*_: object) -> None:
        server.should_exit = True

    before = {number: signal.signal(number, end) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def listening(port: int) -> socket.socket:
    """A socket on this machine's own address.

    Raises:
        ArgumentError: the port is no port, is taken, or is not ours to take.
    """
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((ADDRESS, port))
        listener.listen(BACKLOG)
    except (OSError, OverflowError) as error:
        listener.close()
        reason = getattr(error, "strerror", None) or "a port is a number from 0 to 65535"
        raise ArgumentError(f"port {port} cannot be listened on: {reason}; name another, or leave it open.") from error
    return listener


def server_of(
    reader: Reader,
    *,
    port: int,
    token: str,
    seed: int = 0,
    behavior: Sequence[BehaviorResult] = (),
    work: WorkQueue | None = None,
    against: Against | None = None,
) -> uvicorn.Server:
    """The server of one model, to be run on a socket of this port."""
    app = Guard(application(reader, seed=seed, behavior=behavior, work=work, against=against), port=port, token=token)
    return uvicorn.Server(
        uvicorn.Config(
            app,
            http=Connection,
            backlog=BACKLOG,
            ws="none",
            lifespan="on",
            log_level="error",
            access_log=False,
            server_header=False,
            proxy_headers=False,
            timeout_graceful_shutdown=PATIENCE_S,
        )
    )


def application(
    reader: Reader,
    *,
    seed: int = 0,
    behavior: Sequence[BehaviorResult] = (),
    work: WorkQueue | None = None,
    against: Against | None = None,
) -> FastAPI:
    """What answers, without its guard; the report is begun when it starts."""
    work = work or WorkQueue()
    model = reader.model
    report = BackgroundTask(work, lambda progress: _document(model, seed, behavior, progress))
    page = page_html(title=f"{model.id} - headscope", source=API).encode()
    headers = {"Content-Security-Policy": f"{policy(live=True)}; frame-ancestors 'none'"}
    beginnings = starts(model, seed=seed)
    about = as_json(
        {
            "schema": SCHEMA,
            "model": encode(ModelInfo.of(model)),
            "heads": encode(reader.heads),
            "suggestion": beginnings[0].text,
            "examples": encode(beginnings),
            "max_characters": MAX_CHARACTERS,
            "max_tokens": reader.limit,
            "against": None if against is None else encode(ModelInfo.of(against.second.model)),
        }
    )

    @asynccontextmanager
    async def living(app: FastAPI) -> AsyncGenerator[None, None]:
        report.start()
        try:
            yield
        finally:
            await asyncio.to_thread(work.close)
            await asyncio.to_thread(report.stop)

    app = FastAPI(openapi_url=None, docs_url=None, redoc_url=None, redirect_slashes=False, lifespan=living)

    _say_what_was_wrong(app, work)
    _read_on_demand(app, reader, against, work)

    @app.get("/")
    async def show() -> Response:
        return Response(page, media_type="text/html; charset=utf-8", headers=headers)

    @app.get(f"{API}model")
    async def which() -> Response:
        return Response(about, media_type="application/json")

    @app.get(f"{API}report")
    async def made() -> Response:
        state = report.state
        if isinstance(state, bytes):
            return Response(state, media_type="application/json")
        if isinstance(state, Failed):
            return error_response(500 if state.ours else 422, state.error)
        return Response(as_json(encode(state)), status_code=202, media_type="application/json")

    return app


def _say_what_was_wrong(app: FastAPI, work: WorkQueue) -> None:
    """Every error is answered with one sentence."""

    async def refuse(request: Request, error: Exception) -> Response:
        match error:
            case HeadscopeError():
                return error_response(422, str(error))
            case RequestValidationError() if error.errors()[0]["type"] != "json_invalid":
                return error_response(422, _mistake(error))
            case HTTPException(status_code=404):
                return error_response(404, "there is nothing at this path; the page is at '/'.")
            case HTTPException(status_code=405):
                return error_response(405, f"{request.method} is not answered at this path.")
            case RequestValidationError() | HTTPException():
                return error_response(400, "the request is not JSON; send one JSON object.")
            case Full():
                return error_response(503, f"{work.waiting} computations wait already; ask again later.")
            case _:
                why = "headscope failed, which is a defect of its own; the terminal has the traceback."
                return error_response(500, why)

    for kind in (HeadscopeError, RequestValidationError, HTTPException, Full, Exception):
        app.add_exception_handler(kind, refuse)


def _read_on_demand(app: FastAPI, reader: Reader, against: Against | None, work: WorkQueue) -> None:
    """What the page asks about a text, each computed in its turn."""

    def both() -> Against:
        if against is None:
            raise ArgumentError("there is no second model; start headscope explore with --against MODEL.")
        return against

    def asked_of(asked: Asked) -> Reader:
        return both().second if asked.of == "against" else reader

    async def answer(request: Request, ask: Callable[[], Any]) -> Response:
        """What the queue computes; nobody waits for an asker that has gone."""
        computed = work.submit(lambda: as_json(ask()))
        waited, gone = asyncio.wrap_future(computed), asyncio.ensure_future(request.receive())
        await asyncio.wait({waited, gone}, return_when=asyncio.FIRST_COMPLETED)
        gone.cancel()
        if not waited.done():
            waited.cancel()
            return Response(status_code=499)  # nobody reads it
        return Response(waited.result(), media_type="application/json")

    @app.post(f"{API}read")
    async def read(asked: Asked, request: Request) -> Response:
        return await answer(
            request, lambda: encode(asked_of(asked).read(asked.text, off=asked.off, method=asked.method))
        )

    @app.post(f"{API}pattern")
    async def pattern(asked: AskedPattern, request: Request) -> Response:
        def ask() -> dict[str, str]:
            found = asked_of(asked).pattern(asked.text, asked.head, off=asked.off, method=asked.method)
            return {"bytes": base64.b64encode(found.tobytes()).decode()}

        return await answer(request, ask)

    @app.post(f"{API}patterns")
    async def patterns(asked: Asked, request: Request) -> Response:
        def ask() -> dict[str, Any]:
            found = asked_of(asked).glance(asked.text, off=asked.off, method=asked.method)
            heads = [
                {
                    **encode(one.head),
                    "bytes": base64.b64encode(one.pattern.tobytes()).decode(),
                    "stripe": one.stripe,
                    "chance": one.chance,
                }
                for one in found.heads
            ]
            return {"side": found.side, "targets": [list(pair) for pair in found.targets], "heads": heads}

        return await answer(request, ask)

    @app.post(f"{API}looks")
    async def looks(asked: AskedLooks, request: Request) -> Response:
        def ask() -> Any:
            return encode(asked_of(asked).looks(asked.text, asked.query, asked.key, off=asked.off, method=asked.method))

        return await answer(request, ask)

    @app.post(f"{API}writes")
    async def writes(asked: AskedWrites, request: Request) -> Response:
        def ask() -> Any:
            return encode(asked_of(asked).writes(asked.text, asked.position, off=asked.off, method=asked.method))

        return await answer(request, ask)

    @app.post(f"{API}against")
    async def beside(asked: Asked, request: Request) -> Response:
        return await answer(request, lambda: encode(both().read(asked.text, off=asked.off, method=asked.method)))


def as_json(document: Any) -> bytes:
    """A document as bytes, in ASCII, so that halves of surrogate pairs pass too."""
    return json.dumps(document, allow_nan=False, separators=(",", ":")).encode()


def error_response(status: int, sentence: str) -> Response:
    """An answer that says what was wrong."""
    return Response(as_json({"error": sentence}), status_code=status, media_type="application/json")


def _document(model: Model, seed: int, behavior: Sequence[BehaviorResult], progress: Progress) -> bytes:
    return as_json(report_document(model, seed=seed, behavior=behavior, progress=progress))


def _mistake(error: RequestValidationError) -> str:
    """The first thing that is wrong with a request."""
    first = error.errors()[0]
    where = ".".join(map(str, first["loc"][1:]))[:80]
    what = f"the field {where!r}" if where else "the request"
    return f"{what} is not as it should be: {first['msg'][0].lower()}{first['msg'][1:]}."
