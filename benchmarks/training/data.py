"""What is trained on: the demo's shop chats, longer pairs of the same words, and a row shape without any gain.

All sides of a measurement get these token ids, and the batches of `steps_of`, so a step holds the same rows everywhere.
"""

from __future__ import annotations

import hashlib
import json
import random
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from incremental_llm.adapters.chat_tokens import prompt_ids
from incremental_llm.chat import Message
from incremental_llm.dataset.examples import Example, PairExample, SftExample, UnpairedExample
from incremental_llm.training.batching import Row, TokenExample, tokenize, training_order

DEMO = Path(__file__).resolve().parent.parent.parent / "recipes" / "demo"
SEED = 0


def chats(tokenizer: Any, kind: str) -> list[TokenExample]:
    """The demo's questions under the default system prompt: "sft", "pair" or "unpaired" (ups and downs alike)."""
    made: list[Example] = []
    said: dict[str, Any] = {"sources": ("e1",), "users": ("u1",), "weight": 1.0}
    for fact in _facts():
        for number, question in enumerate(fact.log_phrasings):
            prompt = (Message(role="user", content=question),)
            good, bad = fact.truth.answer, fact.wrong[number % len(fact.wrong)]
            if kind == "sft":
                made.append(SftExample(prompt=prompt, completion=good, **said))
            elif kind == "pair":
                made.append(PairExample(prompt=prompt, chosen=good, rejected=bad, **said))
            else:
                liked = number % 2 == 0
                made.append(UnpairedExample(prompt=prompt, completion=good if liked else bad, desirable=liked, **said))
    return [tokenize(tokenizer, example) for example in made]


def pairs(tokenizer: Any, prompt: int, completion: int, count: int) -> list[TokenExample]:
    """Pairs of exactly these lengths (tokens), of the demo's words, inside the chat template."""
    hole = prompt_ids(tokenizer, (Message(role="user", content="@"),))
    place = hole.index(tokenizer.encode("@", add_special_tokens=False)[0])
    before, after = hole[:place], hole[place + 1 :]
    words = _words(tokenizer)

    def said(length: int) -> list[int]:
        return [next(words) for _ in range(length)]

    def answer() -> tuple[int, ...]:
        return (*said(completion - 1), tokenizer.eos_token_id)

    made = []
    for _ in range(count):
        asked = (*before, *said(prompt - len(before) - len(after)), *after)
        made.append(TokenExample((Row(asked, answer()), Row(asked, answer())), 1.0))
    return made


def uniform(tokenizer: Any, length: int, count: int) -> list[TokenExample]:
    """Rows that no batching can help: equally long, nothing in common, every position labelled."""
    words = _words(tokenizer)
    rows = [tuple(next(words) for _ in range(length)) for _ in range(count)]
    return [TokenExample((Row(row[:1], row[1:]),), 1.0) for row in rows]


def steps_of(examples: list[TokenExample], batch_size: int, steps: int) -> list[list[TokenExample]]:
    """The examples of each step, in the order in which the product's `plan_phase` lays them out."""
    epochs = steps * batch_size / len(examples)
    seed = SEED * 1000  # of the first phase
    order = training_order([e.length for e in examples], epochs=epochs, batch_size=batch_size, seed=seed)
    return [[examples[i] for i in batch] for batch in order]


def digest(rows: list[dict[str, Any]]) -> str:
    """What the rows hold as tokens, in their order; equal for all sides of a measurement."""
    names = ("prompt_ids", "completion_ids", "chosen_ids", "rejected_ids", "kl_completion_ids")
    tokens = [[row[name] for name in names if name in row] for row in rows]
    return hashlib.sha256(json.dumps(tokens).encode()).hexdigest()


def _words(tokenizer: Any) -> Iterator[int]:
    """Token ids of what is said in the demo's shop, in a random order, each text once a lap."""
    texts = {
        text
        for fact in _facts()
        for text in (fact.truth.answer, fact.truth.second, *fact.wrong, *fact.log_phrasings, *fact.suite_phrasings)
    }
    rng, ordered = random.Random(SEED), sorted(texts)
    while True:
        for text in rng.sample(ordered, len(ordered)):
            yield from tokenizer.encode(" " + text, add_special_tokens=False)


def _facts() -> Any:
    sys.path.insert(0, str(DEMO))
    from scenario import load_facts

    return load_facts()
