"""A patch of production by a correction's id: which prompts are around it, and what it leaves alone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from incremental_llm.chat import Message
from incremental_llm.config import RunConfig
from incremental_llm.dataset.examples import SftExample
from incremental_llm.errors import InputError
from incremental_llm.evaluation import all_questions, load_suites
from incremental_llm.patch_run import patch_folder, prompts_around
from incremental_llm.replay import ReplayBuffer
from incremental_llm.training.settings import PatchSettings
from incremental_llm.workspace import Workspace

from .conftest import ANIMALS, BAD, GOOD, night, write_log

Config = Callable[..., RunConfig]
LENIENT = {"learning_rate": 3e-2, "steps": 100, "kl_weight": 0.1, "max_new_tokens": 4, "rank": 8, "nll": 1.0}
LENIENT |= {"neighbours_may_move": 1.0, "unrelated_may_move": 1.0}


def test_a_correction_is_patched_and_nothing_of_the_workspace_changes(
    tmp_path: Path, tiny_config: Config, ending_model_dir: Path
) -> None:
    with Workspace.create(tiny_config().model_copy(update={"base": str(ending_model_dir)})) as workspace:
        workspace.import_feedback(write_log(tmp_path / "n1.jsonl", night(1, GOOD, BAD)))
        record = workspace.patch("n1-k3", prompts=["Is the fox late?"], settings=PatchSettings(**LENIENT))
        assert record.answer_after == GOOD
        assert record.adapter == workspace.config.workspace / "patches" / "n1-k3" / "adapter"
        # Thirteen other questions have the same right answer, so only the suite's and the given one are neighbours.
        assert record.neighbours.count == 1 + 6
        assert len(workspace.registry.list()) == 1 and not workspace.registry.attempts()
        with pytest.raises(InputError, match="n1-k3 exists"):
            workspace.patch("n1-k3")
        assert workspace.run().version == 1  # the correction is still the next increment's


@pytest.mark.parametrize(
    ("event", "said"),
    [
        ("nobody", "expected the id of a correction in the log, found no event of this id"),
        ("n1-i3", "expected the id of a correction in the log, found a interaction"),
        ("n1-k3", "one that is left out: superseded"),
        ("pii", "one that is left out: personal_data"),
    ],
)
def test_what_no_increment_would_learn_is_no_patch(event: str, said: str, tmp_path: Path, tiny_config: Config) -> None:
    config = tiny_config()
    settings = config.compile.model_copy(update={"policy_reviewers": frozenset({"r0"})})
    change = {"type": "policy_change", "id": "p1", "time": "2026-11-02T12:00:00Z", "reviewer": "r0"}
    private = {"type": "correction", "id": "pii", "time": "2026-11-02T12:00:00Z", "interaction": "n1-i5"}
    private |= {"reviewer": "r9", "content": "Ask Jane at jane.doe@example.com, she knows."}
    events = [*night(1, GOOD, BAD), change | {"supersedes": ["n1-k3"], "note": "no"}, private]
    with Workspace.create(config.model_copy(update={"compile": settings})) as workspace:
        workspace.import_feedback(write_log(tmp_path / "log.jsonl", events))
        with pytest.raises(InputError, match=said):
            workspace.patch(event)
        assert not (workspace.config.workspace / "patches").exists()


def test_neighbours_are_near_and_suites_are_checked_but_never_held(tmp_path: Path, tiny_config: Config) -> None:
    config = tiny_config()
    other = night(2, "we open at nine", "we close at two")  # "Was the fox here?", and so on
    with Workspace.create(config) as workspace:
        workspace.import_feedback(write_log(tmp_path / "n1.jsonl", [*night(1, GOOD, BAD), *other]))
        asked = all_questions(config.suites.folder)
        prompt = (Message(role="user", content="Is the fox here?"),)
        example = SftExample(prompt=prompt, completion=GOOD, sources=("n1-k0",), users=("r0",))
        found = prompts_around(
            example,
            ReplayBuffer(),
            load_suites(config.suites.folder, ["tiny"]),
            workspace.store,
            asked,
            ("given",),
            PatchSettings(neighbours=8, unrelated=5),
            config,
        )
    near = [prompt[-1].content for prompt in found.neighbours]
    held = [prompt[-1].content for prompt in found.held]
    far = [prompt[-1].content for prompt in found.unrelated]
    assert near[:2] == ["given", "Was the fox here?"]
    assert len(near) == 9 and len(far) == 5
    assert not {f"Is the {animal} here?" for animal in ANIMALS} & {*near, *held}  # the same answer is right there
    assert not {*near, *far} & set(held)
    assert not set(asked) & set(held)


def test_a_folder_is_named_after_what_is_safe_in_an_id(tmp_path: Path) -> None:
    assert patch_folder(tmp_path, "n1-k3") == tmp_path / "patches" / "n1-k3"
    odd: Any = [patch_folder(tmp_path, event).name for event in ("../../k", "..|..|k")]
    assert odd[0] != odd[1] and all("/" not in name and "." not in name for name in odd)
