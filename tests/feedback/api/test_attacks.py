"""What the API refuses, in one shape, without storing anything."""

from __future__ import annotations

import asyncio
import json
import logging

import pytest
import sqlalchemy as sa
from starlette.requests import Request

from incremental_llm.errors import InputError
from incremental_llm.feedback.api import groups
from incremental_llm.feedback.api.body import read_body
from incremental_llm.feedback.api.boundary import Boundary
from incremental_llm.feedback.api.problem import Problem
from incremental_llm.feedback.api.settings import ApiSettings


def refused(answer, status: int) -> dict[str, object]:
    """The error of an answer, whose shape is always the same."""
    assert answer.status_code == status, answer.text
    error = answer.json()["error"]
    assert set(error) == {"status", "expected", "found", "do", "request_id"}
    assert error["status"] == status
    assert error["request_id"] == answer.headers["X-Request-ID"]
    assert "\n" not in error["found"]
    assert len(error["found"]) <= 500
    return error


def thumb(interaction: str, *tokens: str, **fields: object) -> dict[str, object]:
    body = {"type": "thumb", "interaction": interaction, "user": "u", "value": 1, **fields}
    return {**body, "reply_tokens": list(tokens)} if tokens else body


# keys and scopes


@pytest.mark.parametrize("key", [None, "", "illm", "illm_nobody_secret", "é", "illm__"])
def test_no_key_is_401(api, make_interaction, key: str | None) -> None:
    sent = {"Authorization": f"Bearer {key}".encode("latin-1")} if key is not None else {}
    body = json.dumps(make_interaction())
    answer = api.client.post("/v1/interactions", content=body, headers={"Content-Type": "application/json", **sent})
    error = refused(answer, 401)
    assert answer.headers["WWW-Authenticate"] == "Bearer"
    assert "illm api-key create" in str(error["do"])
    assert api.stored() == []


def test_a_right_id_with_a_wrong_secret_is_401(api, make_interaction) -> None:
    shop, other = api.keys["shop"].split("_", 2), api.keys["other"].split("_", 2)
    for forged in ("_".join([*shop[:2], other[2]]), "_".join([*other[:2], shop[2]]), api.keys["shop"][:-1]):
        refused(api.post("/v1/interactions", make_interaction(), forged), 401)


def test_a_revoked_key_is_401_and_reads_like_an_unknown_one(api, make_interaction) -> None:
    api.log()
    api.table.revoke(api.keys["shop"].split("_")[1])
    revoked = refused(api.post("/v1/interactions", make_interaction()), 401)
    unknown = refused(api.post("/v1/interactions", make_interaction(), "illm_0_x"), 401)
    assert {**revoked, "request_id": ""} == {**unknown, "request_id": ""}


def test_a_revoked_key_works_no_longer_than_the_refresh(start, make_interaction) -> None:
    api = start(refresh_seconds=1)
    api.log()
    api.table.revoke(api.keys["shop"].split("_")[1])
    api.seconds[0] = 1.0
    refused(api.post("/v1/interactions", make_interaction()), 401)


@pytest.mark.parametrize(
    ("key", "path", "body"),
    [
        ("shop", "/v1/feedback", {"type": "correction", "interaction": "i", "reviewer": "r", "content": "x"}),
        ("shop", "/v1/feedback", {"type": "policy_change", "reviewer": "r", "supersedes": []}),
        ("reviewer", "/v1/feedback", {"type": "thumb", "interaction": "i", "user": "u", "value": 1}),
        ("reviewer", "/v1/interactions", {}),
        ("operator", "/v1/interactions", {}),
        ("operator", "/v1/batch", {"events": []}),
    ],
)
def test_a_wrong_scope_is_403(api, key: str, path: str, body: dict[str, object]) -> None:
    assert "the scope" in str(refused(api.post(path, body, key), 403)["expected"])


@pytest.mark.parametrize("key", ["shop", "reviewer"])
def test_metrics_are_for_operators(api, key: str) -> None:
    refused(api.client.get("/metrics", headers={"Authorization": f"Bearer {api.keys[key]}"}), 403)
    refused(api.client.get("/metrics"), 401)


# reply tokens


def test_feedback_needs_the_token_of_its_own_interaction(api) -> None:
    (first, token), (second, foreign) = api.log(), api.log()
    refused(api.post("/v1/feedback", thumb(first)), 403)
    refused(api.post("/v1/feedback", thumb(first, foreign)), 403)
    refused(api.post("/v1/feedback", thumb("i-of-nobody", token)), 403)
    assert api.post("/v1/feedback", thumb(second, foreign)).status_code == 202


def test_a_token_is_worth_nothing_to_another_key(api) -> None:
    name, token = api.log()
    refused(api.post("/v1/feedback", thumb(name, token), "other"), 403)


