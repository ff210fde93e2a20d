"""The page to work through the review queue, and its login; everything else it does goes through /v1/review.

The page is a frame without any text of users: its script fetches items as JSON and puts them in as text nodes. The
policy in its headers allows scripts and styles of this server alone, and no way to make markup of text.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from importlib import resources
from typing import Any

import jinja2
from fastapi import FastAPI, Request, Response
from fastapi.responses import HTMLResponse, JSONResponse

from incremental_llm.feedback.api.body import parse_body, read_body
from incremental_llm.feedback.api.keys import ApiKey
from incremental_llm.feedback.api.problem import Problem
from incremental_llm.feedback.api.service import Service
from incremental_llm.feedback.api.sessions import COOKIE, HEADER, SECONDS, new_session

_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'"
)
_HEADERS = {"Content-Security-Policy": _POLICY, "Referrer-Policy": "no-referrer", "X-Frame-Options": "DENY"}
_SCRIPTS = ("texts.js", "drafts.js", "keys.js", "review.js")
_TYPES = {"review.css": "text/css"} | dict.fromkeys(_SCRIPTS, "text/javascript")


def add_review_page(app: FastAPI, service: Service, lease_seconds: float, now: Callable[[], datetime]) -> None:
    """The page at /review, with its style, its script and its login."""
    template = _environment().get_template("review.html.j2")

    @app.get("/review", include_in_schema=False)
    async def page(request: Request) -> Response:
        """The queue for whoever is logged in, the login for everyone else."""
        try:
            key: ApiKey | None = (await service.caller(request, "review", session=True)).key
        except Problem as problem:
            if problem.status not in (401, 403):
                raise
            key = None
        reviewer = None if key is None else key.reviewer
        return HTMLResponse(template.render(reviewer=reviewer, lease_seconds=lease_seconds), headers=_HEADERS)

    @app.get("/review/{name}", include_in_schema=False)
    async def asset(name: str) -> Response:
        """Style and script."""
        if name not in _TYPES:
            raise Problem(404, f"one of {', '.join(_TYPES)}", "another", "GET /review is the page.")
        return Response(_resource(name), media_type=_TYPES[name], headers=_HEADERS)

    @app.post("/review/login", include_in_schema=False)
    async def login(request: Request) -> Response:
        """A session for a reviewer's own key, which never comes back from here."""
        key, credentials = await _presented(request, service)
        answer = JSONResponse({"reviewer": key.reviewer}, headers=_HEADERS)
        session = new_session(key, credentials, now().timestamp())
        _set_cookie(request, answer, session, SECONDS)
        return answer

    @app.post("/review/logout", include_in_schema=False)
    async def logout(request: Request) -> Response:
        """End the session, wherever its cookie may be, and forget it in this browser."""
        _check_same_site(request)
        session = await service.session(request)
        if session is not None:
            await service.end(session)
        answer = JSONResponse({}, headers=_HEADERS)
        _set_cookie(request, answer, "", 0)
        return answer


async def _presented(request: Request, service: Service) -> tuple[ApiKey, Any]:
    """The key in a login's body, which has to be one reviewer's own; raises Problem (401, 403, 422)."""
    _check_same_site(request)
    value = await parse_body(await read_body(request, service.settings), service.settings)
    text = value.get("key") if isinstance(value, dict) else None
    if not isinstance(text, str):
        raise Problem(422, '{"key": "illm_..."}', type(value).__name__, "Send the key.")
    credentials = await service.credentials()
    key = credentials.authenticate(f"Bearer {text}")
    if key is None:
        raise Problem(401, "a live API key", "one that is unknown or revoked", "Ask the operator for one.")
    request.state.key = key.id
    if "review" not in key.scopes or key.reviewer is None:
        do = "Make one: illm api-key create --scope review --name NAME --reviewer NAME."
        raise Problem(403, "a key with the scope review and a reviewer", "one without", do)
    return key, credentials


def _check_same_site(request: Request) -> None:
    if HEADER not in request.headers:
        raise Problem(403, f"the header {HEADER}, which the page sends", "none", "Use the page at /review.")


def _set_cookie(request: Request, answer: Response, value: str, seconds: int) -> None:
    secure = request.url.scheme == "https" or request.headers.get("x-forwarded-proto") == "https"
    answer.set_cookie(COOKIE, value, max_age=seconds, path="/", httponly=True, samesite="strict", secure=secure)


def _environment() -> jinja2.Environment:
    return jinja2.Environment(
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        loader=jinja2.FunctionLoader(_resource),
    )


def _resource(name: str) -> str:
    return resources.files("incremental_llm.feedback.api").joinpath("page", name).read_text(encoding="utf-8")
