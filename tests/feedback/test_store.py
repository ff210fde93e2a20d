"""The store: one dense sequence, nothing twice, nothing half, nothing skipped."""

from __future__ import annotations

import itertools
import sqlite3
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from incremental_llm.errors import InputError, IntegrityError
from incremental_llm.feedback import (
    Event,
    EventError,
    FeedbackStore,
    Interaction,
    Thumb,
    UnknownEvent,
    parse_event,
    tables,
)
from incremental_llm.feedback.serving import serving_of
from incremental_llm.feedback.store import ImportMark, ImportStep

TIME = "2026-11-01T12:00:00Z"


def served(name: str, reply: str = "yes") -> Event:
    body = {"conversation": "c", "user": "u", "messages": [{"role": "user", "content": name}], "reply": reply}
    return parse_event({"type": "interaction", "id": name, "time": TIME, "model": "m", **body})


def thumb(name: str, interaction: str, value: int = 1) -> Event:
    judged = {"interaction": interaction, "user": "u", "value": value}
    return parse_event({"type": "thumb", "id": name, "time": TIME, **judged})


def prefers(name: str, chosen: str, rejected: str) -> Event:
    both = {"chosen": chosen, "rejected": rejected, "user": "u"}
    return parse_event({"type": "preference", "id": name, "time": TIME, **both})


@pytest.fixture
def store(tmp_path: Path) -> Iterator[FeedbackStore]:
    with FeedbackStore(f"sqlite:///{tmp_path / 'feedback.db'}") as opened:
        yield opened


def ids(store: FeedbackStore, **bounds: int) -> list[tuple[int, str]]:
    return [(stored.seq, stored.event.id) for stored in store.read(**bounds)]


def test_an_empty_store(store: FeedbackStore) -> None:
    assert (store.head(), ids(store), store.waiting(), store.counts()) == (0, [], [], {})


def test_events_come_back_in_order_and_whole(store: FeedbackStore) -> None:
    events = [served("i1", "a\u2028b\x00c"), thumb("t1", "i1"), served("i2")]
    assert store.append(events).added == 3
    assert [stored.event for stored in store.read()] == events
    assert ids(store) == [(1, "i1"), (2, "t1"), (3, "i2")]
    assert store.counts() == {"interaction": 2, "thumb": 1}


def test_a_range_is_half_open_and_types_can_be_chosen(store: FeedbackStore) -> None:
    store.append([served("i1"), thumb("t1", "i1"), served("i2"), thumb("t2", "i2")])
    assert ids(store, after=1, until=3) == [(2, "t1"), (3, "i2")]
    assert ids(store, after=4) == []
    assert [s.event.id for s in store.read(types=("thumb",))] == ["t1", "t2"]


def test_reading_takes_a_page_at_a_time_and_ends_although_writers_go_on(store: FeedbackStore) -> None:
    store.append([served(f"i{n}") for n in range(5)])
    reader = store.read(chunk=2)
    seen = [next(reader).seq]
    store.append([served("late")])
    assert seen + [stored.seq for stored in reader] == [1, 2, 3, 4, 5]


def test_an_equal_event_is_a_duplicate_and_an_unequal_one_is_refused(store: FeedbackStore) -> None:
    store.append([served("i1")])
    report = store.append([served("i1"), served("i1", "no"), served("i2"), served("i2"), served("i2", "no")])
    assert (report.added, report.duplicates) == (1, 2)
    assert [(refused.id, refused.position) for refused in report.refused] == [("i1", 1), ("i2", 4)]
    assert "stored with other content" in report.refused[0].reason
    assert ids(store) == [(1, "i1"), (2, "i2")]


def test_an_event_waits_for_its_interaction_and_then_gets_the_next_number(store: FeedbackStore) -> None:
    assert store.append([thumb("t1", "i1"), thumb("t2", "i1"), served("i0")]).waiting == 2
    assert [event.id for event in store.waiting()] == ["t1", "t2"]
    assert ids(store) == [(1, "i0")]
    assert store.get(["t1", "i0", "none"]).keys() == {"i0"}
    assert store.append([served("i1"), served("i2")]).waiting == 0
    assert ids(store, after=1) == [(2, "i1"), (3, "t1"), (4, "t2"), (5, "i2")]
    assert store.waiting() == []


def test_a_preference_waits_for_both_replies(store: FeedbackStore) -> None:
    store.append([prefers("p1", "i1", "i2")])
    store.append([served("i2")])
    assert ids(store) == [(1, "i2")]
    store.append([served("i1")])
    assert ids(store) == [(1, "i2"), (2, "i1"), (3, "p1")]


def test_waiting_within_one_append_keeps_the_order_of_arrival(store: FeedbackStore) -> None:
    store.append([thumb("t9", "i1"), thumb("t1", "i1")])
    store.append([thumb("t5", "i1"), served("i1"), thumb("t4", "i1")])
    assert [name for _, name in ids(store)] == ["i1", "t9", "t1", "t5", "t4"]


