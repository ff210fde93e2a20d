"""Examples become token rows, and rows become the fixed order in which a phase sees them.

Shapes: B rows of a batch, T tokens of the longest row.

The order of every epoch is laid out before the first step, so a run is the same on one process and on two, and a
resumed run continues where it stopped. Rows of similar length share a batch (less padding), batches are shuffled.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from incremental_llm.adapters.chat_tokens import completion_ids, prompt_ids
from incremental_llm.chat import Conversation
from incremental_llm.dataset.examples import Example, PairExample, SftExample, UnpairedExample

_LENGTH_WINDOW = 8  # batches sorted by length together: padding shrinks, the order stays close to random


@dataclass(frozen=True)
class Row:
    """Prompt and completion tokens; the completion ends with the end-of-turn token and alone is scored."""

    prompt: tuple[int, ...]
    completion: tuple[int, ...]

    @property
    def length(self) -> int:
        return len(self.prompt) + len(self.completion)


@dataclass(frozen=True)
class TokenExample:
    """A tokenised example: `rows` holds (completion,) or (chosen, rejected).

    `question` are the places in the prompt of what the user said last, without the template around it.
    """

    rows: tuple[Row, ...]
    weight: float
    desirable: bool = True
    question: range = range(0)
    id: str = ""

    @property
    def length(self) -> int:
        return max(row.length for row in self.rows)


def tokenize(tokenizer: Any, example: Example) -> TokenExample:
    """The example as rows of token ids, by the tokenizer's own chat template."""
    prompt = tuple(prompt_ids(tokenizer, example.prompt))

    def row(text: str) -> Row:
        return Row(prompt, tuple(completion_ids(tokenizer, example.prompt, text)))

    if isinstance(example, PairExample):
        return TokenExample((row(example.chosen), row(example.rejected)), example.weight, id=example.id)
    if isinstance(example, UnpairedExample):
        return TokenExample((row(example.completion),), example.weight, example.desirable, id=example.id)
    assert isinstance(example, SftExample)
    question = _last_content(tokenizer, example.prompt, prompt)
    return TokenExample((row(example.completion),), example.weight, question=question, id=example.id)


def _last_content(tokenizer: Any, conversation: Conversation, prompt: tuple[int, ...]) -> range:
    """Where the last message's own tokens stand: what changes when the same chat is written with an empty one."""
    last = conversation[-1].model_copy(update={"content": ""})
    empty = prompt_ids(tokenizer, (*conversation[:-1], last))
    limit = min(len(empty), len(prompt))
    start = next((i for i in range(limit) if empty[i] != prompt[i]), limit)
    behind = next((i for i in range(limit - start) if empty[-1 - i] != prompt[-1 - i]), limit - start)
    return range(start, len(prompt) - behind)


def with_dropout(example: TokenExample, share: float, rng: random.Random) -> Row:
    """The example's row with each token of its question left out with probability `share`, but never all of them.

    Word dropout (Iyyer et al. 2015): an answer then hangs on no single word, and other phrasings find it too.
    """
    row, dropped = example.rows[0], {place for place in example.question if rng.random() < share}
    if len(dropped) == len(example.question):
        return row
    return Row(tuple(token for place, token in enumerate(row.prompt) if place not in dropped), row.completion)


def training_order(
    lengths: Sequence[int], *, epochs: float, batch_size: int, seed: int, turns: Sequence[Sequence[int]] = ()
) -> list[list[int]]:
    """Indices of every batch of a phase: epochs one after another, all batches full and of similar lengths.

    The last batch of the phase is filled from one more shuffled epoch, so each index appears `epochs` times, up to one
    extra. No batch holds an index twice while there are others: fewer rows than `batch_size` repeat within a batch.

    Indices that are in one of `turns` come in these epochs only: the first turn in the first, and so on, in a circle.
    """
    moving = {index for indices in turns for index in indices}
    always = [index for index in range(len(lengths)) if index not in moving]

    def turn(epoch: int) -> Sequence[int]:
        return turns[epoch % len(turns)] if turns else ()

    def size(epoch: int) -> int:
        return len(always) + len(turn(epoch))

    whole, part = int(epochs), epochs % 1
    rows = sum(map(size, range(whole))) + part * size(whole)
    total = max(1, -(-round(rows) // batch_size))
    rng = random.Random(seed)
    batches: list[list[int]] = []
    begun: list[int] = []  # the batch that the epoch before left to be filled
    for epoch in itertools.count():
        if len(batches) >= total:
            break
        order = rng.sample(sorted([*always, *turn(epoch)]), size(epoch))
        if begun:
            order.sort(key=lambda index: index in begun)
            room = batch_size - len(begun)
            begun, order = begun + order[:room], order[room:]
            rng.shuffle(order)
        if len(begun) == batch_size:
            batches.append(begun)
            begun = []
        full = len(order) // batch_size * batch_size
        begun = begun + order[full:]
        window = batch_size * _LENGTH_WINDOW
        for start in range(0, full, window):
            near = sorted(order[start : min(start + window, full)], key=lambda index: lengths[index])
            cut = [near[i : i + batch_size] for i in range(0, len(near), batch_size)]
            rng.shuffle(cut)
            batches.extend(cut)
    for batch in batches:  # processes take consecutive slices: sorted rows would give one of them all the long ones
        rng.shuffle(batch)
    return batches[:total]


def pad_rows(rows: Sequence[Row]) -> tuple[torch.Tensor, torch.Tensor]:
    """Right-padded ids_BT and the mask_BT of the positions whose NEXT token is a completion token.

    Padding stands after every real token, so causal attention alone keeps it out: no attention mask is needed, and the
    id used for padding (often the end-of-turn token itself) does not matter.
    """
    longest = max(row.length for row in rows)
    ids_BT = torch.zeros(len(rows), longest, dtype=torch.long)
    scored_BT = torch.zeros(len(rows), longest, dtype=torch.bool)
    for index, row in enumerate(rows):
        ids_BT[index, : row.length] = torch.tensor(row.prompt + row.completion)
        scored_BT[index, len(row.prompt) - 1 : row.length - 1] = True
    return ids_BT, scored_BT


def stack_rows(above_BT: torch.Tensor, below_BT: torch.Tensor) -> torch.Tensor:
    """Two batches as one, padded on the right to the longer rows."""
    longest = max(above_BT.shape[1], below_BT.shape[1])
    padded = [torch.nn.functional.pad(part_BT, (0, longest - part_BT.shape[1])) for part_BT in (above_BT, below_BT)]
    return torch.cat(padded)


def length_sorted_chunks(rows: Sequence[Row], tokens: int = 2048) -> list[list[int]]:
    """Indices of `rows` in chunks of similar length that hold at most about `tokens` padded tokens.

    Rows with the same prompt come together: scoring computes it once for all of them.
    """
    families: dict[tuple[int, ...], list[int]] = {}
    for index, row in enumerate(rows):
        families.setdefault(row.prompt, []).append(index)
    chunks: list[list[int]] = []
    by_longest = [(max(rows[i].length for i in family), family) for family in families.values()]
    for longest, family in sorted(by_longest, key=lambda entry: entry[0]):
        most = max(1, tokens // longest)
        for part in (family[start : start + most] for start in range(0, len(family), most)):
            if chunks and (len(chunks[-1]) + len(part)) * longest <= tokens:
                chunks[-1] += part
            else:
                chunks.append(part)
    return chunks
