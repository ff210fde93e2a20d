"""The README's Python runs as it stands, on a tiny model, and what it names exists."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from types import ModuleType

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def _tiny_world() -> ModuleType:
    """The end-to-end tests' nights and recipe; their folder is no package."""
    spec = importlib.util.spec_from_file_location("tiny_world", ROOT / "tests/end_to_end/conftest.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


world = _tiny_world()
tiny_suites, tiny_config, one_thread = world.tiny_suites, world.tiny_config, world._one_thread


def blocks(language: str) -> list[str]:
    """The fenced blocks of the README in that language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", README, re.M | re.S)


def test_the_python_of_the_readme_runs(
    tmp_path: Path,
    tiny_config: object,
    tiny_model_dir: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The first block runs a night and manages its versions, the second chats with what the first exported."""
    assert callable(tiny_config)
    monkeypatch.chdir(tmp_path)
    tree = tiny_config().model_dump(mode="json", exclude={"compile", "workspace"})
    tree["gate"]["margin"] = 0.5  # of a suite of six items, a smaller margin would not be measured
    (tmp_path / "incremental.yaml").write_text(yaml.safe_dump(tree), encoding="utf-8")
    world.write_log(tmp_path / "night1.jsonl", world.night(1, world.GOOD, world.BAD))
    night, chat = blocks("python")
    names: dict[str, object] = {"__name__": "readme"}
    exec(compile(night, "README.md, the API", "exec"), names)
    said = capsys.readouterr().out
    assert "28 events in" in said
    assert "promoted" in said
    assert (tmp_path / "tuned" / "adapter_model.safetensors").is_file()
    assert len(chat.strip().splitlines()) <= 12
    assert '"smollm2-135m"' in chat
    exec(compile(chat.replace('"smollm2-135m"', repr(str(tiny_model_dir))), "README.md, chat", "exec"), names)
    assert capsys.readouterr().out.strip()


def test_every_command_that_is_named_exists() -> None:
    import typer

    from incremental_llm.cli import app

    root = typer.main.get_command(app)
    pages = [README, *(path.read_text(encoding="utf-8") for path in sorted((ROOT / "docs").glob("*.md")))]
    named = {match for page in pages for match in re.findall(r"\billm ([a-z-]+)(?: ([a-z-]+))?", page)}
    assert len(named) > 15
    for command, sub in named:
        assert command in root.commands, f"illm {command}"
        group = getattr(root.commands[command], "commands", None)
        assert group is None or not sub or sub in group, f"illm {command} {sub}"


@pytest.mark.parametrize(
    "page",
    [
        "README.md",
        "CONTRIBUTING.md",
        "CHANGELOG.md",
        "docs/design.md",
        "docs/events.md",
        "docs/import-adapters.md",
        "docs/ingest.md",
        "docs/methods.md",
        "docs/signals.md",
        "docs/trust.md",
    ],
)
def test_links_lead_somewhere(page: str) -> None:
    path = ROOT / page
    for target in re.findall(r"\]\(([^)#]+?)(?:#[^)]*)?\)", path.read_text(encoding="utf-8")):
        if not target.startswith("http"):
            assert (path.parent / target).exists(), f"{page}: {target}"


def test_the_exit_codes_are_those_of_the_code() -> None:
    from incremental_llm import errors, nightly
    from incremental_llm.cli.errors import INTERRUPTED

    section = README.split("## Exit codes")[1].split("\n## ")[0]
    listed = {int(code) for code in re.findall(r"^\| (\d+) \|", section, re.M)}
    kinds = (errors.IncrementalError, errors.InputError, errors.NothingToTrainError, errors.TrainingInterrupted)
    raised = {kind.exit_code for kind in kinds}
    assert listed == {0, *nightly.EXIT_CODES.values(), errors.WorkspaceBusyError.exit_code, *raised, INTERRUPTED}


def test_the_events_that_are_shown_can_be_imported() -> None:
    import json

    from incremental_llm.feedback.events import EVENT_TYPES, parse_event

    pages = [(ROOT / "docs" / name).read_text(encoding="utf-8") for name in ("events.md", "signals.md")]
    shown = [block for text in (README, *pages) for block in re.findall(r"^```json\n(.*?)^```$", text, re.M | re.S)]
    events = [parse_event(json.loads(line)) for block in shown for line in block.splitlines()]
    assert {event.type for event in events} >= set(EVENT_TYPES)


def test_exploring_and_the_weights_are_as_the_page_has_them() -> None:
    from incremental_llm.dataset import SignalWeights
    from incremental_llm.feedback import parse_event

    page = (ROOT / "docs/signals.md").read_text(encoding="utf-8")
    names: dict[str, object] = {}
    exec(re.findall(r"^```python\n(.*?)^```$", page, re.M | re.S)[0], names)
    asked = {"conversation": "c", "user": "u", "messages": [{"role": "user", "content": "?"}]}
    head = {"type": "interaction", "id": "i", "time": "2026-11-01T12:00:00Z"}
    assert parse_event({**head, **asked, **names["interaction"]}).metadata["serving"]["propensity"] == 0.975
    shown = {name: float(weight) for name, weight in re.findall(r"\| `(\w+)` ([\d.]+)", page)}
    assert shown == {name: getattr(SignalWeights(), name) for name in SignalWeights.model_fields}


def test_every_reason_for_leaving_something_out_is_explained() -> None:
    from incremental_llm.dataset import EVENT_REASONS, DropReason
    from incremental_llm.pipeline import NOT_REACHED

    page = (ROOT / "docs/events.md").read_text(encoding="utf-8")
    table = page.split("## What is left out, and why")[1].split("\n## ")[0]
    explained = {name for row in re.findall(r"^\| (`[^|]*) \|", table, re.M) for name in re.findall(r"`(\w+)`", row)}
    assert explained == {*(reason.value for reason in DropReason), *EVENT_REASONS, NOT_REACHED}
