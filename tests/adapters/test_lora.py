"""Reading and writing LoRA folders: every scaling PEFT knows, and nothing that is not plain LoRA."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file

from incremental_llm.adapters.lora import CONFIG_FILE, WEIGHTS_FILE, LoraAdapter, delta, read_adapter, write_adapter
from incremental_llm.errors import InputError, IntegrityError

Q0 = "model.layers.0.self_attn.q_proj"
DOWN1 = "model.layers.1.mlp.down_proj"


def save_random(model: Any, folder: Path, *, seed: int = 0, **config: Any) -> PeftModel:
    """Wrap `model` in a LoRA with random A and B, save it with PEFT, and return it."""
    options = {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "down_proj"], "task_type": "CAUSAL_LM", **config}
    peft_model = get_peft_model(model, LoraConfig(**options))
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in peft_model.named_parameters():
        if "lora_" in name:
            parameter.data.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)
    peft_model.save_pretrained(folder)
    return peft_model


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"use_rslora": True},
        {"rank_pattern": {"q_proj": 2}},
        {"alpha_pattern": {"layers.1.mlp.down_proj": 32}, "rank_pattern": {"^model.layers.0.self_attn.q_proj": 7}},
        {"use_rslora": True, "rank_pattern": {"down_proj": 3}, "alpha_pattern": {"q_proj": 1}},
    ],
)
def test_a_delta_is_what_peft_applies(tiny_model: Any, tmp_path: Path, config: dict[str, Any]) -> None:
    peft_model = save_random(tiny_model, tmp_path, **config)
    adapter = read_adapter(tmp_path)
    layers = dict(peft_model.base_model.model.named_modules())
    assert set(adapter.modules) == {name for name, layer in layers.items() if hasattr(layer, "lora_A")}
    for name in adapter.modules:
        torch.testing.assert_close(delta(adapter, name), layers[name].get_delta_weight("default").detach())


def test_shapes_and_ranks(tiny_model: Any, tmp_path: Path) -> None:
    save_random(tiny_model, tmp_path, rank_pattern={"q_proj": 2})
    adapter = read_adapter(tmp_path)
    A_RI, B_OR = adapter.modules[DOWN1]
    assert (tuple(A_RI.shape), tuple(B_OR.shape)) == ((4, 64), (32, 4))
    assert adapter.ranks[Q0] == 2 and adapter.scaling[Q0] == 4.0 and adapter.scaling[DOWN1] == 2.0


def test_what_is_written_reads_back_and_peft_loads_it(
    tiny_model: Any, tmp_path: Path, make_model: Callable[[], Any]
) -> None:
    save_random(tiny_model, tmp_path / "a", use_rslora=True, rank_pattern={"layers.0.self_attn.q_proj": 3})
    adapter = read_adapter(tmp_path / "a")
    write_adapter(tmp_path / "b", adapter.modules, "tiny", scaling=adapter.scaling)
    again = read_adapter(tmp_path / "b")
    assert again.ranks == adapter.ranks and set(again.scaling.values()) == {1.0}
    loaded = dict(PeftModel.from_pretrained(make_model(), tmp_path / "b").base_model.model.named_modules())
    for name in adapter.modules:
        torch.testing.assert_close(delta(again, name), delta(adapter, name))
        torch.testing.assert_close(loaded[name].get_delta_weight("default").detach(), delta(adapter, name))


def test_a_module_named_like_the_end_of_another_keeps_its_own_rank(tmp_path: Path) -> None:
    modules = {
        name: (torch.ones(rank, 3), torch.ones(2, rank)) for name, rank in (("head", 2), ("draft.head", 1), ("x", 1))
    }
    write_adapter(tmp_path, modules, "tiny")
    assert read_adapter(tmp_path).ranks == {"head": 2, "draft.head": 1, "x": 1}


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"use_dora": True}, "use_dora"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"bias": "lora_only"}, "bias 'none'"),
        ({"peft_type": "IA3"}, "peft_type 'LORA'"),
        ({"init_lora_weights": "pissa"}, "changes the base weights"),
        ({"lora_bias": True}, "biases are not merged"),
        ({"layer_replication": [[0, 1], [0, 1]]}, "layer_replication"),
        ({"trainable_token_indices": [3]}, "trainable_token_indices"),
    ],
)
def test_what_is_not_plain_lora_is_refused_by_name(plain_folder: Path, config: dict[str, Any], words: str) -> None:
    _edit_config(plain_folder, **config)
    with pytest.raises(InputError, match=words):
        read_adapter(plain_folder)


def test_a_pickle_is_refused_and_never_read(plain_folder: Path) -> None:
    (plain_folder / WEIGHTS_FILE).unlink()
    (plain_folder / "adapter_model.bin").write_bytes(b"cos\nsystem\n(S'exit 3'\ntR.")
    with pytest.raises(InputError, match=r"adapter_model\.bin, a pickle.*safe_serialization"):
        read_adapter(plain_folder)


def test_missing_files_name_the_folder(tmp_path: Path, plain_folder: Path) -> None:
    with pytest.raises(InputError, match="nowhere"):
        read_adapter(tmp_path / "nowhere")
    (plain_folder / WEIGHTS_FILE).unlink()
    with pytest.raises(InputError, match="found none"):
        read_adapter(plain_folder)


def test_damaged_files(plain_folder: Path) -> None:
    weights = plain_folder / WEIGHTS_FILE
    weights.write_bytes(weights.read_bytes()[:-8])
    with pytest.raises(IntegrityError, match="damaged"):
        read_adapter(plain_folder)
    (plain_folder / CONFIG_FILE).write_text("{")
    with pytest.raises(IntegrityError, match="JSON"):
        read_adapter(plain_folder)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_values_that_are_not_finite_are_refused(plain_folder: Path, value: float) -> None:
    def spoil(tensors: dict[str, torch.Tensor]) -> None:
        tensors[f"base_model.model.{Q0}.lora_B.weight"][0, 0] = value

    _edit_weights(plain_folder, spoil)
    with pytest.raises(IntegrityError, match=r"NaN or infinity in .*q_proj\.lora_B"):
        read_adapter(plain_folder)
    with pytest.raises(IntegrityError, match="NaN or infinity"):
        write_adapter(plain_folder, {"x": (torch.ones(1, 2), torch.full((2, 1), value))}, "tiny")


def test_tensors_nobody_knows_or_without_a_partner_are_refused(plain_folder: Path) -> None:
    name = f"base_model.model.{Q0}.lora_A.weight"
    _edit_weights(plain_folder, lambda tensors: tensors.pop(name))
    with pytest.raises(IntegrityError, match=r"q_proj, found only lora_B"):
        read_adapter(plain_folder)
    _edit_weights(plain_folder, lambda tensors: tensors.update({"base_model.model.lm_head.weight": torch.ones(2, 2)}))
    with pytest.raises(InputError, match=r"found base_model\.model\.lm_head\.weight"):
        read_adapter(plain_folder)


def test_a_rank_that_differs_from_the_config_is_refused(plain_folder: Path) -> None:
    _edit_config(plain_folder, r=8)  # a scaling computed from it would be half of what was trained
    with pytest.raises(IntegrityError, match="expected rank 8"):
        read_adapter(plain_folder)


def test_nothing_to_write_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="at least one module"):
        write_adapter(tmp_path, {}, "tiny")


def test_folded_scales_once_and_in_fp32() -> None:
    factors = (torch.ones(1, 2, dtype=torch.bfloat16), torch.ones(2, 1, dtype=torch.bfloat16))
    A_RI, B_OR = LoraAdapter({}, {"x": factors}, {"x": 0.3}).folded("x")
    assert A_RI.dtype == B_OR.dtype == torch.float32
    torch.testing.assert_close(B_OR, torch.full((2, 1), 0.3))


@pytest.fixture
def make_model(tiny_model: Any) -> Callable[[], Any]:
    """Fresh copies of the tiny model as it was before a test wrapped it."""
    import copy

    pristine = copy.deepcopy(tiny_model)
    return lambda: copy.deepcopy(pristine)


@pytest.fixture
def plain_folder(tmp_path: Path) -> Path:
    """A small plain adapter on two modules."""
    generator = torch.Generator().manual_seed(0)
    modules = {
        name: (torch.randn(2, 6, generator=generator), torch.randn(5, 2, generator=generator)) for name in (Q0, DOWN1)
    }
    write_adapter(tmp_path / "plain", modules, "tiny")
    return tmp_path / "plain"


def _edit_config(folder: Path, **values: Any) -> None:
    path = folder / CONFIG_FILE
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def _edit_weights(folder: Path, edit: Callable[[dict[str, torch.Tensor]], Any]) -> None:
    tensors = {name: tensor.clone() for name, tensor in load_file(folder / WEIGHTS_FILE).items()}
    edit(tensors)
    save_file(tensors, folder / WEIGHTS_FILE)
