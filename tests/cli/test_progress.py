from __future__ import annotations

import io

import pytest
from hypothesis import given
from hypothesis import strategies as st

from incremental_llm.cli.progress import SECONDS_BETWEEN_LINES, BarProgress, PlainProgress, progress_reporter


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def plain() -> tuple[PlainProgress, io.StringIO, Clock]:
    stream, clock = io.StringIO(), Clock()
    return PlainProgress(stream, clock), stream, clock


def test_a_line_at_the_start_every_few_seconds_and_at_the_end() -> None:
    progress, stream, clock = plain()
    for done in range(21):  # one second a step
        progress("training sft", done, 20, 2.0 - done / 20)
        clock.now += 1
    assert stream.getvalue().splitlines() == [
        "[    0.0 s] training sft 0/20 (0 %), loss 2.0000",
        "[    5.0 s] training sft 5/20 (25 %), loss 1.7500",
        "[   10.0 s] training sft 10/20 (50 %), loss 1.5000",
        "[   15.0 s] training sft 15/20 (75 %), loss 1.2500",
        "[   20.0 s] training sft 20/20 (100 %), loss 1.0000, 20.0 s",
    ]


def test_a_new_stage_ends_the_one_before_and_begins_at_once() -> None:
    progress, stream, clock = plain()
    progress("evaluating general", 3, 200)
    clock.now += 2
    progress("evaluating shop", 0, 40)
    progress.finish()
    assert stream.getvalue().splitlines() == [
        "[    0.0 s] evaluating general 3/200 (2 %)",
        "[    2.0 s] evaluating general 3/200 (2 %), 2.0 s",
        "[    2.0 s] evaluating shop 0/40 (0 %)",
        "[    2.0 s] evaluating shop 0/40 (0 %), 0.0 s",
    ]


def test_a_stage_that_said_its_end_is_not_ended_twice() -> None:
    progress, stream, _ = plain()
    progress("compiling", 1, 1)
    progress("compiling", 1, 1)
    progress.finish()
    assert stream.getvalue() == "[    0.0 s] compiling 1/1 (100 %), 0.0 s\n"


def test_an_unknown_total_counts_up() -> None:
    progress, stream, clock = plain()
    progress("reading", 0, 0)
    clock.now += SECONDS_BETWEEN_LINES
    progress("reading", 512, 0)
    assert stream.getvalue().splitlines() == ["[    0.0 s] reading", "[    5.0 s] reading 512"]


def test_an_error_names_the_stage_it_struck_in() -> None:
    stream = io.StringIO()
    with pytest.raises(ZeroDivisionError), progress_reporter(stream) as progress:
        progress("training dpo", 3, 10)
        raise ZeroDivisionError
    assert "stopped during training dpo 3/10 (30 %)" in stream.getvalue()


def test_say_is_a_line_of_its_own() -> None:
    progress, stream, _ = plain()
    progress.say("fetching the base model")
    assert stream.getvalue() == "[    0.0 s] fetching the base model\n"


@given(st.lists(st.tuples(st.sampled_from("abc"), st.floats(0, 2)), max_size=40))
def test_never_more_lines_than_stages_and_seconds_allow(calls: list[tuple[str, float]]) -> None:
    progress, stream, clock = plain()
    stages, last = 0, None
    for what, seconds in calls:
        stages += what != last
        last = what
        clock.now += seconds
        progress(what, 1, 5)
    progress.finish()
    elapsed = clock.now - 100
    assert len(stream.getvalue().splitlines()) <= 2 * stages + elapsed / SECONDS_BETWEEN_LINES


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_bars_leave_a_line_for_each_stage(monkeypatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    stream = Terminal()
    with progress_reporter(stream) as progress:
        assert isinstance(progress, BarProgress)
        progress("training sft", 0, 2)
        progress("training sft", 2, 2, 0.5)
        progress.say("[brackets] stay")
        progress("evaluating", 1, 3)
    shown = stream.getvalue()
    assert "training sft 2/2 (100 %), loss 0.5000, 0.0 s" in shown
    assert "evaluating 1/3 (33 %), 0.0 s" in shown
    assert "[brackets] stay" in shown


def test_bars_name_the_stage_of_an_error(monkeypatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    stream = Terminal()
    with pytest.raises(KeyboardInterrupt), progress_reporter(stream) as progress:
        progress("training kto", 1, 2)
        raise KeyboardInterrupt
    assert "stopped during training kto 1/2 (50 %) after 0.0 s" in stream.getvalue()
