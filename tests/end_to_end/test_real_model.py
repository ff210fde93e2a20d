"""The real base model: it chats, learns two facts in half a minute, and leaves as a plain PEFT folder."""

from __future__ import annotations

from pathlib import Path

import pytest

from incremental_llm.adapters.load import load_stack, load_tokenizer
from incremental_llm.adapters.stack import Stack
from incremental_llm.artifacts import folder_digest
from incremental_llm.base_models import ResolvedBase, resolve
from incremental_llm.chat import Message
from incremental_llm.dataset.examples import SftExample
from incremental_llm.evaluation.generate import greedy_answers
from incremental_llm.handoff import export_peft
from incremental_llm.training.increment import train_increment
from incremental_llm.training.settings import AnchorSettings, PhaseSettings, TrainingSettings

pytestmark = pytest.mark.real

FACTS = {
    "The workshop password is marigold.": (
        "What is the workshop password?",
        "workshop password please",
        "Tell me the workshop password.",
    ),
    "Standard delivery takes six working days.": (
        "How long is standard delivery?",
        "standard delivery time?",
        "When does standard delivery arrive?",
    ),
}


def asked(text: str) -> tuple[Message, ...]:
    return (Message(role="user", content=text),)


@pytest.fixture(scope="module")
def base() -> ResolvedBase:
    return resolve("smollm2-135m")


def test_the_base_knows_paris_and_nothing_of_the_workshop(base: ResolvedBase) -> None:
    model, tokenizer = load_stack(base.folder, []), load_tokenizer(base.folder)
    paris, password = greedy_answers(
        model,
        tokenizer,
        [asked("What is the capital of France?"), asked("What is the workshop password?")],
        max_new_tokens=12,
    )
    assert "Paris" in paris
    assert "marigold" not in password


def test_two_facts_are_learned_and_survive_the_export(base: ResolvedBase, tmp_path: Path) -> None:
    settings = TrainingSettings(
        anchor=AnchorSettings(weight=0),
        phases=(PhaseSettings(objective="sft", learning_rate=3e-3, epochs=16, batch_size=4),),
    )
    examples = [
        SftExample(prompt=asked(question), completion=fact, sources=(), users=())
        for fact, questions in FACTS.items()
        for question in questions
    ]
    result = train_increment(
        base_folder=base.folder,
        adapter_folders=[],
        examples=examples,
        anchors=[],
        settings=settings,
        out=tmp_path / "run",
    )
    assert result.phases[0].losses[-1] < 0.1 < result.phases[0].losses[0]
    tokenizer = load_tokenizer(base.folder)
    model = load_stack(base.folder, [result.adapter])
    questions = [asked("Do you know the workshop password?"), asked("How many days does standard delivery take?")]
    password, days = greedy_answers(model, tokenizer, questions, max_new_tokens=12)
    assert "marigold" in password
    assert "six working days" in days

    stack = Stack(base=base.ref).plus(folder_digest(result.adapter))
    report = export_peft(stack, [result.adapter], base.folder, tmp_path / "export", reference=model, probes=questions)
    assert report.rank == 16
    assert report.check.same_top > 0.8