def test_a_foreign_reply_can_be_claimed_only_by_who_has_seen_all_of_it(api, make_interaction) -> None:
    api.log(id="i1", time="2026-11-01T12:00:00Z")
    guess = api.post("/v1/interactions", make_interaction(id="i1", time="2026-11-01T12:00:00Z", reply="?"), "other")
    refused(guess, 409)
    assert "reply_token" not in guess.text
    name, token = api.log("other", id="i1", time="2026-11-01T12:00:00Z")
    assert api.post("/v1/feedback", thumb(name, token), "other").status_code == 202


@pytest.mark.parametrize(
    "forge",
    [
        lambda token: token[:-1] + ("A" if token[-1] != "A" else "B"),
        lambda token: "2" + token[1:],
        lambda token: "99999999999999999999" + token[1:],
        lambda token: "²" + token[1:],
        lambda token: token.partition(".")[2],
        lambda token: "1.",
        lambda token: "1.\ud800",
        lambda token: "",
    ],
)
def test_a_forged_token_is_403(api, forge) -> None:
    name, token = api.log()
    refused(api.post("/v1/feedback", thumb(name, forge(token))), 403)


def test_names_cannot_be_shifted_between_owner_and_interaction(api) -> None:
    _, api.keys["a"] = api.table.create("a", ["ingest"])
    _, api.keys["ab"] = api.table.create("ab", ["ingest"])
    _, token = api.log("ab", id="c")
    refused(api.post("/v1/feedback", thumb("bc", token), "a"), 403)


@pytest.mark.parametrize("given", [(0,), (1,), ()])
def test_a_preference_and_a_rephrase_need_both_tokens(api, given: tuple[int, ...]) -> None:
    (one, first), (two, second) = api.log(), api.log()
    tokens = [[first, second][place] for place in given]
    refused(
        api.post("/v1/feedback", {"type": "rephrase", "interaction": one, "followup": two, "reply_tokens": tokens}), 403
    )
    judged = {"type": "preference", "chosen": one, "rejected": two, "user": "u", "reply_tokens": tokens}
    refused(api.post("/v1/feedback", judged), 403)


@pytest.mark.parametrize("tokens", ["1.x", {"a": 1}, [1], ["a"] * 11, None])
def test_tokens_of_another_form_are_422(api, tokens: object) -> None:
    body = {**thumb("i"), "reply_tokens": tokens}
    assert "reply_tokens" in str(refused(api.post("/v1/feedback", body), 422)["expected"])


def test_tokens_outlive_a_new_signing_secret_but_not_the_end_of_the_old_one(api) -> None:
    name, token = api.log()
    api.table.rotate_signing()
    assert api.log()[1].startswith("2.")
    assert api.post("/v1/feedback", thumb(name, token, id="t1")).status_code == 202
    api.table.rotate_signing(end_old=True)
    refused(api.post("/v1/feedback", thumb(name, token, id="t2")), 403)
    assert api.post("/v1/feedback", thumb(*api.log())).status_code == 202


def test_a_new_key_of_the_same_name_goes_on_where_the_old_one_ended(api) -> None:
    name, token = api.log()
    _, api.keys["shop2"] = api.table.create("shop", ["ingest"])
    api.table.revoke(api.keys["shop"].split("_")[1])
    assert api.post("/v1/feedback", thumb(name, token), "shop2").status_code == 202


# bodies


def test_an_oversized_body_is_413(start, make_interaction) -> None:
    api = start(max_body_bytes=2048)
    answer = api.post("/v1/interactions", make_interaction(reply="x" * 2048))
    assert "2048 bytes" in str(refused(answer, 413)["expected"])
    assert answer.headers["Connection"] == "close"


def test_an_oversized_body_without_its_length_is_refused_while_it_comes() -> None:
    received = 0

    async def endless() -> dict[str, object]:
        nonlocal received
        received += 1
        return {"type": "http.request", "body": b"[" * 1000, "more_body": True}

    request = Request({"type": "http", "headers": [(b"content-type", b"application/json")]}, endless)
    with pytest.raises(Problem) as caught:
        asyncio.run(read_body(request, ApiSettings(max_body_bytes=2048)))
    assert (caught.value.status, received) == (413, 3)


def test_a_body_that_does_not_come_is_408() -> None:
    async def never() -> dict[str, object]:
        await asyncio.Event().wait()
        return {}

    request = Request({"type": "http", "headers": [(b"content-type", b"application/json")]}, never)
    with pytest.raises(Problem) as caught:
        asyncio.run(read_body(request, ApiSettings(body_seconds=0.001)))
    assert (caught.value.status, caught.value.headers) == (408, {"Connection": "close"})


