from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from incremental_llm.adapters.lora import WEIGHTS_FILE, write_adapter

MODULES = [f"model.layers.{layer}.self_attn.q_proj" for layer in (0, 1)] + ["model.layers.1.mlp.down_proj"]


@pytest.fixture
def theirs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An adapter of two kinds of modules, in the folder where commands run."""
    monkeypatch.chdir(tmp_path)
    generator = torch.Generator().manual_seed(0)
    shapes = {MODULES[0]: (2, 32, 32), MODULES[1]: (3, 32, 32), MODULES[2]: (3, 64, 32)}
    factors = {
        name: (0.02 * torch.randn(rank, inputs, generator=generator), torch.randn(outputs, rank, generator=generator))
        for name, (rank, inputs, outputs) in shapes.items()
    }
    write_adapter(tmp_path / "theirs", factors, "org/else")
    (tmp_path / "theirs" / "README.md").write_text("ours")
    return tmp_path / "theirs"


def test_an_adapter_is_shown_by_kind_of_layer(illm, theirs: Path, tiny_model_dir: Path) -> None:
    done = illm("check-adapter", "theirs", "--set", f"base={tiny_model_dir}")
    assert done.exit_code == 0, done.output
    assert "theirs: plain LoRA for" in done.stdout and "3 modules" in done.stdout
    rows = {line.split()[0]: line.split() for line in done.stdout.splitlines() if line.startswith("model.")}
    assert rows["model.layers.*.self_attn.q_proj"][1:5] == ["2", "2", "to", "3"]
    assert rows["model.layers.*.mlp.down_proj"][1:5] == ["1", "3", "1", "float32"]
    assert "allowed and not used: README.md" in done.stdout
    assert "warning: its config names another base, 'org/else'" in done.stdout
    assert "next: import_foreign(Path('theirs')" in done.stderr
    assert [path.name for path in theirs.parent.iterdir()] == ["theirs"]


def test_json_has_every_module(illm, theirs: Path, tiny_model_dir: Path) -> None:
    found = json.loads(illm("check-adapter", "theirs", "--json", "--set", f"base={tiny_model_dir}").stdout)
    assert {module["name"]: module["rank"] for module in found["modules"]} == dict(zip(MODULES, (2, 3, 3), strict=True))
    assert set(found["sha256"]) == {"adapter_config.json", WEIGHTS_FILE}


def test_a_refusal_is_one_line_and_exit_code_2(illm, theirs: Path, tiny_model_dir: Path) -> None:
    (theirs / "training_args.bin").write_bytes(b"cos\nsystem\n(S'exit 3'\ntR.")
    done = illm("check-adapter", "theirs", "--set", f"base={tiny_model_dir}")
    assert done.exit_code == 2 and "'training_args.bin': a pickle" in done.stderr and done.stdout == ""
