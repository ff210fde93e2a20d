"""A checkpoint with adapters folded in: it loads normally and is the folded model, bit for bit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from incremental_llm.adapters.load import load_base, load_tokenizer
from incremental_llm.adapters.merge import merge_into
from incremental_llm.adapters.merge_checkpoint import fold_checkpoint
from incremental_llm.artifacts import verify_folder
from incremental_llm.base_models import resolve
from incremental_llm.errors import InputError

from .test_merge_methods import adapter_of

UP, DOWN = "model.layers.0.mlp.up_proj", "model.layers.1.mlp.down_proj"
ADAPTERS = [adapter_of({UP: (64, 32, 2)}, 0.1, 1), adapter_of({UP: (64, 32, 3), DOWN: (32, 64, 2)}, 0.2, 2)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shard", ["1GB", "20KB"])
def test_it_loads_as_the_folded_model(
    dtype: torch.dtype, shard: str, tiny_model: Any, tiny_tokenizer: Any, tmp_path: Path
) -> None:
    tiny_model.to(dtype).save_pretrained(tmp_path / "base", max_shard_size=shard)
    tiny_tokenizer.save_pretrained(tmp_path / "base")
    files = len(list((tmp_path / "base").glob("*.safetensors")))
    assert files == 1 if shard == "1GB" else files > 1
    fold_checkpoint(tmp_path / "base", ADAPTERS, tmp_path / "new")
    folded = load_base(tmp_path / "base", dtype=dtype)
    merge_into(folded, ADAPTERS)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "new", dtype=dtype)
    expected = folded.state_dict()
    assert loaded.state_dict().keys() == expected.keys()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in loaded.state_dict().items())
    assert not torch.equal(expected[f"{UP}.weight"], tiny_model.state_dict()[f"{UP}.weight"])
    assert load_tokenizer(tmp_path / "new").chat_template == tiny_tokenizer.chat_template
    assert len(list((tmp_path / "new").glob("*.safetensors"))) == files
    verify_folder(tmp_path / "new")


def test_it_is_a_base_like_any_other(tiny_model_dir: Path, tmp_path: Path) -> None:
    fold_checkpoint(tiny_model_dir, ADAPTERS, tmp_path / "new")
    old, new = resolve(str(tiny_model_dir)).ref, resolve(str(tmp_path / "new")).ref
    assert new.digest != old.digest and new.template_digest == old.template_digest


def test_what_cannot_be_folded_is_refused(tiny_model_dir: Path, tmp_path: Path) -> None:
    out = tmp_path / "new"
    with pytest.raises(InputError, match=r"lm_head.*tied to another"):
        fold_checkpoint(tiny_model_dir, [adapter_of({"lm_head": (320, 32, 2)})], out)
    with pytest.raises(InputError, match="at least one adapter"):
        fold_checkpoint(tiny_model_dir, [], out)
    with pytest.raises(InputError, match="another base"):
        fold_checkpoint(tiny_model_dir, [adapter_of({UP: (64, 33, 2)})], out)
    with pytest.raises(InputError, match="expected a model in safetensors"):
        fold_checkpoint(tmp_path, ADAPTERS, out)
    assert not out.exists()
    quantised = tmp_path / "quantised"
    quantised.mkdir()
    for file in tiny_model_dir.iterdir():
        (quantised / file.name).write_bytes(file.read_bytes())
    config = json.loads((quantised / "config.json").read_text(encoding="utf-8"))
    config["quantization_config"] = {"quant_method": "bitsandbytes"}
    (quantised / "config.json").write_text(json.dumps(config), encoding="utf-8")
    with pytest.raises(InputError, match="quantization_config"):
        fold_checkpoint(quantised, ADAPTERS, out)
    with pytest.raises(InputError, match="Nothing is overwritten"):
        fold_checkpoint(tiny_model_dir, ADAPTERS, quantised)
    assert load_file(tiny_model_dir / "model.safetensors")  # untouched
