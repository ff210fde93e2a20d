"""What the server counts, for Prometheus."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from incremental_llm.feedback.api.commit import GroupFacts

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 10, 60)


class Metrics:
    """Counters of one application, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        prefix = "illm_ingest"
        self._requests = Counter(
            f"{prefix}_requests", "Requests answered.", ("route", "status"), registry=self.registry
        )
        self._seconds = Histogram(
            f"{prefix}_request_seconds",
            "Seconds from a request's head to its answer.",
            ("route",),
            buckets=_SECONDS,
            registry=self.registry,
        )
        self._events = Counter(
            f"{prefix}_events", "Events by type and what became of them.", ("type", "outcome"), registry=self.registry
        )
        self._queued = Gauge(f"{prefix}_queued_requests", "Requests waiting for the disk.", registry=self.registry)
        self._commits = Histogram(
            f"{prefix}_commit_seconds",
            "Seconds of a transaction, by whether it was stored.",
            ("stored",),
            buckets=_SECONDS,
            registry=self.registry,
        )
        self._group = Histogram(
            f"{prefix}_group_events",
            "Events in a stored transaction.",
            buckets=(1, 2, 5, 10, 20, 50, 100, 200, 500, 1000),
            registry=self.registry,
        )

    def watch_queue(self, length: Callable[[], int]) -> None:
        """Ask `length` whenever the metrics are read."""
        self._queued.set_function(length)

    def request(self, route: str, status: int, seconds: float) -> None:
        """A request was answered; `route` is the endpoint's path, never what the client wrote."""
        self._requests.labels(route, str(status)).inc()
        self._seconds.labels(route).observe(seconds)

    def event(self, kind: str, outcome: str) -> None:
        """One event is dealt with."""
        self._events.labels(kind, outcome).inc()

    def commit(self, facts: GroupFacts) -> None:
        """A transaction ended."""
        self._commits.labels("yes" if facts.stored else "no").observe(facts.seconds)
        if facts.stored:
            self._group.observe(facts.events)

    def page(self) -> bytes:
        """All of it in Prometheus' text format."""
        return generate_latest(self.registry)
