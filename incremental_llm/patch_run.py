"""A targeted patch of production: a correction by its event id, with the prompts around it that must not move.

The one design fact: it is a try, not a version. One correction cannot show the gate a gain, so a patch is written to a
folder with its check, and the correction stays in the log for the next increment.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rapidfuzz import fuzz

from incremental_llm.adapters.stack import adapter_paths
from incremental_llm.base_models import ResolvedBase
from incremental_llm.chat import Conversation, Message, json_digest, last_user_text
from incremental_llm.config import RunConfig
from incremental_llm.dataset import SftExample, UnpairedExample
from incremental_llm.dataset.dedup import normalised, prompt_key, same_statement
from incremental_llm.errors import InputError
from incremental_llm.evaluation import Suite, all_questions
from incremental_llm.evaluation.scorers import TEXT_SCORERS
from incremental_llm.feedback import FeedbackStore
from incremental_llm.feedback.events import Correction, Interaction, references
from incremental_llm.pending import Pending, accepted_corrections, compile_pending, left_out, policy_changes
from incremental_llm.pipeline import Progress
from incremental_llm.registry import Registry
from incremental_llm.replay import ReplayBuffer, anchor_prompts
from incremental_llm.training.settings import PatchSettings

if TYPE_CHECKING:
    from incremental_llm.training.patch import PatchRecord


@dataclass(frozen=True)
class Around:
    """The prompts of a patch: `held` in its loss, `neighbours` and `unrelated` checked afterwards and not held."""

    held: tuple[Conversation, ...]
    neighbours: tuple[Conversation, ...]
    unrelated: tuple[Conversation, ...]


def patch_event(
    *,
    registry: Registry,
    store: FeedbackStore,
    config: RunConfig,
    base: ResolvedBase,
    suites: Sequence[Suite],
    event: str,
    prompts: Sequence[str],
    patch: PatchSettings,
    out: Path,
    progress: Progress,
) -> PatchRecord:
    """Make production give the correction `event`, in an adapter below `out`; `prompts` are checked as well.

    Raises:
        InputError: no such correction, one that gives no example (the message says why), or `out` is there already.
        NothingToTrainError: production gives that answer already.
        TrainingError: it was not learnt, or something else moved.
    """
    from incremental_llm.adapters.load import load_tokenizer
    from incremental_llm.training.patch import train_patch

    if out.exists():
        raise InputError(f"{out} exists: give a folder that does not, so that nothing is overwritten.")
    example = correction_example(registry, store, config, event, load_tokenizer(base.folder))
    head = registry.head()
    around = prompts_around(
        example, _buffer(registry), suites, store, all_questions(config.suites.folder), prompts, patch, config
    )
    return train_patch(
        base_folder=base.folder,
        adapter_folders=adapter_paths(head.stack, registry.objects),
        example=example,
        held=around.held,
        neighbours=around.neighbours,
        unrelated=around.unrelated,
        settings=config.training,
        patch=patch,
        answer=_greedy,
        out=out,
        progress=progress,
    )


def patch_folder(workspace: Path, event: str) -> Path:
    """Where a patch of this event goes by default; ids may hold anything, so it is named after what is safe in one."""
    safe = re.sub(r"[^A-Za-z0-9_-]+", "_", event)[:40]
    return workspace / "patches" / (safe if safe == event else f"{safe}-{json_digest(event)[:8]}")


def correction_example(
    registry: Registry, store: FeedbackStore, config: RunConfig, event: str, tokenizer: Any
) -> SftExample:
    """What the correction would be trained as in an increment, by the same filters, verdicts and policy changes."""
    stored = store.get([event]).get(event)
    if stored is None or not isinstance(stored.event, Correction):
        found = "no event of this id" if stored is None else f"a {stored.event.type}"
        raise InputError(f"patch {event!r}: expected the id of a correction in the log, found {found}.")
    head = registry.head()
    todo = Pending(
        head=head,
        below=head.stack,
        events=(stored,),
        context=store.get(references(stored.event)),
        changes=policy_changes(store, store.head(), config, left_out(registry)),
        buffer=ReplayBuffer(),
        accepted=accepted_corrections(registry, head),
        until=stored.seq,
    )
    dataset = compile_pending(todo, config, all_questions(config.suites.folder), tokenizer)
    if not dataset.sft:
        raise InputError(
            f"patch {event!r}: expected a correction that can be trained on, found one that is left out: "
            f"{dataset.account[event]}. An increment would not train on it either."
        )
    return dataset.sft[0]


def prompts_around(
    example: SftExample,
    buffer: ReplayBuffer,
    suites: Sequence[Suite],
    store: FeedbackStore,
    asked: Sequence[str],
    prompts: Sequence[str],
    patch: PatchSettings,
    config: RunConfig,
) -> Around:
    """The nearest prompts of replay, suites and log by their words, and everyday ones; every other one is held.

    Prompts to which the correction is the right answer too are no neighbours: the patch may well teach those. What a
    suite asks is checked and never held: it would be trained on.
    """
    question = last_user_text(example.prompt)
    seen = {prompt_key(example.prompt)}
    near: list[tuple[float, Conversation]] = []
    for prompt in _others(example, buffer, suites, store):
        if (key := prompt_key(prompt)) not in seen:
            seen.add(key)
            near.append((_similarity(question, last_user_text(prompt)), prompt))
    near.sort(key=lambda entry: -entry[0])
    of_suites = {normalised(text) for text in asked}
    ranked = [prompt for _, prompt in near]
    everyday = anchor_prompts(Path(config.training.anchor.prompts) if config.training.anchor.prompts else None)
    rest = [prompt for prompt in everyday if prompt_key(prompt) not in seen]
    random.Random(f"patch:{patch.seed}").shuffle(rest)
    held = [
        prompt
        for prompt in (*ranked[1::2][: patch.neighbours], *rest[1::2][: patch.unrelated])
        if normalised(last_user_text(prompt)) not in of_suites
    ]
    if not held:
        raise InputError("patch: expected everyday or neighbouring prompts to hold, found none outside of the suites.")
    given = [(Message(role="user", content=text),) for text in prompts]
    around = Around(
        held=tuple(held),
        neighbours=(*given, *ranked[0::2][: patch.neighbours]),
        unrelated=tuple(rest[0::2][: patch.unrelated]),
    )
    if not (around.neighbours and around.unrelated):
        raise InputError(
            f"patch: expected neighbouring and everyday prompts to check, found {len(around.neighbours)} and "
            f"{len(around.unrelated)}. What is not measured is no pass: name some with --prompt, or give more "
            "training.anchor.prompts."
        )
    return around


def _others(
    example: SftExample, buffer: ReplayBuffer, suites: Sequence[Suite], store: FeedbackStore
) -> Iterator[Conversation]:
    """Prompts to which the correction is not known to be the right answer."""
    right: dict[str, str] = {}
    served: dict[str, Conversation] = {}
    for stored in store.read(types=("interaction", "correction")):
        if isinstance(stored.event, Interaction):
            served[stored.event.id] = stored.event.messages
        elif isinstance(stored.event, Correction):
            right[stored.event.interaction] = stored.event.content
    same = {
        prompt_key(served[name])
        for name, said in right.items()
        if name in served and same_statement(said, example.completion)
    }
    for item in buffer.items:
        told = item.example
        praised = told.texts[0] if not isinstance(told, UnpairedExample) or told.desirable else ""
        if same_statement(praised, example.completion):
            same.add(prompt_key(told.prompt))
    everything = [*served.values(), *(item.example.prompt for item in buffer.items)]
    yield from (prompt for prompt in everything if prompt_key(prompt) not in same)
    for suite in suites:
        score = TEXT_SCORERS.get(suite.scorer)
        for one in suite.items:
            if score is None or not score(example.completion, one.terms, one.distractors or ()):
                yield one.messages


def _similarity(one: str, other: str) -> float:
    """Share of 100 of the words in common, whatever their order (rapidfuzz token-set ratio)."""
    return float(fuzz.token_set_ratio(normalised(one), normalised(other)))


def _buffer(registry: Registry) -> ReplayBuffer:
    head = registry.head()
    if head.replay is None:
        return ReplayBuffer()
    return ReplayBuffer.read(registry.object_path(head.replay) / "buffer.json")


def _greedy(model: Any, tokenizer: Any, conversations: Sequence[Conversation], max_new_tokens: int) -> list[str]:
    from incremental_llm.evaluation.generate import greedy_answers

    return greedy_answers(model, tokenizer, conversations, max_new_tokens=max_new_tokens)
