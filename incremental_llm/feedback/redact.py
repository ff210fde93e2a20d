"""Personal data and secrets in a text, and the text without them.

    >>> redact("Write to pat@example.com or call +44 7700 900123.")
    ('Write to [EMAIL] or call [PHONE].', {'email': 1, 'phone': 1})

Precise patterns, with check digits where they exist, so that prices, dates and sizes pass. What cannot be told from an
order number by its form alone counts only beside a word such as "call" or "phone". Names of people are not looked for.
"""

from __future__ import annotations

import ipaddress
import re
import unicodedata
from bisect import bisect
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from incremental_llm.feedback.secrets import secret_spans

KINDS = ("email", "phone", "card", "iban", "ip", "handle", "secret")
"""The kinds that are found, in the order in which they are named."""

_EMAIL = re.compile(r"(?<![\w.+-])[\w.+-]{1,64}@[\w-]{1,63}(?:\.[\w-]{1,63}){1,8}(?![\w-])")
_DIGIT_RUN = re.compile(
    r"(?<![\w.,/#-])\+?\(?\d(?:[ ().\-/]{0,2}\d){5,18}(?:\s?(?:x|ext\.?)\s?\d{1,6})?(?![\w%]|[.,]\d)"
)
_EXTENSION = re.compile(r"\s?(?:x|ext\.?)\s?\d{1,6}$")
_PHONE_WORD = re.compile(
    r"\b(?:phone|telephone|tel|mobile|cell|call|calling|ring|text|fax|whatsapp|reach)\b(?P<between>[^\d+]{0,24})$", re.I
)
_NOT_A_PHONE = re.compile(
    r"\b(?:order|invoice|ticket|tracking|parcel|item|article|sku|part|model|serial|reference|case)\b[^\d+]{0,20}$", re.I
)
_DATE = re.compile(
    r"(?<!\d)(?:(?:1\d|20)\d\d ?- ?(?:1\d|20)\d\d|\d{4}([-/.])\d{1,2}\1\d{1,2}|\d{1,2}([-/.])\d{1,2}\2\d{4})(?!\d)"
)
_NORTH_AMERICAN = re.compile(r"(?:1[-. ])?(?:\([2-9]\d\d\)[-. ]{0,2}|[2-9]\d\d[-. ]{1,2})\d{3}[-. ]\d{4}|555[-. ]\d{4}")
_TRUNK = re.compile(r"\(?0\d{1,5}\)?[ /-]{1,2}\d{2,8}(?:[ /-]\d{2,8})*")
_CARD = re.compile(
    r"(?<![\w.,-])(?:[3-6]\d{3}|2[1-7]\d\d|1800|06\d\d)"
    r"(?:\d{8,15}|(?P<gap>[ -])(?:\d{4}(?P=gap)\d{4}(?P=gap)\d{1,7}|\d{6}(?P=gap)\d{4,5}))(?![\w-]|[.,]\d)"
)
_IBAN = re.compile(r"\b[A-Z]{2}\d{2}(?:[A-Z0-9]{11,30}|(?: [A-Z0-9]{4}){2,7}(?: [A-Z0-9]{1,3})?)\b", re.I)
_IPV4 = re.compile(r"(?<![\w.])(?:\d{1,3}\.){3}\d{1,3}(?![\w]|\.\d)")
_IPV6 = re.compile(r"(?<![\w:])[0-9a-f]{0,4}(?::[0-9a-f]{0,4}){2,7}(?![\w:])", re.I)
_VERSION_WORD = re.compile(r"\b(?:v|ver|version|firmware|release|build|section|chapter)\.?\s*$", re.I)
_HANDLE = re.compile(r"(?<![\w@./+-])@(?=\w{3}|\w+[.-]\w)[A-Za-z_]\w{0,39}(?:[.-]\w{1,39}){0,4}(?![\w@]|[(/])")
_NO_HANDLES = frozenset(
    """noon home work night all everyone here channel media import charset supports keyframes layer page param return
    returns override property staticmethod classmethod dataclass abstractmethod cached_property test before after
    autowired author see since throws deprecated todo type typedef noindex component injectable input output
    """.split()  # noqa: SIM905
)
_INVISIBLE = re.compile(
    "[\u00ad\u061c\u180e\u200b-\u200f\u202a-\u202e\u2060-\u2064\u2066-\u206f\ufeff\U000e0000-\U000e007f]"
)
_SIGNS = re.compile(r"[@\d:]")
_WORDS = ("sk-", "begin", "passw", "secret", "token", "key")
"""What every kind has some of, signs or words: a text without is clean, at a tenth of the time."""


