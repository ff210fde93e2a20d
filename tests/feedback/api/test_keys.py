"""Keys: shown once, kept as digests; and the rates of those who hold them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from incremental_llm.errors import InputError
from incremental_llm.feedback import FeedbackStore
from incremental_llm.feedback.api.keys import KeyTable
from incremental_llm.feedback.api.limits import Buckets, take_all


@pytest.fixture
def store(tmp_path: Path) -> Iterator[FeedbackStore]:
    with FeedbackStore(f"sqlite:///{tmp_path / 'feedback.db'}") as opened:
        yield opened


def test_the_secret_is_in_no_byte_of_the_database(store: FeedbackStore, tmp_path: Path) -> None:
    _, text = KeyTable(store).create("shop", ["ingest"])
    store.close()
    secret = text.split("_", 2)[2].encode()
    assert len(secret) == 43
    for path in tmp_path.iterdir():
        assert secret not in path.read_bytes()


def test_a_key_is_found_by_its_text_and_by_nothing_near_it(store: FeedbackStore) -> None:
    table = KeyTable(store)
    key, text = table.create("shop", ["review", "ingest", "ingest"])
    credentials = table.credentials()
    assert credentials.authenticate(f"Bearer {text}") == key
    assert credentials.authenticate(f"bearer {text} ") == key
    for wrong in (text, f"Basic {text}", f"Bearer {text[:-1]}", f"Bearer {text}x", f"Bearer x{text}", "Bearer", None):
        assert credentials.authenticate(wrong) is None
    assert key.scopes == {"ingest", "review"}
    assert text not in repr(credentials)
    assert key.digest not in repr(key)


def test_revoking_ends_a_key_once(store: FeedbackStore) -> None:
    table = KeyTable(store)
    key, text = table.create("shop", ["ingest"])
    first = table.revoke(key.id)
    assert first.revoked is not None
    assert table.revoke(key.id) == first
    assert table.list() == [first]
    assert table.credentials().authenticate(f"Bearer {text}") is None
    with pytest.raises(InputError, match="expected the id of an API key, found 'nobody'"):
        table.revoke("nobody")


@pytest.mark.parametrize(
    ("name", "scopes"),
    [("shop", []), ("shop", ["write"]), ("", ["ingest"]), ("a\nb", ["admin"]), ("anna ", ["review"])],
)
def test_a_key_has_a_name_and_known_scopes(store: FeedbackStore, name: str, scopes: list[str]) -> None:
    with pytest.raises(InputError, match="api key: expected"):
        KeyTable(store).create(name, scopes)
    assert KeyTable(store).list() == []


def test_the_signing_secret_outlives_the_server(store: FeedbackStore) -> None:
    token = KeyTable(store).credentials().reply_token("shop", "i1")
    again = KeyTable(store).credentials()
    assert again.allows(token, "shop", "i1")
    assert not again.allows(token, "shop", "i2")
    assert not again.allows(token, "other", "i1")
    assert token not in repr(again)


@given(st.lists(st.tuples(st.floats(0, 5), st.integers(1, 4)), max_size=50), st.floats(0.1, 10), st.integers(1, 8))
def test_no_one_gets_more_than_the_burst_and_the_rate(asked: list[tuple[float, int]], rate: float, burst: int) -> None:
    """In any window, what passes is at most burst + rate * seconds, but for the debt of one larger request."""
    now = 0.0
    buckets = Buckets(rate, burst, 10, lambda: now)
    passed = 0
    for pause, tokens in asked:
        now += pause
        wait = buckets.wait("u", tokens)
        assert take_all([(buckets, "u", tokens)]) == wait
        if not wait:
            passed += tokens
        assert passed <= burst + rate * now + 3 + 1e-6
        if wait:
            now += wait + 1e-6
            assert buckets.wait("u", tokens) == 0


def test_buckets_are_taken_from_together_or_not_at_all() -> None:
    buckets = Buckets(1, 2, 10, lambda: 0.0)
    assert take_all([(buckets, "a", 1), (buckets, "b", 2)]) == 0
    assert take_all([(buckets, "a", 1), (buckets, "b", 1)]) == 1
    assert take_all([(buckets, "a", 1)]) == 0


def test_no_more_names_are_remembered_than_allowed() -> None:
    now = 0.0
    buckets = Buckets(1, 1, 3, lambda: now)
    for name in range(100):
        buckets.take(name, 1)
    assert len(buckets) == 3
    assert buckets.wait(99, 1) == 1
    assert buckets.wait(0, 1) == 0


def test_a_rate_of_nothing_is_no_limit() -> None:
    buckets = Buckets(0, 1, 10, lambda: 0.0)
    assert [take_all([(buckets, "a", 100)]) for _ in range(3)] == [0, 0, 0]
    assert len(buckets) == 0
