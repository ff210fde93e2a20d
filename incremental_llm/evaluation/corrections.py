"""Accepted corrections as a suite: what reviewers have put right once is asked again every night."""

from __future__ import annotations

from collections.abc import Sequence

from incremental_llm.dataset import AcceptedCorrection
from incremental_llm.evaluation.suites import Item, Suite


def correction_suite(name: str, corrections: Sequence[AcceptedCorrection]) -> Suite | None:
    """Accepted corrections as items: the model must hold the correction more likely than the reply it corrected.

    Nothing can be compared where a reviewer confirmed the reply, or where there was none that may be kept.
    """
    items = tuple(
        Item(id=c.event_id, messages=c.prompt, chosen=c.content, rejected=c.rejected)
        for c in corrections
        if _is_comparable(c)
    )
    if not items:
        return None
    return Suite(
        name=name,
        version=1,
        scorer="preference",
        description="accepted corrections, each against the reply that it corrected",
        source="feedback",
        licence="as the feedback",
        items=items,
    )


def untestable(corrections: Sequence[AcceptedCorrection]) -> str:
    """How many corrections no later night can be tested on, in words; empty if none."""
    count = sum(not _is_comparable(c) for c in corrections)
    said = f"{count} of {len(corrections)} corrections cannot be tested again: they correct no reply that may be kept"
    return said if count else ""


def _is_comparable(correction: AcceptedCorrection) -> bool:
    """Whether there is a reply that the correction can be held against."""
    return bool(correction.rejected.strip()) and correction.rejected.strip() != correction.content.strip()
