from __future__ import annotations

from incremental_llm.registry.ancestry import draw


def shapes(world, to: int, last: int | None = None) -> list[str]:
    """The lines without times."""
    lines = draw(world.registry.ancestry(), to, last)
    return [line.split(", 2")[0] for line in lines]


def test_production_runs_down_and_what_was_undone_branches_off(world):
    for _ in range(3):
        world.night()
    world.registry.rollback(1, "worse")
    world.night()
    world.registry.tag("best", 1)
    assert shapes(world, 5) == [
        "v0  init",
        "v1 [best]  increment",
        "│ └─ v2  increment",
        "│ └─ v3  increment",
        "v4  rollback to 1 from 3",
        "v5 [production]  increment",
    ]
    assert shapes(world, 3)[2:] == [
        "│ └─ v4  rollback to 1 from 3",
        "│ └─ v5 [production]  increment",
        "v2  increment",
        "v3  increment",
    ]
    assert shapes(world, 5, last=2) == [
        "… 2 earlier versions",
        "v4  rollback to 1 from 3",
        "v5 [production]  increment",
    ]


def test_branches_of_branches_are_indented_further(world):
    world.night()
    world.night()
    world.registry.rollback(1, "a")
    world.registry.rollback(2, "b")
    world.registry.rollback(0, "c")
    assert shapes(world, 5) == [
        "v0  init",
        "│ └─ v1  increment",
        "│    ├─ v2  increment",
        "│    │  └─ v4  rollback to 2 from 3",
        "│    └─ v3  rollback to 1 from 2",
        "v5 [production]  rollback to 0 from 4",
    ]


def test_a_long_chain_is_drawn_without_recursion(world):
    nodes = world.registry.ancestry()
    chain = [nodes[0].model_copy(update={"version": n, "continues": n - 1 if n else None}) for n in range(5000)]
    assert len(list(draw(chain, 0))) == 5000
    assert len(list(draw(chain, 4999, last=3))) == 4


def test_nodes_say_what_each_version_read(world):
    world.night(events=7)
    node = world.registry.ancestry()[1]
    assert (node.continues, node.events, node.adapters, node.refs) == (0, 7, 1, ("production",))
