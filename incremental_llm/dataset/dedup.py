"""When two texts are the same: equal but for case, spaces and punctuation, for filler words, or for typing errors.

A reply is never the same as another but for a typing error: one letter makes a biking trail of a hiking trail. Only a
question may differ so, and then not in a number, a number word or a negation.
"""

from __future__ import annotations

import re
import unicodedata
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import lru_cache

from rapidfuzz import fuzz
from rapidfuzz.distance import OSA

from incremental_llm.chat import Message
from incremental_llm.dataset.examples import Example, PairExample, UnpairedExample

NEAR_RATIO = 97.0
"""Similarity from which texts can be near duplicates: 100 x the share of characters in common (Indel ratio)."""
MAX_TYPOS = 3
"""Words that may differ, each by one edit, between near duplicates."""
_SHORTEST_TYPO = 4  # characters of a word in which an edit is a typing error and not another word
_LONG_WORD = 32  # characters

_NUMBER_WORDS = frozenset(
    """zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen
    eighteen nineteen twenty thirty forty fifty sixty seventy eighty ninety hundred thousand million billion dozen
    half quarter third once twice thrice double triple single first second fourth fifth sixth seventh eighth ninth
    tenth none both""".split()  # noqa: SIM905 - a list of strings would be four times as long
)
_FILLER = frozenset("a an the please pls hi hello hey thanks thank well oh ok okay so just um uh".split())  # noqa: SIM905
_MEANINGFUL = frozenset("%#@&+$€£¥<>=°")  # "C" is not "C#", 5 % is not 5
_HYPHEN = re.compile(r"(?<=\w)-(?=\w)")
_ASCII_TOKEN = re.compile(r"-?\d+(?:[.,]\d+)*|[a-z]+(?:'[a-z]+)*|[%#@&+$<>=^`|~\x00-\x08\x0e-\x1b\x7f]")
_TOKEN = re.compile(r"-?\d+(?:[.,]\d+)*|[^\W\d_]+(?:['’][^\W\d_]+)*|\S")


@lru_cache(maxsize=100_000)
def tokens(text: str) -> tuple[str, ...]:
    """Words, numbers and meaningful signs of a text, in lower case; other punctuation and spaces are gone.

    >>> tokens("It's  1,299.50 EUR, isn't it?  -5 %!")
    ("it's", '1,299.50', 'eur', "isn't", 'it', '-5', '%')
    >>> tokens("30-40 days") == tokens("30 40 days")
    True
    """
    ascii_only = text.isascii()  # the same in a third of the time
    plain = text.lower() if ascii_only else unicodedata.normalize("NFKC", text).casefold().replace("’", "'")
    if "-" in plain:
        plain = _HYPHEN.sub(" ", plain)
    found = tuple((_ASCII_TOKEN if ascii_only else _TOKEN).findall(plain))
    if not ascii_only:
        found = tuple(t for t in found if t in _MEANINGFUL or len(t) > 1 or not unicodedata.category(t).startswith("P"))
    return found or tuple(plain.split())


@lru_cache(maxsize=100_000)
def normalised(text: str) -> str:
    """A text without what does not change its meaning: case, spaces, punctuation."""
    return " ".join(tokens(text))


@lru_cache(maxsize=100_000)
def numbers(text: str) -> tuple[str, ...]:
    """The numbers, number words and negations of a text, sorted: the words that a near duplicate may not change."""
    return tuple(sorted(t for t in tokens(text) if _is_guarded(t)))


def prompt_key(prompt: Sequence[Message]) -> tuple[tuple[str, str], ...]:
    """Equal for prompts that are the same: roles, and normalised contents."""
    return tuple((message.role, normalised(message.content)) for message in prompt)


def same_statement(one: str, other: str) -> bool:
    """Whether two replies say the same: equal but for case, spaces, punctuation and filler words.

    >>> same_statement("Please return the boots within 30 days!", "Return boots within 30 days")
    True
    >>> same_statement("Return boots within 30 days", "Return boats within 30 days")
    False
    """
    return spoken(one) == spoken(other)


