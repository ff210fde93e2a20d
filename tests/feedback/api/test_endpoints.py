"""What each endpoint takes, stores and answers."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from incremental_llm.feedback import FeedbackStore, parse_event
from incremental_llm.feedback.api.app import create_app
from incremental_llm.feedback.erasure import Erased, Needles, belongings, erase_rows, pseudonyms
from incremental_llm.lock import exclusive


def test_a_logged_reply_is_in_the_store_before_it_is_answered(api, make_interaction) -> None:
    answer = api.post("/v1/interactions", make_interaction(id="i1", time="2026-11-01T11:00:00Z"))
    assert (answer.status_code, answer.json()["outcome"], answer.json()["id"]) == (202, "added", "i1")
    (stored,) = api.store.read()
    assert (stored.event.id, stored.event.reply) == ("i1", "30 days.")
    assert stored.event.time.isoformat() == "2026-11-01T11:00:00+00:00"


def test_id_time_and_type_may_be_left_out(api, make_interaction) -> None:
    first, second = (api.post("/v1/interactions", make_interaction()).json()["id"] for _ in range(2))
    assert first != second
    assert {stored.event.time for stored in api.store.read()} == {api.now[0]}


@pytest.mark.parametrize(
    ("kind", "fields", "key"),
    [
        ("thumb", {"interaction": "i1", "user": "u", "value": -1, "comment": "no"}, "shop"),
        ("preference", {"chosen": "i2", "rejected": "i1", "user": "u"}, "shop"),
        ("rephrase", {"interaction": "i1", "followup": "i2"}, "shop"),
        ("ranking", {"replies": ["i2", "i1"], "user": "u"}, "shop"),
        ("copy", {"interaction": "i1", "user": "u"}, "shop"),
        ("abandon", {"interaction": "i1", "user": "u"}, "shop"),
        ("correction", {"interaction": "i1", "reviewer": "r", "content": "45 days."}, "reviewer"),
        ("policy_change", {"reviewer": "r", "supersedes": ["i1"]}, "reviewer"),
    ],
)
def test_feedback_of_every_kind(api, kind: str, fields: dict[str, object], key: str) -> None:
    tokens = [api.log(id=name)[1] for name in ("i1", "i2")]
    body = {"type": kind, **fields, **({"reply_tokens": tokens} if key == "shop" else {})}
    answer = api.post("/v1/feedback", body, key)
    assert (answer.status_code, answer.json()["outcome"]) == (202, "added")
    assert api.store.counts() == {"interaction": 2, kind: 1}


def test_an_equal_event_is_a_duplicate_and_another_of_its_id_a_conflict(api, make_interaction) -> None:
    first = api.post("/v1/interactions", make_interaction(id="i1")).json()
    api.now[0] += timedelta(hours=1)
    again = api.post("/v1/interactions", make_interaction(id="i1"))
    assert (again.status_code, again.json()) == (202, {**first, "outcome": "duplicate"})
    other = api.post("/v1/interactions", make_interaction(id="i1", reply="no"))
    assert other.status_code == 409
    assert "'i1' is stored with other content" in other.json()["error"]["found"]
    assert api.stored() == ["i1"]


def test_an_erased_event_is_not_to_be_sent_again(api, make_interaction) -> None:
    api.post("/v1/interactions", make_interaction(id="i1", user="u-gone"))
    names, found = pseudonyms(api.store), belongings(api.store, "u-gone")
    erase_rows(api.store, Erased("e1", "u-gone", found.events, found.naming, Needles("u-gone"), names))
    again = api.post("/v1/interactions", make_interaction(id="i1", user="u-gone"))
    assert (again.status_code, again.json()["error"]["do"]) == (409, "Do not send it again.")


def test_a_time_that_the_client_gave_is_part_of_what_it_said(api, make_interaction) -> None:
    api.post("/v1/interactions", make_interaction(id="i1", time="2026-11-01T12:00:00Z"))
    other = api.post("/v1/interactions", make_interaction(id="i1", time="2026-11-01T12:00:01Z"))
    assert other.status_code == 409


def test_a_correction_may_come_before_its_interaction(api) -> None:
    body = {"type": "correction", "id": "k1", "interaction": "i1", "reviewer": "r", "content": "45 days."}
    assert api.post("/v1/feedback", body, "reviewer").json() == {"id": "k1", "outcome": "waiting"}
    assert api.post("/v1/feedback", body, "reviewer").json() == {"id": "k1", "outcome": "duplicate"}
    api.log(id="i1")
    assert api.stored() == ["i1", "k1"]


def test_a_batch_has_an_outcome_for_each_event(api, make_interaction) -> None:
    _, token = api.log(id="i0")
    thumb = {"type": "thumb", "interaction": "i0", "user": "u", "value": 1}
    events = [
        {"type": "interaction", **make_interaction(id="i1")},
        {**thumb, "id": "t1", "reply_tokens": [token]},
        {**thumb, "id": "t2", "value": 7, "reply_tokens": [token]},
        {"type": "interaction", **make_interaction(id="i1")},
        {"type": "interaction", **make_interaction(id="i1", reply="other")},
        {"type": "correction", "id": "k1", "interaction": "i0", "reviewer": "r", "content": "no"},
        {**thumb, "id": "t3"},
        "thumb",
        {"type": "interaction", **make_interaction(id="i2")},
    ]
    answer = api.post("/v1/batch", {"events": events})
    results = answer.json()["results"]
    assert answer.status_code == 202
    assert [result["position"] for result in results] == list(range(9))
    assert [result["outcome"] for result in results] == [
        *("added", "added", "refused", "duplicate", "refused", "refused", "refused", "refused", "added")
    ]
    assert "value: " in results[2]["reason"]
    assert "other content" in results[4]["reason"]
    assert "the scope review" in results[5]["reason"]
    assert "the token of interaction 'i0'" in results[6]["reason"]
    assert "found str" in results[7]["reason"]
    assert results[0]["reply_token"] == results[3]["reply_token"]
    assert api.stored() == ["i0", "i1", "t1", "i2"]


@pytest.mark.parametrize("body", [{"events": []}, {"events": {}}, [], {"events": [1] * 6}, {"events": [{}], "x": 1}])
def test_a_batch_is_a_list_of_events_and_nothing_else(start, body: object) -> None:
    answer = start(max_batch=5).post("/v1/batch", body)
    assert answer.status_code == 422
    assert "1 to 5 events" in answer.json()["error"]["expected"]


def test_health_needs_no_key(api) -> None:
    answer = api.client.get("/health")
    assert (answer.status_code, answer.json()) == (200, {"status": "ok"})


def test_metrics_count_requests_events_and_transactions(api) -> None:
    api.log()
    api.post("/v1/feedback", {"type": "thumb"})
    page = api.client.get("/metrics", headers={"Authorization": f"Bearer {api.keys['operator']}"}).text
    assert 'illm_ingest_requests_total{route="/v1/interactions",status="202"} 1.0' in page
    assert 'illm_ingest_requests_total{route="/v1/feedback",status="422"} 1.0' in page
    assert 'illm_ingest_events_total{outcome="added",type="interaction"} 1.0' in page
    assert 'illm_ingest_commit_seconds_count{stored="yes"} 1.0' in page
    assert "illm_ingest_queued_requests 0.0" in page


def test_the_description_names_every_event_with_its_fields(api) -> None:
    found = api.client.get("/openapi.json").json()
    schemas = found["components"]["schemas"]
    assert schemas["Thumb"]["required"] == ["interaction", "user", "value", "type", "reply_tokens"]
    assert schemas["Correction"]["required"] == ["interaction", "reviewer", "content", "type"]
    assert "id" in schemas["Interaction"]["properties"]
    body = found["paths"]["/v1/feedback"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    for reference in body["oneOf"]:
        assert reference["$ref"].rpartition("/")[2] in schemas
    assert found["components"]["securitySchemes"]["api_key"]["scheme"] == "bearer"
    assert api.client.get("/docs").status_code == 200


def test_a_run_that_holds_the_workspace_does_not_stop_feedback(api, tmp_path: Path) -> None:
    with exclusive(tmp_path):
        api.log(id="i1")
    assert api.stored() == ["i1"]


def test_the_tables_are_added_to_a_database_that_is_there(tmp_path: Path, make_interaction) -> None:
    url = f"sqlite:///{tmp_path / 'old.db'}"
    with FeedbackStore(url) as before:
        before.append([parse_event({"type": "interaction", **make_interaction(id="i1", time="2026-11-01T12:00:00Z")})])
    with FeedbackStore(url) as store, TestClient(create_app(store)) as client:
        assert client.get("/health").status_code == 200
        assert store.head() == 1
