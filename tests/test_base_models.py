"""A base is what its files say, all of them: what computes, what makes tokens, what ends an answer."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from incremental_llm.artifacts import staged_folder
from incremental_llm.base_models import resolve
from incremental_llm.errors import BaseModelError


@pytest.fixture
def base(tiny_model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("INCREMENTAL_LLM_CACHE", str(tmp_path / "cache"))
    return Path(shutil.copytree(tiny_model_dir, tmp_path / "base"))


def edit(name: str, **values: object) -> Callable[[Path], object]:
    def change(folder: Path) -> object:
        path = folder / name
        kept = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        return path.write_text(json.dumps(kept | values), encoding="utf-8")

    return change


@pytest.mark.parametrize(
    "change",
    [
        edit("tokenizer_config.json", chat_template="{{ messages }}"),
        edit("tokenizer_config.json", add_bos_token=True),
        edit("generation_config.json", eos_token_id=[0, 2]),
        edit("special_tokens_map.json", pad_token="<p>"),
        lambda folder: (folder / "chat_template.jinja").write_text("{{ messages }}", encoding="utf-8"),
        lambda folder: (folder / "merges.txt").write_text("a b", encoding="utf-8"),
    ],
)
def test_what_changes_the_tokens_changes_the_pin(change: Callable[[Path], object], base: Path) -> None:
    before = resolve(str(base)).ref
    change(base)
    after = resolve(str(base)).ref
    assert (after.digest, after.template_digest != before.template_digest) == (before.digest, True)


@pytest.mark.parametrize("file", ["config.json", "tokenizer_config.json", "generation_config.json"])
def test_the_version_of_a_tool_is_no_part_of_the_pin(file: str, base: Path) -> None:
    before = resolve(str(base)).ref
    edit(file, transformers_version="9.9.9")(base)
    assert resolve(str(base)).ref == before


def test_weights_changed_in_place_at_the_same_size_and_time_are_other_weights(base: Path) -> None:
    (weights,) = base.glob("*.safetensors")
    before, times = resolve(str(base)).ref, (weights.stat().st_atime_ns, weights.stat().st_mtime_ns)
    with weights.open("r+b") as stream:
        stream.seek(-4, os.SEEK_END)
        stream.write(b"\x01\x02\x03\x04")
    os.utime(weights, ns=times)
    assert resolve(str(base)).ref.digest != before.digest


def test_a_missing_shard_is_named(base: Path) -> None:
    (weights,) = base.glob("*.safetensors")
    edit("model.safetensors.index.json", weight_map={"a": weights.name, "b": "model-2.safetensors"})(base)
    with pytest.raises(BaseModelError, match=r"none of these: model-2\.safetensors"):
        resolve(str(base))


@pytest.mark.parametrize("name", ["~no-such-user/x", "x" * 5000])
def test_a_name_that_is_no_name_is_said_to_be_none(name: str) -> None:
    with pytest.raises(BaseModelError, match="expected a name, a folder or a hub id"):
        resolve(name)


def test_a_config_that_is_no_json_is_named(base: Path) -> None:
    (base / "config.json").write_text("[1]", encoding="utf-8")
    with pytest.raises(BaseModelError, match=r"config\.json: expected a JSON object"):
        resolve(str(base))


@pytest.mark.parametrize(
    "damage", [lambda path: path.write_bytes(path.read_bytes() + b" "), lambda path: path.unlink()]
)
def test_a_damaged_converted_base_is_never_pinned(
    damage: Callable[[Path], object], base: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    cached = tmp_path / "cache" / "bases" / "smollm2-135m"
    with staged_folder(cached) as folder:
        shutil.copytree(base, folder, dirs_exist_ok=True)
    assert resolve("smollm2-135m").folder == cached
    damage(cached / "tokenizer.json")
    with pytest.raises(BaseModelError, match=r"tokenizer\.json is not what the conversion wrote\. Remove the folder"):
        resolve("smollm2-135m")
