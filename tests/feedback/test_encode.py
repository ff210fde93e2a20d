"""A plain line is encoded without a model, and exactly as it would be with one; all other lines go the long way."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from incremental_llm.chat import json_digest
from incremental_llm.feedback import EventError
from incremental_llm.feedback.encode import Encoded, _plain, encode, encode_line
from incremental_llm.feedback.events import event_to_dict, read_event

TIME = "2026-11-01T12:00:00Z"
INTERACTION = {
    "type": "interaction",
    "id": "i1",
    "time": TIME,
    "conversation": "c1",
    "user": "u1",
    "messages": [{"role": "user", "content": "How long?"}],
    "reply": "30 days",
    "model": "production@7",
}
THUMB = {"type": "thumb", "id": "t1", "time": TIME, "interaction": "i1", "user": "u1", "value": 1}
CORRECTION = {"type": "correction", "id": "k1", "time": TIME, "interaction": "i1", "reviewer": "r1", "content": "45"}
PREFERENCE = {"type": "preference", "id": "p1", "time": TIME, "chosen": "i2", "rejected": "i1", "user": "u1"}

texts = st.text(max_size=12) | st.sampled_from(['":', 'a":b', "\x00", "\x7f", "\u2028", "\U0001f600", "[EMAIL]"])
ids = st.sampled_from(["i1", "i2", "u1", " ", "", "\u200b", "x" * 201, "a\nb"]) | st.text(max_size=8)
times = st.sampled_from(
    [
        TIME,
        "2026-11-01T12:00:00.5Z",
        "2026-11-01T12:00:00.123456+05:30",
        "2026-11-01T00:00:00-00:00",
        "0001-01-01T00:00:00+01:00",
        "2026-11-01T12:00:00+24:00",
        "2026-11-01T12:00:00+05:99",
        "2026-11-01T24:00:00Z",
        "2026-11-01T12:00:60Z",
        "2026-02-30T12:00:00Z",
        "2026-11-01 12:00:00Z",
        "2026-11-01t12:00:00z",
        "2026-11-01T12:00Z",
        "2026-11-01T12:00:00",
        "20261101T120000Z",
        "2026-W44-7T12:00:00Z",
        "1762000000",
    ]
) | st.datetimes().map(lambda at: at.isoformat() + "Z")
scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | texts
values = st.recursive(scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3))
messages = st.fixed_dictionaries(
    {"role": st.sampled_from(["user", "assistant", "system", "tool"]), "content": texts | st.none()},
    optional={"name": texts},
)
servings = st.fixed_dictionaries(
    {"policy": st.sampled_from(["production@7", "", 7])},
    optional={
        "propensity": st.sampled_from([0.05, 1, 0, 1.5, 1e-09, "0.5", None, True]),
        "sampling": st.dictionaries(st.sampled_from(["temperature", "top_p", "seed", "min_p"]), scalars | values),
        "explored": scalars,
        "logprob": st.sampled_from([-12.3, 0, 0.1]),
        "extra": scalars,
    },
)
changes: dict[str, st.SearchStrategy[Any]] = {
    **dict.fromkeys(("id", "user", "reviewer", "interaction", "conversation", "chosen", "rejected"), ids),
    "time": times,
    "messages": st.lists(messages, max_size=3) | values,
    "metadata": st.dictionaries(texts, values, max_size=3)
    | st.fixed_dictionaries({"serving": servings | values})
    | values,
    "reply": texts,
    "content": texts | st.none(),
    "comment": texts | st.none(),
    "value": st.sampled_from([1, -1, 0, 1.0, True, "1"]),
    "type": st.sampled_from(["interaction", "thumb", "correction", "preference", "rephrase", "ping", 5]),
}


@st.composite
def lines(draw: st.DrawFn) -> bytes:
    """An event that is right, then changed here and there, and written in one of the ways in which JSON can be."""
    event = dict(draw(st.sampled_from([INTERACTION, THUMB, CORRECTION, PREFERENCE])))
    for name in draw(st.lists(st.sampled_from([*event, "metadata", "comment", "extra"]), max_size=2)):
        event[name] = draw(changes.get(name, values))
    for name in draw(st.lists(st.sampled_from([*event]), max_size=1)) if draw(st.booleans()) else ():
        del event[name]
    keys = draw(st.permutations(list(event)))
    separators = draw(st.sampled_from([(",", ":"), (", ", ": "), (" ,", " :\t")]))
    text = json.dumps({key: event[key] for key in keys}, separators=separators, ensure_ascii=draw(st.booleans()))
    if draw(st.integers(0, 9)) == 0:  # a key twice
        text = text[:-1] + separators[0] + json.dumps(keys[0]) + separators[1] + json.dumps(event[keys[0]]) + "}"
    return text.encode("utf-8", "surrogatepass") + draw(st.sampled_from([b"", b"\n", b"\r\n", b" x"]))


def the_long_way(raw: bytes) -> Encoded | str:
    try:
        return encode(read_event(raw))
    except EventError as error:
        return str(error)


def either_way(raw: bytes) -> Encoded | str:
    try:
        return encode_line(raw)
    except EventError as error:
        return str(error)


@settings(max_examples=800, deadline=None)
@given(lines())
@example(json.dumps(INTERACTION | {"metadata": {"t": 1e-05, "big": 1e16, "n": 2**70, "zero": -0.0}}).encode())
@example(json.dumps(INTERACTION | {"metadata": {"a": {"b": [{"c": 0.7}]}, "s": 1e15}}).encode())
@example(
    b'{"type":"thumb","id":"t1","time":"2026-11-01T12:00:00Z","interaction":"i1","user":"u1","value":-1,"value":1}'
)
@example(b'{"type":"thumb","id":"t1","time":"2026-11-01T12:00:00Z","interaction":"i1","user":"u1","value":-0}')
@example(json.dumps(INTERACTION | {"metadata": {"serving": {"policy": "p@1", "propensity": 1.5}}}).encode())
@example(json.dumps(INTERACTION | {"metadata": {"serving": {"policy": "p@1", "propensity": 0.5}}}).encode())
@example(json.dumps(INTERACTION | {"metadata": {"serving": {"policy": "p@1", "propensity": 1e-9}}}).encode())
@example(json.dumps(INTERACTION | {"metadata": {"serving": None}}).encode())
@example(json.dumps(INTERACTION).replace("30 days", r"\ud800").encode())
@example(json.dumps(INTERACTION | {"reply": "\ud83d\ude00"}).encode())
def test_both_ways_say_the_same(raw: bytes) -> None:
    assert either_way(raw) == the_long_way(raw)


@settings(max_examples=500, deadline=None)
@given(st.floats(allow_nan=False, allow_infinity=False))
def test_floats_are_written_alike(number: float) -> None:
    raw = json.dumps(INTERACTION | {"metadata": {"x": number}}).encode()
    assert either_way(raw) == the_long_way(raw)


@pytest.mark.parametrize("event", [INTERACTION, THUMB, CORRECTION, PREFERENCE], ids=lambda event: event["type"])
@pytest.mark.parametrize("separators", [(",", ":"), (", ", ": ")])
def test_a_plain_line_takes_the_short_way(event: dict[str, Any], separators: tuple[str, str]) -> None:
    raw = json.dumps(event, separators=separators).encode()
    found = _plain(raw)
    assert found == the_long_way(raw)
    assert found is not None and found.digest == json_digest(event_to_dict(read_event(raw)))


def test_sampling_settings_take_the_short_way() -> None:
    metadata = {
        "sampling": {"temperature": 0.7, "top_p": 0.95, "seed": 7},
        "tags": ["a", None, True],
        "explored": False,
    }
    assert _plain(json.dumps(INTERACTION | {"metadata": metadata}).encode()) is not None


def test_a_serving_block_takes_the_short_way_where_it_fits() -> None:
    right = {
        "policy": "production@7",
        "sampling": {"temperature": 0.7, "seed": 1},
        "propensity": 0.05,
        "explored": True,
    }
    assert _plain(json.dumps(INTERACTION | {"metadata": {"serving": right}}).encode()) is not None
    wrong = json.dumps(INTERACTION | {"metadata": {"serving": right | {"propensity": 5}}}).encode()
    assert _plain(wrong) is None
    with pytest.raises(EventError, match=r"serving.propensity: Input should be less than or equal to 1, found 5"):
        encode_line(wrong)


def test_a_long_nested_line_goes_the_long_way_and_is_refused_there() -> None:
    deep: Any = 1
    for _ in range(600):
        deep = [deep]
    with pytest.raises(EventError, match="500 levels of nesting"):
        encode_line(json.dumps(INTERACTION | {"metadata": {"deep": deep}}).encode())
