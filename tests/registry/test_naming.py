from __future__ import annotations

import pytest

from incremental_llm.errors import CommitError, InputError, PreconditionFailed, UnknownRefError


def test_a_tag_names_a_version_for_good_and_resolves_everywhere(world):
    world.night()
    world.night()
    assert world.registry.tag("before-sale", 1, "the last one before the sale").version == 1
    assert world.registry.tags() == {"before-sale": 1}
    assert world.registry.get("before-sale") == world.registry.get(1)
    assert world.registry.tag("before-sale", "v1").version == 1  # again, as after a commit whose state is unknown
    with pytest.raises(PreconditionFailed, match=r"expected it to be new, found it on version 1.*untag before-sale"):
        world.registry.tag("before-sale", 2)
    assert world.registry.tags() == {"before-sale": 1}
    assert world.registry.promote("before-sale").version == 1
    assert world.registry.rollback("v2", "x").restores == 2
    assert world.registry.events_of("before-sale") == ()
    assert world.registry.verify() == []


def test_a_tag_that_was_taken_back_may_name_another_version(world):
    world.night()
    world.registry.tag("best", 0)
    assert world.registry.untag("best") == 0
    with pytest.raises(UnknownRefError, match=r"unknown ref 'best'"):
        world.registry.get("best")
    with pytest.raises(UnknownRefError, match="there are none"):
        world.registry.untag("best")
    assert world.registry.tag("best", 1).version == 1
    with world.registry._read() as connection:
        rows = connection.exec_driver_sql("select version, removed is null from tags order by number").all()
    assert [tuple(row) for row in rows] == [(0, False), (1, True)]  # what it once meant can still be looked up


def test_an_alias_moves_and_its_moves_are_logged(world):
    world.night()
    world.registry.alias("shadow", 0)
    world.registry.alias("shadow", "production", expected=0, reason="follow")
    assert world.registry.get("shadow").version == 1
    assert [(move.before, move.after) for move in world.registry.history("shadow")] == [(None, 0), (0, 1)]
    with pytest.raises(PreconditionFailed, match="expected shadow to be version 0, found version 1"):
        world.registry.alias("shadow", 1, expected=0)
    assert world.registry.verify() == []


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("production", "moves only by a passed gate"),
        ("canary", "moves only by a passed gate"),
        ("rebuild", "made again"),
        ("v3", "does not read as a version"),
        ("3", "begins with a letter"),
        ("", "begins with a letter"),
        ("a b", "letters, digits"),
        ("../x", "letters, digits"),
        ("-rf", "letters, digits"),
        ("a" * 65, "at most 64"),
        ("name\n", "letters, digits"),
    ],
)
def test_what_is_no_name_is_refused(world, name, found):
    for give in (world.registry.tag, world.registry.alias):
        with pytest.raises(InputError, match=found):
            give(name, 0)
    assert (world.registry.tags(), world.registry.refs()) == ({}, {"production": 0})


def test_a_tag_and_an_alias_never_have_one_name(world):
    world.registry.tag("one", 0)
    world.registry.alias("two", 0)
    with pytest.raises(InputError, match="found a tag"):
        world.registry.alias("one", 0)
    with pytest.raises(InputError, match="found a ref"):
        world.registry.tag("two", 0)
    with pytest.raises(CommitError, match="expected tag one to be absent"):
        world.registry.begin_line("one", 0, "x")


def test_unknown_names_say_the_nearest_tag(world):
    world.registry.tag("before-sale", 0)
    with pytest.raises(UnknownRefError, match="did you mean 'before-sale'"):
        world.registry.get("before-sal")


@pytest.mark.parametrize("point", ["begun", "before write 0", "before commit", "committing", "committed"])
def test_a_failure_leaves_the_tag_or_none(world, point):
    def fail(name: str) -> None:
        if name == point:
            raise OSError(28, "No space left on device")

    with pytest.raises(CommitError):
        world.open(failpoint=fail).tag("one", 0)
    assert world.registry.tags() == ({"one": 0} if point == "committed" else {})
    assert world.registry.tag("one", 0).version == 0
