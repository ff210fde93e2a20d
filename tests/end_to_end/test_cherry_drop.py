"""One night leaves production: the later one is made again without it, by its own recipe and gate."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from incremental_llm.config import RunConfig
from incremental_llm.errors import InputError
from incremental_llm.replay import ReplayBuffer
from incremental_llm.workspace import Workspace

from .conftest import ANIMALS, BAD, GOOD, night, write_log


@pytest.fixture
def workspace(tiny_config: Callable[..., RunConfig], tmp_path: Path) -> Iterator[Workspace]:
    """Two nights in production, as the shop wanted them; the first one turned out to be wrong."""
    config = tiny_config()
    gate = config.gate.model_copy(update={"max_correction_losses": 0.9, "margin": 0.9})
    replay = config.replay.model_copy(update={"ratio": 0.5})
    with Workspace.create(config.model_copy(update={"gate": gate, "replay": replay})) as made:
        for number, said in ((1, (GOOD, BAD)), (2, ("we open at nine", "we close at two"))):
            made.import_feedback(write_log(tmp_path / f"log{number}.jsonl", night(number, *said)))
            outcome = made.run()
            assert outcome.version == number, outcome.reasons
        yield made


def test_an_increment_in_the_middle_goes_and_the_later_one_is_made_again(workspace: Workspace) -> None:
    registry, old = workspace.registry, workspace.registry.head()
    plan = workspace.plan_drop(1)
    assert (plan.start, plan.again, plan.head) == (0, (2,), 2)
    assert plan.seqs == tuple(range(1, 2 * len(ANIMALS) + 1))
    assert registry.head() == old and registry.quarantined() == frozenset()

    report = workspace.cherry_drop(1, "the shop had the terms wrong")
    assert report.decision is not None and report.decision.passed, (report.left_out, report.decision)
    assert (report.made, report.left_out, report.version) == ({2: 3}, {}, 3)
    head = registry.head()
    assert (head.version, head.cursor, len(head.stack.adapters)) == (3, old.cursor, 1)
    assert not set(head.stack.adapters) & set(old.stack.adapters)
    assert registry.quarantined() == set(plan.seqs)
    assert {one.outcome for one in registry.events_of(3)} and not [
        one.event for one in registry.events_of(3) if one.event.startswith("n1-")
    ]
    held = ReplayBuffer.read(registry.object_path(str(head.replay)) / "buffer.json")
    assert not [name for item in held.items for name in item.example.sources if name.startswith("n1-")]
    assert registry.verify() == []
    with pytest.raises(InputError, match="expected an increment that production 3 stands on, found one it does not"):
        workspace.cherry_drop(2, "again")

    newest = workspace.cherry_drop(3, "that as well")  # the newest one needs no training: a rollback
    assert (newest.version, newest.made, registry.head().stack.adapters) == (4, {}, ())
    with pytest.raises(InputError, match="found rollback"):
        workspace.cherry_drop(4, "no")
    assert registry.verify() == []


def test_a_line_that_is_worse_does_not_serve_and_quarantines_nothing(workspace: Workspace) -> None:
    registry, old = workspace.registry, workspace.registry.head()

    def idle(**arguments: Any) -> Any:
        """One step that changes nothing: what the night taught is not learnt."""
        from incremental_llm.training.increment import train_increment

        settings = arguments["settings"]
        phases = tuple(one.model_copy(update={"learning_rate": 1e-12, "max_steps": 1}) for one in settings.phases)
        return train_increment(**arguments | {"settings": settings.model_copy(update={"phases": phases})})

    strict = workspace.config.gate.model_copy(update={"max_correction_losses": 0.0})
    workspace.config = workspace.config.model_copy(update={"gate": strict})
    report = workspace.cherry_drop(1, "wrong", train=idle)
    assert report.version is None and set(report.left_out) == {2} and report.made == {}
    assert report.decision is not None and not report.decision.passed
    assert (registry.head(), registry.quarantined()) == (old, frozenset())
    assert registry.verify() == []