@dataclass(frozen=True, slots=True)
class Span:
    """A find: `text[start:end]` is of this kind."""

    kind: str
    start: int
    end: int


def redact(text: str, public: Sequence[str] = ()) -> tuple[str, dict[str, int]]:
    """The text with `[EMAIL]` and the like in the place of each find, and how many of each kind there were.

    A find that holds one of the `public` texts, in whatever case, stays: the shop's own address is nobody's secret.
    """
    spans = find(text, public)
    if not spans:
        return text, {}
    parts, end = [], 0
    for span in spans:
        parts += [text[end : span.start], f"[{span.kind.upper()}]"]
        end = span.end
    counts = Counter(span.kind for span in spans)
    return "".join((*parts, text[end:])), {kind: counts[kind] for kind in KINDS if kind in counts}


def personal_data(text: str, public: Sequence[str] = ()) -> tuple[str, ...]:
    """The kinds of personal data and secrets in `text`, in the order of `KINDS`; empty when there is none.

    >>> personal_data("Write to pat@example.com or call +44 7700 900123.")
    ('email', 'phone')
    >>> personal_data("Order 20261101-4711: 45 days, size 30-40, 1,299.00 EUR, placed 2026-11-01.")
    ()
    """
    found = {span.kind for span in find(text, public)}
    return tuple(kind for kind in KINDS if kind in found)


def find(text: str, public: Sequence[str] = ()) -> list[Span]:
    """All finds from left to right but those that hold a public text; of two that overlap the longer one stays."""
    plain, places = _plain(text)
    if not _SIGNS.search(plain):
        lower = plain.lower()
        if not any(word in lower for word in _WORDS):
            return []
    spans = [Span(kind, *where) for kind in KINDS for where in _FINDERS[kind](plain)]
    if public:
        spans = [span for span in spans if not _is_public(plain[span.start : span.end], public)]
    chosen = _apart(spans)
    if places is None:
        return chosen
    return [Span(span.kind, places[span.start], places[span.end - 1] + 1) for span in chosen]


def _apart(spans: Sequence[Span]) -> list[Span]:
    """The spans from left to right; of two that overlap the longer one, of equal ones the first."""
    chosen: list[Span] = []  # by their starts, and disjoint: a span can only meet the two that it falls between
    for span in sorted(spans, key=lambda span: (span.start - span.end, span.start)):
        place = bisect(chosen, span.start, key=lambda other: other.start)
        before, after = chosen[max(0, place - 1) : place], chosen[place : place + 1]
        if all(other.end <= span.start for other in before) and all(span.end <= other.start for other in after):
            chosen.insert(place, span)
    return chosen


def _is_public(found: str, public: Sequence[str]) -> bool:
    return any(text.casefold() in found.casefold() for text in public)


def _plain(text: str) -> tuple[str, list[int] | None]:
    """The text in plain characters, and where in `text` each of them stands; None where they are the same.

    Full-width letters and zero-width characters hide an address from patterns, not from readers.
    """
    if text.isascii() or (unicodedata.is_normalized("NFKC", text) and not _INVISIBLE.search(text)):
        return text, None
    parts: list[str] = []
    places: list[int] = []
    for place, character in enumerate(text):
        if unicodedata.category(character) != "Cf":
            plain = unicodedata.normalize("NFKC", character)
            parts.append(plain)
            places += [place] * len(plain)
    return "".join(parts), places


