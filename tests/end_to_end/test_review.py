"""What a night leaves to people goes into the review queue, and comes back as feedback for the next."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy.exc import OperationalError

from incremental_llm.config import RunConfig
from incremental_llm.errors import InputError, NothingToTrainError
from incremental_llm.feedback.review import ReviewQueue
from incremental_llm.nightly import summary
from incremental_llm.unsettled import review_queue
from incremental_llm.workspace import Workspace

from .conftest import BAD, GOOD, night, write_log

Config = Callable[..., RunConfig]


def tie() -> list[dict[str, Any]]:
    """A reply that one user praises and another blames."""
    asked = [{"role": "user", "content": "Does the shop sell tents?"}]
    clock = "2026-11-01T09:00:00Z"
    served = {"type": "interaction", "id": "i1", "time": clock, "conversation": "c", "user": "u1", "messages": asked}
    thumb = {"type": "thumb", "time": clock, "interaction": "i1"}
    return [
        served | {"reply": GOOD, "model": "production"},
        thumb | {"id": "t1", "user": "u1", "value": 1},
        thumb | {"id": "t2", "user": "u2", "value": -1},
    ]


def test_a_tie_is_asked_about_and_its_answer_is_trained(tmp_path: Path, tiny_config: Config) -> None:
    with Workspace.create(tiny_config()) as workspace:
        with pytest.raises(InputError, match="expected pairs that production v0 was made from, found none"):
            workspace.fill_review(1)
        workspace.import_feedback(write_log(tmp_path / "n0.jsonl", tie()))
        with pytest.raises(NothingToTrainError, match="1 to review, 1 of them new: illm review list"):
            workspace.run()
        assert workspace.fill_review() == 0
        queue = review_queue(workspace.store, workspace.config)
        claim = queue.next("r9")
        assert claim is not None
        assert (claim.item.proposal.reply, claim.item.proposal.reason) == (GOOD, "conflict")
        queue.decide(claim.item.id, "r9", "accept")
        workspace.import_feedback(write_log(tmp_path / "n1.jsonl", night(1, GOOD, BAD)))
        outcome = workspace.run()
        assert outcome.decision == "promoted", outcome.reasons
        assert ("r9",) in [example.users for example in outcome.dataset.sft]
        assert not any("to review" in line for line in summary(outcome))
        assert workspace.fill_review(3) == 3
        assert [item.proposal.kind for item in queue.items(states=["open"])] == ["low_margin"] * 3


def test_a_queue_that_fails_is_said_and_stops_no_night(
    tmp_path: Path, tiny_config: Config, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(self: ReviewQueue, proposals: Any) -> int:
        raise OperationalError("insert", {}, Exception("database is locked"))

    monkeypatch.setattr(ReviewQueue, "add", broken)
    with Workspace.create(tiny_config()) as workspace:
        workspace.import_feedback(write_log(tmp_path / "n1.jsonl", [*tie(), *night(1, GOOD, BAD)]))
        with caplog.at_level(logging.ERROR):
            outcome = workspace.run()
    assert outcome.decision == "promoted", outcome.reasons
    assert any("could not be filled (OperationalError): illm review fill" in line for line in summary(outcome))
    assert "the review queue could not be filled" in caplog.text
