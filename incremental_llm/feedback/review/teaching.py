"""What a decision says, when two say the same, and which events of the log it becomes. Pure functions.

    one reply      accept   a correction whose content is the reply itself
                   correct  a correction
                   reject   a thumb down
    two replies    accept   a preference for the first          (a correction with its text, where a person wrote one)
                   reject   a preference for the second         (likewise)
                   correct  a correction of the first that was served
    skip           nothing

An accept is a correction and not a thumb up: a reviewer has looked and answers for the text, so it becomes an SFT
example without a pair (there is nothing to prefer it to), and thumbs down on the same reply are left out as
contradicting it. A reject is a thumb down, and not only a mark in the queue: the reviewer says that the reply is wrong
and not what would be right, which is what an undesirable example holds. It is one voice among the users', so it breaks
a tie and overrules no majority; whoever wants that writes the right reply. Whoever rejects eight replies of a night and
accepts or corrects none of any is left out as one-sided, like every user (`compile.one_sided_minimum`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from incremental_llm.chat import json_digest
from incremental_llm.feedback.events import Correction, Event, Preference, Thumb
from incremental_llm.feedback.review.items import Decision, Proposal

Same = Callable[[str, str], bool]
"""Whether two replies say the same."""

Position = tuple[str, str]
"""("says", text): this is the right reply; ("better", "first" or "second"); ("wrong", "")."""


def position(proposal: Proposal, decision: Decision) -> Position | None:
    """What a decision says; None for a skip. An accepted reply and a correction with its text are the same."""
    match decision.verdict, proposal.other:
        case "skip", _:
            return None
        case "correct", _:
            return "says", decision.content or ""
        case "accept", None:
            return "says", proposal.reply
        case "reject", None:
            return "wrong", ""
        case verdict, _:
            return "better", "first" if verdict == "accept" else "second"


def agree(one: Position | None, other: Position | None, same: Same) -> bool:
    """Whether two decisions say the same; a skip agrees with nothing."""
    if one is None or other is None or one[0] != other[0]:
        return False
    return same(one[1], other[1]) if one[0] == "says" else one == other


def settled(proposal: Proposal, decisions: Sequence[Decision], needed: int, same: Same) -> tuple[Decision, ...]:
    """The first `needed` decisions or more that say the same, in order of time; empty while there are not so many."""
    camps: list[tuple[Position, list[Decision]]] = []
    for decision in sorted(decisions, key=lambda one: (one.time, one.reviewer)):
        said = position(proposal, decision)
        if said is None:
            continue
        camp = next((members for first, members in camps if agree(first, said, same)), None)
        if camp is None:
            camp = []
            camps.append((said, camp))
        camp.append(decision)
        if len(camp) >= needed:
            return tuple(camp)
    return ()


def taught(proposal: Proposal, decision: Decision) -> Event | None:
    """The event that a decision becomes once it counts, in its reviewer's name; None for a skip or a seeded item.

    Its time is that of the decision: of two texts that say the same, a compile keeps the one that was said first.
    """
    said = position(proposal, decision)
    if said is None or proposal.expected is not None:
        return None
    name = f"review-{json_digest([decision.item, decision.reviewer])[:32]}"
    first, second = proposal.interaction, proposal.other_interaction
    served = first or second
    assert served is not None  # a proposal that is not seeded has one
    what, told = said
    if what == "wrong":
        return Thumb(id=name, time=decision.time, interaction=served, user=decision.reviewer, value=-1)
    if what == "better" and first is not None and second is not None and first != second:
        chosen, rejected = (first, second) if told == "first" else (second, first)
        return Preference(id=name, time=decision.time, chosen=chosen, rejected=rejected, user=decision.reviewer)
    if what == "better":
        told = proposal.reply if told == "first" else proposal.other or ""
    return Correction(id=name, time=decision.time, interaction=served, reviewer=decision.reviewer, content=told)
