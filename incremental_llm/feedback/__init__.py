"""Feedback: what users and reviewers said about replies, once each, in the order in which it can be used.

The verbs are `parse_event` (JSON to an event), `FeedbackStore.append` and `.read`, `import_jsonl`, and `personal_data`.

    >>> from incremental_llm.feedback import FeedbackStore, parse_event
    >>> store = FeedbackStore("sqlite://")        # in memory; a real one is sqlite:////absolute/path/feedback.db
    >>> thumb = parse_event({"type": "thumb", "id": "t1", "time": "2026-11-01T12:01:00Z", "interaction": "i1",
    ...                      "user": "u1", "value": 1})
    >>> store.append([thumb]).waiting             # its interaction has not arrived: kept, and not numbered yet
    1
    >>> served = parse_event({"type": "interaction", "id": "i1", "time": "2026-11-01T12:00:00Z", "conversation": "c1",
    ...                       "user": "u1", "messages": [{"role": "user", "content": "How long can I return boots?"}],
    ...                       "reply": "30 days.", "model": "production@1"})
    >>> store.append([served, thumb])             # the thumb is a duplicate, and is numbered after its interaction
    AppendReport(added=1, duplicates=1, waiting=0, refused=())
    >>> [(stored.seq, stored.event.id) for stored in store.read()]
    [(1, 'i1'), (2, 't1')]
    >>> store.close()

The one design fact: an event gets its sequence number only when everything it refers to has one, in the transaction
that makes it readable. So whoever has read up to a number has seen all that came before it, and never needs to look
back.
"""

from incremental_llm.feedback.events import (
    EVENT_TYPES,
    Abandon,
    Copy,
    Correction,
    Event,
    EventError,
    Interaction,
    PolicyChange,
    Preference,
    Ranking,
    Rephrase,
    Thumb,
    UnknownEvent,
    event_to_dict,
    parse_event,
    read_event,
    references,
)
from incremental_llm.feedback.importers import ImportReport, RefusedRow, import_file, import_jsonl
from incremental_llm.feedback.parking import ParkedMessage, parked
from incremental_llm.feedback.redact import personal_data
from incremental_llm.feedback.sequence import Refused
from incremental_llm.feedback.store import AppendReport, FeedbackStore, StoredEvent
from incremental_llm.feedback.stream import ConsumeReport, consume
from incremental_llm.feedback.stream_settings import StreamSettings

__all__ = [
    "EVENT_TYPES",
    "Abandon",
    "AppendReport",
    "ConsumeReport",
    "Copy",
    "Correction",
    "Event",
    "EventError",
    "FeedbackStore",
    "ImportReport",
    "Interaction",
    "ParkedMessage",
    "PolicyChange",
    "Preference",
    "Ranking",
    "Refused",
    "RefusedRow",
    "Rephrase",
    "StoredEvent",
    "StreamSettings",
    "Thumb",
    "UnknownEvent",
    "consume",
    "event_to_dict",
    "import_file",
    "import_jsonl",
    "parked",
    "parse_event",
    "personal_data",
    "read_event",
    "references",
]
