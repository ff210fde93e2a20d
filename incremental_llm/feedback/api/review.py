"""The endpoints of the review queue."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Annotated, Any, Literal, TypeVar

import sqlalchemy as sa
from fastapi import FastAPI, Query, Request, Response
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from incremental_llm.feedback.api.body import encodable, parse_body
from incremental_llm.feedback.api.intake import TOKENS, Caller
from incremental_llm.feedback.api.problem import ErrorAnswer, Problem, unavailable
from incremental_llm.feedback.api.service import Service
from incremental_llm.feedback.events import Interaction
from incremental_llm.feedback.review import Flag, ReviewError, ReviewQueue, agreement, flagged
from incremental_llm.feedback.review.agreement import Share
from incremental_llm.feedback.review.items import (
    HINTS,
    Claim,
    Item,
    Kind,
    NotYoursError,
    State,
    UnknownItemError,
    Verdict,
)
from incremental_llm.feedback.store import FeedbackStore

_MOST_PASSED = 200

T = TypeVar("T")
B = TypeVar("B", bound=BaseModel)


class _Body(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class FlagBody(Flag):
    """A moderator's verdict; `reply_tokens` as for feedback, unless the key may review."""

    reply_tokens: tuple[str, ...] = Field((), max_length=2)


class ClaimBody(_Body):
    """`item` claims just that one, or holds it for longer; `but` are ids that were passed over."""

    item: str | None = None
    but: tuple[str, ...] = Field((), max_length=_MOST_PASSED)
    reviewer: str | None = None


class ReleaseBody(_Body):
    """Gives a claim back."""

    reviewer: str | None = None


class DecisionBody(_Body):
    """`content` belongs to correct alone, and is trained on as it stands."""

    verdict: Verdict
    content: str | None = None
    reviewer: str | None = None


class ReviewApi:
    """What the endpoints do: who asks, in whose name, and the queue in a thread."""

    def __init__(self, service: Service, store: FeedbackStore, queue: ReviewQueue) -> None:
        self._service, self._store, self._queue = service, store, queue

    async def items(
        self, request: Request, kind: Kind | None, state: State | None, limit: int, reviewer: str | None
    ) -> dict[str, Any]:
        who = await self._viewer(request, reviewer)
        states = () if state is None else (state,)
        found = await _aside(lambda: self._queue.items(kind=kind, states=states, reviewer=who, limit=limit))
        counts = await _aside(lambda: self._queue.counts(who))
        return {"items": [shown(item) for item in found], "counts": counts}

    async def item(self, request: Request, name: str, reviewer: str | None) -> dict[str, Any]:
        who = await self._viewer(request, reviewer)
        return shown(await _aside(lambda: self._queue.get(name, who)))

    async def flag(self, request: Request) -> dict[str, Any]:
        """A verdict from outside, on a reply that the caller has seen."""
        caller, body = await self._read(request, FlagBody, "ingest", "review")
        served = (await _aside(lambda: self._store.get([body.interaction]))).get(body.interaction)
        allowed = "review" in caller.key.scopes or any(caller.allows(t, body.interaction) for t in body.reply_tokens)
        if not allowed:
            do = (
                "Give the reply_token that came back when the interaction was logged, or use a key with --scope review."
            )
            found = f"{len(body.reply_tokens)} tokens, none of which is it" if body.reply_tokens else "none"
            raise Problem(403, f"{TOKENS}: the token of interaction {body.interaction[:100]!r}", found, do)
        if served is None or not isinstance(served.event, Interaction):
            raise Problem(422, "an interaction in the log", repr(body.interaction[:100]), "Log it first.")
        flag = Flag.model_validate(body.model_dump(exclude={"reply_tokens"}))
        proposal = flagged(flag, served.event, by=caller.key.name)
        return {"id": proposal.id, "outcome": await _aside(lambda: self._queue.flag(proposal))}

    async def claim(self, request: Request) -> dict[str, Any]:
        """The item that was asked for, or the next one; null when there is nothing to do."""
        caller, body = await self._read(request, ClaimBody, "review", session=True)
        reviewer = _reviewer(caller, body.reviewer)
        name = body.item
        if name is None:
            claim = await _aside(lambda: self._queue.next(reviewer, but=body.but))
        else:
            claim = await _aside(lambda: self._queue.claim(name, reviewer))
        counts = await _aside(lambda: self._queue.counts(reviewer))
        return {"claim": None if claim is None else claimed(claim), "counts": counts}

    async def release(self, request: Request, name: str) -> dict[str, Any]:
        caller, body = await self._read(request, ReleaseBody, "review", session=True)
        reviewer = _reviewer(caller, body.reviewer)
        await _aside(lambda: self._queue.release(name, reviewer))
        return {"item": name}

    async def decide(self, request: Request, name: str) -> dict[str, Any]:
        """The decision of whoever holds the item; the answer tells nothing that a seeded item would not."""
        caller, body = await self._read(request, DecisionBody, "review", session=True)
        reviewer = _reviewer(caller, body.reviewer)
        done = await _aside(lambda: self._queue.decide(name, reviewer, body.verdict, body.content))
        return {"item": done.item, "state": done.state}

    async def report(self, request: Request) -> dict[str, Any]:
        await self._service.caller(request, "review", "admin")
        found = await _aside(lambda: agreement(self._queue))
        rows = [{**vars_of(row), "agreed": share(row.agreed), "caught": share(row.caught)} for row in found.reviewers]
        return {"reviewers": rows, "alpha": found.alpha, "shared": found.shared}

    async def _viewer(self, request: Request, given: str | None) -> str | None:
        """Through whose eyes the caller looks: the key's own reviewer's, or those of whom the request names, if any."""
        caller = await self._service.caller(request, "review", session=True)
        return None if caller.key.reviewer is None and given is None else _reviewer(caller, given)

    async def _read(
        self, request: Request, model: type[B], *scopes: Literal["ingest", "review"], session: bool = False
    ) -> tuple[Caller, B]:
        """Who sends, counted as one event of its key, and what, as `model` has it."""
        caller, raw = await self._service.received(request, *scopes, session=session)
        value = await parse_body(raw, self._service.settings)
        self._service.take(caller, [], 1)
        if not encodable(value):
            raise Problem(422, "text in valid Unicode", "half of a surrogate pair", "Correct the text.")
        try:
            return caller, model.model_validate(value)
        except ValidationError as error:
            detail = error.errors(include_url=False)[0]
            where = ".".join(str(part) for part in detail["loc"]) or "the body"
            raise Problem(422, "a body as docs/review.md has it", f"{where}: {detail['msg']}", "Correct it.") from None


