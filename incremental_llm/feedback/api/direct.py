"""FastAPI with a short way to the endpoints that take events.

Between the server and an endpoint FastAPI has a dozen layers: errors, telemetry, limits, exit stacks, dependencies. For
a small request they are a quarter of the work, and these endpoints need none of them: they read, check and answer
themselves, and `Boundary` stands around everything. They are routes like all others too, for the documentation and for
what the layers answer, such as another method.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fastapi import FastAPI
from starlette.requests import Request
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from incremental_llm.feedback.api.boundary import Boundary


class DirectFastAPI(FastAPI):
    """`boundary` is put around everything; `direct` are the paths whose POST goes straight to its endpoint."""

    def __init__(self, boundary: Callable[[ASGIApp], Boundary], direct: frozenset[str], **settings: Any) -> None:
        super().__init__(**settings)
        self._boundary, self._paths = boundary, direct

    def build_middleware_stack(self) -> ASGIApp:
        """The layers, with the short way beside them."""
        layers = super().build_middleware_stack()
        routes = {route.path: route for route in self.routes if isinstance(route, Route) and route.path in self._paths}

        async def choose(scope: Scope, receive: Receive, send: Send) -> None:
            route = routes.get(scope["path"]) if scope["type"] == "http" and scope["method"] == "POST" else None
            if route is None:
                await layers(scope, receive, send)
            else:
                scope["route"] = route
                response = await route.endpoint(Request(scope, receive, send))
                await response(scope, receive, send)

        return self._boundary(choose)
