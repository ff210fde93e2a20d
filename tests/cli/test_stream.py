from __future__ import annotations

import base64
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from incremental_llm import feedback
from incremental_llm.cli.stream import _Lines
from incremental_llm.feedback import ConsumeReport, FeedbackStore
from incremental_llm.feedback.parking import ParkedMessage, _save

WHERE = ("feedback", "consume", "--brokers", "b:9092", "--topic", "t", "--group", "g")


@pytest.fixture
def consumed(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What the command asked for; the last item is what it gets."""
    calls: list[Any] = [ConsumeReport(messages=7, added=4, duplicates=1, parked=2, waiting=1, deleted=3, lag=0)]

    def consume(store: Any, settings: Any, **more: Any) -> ConsumeReport:
        calls.insert(0, (settings, more))
        more["say"]("reading t, partitions 0, 1")
        return calls[-1]

    monkeypatch.setattr(feedback, "consume", consume)
    return calls


def test_consume_says_what_became_of_every_message(illm, workspace, consumed) -> None:
    done = illm(*WHERE, "--until-end")
    assert done.exit_code == 0, done.output
    assert "7 messages: 4 added, 1 known already, 2 parked; lag 0" in done.stdout
    assert "1 events in the store wait" in done.stdout
    assert "3 messages were deleted at the brokers before they were read" in done.stdout
    assert "reading t, partitions 0, 1" in done.stderr
    assert "next: illm feedback parked" in done.stderr
    settings, more = consumed[0]
    assert (settings.brokers, settings.topic, settings.group, more["until_end"]) == ("b:9092", "t", "g", True)


def test_consume_as_json(illm, workspace, consumed) -> None:
    done = illm(*WHERE, "--json")
    assert json.loads(done.stdout) == {
        **{"messages": 7, "added": 4, "duplicates": 1, "parked": 2, "waiting": 1, "deleted": 3, "lag": 0},
        "head": 8,
    }
    assert "next:" not in done.output


def test_options_come_from_a_file_and_from_the_command_line(illm, workspace, consumed) -> None:
    Path("client.properties").write_text(
        "# ours\n\nsasl.password = a=b\nsecurity.protocol=SASL_SSL\n", encoding="utf-8"
    )
    illm(*WHERE, "--options", "client.properties", "--option", "security.protocol=SSL")
    assert consumed[0][0].options == {"sasl.password": "a=b", "security.protocol": "SSL"}
    wrong = illm(*WHERE, "--option", "hunter2")
    assert wrong.exit_code == 2
    assert "expected KEY=VALUE as each option, found something else as number 1" in wrong.stderr
    assert "hunter2" not in wrong.output
    assert "expected a text file" in illm(*WHERE, "--options", "none.properties").stderr


def test_a_topic_without_one_event_is_wrong_input(illm, workspace, consumed) -> None:
    consumed[-1] = ConsumeReport(messages=2, parked=2)
    done = illm(*WHERE, "--until-end")
    assert done.exit_code == 2
    assert "expected events in 't', found not one: illm feedback parked --topic t" in done.stderr


def test_told_to_end_by_a_signal_it_ends_well(illm, workspace, monkeypatch) -> None:
    def consume(store: Any, settings: Any, *, stop: Any, **more: Any) -> ConsumeReport:
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.wait(10)
        return ConsumeReport(messages=1, added=1)

    monkeypatch.setattr(feedback, "consume", consume)
    before = signal.getsignal(signal.SIGTERM)
    done = illm(*WHERE)
    assert (done.exit_code, "told to end: after the batch at hand" in done.stderr) == (0, True)
    assert signal.getsignal(signal.SIGTERM) is before


def test_progress_is_a_line_every_few_seconds_with_the_rate(capsys: pytest.CaptureFixture[str]) -> None:
    times = iter([0.0, 1.0, 10.0, 20.0])
    lines = _Lines(lambda: next(times))
    lines(ConsumeReport(messages=50))
    lines(ConsumeReport(messages=1000, parked=3, lag=40))
    lines(ConsumeReport(messages=1000, parked=3, lag=40))
    assert capsys.readouterr().err == "1000 messages, 100 a second, lag 40, 3 parked\n"


def test_parked_shows_place_reason_and_bytes(illm, workspace, tmp_path) -> None:
    workspace.store = FeedbackStore(f"sqlite:///{tmp_path / 'feedback.db'}")
    rows = [
        ParkedMessage("t", 1, number, None, "expected JSON", b"k", b"oops \xff", 6, f"{number:064d}")
        for number in range(25)
    ]
    workspace.store.append((), also=lambda connection, refused: _save(connection, "t", "g", {1: 25}, rows))
    shown = illm("feedback", "parked")
    assert "oops \\xff" in shown.stdout and "expected JSON" in shown.stdout
    assert "and 5 more" in shown.stdout
    found = json.loads(illm("feedback", "parked", "--json").stdout)["parked"]
    assert len(found) == 25
    assert (found[0]["partition"], found[0]["time"], found[0]["key"]) == (1, None, base64.b64encode(b"k").decode())
    assert base64.b64decode(found[0]["value"]) == b"oops \xff"
    assert "parked messages: none" in illm("feedback", "parked", "--topic", "other").stdout
    workspace.store.close()


def test_neither_help_nor_the_package_imports_kafka() -> None:
    script = (
        "import sys\nimport incremental_llm.feedback\nfrom incremental_llm.cli import main\n"
        "sys.argv = ['illm', 'feedback', 'consume', '--help']\n"
        "try: main()\nfinally: print('confluent_kafka' in sys.modules, file=sys.stderr)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stderr.strip() == "False"


def test_without_the_extra_it_says_which(illm, workspace, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "confluent_kafka", None)
    done = illm(*WHERE)
    assert done.exit_code == 2
    assert "pip install 'incremental_llm[kafka]'" in done.stderr
