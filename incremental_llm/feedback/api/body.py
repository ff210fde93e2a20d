"""Reading a body: bounded while it arrives, strict JSON, no deeper than allowed."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any, TypeVar

from starlette.requests import ClientDisconnect, Request

from incremental_llm.feedback.api.problem import Problem
from incremental_llm.feedback.api.settings import ApiSettings
from incremental_llm.strict_json import deeper, parse_json

_T = TypeVar("_T")
_CLOSE = {"Connection": "close"}  # what is still on its way is not waited for
_SMALL = 1 << 16
"""Bytes; what a larger body needs is done in a thread, so that others are served meanwhile."""


async def read_body(request: Request, settings: ApiSettings) -> bytes:
    """The body's bytes; raises Problem (408, 413, 415) as soon as it is clear."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise Problem(415, "Content-Type: application/json", repr(kind) if kind else "none", "Send JSON.")
    coding = request.headers.get("content-encoding", "identity")
    if coding.lower() != "identity":
        raise Problem(415, "a body that is not compressed", f"Content-Encoding: {coding}", "Send it as it is.")
    announced = request.headers.get("content-length", "")
    if announced.isascii() and announced.isdigit() and int(announced[:20]) > settings.max_body_bytes:
        raise _too_large(settings, f"{announced[:20]} bytes announced")
    body = bytearray()
    try:
        async with asyncio.timeout(settings.body_seconds):
            async for piece in request.stream():
                body += piece
                if len(body) > settings.max_body_bytes:
                    raise _too_large(settings, "more")
    except TimeoutError:
        late = f"the whole body within {settings.body_seconds:g} seconds"
        raise Problem(408, late, f"{len(body)} bytes of it", "Send it again, faster or in parts.", _CLOSE) from None
    except ClientDisconnect:
        raise Problem(
            400, "the whole body", f"a connection that ended after {len(body)} bytes", "Send it again."
        ) from None
    return bytes(body)


async def parse_body(body: bytes, settings: ApiSettings) -> Any:
    """The JSON value in `body`; raises Problem (400)."""
    return await aside(len(body), lambda: _parse(body, settings.max_depth))


async def aside(size: int, work: Callable[[], _T]) -> _T:
    """The result of `work` on a body of `size` bytes, done where it keeps nobody waiting."""
    return await asyncio.to_thread(work) if size > _SMALL else work()


def encodable(value: Any) -> bool:
    """Whether all text in a JSON value can be written as UTF-8: an escape may stand for half of a surrogate pair."""
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return False
    return True


def _parse(body: bytes, max_depth: int) -> Any:
    try:
        value = parse_json(body.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise _bad(f"byte 0x{body[error.start]:02x} at position {error.start + 1}, which is not UTF-8") from None
    except json.JSONDecodeError as error:
        raise _bad(f"an error at position {error.pos + 1}: {error.msg}") from None
    except ValueError as error:
        raise _bad(str(error)) from None
    if deeper(value, max_depth):
        raise _bad(f"JSON nested deeper than {max_depth} levels")
    return value


def _bad(found: str) -> Problem:
    return Problem(400, "a body of strict JSON in UTF-8", found, "Correct the body and send it again.")


def _too_large(settings: ApiSettings, found: str) -> Problem:
    do = "Send fewer events at once, or shorter ones."
    return Problem(413, f"a body of at most {settings.max_body_bytes} bytes", found, do, _CLOSE)