@pytest.mark.parametrize("length", ["99999999999999999999999999", "9" * 5000])
def test_a_length_that_is_absurd_is_413(api, length: str) -> None:
    refused(api.post("/v1/interactions", b"{}", Content_Length=length), 413)


@pytest.mark.parametrize(
    ("body", "why"),
    [
        (b"", "position 1"),
        (b"{", "position 2"),
        (b"\xff", "0xff at position 1, which is not UTF-8"),
        (b'{"a": NaN}', "NaN, which is not JSON"),
        (b'{"a": -Infinity}', "-Infinity, which is not JSON"),
        (b'{"reply": "a", "reply": "b"}', "the key 'reply' twice"),
        (b"[" * 100_000, "nested"),
        (b'{"a":' * 100_000, "nested"),
        (b"[" * 33 + b"]" * 33, "nested deeper than 32 levels"),
        (b'{"a": ' + b"9" * 5000 + b"}", "4300 digits"),
    ],
)
def test_a_body_that_is_no_strict_json_is_400(api, body: bytes, why: str) -> None:
    assert why in str(refused(api.post("/v1/interactions", body), 400)["found"])


def test_a_repeated_key_is_found_among_very_many(api) -> None:
    """In time that grows with their number, not with its square: this would take minutes."""
    keys = ",".join(f'"{n}":0' for n in [*range(90_000), 89_999])
    assert "the key '89999' twice" in str(refused(api.post("/v1/interactions", f"{{{keys}}}".encode()), 400)["found"])


def test_a_flood_of_wrong_fields_is_answered_in_one_line(api, make_interaction) -> None:
    refused(api.post("/v1/interactions", make_interaction(messages=[0] * 50_000)), 422)
    refused(api.post("/v1/interactions", {f"x{n}": 0 for n in range(10_000)}), 422)


def test_a_large_body_is_parsed_as_strictly(api, make_interaction) -> None:
    large = json.dumps(make_interaction(reply="x" * 100_000))[:-1] + ', "model": "twice"}'
    assert "'model' twice" in str(refused(api.post("/v1/interactions", large.encode()), 400)["found"])
    api.log(reply="x" * 100_000)


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ({"metadata": {"score": 1e999}}, "Unicode"),
        ({"replly": "x"}, "did you mean 'reply'?"),
        ({"messages": []}, "messages"),
        ({"time": "yesterday"}, "time"),
        ({"id": "x" * 201}, "id: "),
        ({"id": None}, "id: "),
        ({"reply": "\ud800"}, "Unicode"),
        ({"type": "thumb"}, "'thumb'"),
        ({"type": ["interaction"]}, "['interaction']"),
        ({"messages": [{"role": "x", "content": "x"}] * 1000}, "messages.0.role"),
    ],
)
def test_a_wrong_field_is_422_and_named(api, make_interaction, fields: dict[str, object], why: str) -> None:
    body = json.dumps(make_interaction(**fields)).replace("Infinity", "1e999")
    assert why in str(refused(api.post("/v1/interactions", body.encode()), 422)["found"])
    assert api.store.counts() == {}


def test_an_unknown_type_is_422(api) -> None:
    assert "one of thumb" in str(refused(api.post("/v1/feedback", {"type": "thumbs"}), 422)["expected"])
    assert str(refused(api.post("/v1/feedback", {}), 422)["found"]) == "none"
    refused(api.post("/v1/feedback", []), 422)


@pytest.mark.parametrize(
    "headers", [{"Content_Type": "text/plain"}, {"Content_Type": ""}, {"Content_Encoding": "gzip"}]
)
def test_another_encoding_is_415(api, headers: dict[str, str]) -> None:
    refused(api.post("/v1/interactions", b"{}", **headers), 415)


def test_other_paths_and_methods_have_the_same_shape(api) -> None:
    refused(api.client.get("/v1/interactions"), 405)
    refused(api.client.get("/secret/../path"), 404)


# rates


def test_a_key_over_its_rate_is_429_until_it_has_waited(start, make_interaction) -> None:
    api = start(key_rate=0.5, key_burst=2)
    assert [api.post("/v1/interactions", make_interaction(user=str(n))).status_code for n in range(3)] == [
        202,
        202,
        429,
    ]
    answer = api.post("/v1/interactions", make_interaction())
    assert "this API key" in str(refused(answer, 429)["expected"])
    assert answer.headers["Retry-After"] == "2"
    assert api.post("/v1/interactions", make_interaction(), "other").status_code == 202
    api.seconds[0] = 2.0
    assert api.post("/v1/interactions", make_interaction()).status_code == 202


def test_a_user_over_the_rate_is_429_and_others_are_not(start, make_interaction) -> None:
    api = start(user_rate=1, user_burst=2)
    assert [api.post("/v1/interactions", make_interaction()).status_code for _ in range(3)] == [202, 202, 429]
    assert api.post("/v1/interactions", make_interaction(user="v")).status_code == 202
    assert api.post("/v1/interactions", make_interaction(), "other").status_code == 202


