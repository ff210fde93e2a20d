"""Only a checkpoint that is whole is one."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from incremental_llm.artifacts import MANIFEST, is_complete, verify_folder, write_manifest
from incremental_llm.training.checkpoint import SealCheckpoints, last_complete_checkpoint


def checkpoint(folder: Path, step: int, *, sealed: bool = True) -> Path:
    path = folder / f"checkpoint-{step}"
    path.mkdir()
    (path / "optimizer.pt").write_bytes(bytes(range(200)))
    (path / "adapter_model.safetensors").write_bytes(b"weights" * step)
    if sealed:
        write_manifest(path)
    return path


def test_the_newest_by_number_not_by_name(tmp_path: Path) -> None:
    checkpoint(tmp_path, 9)
    newest = checkpoint(tmp_path, 10)
    assert last_complete_checkpoint(tmp_path) == newest


def test_none_is_none(tmp_path: Path) -> None:
    assert last_complete_checkpoint(tmp_path / "missing") is None
    (tmp_path / "checkpoint-3").write_text("a file")
    assert last_complete_checkpoint(tmp_path) is None


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: (path / MANIFEST).unlink(),
        lambda path: (path / "optimizer.pt").unlink(),
        lambda path: (path / "optimizer.pt").write_bytes(b""),
        lambda path: (path / "optimizer.pt").write_bytes(bytes([1, *range(1, 200)])),
        lambda path: (path / MANIFEST).write_text("{"),
        lambda path: (path / "rng_state.pth").write_bytes(b"late"),
    ],
    ids=["no manifest", "missing file", "empty file", "flipped bit", "broken manifest", "extra file"],
)
def test_a_damaged_one_is_passed_over_and_said(
    damage: object, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    older = checkpoint(tmp_path, 4)
    assert callable(damage)
    damage(checkpoint(tmp_path, 8))
    assert last_complete_checkpoint(tmp_path) == older
    assert "resuming from an earlier checkpoint" in caplog.text
    damage(older)
    assert last_complete_checkpoint(tmp_path) is None


def test_sealing_writes_a_manifest_of_what_is_there(tmp_path: Path) -> None:
    path = checkpoint(tmp_path, 2, sealed=False)
    arguments = SimpleNamespace(output_dir=str(tmp_path))
    other = SimpleNamespace(global_step=2, is_world_process_zero=False)
    SealCheckpoints().on_save(arguments, other, None)
    assert not is_complete(path)  # the first process's business
    for _ in range(2):  # a step that was saved before a kill may be saved again
        SealCheckpoints().on_save(arguments, SimpleNamespace(global_step=2, is_world_process_zero=True), None)
        verify_folder(path)
