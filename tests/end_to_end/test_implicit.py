"""What users did in one night against what they said in another: words win, however few said them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from incremental_llm.config import RunConfig
from incremental_llm.pending import compile_pending, read_pending, replayable
from incremental_llm.workspace import Workspace

from .conftest import BAD, GOOD, night, write_log

Config = Callable[..., RunConfig]


def served(name: str) -> dict[str, Any]:
    head = {"type": "interaction", "id": name, "time": "2026-11-01T13:00:00Z", "conversation": name, "user": "eve"}
    messages = [{"role": "user", "content": "Where is the spade now?"}]
    return head | {"messages": messages, "reply": "It is in the shed.", "model": "production"}


def said(kind: str, user: str, interaction: str, **fields: Any) -> dict[str, Any]:
    head = {"type": kind, "id": f"{interaction}-{user}", "time": "2026-11-02T14:00:00Z", "user": user}
    return head | {"interaction": interaction, **fields}


@pytest.mark.parametrize(("said_first", "left"), [(True, (1, 1)), (False, (0, 0))])
def test_what_was_said_stands_in_the_buffer_against_what_was_done(
    said_first: bool, left: tuple[int, int], tmp_path: Path, tiny_config: Config
) -> None:
    """One user's thumb, then nine who leave; or nine who copy, then one user's thumb down."""
    config = tiny_config()
    allowed = config.compile.model_copy(
        update={"weights": config.compile.weights.model_copy(update={"abandoned": 0.1})}
    )
    config = config.model_copy(update={"compile": allowed})
    many = [f"u{n}" for n in range(9)]
    first = [said("thumb", "u0", "it", value=1)] if said_first else [said("copy", user, "it") for user in many]
    then = (
        [said("abandon", f"v{user}", "again") for user in many]
        if said_first
        else [said("thumb", "v0", "again", value=-1)]
    )
    with Workspace.create(config) as workspace:
        log = [*night(1, GOOD, BAD), served("it"), *first]
        workspace.import_feedback(write_log(tmp_path / "n1.jsonl", log))
        assert workspace.run().decision == "promoted"
        workspace.import_feedback(write_log(tmp_path / "n2.jsonl", [served("again"), *then, *night(2, BAD, GOOD)]))
        todo = read_pending(workspace.registry, workspace.store, workspace.config)
        dataset = compile_pending(todo, workspace.config, (), workspace.tokenizer)
        replay = replayable(todo, dataset, workspace.config, ())
    assert any(example.implicit for example in dataset.examples) is said_first
    buffers = (replay.kept, replay.tonight)
    assert tuple(sum("it" in item.example.sources for item in buffer.items) for buffer in buffers) == left
