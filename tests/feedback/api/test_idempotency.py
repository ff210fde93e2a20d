"""A request that is repeated with its Idempotency-Key is answered as the first time, and stores nothing more."""

from __future__ import annotations

from datetime import timedelta

import pytest
import sqlalchemy as sa

from incremental_llm.feedback.api import tables


def test_the_same_request_gets_the_same_answer(api, make_interaction) -> None:
    first = api.post("/v1/interactions", make_interaction(), Idempotency_Key="a")
    api.now[0] += timedelta(hours=1)
    again = api.post("/v1/interactions", make_interaction(), Idempotency_Key="a")
    assert (again.status_code, again.json()) == (first.status_code, first.json())
    assert api.stored() == [first.json()["id"]]


def test_another_body_is_422_and_not_stored(api, make_interaction) -> None:
    api.post("/v1/interactions", make_interaction(), Idempotency_Key="a")
    for path, body in (("/v1/interactions", make_interaction(reply="other")), ("/v1/batch", {"events": [{}]})):
        answer = api.post(path, body, Idempotency_Key="a")
        if path == "/v1/interactions":
            assert answer.status_code == 422
            assert "Idempotency-Key" in answer.json()["error"]["expected"]
    assert api.store.counts() == {"interaction": 1}


def test_the_same_key_of_another_caller_is_another_key(api, make_interaction) -> None:
    ids = {
        api.post("/v1/interactions", make_interaction(), key, Idempotency_Key="a").json()["id"]
        for key in ("shop", "other")
    }
    assert len(ids) == 2
    assert api.store.counts() == {"interaction": 2}


def test_a_batch_is_answered_as_the_first_time(api, make_interaction) -> None:
    events = {"events": [{"type": "interaction", **make_interaction()} for _ in range(3)] + [{"type": "thumb"}]}
    first = api.post("/v1/batch", events, Idempotency_Key="b")
    assert [one["outcome"] for one in first.json()["results"]] == ["added", "added", "added", "refused"]
    assert api.post("/v1/batch", events, Idempotency_Key="b").json() == first.json()
    assert api.store.counts() == {"interaction": 3}


def test_a_conflict_is_repeated_too(api, make_interaction) -> None:
    api.log(id="i1")
    answers = [
        api.post("/v1/interactions", make_interaction(id="i1", reply="no"), Idempotency_Key="c") for _ in range(2)
    ]
    assert [answer.status_code for answer in answers] == [409, 409]


def test_a_body_that_was_refused_may_be_corrected_under_the_same_key(api, make_interaction) -> None:
    assert api.post("/v1/interactions", make_interaction(reply=1), Idempotency_Key="d").status_code == 422
    assert api.post("/v1/interactions", make_interaction(), Idempotency_Key="d").status_code == 202


def test_an_answer_that_was_forgotten_still_doubles_nothing(api, make_interaction) -> None:
    first = api.post("/v1/interactions", make_interaction(), Idempotency_Key="a").json()
    with api.store.writing() as connection:
        connection.execute(sa.update(tables.answers).values(stored=0))
    again = api.post("/v1/interactions", make_interaction(), Idempotency_Key="a")
    assert again.json() == {**first, "outcome": "duplicate"}
    assert api.stored() == [first["id"]]
    with api.store.reading() as connection:
        assert connection.execute(sa.select(sa.func.count()).select_from(tables.answers)).scalar_one() == 1


@pytest.mark.parametrize("header", ["", "x" * 201, "a\tb"])
def test_a_header_that_is_no_key_is_400(api, make_interaction, header: str) -> None:
    answer = api.post("/v1/interactions", make_interaction(), Idempotency_Key=header)
    assert answer.status_code == 400
    assert "Idempotency-Key" in answer.json()["error"]["expected"]


def test_neither_header_nor_body_is_kept_in_the_clear(api, make_interaction, tmp_path) -> None:
    api.post("/v1/interactions", make_interaction(), Idempotency_Key="a-telling-header")
    with api.store.reading() as connection:
        kept = str(connection.execute(sa.select(tables.answers)).all())
    assert "a-telling-header" not in kept
    assert "30 days" not in kept
