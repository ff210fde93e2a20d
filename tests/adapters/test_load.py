"""A stack as a model: fold, hooks and PEFT's own sum compute the same, and 4 bits keep their gradients."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model

from incremental_llm.adapters.load import attach, load_base, load_stack, load_tokenizer
from incremental_llm.adapters.lora import read_adapter, write_adapter
from incremental_llm.adapters.merge import concatenate
from incremental_llm.errors import BaseModelError, IntegrityError

# Upstream's own, by its message: bitsandbytes looks at torch.jit while it is imported.
pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit.script_method. is deprecated:DeprecationWarning")

CONFIGS = (
    {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj", "down_proj"]},
    {"r": 2, "lora_alpha": 16, "target_modules": ["q_proj", "up_proj"], "use_rslora": True},
    {"r": 3, "lora_alpha": 3, "target_modules": ["q_proj", "o_proj"], "rank_pattern": {"q_proj": 5}},
)
IDS_BT = torch.tensor([[5, 9, 2, 40, 77, 3], [8, 8, 1, 19, 4, 60]])


@pytest.fixture
def folders(tiny_model: Any, tmp_path: Path) -> tuple[list[Path], torch.Tensor]:
    """Three adapters saved by PEFT (rsLoRA and mixed ranks among them), and PEFT's logits with all of them active."""
    generator = torch.Generator().manual_seed(1)
    model: Any = None
    for i, options in enumerate(CONFIGS):
        config = LoraConfig(task_type="CAUSAL_LM", **options)
        if model is None:
            model = get_peft_model(copy.deepcopy(tiny_model), config, adapter_name="a0")
        else:
            model.add_adapter(f"a{i}", config)
        for name, parameter in model.named_parameters():
            if f".a{i}." in name:
                parameter.data.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)
        model.save_pretrained(tmp_path, selected_adapters=[f"a{i}"])
    names = [f"a{i}" for i in range(len(CONFIGS))]
    model.base_model.set_adapter(names)
    return [tmp_path / name for name in names], logits(model.eval())


@torch.no_grad()
def logits(model: Any) -> torch.Tensor:
    return model(input_ids=IDS_BT, use_cache=False).logits


def test_fold_hooks_and_peft_agree(folders: tuple[list[Path], torch.Tensor], tiny_model_dir: Path) -> None:
    paths, expected_BTV = folders
    folded_BTV = logits(load_stack(tiny_model_dir, paths, dtype=torch.float32))
    hooked = load_base(tiny_model_dir, dtype=torch.float32)
    bare_BTV = logits(hooked)
    attach(hooked, concatenate([read_adapter(path) for path in paths]))
    for frozen in ("concat", "live"):
        beside_BTV = logits(load_stack(tiny_model_dir, paths, dtype=torch.float32, frozen=frozen))
        assert torch.allclose(beside_BTV, expected_BTV, atol=1e-4), frozen
    assert torch.allclose(folded_BTV, expected_BTV, atol=1e-4)
    assert torch.allclose(logits(hooked), expected_BTV, atol=1e-4)
    assert (expected_BTV - bare_BTV).abs().max() > 0.1


def test_hooks_leave_the_weights_alone_and_stay_when_an_adapter_is_disabled(
    folders: tuple[list[Path], torch.Tensor], tiny_model_dir: Path
) -> None:
    paths, expected_BTV = folders
    model = load_base(tiny_model_dir, dtype=torch.float32)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    attach(model, concatenate([read_adapter(path) for path in paths]))
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    fresh = get_peft_model(model, LoraConfig(r=2, target_modules="all-linear", init_lora_weights=False))
    assert not torch.allclose(logits(fresh), expected_BTV, atol=1e-4)
    with fresh.disable_adapter():
        assert torch.allclose(logits(fresh), expected_BTV, atol=1e-4)


