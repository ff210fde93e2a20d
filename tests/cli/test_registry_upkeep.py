"""Names and upkeep on a real registry; the workspace around it has no model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from incremental_llm.adapters.stack import BaseRef, Stack
from incremental_llm.registry import Registry

BASE = Stack(base=BaseRef(name="tiny", digest="ba" * 32, template_digest="7e" * 32))


@pytest.fixture
def registry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Registry:
    """Version 0, an orphan that was put just now, and a recipe that finds them."""
    made = Registry.create(tmp_path / "illm", BASE)
    made.put_json({"left": "over"})
    monkeypatch.chdir(tmp_path)
    return made


def test_tag_untag_and_alias(illm, registry) -> None:
    done = illm("registry", "tag", "first", "0", "-r", "the base")
    assert (done.exit_code, done.stdout) == (0, "tag first names version 0\n")
    assert "next: illm registry show first" in done.stderr
    assert illm("registry", "alias", "shadow").stdout == "shadow is version 0 now\n"
    shown = illm("registry", "list").stdout
    assert "production, shadow, first" in shown
    assert json.loads(illm("registry", "show", "first", "--json").stdout)["version"] == 0
    assert illm("registry", "alias", "first", "0").exit_code == 2
    assert "which stays" in illm("registry", "untag", "first").stdout
    assert illm("registry", "show", "first").exit_code == 2
    assert registry.refs() == {"production": 0, "shadow": 0}


def test_du_and_gc(illm, registry) -> None:
    shown = illm("registry", "du")
    assert "unreferenced" in shown.stdout
    assert "gc would free 0" in shown.stdout
    planned = illm("registry", "gc", "--grace", "0")
    assert "would be freed" in planned.stdout
    assert "next: illm registry gc --grace 0 --yes" in planned.stderr
    assert len(json.loads(illm("registry", "gc", "--grace", "0", "--json").stdout)["would_remove"]["garbage"]) == 1
    assert "stay, put lately" in illm("registry", "gc", "--yes").stdout
    assert len(list(registry.objects.iterdir())) == 1
    done = illm("registry", "gc", "--grace", "0", "--yes")
    assert done.exit_code == 0
    assert "15 bytes freed" in done.stdout
    assert list(registry.objects.iterdir()) == []


def test_gc_waits_for_no_run(illm, registry) -> None:
    from incremental_llm.lock import exclusive

    with exclusive(registry.root):
        assert illm("registry", "gc", "--grace", "0").exit_code == 0
        assert illm("registry", "gc", "--grace", "0", "--yes").exit_code == 75
    assert len(list(registry.objects.iterdir())) == 1


def test_push_shows_what_it_would_send_and_pull_makes_a_registry(illm, registry) -> None:
    planned = illm("registry", "push", "out")
    assert "1 versions, 0 objects; 0 of them to send" in planned.stdout
    assert "next: illm registry push out --yes" in planned.stderr
    assert not Path("out").exists()
    assert illm("registry", "push", "out", "--yes").exit_code == 0
    done = illm("registry", "pull", "out", "--set", "workspace=two")
    assert done.stdout == "production is version 0, as published in out\n"
    with Registry.open(Path("two")) as pulled:
        assert pulled.list() == registry.list()
    assert illm("registry", "pull", "nowhere", "--set", "workspace=three").exit_code == 2


def test_repair_says_what_no_copy_has(illm, registry) -> None:
    assert illm("registry", "repair").exit_code == 0
    assert "to repair" in illm("registry", "repair").stdout
    assert illm("registry", "repair", "--from", "nowhere").exit_code == 2


def test_cherry_drop_refuses_what_is_no_increment(illm, registry) -> None:
    done = illm("registry", "cherry-drop", "0", "-r", "x")
    assert done.exit_code == 2
    assert "found init" in done.stderr
