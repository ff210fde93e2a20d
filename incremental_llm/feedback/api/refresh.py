"""Credentials as the server holds them: read again when they are too old, once for all who wait."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from incremental_llm.feedback.api.keys import Credentials, KeyTable


class FreshCredentials:
    """Never older than `seconds`, by `clock`, at the moment at which they are asked for."""

    def __init__(self, table: KeyTable, seconds: float, clock: Callable[[], float]) -> None:
        self._table, self._seconds, self._clock = table, seconds, clock
        self._held: Credentials | None = None
        self._read_at = 0.0
        self._reading: asyncio.Future[Credentials] | None = None

    async def current(self) -> Credentials:
        """The credentials; raises what the database raises."""
        if self._held is not None and self._clock() - self._read_at < self._seconds:
            return self._held
        if self._reading is None:
            self._reading = asyncio.ensure_future(self._read())
        # One who goes away must not stop it for the others. Not a lock: it would let them through one by one.
        return await asyncio.shield(self._reading)

    async def _read(self) -> Credentials:
        began = self._clock()
        try:
            self._held = await asyncio.to_thread(self._table.credentials)
            self._read_at = began
            return self._held
        finally:
            self._reading = None
