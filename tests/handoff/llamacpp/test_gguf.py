"""Adapters and models as GGUF: names, shapes and the order of rows, each read back by someone else's reader."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig

from incremental_llm.adapters.lora import LoraAdapter
from incremental_llm.errors import InputError, IntegrityError
from incremental_llm.handoff import Source, check_exportable, export
from incremental_llm.handoff.check import compare_logits, require_same_weights
from incremental_llm.handoff.llamacpp.adapter import read_adapter_gguf, write_adapter_gguf
from incremental_llm.handoff.llamacpp.architecture import architecture_of
from incremental_llm.handoff.llamacpp.model import read_model, write_model

QUERY = "model.layers.1.self_attn.q_proj"


def values(path: Path) -> dict[str, torch.Tensor]:
    """Every tensor of a file in fp32, as it lies there."""
    reader = gguf.GGUFReader(path)
    return {t.name: torch.from_numpy(gguf.dequantize(t.data, t.tensor_type).copy()) for t in reader.tensors}


def random_adapter(model: Any, *, rank: int = 3, seed: int = 0) -> LoraAdapter:
    """An adapter on every layer of a model but its head."""
    generator = torch.Generator().manual_seed(seed)
    modules = {
        name: (
            torch.randn(rank, layer.in_features, generator=generator),
            torch.randn(layer.out_features, rank, generator=generator),
        )
        for name, layer in model.named_modules()
        if isinstance(layer, torch.nn.Linear) and name != "lm_head"
    }
    return LoraAdapter({}, modules, dict.fromkeys(modules, 0.5))


def linear(model: Any) -> list[str]:
    return [name for name, layer in model.named_modules() if isinstance(layer, torch.nn.Linear)]


def test_an_adapter_has_the_keys_and_shapes_that_llamacpp_asks_for(tiny_model: Any, tmp_path: Path) -> None:
    path = tmp_path / "a.gguf"
    write_adapter_gguf(path, random_adapter(tiny_model), tiny_model.config, dtype="float32", name="a")
    reader = gguf.GGUFReader(path)
    keys = {name: field.contents() for name, field in reader.fields.items() if "." in name and "GGUF" not in name}
    assert keys["general.architecture"] == "llama" and keys["general.type"] == "adapter"
    assert keys["adapter.type"] == "lora" and keys["adapter.lora.alpha"] == 3.0
    shapes = {tensor.name: tensor.shape.tolist() for tensor in reader.tensors}  # the fastest dimension first
    assert shapes["blk.0.ffn_down.weight.lora_a"] == [64, 3] and shapes["blk.0.ffn_down.weight.lora_b"] == [3, 32]
    assert shapes["blk.1.attn_k.weight.lora_a"] == [32, 3] and shapes["blk.1.attn_k.weight.lora_b"] == [3, 16]
    assert len(shapes) == 2 * 2 * 7


def test_what_the_adapter_adds_lies_where_the_merged_model_has_it(case: Any, tmp_path: Path) -> None:
    """The merged file's rows are right, as transformers reads it; so must be those of s·B·A in the adapter's."""
    export(case.source, tmp_path / "merged", "gguf")
    export(case.source, tmp_path / "lora", "gguf-lora")
    base = case.stack.model_copy(update={"adapters": ()})
    plain = AutoModelForCausalLM.from_pretrained(case.base)
    export(replace(case.source, stack=base, adapter_folders=(), reference=plain), tmp_path / "base", "gguf")
    before, after, lora = (values(tmp_path / f) for f in ("base/model.gguf", "merged/model.gguf", "lora/adapter.gguf"))
    changed = [name for name in before if not torch.equal(before[name], after[name])]
    assert sorted(changed) == sorted({name.removesuffix(".lora_a").removesuffix(".lora_b") for name in lora})
    for name in changed:
        delta_OI = lora[f"{name}.lora_b"] @ lora[f"{name}.lora_a"]  # alpha is the rank
        torch.testing.assert_close(after[name] - before[name], delta_OI, atol=1e-5, rtol=1e-4)
    assert any("attn_q" in name for name in changed)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_an_adapter_is_read_back_number_by_number(tiny_model: Any, tmp_path: Path, dtype: str) -> None:
    adapter, path = random_adapter(tiny_model), tmp_path / "a.gguf"
    write_adapter_gguf(path, adapter, tiny_model.config, dtype=dtype, name="a")
    found = read_adapter_gguf(path, tiny_model.config, linear(tiny_model))
    assert found.modules.keys() == adapter.modules.keys()
    for module in adapter.modules:
        for written, read in zip(adapter.folded(module), found.folded(module), strict=True):
            assert torch.equal(written.to(getattr(torch, dtype)).float(), read)


def test_the_rows_of_llamas_queries_and_keys_move_and_no_others(tiny_model: Any, qwen2: Any) -> None:
    llama = architecture_of(tiny_model.config)  # two heads of 16 numbers, one for keys
    order = llama.row_order(f"{QUERY}.weight")
    assert order is not None and order.tolist() == [
        h * 16 + p + s * 8 for h in (0, 1) for p in range(8) for s in (0, 1)
    ]
    keys = llama.row_order(QUERY.replace("q_proj", "k_proj"))
    assert keys is not None and keys.tolist() == order.tolist()[:16]
    assert llama.row_order(QUERY.replace("q_proj", "v_proj")) is None
    assert architecture_of(qwen2.config).row_order(QUERY) is None


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_transformers_reads_a_model_back(tiny_model: Any, tiny_model_dir: Path, tmp_path: Path, dtype: str) -> None:
    rounded = copy.deepcopy(tiny_model)
    for parameter in rounded.parameters():
        if parameter.ndim > 1:
            parameter.data = parameter.data.to(getattr(torch, dtype)).float()
    write_model(tmp_path / "m.gguf", tiny_model, tiny_model_dir, dtype=dtype, name="tiny")
    found, tokenizer = read_model(
        tmp_path / "m.gguf", tiny_model.config, dtype=torch.float32, device=torch.device("cpu")
    )
    require_same_weights(found, rounded, "read back")
    ids = tokenizer("return within 30 days<|im_end|>", return_tensors="pt").input_ids
    assert compare_logits(rounded, found, [ids]).max_abs_logit == 0.0
    written = AutoTokenizer.from_pretrained(tiny_model_dir)
    assert tokenizer.chat_template == written.chat_template
    assert (tokenizer.bos_token, tokenizer.eos_token) == (written.bos_token, written.eos_token)
    assert tokenizer.get_vocab() == written.get_vocab()


def test_qwen2_keeps_its_biases_its_head_and_its_rows(qwen2: Any, tiny_model_dir: Path, tmp_path: Path) -> None:
    write_model(tmp_path / "m.gguf", qwen2, tiny_model_dir, dtype="float32", name="tiny")
    found, _ = read_model(tmp_path / "m.gguf", qwen2.config, dtype=torch.float32, device=torch.device("cpu"))
    require_same_weights(found, qwen2, "read back")
    ids = torch.arange(3, 60)[None]
    assert compare_logits(qwen2, found, [ids]).max_abs_logit == 0.0
    adapter = random_adapter(qwen2)
    write_adapter_gguf(tmp_path / "a.gguf", adapter, qwen2.config, dtype="float32", name="a")
    read = read_adapter_gguf(tmp_path / "a.gguf", qwen2.config, linear(qwen2))
    assert torch.equal(read.modules[QUERY][1], adapter.folded(QUERY)[1])


def test_llama3s_slower_rotations_are_written(
    llama3: Any, tiny_model: Any, tiny_model_dir: Path, tmp_path: Path
) -> None:
    write_model(tmp_path / "m.gguf", llama3, tiny_model_dir, dtype="bfloat16", name="tiny")
    divisors = values(tmp_path / "m.gguf")["rope_freqs.weight"]
    assert divisors.shape == (8,) and divisors[[0, -1]].tolist() == pytest.approx(
        [1, 8]
    )  # fast ones stay, slow ones by factor
    write_model(tmp_path / "m.gguf", llama3, tiny_model_dir, dtype="float32", name="tiny")
    found, _ = read_model(tmp_path / "m.gguf", llama3.config, dtype=torch.float32, device=torch.device("cpu"))
    ids = torch.arange(3, 300)[None]
    assert compare_logits(llama3, found, [ids]).max_abs_logit == 0.0
    assert compare_logits(tiny_model, found, [ids]).max_abs_logit > 0.01


@pytest.mark.parametrize(
    ("changes", "found"),
    [
        ({"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4, "factor": 8.0}}, "rope_type = 'default'"),
        ({"mlp_bias": True}, "mlp_bias = False"),
        ({"attention_bias": True}, "attention_bias = False"),
        ({"hidden_act": "gelu"}, "hidden_act = 'silu'"),
        ({"model_type": "gemma3_text"}, "llama or qwen2 for GGUF, found 'gemma3_text'"),
    ],
)
def test_what_is_not_written_is_refused_by_name(changes: dict[str, Any], found: str) -> None:
    config = LlamaConfig()
    for name, value in changes.items():
        (setattr if name != "model_type" else object.__setattr__)(config, name, value)
    with pytest.raises(InputError, match=rf"{found}.*convert_hf_to_gguf\.py"):
        architecture_of(config)


def test_a_module_that_gguf_has_no_place_for_is_refused(tiny_model: Any, tmp_path: Path) -> None:
    adapter = random_adapter(tiny_model)
    for name in ("lm_head", "model.layers.0.self_attn.other_proj"):
        odd = replace(adapter, modules={name: adapter.modules[QUERY]}, scaling={name: 1.0})
        with pytest.raises(InputError, match=name):
            write_adapter_gguf(tmp_path / "a.gguf", odd, tiny_model.config, dtype="float32", name="a")


def test_numbers_that_a_dtype_cannot_hold_are_not_written(tiny_model: Any, tmp_path: Path) -> None:
    adapter = random_adapter(tiny_model)
    adapter.modules[QUERY][1][0, 0] = 1e6
    with pytest.raises(IntegrityError, match=r"blk\.1\.attn_q\.weight\.lora_b: expected numbers that float16 can hold"):
        write_adapter_gguf(tmp_path / "a.gguf", adapter, tiny_model.config, dtype="float16", name="a")


def test_an_adapter_of_something_else_is_not_read(tiny_model: Any, qwen2: Any, tmp_path: Path) -> None:
    path = tmp_path / "a.gguf"
    write_adapter_gguf(path, random_adapter(tiny_model), tiny_model.config, dtype="float32", name="a")
    with pytest.raises(IntegrityError, match=r"general\.architecture = 'qwen2', found 'llama'"):
        read_adapter_gguf(path, qwen2.config, linear(qwen2))
    with pytest.raises(IntegrityError, match=r"layers alone, found blk\.1\.attn_q\.weight\.lora_a"):
        read_adapter_gguf(path, tiny_model.config, [name for name in linear(tiny_model) if name != QUERY])


def test_a_swapped_row_order_is_noticed(case: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It would load, and answer, and answer worse."""
    monkeypatch.setattr("incremental_llm.handoff.llamacpp.architecture.Architecture.row_order", lambda self, name: None)
    source: Source = case.source
    with pytest.raises(IntegrityError, match=r"expected the sum of 3 deltas at .*q_proj"):
        export(source, tmp_path / "lora", "gguf-lora")
    with pytest.raises(IntegrityError, match="expected the logits of the stack"):
        export(source, tmp_path / "model", "gguf")
    assert not list(tmp_path.iterdir())


def test_another_architecture_is_refused_from_files_alone(case: Any, tmp_path: Path) -> None:
    source = replace(case.source)
    source.base_config.model_type = "gemma3_text"
    for form in ("gguf", "gguf-lora"):
        with pytest.raises(InputError, match="gemma3_text"):
            check_exportable(source, tmp_path / "out", form)