Places = Iterator[tuple[int, int]]


def _email(text: str) -> Places:
    if "@" in text:
        yield from (match.span() for match in _EMAIL.finditer(text))


def _handle(text: str) -> Places:
    if "@" in text:
        lines, start = text.split("\n"), 0
        for line in lines:
            alone = line.strip() if len(lines) > 1 else ""  # on its line, as a decorator or an annotation in code does
            for match in _HANDLE.finditer(line):
                if match.group() != alone and match.group()[1:].lower() not in _NO_HANDLES:
                    yield start + match.start(), start + match.end()
            start += len(line) + 1


def _phone(text: str) -> Places:
    for match in _DIGIT_RUN.finditer(text):
        if _is_phone(match.group(), text[max(0, match.start() - 60) : match.start()]):
            yield match.span()


def _is_phone(found: str, before: str) -> bool:
    found = _EXTENSION.sub("", found)
    digits = sum(c.isdigit() for c in found)
    if found.startswith("+") and 8 <= digits <= 15:
        return True
    if _DATE.search(found) or _NOT_A_PHONE.search(before) or digits > 15:
        return False
    if found.startswith("00") and re.search(r"[ -]", found):
        return digits >= 8
    if _NORTH_AMERICAN.fullmatch(found) or (_TRUNK.fullmatch(found) and 9 <= digits <= 12):
        return True
    return digits >= 7 and _PHONE_WORD.search(before) is not None


def _card(text: str) -> Places:
    for match in _CARD.finditer(text):
        if _luhn([int(c) for c in match.group() if c.isdigit()]):
            yield match.span()


def _luhn(digits: list[int]) -> bool:
    """ISO/IEC 7812-1, annex B: doubling every second digit from the right, the digits sum to a multiple of 10."""
    doubled = [d if place % 2 == 0 else (d * 2 - 9 if d > 4 else d * 2) for place, d in enumerate(reversed(digits))]
    return sum(doubled) % 10 == 0


def _iban(text: str) -> Places:
    for match in _IBAN.finditer(text):
        found = match.group()
        while found and not _iban_checks(found):
            found = found.rpartition(" ")[0]  # the next words may look like more of it
        if found:
            yield match.start(), match.start() + len(found)


def _iban_checks(found: str) -> bool:
    """ISO 13616: the first four characters moved to the end, letters as 10 to 35, the number is 1 modulo 97."""
    plain = found.replace(" ", "").upper()
    if not 15 <= len(plain) <= 34:
        return False
    return int("".join(str(int(c, 36)) for c in plain[4:] + plain[:4])) % 97 == 1


def _ip(text: str) -> Places:
    if text.count(".") >= 3:
        for match in _IPV4.finditer(text):
            versions = _VERSION_WORD.search(text[max(0, match.start() - 12) : match.start()])
            if not versions and _is_address(match.group()):
                yield match.span()
    if text.count(":") >= 2:
        for match in _IPV6.finditer(text):
            if _looks_like_v6(match.group()) and _is_address(match.group()):
                yield match.span()


def _looks_like_v6(found: str) -> bool:
    groups = [group for group in found.split(":") if group]
    return len(groups) == 8 or ("::" in found and len(groups) >= 3 and any(len(group) > 2 for group in groups))


def _is_address(found: str) -> bool:
    try:
        address = ipaddress.ip_address(found)
    except ValueError:
        return False
    return not (address.is_loopback or address.is_unspecified)


_FINDERS: dict[str, Callable[[str], Places]] = {
    "email": _email,
    "phone": _phone,
    "card": _card,
    "iban": _iban,
    "ip": _ip,
    "handle": _handle,
    "secret": secret_spans,
}
