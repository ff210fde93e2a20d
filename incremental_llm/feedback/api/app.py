"""The endpoints."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime
from functools import partial
from typing import Any, Literal

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel
from starlette.exceptions import HTTPException

from incremental_llm.feedback.api.boundary import Boundary, problem_answer
from incremental_llm.feedback.api.commit import GroupCommit
from incremental_llm.feedback.api.direct import DirectFastAPI
from incremental_llm.feedback.api.keys import KeyTable
from incremental_llm.feedback.api.metrics import Metrics
from incremental_llm.feedback.api.openapi import describe, event_body
from incremental_llm.feedback.api.problem import ErrorAnswer, Problem
from incremental_llm.feedback.api.review import ReviewApi, add_review_routes
from incremental_llm.feedback.api.review_page import add_review_page
from incremental_llm.feedback.api.service import Service
from incremental_llm.feedback.api.sessions import EndedSessions
from incremental_llm.feedback.api.settings import ApiSettings
from incremental_llm.feedback.events import EVENT_TYPES
from incremental_llm.feedback.review import ReviewQueue
from incremental_llm.feedback.store import FeedbackStore

_DIRECT = frozenset(("/v1/interactions", "/v1/feedback", "/v1/batch"))
_FEEDBACK = tuple(kind for kind in EVENT_TYPES if kind != "interaction")


class Accepted(BaseModel):
    """The event is on the disk. `waiting`: it gets its place in the log when its interaction arrives."""

    id: str
    outcome: Literal["added", "waiting", "duplicate"]


class AcceptedInteraction(Accepted):
    """The interaction is on the disk; feedback on it has to bring `reply_token`."""

    reply_token: str


class BatchOutcome(BaseModel):
    """What became of the event at `position`, from 0; `reason` only where it was refused."""

    position: int
    id: str | None
    outcome: Literal["added", "waiting", "duplicate", "refused"]
    reply_token: str | None = None
    reason: str | None = None


class BatchAnswer(BaseModel):
    """One outcome for each event; all that were not refused are on the disk."""

    results: list[BatchOutcome]


class Health(BaseModel):
    """The server takes events."""

    status: Literal["ok"]


def create_app(
    store: FeedbackStore,
    settings: ApiSettings | None = None,
    *,
    review: ReviewQueue | None = None,
    clock: Callable[[], float] = time.monotonic,
    now: Callable[[], datetime] = lambda: datetime.now(UTC),
) -> FastAPI:
    """The application on a store, which stays open as long as it runs; `clock` counts seconds for the rate limits.

    `review` is the review queue, by default one in which only equal replies say the same.
    """
    limits = settings or ApiSettings()
    metrics = Metrics()
    service = Service(KeyTable(store), EndedSessions(store), limits, metrics, clock, now)

    @contextlib.asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        writer = GroupCommit(
            store,
            max_requests=limits.queue_requests,
            max_bytes=limits.queue_bytes,
            group_events=limits.group_events,
            keep_seconds=limits.answer_days * 86400,
            observe=metrics.commit,
        )
        metrics.watch_queue(lambda: len(writer))
        service.writer = writer
        try:
            yield
        finally:
            await asyncio.to_thread(writer.close)

    app = DirectFastAPI(
        partial(Boundary, max_in_flight=limits.max_in_flight, observe=metrics.request),
        _DIRECT,
        title="incremental_llm ingestion",
        summary="Log replies, send feedback. A 202 means that it is on the disk.",
        version="1",
        lifespan=lifespan,
        redoc_url=None,
        swagger_ui_oauth2_redirect_url=None,
    )
    for kind in (Problem, HTTPException, RequestValidationError, Exception):
        app.add_exception_handler(kind, _answer_problem)
    _add_routes(app, service)
    queue = review or ReviewQueue(store, now=now)
    add_review_routes(app, ReviewApi(service, store, queue))
    add_review_page(app, service, queue.settings.lease_seconds, now)
    describe(app)
    return app


async def _answer_problem(request: Request, error: Exception) -> Response:
    return problem_answer(request, error)


def _add_routes(app: FastAPI, service: Service) -> None:
    errors: dict[int | str, dict[str, Any]] = {
        status: {"model": ErrorAnswer} for status in (400, 401, 403, 408, 409, 413, 415, 422, 429, 500, 503)
    }

    @app.post(
        "/v1/interactions",
        status_code=202,
        responses={**errors, 202: {"model": AcceptedInteraction}},
        openapi_extra=event_body("interaction"),
    )
    async def log_interaction(request: Request) -> Response:
        """Log one reply as it was served. Needs the scope ingest."""
        return JSONResponse(await service.one(request, ("interaction",)), 202)

    @app.post(
        "/v1/feedback",
        status_code=202,
        responses={**errors, 202: {"model": Accepted}},
        openapi_extra=event_body(*_FEEDBACK),
    )
    async def send_feedback(request: Request) -> Response:
        """Send one piece of feedback. Needs ingest, a correction or policy change review."""
        return JSONResponse(await service.one(request, _FEEDBACK), 202)

    @app.post(
        "/v1/batch",
        status_code=202,
        responses={**errors, 202: {"model": BatchAnswer}},
        openapi_extra=event_body(*EVENT_TYPES, batch=True),
    )
    async def send_batch(request: Request) -> Response:
        """Send events of any types, each with an outcome of its own. One that is refused stops no other."""
        return JSONResponse({"results": await service.batch(request, EVENT_TYPES)}, 202)

    @app.get("/health", responses={200: {"model": Health}, 503: {"model": ErrorAnswer}})
    async def health() -> Response:
        """Whether events are taken: 503 when the last transaction failed. Needs no key."""
        await service.check_writer()
        return JSONResponse({"status": "ok"})

    @app.get("/metrics", responses={200: {"content": {"text/plain": {}}}, 401: {"model": ErrorAnswer}})
    async def metrics(request: Request) -> Response:
        """Counters for Prometheus. Needs the scope admin."""
        await service.check_admin(request)
        return Response(service.metrics.page(), media_type="text/plain; version=0.0.4")
