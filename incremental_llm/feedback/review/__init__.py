"""Review: people decide what the compiler or the model is unsure about, and what they decide becomes feedback.

The verbs are `ReviewQueue.add`, `.next`, `.claim` and `.decide`, and `agreement` for how the reviewers do.

    >>> from incremental_llm.feedback import FeedbackStore, parse_event
    >>> from incremental_llm.feedback.review import Flag, ReviewQueue, ReviewSettings, flagged
    >>> served = parse_event({"type": "interaction", "id": "i1", "time": "2026-11-01T12:00:00Z", "conversation": "c1",
    ...                       "user": "u1", "messages": [{"role": "user", "content": "How long can I return boots?"}],
    ...                       "reply": "Two weeks.", "model": "production@1"})
    >>> store = FeedbackStore("sqlite://")
    >>> store.append([served]).added
    1
    >>> queue = ReviewQueue(store, ReviewSettings(seed_share=0))
    >>> queue.add([flagged(Flag(interaction="i1", kind="moderation", verdict="wrong", confidence=0.6), served, "m1")])
    1
    >>> claim = queue.next("r1")
    >>> queue.decide(claim.item.id, "r1", "correct", "You can return boots within 30 days.").state
    'done'
    >>> [stored.event.type for stored in store.read()]
    ['interaction', 'correction']
    >>> store.close()

Where things are: `items` has the records, `queue` the transactions, `teaching` what a decision becomes, `flags` and
`seeds` two ways in (`dataset.unsure` has the third), `agreement` the report.

The one design fact: a decision and the events that it becomes are one transaction, and these are ordinary events in
the reviewers' names. So nothing else knows of the queue, and a review can be traced and superseded like anything else.
"""

from incremental_llm.feedback.review.agreement import AgreementReport, ReviewerRow, Share, agreement
from incremental_llm.feedback.review.flags import Flag, flagged
from incremental_llm.feedback.review.items import (
    Claim,
    Decided,
    Decision,
    Item,
    NotYoursError,
    Proposal,
    ReviewError,
    UnknownItemError,
    Voice,
)
from incremental_llm.feedback.review.queue import ReviewQueue
from incremental_llm.feedback.review.seeds import read_seeds
from incremental_llm.feedback.review.settings import ReviewSettings

__all__ = [
    "AgreementReport",
    "Claim",
    "Decided",
    "Decision",
    "Flag",
    "Item",
    "NotYoursError",
    "Proposal",
    "ReviewError",
    "ReviewQueue",
    "ReviewSettings",
    "ReviewerRow",
    "Share",
    "UnknownItemError",
    "Voice",
    "agreement",
    "flagged",
    "read_seeds",
]