def test_only_an_interaction_ends_the_wait(store: FeedbackStore) -> None:
    store.append([served("i1"), thumb("t1", "i1"), thumb("t2", "t1")])
    assert [event.id for event in store.waiting()] == ["t2"]


def test_a_policy_change_waits_for_nothing(store: FeedbackStore) -> None:
    change = {"type": "policy_change", "id": "c1", "time": TIME, "reviewer": "r", "supersedes": ["unknown"]}
    store.append([parse_event(change)])
    assert ids(store) == [(1, "c1")]


def test_what_raises_in_the_middle_leaves_the_last_committed_state(store: FeedbackStore) -> None:
    store.append([served("i1"), thumb("t9", "late")])

    def broken() -> Iterator[Event]:
        for n in range(700):  # more than a chunk: rows were written already
            yield served(f"j{n}")
        yield served("late")
        raise RuntimeError("killed")

    with pytest.raises(RuntimeError, match="killed"):
        store.append(broken(), step=ImportStep(ImportMark("log", 10, 1, "d")))
    assert ids(store) == [(1, "i1")]
    assert [event.id for event in store.waiting()] == ["t9"]
    assert store.mark("log") is None
    store.append([served("late")])
    assert ids(store, after=1) == [(2, "late"), (3, "t9")]


def test_many_chunks_in_one_append(store: FeedbackStore) -> None:
    store.append([thumb(f"t{n}", f"i{n % 7}") for n in range(1200)])
    report = store.append([served(f"i{n}") for n in range(1200)])
    assert (report.waiting, store.head()) == (0, 2400)
    assert [seq for seq, _ in ids(store)] == list(range(1, 2401))


def test_two_writers_neither_lose_nor_double_numbers(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'feedback.db'}"
    failures: list[BaseException] = []

    def write(writer: int) -> None:
        try:
            with FeedbackStore(url) as own:
                for n in range(12):
                    own.append([thumb(f"t{writer}-{n}", f"i{1 - writer}-{n}"), served(f"i{writer}-{n}")])
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=write, args=(n,)) for n in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    with FeedbackStore(url) as store:
        events = list(store.read())
    assert [stored.seq for stored in events] == list(range(1, 49))
    place = {stored.event.id: stored.seq for stored in events}
    assert all(place[s.event.id] > place[s.event.interaction] for s in events if isinstance(s.event, Thumb))


_EVENTS = st.lists(
    st.one_of(
        st.builds(served, st.sampled_from(["i0", "i1", "i2", "i3"]), st.sampled_from(["yes", "no"])),
        st.builds(thumb, st.sampled_from(["t0", "t1", "t2"]), st.sampled_from(["i0", "i1", "i2", "i9"])),
        st.builds(prefers, st.sampled_from(["p0", "p1"]), st.sampled_from(["i0", "i1"]), st.sampled_from(["i2", "i3"])),
    ),
    max_size=12,
)


@settings(max_examples=60, deadline=None)
@given(events=_EVENTS, cut=st.integers(0, 12))
def test_no_event_is_lost_and_a_cursor_sees_all_once(events: list[Event], cut: int) -> None:
    first = {event.id: event for event in reversed(events)}
    with FeedbackStore("sqlite://") as store:
        cursor, seen = 0, []
        totals = [0, 0, 0]
        for part in (events[:cut], events[cut:], events[:cut]):
            report = store.append(part)
            totals = [
                a + b for a, b in zip(totals, (report.added, report.duplicates, len(report.refused)), strict=True)
            ]
            seen += list(store.read(after=cursor))
            cursor = store.head()
        waiting = store.waiting()
        assert sum(totals) == len(events) + len(events[:cut])
        assert totals[0] == len(first)
        assert [stored.seq for stored in seen] == list(range(1, len(seen) + 1))
        assert {e.id: e for e in itertools.chain((s.event for s in seen), waiting)} == first


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"expected a folder .*nowhere, found none"):
        FeedbackStore(f"sqlite:///{tmp_path / 'nowhere' / 'f.db'}")


def test_a_file_that_is_no_database(tmp_path: Path) -> None:
    (tmp_path / "f.db").write_text("something else, long enough to be read as a header of a file" * 9)
    with pytest.raises(InputError, match="expected a database that can be opened"):
        FeedbackStore(f"sqlite:///{tmp_path / 'f.db'}")


def test_an_url_that_is_none() -> None:
    with pytest.raises(InputError, match="expected a database URL"):
        FeedbackStore("feedback.db")


def test_a_store_of_another_version(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'f.db'}"
    FeedbackStore(url).close()
    _sql(tmp_path / "f.db", "UPDATE feedback_counters SET value = 9 WHERE name = 'schema'")
    with pytest.raises(InputError, match="expected schema 2, found 9"):
        FeedbackStore(url)


