"""Questions asked again in other words: named by an event, or found between neighbours of a conversation."""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from rapidfuzz import fuzz

from incremental_llm.chat import last_user_text
from incremental_llm.dataset.batch import Batch, Drafts, ReplyKey
from incremental_llm.dataset.corrections import Verdicts
from incremental_llm.dataset.dedup import normalised, tokens
from incremental_llm.dataset.embeddings import cosine
from incremental_llm.dataset.examples import PairExample, UnpairedExample
from incremental_llm.dataset.reasons import Drop, DropReason
from incremental_llm.dataset.settings import CompileSettings
from incremental_llm.feedback.events import Correction, Interaction, Rephrase

_SHORTEST = 3  # words: of "black" and "like black people" nobody can say what was asked
_SAME_ORDER = 50.0  # token-sort similarity: a short question is a subset of many long ones
_SAME_WORD = 75.0  # similarity of two forms of a word, such as "return" and "returns"
_FRAME = frozenset(
    """what which who whom whose when where why how is are am was were be been do does did can could will would shall
    should may might must have has had a an the of to in on at for from by with about as into it its this that these
    those there i me my you your we our us they their he she and or but if so not no please much many long far often
    old heavy big large high some any get go need want know tell give""".split()  # noqa: SIM905
)


@dataclass(frozen=True)
class Asked:
    """A question asked again; `event` is the explicit one, None where it was detected."""

    first: Interaction
    second: Interaction
    event: Rephrase | None

    @property
    def sources(self) -> tuple[str, ...]:
        named = (self.first.id, self.second.id)
        return named if self.event is None else (*named, self.event.id)


def draft_rephrases(batch: Batch, verdicts: Verdicts, users: Mapping[ReplyKey, int]) -> Drafts:
    """A pair (second reply over first, on the first prompt) and an undesirable first reply, where the second holds.

    `users` is what thumbs said: a second reply that they blame, or disagree on, does not hold, and a first one that
    they praise was not the reason to ask again.
    """
    drafts = Drafts()
    weight = batch.settings.weights.rephrase
    found = [*_explicit(batch, drafts), *_detected(batch)]
    failed = _corrected(batch) | {asked.first.id for asked in found}  # a user who asks yet again got no answer
    for asked in found:
        first, second = asked.first, asked.second
        told = (first.user,)
        reason = _rephrase_problem(batch, asked, verdicts, users, failed)
        if reason is not None:
            drafts.drops.append(Drop(kind="pair", reason=reason, sources=asked.sources, users=told))
            drafts.drops.append(Drop(kind="unpaired", reason=reason, sources=asked.sources, users=told))
            continue
        better = PairExample(
            prompt=first.messages,
            chosen=second.reply,
            rejected=first.reply,
            weight=weight,
            sources=asked.sources,
            users=told,
        )
        unwanted = UnpairedExample(
            prompt=first.messages,
            completion=first.reply,
            desirable=False,
            weight=weight,
            sources=asked.sources,
            users=told,
        )
        drafts.made += [batch.draft(better, "rephrase"), batch.draft(unwanted, "rephrase")]
    return drafts


def _explicit(batch: Batch, drafts: Drafts) -> Iterator[Asked]:
    """What events name, where one person asked twice: anybody can name two replies, and speaks for whoever asked."""
    for event in batch.live(Rephrase):
        first, second = batch.interactions[event.interaction], batch.interactions[event.followup]
        if (first.user, first.conversation) == (second.user, second.conversation):
            yield Asked(first, second, event)
        else:
            drafts.drop(event, DropReason.DIFFERENT_PEOPLE, first.user)


def _detected(batch: Batch) -> Iterator[Asked]:
    """Neighbours in a user's conversation that ask nearly the same within the window and are named by no event."""
    settings = batch.settings
    if not settings.detect_rephrases or not settings.weights.rephrase:
        return
    named = {(event.interaction, event.followup) for event in batch.live(Rephrase)}
    served: dict[tuple[str, str], list[Interaction]] = defaultdict(list)
    for interaction in batch.live(Interaction):
        served[interaction.user, interaction.conversation].append(interaction)
    for turns in served.values():
        for first, second in itertools.pairwise(turns):
            waited = (second.time - first.time).total_seconds()
            if (first.id, second.id) in named or waited > settings.rephrase_window_seconds:
                continue
            if is_rephrased(last_user_text(first.messages), last_user_text(second.messages), settings):
                yield Asked(first, second, None)


