"""Erasing a person from a workspace: what holds him, what can be restored no more, and the steps that do it.

    plan = plan_erasure(workspace parts, "u1")     what would happen; nothing is changed
    report = erase_person(..., "u1")               does it; the same call goes on where a kill ended it
    Rebuilding(...).run()                          the nights that read him are made again, and his weights go

The one design fact: the event store lets go last. Until then it says what is the person's, so an erasure that was
interrupted is planned again from the same events, and every step that was taken finds nothing left to do.
"""

from __future__ import annotations

from incremental_llm.erase.execute import ErasureReport, erase_person
from incremental_llm.erase.plan import ErasurePlan, Source, plan_erasure
from incremental_llm.erase.rebuild import Rebuilding, RebuildReport

__all__ = [
    "ErasurePlan",
    "ErasureReport",
    "RebuildReport",
    "Rebuilding",
    "Source",
    "erase_person",
    "plan_erasure",
]