def shown(item: Item) -> dict[str, Any]:
    """An item as reviewers see it: all of it that a seeded one has as well."""
    about = item.proposal
    return {
        "id": item.id,
        "kind": about.kind,
        "reason": about.reason,
        "hint": HINTS.get(about.reason, ""),
        "priority": about.priority,
        "state": item.state,
        "claimed_by": item.claimed_by,
        "decided": item.decided,
        "created": item.created.isoformat(),
        "prompt": [message.model_dump() for message in about.prompt],
        "reply": about.reply,
        "other": about.other,
        "voices": [voice.model_dump() for voice in about.voices],
    }


def claimed(claim: Claim) -> dict[str, Any]:
    """A claim as its reviewer sees it."""
    return {"item": shown(claim.item), "reviewer": claim.reviewer, "expires": claim.expires.isoformat()}


def share(found: Share) -> dict[str, Any]:
    """A share with its interval."""
    return {"right": found.right, "n": found.n, "share": found.share, "interval": found.interval}


def vars_of(row: Any) -> dict[str, Any]:
    """The fields of a record with slots or without."""
    return {name: getattr(row, name) for name in row.__dataclass_fields__}


def _reviewer(caller: Caller, given: str | None) -> str:
    """In whose name it is decided: the key's own reviewer, or for a key without one whom the request names."""
    bound = caller.key.reviewer
    if bound is None and given is None:
        raise Problem(422, "a reviewer", "none", "Name one, or use a key made with --reviewer.")
    if bound is not None and given not in (None, bound):
        raise Problem(403, f"the reviewer {bound[:100]!r}, whose key this is", repr(given)[:100], "Leave it out.")
    return bound or given or ""


async def _aside(work: Callable[[], T]) -> T:
    """The result of `work` on the database, in a thread; its errors as problems."""
    try:
        return await asyncio.to_thread(work)
    except UnknownItemError as error:
        raise Problem(404, error.expected, error.found, error.do) from None
    except NotYoursError as error:
        raise Problem(409, error.expected, error.found, error.do) from None
    except ReviewError as error:
        raise Problem(422, error.expected, error.found, error.do) from None
    except sa.exc.SQLAlchemyError:
        raise unavailable("a database that can be read and written", "one that fails") from None


def add_review_routes(app: FastAPI, review: ReviewApi) -> None:
    """The endpoints under /v1/review."""
    errors: dict[int | str, dict[str, Any]] = {
        status: {"model": ErrorAnswer} for status in (400, 401, 403, 404, 408, 409, 413, 415, 422, 429, 500, 503)
    }

    @app.get("/v1/review/items", responses=errors)
    async def list_items(
        request: Request,
        kind: Kind | None = None,
        state: State | None = None,
        limit: Annotated[int, Query(ge=1, le=500)] = 100,
        reviewer: str | None = None,
    ) -> Response:
        """Items, most urgent first; of a reviewer those that this one may decide. Needs review."""
        return JSONResponse(await review.items(request, kind, state, limit, reviewer))

    @app.get("/v1/review/items/{item}", responses=errors)
    async def show_item(request: Request, item: str, reviewer: str | None = None) -> Response:
        """One item, as a reviewer sees it. Needs review."""
        return JSONResponse(await review.item(request, item, reviewer))

    @app.post("/v1/review/items", status_code=202, responses=errors, openapi_extra=_body(FlagBody))
    async def flag_reply(request: Request) -> Response:
        """A moderator's verdict on a logged reply. Needs ingest and the reply's token, or review."""
        return JSONResponse(await review.flag(request), 202)

    @app.post("/v1/review/claim", responses=errors, openapi_extra=_body(ClaimBody))
    async def claim_item(request: Request) -> Response:
        """Claim the next item, or the one that is named. Needs review."""
        return JSONResponse(await review.claim(request))

    @app.post("/v1/review/items/{item}/release", responses=errors, openapi_extra=_body(ReleaseBody))
    async def release_item(request: Request, item: str) -> Response:
        """Give a claim back. Needs review."""
        return JSONResponse(await review.release(request, item))

    @app.post("/v1/review/items/{item}/decision", responses=errors, openapi_extra=_body(DecisionBody))
    async def decide_item(request: Request, item: str) -> Response:
        """Decide an item that is claimed. Needs review."""
        return JSONResponse(await review.decide(request, item))

    @app.get("/v1/review/report", responses=errors)
    async def review_report(request: Request) -> Response:
        """Each reviewer's decisions, agreement and seeded items caught. Needs review or admin."""
        return JSONResponse(await review.report(request))


def _body(model: type[BaseModel]) -> dict[str, Any]:
    """What /openapi.json says of a body that is parsed by hand."""
    schema = model.model_json_schema()
    return {
        "requestBody": {"required": True, "content": {"application/json": {"schema": schema}}},
        "security": [{"api_key": []}],
    }