def test_a_batch_is_no_way_around_a_rate(start, make_interaction) -> None:
    api = start(user_rate=1, user_burst=2)
    event = {"type": "interaction", **make_interaction()}
    assert api.post("/v1/batch", {"events": [event] * 2}).status_code == 202
    refused(api.post("/v1/batch", {"events": [event, {**event, "user": "v"}]}), 429)
    assert api.store.counts() == {"interaction": 2}


def test_what_is_refused_counts_against_the_key_of_a_batch(start) -> None:
    api = start(key_rate=1, key_burst=3)
    assert api.post("/v1/batch", {"events": [1, 2, 3]}).status_code == 202
    refused(api.post("/v1/batch", {"events": [1]}), 429)


def test_more_requests_than_may_run_at_once_are_503() -> None:
    seen: list[int] = []
    released = asyncio.Event()

    async def slow(scope, receive, send) -> None:
        await released.wait()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body"})

    async def send(message) -> None:
        if "status" in message:
            seen.append(message["status"])
            if message["status"] == 503:
                assert (b"retry-after", b"1") in message["headers"]
                released.set()

    async def two() -> None:
        boundary = Boundary(slow, 1, lambda *facts: None)
        await asyncio.gather(*(boundary({"type": "http", "method": "GET"}, None, send) for _ in range(2)))

    asyncio.run(two())
    assert seen == [503, 200]


# the server's own failures


def test_an_error_in_the_server_shows_nothing_of_itself(api, make_interaction, monkeypatch, caplog) -> None:
    said = "secret words"

    async def broken(*_given: object) -> None:
        raise RuntimeError(said)

    monkeypatch.setattr("incremental_llm.feedback.api.service.parse_body", broken)
    answer = api.post("/v1/interactions", make_interaction())
    error = refused(answer, 500)
    assert said not in answer.text
    assert "Traceback" not in answer.text
    assert f"request {error['request_id']}: RuntimeError" in caplog.text
    assert said not in caplog.text


def test_the_log_holds_neither_words_nor_secrets(api, make_interaction, caplog) -> None:
    caplog.set_level(logging.DEBUG)
    name, token = api.log(reply="private words")
    api.post("/v1/feedback?key=in-the-query", thumb(name, token, value=3, comment="private words"))
    api.client.get("/in-the-path")
    ours = "\n".join(record.getMessage() for record in caplog.records if record.name.startswith("incremental_llm"))
    assert "POST /v1/interactions 202" in ours
    assert f"key={api.keys['shop'].split('_')[1]}" in ours
    for hidden in ("private words", token, api.keys["shop"], "in-the-query", "in-the-path"):
        assert hidden not in ours


def test_a_database_that_fails_is_503_and_health_says_so(api, make_interaction, monkeypatch) -> None:
    def failing(*_given: object) -> None:
        raise sa.exc.OperationalError("INSERT", {}, OSError("disk full"))

    with monkeypatch.context() as broken:
        broken.setattr(groups, "append_within", failing)
        answer = api.post("/v1/interactions", make_interaction(id="i1"))
        assert answer.headers["Retry-After"] == "1"
        assert "nothing is stored twice" in str(refused(answer, 503)["do"])
        refused(api.client.get("/health"), 503)
    assert api.stored() == []
    assert api.client.get("/health").status_code == 200  # it tries again itself
    api.log(id="i1")


def test_a_reviewers_own_key_speaks_for_nobody_else(api) -> None:
    name, _ = api.log()
    api.keys["ann"] = api.table.create("ann", ["review"], "ann")[1]
    api.seconds[0] += 60  # a server reads new keys now and then
    body = {"type": "correction", "interaction": name, "content": "45 days."}
    assert api.post("/v1/feedback", body, "ann").status_code == 202
    again = api.post("/v1/feedback", {**body, "reviewer": "ann"}, "ann")
    assert again.status_code == 202
    forged = api.post("/v1/feedback", {**body, "reviewer": "bob"}, "ann")
    assert forged.status_code == 403 and "the reviewer 'ann', whose key this is" in forged.json()["error"]["expected"]
    change = {"type": "policy_change", "reviewer": "bob", "supersedes": [name]}
    assert api.post("/v1/feedback", change, "ann").status_code == 403
    assert {stored.event.reviewer for stored in api.store.read(types=["correction", "policy_change"])} == {"ann"}


def test_a_reviewer_without_the_scope_is_no_key(api) -> None:
    with pytest.raises(InputError, match="expected the scope review for the reviewer 'ann'"):
        api.table.create("ann", ["ingest"], "ann")
