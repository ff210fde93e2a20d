"""The review queue's own tables in the feedback database."""

from __future__ import annotations

import sqlalchemy as sa

metadata = sa.MetaData()
items = sa.Table(
    "feedback_review_items",
    metadata,
    sa.Column("id", sa.String(32), primary_key=True),
    sa.Column("kind", sa.String(16), nullable=False),
    sa.Column("state", sa.String(8), nullable=False),  # open, waiting or done; claims say what is claimed
    sa.Column("seeded", sa.Boolean, nullable=False),
    sa.Column("priority", sa.Float, nullable=False),
    sa.Column("created", sa.String, nullable=False),  # ISO 8601, UTC
    sa.Column("body", sa.Text, nullable=False),  # the proposal as JSON in ASCII: any text column holds it, NUL included
    sa.Index("feedback_review_order", "state", "priority"),
)
authors = sa.Table(
    "feedback_review_authors",
    metadata,
    sa.Column("item", sa.String(32), primary_key=True),
    sa.Column("person", sa.String, primary_key=True, index=True),
)
claims = sa.Table(
    "feedback_review_claims",
    metadata,
    sa.Column("item", sa.String(32), primary_key=True),
    sa.Column("reviewer", sa.String, primary_key=True),
    sa.Column("claimed", sa.Float, nullable=False),  # seconds since 1970
    sa.Column("expires", sa.Float, nullable=False),
)
decisions = sa.Table(
    "feedback_review_decisions",
    metadata,
    sa.Column("item", sa.String(32), primary_key=True),
    sa.Column("reviewer", sa.String, primary_key=True),
    sa.Column("verdict", sa.String(8), nullable=False),
    sa.Column("content", sa.Text, nullable=True),  # as JSON in ASCII
    sa.Column("time", sa.String, nullable=False),
    sa.Column("seconds", sa.Float, nullable=False),
)
