"""Serving it: one process, loopback unless told otherwise, and an end that loses nothing."""

from __future__ import annotations

import ipaddress
import logging
import signal
import socket
import sys
from collections.abc import Callable

from incremental_llm.errors import InputError
from incremental_llm.feedback.api.settings import ApiSettings
from incremental_llm.feedback.review import ReviewQueue
from incremental_llm.feedback.store import FeedbackStore

PORT = 8712
_GRACE_SECONDS = 30
_CONNECTIONS = 4096
_SWITCH_SECONDS = 0.001
"""How long the writer may keep the interpreter when the event loop wants it."""


def serve(
    store: FeedbackStore,
    settings: ApiSettings,
    *,
    host: str = "127.0.0.1",
    port: int = PORT,
    allow_remote: bool = False,
    review: ReviewQueue | None = None,
    ready: Callable[[str], None] = lambda url: None,
) -> None:
    """Serve until SIGTERM or SIGINT, then finish what was begun; `ready` is told the address once it is bound.

    Raises:
        InputError: the extra is not installed, an address beyond this machine without `allow_remote`, or one that is
            taken or not this machine's.
    """
    try:
        import uvicorn

        from incremental_llm.feedback.api.app import create_app
    except ModuleNotFoundError as error:
        raise InputError(
            f"serving needs {error.name}, which is not installed: pip install 'incremental_llm[serve]'"
        ) from error

    check_address(host, allow_remote=allow_remote)
    _log_to_stderr()
    app = create_app(store, settings, review=review)
    config = uvicorn.Config(
        app,
        log_config=None,
        access_log=False,  # the application has one of its own, without paths
        server_header=False,
        proxy_headers=False,
        ws="none",
        lifespan="on",
        limit_concurrency=_CONNECTIONS,
        timeout_graceful_shutdown=_GRACE_SECONDS,
    )
    with _bound(host, port) as listening:
        address, found = listening.getsockname()[:2]
        ready(f"http://[{address}]:{found}" if ":" in address else f"http://{address}:{found}")
        sys.setswitchinterval(_SWITCH_SECONDS)
        # uvicorn raises the signal once more at its end; it was obeyed by then.
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda *_: None)
        uvicorn.Server(config).run(sockets=[listening])


def check_address(host: str, *, allow_remote: bool) -> None:
    """Raises InputError for a host that others can reach, unless that is allowed."""
    try:
        local = host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        local = False
    if not local and not allow_remote:
        raise InputError(
            f"expected a loopback address such as 127.0.0.1, found {host!r}, which other machines reach without TLS. "
            "Put a proxy with TLS before it on this machine; or give --allow-remote where the network is private."
        )


def _bound(host: str, port: int) -> socket.socket:
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listening = socket.socket(family, kind, protocol)
    except OSError as error:
        raise InputError(f"expected an address of this machine, found {host!r} ({error}).") from error
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(address)
    except OSError as error:
        listening.close()
        raise InputError(
            f"expected an address that is free, found {host} port {port}: {error.strerror}. Give another --port."
        ) from error
    return listening


def _log_to_stderr() -> None:
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s %(message)s"))
    for name, level in (("incremental_llm", logging.INFO), ("uvicorn", logging.WARNING)):
        logger = logging.getLogger(name)
        logger.addHandler(handler)
        logger.setLevel(level)
