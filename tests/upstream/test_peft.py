"""Canaries on PEFT: adapters that are active together, merged, or combined by PEFT itself."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel, get_peft_model
from peft.helpers import disable_input_dtype_casting

from .conftest import IDS_BT, Q0, lora, train_only, trained, used

Fresh = Callable[[], Any]


def delta(model: Any, adapter: str) -> torch.Tensor:
    """What an adapter adds to the first layer's query weight."""
    return model.get_submodule(Q0).get_delta_weight(adapter).detach()


@torch.no_grad()
def logits(model: Any) -> torch.Tensor:
    return model(IDS_BT).logits


def stacked(fresh: Fresh, *names: str, **changes: Any) -> Any:
    """A PEFT model with used adapters of these names; the first one is active."""
    model = get_peft_model(fresh(), used(**changes), adapter_name=names[0])
    for name in names[1:]:
        model.add_adapter(name, used(**changes))
    return model


def test_all_adapters_that_are_set_become_trainable(fresh: Fresh) -> None:
    """`set_adapter` with several names makes every one of them trainable, frozen ones too (peft#3447).

    Ours: adapters/load.py folds the stack into the base, so that PEFT holds one adapter and no other can be trained;
    training/invariants.py checks it in every run.
    If it fails: nothing breaks, and folding stays for its speed. Look at whether `check_only_adapter_trains` still sees
    what it should, then turn this test around.
    """
    model = stacked(fresh, "first", "second", "new")
    train_only(model, "new")
    model.base_model.set_adapter(["first", "second", "new"])
    assert trained(model) == {"first", "second", "new"}


def test_leaving_disable_adapter_trains_frozen_adapters(fresh: Fresh) -> None:
    """Leaving `disable_adapter()` gives gradients back to all active adapters, frozen or not (peft#3447).

    TRL's DPO and KTO enter and leave it at every step.
    Ours: as above; the reference's log-probabilities are computed before the adapter is there (training/phase.py).
    If it fails: nothing breaks. training/increment.py and null_space.py enter it too: see that the adapter `default`
    still trains afterwards, which `check_only_adapter_trains` at the end of a run would tell.
    """
    model = stacked(fresh, "old", "new")
    model.base_model.set_adapter(["old", "new"])
    train_only(model, "new")
    with model.disable_adapter():
        assert trained(model) == set()
    assert trained(model) == {"old", "new"}


def test_a_frozen_adapter_still_drops_out(fresh: Fresh) -> None:
    """A frozen adapter's dropout is as active in training mode as a trained one's.

    Ours: adapters/load.py folds frozen adapters, or adds them by a hook over a 4-bit base: neither has a dropout.
    If it fails: nothing to do.
    """
    model = get_peft_model(fresh(), used(lora_dropout=0.5)).train()
    model.requires_grad_(False)
    assert not torch.equal(logits(model), logits(model))


@pytest.mark.parametrize(("rslora", "factor"), [(False, 1.0), (True, 8**0.5)])
def test_a_concatenation_with_rslora_is_too_strong_by_the_root_of_its_rank(
    fresh: Fresh, rslora: bool, factor: float
) -> None:
    """`add_weighted_adapter("cat")` scales the sum of two rsLoRA adapters once more, by sqrt(r) (peft#3761).

    Ours: adapters/merge.py `concatenate` does it on plain tensors, scaling 1 (tests/adapters/test_merge.py).
    If it fails: nothing breaks. `concatenate` stays: it also takes mixed ranks and adapters of different modules.
    """
    model = stacked(fresh, "old", "new", use_rslora=rslora)
    model.add_weighted_adapter(["old", "new"], [1.0, 1.0], "both", combination_type="cat")
    torch.testing.assert_close(delta(model, "both"), factor * (delta(model, "old") + delta(model, "new")))


def test_an_svd_of_rslora_is_too_strong_as_well(fresh: Fresh) -> None:
    """`add_weighted_adapter("svd")` of rsLoRA adapters, exact at full rank, is sqrt(r) times too strong too.

    Ours: adapters/merge.py `reduce_rank`, by QR and an SVD of the small core.
    If it fails: nothing to do; `reduce_rank` stays for its speed.
    """
    model = stacked(fresh, "old", "new", use_rslora=True)
    model.add_weighted_adapter(["old", "new"], [1.0, 1.0], "both", combination_type="svd", svd_rank=8)
    wanted = delta(model, "old") + delta(model, "new")
    torch.testing.assert_close(delta(model, "both"), 8**0.5 * wanted, atol=1e-3, rtol=1e-3)


def test_the_linear_combination_is_not_the_sum(fresh: Fresh) -> None:
    """`add_weighted_adapter("linear")` adds up factors, (B1 + B2)(A1 + A2): cross terms, not the sum of the deltas.

    Ours: adapters/merge.py `concatenate`.
    If it fails: nothing to do.
    """
    model = stacked(fresh, "old", "new")
    model.add_weighted_adapter(["old", "new"], [1.0, 1.0], "both", combination_type="linear")
    wanted = delta(model, "old") + delta(model, "new")
    assert (delta(model, "both") - wanted).norm() > 0.5 * wanted.norm()


