"""evaluate, export, report and chat: one call each."""

from __future__ import annotations

import json
from pathlib import Path


def test_evaluate_shows_scores_and_their_intervals(illm, workspace) -> None:
    done = illm("evaluate", "1", "--suite", "general", "-s", "shop", "--wrong")
    assert done.exit_code == 0
    assert workspace.calls == [("evaluate", "1", ["general", "shop"])]
    assert "50.0 %" in done.stdout
    assert "15.0 to 85.0 %" in done.stdout  # Wilson's interval of 2 in 4
    assert "answer 1" in done.stdout
    assert "answer 2" not in done.stdout
    assert illm("evaluate", "--json").exit_code == 0
    assert workspace.calls[-1] == ("evaluate", "production", None)


def test_what_was_not_measured_is_no_success(illm, workspace) -> None:
    workspace.measured = workspace.example_report(measured=False)
    done = illm("evaluate")
    assert done.exit_code == 1
    assert "not measured" in done.stdout
    assert "error: expected every item to be measured, found 1 that were not" in done.stderr
    done = illm("evaluate", "--json")
    assert done.exit_code == 1
    assert json.loads(done.stdout)["suites"]["odd"]["score"] is None


def test_export(illm, workspace) -> None:
    done = illm("export", "production", "out", "--form", "merged", "--dtype", "float16")
    assert workspace.calls == [("export", "production", Path("out"), "merged", "float16", 0.0)]
    assert "its logits against the stack's: max_abs_logit 0.25, mean_kl 0.001" in done.stdout
    assert "loading it back" in done.stderr
    assert "vllm serve base" in done.stderr
    assert illm("export", "1", "out2", "--json").exit_code == 0
    assert workspace.calls[-1] == ("export", "1", Path("out2"), "peft", None, 0.0)
    assert illm("export", "1", "out3", "--form", "onnx").exit_code == 2
    assert illm("export", "1", "out3", "--max-error", "1.5").exit_code == 2


def test_an_export_says_whether_its_deltas_are_the_stacks(illm, workspace) -> None:
    assert "rank 16, of a stack of rank 11: exact" in illm("export", "1", "out", "--form", "vllm").stdout
    done = illm("export", "1", "out", "--form", "vllm", "--max-error", "0.02")
    assert "off by 0.02 of its deltas, as --max-error allows" in done.stdout


def test_an_adapter_for_llamacpp_says_how_to_get_its_base(illm, workspace) -> None:
    assert "illm export 0 BASE --form gguf" in illm("export", "1", "out", "--form", "gguf-lora").stderr


def test_report(illm, workspace) -> None:
    done = illm("report", "page.html")
    assert "page.html: the report" in done.stdout
    assert "next: open page.html in a browser" in done.stderr


def test_a_report_into_a_folder_is_wrong_input(illm, workspace) -> None:
    done = illm("report", ".")
    assert done.exit_code == 2
    assert "found a folder. Write report.html instead" in done.stderr


def test_a_report_into_a_missing_folder_is_wrong_input(illm, workspace) -> None:
    done = illm("report", "nope/x/r.html")
    assert done.exit_code == 2
    assert "error: nope/x/r.html: expected a folder nope/x to write into, found none. Make it" in done.stderr
    assert not Path("nope").exists()
    assert workspace.calls == []


def test_a_report_says_on_stderr_what_was_not_available(illm, workspace) -> None:
    workspace.unavailable = "not available: general"
    done = illm("report", "--json")
    assert "not available: general" in done.stderr
    assert json.loads(done.stdout) == {"report": "report.html"}


def test_chat_answers_one_message(illm, workspace) -> None:
    done = illm("chat", "1", "-m", "Hi", "--max-new-tokens", "9")
    assert done.stdout == "answer 1\n"
    assert workspace.calls == [("chat", "1", ["Hi"], 9)]
    assert json.loads(illm("chat", "-m", "Hi", "--json").stdout)["answer"] == "answer 1"


def test_chat_keeps_the_conversation_until_told_otherwise(illm, workspace) -> None:
    done = illm("chat", input="Hi\n\nAnd?\n/new\nHello\n/exit\nnever\n")
    assert [call[2] for call in workspace.calls] == [["Hi"], ["Hi", "answer 1", "And?"], ["Hello"]]
    assert done.stdout.splitlines() == ["production> answer 1", "production> answer 3", "production> answer 1"]


def test_chat_as_json_needs_a_message(illm, workspace) -> None:
    assert illm("chat", "--json").exit_code == 2
