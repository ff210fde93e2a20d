"""The review queue over HTTP: who may do what, in whose name, and that a page's session is worth no more than it is."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import sqlalchemy as sa
from fastapi.testclient import TestClient

from incremental_llm.feedback.api import tables
from incremental_llm.feedback.api.app import create_app
from incremental_llm.feedback.api.keys import KeyTable
from incremental_llm.feedback.api.sessions import COOKIE, SECONDS
from incremental_llm.feedback.review import Proposal, ReviewQueue, ReviewSettings

NOW = datetime(2026, 11, 1, 12, 0, tzinfo=UTC)


@pytest.fixture
def bound(api) -> Any:
    """The API with a key for each of two reviewers."""
    for name in ("r1", "r2"):
        api.keys[name] = KeyTable(api.store).create(name, ["review"], reviewer=name)[1]
    return api


@pytest.fixture
def flagged(bound) -> tuple[Any, str]:
    """The API, and the id of an item on the reply of i1."""
    _, token = bound.log(id="i1")
    body = {"interaction": "i1", "kind": "moderation", "verdict": "wrong", "confidence": 0.6, "reply_tokens": [token]}
    answer = bound.post("/v1/review/items", body)
    assert answer.status_code == 202, answer.text
    assert answer.json()["outcome"] == "added"
    assert bound.post("/v1/review/items", body).json() == {**answer.json(), "outcome": "duplicate"}
    return bound, answer.json()["id"]


def get(api: Any, path: str, key: str = "r1") -> Any:
    return api.client.get(path, headers={"Authorization": f"Bearer {api.keys[key]}"})


def test_claimed_decided_and_in_the_log(flagged) -> None:
    api, name = flagged
    listed = get(api, "/v1/review/items").json()
    assert [one["id"] for one in listed["items"]] == [name]
    assert listed["counts"] == {"open": 1, "claimed": 0, "waiting": 0, "done": 0}
    claim = api.post("/v1/review/claim", {}, "r1").json()["claim"]
    assert (claim["item"]["id"], claim["item"]["reply"], claim["reviewer"]) == (name, "30 days.", "r1")
    assert claim["item"]["voices"] == [{"who": "shop", "says": "wrong, 0.60 sure", "text": False}]
    assert api.post("/v1/review/claim", {}, "r2").json()["claim"] is None
    done = api.post(f"/v1/review/items/{name}/decision", {"verdict": "correct", "content": " 45\r\ndays. "}, "r1")
    assert (done.status_code, done.json()) == (200, {"item": name, "state": "done"})
    (*_, stored) = api.store.read()
    assert (stored.event.type, stored.event.reviewer, stored.event.content) == ("correction", "r1", " 45\r\ndays. ")
    assert get(api, f"/v1/review/items/{name}").json()["state"] == "done"
    rows = get(api, "/v1/review/report").json()["reviewers"]
    assert [(row["reviewer"], row["decisions"]) for row in rows] == [("r1", 1)]


def test_a_claim_is_given_back(flagged) -> None:
    api, name = flagged
    assert api.post("/v1/review/claim", {"item": name}, "r1").status_code == 200
    taken = api.post("/v1/review/claim", {"item": name}, "r2")
    assert (taken.status_code, taken.json()["error"]["found"]) == (409, "that 'r1' holds it")
    assert api.post(f"/v1/review/items/{name}/release", {}, "r1").status_code == 200
    assert api.post("/v1/review/claim", {"but": [name]}, "r2").json()["claim"] is None
    assert api.post("/v1/review/claim", {"item": name}, "r2").status_code == 200


@pytest.mark.parametrize(
    ("body", "status", "found"),
    [
        ({"verdict": "maybe"}, 422, "verdict: Input should be"),
        ({"verdict": "correct"}, 422, "none"),
        ({"verdict": "accept", "content": "x"}, 422, "one"),
        ({"verdict": "accept", "more": 1}, 422, "more: Extra inputs"),
        ({"verdict": "accept", "reviewer": "r2"}, 403, "'r2'"),
        ([], 422, "the body: "),
    ],
)
def test_a_decision_that_does_not_fit(flagged, body: Any, status: int, found: str) -> None:
    api, name = flagged
    api.post("/v1/review/claim", {}, "r1")
    answer = api.post(f"/v1/review/items/{name}/decision", body, "r1")
    assert answer.status_code == status
    assert found in answer.json()["error"]["found"]
    assert api.stored() == ["i1"]


def test_without_a_claim_nothing_is_decided(flagged) -> None:
    api, name = flagged
    answer = api.post(f"/v1/review/items/{name}/decision", {"verdict": "accept"}, "r1")
    assert (answer.status_code, answer.json()["error"]["found"]) == (409, "none, or one that has run out")
    assert api.post("/v1/review/items/nothing/decision", {"verdict": "accept"}, "r1").status_code == 404


def test_a_key_for_anyone_names_the_reviewer(flagged) -> None:
    api, name = flagged
    assert api.post("/v1/review/claim", {}, "reviewer").json()["error"]["expected"] == "a reviewer"
    assert api.post("/v1/review/claim", {"reviewer": "r9"}, "reviewer").json()["claim"]["reviewer"] == "r9"
    assert (
        api.post(f"/v1/review/items/{name}/decision", {"verdict": "accept", "reviewer": "r9"}, "reviewer").status_code
        == 200
    )


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("get", "/v1/review/items", {"reviewer", "r1"}),
        ("get", "/v1/review/items/x", {"reviewer", "r1"}),
        ("get", "/v1/review/report", {"reviewer", "r1", "operator"}),
        ("post", "/v1/review/claim", {"reviewer", "r1"}),
        ("post", "/v1/review/items/x/release", {"reviewer", "r1"}),
        ("post", "/v1/review/items/x/decision", {"reviewer", "r1"}),
        ("post", "/v1/review/items", {"reviewer", "r1", "shop"}),
    ],
)
def test_each_endpoint_wants_its_scope(bound, method: str, path: str, allowed: set[str]) -> None:
    for key in ("shop", "reviewer", "operator", "r1"):
        answer = bound.post(path, {}, key) if method == "post" else get(bound, path, key)
        refused = answer.status_code == 403
        assert refused == (key not in allowed), (key, answer.text)
    bare = bound.post(path, {}, None) if method == "post" else bound.client.get(path)
    assert bare.status_code == 401


def test_a_flag_needs_the_token_of_its_reply_and_a_reply_that_is_there(bound) -> None:
    _, token = bound.log(id="i1")
    body = {"interaction": "i1", "kind": "safety", "verdict": "harm", "confidence": 0.9}
    for tokens in ([], ["1.x"], [bound.log("other", id="i2")[1]]):
        answer = bound.post("/v1/review/items", {**body, "reply_tokens": tokens})
        assert answer.status_code == 403
    assert bound.post("/v1/review/items", body, "reviewer").status_code == 202
    gone = bound.post("/v1/review/items", {**body, "interaction": "i9"}, "reviewer")
    assert (gone.status_code, gone.json()["error"]["expected"]) == (422, "an interaction in the log")
    wrong = bound.post("/v1/review/items", {**body, "confidence": 2, "reply_tokens": [token]})
    assert "confidence: Input should be less" in wrong.json()["error"]["found"]


@pytest.mark.parametrize("half", ["\ud800", "\udfff tail"])
def test_half_of_a_surrogate_pair_is_refused_wherever_it_stands(flagged, half: str) -> None:
    api, name = flagged
    flag = {"interaction": "i1", "kind": "safety", "verdict": "harm", "confidence": 0.5}
    for path, body in (
        ("/v1/review/claim", {"item": half, "reviewer": "r1"}),
        ("/v1/review/claim", {"but": [half], "reviewer": "r1"}),
        ("/v1/review/claim", {"reviewer": half}),
        ("/v1/review/claim", {half: 1, "reviewer": "r1"}),
        (f"/v1/review/items/{name}/release", {"reviewer": half}),
        (f"/v1/review/items/{name}/decision", {"verdict": "correct", "content": half, "reviewer": "r1"}),
        (f"/v1/review/items/{name}/decision", {"verdict": half, "reviewer": "r1"}),
        ("/v1/review/items", {**flag, "interaction": half}),
        ("/v1/review/items", {**flag, "verdict": half}),
        ("/v1/review/items", {**flag, "reply_tokens": [half]}),
    ):
        answer = api.post(path, body, "reviewer")
        assert (answer.status_code, answer.json()["error"]["found"]) == (422, "half of a surrogate pair"), (path, body)
    assert login(api, half).status_code == 401


def test_what_no_database_takes_is_refused_before_it(flagged) -> None:
    api, _ = flagged
    assert get(api, "/v1/review/items/%00").status_code == 404
    assert api.post("/v1/review/items/%00/release", {}, "r1").status_code == 404
    assert api.post("/v1/review/claim", {"item": "\x00"}, "r1").status_code == 404
    assert api.post("/v1/review/claim", {"reviewer": "a\x00"}, "reviewer").status_code == 422
    anna = api.post("/v1/review/claim", {"reviewer": "anna "}, "reviewer")
    assert (anna.status_code, anna.json()["error"]["found"]) == (422, "'anna '")


@pytest.mark.parametrize("query", ["limit=0", "limit=501", "limit=x", "kind=foo", "state=gone"])
def test_a_parameter_that_does_not_fit_is_answered_like_any_error(bound, query: str) -> None:
    answer = get(bound, f"/v1/review/items?{query}")
    assert answer.status_code == 422
    error = answer.json()["error"]
    assert set(error) == {"status", "expected", "found", "do", "request_id"}
    assert error["found"].startswith(f"query {query.partition('=')[0]}: Input should be")


def test_the_description_knows_one_shape_of_an_error(api) -> None:
    description = api.client.get("/openapi.json").json()
    assert "HTTPValidationError" not in description["components"]["schemas"]
    for path, methods in description["paths"].items():
        for one in methods.values():
            for status, answer in one["responses"].items():
                if path != "/metrics" and status >= "400":
                    told = answer["content"]["application/json"]["schema"]
                    assert told == {"$ref": "#/components/schemas/ErrorAnswer"}


def test_a_second_flag_on_a_reply_is_heard_while_its_item_is_open(bound) -> None:
    bound.log(id="i1")

    def flag(verdict: str, confidence: float) -> str:
        body = {"interaction": "i1", "kind": "safety", "verdict": verdict, "confidence": confidence}
        return str(bound.post("/v1/review/items", body, "reviewer").json()["outcome"])

    told = [flag("self_harm", 0.2), flag("VIOLENCE", 0.99), flag("VIOLENCE", 0.99), flag("self_harm", 0.1)]
    assert told == ["added", "joined", "duplicate", "joined"]
    (item,) = get(bound, "/v1/review/items").json()["items"]
    assert (item["reason"], item["priority"]) == ("VIOLENCE", 0.99)
    says = [voice["says"] for voice in item["voices"]]
    assert says == ["self_harm, 0.20 sure", "VIOLENCE, 0.99 sure", "self_harm, 0.10 sure"]
    for reviewer in ("r1", "r2"):
        bound.post("/v1/review/claim", {}, reviewer)
        assert flag(f"seen by {reviewer}", 0.5) == "joined"  # whoever holds it keeps it
        bound.post(f"/v1/review/items/{item['id']}/decision", {"verdict": "reject"}, reviewer)
    assert flag("late", 1) == "duplicate"
    assert get(bound, f"/v1/review/items/{item['id']}").json()["state"] == "done"


def test_requests_are_counted_by_key(start) -> None:
    api = start(key_rate=1, key_burst=2)
    codes = [api.post("/v1/review/claim", {"reviewer": "r1"}, "reviewer").status_code for _ in range(3)]
    assert codes == [200, 200, 429]


def test_a_seeded_item_looks_like_any_other(start, make_interaction) -> None:
    api = start()
    said = {"kind": "moderation", "reason": "wrong", "prompt": [{"role": "user", "content": "?"}], "priority": 0.5}
    api.log(id="i1")
    seeded = Proposal.model_validate({**said, "reply": "a", "expected": "reject"})
    plain = Proposal.model_validate({**said, "reply": "b", "interaction": "i1"})
    queue = ReviewQueue(api.store, ReviewSettings(seed_share=0.99), draw=lambda: 0.0)
    queue.add([seeded, plain])
    listed = get(api, "/v1/review/items", "reviewer").json()["items"]
    assert len({frozenset(one) for one in listed}) == 1
    assert "expected" not in json.dumps(listed)
    answers = []
    for one in listed:
        queue.claim(one["id"], "r1")
        body = {"verdict": "accept", "reviewer": "r1"}
        answers.append(api.post(f"/v1/review/items/{one['id']}/decision", body, "reviewer").json())
    assert [answer["state"] for answer in answers] == ["done", "done"]
    assert api.store.counts() == {"interaction": 1, "correction": 1}


# the page's session

PAGE = {"X-Illm-Review": "1", "Content-Type": "application/json"}


def test_a_reviewers_counts_move_with_a_seeded_item_too(start) -> None:
    api = start()
    api.log(id="i1")
    said = {"kind": "moderation", "reason": "wrong", "prompt": [{"role": "user", "content": "?"}], "priority": 0.5}
    seeded = Proposal.model_validate({**said, "reply": "a", "expected": "reject"})
    plain = Proposal.model_validate({**said, "reply": "b", "interaction": "i1"})
    ReviewQueue(api.store).add([seeded, plain])

    def counts(answer: Any) -> list[int]:
        return [answer.json()["counts"][state] for state in ("open", "claimed", "done")]

    listed = get(api, "/v1/review/items?reviewer=r1", "reviewer")
    assert counts(listed) == [2, 0, 0]
    claim = api.post("/v1/review/claim", {"item": seeded.id, "reviewer": "r1"}, "reviewer")
    assert counts(claim) == [1, 1, 0]
    api.post(f"/v1/review/items/{seeded.id}/decision", {"verdict": "reject", "reviewer": "r1"}, "reviewer")
    for reviewer, state, moved in (("r1", "done", [1, 0, 1]), ("r2", "open", [2, 0, 0])):
        assert get(api, f"/v1/review/items/{seeded.id}?reviewer={reviewer}", "reviewer").json()["state"] == state
        assert counts(get(api, f"/v1/review/items?reviewer={reviewer}", "reviewer")) == moved
    api.keys["r1"] = KeyTable(api.store).create("r1", ["review"], reviewer="r1")[1]
    assert get(api, f"/v1/review/items/{seeded.id}").json()["state"] == "done"
    assert get(api, "/v1/review/items?reviewer=r2").status_code == 403
    assert get(api, "/v1/review/items?reviewer=r2%00", "reviewer").status_code == 422


def login(api: Any, key: str = "r1", **headers: str) -> Any:
    return api.client.post("/review/login", content=json.dumps({"key": api.keys.get(key, key)}), headers=PAGE | headers)


def test_a_login_gives_a_cookie_that_no_script_and_no_other_site_gets(flagged) -> None:
    api, name = flagged
    before = api.client.get("/review")
    assert 'id="login"' in before.text
    answer = login(api)
    cookie = answer.headers["set-cookie"]
    assert answer.json() == {"reviewer": "r1"}
    for word in ("HttpOnly", "SameSite=strict", f"Max-Age={SECONDS}"):
        assert word in cookie
    assert api.keys["r1"].split("_", 2)[2] not in cookie
    assert "r1" in api.client.get("/review").text
    claim = api.client.post("/v1/review/claim", content="{}", headers=PAGE)
    assert claim.json()["claim"]["item"]["id"] == name
    out = api.client.post("/review/logout", content="{}", headers=PAGE)
    assert out.status_code == 200
    assert api.client.post("/v1/review/claim", content="{}", headers=PAGE).status_code == 401
    assert "Secure" in login(api, **{"X-Forwarded-Proto": "https"}).headers["set-cookie"]


def test_another_site_can_do_nothing_with_the_cookie(flagged) -> None:
    api, _ = flagged
    login(api)
    for headers in ({"Content-Type": "application/json"}, {"Content-Type": "text/plain"}):
        assert api.client.post("/v1/review/claim", content="{}", headers=headers).status_code == 401
        assert api.client.post("/review/logout", content="{}", headers=headers).status_code == 403
    body = json.dumps({"type": "correction", "interaction": "i1", "reviewer": "r1", "content": "x"})
    assert api.client.post("/v1/feedback", content=body, headers=PAGE).status_code == 401
    assert api.client.get("/v1/review/report").status_code == 401


@pytest.mark.parametrize("key", ["shop", "operator", "reviewer", "illm_x_y"])
def test_only_a_reviewers_own_key_logs_in(bound, key: str) -> None:
    answer = login(bound, key)
    assert answer.status_code in (401, 403)
    assert "set-cookie" not in answer.headers


def spoiled(session: str) -> list[str]:
    name, expires, number, own, mac = session.split(".")
    longer = str(int(expires) + 1)
    signed = f"{own}.{mac}"
    return ["", ".....", f"x.{expires}.{number}.{signed}", f"{name}.{longer}.{number}.{signed}",
            f"{name}.{expires}.9.{signed}", f"{name}.{expires}.{number}.{signed[:-1]}", f"{name}.-1.{number}.{signed}",
            f"{name}.{expires}.{number}.{own[:-1]}.{mac}", f"{name}.{expires}.²..", f"{session}²"]  # fmt: skip


def test_a_session_is_signed_ends_with_its_time_and_with_its_key(bound) -> None:
    login(bound)
    session = bound.client.cookies[COOKIE]

    def works(text: str) -> bool:
        bound.client.cookies.clear()
        headers = PAGE | {"Cookie": f"{COOKIE}={text}".encode()}  # type: ignore[dict-item]
        return bool(bound.client.post("/v1/review/claim", content="{}", headers=headers).status_code == 200)

    assert works(session)
    assert not any(works(text) for text in spoiled(session))
    table = KeyTable(bound.store)
    table.rotate_signing()
    assert works(session)
    now = bound.now[0]
    bound.now[0] = now.fromtimestamp(now.timestamp() + SECONDS, now.tzinfo)
    assert not works(session)
    bound.now[0] = now
    table.revoke(session.split(".")[0])
    assert not works(session)


def test_logging_out_ends_the_session_and_no_other(bound) -> None:
    cookies = []
    for _ in range(2):
        login(bound)
        cookies.append(bound.client.cookies[COOKIE])
        bound.client.cookies.clear()
    first, second = ({**PAGE, "Cookie": f"{COOKIE}={cookie}"} for cookie in cookies)
    for _ in range(2):
        assert bound.client.post("/review/logout", content="{}", headers=first).status_code == 200
    assert bound.client.post("/v1/review/claim", content="{}", headers=first).status_code == 401
    assert 'id="login"' in bound.client.get("/review", headers=first).text
    assert bound.client.post("/v1/review/claim", content="{}", headers=second).status_code == 200
    with TestClient(create_app(bound.store, now=lambda: bound.now[0])) as restarted:
        assert restarted.post("/v1/review/claim", content="{}", headers=first).status_code == 401


def test_an_ended_session_is_kept_until_it_would_have_ended(bound) -> None:
    for hours in (0, 11, 12):
        bound.now[0] = NOW + timedelta(hours=hours)
        login(bound)
        bound.client.post("/review/logout", content="{}", headers=PAGE)
    with bound.store.reading() as connection:
        kept = connection.scalars(sa.select(tables.ended_sessions.c.expires)).all()
    assert sorted(kept) == [int((NOW + timedelta(hours=hours)).timestamp()) for hours in (23, 24)]


def test_ending_old_tokens_ends_sessions(bound) -> None:
    login(bound)
    KeyTable(bound.store).rotate_signing(end_old=True)
    assert bound.client.post("/v1/review/claim", content="{}", headers=PAGE).status_code == 401


def test_the_page_and_its_parts_come_with_a_strict_policy(bound) -> None:
    scripts = re.findall(r'<script src="([^"]+)" defer></script>', bound.client.get("/review").text)
    assert len(scripts) == 4
    for path in ("/review", "/review/review.css", *scripts):
        policy = bound.client.get(path).headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        assert "require-trusted-types-for 'script'" in policy
    page = bound.client.get("/review").text
    assert " on" + "click" not in page
    assert "<script>" not in page
    assert "http" not in page.replace("<!doctype html>", "")
    assert bound.client.get("/review/keys.py").status_code == 404


def test_a_reviewers_name_is_escaped(start: Callable[..., Any]) -> None:
    api = start()
    name = '"><script>alert(1)</script>'
    api.keys["evil"] = KeyTable(api.store).create("evil", ["review"], reviewer=name)[1]
    login(api, "evil")
    page = api.client.get("/review").text
    assert "<script>alert" not in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page


def test_the_server_takes_the_settings_of_its_queue(api) -> None:
    queue = ReviewQueue(api.store, ReviewSettings(lease_seconds=77))
    with TestClient(create_app(api.store, review=queue)) as client:
        key = KeyTable(api.store).create("r1", ["review"], reviewer="r1")[1]
        client.post("/review/login", content=json.dumps({"key": key}), headers=PAGE)
        assert 'data-lease="77.0"' in client.get("/review").text
