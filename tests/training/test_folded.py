"""A folded model on the disk: bit for bit the one in memory, whole or absent, written once, and not for ever."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open

from incremental_llm.adapters.load import DTYPES, load_base, load_stack, load_tokenizer
from incremental_llm.adapters.lora import write_adapter
from incremental_llm.artifacts import is_complete, verify_folder, write_manifest
from incremental_llm.errors import InputError, IntegrityError
from incremental_llm.training import folded
from incremental_llm.training.folded import folded_model

from .conftest import launch_environment

MODULES = ("model.layers.0.self_attn.q_proj", "model.layers.1.mlp.down_proj")


@pytest.fixture(scope="module")
def untied_dir(tmp_path_factory: pytest.TempPathFactory, tiny_model_dir: Path, tiny_tokenizer: Any) -> Path:
    """As the tiny model, in bf16, with a head of its own, generation settings, and its weights in several files."""
    from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig

    folder = tmp_path_factory.mktemp("untied")
    config = AutoConfig.from_pretrained(tiny_model_dir, tie_word_embeddings=False)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config).bfloat16()
    model.generation_config = GenerationConfig(eos_token_id=2, max_new_tokens=7)
    model.save_pretrained(folder, max_shard_size="20KB")
    tiny_tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def stack(tmp_path: Path, tiny_model: Any) -> list[Path]:
    """Two adapters with a manifest each; the second has one module more."""
    return [adapter(tmp_path / str(n), tiny_model, MODULES[: n + 1], seed=n) for n in range(2)]


def adapter(folder: Path, model: Any, modules: tuple[str, ...], seed: int = 0) -> Path:
    generator = torch.Generator().manual_seed(seed)
    layers = dict(model.named_modules())
    shapes = {name: layers[name].weight.shape for name in modules}
    factors = {
        name: (torch.randn(2, shape[1], generator=generator), torch.randn(shape[0], 2, generator=generator))
        for name, shape in shapes.items()
    }
    write_adapter(folder, factors, "tiny", scaling=dict.fromkeys(modules, 0.3))
    write_manifest(folder)
    return folder


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("base", ["tied", "untied"])
@pytest.mark.parametrize("piece", [folded.PIECE, 9_000])
def test_it_is_bit_for_bit_the_model_that_is_folded_in_memory(
    base: str, dtype: str, piece: int, stack: list[Path], tiny_model_dir: Path, untied_dir: Path, tmp_path: Path
) -> None:
    base_folder = tiny_model_dir if base == "tied" else untied_dir
    folder = folded_model(base_folder, stack, dtype, tmp_path / "cache", piece=piece)
    found = load_base(folder, dtype=DTYPES[dtype])
    expected = load_stack(base_folder, stack, dtype=DTYPES[dtype])
    assert found.state_dict().keys() == expected.state_dict().keys()
    for name, tensor in expected.state_dict().items():
        assert torch.equal(tensor, found.state_dict()[name]), name
    tied = found.get_output_embeddings().weight is found.get_input_embeddings().weight
    assert tied == (base == "tied")
    assert len(list(folder.glob("*.safetensors"))) > 1 if piece < folded.PIECE else True
    assert json.loads((folder / "config.json").read_text())["dtype"] == dtype


def test_tokenizer_template_and_generation_settings_come_along(
    stack: list[Path], untied_dir: Path, tmp_path: Path
) -> None:
    folder = folded_model(untied_dir, stack, "bfloat16", tmp_path / "cache")
    chat = [{"role": "user", "content": "Where is the fox?"}]
    ids = [load_tokenizer(path).apply_chat_template(chat, add_generation_prompt=True) for path in (folder, untied_dir)]
    assert ids[0] == ids[1]
    assert load_base(folder).generation_config.max_new_tokens == 7


def test_files_hold_at_most_a_piece(stack: list[Path], tiny_model_dir: Path, tmp_path: Path) -> None:
    folder = folded_model(tiny_model_dir, stack, "float32", tmp_path / "cache", piece=9_000)
    for file in folder.glob("*.safetensors"):
        with safe_open(file, framework="pt") as opened:
            sizes = [opened.get_tensor(name).nbytes for name in opened.keys()]  # noqa: SIM118 - not a dict
        assert sum(sizes) <= 9_000 or len(sizes) == 1


def test_each_stack_dtype_and_order_has_a_folder_of_its_own_that_is_made_once(
    stack: list[Path], tiny_model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fold(adapters: list[Path], dtype: str = "float32") -> Path:
        return folded_model(tiny_model_dir, adapters, dtype, tmp_path / "cache", kept=9)

    made = [fold(stack), fold(stack[::-1]), fold(stack[:1]), fold(stack, "bfloat16")]
    assert len(set(made)) == 4
    monkeypatch.setattr(folded, "_write", lambda *_: pytest.fail("written again"))
    assert fold(stack) == made[0]


def test_the_folders_used_last_stay(stack: list[Path], tiny_model_dir: Path, tmp_path: Path) -> None:
    def fold(adapters: list[Path]) -> Path:
        return folded_model(tiny_model_dir, adapters, "float32", tmp_path / "cache", kept=2, loading=0)

    (tmp_path / "cache" / ".left.tmp").mkdir(parents=True)  # by a run that was killed
    first, second = fold(stack[:1]), fold(stack[1:])
    assert fold(stack[:1]) == first
    third = fold(stack)
    assert [is_complete(folder) for folder in (first, second, third)] == [True, False, True]
    assert {path.name for path in (tmp_path / "cache").iterdir()} == {first.name, third.name, "folded.lock"}


def test_a_folder_that_a_job_may_still_be_reading_stays(
    stack: list[Path], tiny_model_dir: Path, tmp_path: Path
) -> None:
    def fold(adapters: list[Path]) -> Path:
        return folded_model(tiny_model_dir, adapters, "float32", tmp_path / "cache", kept=1, loading=60)

    first, second = fold(stack[:1]), fold(stack[1:])
    assert is_complete(first) and is_complete(second)
    long_ago = time.time() - 61
    os.utime(first, (long_ago, long_ago))
    assert fold(stack[1:]) == second
    assert not first.exists() and is_complete(second)


def test_a_damaged_folder_is_made_anew(
    stack: list[Path], tiny_model_dir: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = folded_model(tiny_model_dir, stack, "float32", tmp_path / "cache")
    before = verify_folder(folder)
    weights = folder / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1  # loads without a word
    weights.write_bytes(content)
    assert folded_model(tiny_model_dir, stack, "float32", tmp_path / "cache") == folder
    assert verify_folder(folder) == before
    assert "model.safetensors (" in caplog.text and " differ from manifest.json" in caplog.text


def test_two_jobs_at_once_write_one_folder(stack: list[Path], tiny_model_dir: Path, tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from incremental_llm.training import folded\n"
        "write = folded._write\n"
        "folded._write = lambda *a: (print('written'), write(*a))\n"
        "base, cache, *stack = map(Path, sys.argv[1:])\n"
        "print(folded.folded_model(base, stack, 'float32', cache))\n"
    )
    command = [sys.executable, "-c", code, str(tiny_model_dir), str(tmp_path / "cache"), *map(str, stack)]
    jobs = [
        subprocess.Popen(command, env=launch_environment(), stdout=subprocess.PIPE, text=True, stderr=subprocess.PIPE)
        for _ in range(2)
    ]
    said = [job.communicate(timeout=120)[0].split() for job in jobs]
    assert [job.returncode for job in jobs] == [0, 0]
    assert sorted(map(len, said)) == [1, 2]
    assert said[0][-1] == said[1][-1]
    verify_folder(Path(said[0][-1]))


@pytest.fixture
def changed(tiny_model_dir: Path, tmp_path: Path) -> Callable[..., Path]:
    """A copy of the base with other entries in its config."""

    def copy(**entries: Any) -> Path:
        folder = shutil.copytree(tiny_model_dir, tmp_path / "changed")
        config = json.loads((folder / "config.json").read_text()) | entries
        (folder / "config.json").write_text(json.dumps(config))
        return folder

    return copy


def test_what_cannot_be_folded_is_refused_and_leaves_nothing(
    stack: list[Path], tiny_model: Any, tiny_model_dir: Path, tmp_path: Path, changed: Callable[..., Path]
) -> None:
    def refused(base: Path, adapter_folder: Path, error: type[Exception], match: str) -> None:
        with pytest.raises(error, match=match):
            folded_model(base, [adapter_folder], "float32", tmp_path / "cache")
        assert [path.name for path in (tmp_path / "cache").iterdir()] == ["folded.lock"]

    quantised = changed(quantization_config={"quant_method": "bitsandbytes"})
    refused(quantised, stack[0], InputError, "expected an unquantised base")
    for name in ("lm_head", "model.embed_tokens"):
        tied = adapter(tmp_path / name, tiny_model, (name,))
        refused(tiny_model_dir, tied, InputError, f"{name}: expected a weight of its own, found one that is tied")
    other = tmp_path / "other"
    write_adapter(other, {"model.layers.7.self_attn.q_proj": (torch.ones(2, 32), torch.ones(32, 2))}, "tiny")
    write_manifest(other)
    refused(tiny_model_dir, other, InputError, "expected this module in the base, found none")
    huge = tmp_path / "huge"
    write_adapter(huge, {MODULES[0]: (torch.full((2, 32), 1e30), torch.full((32, 2), 1e30))}, "tiny")
    write_manifest(huge)
    refused(tiny_model_dir, huge, IntegrityError, "expected finite merged weights")
    (huge / "manifest.json").unlink()
    refused(tiny_model_dir, huge, IntegrityError, "expected a complete folder")