def test_who_said_something_and_what_is_about_it(store: FeedbackStore) -> None:
    change = {"type": "policy_change", "id": "c1", "time": TIME, "reviewer": "r1", "supersedes": ["i1", "i1", "t1"]}
    odd = {"type": "page_view", "id": "v1", "user": "u", "interaction": ["i1"], "reviewer": "\x00"}
    store.append([thumb("t2", "late"), served("i1"), served("i2"), thumb("t1", "i1"), prefers("p1", "i2", "i1")])
    store.append([parse_event(change), parse_event(odd), thumb("t1", "i1")])
    assert [place.id for place in store.by_person("u")] == ["t2", "i1", "i2", "t1", "p1", "v1"]
    assert store.by_person("u")[0].seq is None and store.by_person("r1")[0].type == "policy_change"
    assert [place.id for place in store.about("i1")] == ["t1", "p1", "c1"]
    assert [place.id for place in store.about("t1")] == ["c1"]
    assert store.about("nothing") == store.by_person("\x00") == ()


def test_a_store_made_before_links_gets_them_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables, "_UPGRADE_ROWS", 2)
    file, events = tmp_path / "f.db", [served("i1"), thumb("t1", "i1"), served("i2"), prefers("p1", "i2", "i1")]
    with FeedbackStore(f"sqlite:///{file}") as store:
        store.append([*events, thumb("t9", "late")])
        linked = store.by_person("u"), store.about("i1"), store.about("late")
    _sql(file, "DROP TABLE feedback_links")
    _sql(file, "UPDATE feedback_counters SET value = 1 WHERE name = 'schema'")
    for _ in range(2):
        with FeedbackStore(f"sqlite:///{file}") as store:
            assert (store.by_person("u"), store.about("i1"), store.about("late")) == linked
            assert len(linked[0]) == 5


def test_an_upgrade_that_fails_leaves_the_store_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "f.db"
    with FeedbackStore(f"sqlite:///{file}") as store:
        store.append([served("i1"), thumb("t1", "i1")])
    _sql(file, "DELETE FROM feedback_links")
    _sql(file, "UPDATE feedback_counters SET value = 1 WHERE name = 'schema'")
    with monkeypatch.context() as broken:
        broken.setattr(tables, "links_of", lambda body: 1 / 0 if body["id"] == "t1" else [])
        with pytest.raises(ZeroDivisionError):
            FeedbackStore(f"sqlite:///{file}")
    with FeedbackStore(f"sqlite:///{file}") as store:
        assert [place.id for place in store.by_person("u")] == ["i1", "t1"]


def test_a_body_changed_by_other_hands(tmp_path: Path, store: FeedbackStore) -> None:
    store.append([served("i1")])
    _sql(tmp_path / "feedback.db", "UPDATE feedback_events SET body = '{}'")
    with pytest.raises(IntegrityError, match="changed by other hands"):
        list(store.read())


def test_files_are_durable_and_written_ahead(tmp_path: Path, store: FeedbackStore) -> None:
    assert _sql(tmp_path / "feedback.db", "PRAGMA journal_mode") == [("wal",)]
    with store._engine.connect() as connection:
        assert connection.exec_driver_sql("PRAGMA synchronous").scalar() == 2  # FULL


def _sql(path: Path, statement: str) -> list[tuple[object, ...]]:
    connection = sqlite3.connect(path)
    try:
        with connection:
            return connection.execute(statement).fetchall()
    finally:
        connection.close()


def test_what_was_stored_before_its_type_was_known_stays_readable(store: FeedbackStore) -> None:
    """A log of an earlier version kept these whole, in whatever shape; one that fits is read as what it is by now."""
    odd = {"type": "copy", "id": "y1", "time": "yesterday", "text": "30 days"}
    fits = {"type": "ranking", "id": "o1", "time": TIME, "replies": ["i1", "i2"], "user": "u"}
    block = {"channel": "web", "serving": "eu-west"}
    asked = {
        "conversation": "c",
        "user": "u",
        "messages": [{"role": "user", "content": "?"}],
        "reply": "a",
        "model": "m",
    }
    old = [
        UnknownEvent(id="y1", time=None, type="copy", body=odd),
        UnknownEvent(id="o1", time=parse_event(fits).time, type="ranking", body=fits),
        Interaction.model_validate({"type": "interaction", "id": "i9", "time": TIME, "metadata": block, **asked}),
    ]
    store.append(old)
    copied, ranked, answered = (stored.event for stored in store.read())
    assert copied == old[0]
    assert ranked == parse_event(fits)
    assert answered == old[2] and serving_of(block) is None
    assert store.append([served("i1"), parse_event(fits)]).duplicates == 1
    with pytest.raises(EventError):
        parse_event(odd)


def test_a_ranking_waits_for_all_its_replies_and_each_of_them_finds_it(store: FeedbackStore) -> None:
    ranking = parse_event({"type": "ranking", "id": "o1", "time": TIME, "replies": ["i2", "i3", "i1"], "user": "u"})
    assert store.append([served("i1"), ranking, served("i3")]).waiting == 1
    assert store.append([served("i2")]).waiting == 0
    assert ids(store)[-1] == (4, "o1")
    for name in ("i1", "i2", "i3"):
        assert [place.id for place in store.about(name)] == ["o1"]
    assert "o1" in [place.id for place in store.by_person("u")]
