"""API keys and reply tokens: who calls, what the key may do, and which replies it may judge.

A key is `illm_ID_SECRET`. The secret has 256 random bits, so its plain SHA-256 is as good as a slow hash, and is all
that is stored; ID finds the row. A reply token is `NUMBER.MAC`: HMAC-SHA256 over the key's name and the interaction's
id, by signing secret NUMBER. Keys of one name share their tokens, so a key can be replaced without losing any.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import secrets
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import get_args

import sqlalchemy as sa
from pydantic import TypeAdapter

from incremental_llm.chat import canonical_json
from incremental_llm.errors import InputError
from incremental_llm.feedback.api import tables
from incremental_llm.feedback.api.scopes import Scope
from incremental_llm.feedback.events import MAX_ID, Id
from incremental_llm.feedback.store import FeedbackStore
from incremental_llm.feedback.tables import create_missing

_PREFIX = "illm"
_NOBODY = hashlib.sha256(secrets.token_bytes()).hexdigest()


@dataclass(frozen=True, slots=True)
class ApiKey:
    """What is known of a key; `name` is its owner, which several keys may share.

    One that is bound to a `reviewer` corrects in no other name; else one key could be a whole quorum.
    """

    id: str
    name: str
    scopes: frozenset[Scope]
    created: datetime
    revoked: datetime | None
    digest: str = field(repr=False)
    reviewer: str | None = None


@dataclass(frozen=True)
class Credentials:
    """All keys and signing secrets, as they were at one moment."""

    keys: Mapping[str, ApiKey] = field(repr=False)
    signing: Mapping[int, bytes] = field(repr=False)

    def authenticate(self, header: str | None) -> ApiKey | None:
        """The live key of an `Authorization: Bearer KEY` header; None for anything else."""
        scheme, _, presented = (header or "").partition(" ")
        prefix, _, rest = presented.strip().partition("_")
        name, _, secret = rest.partition("_")
        key = self.keys.get(name)
        same = hmac.compare_digest(_digest(secret), key.digest if key else _NOBODY)
        live = key is not None and key.revoked is None
        return key if same and live and prefix == _PREFIX and scheme.lower() == "bearer" else None

    def reply_token(self, owner: str, interaction: str) -> str:
        """The token that lets `owner` give feedback on `interaction`."""
        number = max(self.signing)
        return f"{number}.{_mac(self.signing[number], owner, interaction)}"

    def allows(self, token: str, owner: str, interaction: str) -> bool:
        """Whether `token` was made for just these two, by a signing secret that still counts."""
        number, _, mac = token.partition(".")
        secret = self.signing.get(int(number)) if number.isascii() and number.isdigit() and len(number) < 10 else None
        if secret is None:
            return False
        return hmac.compare_digest(_mac(secret, owner, interaction).encode(), mac.encode("utf-8", "replace"))


class KeyTable:
    """The keys in the feedback database."""

    def __init__(self, store: FeedbackStore) -> None:
        self._store = store
        with store.writing() as connection:
            create_missing(connection, tables.metadata)
            if connection.execute(sa.select(tables.signing_secrets.c.id)).first() is None:
                _new_signing_secret(connection, 1)

    def create(self, name: str, scopes: Iterable[str], reviewer: str | None = None) -> tuple[ApiKey, str]:
        """A new key and its text, which nobody can be told again.

        Raises:
            InputError: a name that is none, no scope, an unknown one, or a reviewer without the scope review.
        """
        wanted = frozenset(scopes)
        if not wanted or not wanted <= set(get_args(Scope)):
            raise InputError(
                f"api key: expected scopes out of {', '.join(get_args(Scope))}, found {', '.join(wanted) or 'none'}."
            )
        if reviewer is not None and "review" not in wanted:
            raise InputError(f"api key: expected the scope review for the reviewer {reviewer!r}, found none.")
        for what, told in (("name", name), ("reviewer", reviewer or name)):
            try:
                if TypeAdapter(Id).validate_python(told) != told.strip():
                    raise ValueError("spaces around")
            except ValueError:
                raise InputError(
                    f"api key: expected a {what} of 1 to {MAX_ID} characters without control characters or spaces "
                    f"around, found {told!r}."
                ) from None
        secret = secrets.token_urlsafe(32)
        row = {
            "id": secrets.token_hex(6),
            "name": name,
            "scopes": " ".join(sorted(wanted)),
            "reviewer": reviewer,
            "digest": _digest(secret),
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "revoked": None,
        }
        with self._store.writing() as connection:
            connection.execute(sa.insert(tables.keys), [row])
            stored = connection.execute(sa.select(tables.keys).where(tables.keys.c.id == row["id"])).one()
        return _key(stored), f"{_PREFIX}_{row['id']}_{secret}"

    def list(self) -> list[ApiKey]:
        """All keys, revoked ones too, oldest first."""
        with self._store.reading() as connection:
            rows = connection.execute(sa.select(tables.keys).order_by(tables.keys.c.created, tables.keys.c.id))
            return [_key(row) for row in rows]

    def revoke(self, name: str) -> ApiKey:
        """End the key with this id; one that is revoked already stays as it is.

        Raises:
            InputError: there is no such key.
        """
        now = datetime.now(UTC).isoformat(timespec="seconds")
        with self._store.writing() as connection:
            live = (tables.keys.c.id == name, tables.keys.c.revoked.is_(None))
            connection.execute(sa.update(tables.keys).where(*live).values(revoked=now))
            row = connection.execute(sa.select(tables.keys).where(tables.keys.c.id == name)).first()
        if row is None:
            raise InputError(f"expected the id of an API key, found {name!r}. Nothing was revoked: illm api-key list")
        return _key(row)

    def rotate_signing(self, *, end_old: bool = False) -> int:
        """Sign reply tokens with a new secret from now on; `end_old`: tokens made before are refused.

        Returns the new secret's number.
        """
        with self._store.writing() as connection:
            number = 1 + int(connection.execute(sa.select(sa.func.max(tables.signing_secrets.c.id))).scalar_one())
            if end_old:
                connection.execute(sa.delete(tables.signing_secrets))
            _new_signing_secret(connection, number)
        return number

    def credentials(self) -> Credentials:
        """What a server checks requests against."""
        with self._store.reading() as connection:
            rows = connection.execute(sa.select(tables.keys)).all()
            signing = connection.execute(sa.select(tables.signing_secrets)).all()
        return Credentials(
            keys={row.id: _key(row) for row in rows},
            signing={row.id: bytes.fromhex(row.secret) for row in signing},
        )


def _new_signing_secret(connection: sa.Connection, number: int) -> None:
    connection.execute(sa.insert(tables.signing_secrets), [{"id": number, "secret": secrets.token_hex(32)}])


def _digest(secret: str) -> str:
    return hashlib.sha256(secret.encode("utf-8", "replace")).hexdigest()


def _mac(secret: bytes, owner: str, interaction: str) -> str:
    """Base64 without padding; the JSON keeps the two names apart."""
    # hmac.digest would let go of the interpreter for this, and wait for the writer to give it back.
    mac = hmac.new(secret, canonical_json(["reply", owner, interaction]).encode(), "sha256")
    return base64.urlsafe_b64encode(mac.digest()).rstrip(b"=").decode()


def _key(row: sa.Row[tuple[object, ...]]) -> ApiKey:
    return ApiKey(
        id=row.id,
        name=row.name,
        scopes=frozenset(row.scopes.split()),
        created=datetime.fromisoformat(row.created),
        revoked=None if row.revoked is None else datetime.fromisoformat(row.revoked),
        digest=row.digest,
        reviewer=row.reviewer,
    )