def test_the_order_of_a_stack_does_not_matter_and_an_empty_one_is_the_base(
    folders: tuple[list[Path], torch.Tensor], tiny_model_dir: Path
) -> None:
    paths, expected_BTV = folders
    turned_BTV = logits(load_stack(tiny_model_dir, paths[::-1], dtype=torch.float32))
    assert torch.allclose(turned_BTV, expected_BTV, atol=1e-4)
    empty = load_stack(tiny_model_dir, [], dtype=torch.float32)
    assert torch.equal(logits(empty), logits(load_base(tiny_model_dir, dtype=torch.float32)))
    assert not any(parameter.requires_grad for parameter in empty.parameters())
    assert not empty.training


def test_an_adapter_of_another_base_is_refused(tiny_model_dir: Path, tmp_path: Path) -> None:
    factors = (torch.zeros(2, 32), torch.zeros(32, 2))
    write_adapter(tmp_path / "other", {"model.layers.7.self_attn.q_proj": factors}, "another base")
    with pytest.raises(IntegrityError, match="belongs to another base"):
        attach(load_base(tiny_model_dir, dtype=torch.float32), read_adapter(tmp_path / "other"))


def test_a_tokenizer_without_a_chat_template_is_refused(tiny_tokenizer: Any, tmp_path: Path) -> None:
    silent = copy.deepcopy(tiny_tokenizer)
    silent.chat_template = None
    silent.save_pretrained(tmp_path)
    with pytest.raises(BaseModelError, match="no chat template"):
        load_tokenizer(tmp_path)


@pytest.fixture
def wider_model_dir(tmp_path: Path, tiny_tokenizer: Any) -> Path:
    """A random Llama of width 128: 4-bit blocks are 64 weights long."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=len(tiny_tokenizer),
        hidden_size=128,
        intermediate_size=128,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        tie_word_embeddings=True,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        LlamaForCausalLM(config).save_pretrained(tmp_path)
    return tmp_path


def test_a_4_bit_base_gives_the_same_in_evaluation_and_with_gradients(wider_model_dir: Path) -> None:
    cpu = torch.device("cpu")
    model = load_base(wider_model_dir, dtype=torch.bfloat16, device=cpu, quantization="nf4")
    ids_BT = torch.arange(3, 15)[None]
    with torch.no_grad():
        before_BTV = model(input_ids=ids_BT).logits
    inputs_BTH = model.get_input_embeddings()(ids_BT).detach().requires_grad_()
    model.train()
    during_BTV = model(inputs_embeds=inputs_BTH).logits
    during_BTV.sum().backward()
    model.eval()
    with torch.no_grad():
        after_BTV = model(input_ids=ids_BT).logits
    assert torch.equal(before_BTV, during_BTV.detach())
    assert torch.equal(before_BTV, after_BTV)
    assert inputs_BTH.grad is not None and inputs_BTH.grad.abs().sum() > 0


def test_a_4_bit_base_has_the_gradients_of_its_own_dequantised_weights(wider_model_dir: Path) -> None:
    """Also after a forward without gradients, upon which bitsandbytes repacks weights on some CPUs."""
    from bitsandbytes.functional import dequantize_4bit
    from bitsandbytes.nn import Linear4bit

    quantized = load_base(wider_model_dir, dtype=torch.float32, device=torch.device("cpu"), quantization="nf4")
    plain = load_base(wider_model_dir, dtype=torch.float32, device=torch.device("cpu"))
    layers = {name: layer for name, layer in quantized.named_modules() if isinstance(layer, Linear4bit)}
    assert len(layers) == 7
    for name, layer in layers.items():
        plain.get_submodule(name).weight.data = dequantize_4bit(layer.weight.data, layer.weight.quant_state)
    logits(quantized)
    found = []
    for model in (quantized, plain):
        torch.manual_seed(0)
        targets = sorted({name.rsplit(".", 1)[-1] for name in layers})
        tuned = get_peft_model(model, LoraConfig(r=2, target_modules=targets, init_lora_weights=False))
        tuned(input_ids=IDS_BT, use_cache=False).logits.log_softmax(-1)[..., 5].sum().backward()
        gradients = [parameter.grad for parameter in tuned.parameters() if parameter.requires_grad]
        found.append(torch.cat([gradient.reshape(-1) for gradient in gradients if gradient is not None]))
    assert torch.allclose(*found, rtol=1e-3, atol=1e-4 * found[1].abs().max().item())
