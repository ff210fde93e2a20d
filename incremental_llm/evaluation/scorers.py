"""Is this answer right? Pure functions from an answer's text to yes or no.

    contains   an accepted term stands in the answer, and no distractor does
    exact      the whole answer is an accepted term (quotes, markup and closing punctuation aside)
    regex      the pattern is found in the answer, and no distractor stands in it

Both sides are normalised first (`normalise`): Unicode NFKC, case folded, white space collapsed, curly quotes and long
dashes made plain, numbers made comparable: "1,000" is "1000", "45.00" is "45", "5 %" is "5%", "$ 5" is "$5".

A term stands in an answer only as whole words: "30" does not stand in "130", "30.5" or "30,5", nor "5" in "-5"; "ship"
does not stand in "shipping". It does in "(30)", "30-day" and "30%". Scripts written without spaces have no word edges.

The one design fact: a distractor anywhere makes the answer wrong, so an answer that lists every possibility, or first
the right fact and then the outdated one, never counts. An empty answer is always wrong.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Callable, Sequence
from functools import lru_cache
from types import MappingProxyType

_PLAIN = str.maketrans(
    {"‘": "'", "’": "'", "“": '"', "”": '"', "‐": "-", "‑": "-", "‒": "-", "–": "-", "—": "-", "−": "-"}
)
_THOUSANDS = re.compile(r"(?<![\d.,])\d{1,3}(?:[,\u00a0\u202f]\d{3})+(?![\d]|,\d)")
_ZERO_CENTS = re.compile(r"(?<![\d.,])(\d+)\.0+(?![\d.]*\d)")
_EDGES = " \t\n\"'`*_()[]"


@lru_cache(maxsize=4096)
def normalise(text: str) -> str:
    """The form in which answers and terms are compared; idempotent."""
    text = _THOUSANDS.sub(lambda found: re.sub(r"\D", "", found.group()), text)
    text = unicodedata.normalize("NFKC", text).translate(_PLAIN)
    text = unicodedata.normalize("NFKC", text.casefold())
    text = _THOUSANDS.sub(lambda found: re.sub(r"\D", "", found.group()), text)
    text = _ZERO_CENTS.sub(r"\1", text)
    text = re.sub(r"(?<=\d)\s+(?=%)|(?<=[$€£])\s+(?=\d)", "", text)
    return " ".join(text.split())


def stands_in(term: str, answer: str) -> bool:
    """Whether `term` stands in `answer` as whole words, both normalised here."""
    return _term_pattern(normalise(term)).search(normalise(answer)) is not None


def contains(answer: str, accept: Sequence[str], distractors: Sequence[str] = ()) -> bool:
    """An accepted term stands in the answer and no distractor does."""
    return any(stands_in(term, answer) for term in accept) and not _distracted(answer, distractors)


def exact(answer: str, accept: Sequence[str], distractors: Sequence[str] = ()) -> bool:
    """The answer is an accepted term, and no distractor stands in it."""
    return bare(answer) in {bare(term) for term in accept} - {""} and not _distracted(answer, distractors)


def regex(answer: str, accept: Sequence[str], distractors: Sequence[str] = ()) -> bool:
    """A pattern is found anywhere in the normalised answer, ignoring case, and no distractor stands in it.

    Patterns are Python's; anchor them with ^ and $ to match the whole answer.
    """
    text = normalise(answer)
    found = any(re.search(pattern, text, re.IGNORECASE) for pattern in accept)
    return bool(text) and found and not _distracted(answer, distractors)


def choice(logps: Sequence[float], tokens: Sequence[int]) -> int:
    """Index of the option with the highest log-likelihood per token; the first of equals.

    Raises:
        ValueError: no options, or a log-likelihood that is not finite or has no tokens.
    """
    if not logps or len(logps) != len(tokens) or not all(map(math.isfinite, logps)) or min(tokens) < 1:
        raise ValueError(f"expected finite log-likelihoods of at least one token each, found {logps} and {tokens}")
    means = [logp / count for logp, count in zip(logps, tokens, strict=True)]
    return max(range(len(means)), key=lambda index: (means[index], -index))


def preference(chosen_logp: float, rejected_logp: float) -> bool:
    """The model would rather say the chosen reply: its summed log-likelihood is strictly higher.

    Raises:
        ValueError: a log-likelihood that is not finite.
    """
    if not (math.isfinite(chosen_logp) and math.isfinite(rejected_logp)):
        raise ValueError(f"expected finite log-likelihoods, found {chosen_logp} and {rejected_logp}")
    return chosen_logp > rejected_logp


def bare(text: str) -> str:
    """Normalised text without the quotes, markup and closing punctuation around it."""
    return normalise(text).strip(_EDGES).rstrip(".!?,;:").strip(_EDGES)


TextScorer = Callable[[str, Sequence[str], Sequence[str]], bool]
TEXT_SCORERS: MappingProxyType[str, TextScorer] = MappingProxyType(
    {"contains": contains, "exact": exact, "regex": regex}
)


def _distracted(answer: str, distractors: Sequence[str]) -> bool:
    return any(stands_in(term, answer) for term in distractors)


@lru_cache(maxsize=4096)
def _term_pattern(term: str) -> re.Pattern[str]:
    """A pattern for a normalised term with its word edges; an empty term is found nowhere."""
    if not term:
        return re.compile(r"(?!)")
    before = r"(?<!\w)" if _has_edge(term[0]) else ""
    after = r"(?!\w)" if _has_edge(term[-1]) else ""
    if term[0].isdigit():
        before = r"(?<!\w)(?<!\d[.,])(?<!\s-)(?<!^-)"
    if term[-1].isdigit():
        after = r"(?!\w)(?![.,]\d)"
    return re.compile(before + re.escape(term) + after)


def _has_edge(character: str) -> bool:
    return (character.isalnum() or character == "_") and unicodedata.east_asian_width(character) not in "WF"
