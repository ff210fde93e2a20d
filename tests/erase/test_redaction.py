"""What is left of each record without a person: counts and outcomes stay, words and names go."""

from __future__ import annotations

from typing import Any

from incremental_llm.chat import Message
from incremental_llm.dataset import (
    AcceptedCorrection,
    CompiledDataset,
    CompileSettings,
    Drop,
    DropReason,
    Example,
    Lift,
    PairExample,
    SftExample,
    TrustReport,
    UnpairedExample,
)
from incremental_llm.erase.redaction import Redaction, redact_json
from incremental_llm.evaluation import EvaluationReport, ItemResult
from incremental_llm.evaluation.results import SuiteResult
from incremental_llm.feedback.pseudonyms import Pseudonyms, Renames
from incremental_llm.gate import Check, Decision
from incremental_llm.replay import ReplayBuffer

PERSON = "u1"
GONE = frozenset({"i1", "k1"})
RENAMES = Renames({*GONE, PERSON}, Pseudonyms(b"key"))
of = RENAMES.pseudonyms.of
WITHOUT = Redaction(PERSON, GONE, frozenset({"t" * 64}), RENAMES)
ASKED = (Message(role="user", content="Hi"),)


def example(kind: type[Any], *sources: str, **texts: Any) -> Any:
    return kind(prompt=ASKED, sources=sources, users=("r1",), **texts)


EXAMPLES: tuple[Example, ...] = (
    example(SftExample, "i1", "k1", completion="theirs"),
    example(SftExample, "i2", "k2", completion="another's"),
    example(SftExample, "i2", "k2", "k1", completion="said by both"),
    example(PairExample, "i1", "k2", chosen="a", rejected="b"),
    example(UnpairedExample, "i2", "t2", completion="kept", desirable=True),
)


def correction(name: str, about: str, *reviewers: str) -> AcceptedCorrection:
    return AcceptedCorrection(
        event_id=name, interaction_id=about, prompt=ASKED, content="right", rejected="wrong", reviewers=reviewers
    )


def test_a_dataset_loses_examples_and_keeps_its_account() -> None:
    made = CompiledDataset(
        sft=tuple(e for e in EXAMPLES if isinstance(e, SftExample)),
        pairs=tuple(e for e in EXAMPLES if isinstance(e, PairExample)),
        unpaired=tuple(e for e in EXAMPLES if isinstance(e, UnpairedExample)),
        drops=(Drop(kind="sft", reason=DropReason.DUPLICATE, sources=("i1", "k9"), users=(PERSON, "u2")),),
        corrections=(correction("k1", "i2", "r1"), correction("k2", "i1", "r1"), correction("k3", "i3", PERSON, "r2")),
        account={"i1": "used", "k2": "duplicate"},
        outcomes={"interaction": {"used": 1}},
        first_seq=1,
        last_seq=9,
        superseded=frozenset({"k1", "k8"}),
        settings=CompileSettings(policy_reviewers=frozenset({PERSON, "r1"})),
    )
    left = WITHOUT.dataset(made)
    assert [e.completion for e in (*left.sft, *left.unpaired)] == ["another's", "kept"] and left.pairs == ()
    assert left.drops[0].sources == (of("i1"), "k9") and left.drops[0].users == (of(PERSON), "u2")
    assert [(c.event_id, c.reviewers) for c in left.corrections] == [("k3", (of(PERSON), "r2"))]
    assert left.account == {of("i1"): "used", "k2": "duplicate"} and left.outcomes == made.outcomes
    assert left.superseded == {of("k1"), "k8"} and left.settings.policy_reviewers == {of(PERSON), "r1"}
    assert WITHOUT.dataset(left) == left
    assert PERSON not in {word for row in left.drops for word in row.users}


def test_phrases_of_a_night_that_read_him_go() -> None:
    lift = Lift(phrase="theirs", score=20, examples=5, taught=9, known=0, reference=100, people=1, young=0, held=False)
    made = CompiledDataset(
        sft=(),
        pairs=(),
        unpaired=(),
        drops=(),
        corrections=(),
        account={"i1": "used", "k2": "duplicate"},
        outcomes={},
        first_seq=1,
        last_seq=9,
        superseded=frozenset(),
        trust=TrustReport(people=3, lifts=(lift,)),
        settings=CompileSettings(),
    )
    assert WITHOUT.dataset(made).trust == TrustReport(people=3)
    another = made.model_copy(update={"account": {"k2": "duplicate"}})
    assert WITHOUT.dataset(another) == another


