"""The limits of the API; each has a default that a shop with thousands of users does not notice."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field


class ApiSettings(BaseModel):
    """Rates are in events per second; a burst is how many may come at once after a pause."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    max_body_bytes: int = Field(1 << 20, ge=1 << 10, le=1 << 26, description="largest body of a request")
    max_depth: int = Field(32, ge=4, le=100, description="deepest nesting of a body")
    max_batch: int = Field(500, ge=1, le=10_000, description="events in a batch")
    body_seconds: float = Field(20.0, gt=0, description="time in which a body has to arrive")
    max_in_flight: int = Field(512, ge=1, description="requests that are worked on at once")
    queue_requests: int = Field(2000, ge=1, description="requests that may wait for the disk")
    queue_bytes: int = Field(1 << 26, ge=1 << 10, description="bytes of body that may wait for the disk")
    group_events: int = Field(500, ge=1, description="events that a transaction stops growing at")
    key_rate: float = Field(1000.0, ge=0, description="events per second of an API key; 0: no limit")
    key_burst: float = Field(2000.0, ge=1)
    user_rate: float = Field(2.0, ge=0, description="events per second of a user; 0: no limit")
    user_burst: float = Field(60.0, ge=1)
    max_users: int = Field(100_000, ge=1, description="users whose rate is remembered")
    refresh_seconds: float = Field(1.0, ge=0, description="how long a revoked key goes on working")
    answer_days: float = Field(7.0, gt=0, description="how long an answer to an Idempotency-Key is kept")
