"""The API's own tables in the feedback database."""

from __future__ import annotations

import sqlalchemy as sa

metadata = sa.MetaData()
keys = sa.Table(
    "feedback_api_keys",
    metadata,
    sa.Column("id", sa.String(32), primary_key=True),
    sa.Column("name", sa.String, nullable=False),
    sa.Column("scopes", sa.String, nullable=False),  # separated by spaces
    sa.Column("reviewer", sa.String, nullable=True),  # the one in whose name it may correct; null: anyone's
    sa.Column("digest", sa.String(64), nullable=False),  # sha256 of the secret, which is stored nowhere
    sa.Column("created", sa.String, nullable=False),  # ISO 8601, UTC
    sa.Column("revoked", sa.String, nullable=True),
)
signing_secrets = sa.Table(
    "feedback_api_signing_secrets",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("secret", sa.String(64), nullable=False),  # 32 bytes in hex: reply tokens are made with the last one
)
ended_sessions = sa.Table(
    "feedback_api_ended_sessions",
    metadata,
    sa.Column("id", sa.String(32), primary_key=True),
    sa.Column("expires", sa.BigInteger, nullable=False),  # seconds since 1970; until then it would count
)
answers = sa.Table(
    "feedback_api_answers",
    metadata,
    sa.Column("id", sa.String(64), primary_key=True),  # sha256 of API key and idempotency key
    sa.Column("body_digest", sa.String(64), nullable=False),
    sa.Column("outcomes", sa.Text, nullable=False),
    sa.Column("stored", sa.BigInteger, nullable=False, index=True),  # seconds since 1970
)
