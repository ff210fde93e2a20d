"""Rehearsal without anybody's text: production writes the questions and answers them itself.

Self-synthesised rehearsal (Huang et al. 2024) with questions sampled from nothing but the chat template's beginning of
a user's turn (Magpie, Xu et al. 2024). What comes is what the model was taught to expect of its users.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from itertools import islice

from pydantic import BaseModel, ConfigDict

from incremental_llm.chat import Conversation, Message
from incremental_llm.dataset.dedup import normalised
from incremental_llm.dataset.examples import SftExample
from incremental_llm.replay.item import ReplayItem

Answer = Callable[[Sequence[Conversation]], Sequence[str | None]]
"""Production's answer to each conversation; None where it has not ended."""

Refuse = Callable[[Conversation, str | None], str | None]
"""Why a question (with None), or its answer, may not be trained on; None where it may."""


class Written(BaseModel):
    """Rows that production wrote, and how many of its questions were left out, by reason."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    examples: tuple[SftExample, ...]
    left_out: dict[str, int]

    def items(self, version: int) -> tuple[ReplayItem, ...]:
        """The rows as replay takes them; `version` wrote them. They stand on no event and no user."""
        return tuple(ReplayItem(example=example, increment=version) for example in self.examples)

    @property
    def sentence(self) -> str:
        reasons = ", ".join(f"{count} {reason}" for reason, count in self.left_out.items())
        return f"production wrote {len(self.examples)} rehearsal rows itself" + (
            f"; left out: {reasons}" if reasons else ""
        )


def written(
    turns: Sequence[str | None], answer: Answer, refuse: Refuse, wanted: int, before: Conversation = ()
) -> Written:
    """At most `wanted` rows from sampled user `turns`, in their order; a turn that has not ended is None.

    Args:
        before: what stands before the question, such as a system prompt.
    """
    left_out: Counter[str] = Counter()
    questions = _questions(turns, refuse, before, left_out)
    examples: list[SftExample] = []
    while missing := wanted - len(examples):
        asked = list(islice(questions, missing))
        if not asked:
            break
        for prompt, reply in zip(asked, answer(asked), strict=True):
            reason = "unended_answer" if reply is None else refuse(prompt, reply)
            if reply is None or reason:
                left_out[str(reason)] += 1
            else:
                examples.append(SftExample(prompt=prompt, completion=reply, sources=(), users=()))
    return Written(examples=tuple(examples), left_out=dict(sorted(left_out.items())))


def _questions(
    turns: Sequence[str | None], refuse: Refuse, before: Conversation, left_out: Counter[str]
) -> Iterator[Conversation]:
    known: set[str] = set()
    for turn in turns:
        prompt = (*before, Message(role="user", content=(turn or "").strip()))
        repeated = "duplicate" if normalised(prompt[-1].content) in known else None
        reason = "unended_question" if turn is None else repeated or refuse(prompt, None)
        if reason:
            left_out[reason] += 1
        else:
            known.add(normalised(prompt[-1].content))
            yield prompt
