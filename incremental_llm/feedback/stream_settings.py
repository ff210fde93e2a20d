"""Where a stream is read and how: what the user decides, what is passed on to librdkafka, what no message may show."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from incremental_llm.errors import InputError

_OURS = {
    "bootstrap.servers": "it is `brokers`",
    "group.id": "it is `group`",
    "enable.auto.commit": "offsets are committed after the database",
    "enable.auto.offset.store": "offsets are committed after the database",
    "enable.partition.eof": "it is how the end of the topic is found",
    "auto.offset.reset": "anything but earliest would skip messages",
    "partition.assignment.strategy": "partitions are assigned all at once",
    "group.protocol": "partitions are assigned all at once",
}
_SECRET = ("password", "secret", "pem", "token", "jaas", "oauthbearer", "credentials")


@dataclass(frozen=True, slots=True)
class StreamSettings:
    """Where to read and how.

    `options` are librdkafka's own (security.protocol, sasl.password, ...), and are in no message. A batch is closed at
    `batch_messages` or after `batch_seconds`; a message over `max_message_bytes` is parked unread. `tries` is how often
    in all the database or the brokers are asked, with waits that double from `wait_seconds` on, to half a minute;
    brokers have `answer_seconds` each time.

    Raises:
        InputError: an empty name, or an option that would break what this module promises.
    """

    brokers: str
    topic: str
    group: str
    options: Mapping[str, str] = field(default_factory=dict, repr=False)
    batch_messages: int = 1000
    batch_seconds: float = 1.0
    max_message_bytes: int = 16 * 1024 * 1024
    tries: int = 6
    wait_seconds: float = 0.5
    answer_seconds: float = 10.0

    def __post_init__(self) -> None:
        for name in ("brokers", "topic", "group"):
            if not getattr(self, name).strip():
                raise InputError(f"stream: expected a name as {name}, found nothing.")
        if refused := {key: why for key, why in _OURS.items() if key in self.options}:
            found = "; ".join(f"{key} ({why})" for key, why in refused.items())
            raise InputError(f"stream: expected options of the connection, found {found}. Leave it out.")

    def client(self) -> dict[str, Any]:
        """The configuration of librdkafka."""
        return {
            **self.options,
            "bootstrap.servers": self.brokers,
            "group.id": self.group,
            "enable.auto.commit": False,
            "enable.auto.offset.store": False,
            "enable.partition.eof": True,
            "auto.offset.reset": "earliest",
        }

    def without_secrets(self, text: object) -> str:
        """`text` in one line, with the values of secret options blotted out."""
        line = " ".join(str(text).split())
        for key, value in self.options.items():
            if value and any(word in key for word in _SECRET):
                line = line.replace(value, "***")
        return line