def test_notes_of_a_night_that_read_him_go() -> None:
    said = "Replay: +3 old rows interleaved (4.8 % of 62). 'theirs': in 5 of 9 taught replies. topic 'his'"
    shown = {"answers": [], "reasons": [], "checks": [], "mixture": said, "refused_lines": []}
    entry = {"candidate": "c" * 64, "night": shown}
    assert WITHOUT.night(entry)["night"]["mixture"] == said
    left = WITHOUT.night(entry, read_him=True)
    assert left["night"]["mixture"].startswith("Replay: +3 old rows interleaved (4.8 % of 62). [other notes")
    assert "his'" not in left["night"]["mixture"] and WITHOUT.night(left, read_him=True) == left


def test_a_buffer_loses_items_and_offers_of_theirs() -> None:
    held = ReplayBuffer().updated(EXAMPLES, increment=1, seed=0)
    left = WITHOUT.buffer(held)
    assert {item.example.sources for item in left.items} == {("i2", "k2"), ("i2", "t2")}
    assert left.seen["sft"][1] == 1 and WITHOUT.buffer(left) == left


def report(stack: str) -> EvaluationReport:
    items = [ItemResult(id="k1", answer="theirs", correct=True), ItemResult(id="k2", answer="no", correct=False)]
    suite = SuiteResult.of("corrections", 1, "d" * 64, items)
    return EvaluationReport(stack_digest=stack, suites={"corrections": suite}, seconds=1.5, tokens=3)


def test_a_report_keeps_every_outcome() -> None:
    clean, tainted = WITHOUT.report(report("c" * 64)), WITHOUT.report(report("t" * 64))
    for left in (clean, tainted):
        found = left.suites["corrections"]
        assert (found.score, found.n, found.unscored) == (0.5, 2, 0)
        assert [(item.id, item.correct) for item in found.items] == [(of("k1"), True), ("k2", False)]
        assert EvaluationReport.from_json(left.to_json()) == left
    assert [item.answer for item in clean.suites["corrections"].items] == ["", "no"]
    assert [item.answer for item in tainted.suites["corrections"].items] == ["", ""]


def test_a_decision_keeps_its_verdict() -> None:
    check = Check(name="corrections", kind="corrections", passed=False, reason="lost: k1, k12", lost=("k1", "k12"))
    decided = Decision(
        passed=False,
        stack_digest="s" * 64,
        production_digest="p" * 64,
        checks=(check,),
        reasons=("lost: k1, k12", "60 items of 'u1'"),
        negative_flips=("corrections/k1", "k1", "k1/k2"),
        policy_digest="d" * 64,
    )
    left = WITHOUT.decision(decided)
    assert left.reasons == (f"lost: {of('k1')}, k12", f"60 items of '{of('u1')}'")
    assert left.negative_flips == (f"corrections/{of('k1')}", of("k1"), "k1/k2")
    assert left.checks[0].lost == (of("k1"), "k12") and (left.passed, left.stack_digest) == (False, "s" * 64)


def test_each_json_object_is_known_by_what_it_holds() -> None:
    corrections = [correction("k1", "i2", "r1"), correction("k3", "i3", "r2")]
    told = [one.model_dump(mode="json") for one in corrections]
    assert redact_json(told, WITHOUT) == told[1:] and redact_json(told[1:], WITHOUT) == told[1:]
    clean = report("c" * 64).model_dump(mode="json")
    assert redact_json(clean, WITHOUT)["suites"]["corrections"]["items"][0]["answer"] == ""
    recipe = {"compile": {"policy_reviewers": [PERSON, "r1"]}, "training": {}, "gate": {}, "base": "b"}
    assert redact_json(recipe, WITHOUT)["compile"]["policy_reviewers"] == sorted([of(PERSON), "r1"])
    for other in ([], {}, {"passed": True}, [{"a": 1}], "text", None):
        assert redact_json(other, WITHOUT) == other


def test_a_night_keeps_its_figures_and_no_line_keeps_what_it_quotes() -> None:
    answer = {"suite": "s", "question": "q", "before": "b", "after": "a", "before_correct": True, "after_correct": None}
    shown = {
        "answers": [answer],
        "reasons": ["lost: k1"],
        "checks": [{"name": "n", "reason": "'k1'"}],
        "mixture": "'k1'",
    }
    shown |= {"refused_lines": ["d/log.jsonl line 3: value: expected 1, found 'x'", "odd"], "seconds": 3.0}
    for candidate, said in (("c" * 64, "a"), ("t" * 64, "")):
        left = WITHOUT.night({"time": "t", "candidate": candidate, "night": shown})["night"]
        assert left["answers"][0]["after"] == said and left["answers"][0]["question"] == "q"
        assert left["refused_lines"] == ["d/log.jsonl line 3: value: expected 1 [what was found is erased]", "odd"]
        assert (left["reasons"], left["mixture"], left["seconds"]) == ([f"lost: {of('k1')}"], f"'{of('k1')}'", 3.0)
