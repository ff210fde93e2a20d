"""What is left of each kind of object and record once a person is taken out of it. Pure; the caller reads and writes.

Counts and outcomes stay: they say nothing of anybody. Examples, corrections and replayed items that stand on one of his
events go whole. What a model said that was trained on him may repeat him, so of such a model no answer stays.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from incremental_llm.dataset import AcceptedCorrection, CompiledDataset
from incremental_llm.evaluation import EvaluationReport
from incremental_llm.evaluation.results import SuiteResult
from incremental_llm.feedback.erasure import without_quotes
from incremental_llm.feedback.pseudonyms import Renames
from incremental_llm.gate import Decision
from incremental_llm.replay import ReplayBuffer

T = TypeVar("T")
_REFUSED = " line "
_SENTENCE, _NO_NOTES = ". ", "[other notes were erased with a person]"


@dataclass(frozen=True)
class Redaction:
    """`events` are the ids that are erased, `tainted` the digests of stacks that were trained on any of them."""

    person: str
    events: frozenset[str]
    tainted: frozenset[str]
    renames: Renames

    def stands_on(self, sources: Iterable[str]) -> bool:
        """Whether any of these events is erased."""
        return not self.events.isdisjoint(sources)

    def dataset(self, made: CompiledDataset) -> CompiledDataset:
        """Without his examples and corrections; in the account and the drops his events have pseudonyms.

        Phrases that the trust controls report are pieces of replies, and do not say whose: of a night that read him
        none stays.
        """
        name = self.renames.name
        trust = made.trust.model_copy(update={"lifts": ()}) if self.stands_on(made.account) else made.trust
        drops = tuple(
            drop.model_copy(update={"sources": tuple(map(name, drop.sources)), "users": tuple(map(name, drop.users))})
            for drop in made.drops
        )
        return made.model_copy(
            update={
                "sft": self._kept(made.sft),
                "pairs": self._kept(made.pairs),
                "unpaired": self._kept(made.unpaired),
                "drops": drops,
                "trust": trust,
                "corrections": self.corrections(made.corrections),
                "account": {name(event): outcome for event, outcome in made.account.items()},
                "superseded": frozenset(map(name, made.superseded)),
                "settings": made.settings.model_copy(
                    update={"policy_reviewers": frozenset(map(name, made.settings.policy_reviewers))}
                ),
            }
        )

    def _kept(self, examples: tuple[T, ...]) -> tuple[T, ...]:
        return tuple(example for example in examples if not self.stands_on(example.sources))  # type: ignore[attr-defined]

    def corrections(self, accepted: Iterable[AcceptedCorrection]) -> tuple[AcceptedCorrection, ...]:
        """Without those of his replies or in his name; where he wrote the same as another, without his name."""
        return tuple(
            one.model_copy(update={"reviewers": tuple(map(self.renames.name, one.reviewers))})
            for one in accepted
            if not self.stands_on((one.event_id, one.interaction_id))
        )

    def buffer(self, held: ReplayBuffer) -> ReplayBuffer:
        """Without what stands on one of his events."""
        return held.without(self.events)[0]

    def report(self, measured: EvaluationReport) -> EvaluationReport:
        """Every item's outcome stays; answers go where they are to his questions, or from a tainted stack."""
        everything = measured.stack_digest in self.tainted
        suites = {name: self._suite(result, everything) for name, result in measured.suites.items()}
        return measured.model_copy(update={"suites": suites})

    def _suite(self, result: SuiteResult, everything: bool) -> SuiteResult:
        items = [
            item.model_copy(update={"id": self.renames.name(item.id), "answer": ""})
            if everything or item.id in self.events
            else item
            for item in result.items
        ]
        return SuiteResult.of(result.suite, result.version, result.digest, items)

    def decision(self, decided: Decision) -> Decision:
        """The same verdict, in which his corrections have pseudonyms."""
        text = self.renames.text
        checks = tuple(
            check.model_copy(update={"reason": text(check.reason), "lost": tuple(map(self._item, check.lost))})
            for check in decided.checks
        )
        return decided.model_copy(
            update={
                "checks": checks,
                "reasons": tuple(map(text, decided.reasons)),
                "negative_flips": tuple(map(self._item, decided.negative_flips)),
            }
        )

    def _item(self, item: str) -> str:
        """An item of a suite, as `id` or `suite/id`."""
        suite, slash, name = item.partition("/")
        return f"{suite}/{self.renames.name(name)}" if slash and name in self.renames.names else self.renames.name(item)

    def recipe(self, recipe: Mapping[str, Any]) -> dict[str, Any]:
        """A reviewer with the right to policy changes has his pseudonym in it."""
        compile_settings = dict(recipe["compile"])
        if isinstance(reviewers := compile_settings.get("policy_reviewers"), list):
            compile_settings["policy_reviewers"] = sorted(map(self.renames.name, reviewers))
        return {**recipe, "compile": compile_settings}

    def night(self, entry: Mapping[str, Any], read_him: bool = False) -> dict[str, Any]:
        """What the report page shows of a night; lines that were refused lose what they quote, whosever it was.

        The notes of a night that read him go: they quote phrases of replies, and topics of questions.
        """
        shown, text = dict(entry["night"]), self.renames.text
        if entry["candidate"] in self.tainted:
            shown["answers"] = [answer | {"before": "", "after": ""} for answer in shown["answers"]]
        shown["reasons"] = [text(reason) for reason in shown["reasons"]]
        shown["checks"] = [check | {"reason": text(check["reason"])} for check in shown["checks"]]
        shown["mixture"] = _without_notes(shown["mixture"]) if read_him else text(shown["mixture"])
        shown["refused_lines"] = [self._refused(line) for line in shown["refused_lines"]]
        return {**entry, "night": shown}

    def _refused(self, line: str) -> str:
        """As the store has the reason now, so that the line is known as one that was shown."""
        where, _, said = line.partition(_REFUSED)
        number, colon, reason = said.partition(": ")
        return f"{where}{_REFUSED}{number}{colon}{without_quotes(reason)}" if colon else line


def _without_notes(mixture: str) -> str:
    """The mixture, which is the first sentence and nothing but counts, without the notes that follow it."""
    counts, more, _ = mixture.partition(_SENTENCE)
    return f"{counts}{_SENTENCE}{_NO_NOTES}" if more else mixture


def redact_json(value: Any, redaction: Redaction) -> Any:
    """A JSON object of the registry without the person; what is of no known kind is given back as it is."""
    if isinstance(value, list) and value and _has(value[0], ("event_id", "interaction_id", "reviewers")):
        accepted = [AcceptedCorrection.model_validate(item) for item in value]
        return [one.model_dump(mode="json") for one in redaction.corrections(accepted)]
    if _has(value, ("suites", "stack_digest", "tokens")):
        return redaction.report(EvaluationReport.model_validate(value)).model_dump(mode="json")
    if _has(value, ("checks", "passed", "policy_digest")):
        return redaction.decision(Decision.model_validate(value)).model_dump(mode="json")
    return redaction.recipe(value) if _has(value, ("compile", "training", "gate")) else value


def _has(value: Any, keys: Collection[str]) -> bool:
    return isinstance(value, dict) and value.keys() >= set(keys)
