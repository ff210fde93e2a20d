"""Personal data in a text: precise patterns with check digits where they exist, so that prices, dates and sizes pass.

What cannot be told from an order number by its form alone counts only beside a word such as "call" or "phone".
"""

from __future__ import annotations

import ipaddress
import re
import unicodedata
from collections.abc import Callable

KINDS = ("email", "phone", "card", "iban", "ip")
"""The kinds that `personal_data` can find, in the order in which it names them."""

_EMAIL = re.compile(r"(?<![\w.+-])[\w.+-]{1,64}@[\w-]{1,63}(?:\.[\w-]{1,63}){1,8}(?![\w-])")
_DIGIT_RUN = re.compile(r"(?<![\w.,/#-])\+?\(?\d(?:[ ().\-/]{0,2}\d){5,18}(?![\w%]|[.,]\d)")
_PHONE_WORD = re.compile(
    r"\b(?:phone|telephone|tel|mobile|cell|call|calling|ring|text|fax|whatsapp|reach)\b(?P<between>[^\d+]{0,24})$", re.I
)
_NOT_A_PHONE = re.compile(
    r"\b(?:order|invoice|ticket|tracking|parcel|item|article|sku|part|model|serial|reference|case)\b[^\d+]{0,20}$", re.I
)
_DATE = re.compile(r"(?<!\d)(?:\d{4}([-/.])\d{1,2}\1\d{1,2}|\d{1,2}([-/.])\d{1,2}\2\d{4})(?!\d)")
_NORTH_AMERICAN = re.compile(r"\(?[2-9]\d\d\)?[-. ]{1,2}\d{3}[-. ]\d{4}|555[-. ]\d{4}")
_TRUNK = re.compile(r"\(?0\d{1,5}\)?[ /-]{1,2}\d{2,8}(?:[ /-]\d{2,8})*")
_CARD = re.compile(r"(?<![\w.,-])[3-6]\d{3}(?:[ -]?\d){9,15}(?![\w-]|[.,]\d)")
_IBAN = re.compile(r"\b[A-Z]{2}\d{2}(?: ?[A-Z0-9]{4}){2,7}(?: ?[A-Z0-9]{1,3})?\b", re.I)
_IPV4 = re.compile(r"(?<![\w.])(?:\d{1,3}\.){3}\d{1,3}(?![\w]|\.\d)")
_IPV6 = re.compile(r"(?<![\w:])[0-9a-f]{0,4}(?::[0-9a-f]{0,4}){2,7}(?![\w:])", re.I)
_VERSION_WORD = re.compile(r"\b(?:v|ver|version|firmware|release|build|section|chapter)\.?\s*$", re.I)


def personal_data(text: str) -> tuple[str, ...]:
    """The kinds of personal data in `text`, in the order of `KINDS`; empty when there is none.

    >>> personal_data("Write to pat@example.com or call +44 7700 900123.")
    ('email', 'phone')
    >>> personal_data("Order 20261101-4711: 45 days, size 30-40, 1,299.00 EUR, placed 2026-11-01.")
    ()
    """
    plain = unicodedata.normalize("NFKC", text)
    plain = "".join(c for c in plain if unicodedata.category(c) != "Cf")  # zero-width characters hide an address
    return tuple(kind for kind in KINDS if _FINDERS[kind](plain))


def _email(text: str) -> bool:
    return "@" in text and _EMAIL.search(text) is not None


def _phone(text: str) -> bool:
    return any(
        _is_phone(match.group(), text[max(0, match.start() - 60) : match.start()])
        for match in _DIGIT_RUN.finditer(text)
    )


def _is_phone(found: str, before: str) -> bool:
    digits = sum(c.isdigit() for c in found)
    if _DATE.search(found) or _NOT_A_PHONE.search(before) or digits > 15:
        return False
    if found.startswith("+") or (found.startswith("00") and " " in found):
        return digits >= 8
    if _NORTH_AMERICAN.fullmatch(found) or (_TRUNK.fullmatch(found) and 9 <= digits <= 12):
        return True
    return digits >= 7 and _PHONE_WORD.search(before) is not None


def _card(text: str) -> bool:
    return any(_luhn([int(c) for c in match.group() if c.isdigit()]) for match in _CARD.finditer(text))


def _luhn(digits: list[int]) -> bool:
    """ISO/IEC 7812-1, annex B: doubling every second digit from the right, the digits sum to a multiple of 10."""
    doubled = [d if place % 2 == 0 else (d * 2 - 9 if d > 4 else d * 2) for place, d in enumerate(reversed(digits))]
    return sum(doubled) % 10 == 0


def _iban(text: str) -> bool:
    return any(_iban_checks(match.group()) for match in _IBAN.finditer(text))


def _iban_checks(found: str) -> bool:
    """ISO 13616: the first four characters moved to the end, letters as 10 to 35, the number is 1 modulo 97."""
    plain = found.replace(" ", "").upper()
    if not 15 <= len(plain) <= 34:
        return False
    return int("".join(str(int(c, 36)) for c in plain[4:] + plain[:4])) % 97 == 1


def _ip(text: str) -> bool:
    v4 = (m.group() for m in _IPV4.finditer(text) if not _VERSION_WORD.search(text[max(0, m.start() - 12) : m.start()]))
    v6 = (m.group() for m in _IPV6.finditer(text) if _looks_like_v6(m.group()))
    return any(_is_address(found) for found in (*v4, *v6))


def _looks_like_v6(found: str) -> bool:
    groups = [group for group in found.split(":") if group]
    return len(groups) == 8 or ("::" in found and len(groups) >= 3 and any(len(group) > 2 for group in groups))


def _is_address(found: str) -> bool:
    try:
        address = ipaddress.ip_address(found)
    except ValueError:
        return False
    return not (address.is_loopback or address.is_unspecified)


_FINDERS: dict[str, Callable[[str], bool]] = {"email": _email, "phone": _phone, "card": _card, "iban": _iban, "ip": _ip}