def near_duplicates(left: Sequence[str], right: Sequence[str]) -> bool:
    """Whether two lists of questions differ, text by text, by nothing but a few typing errors and filler words.

    >>> near_duplicates(["Can I return any pair of boots within thirty days?"],
    ...                 ["Can I return any pair of bots within thirty days?"])
    True
    >>> near_duplicates(["Can I return any pair of boots within 30 days?"],
    ...                 ["Can I return any pair of boots within 45 days?"])
    False
    """
    if len(left) != len(right):
        return False
    typos = 0
    for one, other in zip(left, right, strict=True):
        if one == other:
            continue
        differing = _typos(one, other)
        if differing is None or fuzz.ratio(normalised(one), normalised(other), score_cutoff=NEAR_RATIO) < NEAR_RATIO:
            return False
        typos += differing
    return typos <= MAX_TYPOS


def opponents(examples: Iterable[Example]) -> Callable[[Example], frozenset[str]]:
    """Who says the opposite of an example: blames a reply that it praises, or praises one that it blames.

    A reply that these examples both praise and blame counts for neither side.
    """
    praised: dict[object, set[str]] = defaultdict(set)
    blamed: dict[object, set[str]] = defaultdict(set)
    for example in examples:
        good, bad = _verdicts(example)
        for key in good:
            praised[key].update(example.users)
        for key in bad:
            blamed[key].update(example.users)

    def against(example: Example) -> frozenset[str]:
        good, bad = _verdicts(example)
        turned = [blamed[key] for key in good if key in blamed and key not in praised]
        turned += [praised[key] for key in bad if key in praised and key not in blamed]
        return frozenset().union(*turned)

    return against


def exact_key(example: Example) -> tuple[object, ...]:
    """Equal for exact duplicates: kind, verdict, normalised prompt and replies."""
    return (_verdict(example), prompt_key(example.prompt), tuple(normalised(text) for text in example.texts))


def group_near(examples: Sequence[Example]) -> list[int]:
    """For each example the position of the first that it repeats nearly, its own when it repeats none.

    Near duplicates have near-duplicate questions and the same replies. The questions without filler are cut into
    `MAX_TYPOS` + 1 pieces; of two near duplicates at least one piece is the same (the pigeonhole principle), and all
    other words are equal or look alike. Only examples for which both is so are compared, and time grows with their
    number.
    """
    first: list[int] = []
    blocks: dict[object, list[int]] = {}
    look = _lookalikes(word for example in examples for text in _questions(example) for word in spoken(text))
    for position, example in enumerate(examples):
        keys = list(_block_keys(example, look))
        near = {candidate for key in keys for candidate in blocks.get(key, ())}
        match = next((c for c in sorted(near) if _repeats(examples[c], example)), position)
        first.append(match)
        if match == position:
            for key in keys:
                blocks.setdefault(key, []).append(position)
    return first


def group_meaning(examples: Sequence[Example], alike: Callable[[Sequence[str]], Sequence[int]]) -> list[int]:
    """For each example the position of the first whose last question means the same, its own when there is none.

    `alike` says of questions which is the first that each of them means the same as. It is asked only about examples
    with the same replies, equal turns before, and the same numbers and negations in the question.
    """
    first = list(range(len(examples)))
    groups: dict[object, list[int]] = defaultdict(list)
    for position, example in enumerate(examples):
        said = tuple(spoken(text) for text in example.texts)
        earlier, asked = prompt_key(example.prompt[:-1]), numbers(example.prompt[-1].content)
        groups[_verdict(example), said, earlier, asked].append(position)
    for group in groups.values():
        if len(group) > 1:
            for position, match in zip(group, alike([examples[n].prompt[-1].content for n in group]), strict=True):
                first[position] = group[match]
    return first


def _verdict(example: Example) -> tuple[str, bool]:
    return example.kind, isinstance(example, UnpairedExample) and example.desirable


