"""What replay needs of a model: production is measured on old examples, answers old questions, or writes its own.

The mixture is planned without a model first (`replay.mix`), so that a night that could not be trained is refused before
anything is measured; `rehearse` then makes it what the recipe's policy says. Every figure and answer is kept beside
production's evaluations, so a killed run continues with the same ones.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from incremental_llm.adapters.chat_tokens import completion_ids, prompt_ids
from incremental_llm.base_models import ResolvedBase
from incremental_llm.chat import Conversation, Message, json_digest
from incremental_llm.config import RunConfig
from incremental_llm.dataset import KINDS, CompiledDataset, Example, SuiteIndex
from incremental_llm.dataset.filters import Filters
from incremental_llm.evaluation.measure import Measurement
from incremental_llm.pending import Pending, Replayable, unfit_for
from incremental_llm.registry import Snapshot
from incremental_llm.replay import Facts, Mixture, ReplayBuffer, ReplayItem, mix
from incremental_llm.replay.answers import answered_anew, is_right, loss_of, replayed_sft
from incremental_llm.replay.shares import subset
from incremental_llm.replay.written import Written, written

TRIES = 3
"""Questions sampled for each row that is wanted: some do not end, repeat one another, or must not be trained on."""


@dataclass(frozen=True)
class Rehearsal:
    """The buffer as it goes on, the mixture that is trained, and in words what production did for it."""

    kept: ReplayBuffer
    mixture: Mixture
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Production:
    """The model that serves, asked through its measurement; `version` is its snapshot."""

    measured: Measurement
    version: Snapshot

    @property
    def name(self) -> str:
        return f"production v{self.version.version}"

    @property
    def tokenizer(self) -> Any:
        return self.measured.model(self.version.stack, self.name)[1]

    def remembered(self, name: str, key: Sequence[Any], make: Callable[[], Any]) -> Any:
        """What `make` gives, made once for this model and `key`."""
        stack = self.version.stack
        return self.measured.remembered(stack, name, json_digest([stack.digest, *key]), make)

    def answers(self, examples: Sequence[Example], tokens: int) -> dict[str, str | None]:
        """Its answer to each example's prompt, by example id; None for one that has not ended by so many tokens."""
        ids, prompts = [e.id for e in examples], [e.prompt for e in examples]
        answers = self.remembered("replayed", [ids, tokens], lambda: self._ended(prompts, tokens))
        return dict(zip(ids, answers, strict=True))

    def _ended(self, prompts: Sequence[Conversation], tokens: int) -> list[str | None]:
        doing = "answers replayed prompts"
        return self.measured.ended_answers(self.version.stack, prompts, tokens, self.name, doing)

    def losses(self, examples: Sequence[Example]) -> dict[str, float]:
        """Its loss on each example, by example id; those that could not be measured are absent."""
        ids = [e.id for e in examples]
        replies = [(e.prompt, text) for e in examples for text in e.texts]
        doing, stack = "is measured on replayed examples", self.version.stack
        measured = self.remembered("losses", [ids], lambda: self.measured.mean_logps(stack, replies, self.name, doing))
        rows = iter(measured)
        logps = {e.id: [next(rows) for _ in e.texts] for e in examples}
        return {e.id: loss_of(e, logps[e.id]) for e in examples if None not in logps[e.id]}

    def writes(
        self, config: RunConfig, wanted: int, refuse: Callable[..., str | None], about: Sequence[str]
    ) -> Written:
        """At most `wanted` rows of its own questions and answers; `about` is what `refuse` depends on."""
        how, seed = config.replay.synthesis, config.training.seed
        before = (Message(role="system", content=how.system),) if how.system is not None else ()

        def make() -> Any:
            turns = self.measured.turns(
                self.version.stack,
                before,
                TRIES * wanted,
                self.name,
                max_new_tokens=how.prompt_tokens,
                temperature=how.temperature,
                top_p=how.top_p,
                seed=int(json_digest([seed, self.version.stack.digest])[:8], 16),  # other questions each night
            )
            answer = partial(self._ended, tokens=config.replay.answer_tokens)
            return written(turns, answer, refuse, wanted, before).model_dump(mode="json")

        key = [how.model_dump(mode="json"), config.replay.answer_tokens, seed, wanted, TRIES, list(about)]
        return Written.model_validate(self.remembered("written", key, make))


@dataclass(frozen=True)
class Tonight:
    """What a rehearsal is made from: production, the buffer, the mixture as planned, tonight's feedback.

    `asked` are the suites' questions.
    """

    production: Production
    replay: Replayable
    planned: Mixture
    dataset: CompiledDataset
    config: RunConfig
    asked: Sequence[str]
    facts: Facts

    def mixed(self, buffer: ReplayBuffer) -> Mixture:
        """Tonight's examples with rows of this buffer."""
        return mix(
            self.dataset.examples,
            buffer,
            self.config.mixing,
            self.config.training.seed,
            self.facts,
            self.config.training.passes,
        )


def rehearse(tonight: Tonight) -> Rehearsal:
    """The planned mixture, or what it becomes by what production says.

    The policies and answers that the defaults name need no model, and none is loaded.
    """
    settings = tonight.config.mixing
    if settings.ratio == 0:
        return Rehearsal(tonight.replay.kept, tonight.planned)
    ready = _PREPARED.get(settings.policy, _as_planned)(tonight)
    rows = replayed_sft(ready.mixture)
    if settings.answers == "stored" or not rows:
        return ready
    answers = tonight.production.answers(rows, settings.answer_tokens)
    anew = answered_anew(ready.mixture, answers, settings.agreement)
    return Rehearsal(ready.kept, anew.mixture, (*ready.notes, anew.sentence))