def test_combining_a_dora_adapter_loses_its_magnitudes(fresh: Fresh) -> None:
    """`add_weighted_adapter` of one DoRA adapter gives another one: the magnitudes are made anew, without a word.

    Ours: adapters/lora.py refuses DoRA by name when an adapter is read.
    If it fails: nothing breaks; DoRA still is no sum.
    """
    model = stacked(fresh, "old", use_dora=True).eval()
    wanted = logits(model)
    model.add_weighted_adapter(["old"], [1.0], "same", combination_type="cat")
    model.set_adapter("same")
    assert (logits(model) - wanted).abs().max() > 0.1


def test_combining_into_a_name_that_exists_does_nothing(fresh: Fresh) -> None:
    """`add_weighted_adapter` returns silently when its target name is taken, whatever is there.

    Ours: adapters/merge.py returns new tensors and has no names.
    If it fails: nothing to do.
    """
    model = stacked(fresh, "old", "new")
    before = delta(model, "new")
    assert model.add_weighted_adapter(["old"], [5.0], "new", combination_type="cat") is None
    assert torch.equal(delta(model, "new"), before)


def test_an_svd_in_bf16_raises_and_leaves_an_adapter_behind(fresh: Fresh) -> None:
    """The SVD of bf16 adapters raises (integer weights; floats happen to make it fp32), its target half made: zeros.

    The next try finds the name taken, and returns silently.
    Ours: adapters/merge.py computes in float64, and returns new tensors or raises.
    If it fails: nothing to do.
    """
    model = get_peft_model(fresh().bfloat16(), used(), adapter_name="old", autocast_adapter_dtype=False)
    model.add_adapter("new", used(), autocast_adapter_dtype=False)
    with pytest.raises(NotImplementedError, match="BFloat16"):
        model.add_weighted_adapter(["old", "new"], [1, 1], "both", combination_type="svd")
    model.add_weighted_adapter(["old", "new"], [1.0, 1.0], "both", combination_type="svd")
    assert not delta(model, "both").any()


def test_merging_and_unmerging_in_bf16_leaves_other_weights(fresh: Fresh) -> None:
    """`merge_adapter` then `unmerge_adapter` changes a bf16 base for good: both round.

    Ours: nothing is ever unmerged. adapters/merge.py sums in fp32 and rounds once, into a model of its own.
    If it fails: nothing to do.
    """
    model = get_peft_model(fresh().bfloat16(), used())
    weight = model.get_submodule(Q0).base_layer.weight
    before = weight.detach().clone()
    model.merge_adapter()
    model.unmerge_adapter()
    assert (weight != before).float().mean() > 0.1


def test_a_nan_is_merged_without_a_word(fresh: Fresh) -> None:
    """`merge_and_unload` merges a NaN into the base, unless it is given safe_merge=True.

    Ours: adapters/lora.py refuses what is not finite when it reads and writes, adapters/merge.py when it merges.
    If it fails: nothing to do.
    """
    model = stacked(fresh, "old")
    model.get_submodule(Q0).lora_B["old"].weight.data[0, 0] = float("nan")
    with pytest.raises(ValueError, match="NaNs detected"):
        model.merge_and_unload(safe_merge=True)
    merged = model.merge_and_unload()
    assert merged.model.layers[0].self_attn.q_proj.weight.isnan().any()


def test_a_mistyped_adapter_is_merged_as_nothing(fresh: Fresh, tiny_model: Any) -> None:
    """`merge_and_unload(adapter_names=["typo"])` returns the bare base and raises nothing.

    Ours: adapters/merge.py takes tensors, and the registry gives them by digest.
    If it fails: nothing to do.
    """
    merged = stacked(fresh, "old").merge_and_unload(adapter_names=["typo"])
    bare = dict(tiny_model.named_parameters())
    assert all(torch.equal(value, bare[name]) for name, value in merged.named_parameters())


def test_a_mistyped_target_is_left_out(fresh: Fresh) -> None:
    """With one of the target modules found, the others may be missing: PEFT adapts what it finds.

    Ours: training/adapter.py `_check_targets` looks at every name first.
    If it fails: `_check_targets` may go if PEFT's message names the module and what to do.
    """
    model = get_peft_model(fresh(), lora(target_modules=["q_proj", "up_porj"]))
    adapted = {name.split(".lora_")[0].rsplit(".", 1)[-1] for name, _ in model.named_parameters() if ".lora_" in name}
    assert adapted == {"q_proj"}


def test_layers_cannot_be_chosen_with_all_linear(fresh: Fresh) -> None:
    """`layers_to_transform` is refused beside target_modules="all-linear".

    Ours: training/adapter.py `lora_config` lists the linear modules itself when `first_layer` is set.
    If it fails: that list may go; see that the head is still left out.
    """
    with pytest.raises(ValueError, match="layers_to_transform"):
        get_peft_model(fresh(), lora(target_modules="all-linear", layers_to_transform=[1]))


