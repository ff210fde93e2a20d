"""What production says to an old question by now: whether it is right, how hard it is, whether it may be rehearsed.

Everything here is pure: the answers and log-likelihoods come from whoever holds the model.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rapidfuzz.distance import Indel

from incremental_llm.dataset.dedup import numbers, spoken
from incremental_llm.dataset.examples import Example, PairExample, SftExample, UnpairedExample
from incremental_llm.replay.mixture import Mixture

_CERTAIN = -1e-9  # nats a token from which a reply counts as certain: the loss of a certain bad one stays finite


def says_it_all(answer: str, stored: str, agreement: float) -> bool:
    """Whether an answer says what is stored: its words in their order, its figures and negations, and little else.

    Words are compared without case, punctuation and filler. `agreement` (0 to 100) is the least share of words in
    common, 200 x common / (both lengths): it bounds what is added. One other word is another statement, however
    similar the texts are: 45 days are not 30, and a biking trail is no hiking trail.

    >>> says_it_all("Sure: you can return boots within 30 days.", "You can return the boots within 30 days", 80)
    True
    >>> says_it_all("You can return boots within 45 days.", "You can return boots within 30 days.", 0)
    False
    """
    said, wanted = spoken(answer), spoken(stored)
    rest = iter(said)
    if not all(word in rest for word in wanted) or numbers(answer) != numbers(stored):
        return False
    return 100 * Indel.normalized_similarity(said, wanted) >= agreement


def is_right(example: Example, answer: str | None, agreement: float) -> bool:
    """Whether production's answer is what the example teaches; an answer that did not end (None) teaches nothing.

    An answer is right where it says what the example wants said, and, for a reply that is not wanted, where it does not
    say that.
    """
    if isinstance(example, UnpairedExample) and not example.desirable:
        return answer is None or not says_it_all(answer, example.completion, agreement)
    return answer is not None and says_it_all(answer, example.texts[0], agreement)


def loss_of(example: Example, logps: Sequence[float]) -> float:
    """Production's loss on an example in nats, at least 0; `logps` are the mean token log-likelihoods of its replies.

    -logp of a wanted reply; -ln(1 - exp(logp)) of one that is not wanted (unlikelihood, Welleck et al. 2020);
    ln(1 + exp(logp_rejected - logp_chosen)) of a pair (Bradley-Terry on mean log-likelihoods, as SimPO, Meng et al.
    2024).
    """
    if isinstance(example, PairExample):
        chosen, rejected = logps
        return math.log1p(math.exp(-abs(rejected - chosen))) + max(0.0, rejected - chosen)
    (logp,) = logps
    if isinstance(example, UnpairedExample) and not example.desirable:
        return -math.log(-math.expm1(min(logp, _CERTAIN)))
    return max(0.0, -logp)


@dataclass(frozen=True)
class Answered:
    """A mixture whose replayed SFT rows have production's own words where these say what is stored.

    `anew` rows were answered anew; `kept` have their stored answer, since production says something else, or has not
    ended (`unended` of them).
    """

    mixture: Mixture
    anew: int
    kept: int
    unended: int

    @property
    def sentence(self) -> str:
        unended = f" ({self.unended} answers had not ended)" if self.unended else ""
        return (
            f"production's own answers stand in {self.anew} of {self.anew + self.kept} replayed SFT rows; {self.kept} "
            f"keep the stored one, which it does not give{unended}"
        )


def replayed_sft(mixture: Mixture) -> tuple[SftExample, ...]:
    """The replayed rows that may be answered anew: a pair or a verdict is about the words as they were."""
    return tuple(row.example for row in mixture.rows if row.origin == "replay" and isinstance(row.example, SftExample))


def answered_anew(mixture: Mixture, answers: Mapping[str, str | None], agreement: float) -> Answered:
    """The mixture with production's `answers` (by example id; None has not ended) where they say what is stored.

    The source is on-policy data: what a model says itself moves it least (self-distillation, Yang et al. 2024). A
    correction stays what the reviewer wrote wherever the model has it wrong.
    """
    rows, anew, kept, unended = [], 0, 0, 0
    for row in mixture.rows:
        if row.origin == "replay" and isinstance(row.example, SftExample):
            answer = answers[row.example.id]
            if answer is not None and says_it_all(answer, row.example.completion, agreement):
                anew += 1
                row = row.model_copy(update={"example": row.example.model_copy(update={"completion": answer})})
            else:
                kept, unended = kept + 1, unended + (answer is None)
        rows.append(row)
    return Answered(mixture.model_copy(update={"rows": tuple(rows)}), anew, kept, unended)