def announced(config: RunConfig) -> tuple[str, ...]:
    """What production will do for replay when the run has come to it, in words."""
    lines = {
        "prioritised": "production is measured on old examples first",
        "self_synthesised": "production writes them",
    }
    said = [lines[config.replay.policy]] if config.replay.policy in lines else []
    said += ["production answers old questions anew"] if config.replay.answers == "on_policy" else []
    return (f"the replayed rows are known when it runs: {', and '.join(said)}",) if said and config.mixing.ratio else ()


def known(todo: Pending, config: RunConfig, base: ResolvedBase) -> Facts:
    """What is known of the examples beyond their texts; their tokens where the recipe bounds the buffer's."""
    if not config.replay.capacity_tokens:
        return todo.facts
    from incremental_llm.adapters.load import load_tokenizer

    return replace(todo.facts, tokens=token_count(load_tokenizer(base.folder)))


def token_count(tokenizer: Any) -> Callable[[Example], int]:
    """How many tokens an example has, as it is trained: each of its replies behind the prompt that they share."""

    def count(example: Example) -> int:
        replies = (len(completion_ids(tokenizer, example.prompt, text)) for text in example.texts)
        return len(prompt_ids(tokenizer, example.prompt)) + sum(replies)

    return count


def topicless(examples: Sequence[Example], config: RunConfig, facts: Facts) -> str:
    """In words, how many of tonight's examples name no topic where the recipe balances over topics; else ""."""
    if config.replay.balance != "topics" or not (lacking := sum(not facts.topic(example) for example in examples)):
        return ""
    return f"{lacking} of {len(examples)} examples have no topic (`topic` in an interaction's metadata): they share one"


def _as_planned(tonight: Tonight) -> Rehearsal:
    return Rehearsal(tonight.replay.kept, tonight.planned)


def _measured_first(tonight: Tonight) -> Rehearsal:
    """Some of the buffer, others each night, is measured on production and keeps the outcome; the draw goes by it."""
    how, pool = tonight.config.replay.priority, tonight.replay.tonight
    seed = tonight.config.training.seed
    examples = [
        item.example
        for kind in KINDS
        for item in subset(pool.of_kind(kind), how.sample, pool.night(kind, f"{seed}:measure:{kind}").tonights())
    ]
    if not examples:
        return _as_planned(tonight)
    changes = _MEASURES[how.by](tonight, examples)

    def noted(item: ReplayItem) -> ReplayItem:
        change = changes.get(item.example.id)
        return change(item) if change else item

    kept = tonight.replay.kept.map(noted)
    flips = f"; of the buffer {sum(i.flipped for i in kept.items)} were right once and are wrong now"
    said = f"production was measured on {len(changes)} of {len(pool.items)} replayable examples, by {how.by}"
    return Rehearsal(kept, tonight.mixed(pool.map(noted)), (said + flips * (how.by == "flips"),))


Changes = Mapping[str, Callable[[ReplayItem], ReplayItem]]
"""By example id, what an item becomes once production was measured on it."""


def _losses(tonight: Tonight, examples: Sequence[Example]) -> Changes:
    losses = tonight.production.losses(examples)
    return {name: partial(ReplayItem.with_loss, loss=loss) for name, loss in losses.items()}


def _verdicts(tonight: Tonight, examples: Sequence[Example]) -> Changes:
    settings = tonight.config.replay
    answers = tonight.production.answers(examples, settings.answer_tokens)
    right = {e.id: is_right(e, answers[e.id], settings.agreement) for e in examples}
    return {name: partial(ReplayItem.with_verdict, right=verdict) for name, verdict in right.items()}


def _self_written(tonight: Tonight) -> Rehearsal:
    """Rows that production writes; none about what tonight's feedback or a suite is about.

    It would rehearse the old answer against a correction, or train what is measured.
    """
    config, production = tonight.config, tonight.production
    taught = [example.prompt[-1].content for example in tonight.dataset.examples]
    lessons = SuiteIndex(taught, config.compile.suite_similarity)
    filters = Filters(config.compile, SuiteIndex(tonight.asked, config.compile.suite_similarity))

    def refuse(prompt: Conversation, reply: str | None) -> str | None:
        if reply is None:
            return "taught_tonight" if prompt[-1].content in lessons else filters.prompt_reason(prompt)
        unfit = unfit_for(production.tokenizer, config.training.max_length)
        return filters.reply_reason([reply]) or unfit(prompt, reply)

    wanted = config.replay.wanted(len(tonight.dataset.sft))
    about = [*tonight.asked, *taught, config.compile.model_dump_json(), str(config.training.max_length)]
    rows = production.writes(config, wanted, refuse, about)
    items = rows.items(production.version.version)
    pool = ReplayBuffer(policy=config.replay.kept_by, capacity={"sft": len(items)}, items=items)
    return Rehearsal(tonight.replay.kept, tonight.mixed(pool), (rows.sentence,))


_MEASURES = {"loss": _losses, "flips": _verdicts}
_PREPARED = {"prioritised": _measured_first, "self_synthesised": _self_written}
