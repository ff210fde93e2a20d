"""Events: what parses, what is refused and how it is said."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

import pytest

from incremental_llm.errors import InputError
from incremental_llm.feedback import (
    EVENT_TYPES,
    EventError,
    Interaction,
    UnknownEvent,
    event_to_dict,
    parse_event,
    read_event,
    references,
)
from incremental_llm.feedback.events import MAX_DEPTH, load_event
from incremental_llm.feedback.serving import serving_of

TIME = "2026-11-01T12:00:00Z"
MESSAGES = [{"role": "user", "content": "Hi"}]
VALID: dict[str, dict[str, Any]] = {
    "interaction": {"conversation": "c1", "user": "u1", "messages": MESSAGES, "reply": "", "model": "production@7"},
    "thumb": {"interaction": "i1", "user": "u1", "value": -1},
    "correction": {"interaction": "i1", "reviewer": "r1", "content": "the right reply"},
    "preference": {"chosen": "i2", "rejected": "i1", "user": "u1"},
    "rephrase": {"interaction": "i1", "followup": "i2"},
    "policy_change": {"reviewer": "r1", "supersedes": ["k1", "i7"], "note": "45 days, was 30"},
    "ranking": {"replies": ["i3", "i1", "i2"], "user": "u1"},
    "copy": {"interaction": "i1", "user": "u1"},
    "abandon": {"interaction": "i1", "user": "u1"},
}
SERVED = {"policy": "production@7", "sampling": {"temperature": 0.7, "top_p": 0.9, "seed": 1, "min_p": 0.05}}


def line(kind: str, **change: Any) -> dict[str, Any]:
    return {"type": kind, "id": "x1", "time": TIME, **VALID[kind], **change}


def without(kind: str, key: str) -> dict[str, Any]:
    return {name: value for name, value in line(kind).items() if name != key}


@pytest.mark.parametrize("kind", EVENT_TYPES)
def test_every_type_survives_a_round_trip(kind: str) -> None:
    event = parse_event(line(kind))
    assert event.type == kind
    assert parse_event(event_to_dict(event)) == event


def test_the_types_of_the_tests_are_all_types() -> None:
    assert set(VALID) == set(EVENT_TYPES)


def test_metadata_is_kept_as_it_is() -> None:
    metadata = {"a": None, "b": [1.5, {"c": "\u2028"}]}
    assert event_to_dict(parse_event(line("interaction", metadata=metadata)))["metadata"] == metadata


def test_times_are_utc() -> None:
    event = parse_event(line("thumb", time="2026-11-01T14:00:00+02:00"))
    assert event.time == datetime(2026, 11, 1, 12, tzinfo=UTC)
    assert event_to_dict(event)["time"] == TIME


def test_equal_times_in_other_zones_are_the_same_event() -> None:
    assert parse_event(line("thumb", time="2026-11-01T14:00:00+02:00")) == parse_event(line("thumb"))


@pytest.mark.parametrize(
    ("obj", "said"),
    [
        ([], "expected an object, found list"),
        ({"id": "t1"}, "type: expected one of interaction"),
        ({"type": 3, "id": "t1"}, "type: expected one of"),
        (without("thumb", "user"), "user: missing"),
        (line("thumb", value=0), "value: Input should be 1 or -1, found 0"),
        (line("thumb", value=True), "value: expected 1 or -1, found True"),
        (line("thumb", value="1"), "value: expected 1 or -1"),
        (line("thumb", id=""), "id: expected 1 to 200 characters"),
        (line("thumb", id="a\nb"), "id: expected 1 to 200 characters"),
        (line("thumb", user=7), "user: Input should be a valid string"),
        (line("thumb", time="2026-11-01T12:00:00"), "time: Input should have timezone info"),
        (line("thumb", time=1700000000), "time: expected an ISO 8601 time"),
        (line("thumb", time="1700000000"), "time: expected an ISO 8601 time"),
        (line("thumb", interacton="i1"), "unknown field 'interacton' of thumb, did you mean 'interaction'?"),
        (line("interaction", messages=[]), "messages: expected at least one message"),
        (line("interaction", messages=[{"role": "bot", "content": ""}]), "messages.0.role: Input should be"),
        (line("interaction", metadata={"score": float("nan")}), "expected plain JSON"),
        (line("interaction", reply="\ud800"), "expected plain JSON in valid Unicode"),
        (line("preference", chosen="i1"), "chosen and rejected are the same interaction"),
        (line("rephrase", followup="i1"), "interaction and followup are the same interaction"),
        (line("ranking", replies=["i1"]), "replies: Tuple should have at least 2 items"),
        (line("ranking", replies=[f"i{n}" for n in range(11)]), "replies: Tuple should have at most 10 items"),
        (line("ranking", replies=["i1", "i2", "i1"]), "replies: expected different interactions, found one twice"),
        (line("copy", text="30 days"), "unknown field 'text' of copy"),
        (line("interaction", metadata={"serving": "web"}), "serving: Input should be a valid dictionary"),
        (line("interaction", metadata={"serving": {}}), "serving.policy: missing"),
        (line("interaction", metadata={"serving": SERVED | {"propensity": 0}}), "serving.propensity: Input should be"),
        (line("interaction", metadata={"serving": SERVED | {"propensity": 9e-7}}), "greater than or equal to 0.000001"),
        (line("interaction", metadata={"serving": SERVED | {"propensity": 1.01}}), "serving.propensity: Input should"),
        (line("interaction", metadata={"serving": SERVED | {"propensity": "0.5"}}), "serving.propensity: Input should"),
        (line("interaction", metadata={"serving": SERVED | {"propensty": 0.5}}), "unknown field 'serving.propensty'"),
        (line("interaction", metadata={"serving": SERVED | {"logprob": 0.1}}), "serving.logprob: Input should be"),
        (line("interaction", metadata={"serving": {"policy": "p", "sampling": {"top_p": 0}}}), "sampling.top_p: Input"),
        (line("interaction", metadata={"serving": {"policy": "p", "sampling": {"stop": []}}}), "sampling.stop"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(obj: Any, said: str) -> None:
    with pytest.raises(EventError) as caught:
        parse_event(obj)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)
    assert isinstance(caught.value, InputError)


def test_of_very_many_problems_the_first_are_shown_and_the_rest_counted() -> None:
    with pytest.raises(EventError, match=r"^interaction: missing; .*'x6' of thumb; and 94 more$"):
        parse_event({"type": "thumb", "id": "t", "time": "2026-11-01T12:00:00Z", **{f"x{n}": 0 for n in range(101)}})


def test_a_serving_block_is_kept_as_it_is_and_read() -> None:
    metadata = {"channel": "web", "serving": SERVED | {"propensity": 0.05, "explored": True, "logprob": -12.5}}
    event = parse_event(line("interaction", metadata=metadata))
    assert isinstance(event, Interaction)
    assert event_to_dict(event)["metadata"] == metadata
    served = serving_of(event.metadata)
    assert served is not None and served.model_dump(mode="json") == metadata["serving"]
    assert (served.policy, served.propensity, served.explored) == ("production@7", 0.05, True)
    assert serving_of({"channel": "web"}) is None


def test_a_propensity_that_an_older_log_took_in_stays_readable() -> None:
    old = json.dumps(line("interaction", metadata={"serving": SERVED | {"propensity": 1e-200}}))
    event = load_event("interaction", old)
    assert isinstance(event, Interaction)
    served = serving_of(event.metadata)
    assert served is not None and served.propensity == 1e-200


def test_what_is_read_back_shares_which_fields_were_given_and_copies_do_not() -> None:
    bodies = [json.dumps(line("interaction", id=name)) for name in ("i1", "i2")]
    one, two = (load_event("interaction", body) for body in bodies)
    assert one == parse_event(json.loads(bodies[0]))
    assert one.model_fields_set is two.model_fields_set
    copied = one.model_copy(update={"metadata": {"topic": "boots"}})
    assert "metadata" in copied.model_fields_set and "metadata" not in two.model_fields_set


def test_an_unknown_type_is_kept_whole() -> None:
    body = {"type": "page_view", "id": "v1", "time": TIME, "page": {"path": "/boots"}}
    event = parse_event(body)
    assert isinstance(event, UnknownEvent)
    assert (event.id, event.type, event_to_dict(event)) == ("v1", "page_view", body)


def test_an_unknown_type_without_id_or_time_gets_an_id_from_its_content() -> None:
    one = parse_event({"type": "ping", "n": 1})
    assert one == parse_event({"n": 1, "type": "ping"})
    assert one.id != parse_event({"type": "ping", "n": 2}).id
    assert parse_event({"type": "ping", "id": "p1", "time": "yesterday"}).time is None


def test_an_unknown_type_with_an_id_that_is_no_text_is_refused() -> None:
    with pytest.raises(EventError, match="id: Input should be a valid string"):
        parse_event({"type": "ping", "id": 5})


def test_references_are_the_interactions_an_event_waits_for() -> None:
    found = {kind: references(parse_event(line(kind))) for kind in EVENT_TYPES}
    assert found == {
        "interaction": (),
        "thumb": ("i1",),
        "correction": ("i1",),
        "preference": ("i2", "i1"),
        "rephrase": ("i1", "i2"),
        "policy_change": (),
        "ranking": ("i3", "i1", "i2"),
        "copy": ("i1",),
        "abandon": ("i1",),
    }


def test_nesting_is_bounded_so_that_what_is_read_can_be_written() -> None:
    def odd(depth: int) -> bytes:
        return b'{"type":"odd","id":"o","x":' + b"[" * (depth - 1) + b"]" * (depth - 1) + b"}"

    assert event_to_dict(read_event(odd(MAX_DEPTH)))["id"] == "o"
    for depth in (MAX_DEPTH + 1, 600):
        with pytest.raises(EventError, match="at most 500 levels of nesting, found more"):
            read_event(odd(depth))
    wide = {"type": "odd", "id": "o", "x": [[] for _ in range(2 * MAX_DEPTH)]}
    assert parse_event(wide).id == "o"


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        (b"\xff", "expected UTF-8, found byte 0xff at position 1"),
        (b"", "expected JSON, found an error at position 1: Expecting value"),
        (b'{"type":NaN}', "expected JSON, found NaN, which is not JSON"),
        (b'{"a":1,"a":2}', "expected JSON, found the key 'a' twice; remove one of the two"),
        (b"[]", "expected an object, found list"),
    ],
)
def test_bytes_that_are_no_event_are_refused_with_a_reason(raw: bytes, reason: str) -> None:
    with pytest.raises(EventError) as caught:
        read_event(raw)
    assert str(caught.value) == reason