def _verdicts(example: Example) -> tuple[set[object], set[object]]:
    """What an example praises and what it blames, as (prompt, reply)."""
    keys: list[object] = [(prompt_key(example.prompt), spoken(text)) for text in example.texts]
    if isinstance(example, PairExample):
        return {keys[0]}, {keys[1]}
    good = not isinstance(example, UnpairedExample) or example.desirable
    return (set(keys), set()) if good else (set(), set(keys))


def _repeats(one: Example, other: Example) -> bool:
    return all(map(same_statement, one.texts, other.texts)) and near_duplicates(_questions(one), _questions(other))


def _questions(example: Example) -> tuple[str, ...]:
    return tuple(message.content for message in example.prompt)


@lru_cache(maxsize=100_000)
def spoken(text: str) -> tuple[str, ...]:
    """The tokens of a text without filler; all of them where nothing else is said."""
    return tuple(t for t in tokens(text) if t not in _FILLER) or tokens(text)


def _lookalikes(words: Iterable[str]) -> dict[str, str]:
    """A name for each word that may hold a typing error, the same for words that one edit makes equal.

    These have a form in common (`_forms`). What is linked by a chain of such words has one name too: the name proposes,
    and `near_duplicates` decides.
    """
    parent: dict[str, str] = {}
    forms: dict[object, str] = {}
    for word in dict.fromkeys(words):
        if len(word) < _SHORTEST_TYPO or _is_guarded(word):
            continue
        parent[word] = word
        for form in _forms(word):
            parent[_name(parent, forms.setdefault(form, word))] = _name(parent, word)
    return {word: _name(parent, word) for word in parent}


def _forms(word: str) -> Iterator[object]:
    """What a word has in common with each that one edit makes of it.

    That is the word itself or the word without one of its characters (symmetric deletion, Garbe 2012). A long word has
    as many of these as characters: of one the first or the last half counts, which an edit leaves as it is.
    """
    if len(word) <= _LONG_WORD:
        yield word
        yield from (word[:place] + word[place + 1 :] for place in range(len(word)))
    if len(word) >= _LONG_WORD:
        for longer in (len(word), len(word) + 1):  # of the two words
            half = (longer - 2) // 2
            yield from ((longer, word[:half]), (longer, word[-half:]))


def _name(parent: dict[str, str], word: str) -> str:
    while parent[word] != word:
        parent[word] = word = parent[parent[word]]
    return word


def _block_keys(example: Example, look: Mapping[str, str]) -> Iterable[object]:
    words = [spoken(text) for text in _questions(example)]
    roles = tuple(message.role for message in example.prompt)
    replies = tuple(spoken(text) for text in example.texts)
    figures = tuple(numbers(text) for text in _questions(example))
    flat = [word for text in words for word in text]
    alike = tuple(look.get(word, word) for word in flat)
    shape = hash((_verdict(example), roles, replies, tuple(map(len, words)), figures, alike))
    pieces = MAX_TYPOS + 1
    for piece in range(pieces):
        start, end = piece * len(flat) // pieces, (piece + 1) * len(flat) // pieces
        yield hash((shape, piece, tuple(flat[start:end])))


def _typos(one: str, other: str) -> int | None:
    """How many words differ by a typing error; None when the texts differ by anything else than these and filler."""
    left, right = spoken(one), spoken(other)
    if len(left) != len(right):
        return None
    count = 0
    for a, b in zip(left, right, strict=True):
        if a == b:
            continue
        if (
            _is_guarded(a)
            or _is_guarded(b)
            or min(len(a), len(b)) < _SHORTEST_TYPO
            or OSA.distance(a, b, score_cutoff=1) > 1
        ):
            return None
        count += 1
    return count


@lru_cache(maxsize=100_000)
def _is_guarded(token: str) -> bool:
    negation = token in {"no", "not", "never", "without", "cannot", "nor", "neither"} or token.endswith(("n't", "nt'"))
    return negation or token in _NUMBER_WORDS or any(c.isnumeric() for c in token)
