"""Personal data: what counts as such, and what only looks like it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from incremental_llm.feedback import personal_data
from incremental_llm.feedback.redact import Span, _apart, find, redact


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
        ("tel. +61.7.0771.2972", ("phone",)),
        ("001-581-896-5789x3896", ("phone",)),
        ("IBAN ES5141227058796183744667 please", ("iban",)),
        ("I am @hans-georg03 there", ("handle",)),
        ("my password is xpxhhVwsAUx7", ("secret",)),
        ("password: hunter2", ("secret",)),
        ('"api_key": "9f86d081884c7d65"', ("secret",)),
        ("AKIAIOSFODNN7EXAMPLE", ("secret",)),
        ("ghp_" + "a1B2" * 9, ("secret",)),
        ("sk-proj-" + "abcDEF123_" * 3, ("secret",)),
        ("xoxb-1234567890-abcdefghij", ("secret",)),
        ("Authorization: Bearer abc123DEF456ghi", ("secret",)),
        ("eyJhbGciOiJIUzI1.eyJzdWIiOiIxMjM0.SflKxwRJSMeKKF2QT4", ("secret",)),
        ("postgresql://shop:hunter2@db/illm", ("secret",)),
        ("-----BEGIN RSA PRIVATE KEY-----\nMIIE\nabc\n-----END RSA PRIVATE KEY-----", ("secret",)),
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
        "450,000-250000-100000-60000 = $40,000",
        "$409500-400000 and 483000-4200",
        "Gitta Steiner (1932-1990), 1939-1945",
        "the token is invalid, the password is wrong, your secret is safe",
        "password: your new password",
        "class A:\n    @property\n    def b(self): ...",
        "x = a@b",
        "the keyboard, monkey and passwords of people",
        "",
    ],
)
def test_not_personal(text: str) -> None:
    assert personal_data(text) == ()


def test_long_texts_take_no_time() -> None:
    for filler in ("1 " * 20_000, "a@" * 20_000, "A1" * 20_000, ":" * 40_000, "a." * 20_000 + "@"):
        personal_data(filler)


spans = st.builds(
    lambda start, length, kind: Span(kind, start, start + length),
    st.integers(0, 20),
    st.integers(1, 8),
    st.sampled_from(["email", "phone", "handle"]),
)


@given(st.lists(spans, max_size=12))
def test_of_spans_that_overlap_the_longest_stay(found: list[Span]) -> None:
    chosen: list[Span] = []
    for span in sorted(found, key=lambda span: (span.start - span.end, span.start)):
        if all(span.end <= other.start or other.end <= span.start for other in chosen):
            chosen.append(span)
    assert _apart(found) == sorted(chosen, key=lambda span: span.start)


@pytest.mark.parametrize(
    ("text", "handles"),
    [
        ("@staff_only\nclass A: ...", []),
        ("class A:\r\n    @staff_only \r\n    def b(self): ...", []),
        ("@staff_only", ["@staff_only"]),
        ("write to\n  @staff_only today\n@mira_b\n", ["@staff_only"]),
        ("@staff_only @mira_b\nthere", ["@staff_only", "@mira_b"]),
    ],
)
def test_a_handle_that_stands_alone_on_one_of_several_lines_is_code(text: str, handles: list[str]) -> None:
    assert [text[span.start : span.end] for span in find(text)] == handles


def test_many_finds_are_each_compared_with_their_neighbours_alone() -> None:
    ends = 0

    class Counting(int):
        def __le__(self, other: int) -> bool:
            nonlocal ends
            ends += 1
            return int(self) <= other

    assert len(_apart([Span("handle", 10 * n, Counting(10 * n + 4)) for n in range(2000)])) == 2000
    assert ends < 3 * 2000


def test_finds_are_replaced_where_they_stand_in_the_text_as_it_was() -> None:
    text = "Ｍail ｍｉｒａ＠example.com\u200b or m\u200bira@example.com\u2028x"
    assert redact(text) == ("Ｍail [EMAIL]\u200b or [EMAIL]\u2028x", {"email": 2})
    assert redact("postgresql://shop:hunter2@db/illm") == ("postgresql://shop:[SECRET]@db/illm", {"secret": 1})
    assert redact("fine") == ("fine", {})


@given(st.text(max_size=60), st.sampled_from(["mira@example.com", "+44 1632 960134", "AKIAIOSFODNN7EXAMPLE"]))
def test_whatever_stands_around_it_is_kept_and_nothing_is_found_twice(around: str, secret: str) -> None:
    text = f"{around} {secret} {around}"
    clean, counts = redact(text)
    assert secret not in clean and sum(counts.values()) == len(find(text)) >= 1
    rest, end = "", 0
    for span in find(text):
        assert end <= span.start < span.end <= len(text)
        rest += text[end : span.start] + f"[{span.kind.upper()}]"
        end = span.end
    assert clean == rest + text[end:]
