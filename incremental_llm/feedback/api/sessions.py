"""Sessions of the review page: a cookie that stands for an API key and holds none of it.

`KEY_ID.EXPIRES.MAC`, signed by the newest signing secret over the key's digest too: a session ends with its time, with
the key, and with `illm api-key rotate-tokens --end-old`. A cookie is sent by a browser whoever asks it to, so it is
SameSite=Strict, and a request that it stands for has to carry a header that no other site can make a browser send.
"""

from __future__ import annotations

import base64
import hmac

from starlette.requests import Request

from incremental_llm.chat import canonical_json
from incremental_llm.feedback.api.keys import ApiKey, Credentials

COOKIE = "illm_review"
HEADER = "X-Illm-Review"
SECONDS = 12 * 3600
"""How long a session lasts: a working day."""


def session_of(key: ApiKey, credentials: Credentials, now: float) -> str:
    """A new session of a key; `now` in seconds since 1970."""
    expires = int(now) + SECONDS
    number = max(credentials.signing)
    return f"{key.id}.{expires}.{number}.{_mac(credentials.signing[number], key, expires)}"


def session_key(request: Request, credentials: Credentials, now: float) -> ApiKey | None:
    """The live key that a request's session stands for; None for anything else."""
    name, expires, number, mac = (request.cookies.get(COOKIE, "").split(".") + [""] * 4)[:4]
    key = credentials.keys.get(name)
    if key is None or key.revoked is not None or not all(_is_number(part) for part in (expires, number)):
        return None
    secret = credentials.signing.get(int(number))
    if secret is None or int(expires) <= now:
        return None
    return key if hmac.compare_digest(_mac(secret, key, int(expires)), mac) else None


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) < 12


def _mac(secret: bytes, key: ApiKey, expires: int) -> str:
    told = canonical_json(["session", key.id, key.digest, expires]).encode()
    return base64.urlsafe_b64encode(hmac.new(secret, told, "sha256").digest()).rstrip(b"=").decode()
