"""Erasing from the event store: all of one person, nothing of another, and the same event never again."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from incremental_llm.errors import IncrementalError, InputError
from incremental_llm.feedback import FeedbackStore, UnknownEvent, event_to_dict, parse_event, tables
from incremental_llm.feedback.api.groups import Entry, IdempotencyKey, Request, store_group
from incremental_llm.feedback.api.keys import KeyTable
from incremental_llm.feedback.api.tables import answers
from incremental_llm.feedback.erasure import (
    Erased,
    Needles,
    TableRule,
    belongings,
    check_rules,
    compact,
    doubtful,
    erase_rows,
    is_tombstone,
    mentioned,
    pseudonyms,
    rows_to_change,
    without_quotes,
)
from incremental_llm.feedback.erasure.rules import every_rule
from incremental_llm.feedback.parking import Batch, ParkedMessage, parked
from incremental_llm.feedback.pseudonyms import Renames
from incremental_llm.feedback.stream_settings import StreamSettings

TIME = "2026-11-01T12:00:00Z"


def served(name: str, user: str, said: str = "Hello") -> dict[str, Any]:
    told = {"type": "interaction", "id": name, "time": TIME, "conversation": "c", "user": user, "model": "m"}
    return told | {"messages": [{"role": "user", "content": said}], "reply": "yes"}


def thumb(name: str, interaction: str, user: str) -> dict[str, Any]:
    return {"type": "thumb", "id": name, "time": TIME, "interaction": interaction, "user": user, "value": 1}


def fixed(name: str, interaction: str, reviewer: str) -> dict[str, Any]:
    told = {"type": "correction", "id": name, "time": TIME, "interaction": interaction, "reviewer": reviewer}
    return told | {"content": "the right reply"}


def change(name: str, reviewer: str, *supersedes: str) -> dict[str, Any]:
    return {"type": "policy_change", "id": name, "time": TIME, "reviewer": reviewer, "supersedes": list(supersedes)}


def rephrase(name: str, interaction: str, followup: str) -> dict[str, Any]:
    return {"type": "rephrase", "id": name, "time": TIME, "interaction": interaction, "followup": followup}


@pytest.fixture
def store(tmp_path: Path) -> Iterator[FeedbackStore]:
    with FeedbackStore(f"sqlite:///{tmp_path / 'feedback.db'}") as opened:
        yield opened


def put(store: FeedbackStore, *events: dict[str, Any]) -> Any:
    return store.append([parse_event(event) for event in events])


def erased_of(store: FeedbackStore, person: str) -> Erased:
    names, found = pseudonyms(store), belongings(store, person)
    return Erased("e1", person, found.events, found.naming, Needles(person, found.texts), names)


def erase(store: FeedbackStore, person: str) -> dict[str, int]:
    return dict(erase_rows(store, erased_of(store, person)))


def park(store: FeedbackStore, **values: bytes) -> None:
    """Messages that became no event, each in a topic of its own."""
    rows = [
        {"topic": name, "partition": 0, "offset_number": 0, "digest": "d" * 64, "time_ms": 1, "size": 9}
        | {"reason": "expected JSON, found 'x'", "message_key": None, "value": value}
        for name, value in values.items()
    ]
    with store.writing() as connection:
        connection.execute(sa.insert(tables.parked_messages), rows)


def bodies(store: FeedbackStore) -> dict[str, dict[str, Any]]:
    found = [stored.event for stored in store.read()] + store.waiting()
    return {event.id: event_to_dict(event) for event in found if not is_tombstone(event)}


def test_a_person_has_what_they_said_and_what_was_said_about_it(store: FeedbackStore) -> None:
    put(store, served("i1", "u1"), served("i2", "u2"), thumb("t1", "i2", "u1"), fixed("k1", "i1", "r1"))
    put(store, rephrase("p1", "i2", "i1"), fixed("k2", "i2", "r1"), thumb("t2", "never", "u1"))
    found = belongings(store, "u1")
    assert found.events == {"i1", "t1", "k1", "p1", "t2"} and found.places == {1, 3, 4, 5}
    assert found.texts == {"Hello", "yes", "the right reply"}
    assert belongings(store, "r1").events == {"k1", "k2"}  # a reviewer has what they wrote, not what it is about
    assert belongings(store, "nobody").events == frozenset()
    assert erase(store, "u1") == {"feedback_events": 5}
    assert erase(store, "u1") == {}
    assert bodies(store).keys() == {"i2", "k2"}
    assert [stored.seq for stored in store.read()] == [1, 2, 3, 4, 5, 6, 7] and store.waiting_count() == 0
    assert store.by_person("u1") == () and [place.id for place in store.about("i2")] == ["k2"]
    stone = next(store.read()).event
    assert isinstance(stone, UnknownEvent) and stone.time is None
    assert stone.body == {"type": "erased", "id": stone.id, "was": "interaction", "erasure": "e1"}


def test_names_that_no_index_holds_are_found_all_the_same(store: FeedbackStore) -> None:
    name, id_ = "Jo\u00a0hn", "i\u200b1"  # not printable, so they have no links
    put(store, served(id_, name), thumb("t1", id_, "u2"), thumb("t2", id_, name), served("i2", "u2"))
    assert belongings(store, name).events == {id_, "t1", "t2"}
    erase(store, name)
    assert bodies(store).keys() == {"i2"}


def test_policy_changes_of_others_keep_their_force_and_lose_the_names(store: FeedbackStore) -> None:
    put(store, served("i1", "u1"), served("i2", "u2"), fixed("k1", "i1", "r1"), fixed("k2", "i2", "r1"))
    put(store, change("c1", "r2", "k1", "k2") | {"note": "45 days"})
    erase(store, "u1")
    left = bodies(store)["c1"]
    assert left["supersedes"] == [pseudonyms(store).of("k1"), "k2"] and left["note"] == "45 days"
    assert [place.id for place in store.about("k2")] == ["c1"] and store.about("k1") == ()


def test_a_policy_change_that_only_they_made_is_named(store: FeedbackStore) -> None:
    put(store, served("i2", "u2"), fixed("k2", "i2", "r1"), fixed("k3", "i2", "r2"))
    put(store, change("c1", "r1", "k2", "k3"), change("c2", "r1", "k2"))
    assert belongings(store, "r1").in_force == {"c1": ("k3",)}  # k2 is their own, and goes
    put(store, change("c3", "r2", "k3"))
    assert belongings(store, "r1").in_force == {}


def test_what_was_erased_is_known_when_it_comes_again(store: FeedbackStore) -> None:
    log = [served("i1", "u1"), thumb("t1", "i1", "u2"), served("i2", "u2")]
    put(store, *log)
    erase(store, "u1")
    for again in (log, [served("i1", "u3", "other words")], [thumb("t9", "i1", "u2")], [rephrase("p", "i2", "i1")]):
        report = put(store, *again)
        refused = {one.id for one in report.refused}
        assert report.added == 0 and refused == {e["id"] for e in again} - {"i2"}
        assert all(one.erased and "i1" not in one.reason and "u1" not in one.reason for one in report.refused)
    assert put(store, served("i3", "u1")).added == 1  # they may come back
    assert store.waiting_count() == 0


class Message:
    def __init__(self, offset: int, value: bytes) -> None:
        self._offset, self._value = offset, value

    topic, key, partition = (lambda self: "t"), (lambda self: b"u1"), (lambda self: 0)
    timestamp, offset, value = (lambda self: (1, 5)), (lambda self: self._offset), (lambda self: self._value)


def consumed(store: FeedbackStore, *values: bytes, group: str = "g") -> None:
    batch = Batch(StreamSettings(brokers="b", topic="t", group=group))
    for offset, value in enumerate(values):
        batch.add(Message(offset, value))  # type: ignore[arg-type]
    store.append(batch.events, also=batch.save)


def test_what_names_the_erased_is_parked_without_its_bytes(store: FeedbackStore) -> None:
    put(store, served("i1", "u1", "a secret of theirs"))
    erase(store, "u1")
    whole = json.dumps(served("i1", "u3", "a secret of theirs")).encode()
    spoilt = (whole.replace(b'"m"', b"7"), whole[:-4], b'{"interaction" : "i1", "value": 7', b'[{"user":"u\\u0031"}]')
    others = (b'{"user": "u2", "comment": "the user\\": \\"u1"}', b'{"id": 7}', b"\xff u1", b'{"id": "\\ud800"}')
    consumed(store, *spoilt, *others)
    found = parked(store)
    assert [one.value for one in found] == [None] * 4 + list(others)
    assert all(one.key is None and "theirs" not in one.reason for one in found[:4])


def test_a_message_that_was_erased_where_it_was_parked_stays_so(store: FeedbackStore) -> None:
    put(store, served("i1", "u9", words := "a secret of theirs that is a long one"))
    values = (words.encode(), b'{"type": "thumb"}')
    consumed(store, *values)
    erase(store, "u9")
    before = parked(store)
    assert [one.value for one in before] == [None, values[1]]
    consumed(store, *values, group="another")
    assert parked(store) == before


def test_a_message_that_is_erased_is_parked_without_its_bytes(store: FeedbackStore) -> None:
    put(store, served("i1", "u1", "a secret of theirs"))
    erase(store, "u1")
    consumed(store, json.dumps(served("i1", "u1", "a secret of theirs")).encode(), b'{"type": "thumb"}')
    one, other = parked(store)
    assert (one.key, one.value) == (None, None) and "erased" in one.reason
    assert other.value == b'{"type": "thumb"}'


def test_the_answer_to_an_erased_event_is_given_and_not_kept(store: FeedbackStore) -> None:
    KeyTable(store)
    put(store, served("i1", "u1"))
    erase(store, "u1")
    again, other = served("i1", "u1"), served("i2", "u2")
    requests = [
        Request((Entry(parse_event(event)),), IdempotencyKey(f"{n}" * 64, "b" * 64))
        for n, event in ((1, again), (1, again), (2, other))
    ]
    first, second, third = store_group(store, requests, 3600.0)
    assert first and second and third
    assert [one[0].outcome for one in (first, second, third)] == ["refused", "refused", "added"]
    with store.reading() as connection:
        kept = connection.scalars(sa.select(answers.c.outcomes)).all()
    assert len(kept) == 1 and "i2" in kept[0]


def test_parked_messages_go_by_name_and_by_words(store: FeedbackStore) -> None:
    words = "something rather long that only they have said"
    put(store, served("i1", "u1", words), served("i2", "u12", "hi"))
    values = {
        "name": b'{"user":"u1"',
        "escaped": json.dumps({"said": words + " \u00e9"}).encode(),
        "another": b'{"user":"u12"}',
        "part": b"menu1",
    }
    park(store, **values)
    assert erase(store, "u1")["feedback_parked_messages"] == 2
    left: dict[str, ParkedMessage] = {one.topic: one for one in parked(store)}
    assert {name for name, one in left.items() if one.value is None} == {"name", "escaped"}
    assert left["another"].reason == "expected JSON, found 'x'" and left["name"].digest != "d" * 64


COMMON = ("user", "reply", "role", "kind", "1", "red", "home")


@pytest.mark.parametrize("name", COMMON)
def test_a_name_that_is_a_common_word_is_nobody_elses(store: FeedbackStore, name: str) -> None:
    put(store, served("i1", name), served("i2", "u2"))
    words = {"type": "thumb", "user": "u2", "id": "1x", "value": 1, "comment": f"the {name} said {COMMON}"}
    broken = f'{{"user": "u2", "kind": 1, "comment": "{name}'.encode()
    park(store, json=json.dumps(words).encode(), broken=broken, his=json.dumps(words | {"user": name}).encode())
    with store.writing() as connection:
        rows = [{"source": f"/home/{name}/log.jsonl", "offset_bytes": 1, "lines": 1, "digest": "d"}]
        rows += [{"source": f"/logs/{name}.jsonl", "offset_bytes": 1, "lines": 1, "digest": "d"}]
        connection.execute(sa.insert(tables.marks), rows)
    with store.reading() as connection:
        unsure = list(doubtful(connection, erased_of(store, name)))
    assert unsure == ["parked message broken/0/0", "parked message json/0/0"]  # for a person to look at
    planned = rows_to_change(store, erased_of(store, name))
    assert planned == {"feedback_events": 1, "feedback_parked_messages": 1, "feedback_refused_lines": 1}
    assert bodies(store).keys() == {"i1", "i2"}  # that was a plan
    assert erase(store, name) == planned
    assert {one.topic for one in parked(store) if one.value is None} == {"his"}
    assert store.mark(f"/home/{name}/log.jsonl") and not store.mark(f"/logs/{name}.jsonl")


def test_a_long_name_is_found_in_what_is_no_json(store: FeedbackStore) -> None:
    put(store, served("i1", "zilpzalp-7"))
    park(
        store, broken=b"no JSON of zilpzalp-7, as it is", other=b"no JSON of zilpzalp-77", key=b'{"from": "zilpzalp-7"}'
    )
    erase(store, "zilpzalp-7")
    assert {one.topic for one in parked(store) if one.value is None} == {"broken", "key"}


def test_whoever_is_only_in_what_became_no_event_is_mentioned(store: FeedbackStore) -> None:
    def is_there(name: str) -> bool:
        with store.reading() as connection:
            return mentioned(connection, erased_of(store, name))

    assert not is_there("u1")
    park(store, t=b'{"user":"u1", "value"')
    line = {"source": "a.jsonl", "line": 1, "reason": "time: expected ISO 8601, found 'u2'"}
    with store.writing() as connection:
        connection.execute(sa.insert(tables.refused_lines), [line])
    assert is_there("u1") and is_there("u2") and not is_there("u3") and not is_there("value")


def test_needles_are_found_in_either_case_across_blocks_and_in_every_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = [f"{n} things that only THEY have said, \u00dcberall {n}" for n in range(400)]
    needles = Needles("Zilpzalp", said, ("ann@example.org",))
    path, text = tmp_path / "file", said[399].lower().encode()
    monkeypatch.setattr("incremental_llm.feedback.erasure.needles._BLOCK", 64)
    for start in range(0, 80):
        path.write_bytes(b"." * start + text + b"." * 9)
        assert needles.in_file(path), start
        path.write_bytes(b"." * start + text[:-1])
        assert not needles.in_file(path), start
    assert (
        needles.in_bytes(b"by zilpzalp.") and not needles.in_bytes(b"by zilpzalps") and not needles.named(b"zilpzalp")
    )
    assert needles.his(b"<ANN@example.org>") and not needles.his(b"Zilpzalp") and needles.named(b"Zilpzalp")
    assert not Needles("u1").in_bytes(b"") and not Needles("u1").his(b"x" * 99)


def test_a_table_without_a_rule_stops_it(store: FeedbackStore) -> None:
    KeyTable(store)
    check_rules(store)
    with store.writing() as connection:
        connection.exec_driver_sql("CREATE TABLE feedback_of_tomorrow (id TEXT)")
    with pytest.raises(InputError, match="found none for feedback_of_tomorrow"):
        check_rules(store)
    check_rules(store, (*every_rule(), TableRule(("feedback_of_tomorrow",), lambda connection, erased: 0)))


def test_an_open_reader_is_named_and_the_next_call_ends_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables, "_BUSY_SECONDS", 0.1)  # it is waited for
    store = FeedbackStore(f"sqlite:///{tmp_path / 'feedback.db'}")
    put(store, served("i1", "u1", "a secret of theirs"))
    reader = sqlite3.connect(tmp_path / "feedback.db")
    reader.execute("BEGIN").execute("SELECT * FROM feedback_events").fetchall()
    erase(store, "u1")
    with pytest.raises(IncrementalError, match="expected no other program to read"):
        compact(store)
    reader.close()
    assert compact(store) == ""
    assert b"a secret" not in b"".join(path.read_bytes() for path in tmp_path.iterdir())


@pytest.mark.parametrize(
    ("reason", "left"),
    [
        ("value: expected 1 or -1, found 7", "value: expected 1 or -1"),
        ("unknown field 'secret' of thumb", "unknown field"),
        ("id 'x' is stored with other content: expected", "id"),
        ("expected plain JSON in valid Unicode, found otherwise (secret)", "expected plain JSON in valid Unicode"),
        ('time: expected ISO 8601, found "it\'s"', "time: expected ISO 8601"),
        ("expected JSON (lexical error: secret)", "expected JSON"),
    ],
)
def test_a_reason_keeps_nothing_that_it_quotes(reason: str, left: str) -> None:
    short = without_quotes(reason)
    assert short == f"{left} [what was found is erased]" and without_quotes(short) == short


def test_names_are_renamed_where_they_are_no_other_word() -> None:
    from incremental_llm.feedback.pseudonyms import Pseudonyms

    names = Renames({"k1", "60", "items", "user-0815", "zilpzalpig"}, Pseudonyms(b"k"))
    of = names.pseudonyms.of
    assert names.text("lost: k1, k12, 60 and 3 more.") == f"lost: {of('k1')}, k12, {of('60')} and 3 more."
    assert names.text("at most 1 may be: corrections/60.") == f"at most 1 may be: corrections/{of('60')}."
    assert names.text("ends 'k1' and \"items\"") == f"ends '{of('k1')}' and \"{of('items')}\""
    assert names.text("told by user-0815, not user-08151") == f"told by {of('user-0815')}, not user-08151"
    said = "old: 60.5 -> 45.0 (-15.5, interval -20.0 to -60, 60 items): worse; 60 of 60 items, of zilpzalpig"
    assert names.text(said) == said
    assert (names.name("k1"), names.name("k2")) == (of("k1"), "k2")
    assert Renames((), Pseudonyms(b"k")).text("'k1'") == "'k1'"
    assert Pseudonyms(b"k").of("k1") != Pseudonyms(b"l").of("k1")


PEOPLE = ("alpha", "beta", "gamma")


@st.composite
def logs(draw: st.DrawFn) -> list[dict[str, Any]]:
    """Interactions of three people and feedback on any of them, in any order."""
    count = draw(st.integers(1, 6))
    who = st.sampled_from(PEOPLE)
    about = st.integers(0, count)  # the last one never comes
    events = [served(f"i{n}", draw(who), f"asked {n}") for n in range(count)]
    for n in range(draw(st.integers(0, 8))):
        kind = draw(st.sampled_from((thumb, fixed, rephrase)))
        one, other = draw(about), draw(about)
        if kind is rephrase:
            events += [rephrase(f"f{n}", f"i{one}", f"i{other}")] if one != other else []
        else:
            events.append(kind(f"f{n}", f"i{one}", draw(who)))
    return draw(st.permutations(events))


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(log=logs(), person=st.sampled_from(PEOPLE))
def test_all_of_one_person_and_nothing_of_another(log: list[dict[str, Any]], person: str) -> None:
    owner = {event["id"]: event["user"] for event in log if event["type"] == "interaction"}

    def is_theirs(event: dict[str, Any]) -> bool:
        named = [event.get(key) for key in ("interaction", "followup")]
        return person in (event.get("user"), event.get("reviewer"), *(owner.get(str(name)) for name in named))

    with FeedbackStore("sqlite://") as store:
        put(store, *log)
        before, head = bodies(store), store.head()
        places = {stored.event.id: stored.seq for stored in store.read()}
        erase(store, person)
        theirs = {event["id"] for event in log if is_theirs(event)}
        assert bodies(store) == {name: body for name, body in before.items() if name not in theirs}
        after = {stored.event.id: stored.seq for stored in store.read()}
        assert sorted(after.values()) == list(range(1, store.head() + 1)) and store.head() >= head
        assert all(after[name] == seq for name, seq in places.items() if name not in theirs)
        names = pseudonyms(store)
        assert all(after[names.of(name)] == seq for name, seq in places.items() if name in theirs)
        again = put(store, *log)
        assert {one.id for one in again.refused} == theirs and again.added == 0
        with store.reading() as connection:
            dump = "\n".join(connection.connection.driver_connection.iterdump())  # type: ignore[union-attr]
        assert person not in dump
