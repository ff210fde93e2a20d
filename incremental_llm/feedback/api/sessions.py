"""Sessions of the review page: a cookie that stands for an API key and holds none of it.

`KEY_ID.EXPIRES.NUMBER.ID.MAC`, signed by signing secret NUMBER over the key's digest too: a session ends with its time,
with the key, with `illm api-key rotate-tokens --end-old`, and when its reviewer logs out, which the database keeps for
as long as it would have lasted. A cookie is sent by a browser whoever asks it to, so it is SameSite=Strict, and a
request that it stands for has to carry a header that no other site can make a browser send.
"""

from __future__ import annotations

import base64
import hmac
import secrets
from dataclasses import dataclass

import sqlalchemy as sa
from starlette.requests import Request

from incremental_llm.chat import canonical_json
from incremental_llm.feedback.api import tables
from incremental_llm.feedback.api.keys import ApiKey, Credentials
from incremental_llm.feedback.store import FeedbackStore
from incremental_llm.feedback.tables import create_missing

COOKIE = "illm_review"
HEADER = "X-Illm-Review"
SECONDS = 12 * 3600
"""How long a session lasts: a working day."""

_ENDED = tables.ended_sessions.c


@dataclass(frozen=True, slots=True)
class Session:
    """The key that a session stands for, its own random id, and when it ends, in seconds since 1970."""

    key: ApiKey
    id: str
    expires: int


class EndedSessions:
    """The sessions that somebody has logged out of, in the feedback database; every server on it knows them."""

    def __init__(self, store: FeedbackStore) -> None:
        self._store = store
        with store.writing() as connection:
            create_missing(connection, tables.metadata)

    def end(self, session: Session, now: float) -> None:
        """From now on the session counts no more; `now` in seconds since 1970."""
        with self._store.writing() as connection:
            connection.execute(sa.delete(tables.ended_sessions).where(_ENDED.expires <= now))
            if connection.execute(sa.select(_ENDED.id).where(_ENDED.id == session.id)).first() is None:
                row = {"id": session.id, "expires": session.expires}
                connection.execute(sa.insert(tables.ended_sessions), [row])

    def has(self, session: Session) -> bool:
        """Whether somebody has logged out of it."""
        with self._store.reading() as connection:
            return connection.execute(sa.select(_ENDED.id).where(_ENDED.id == session.id)).first() is not None


def new_session(key: ApiKey, credentials: Credentials, now: float) -> str:
    """The cookie of a new session of a key; `now` in seconds since 1970."""
    session, number = Session(key, secrets.token_hex(16), int(now) + SECONDS), max(credentials.signing)
    return f"{key.id}.{session.expires}.{number}.{session.id}.{_mac(credentials.signing[number], session)}"


def read_session(request: Request, credentials: Credentials, now: float) -> Session | None:
    """The session of a request's cookie, of a live key and signed; None for anything else."""
    name, expires, number, own, mac = (request.cookies.get(COOKIE, "").split(".") + [""] * 5)[:5]
    key = credentials.keys.get(name)
    if key is None or key.revoked is not None or not all(_is_number(part) for part in (expires, number)):
        return None
    secret = credentials.signing.get(int(number))
    if secret is None or int(expires) <= now:
        return None
    session = Session(key, own, int(expires))
    return session if hmac.compare_digest(_mac(secret, session).encode(), mac.encode()) else None


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) < 12


def _mac(secret: bytes, session: Session) -> str:
    told = canonical_json(["session", session.key.id, session.key.digest, session.expires, session.id]).encode()
    return base64.urlsafe_b64encode(hmac.new(secret, told, "sha256").digest()).rstrip(b"=").decode()
