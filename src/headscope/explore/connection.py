"""One connection: uvicorn's own protocol, with limits in time and number.

    a request      is whole within `REQUEST_S` of its first byte, or the connection is closed
    no request     at most `WAITING` connections wait for one or for the rest of one; of more, the oldest are closed,
                   those that never asked anything before those that did
    an answer      is read on within `ANSWER_S`, or the connection is closed
    a refusal      may come before the request is whole. Then what is still sent is read and forgotten for `REQUEST_S`,
                   since a close would take the answer away from who is still writing

So programs that open connections and say nothing cost neither the user's page nor file handles nor lines in a log.
"""

# pyright: reportUnknownLambdaType=false
from __future__ import annotations

import asyncio
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol, RequestResponseCycle

REQUEST_S = 5.0
"""Seconds that a request may take to arrive, and that a connection may wait for its next one."""
ANSWER_S = 20.0
"""Seconds that an answer may wait to be read on."""
WAITING = 256
"""Connections on which no whole request has come."""


class Connection(H11Protocol):
    """See the module's text."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.since: float | None = None
        """When it began to wait; None while an answer is being made."""
        self.answered: int = 0
        """Requests so far."""
        self.draining: bool = False
        """Whether its answer is sent, and what still comes is forgotten."""
        self._begun = False
        self._timer: asyncio.TimerHandle | None = None
        self._stalled: asyncio.TimerHandle | None = None
        self._own: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin to wait for a request."""
        super().connection_made(transport)
        self._own = transport
        self.transport: Any = _Closing(transport, self)
        self._wait()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the connection."""
        self._stop(self._timer)
        self._stop(self._stalled)
        self._timer = self._stalled = self.since = None
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """A part of a request."""
        if self.draining:
            return
        if not self._begun:
            self._begun = True
            self._wait()
        super().data_received(data)
        if self._answering():
            self._stop(self._timer)
            self._timer = self.since = None

    def on_response_complete(self) -> None:
        """Wait for the next request."""
        self.answered += 1
        self._begun = False
        super().on_response_complete()
        if not self.draining and not self._answering():
            self._wait()

    def timeout_keep_alive_handler(self) -> None:
        """This class has its own time for that."""

    def pause_writing(self) -> None:
        """The client does not read."""
        super().pause_writing()
        self._stalled = self.loop.call_later(ANSWER_S, self.abort)

    def resume_writing(self) -> None:
        """It reads again."""
        super().resume_writing()
        self._stop(self._stalled)

    def shutdown(self) -> None:
        """The server ends: who has not asked in full is not waited for."""
        if self._answering():
            super().shutdown()
        else:
            self.abort()

    def abort(self) -> None:
        """Close at once."""
        if self._own is not None:
            self._own.abort()

    def drain(self) -> None:
        """Send what is written, and forget what still comes, for a while."""
        if self.draining or self._own is None:
            return
        self.draining = True
        if self._own.can_write_eof():
            self._own.write_eof()
        self.flow.resume_reading()
        self._wait()

    def unfinished(self) -> bool:
        """Whether the client may still be sending a request."""
        return self.conn.their_state in (h11.SEND_BODY, h11.ERROR)

    def _answering(self) -> bool:
        return _is_open(self.cycle)

    def _wait(self) -> None:
        self._stop(self._timer)
        self._timer = self.loop.call_later(REQUEST_S, self.abort)
        self.since = self.loop.time()
        waiting = [one for one in self.connections if isinstance(one, Connection) and one.since is not None]
        if len(waiting) > WAITING:
            waiting.sort(key=lambda one: (one.answered > 0 and not one.draining, one.since))
            for one in waiting[: len(waiting) - WAITING]:
                one.since = None  # it is counted no more; the loop calls `connection_lost` later
                one.abort()

    @staticmethod
    def _stop(timer: asyncio.TimerHandle | None) -> None:
        if timer is not None:
            timer.cancel()


class _Closing:
    """A transport whose close leaves a client the time to read its answer."""

    def __init__(self, transport: asyncio.Transport, connection: Connection) -> None:
        self._transport, self._connection = transport, connection

    def close(self) -> None:
        if self._connection.unfinished():
            self._connection.drain()
        else:
            self._transport.close()

    def is_closing(self) -> bool:
        return self._connection.draining or self._transport.is_closing()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)


def _is_open(cycle: RequestResponseCycle | None) -> bool:
    """Whether a request was read whole and waits for its answer; None before the first."""
    return cycle is not None and not cycle.more_body and not cycle.response_complete
