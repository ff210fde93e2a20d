"""Personal data: what counts as such, and what only looks like it."""

from __future__ import annotations

import pytest

from incremental_llm.feedback import personal_data


@pytest.mark.parametrize(
    ("text", "kinds"),
    [
        ("write me at mira.b@example.com please", ("email",)),
        ("Mail to first+tag@sub.example.co.uk.", ("email",)),
        ("ｍｉｒａ＠example.com", ("email",)),
        ("mira\u200b@example.com", ("email",)),
        ("My phone is +44 1632 960134", ("phone",)),
        ("ring 0049 30 1234567", ("phone",)),
        ("(212) 555-0142 after six", ("phone",)),
        ("212-555-0142", ("phone",)),
        ("07700 900123", ("phone",)),
        ("030/1234567", ("phone",)),
        ("you can reach me under 4471234", ("phone",)),
        ("call 555-0142", ("phone",)),
        ("card 4111 1111 1111 1111, thanks", ("card",)),
        ("IBAN GB82 WEST 1234 5698 7654 32", ("iban",)),
        ("iban: de89370400440532013000", ("iban",)),
        ("from 203.0.113.7 last night", ("ip",)),
        ("from 2001:db8::8a2e:370:7334", ("ip",)),
        ("a@example.com or +1 212 555 0142", ("email", "phone")),
    ],
)
def test_found(text: str, kinds: tuple[str, ...]) -> None:
    assert personal_data(text) == kinds


@pytest.mark.parametrize(
    "text",
    [
        "You have 45 days, not 30.",
        "Sizes 30-40 and 36/38, 100x200 cm",
        "Order 20261101-4711 of 2026-11-01 at 12:30:45",
        "placed on 01.11.2026 or 01/11/2026",
        "from 01-11-2026 10:30 to 02-11-2026 12:00",
        "It costs 1,299.00 EUR, 1 299 000 in all",
        "order number 123456789012",
        "Please call us about order 1234567",
        "the years 2024 2025 2026",
        "4111 1111 1111 1112 fails its check digit",
        "GB82 WEST 1234 5698 7654 33 fails it too",
        "firmware version 1.2.3.4 and section 4.1.2.7",
        "127.0.0.1 is home, 300.1.2.3 is nothing",
        "meet @noon, cc: me @ work",
        "at 10::30 or a ratio of 3:4:5",
        "0 10 20 30 40 50 60 degrees",
        "item 00012345, SKU 0042-1234-5678",
        "pi is 3.14159265358979",
        "",
    ],
)
def test_not_personal(text: str) -> None:
    assert personal_data(text) == ()


def test_long_texts_take_no_time() -> None:
    for filler in ("1 " * 20_000, "a@" * 20_000, "A1" * 20_000, ":" * 40_000, "a." * 20_000 + "@"):
        personal_data(filler)