def is_rephrased(first: str, second: str, settings: CompileSettings) -> bool:
    """Whether two questions are the same in other words: by their words, or by the model in `rephrase_embeddings`."""
    if asks_again(first, second, settings):
        return True
    return settings.rephrase_embeddings is not None and means_the_same(first, second, settings)


def asks_again(first: str, second: str, settings: CompileSettings) -> bool:
    """Whether two questions are the same in other words, as far as their words alone can tell.

    Their token-set similarity lies in the band of the settings, and beside question words and the like one of them says
    nothing that the other does not: "the price of the tent" and "the warranty of the tent" are two questions.

    >>> asks_again("How long is the warranty on boots?", "How many years is the warranty on boots?", CompileSettings())
    True
    >>> asks_again("How long does shipping take?", "How long does a refund take?", CompileSettings())
    False
    """
    one, other = normalised(first), normalised(second)
    if one == other or min(len(one.split()), len(other.split())) < _SHORTEST:
        return False
    low, high = settings.rephrase_similarity_min, settings.rephrase_similarity_max
    if not low <= fuzz.token_set_ratio(one, other) <= high or fuzz.token_sort_ratio(one, other) < _SAME_ORDER:
        return False
    left, right = _content(first), _content(second)
    return bool(left and right) and (_covers(right, left) or _covers(left, right))


def means_the_same(first: str, second: str, settings: CompileSettings) -> bool:
    """Whether two questions that words alone do not find the same are so for the model in `rephrase_embeddings`.

    The words propose, at a lower bound than where they decide, and the model decides: one that finds all questions of a
    shop alike is never asked about those that share few words.

    Raises:
        InputError: the extra `embeddings` is not installed, or there is no model.
    """
    one, other = normalised(first), normalised(second)
    if one == other or min(len(one.split()), len(other.split())) < _SHORTEST:
        return False
    if fuzz.token_set_ratio(one, other) < settings.rephrase_proposal_min:
        return False
    return cosine(str(settings.rephrase_embeddings), first, second) >= settings.rephrase_cosine_min


def _content(text: str) -> list[str]:
    return [token for token in tokens(text) if token not in _FRAME]


def _covers(words: Sequence[str], others: Sequence[str]) -> bool:
    return all(any(_same_word(word, other) for word in words) for other in others)


def _same_word(one: str, other: str) -> bool:
    return one == other or (one.isalpha() and other.isalpha() and fuzz.ratio(one, other) >= _SAME_WORD)


def _corrected(batch: Batch) -> set[str]:
    """Interactions whose reply a reviewer corrected to something else."""
    return {
        event.interaction
        for event in batch.live(Correction)
        if normalised(event.content) != normalised(batch.interactions[event.interaction].reply)
    }


def _rephrase_problem(
    batch: Batch, asked: Asked, verdicts: Verdicts, users: Mapping[ReplyKey, int], failed: set[str]
) -> DropReason | None:
    first, second = asked.first, asked.second
    prompt, reply = batch.reply_key(first.id)
    again = batch.reply_key(second.id)
    if second.id in failed or users.get(again, 1) <= 0:
        return DropReason.SECOND_ANSWER_FAILED
    if not verdicts.allows_inferred(again[0], second.reply) or verdicts.objection(again[0], praised=second.reply):
        return DropReason.SECOND_ANSWER_FAILED  # reviewers say so of the question that it answered
    if reply == normalised(second.reply):
        return DropReason.SAME_REPLY
    if users.get((prompt, reply), -1) >= 0:
        return DropReason.CONFLICT
    if not verdicts.allows_inferred(prompt, second.reply):
        return DropReason.CONTRADICTS_CORRECTION
    return verdicts.objection(prompt, praised=second.reply, blamed=first.reply)
