"""Order and padding: nothing is lost, everything is fixed beforehand."""

from __future__ import annotations

import random
from collections import Counter
from typing import Any

import torch
from hypothesis import given
from hypothesis import strategies as st

from incremental_llm.chat import Message
from incremental_llm.dataset.examples import SftExample
from incremental_llm.training.batching import (
    Row,
    length_sorted_chunks,
    pad_rows,
    tokenize,
    training_order,
    with_dropout,
)


@given(
    lengths=st.lists(st.integers(2, 200), min_size=1, max_size=60),
    epochs=st.floats(0.5, 4),
    batch_size=st.integers(2, 9),
    seed=st.integers(0, 99),
)
def test_every_row_appears_as_often_as_the_epochs_say(
    lengths: list[int], epochs: float, batch_size: int, seed: int
) -> None:
    order = training_order(lengths, epochs=epochs, batch_size=batch_size, seed=seed)
    assert all(len(batch) == batch_size for batch in order)
    counts = Counter(index for batch in order for index in batch)
    total = sum(counts.values())
    wanted = round(len(lengths) * epochs)
    assert wanted <= total < wanted + max(batch_size, batch_size * 2)
    laps = total / len(lengths)
    assert all(int(laps) <= counts[index] <= int(laps) + 1 for index in range(len(lengths)))


def test_the_order_depends_on_the_seed_alone() -> None:
    first = training_order(list(range(40)), epochs=2, batch_size=4, seed=1)
    assert first == training_order(list(range(40)), epochs=2, batch_size=4, seed=1)
    assert first != training_order(list(range(40)), epochs=2, batch_size=4, seed=2)


@given(new=st.integers(1, 20), data=st.data(), epochs=st.integers(1, 5), seed=st.integers(0, 99))
def test_rotating_rows_come_in_their_epochs_and_the_others_in_every_one(
    new: int, data: st.DataObject, epochs: int, seed: int
) -> None:
    old = range(new, new + data.draw(st.integers(1, 30)))
    turns = data.draw(st.lists(st.lists(st.sampled_from(old), unique=True, min_size=1), min_size=1, max_size=6))
    order = training_order([10] * old.stop, epochs=epochs, batch_size=1, seed=seed, turns=turns)
    stream = [index for batch in order for index in batch]
    always = sorted(set(range(old.stop)) - {index for turn in turns for index in turn})
    for epoch in range(epochs):
        due = sorted([*always, *turns[epoch % len(turns)]])
        seen, stream = stream[: len(due)], stream[len(due) :]
        assert sorted(seen) == due
    assert not stream


@given(rows=st.integers(1, 70), batch_size=st.integers(2, 9), epochs=st.integers(1, 12), seed=st.integers(0, 99))
def test_no_batch_has_a_row_twice_and_epochs_stand_one_after_another(
    rows: int, batch_size: int, epochs: int, seed: int
) -> None:
    order = training_order([n % 7 for n in range(rows)], epochs=epochs, batch_size=batch_size, seed=seed)
    assert all(len(set(batch)) == min(rows, batch_size) for batch in order)
    counts: Counter[int] = Counter()
    for batch in order:
        counts.update(batch)
        assert max(counts.values()) - min(counts[row] for row in range(rows)) <= 2  # no row waits for the others


def test_rows_of_a_batch_have_similar_lengths() -> None:
    lengths = [10, 100] * 32
    batches = training_order(lengths, epochs=1, batch_size=8, seed=0)
    assert all(len({lengths[i] for i in batch}) == 1 for batch in batches)


def test_scored_positions_predict_the_completion_and_nothing_else() -> None:
    ids_BT, scored_BT = pad_rows([Row((5, 6, 7), (8, 9)), Row((5,), (6,))])
    assert ids_BT.tolist() == [[5, 6, 7, 8, 9], [5, 6, 0, 0, 0]]
    targets = ids_BT.roll(-1, dims=1)[scored_BT]
    assert targets.tolist() == [8, 9, 6]
    assert torch.equal(scored_BT.sum(1), torch.tensor([2, 1]))


@given(st.lists(st.tuples(st.integers(2, 300), st.integers(0, 9)), min_size=0, max_size=50))
def test_chunks_hold_every_row_once(shapes: list[tuple[int, int]]) -> None:
    rows = [Row((prompt,), (2,) * (length - 1)) for length, prompt in shapes]
    chunks = length_sorted_chunks(rows, tokens=512)
    assert sorted(i for chunk in chunks for i in chunk) == list(range(len(rows)))
    assert all(len(c) == 1 or len(c) * max(rows[i].length for i in c) <= 512 for c in chunks)


def test_the_rows_of_a_prompt_share_a_chunk() -> None:
    rows = [Row((prompt,), (2,) * length) for length in (10, 90) for prompt in range(4)]
    chunks = length_sorted_chunks(rows, tokens=400)
    assert sorted(map(sorted, chunks)) == [[0, 1, 4, 5], [2, 3, 6, 7]]


def test_dropout_leaves_out_words_of_the_question_and_nothing_else(tiny_tokenizer: Any) -> None:
    prompt = (
        Message(role="user", content="hello"),
        Message(role="assistant", content="hi"),
        Message(role="user", content="How long does shipping take to my home?"),
    )
    example = tokenize(
        tiny_tokenizer, SftExample(prompt=prompt, completion="Six days.", sources=("e1",), users=("u1",))
    )
    (row,) = example.rows
    asked = tiny_tokenizer.decode(row.prompt[example.question.start : example.question.stop])
    assert asked == "How long does shipping take to my home?"

    before, behind = row.prompt[: example.question.start], row.prompt[example.question.stop :]
    kept = 0
    for seed in range(200):
        found = with_dropout(example, 0.3, random.Random(seed))
        assert found.completion == row.completion
        assert found.prompt[: len(before)] == before
        assert found.prompt[-len(behind) :] == behind
        kept += len(found.prompt) - len(before) - len(behind)
    assert 0.6 < kept / (200 * len(example.question)) < 0.8

    assert with_dropout(example, 0.0, random.Random(0)) == row
    assert with_dropout(example, 0.999999, random.Random(0)) == row, "a question that lost all its words is asked whole"