def test_a_fresh_adapter_has_no_gradient_in_its_first_factor(fresh: Fresh) -> None:
    """B starts at 0, so that the first gradient of A is exactly 0: no Fisher information, nothing for EWC to hold.

    Ours: training/invariants.py `check_fresh_start` relies on B = 0; null_space.py turns A, which changes no output.
    If it fails: another init is the default now. Name the old one in training/adapter.py, or every night starts away
    from its reference and is refused.
    """
    model = get_peft_model(fresh(), lora())
    model(IDS_BT).logits.sum().backward()
    peaks = {
        name: parameter.grad.abs().max() for name, parameter in model.named_parameters() if parameter.requires_grad
    }
    assert all((peak == 0) == ("lora_A" in name) for name, peak in peaks.items())


def test_an_adapter_of_a_bf16_base_is_fp32_and_so_are_its_inputs(fresh: Fresh) -> None:
    """`get_peft_model` keeps new factors in fp32 over a bf16 base, and copies every activation to fp32 for them.

    Ours: training/adapter.py leaves the factors in fp32 for the optimizer and runs under `disable_input_dtype_casting`,
    since autocast makes the product bf16 anyway.
    If it fails: with bf16 factors, convert them in `new_adapter`, or updates below 2**-8 of a weight are lost. Without
    the copy, `adapter_in_autocast_dtype` may go.
    """
    model = get_peft_model(fresh().bfloat16(), used())
    factor, seen = model.get_submodule(Q0).lora_A["default"], []
    factor.register_forward_pre_hook(lambda _module, inputs: seen.append(inputs[0].dtype))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits(model)
        with disable_input_dtype_casting(model):
            logits(model)
    assert factor.weight.dtype == torch.float32
    assert seen == [torch.float32, torch.bfloat16]


@pytest.mark.filterwarnings("ignore:Merge lora module to 4-bit linear may get different generations:UserWarning")
def test_merging_into_4_bits_loses_nearly_all_of_a_delta(four_bit: Any) -> None:
    """A delta of half a percent of the weight, merged into nf4 by PEFT, is gone but for about a hundredth.

    PEFT only warns of rounding errors.
    Ours: adapters/merge.py refuses quantised weights, adapters/load.py adds the stack by hooks instead, and
    handoff/export.py merges into no base whose own weights are quantised.
    If it fails: merging into 4 bits may have become exact. Measure it before anything is allowed.
    """
    from bitsandbytes.functional import dequantize_4bit

    model = get_peft_model(four_bit, used())
    layer = model.get_submodule(Q0)

    def weight() -> torch.Tensor:
        return dequantize_4bit(layer.base_layer.weight.data, layer.base_layer.weight.quant_state).float()

    with torch.no_grad():
        before = weight()
        layer.lora_B["default"].weight.mul_(0.005 * before.norm() / delta(model, "default").norm())
        wanted = delta(model, "default").float()
        model.merge_adapter()
        found = weight() - before
    assert (found * wanted).sum() / wanted.square().sum() < 0.1
    assert (found - wanted).norm() > wanted.norm()  # worse than no merge at all


def test_a_4_bit_layer_is_repacked_by_its_first_evaluation(four_bit: Any) -> None:
    """On CPUs with bf16 in AVX-512, bitsandbytes repacks a 4-bit weight in place when a forward needs no gradient.

    What merges, saves or dequantises it afterwards reads another layout, and the repacked kernel has no gradient.
    Ours: adapters/load.py `_keep_one_kernel` turns the attribute off that allows it (tests/adapters/test_load.py shows
    the gradients).
    If it fails: see that the attribute still exists under this name; `_keep_one_kernel` passes over layers without it.
    """
    from bitsandbytes.nn.modules import has_avx512bf16

    layer = four_bit.model.layers[0].self_attn.q_proj
    assert layer.support_avx512bf16_for_cpu is False  # by load_base
    if not has_avx512bf16():
        pytest.skip("this CPU has no bf16 in AVX-512")
    before = layer.weight.data.clone()
    layer.eval()(torch.ones(1, 128, dtype=torch.bfloat16))
    assert torch.equal(layer.weight.data, before)
    layer.support_avx512bf16_for_cpu = True
    layer(torch.ones(1, 128, dtype=torch.bfloat16))
    assert not torch.equal(layer.weight.data.flatten(), before.flatten())


def test_a_pickle_is_loaded_where_safetensors_are_missing(fresh: Fresh, tmp_path: Path) -> None:
    """`PeftModel.from_pretrained` takes adapter_model.bin, a pickle, when there is no adapter_model.safetensors.

    torch reads it with weights_only=True, so that code in it does not run; what it holds is believed.
    Ours: adapters/lora.py refuses it (tests/adapters/test_lora.py), the registry refuses pickles by name.
    If it fails: nothing to do.
    """
    model = stacked(fresh, "default")
    model.save_pretrained(tmp_path)
    (tmp_path / "adapter_model.safetensors").unlink()
    zeros = {
        name.replace(".default", ""): torch.zeros_like(p) for name, p in model.named_parameters() if "lora_" in name
    }
    torch.save(zeros, tmp_path / "adapter_model.bin")
    assert not delta(PeftModel.from_pretrained(fresh(), tmp_path), "default").any()
