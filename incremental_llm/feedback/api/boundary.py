"""What surrounds every request: an id, a bound on how many there are, one log line, and no error that gets through."""

from __future__ import annotations

import itertools
import logging
import secrets
import time
import traceback
from collections.abc import Callable
from typing import Any

from fastapi.exceptions import RequestValidationError
from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from incremental_llm.feedback.api.problem import Problem, unavailable

access_log = logging.getLogger("incremental_llm.ingest.access")
_log = logging.getLogger("incremental_llm.ingest")

_PROCESS = secrets.token_hex(6)


class Boundary:
    """ASGI middleware; the log line holds neither bodies, headers nor anything else that a client wrote."""

    def __init__(self, app: ASGIApp, max_in_flight: int, observe: Callable[[str, int, float], None]) -> None:
        self._app = app
        self._max_in_flight, self._in_flight = max_in_flight, 0
        self._observe = observe
        self._ids = (f"{_PROCESS}-{number}" for number in itertools.count(1))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        state: dict[str, Any] = scope.setdefault("state", {})
        state["request_id"] = next(self._ids)
        start, status = time.perf_counter(), 0

        async def answer(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                headers["X-Request-ID"] = state["request_id"]
                headers["Cache-Control"] = "no-store"
                headers["X-Content-Type-Options"] = "nosniff"
            await send(message)

        self._in_flight += 1
        try:
            if self._in_flight > self._max_in_flight:
                found = f"{self._in_flight}"
                raise unavailable(f"at most {self._max_in_flight} requests at once", found)
            await self._app(scope, receive, answer)
        except Exception as error:
            # Without the error's text, which may quote what a user said.
            if not isinstance(error, Problem):
                where = "".join(traceback.format_tb(error.__traceback__))
                _log.error("request %s: %s\n%s", state["request_id"], type(error).__name__, where)
            if not status:
                await problem_answer(Request(scope), error)(scope, receive, answer)
        finally:
            self._in_flight -= 1
            seconds = time.perf_counter() - start
            route = getattr(scope.get("route"), "path", "none")
            self._observe(route, status, seconds)
            access_log.info(
                "%s %s %d %.1fms key=%s request=%s",
                *(scope["method"], route, status, seconds * 1e3, state.get("key", "-"), state["request_id"]),
            )
        return None


def problem_answer(request: Request, error: Exception) -> Response:
    """The answer to a request that raised; of an unexpected error it says nothing but the request's id."""
    match error:
        case Problem():
            problem = error
        case RequestValidationError():
            detail = error.errors()[0]
            where = " ".join(str(part) for part in detail["loc"])
            problem = Problem(422, "parameters as GET /docs lists them", f"{where}: {detail['msg']}", "Correct it.")
        case HTTPException(status_code=404):
            problem = Problem(404, "a path of this API", "none of them", "GET /docs lists them.")
        case HTTPException(status_code=405):
            problem = Problem(405, "another method", request.method[:20], "GET /docs lists them.", error.headers)
        case HTTPException():
            problem = Problem(error.status_code, "a valid request", error.detail, "Correct it.", error.headers)
        case _:
            do = "Send it again with the same id or Idempotency-Key. If it stays so, give the operator the request_id."
            problem = Problem(500, "an answer", "an error in the server", do)
    body = problem.body(request.state.request_id)
    return JSONResponse(body, status_code=problem.status, headers=problem.headers)
