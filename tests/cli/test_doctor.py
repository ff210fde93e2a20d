from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import incremental_llm.workspace  # noqa: F401 - keeps the real load_suites, read before it is replaced
from incremental_llm import evaluation
from incremental_llm.adapters.stack import Stack
from incremental_llm.base_models import resolve
from incremental_llm.cli import health
from incremental_llm.cli.health import Finding
from incremental_llm.errors import SuiteError
from incremental_llm.registry import Registry

SUITE = SimpleNamespace(name="good", version=1, items=(1, 2, 3), scorer="contains", contract="the contract")


def fake_load_suites(folder: Path, names: list[str]) -> Any:
    if names == ["broken"]:
        raise SuiteError(f"{folder}/broken/items.jsonl:3: expected an answer, found none")
    return (SimpleNamespace(version=2, items=(1, 2, 3), scorer="contains"),)


@pytest.fixture(autouse=True)
def no_machine(monkeypatch, tmp_path) -> None:
    """The checks that import torch or look at this machine's caches answer from here."""
    monkeypatch.setattr(health, "_torch_device", lambda: Finding("torch device", "ok", "CPU"))
    monkeypatch.setattr(health, "_bitsandbytes", lambda: Finding("bitsandbytes", "ok", "1"))
    monkeypatch.setattr(health, "_package", lambda name: Finding(name, "ok", "1"))
    monkeypatch.setattr(health, "_memory", lambda: Finding("memory", "ok", "8 GB"))
    monkeypatch.setattr(health, "_disk", lambda folder: Finding("disk", "ok", "8 GB"))
    monkeypatch.setenv("INCREMENTAL_LLM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(evaluation, "load_suites", fake_load_suites)


def findings(illm, *args: str) -> tuple[int, dict[str, dict[str, str]]]:
    done = illm("doctor", "--json", *args)
    return done.exit_code, {found["what"]: found for found in json.loads(done.stdout)["findings"]}


def test_nothing_failed_is_exit_code_0(illm, workspace) -> None:
    done = illm("doctor")
    assert done.exit_code == 0
    assert "0 failed" in done.stdout
    assert "production is version 1; database reached, 8 events, 3 new" in done.stdout
    assert "next: illm run --dry-run" in done.stderr
    assert workspace.closed == 1


def test_a_missing_base_and_no_suites_are_warnings_with_advice(illm, workspace, tmp_path) -> None:
    code, found = findings(illm)
    assert code == 0
    assert found["base model"]["status"] == "warn"
    assert "connect once" in found["base model"]["advice"]
    assert found["suites"]["status"] == "warn"
    assert not (tmp_path / "cache").exists()  # it looked and changed nothing


def test_a_missing_workspace_is_a_warning(illm, workspace) -> None:
    workspace.missing = True
    code, found = findings(illm)
    assert code == 0
    assert found["workspace"]["advice"] == "make one: illm init"


def test_suites_are_read_one_by_one(illm, workspace) -> None:
    code, found = findings(illm, "--set", "suites.new=[good]", "--set", "suites.old=[broken]")
    assert code == 1
    assert found["suite good"]["found"] == "version 2, 3 items, scorer contains"
    assert found["suite broken"]["status"] == "fail"
    assert "items.jsonl:3" in found["suite broken"]["found"]


def test_a_wrong_recipe_fails_and_ends_the_list(illm, workspace) -> None:
    done = illm("doctor", "--set", "bass=x")
    assert done.exit_code == 1
    assert "did you mean 'base'?" in done.stdout
    assert "next: repair what failed, then: illm doctor" in done.stderr
    assert workspace.closed == 0


def test_a_check_that_breaks_is_a_failed_check(illm, workspace, monkeypatch) -> None:
    def broken() -> Finding:
        raise OSError("libcudart is missing")

    monkeypatch.setattr(health, "_torch_device", broken)
    code, found = findings(illm)
    assert code == 1
    assert found["torch device"]["found"] == "OSError: libcudart is missing"


def test_local_bases(tmp_path) -> None:
    assert health._base(str(tmp_path)).status == "fail"
    assert health._base("./not-there").status == "fail"
    (tmp_path / "config.json").write_text("{}", encoding="utf-8")
    (tmp_path / "model.safetensors").write_bytes(b"")
    assert health._base(str(tmp_path)).status == "ok"


def test_the_embedded_base_is_found_when_it_is_complete(tmp_path) -> None:
    folder = tmp_path / "cache" / "bases" / "smollm2-135m"
    folder.mkdir(parents=True)
    assert health._base("smollm2-135m").status == "warn"
    (folder / "manifest.json").write_text("{}", encoding="utf-8")
    assert health._base("smollm2-135m").status == "ok"


def test_disk_and_memory_have_limits(monkeypatch, tmp_path) -> None:
    monkeypatch.undo()
    for free, status in ((0.5e9, "fail"), (2e9, "warn"), (50e9, "ok")):
        monkeypatch.setattr(health.shutil, "disk_usage", lambda path, free=free: SimpleNamespace(free=free))
        assert health._disk(tmp_path / "not" / "there").status == status
    for total, status in ((None, "warn"), (2e9, "warn"), (16e9, "ok")):
        monkeypatch.setattr(health, "_memory_bytes", lambda total=total: total)
        assert health._memory().status == status
    assert health._package("no-such-package-here").status == "fail"
    assert health._package("pydantic").status == "ok"


def test_a_damaged_registry_fails_and_the_table_goes_on(illm, tmp_path: Path, tiny_model_dir: Path) -> None:
    folder = tmp_path / "illm"
    folder.mkdir()
    (folder / "registry.db").write_text("this is not a database " * 50, encoding="utf-8")
    recipe = ("--set", f"workspace={folder}", "--set", f"base={tiny_model_dir}", "--set", "suites.old=[good]")
    code, found = findings(illm, *recipe)
    assert code == 1
    assert found["workspace"]["status"] == "fail"
    assert "damaged" in found["workspace"]["found"]
    assert found["suite good"]["status"] == "ok"


def test_a_base_or_suite_that_is_not_the_registrys_fails(
    illm, tiny_model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base, folder = Path(shutil.copytree(tiny_model_dir, tmp_path / "base")), tmp_path / "illm"
    monkeypatch.setattr(evaluation, "load_suites", lambda _folder, _names: (SUITE,))
    with Registry.create(folder, Stack(base=resolve(str(base)).ref)) as registry:
        registry.record_suite("good", 1, "the contract")
    recipe = ("--set", f"workspace={folder}", "--set", f"base={base}", "--set", "suites.old=[good]")
    found = findings(illm, *recipe)[1]
    assert (found["base of the versions"]["status"], found["suite good"]["status"]) == ("ok", "ok")
    config = json.loads((base / "config.json").read_text(encoding="utf-8"))
    (base / "config.json").write_text(json.dumps(config | {"rope_theta": 7.0}), encoding="utf-8")
    monkeypatch.setattr(SUITE, "contract", "another contract")
    code, found = findings(illm, *recipe)
    assert code == 1
    assert found["base of the versions"]["status"] == found["suite good"]["status"] == "fail"
    assert "changed since this version was first used" in found["suite good"]["found"]
