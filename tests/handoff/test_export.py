"""Exports equal the stack they stand for, or do not appear at all."""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from incremental_llm.adapters.lora import read_adapter, write_adapter
from incremental_llm.adapters.merge import merge_into
from incremental_llm.adapters.stack import BaseRef, Stack
from incremental_llm.artifacts import folder_digest, verify_folder
from incremental_llm.errors import InputError, IntegrityError
from incremental_llm.handoff import PROBES, VLLM_RANKS, check_exportable, export_merged, export_peft
from incremental_llm.handoff.check import probe_ids

CPU = torch.device("cpu")
CONFIGS = (
    {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj", "down_proj"]},
    {"r": 2, "lora_alpha": 16, "target_modules": ["q_proj", "up_proj"], "use_rslora": True},
    {"r": 3, "lora_alpha": 3, "target_modules": ["q_proj", "down_proj"], "rank_pattern": {"q_proj": 5}},
)


@dataclass(frozen=True)
class Case:
    """A stack on disk and PEFT's own model that applies all its adapters at once, as the reference."""

    stack: Stack
    folders: tuple[Path, ...]
    base: Path
    reference: Any

    @property
    def arguments(self) -> dict[str, Any]:
        """What both exports take, except `out`."""
        return {
            "stack": self.stack,
            "adapter_folders": self.folders,
            "base_folder": self.base,
            "reference": self.reference,
            "probes": PROBES[-2:],
            "device": CPU,
        }


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    """Matrices of 32 numbers gain nothing from threads, and waiting for them costs seconds on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def case(tiny_model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Case:
    """Three random adapters: ranks and targets differ, one is rsLoRA, one has a rank pattern."""
    tmp_path = tmp_path_factory.mktemp("stack")
    tiny_model = AutoModelForCausalLM.from_pretrained(tiny_model_dir)
    model = None
    generator = torch.Generator().manual_seed(1)
    for i, options in enumerate(CONFIGS):
        config = LoraConfig(task_type="CAUSAL_LM", **options)
        if model is None:
            model = get_peft_model(tiny_model, config, adapter_name="a0")
        else:
            model.add_adapter(f"a{i}", config)
        for name, parameter in model.named_parameters():
            if f".a{i}." in name:
                parameter.data.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)
        model.save_pretrained(tmp_path / "adapters", selected_adapters=[f"a{i}"])
    assert model is not None
    model.base_model.set_adapter([f"a{i}" for i in range(len(CONFIGS))])
    folders = tuple(tmp_path / "adapters" / f"a{i}" for i in range(len(CONFIGS)))
    base = BaseRef(name="tiny", digest="b" * 64, template_digest="t" * 64)
    stack = Stack(base=base, adapters=tuple(map(folder_digest, folders)), dtype="float32")
    return Case(stack, folders, tiny_model_dir, model.eval())


def logits(model: Any, tokenizer: Any) -> list[torch.Tensor]:
    """Logits of every probe."""
    with torch.no_grad():
        return [model(ids).logits for ids in probe_ids(tokenizer, PROBES)]


def test_the_exported_adapter_loads_with_peft_and_equals_the_stack(
    case: Case, tmp_path: Path, tiny_tokenizer: Any
) -> None:
    out = tmp_path / "exports" / "v3"
    report = export_peft(out=out, **case.arguments)
    loaded = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(case.base), out)
    for found, expected in zip(logits(loaded, tiny_tokenizer), logits(case.reference, tiny_tokenizer), strict=True):
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)
    assert report.check.max_abs_logit <= 1e-4 and report.check.mean_kl <= 1e-8 and report.check.same_top == 1.0


def test_the_exported_adapter_has_one_rank_that_vllm_takes(case: Case, tmp_path: Path) -> None:
    report = export_peft(out=tmp_path / "v3", **case.arguments)
    config = json.loads((tmp_path / "v3" / "adapter_config.json").read_text())
    assert (report.stack_rank, report.rank) == (4 + 2 + 5, 16)
    assert (config["r"], config["lora_alpha"]) == (16, 16)
    assert config["use_rslora"] is False and config["use_dora"] is False and config["modules_to_save"] is None
    assert config["rank_pattern"] == config["alpha_pattern"] == {}
    assert config["base_model_name_or_path"] == "tiny"
    tensors = load_file(tmp_path / "v3" / "adapter_model.safetensors")
    assert {t.shape[0] if ".lora_A." in name else t.shape[1] for name, t in tensors.items()} == {16}


def test_the_merged_model_loads_and_equals_the_stack(case: Case, tmp_path: Path, tiny_tokenizer: Any) -> None:
    report = export_merged(out=tmp_path / "merged", **case.arguments)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "merged")
    assert tokenizer.chat_template == tiny_tokenizer.chat_template
    for found, expected in zip(logits(loaded, tokenizer), logits(case.reference, tiny_tokenizer), strict=True):
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)
    assert report.rank is None and report.check.max_abs_logit <= 1e-4
    assert not list((tmp_path / "merged").glob("*.bin"))


def test_a_merged_model_in_bf16_is_the_folded_stack_bit_for_bit(case: Case, tmp_path: Path) -> None:
    folded = AutoModelForCausalLM.from_pretrained(case.base, dtype=torch.bfloat16, attn_implementation="sdpa")
    merge_into(folded, [read_adapter(folder) for folder in case.folders])
    stack = case.stack.model_copy(update={"dtype": "bfloat16"})
    report = export_merged(out=tmp_path / "merged", **{**case.arguments, "stack": stack, "reference": folded.eval()})
    assert report.check.max_abs_logit == 0.0
    saved = load_file(tmp_path / "merged" / "model.safetensors")
    assert {tensor.dtype for tensor in saved.values()} == {torch.bfloat16}
    assert all(torch.equal(tensor, folded.state_dict()[name]) for name, tensor in saved.items())


def test_a_merged_model_in_bf16_without_a_small_adapter_does_not_appear(case: Case, tmp_path: Path) -> None:
    """Its logits are within what bfloat16 is allowed: only the weights tell."""
    folded = AutoModelForCausalLM.from_pretrained(case.base, dtype=torch.bfloat16, attn_implementation="sdpa")
    merge_into(folded, [read_adapter(folder) for folder in case.folders])
    stack = case.stack.model_copy(update={"dtype": "bfloat16", "adapters": case.stack.adapters[:-1]})
    given = {**case.arguments, "stack": stack, "adapter_folders": case.folders[:-1], "reference": folded.eval()}
    with pytest.raises(IntegrityError, match="weights of the stack that was measured"):
        export_merged(out=tmp_path / "merged", **given)
    assert not (tmp_path / "merged").exists()


@pytest.mark.parametrize("export", [export_peft, export_merged])
def test_the_folder_says_what_it_is_and_where_it_comes_from(
    case: Case, tmp_path: Path, export: Callable[..., Any]
) -> None:
    out = tmp_path / "out"
    report = export(out=out, lineage={"version": 3}, **case.arguments)
    verify_folder(out)
    written = json.loads((out / "export.json").read_text())
    assert written["stack"] == case.stack.digest and written["base"]["digest"] == case.stack.base.digest
    assert written["check"]["max_abs_logit"] == report.check.max_abs_logit
    assert written["check"]["mean_kl"] == report.check.mean_kl and written["check"]["probes"] == 2
    assert written["check"]["tolerance"]["mean_kl"] == report.tolerance.mean_kl
    if report.kind == "peft":
        assert written["ranks"]["exported"] == 16 and "padded with zeros to 16" in written["ranks"]["note"]
        assert written["ranks"]["stack"]["model.layers.0.mlp.up_proj"] == 2
    lineage = json.loads((out / "lineage.json").read_text())
    assert lineage["stack"]["adapters"] == list(case.stack.adapters) and lineage["source"] == {"version": 3}
    card = (out / "README.md").read_text()
    assert case.stack.base.digest in card and "vllm serve" in card and str(tmp_path) not in card


def test_the_command_serves_what_was_written(case: Case, tmp_path: Path) -> None:
    out = tmp_path / "an export"
    assert export_peft(out=out, **case.arguments).command == (
        f"vllm serve {case.base} --enable-lora --max-lora-rank 16 --lora-modules 'tuned={out}'"
    )
    assert export_merged(out=tmp_path / "m", **case.arguments).command == f"vllm serve {tmp_path / 'm'}"


@pytest.mark.parametrize("export", [export_peft, export_merged])
def test_an_export_that_differs_from_the_stack_does_not_appear(
    case: Case, tmp_path: Path, export: Callable[..., Any]
) -> None:
    plain_base = AutoModelForCausalLM.from_pretrained(case.base)
    out = tmp_path / "out"
    with pytest.raises(IntegrityError, match=r"(mean KL of at most|weights of the stack) .*Nothing was exported"):
        export(out=out, **{**case.arguments, "reference": plain_base})
    nan = lambda ids: case.reference(ids).logits * float("nan")  # noqa: E731
    with pytest.raises(IntegrityError, match="found nan"):
        export(out=out, **{**case.arguments, "reference": nan})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("export", [export_peft, export_merged])
def test_an_export_never_overwrites(case: Case, tmp_path: Path, export: Callable[..., Any]) -> None:
    out = tmp_path / "out"
    out.mkdir()
    export(out=out, **case.arguments)  # an empty folder is free
    before = folder_digest(out)
    with pytest.raises(InputError, match="never overwrites"):
        export(out=out, **case.arguments)
    assert folder_digest(out) == before
    file = tmp_path / "file"
    file.write_text("mine")
    with pytest.raises(InputError, match="never overwrites"):
        export(out=file, **case.arguments)
    assert file.read_text() == "mine"


def test_adapters_must_be_those_of_the_stack(case: Case, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(InputError, match=r"expected 3 adapter folders.*found 2"):
        export_peft(out=out, **{**case.arguments, "adapter_folders": case.folders[:2]})
    with pytest.raises(IntegrityError, match="expected the adapter with digest"):
        export_peft(out=out, **{**case.arguments, "adapter_folders": case.folders[::-1]})
    with pytest.raises(InputError, match="gone"):
        export_peft(out=out, **{**case.arguments, "adapter_folders": (*case.folders[:2], tmp_path / "gone")})
    assert not out.exists()


@pytest.mark.parametrize("export", [export_peft, export_merged])
def test_a_stack_without_adapters_is_its_base(case: Case, tmp_path: Path, export: Callable[..., Any]) -> None:
    empty = case.stack.model_copy(update={"adapters": ()})
    with pytest.raises(InputError, match="serve tiny"):
        export(out=tmp_path / "out", **{**case.arguments, "stack": empty, "adapter_folders": ()})


def test_nothing_is_merged_into_a_quantised_base(case: Case, tmp_path: Path) -> None:
    base = tmp_path / "quantised"
    shutil.copytree(case.base, base)
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps({**config, "quantization_config": {"load_in_4bit": True}}))
    with pytest.raises(InputError, match="4-bit weights loses nearly all"):
        export_merged(out=tmp_path / "out", **{**case.arguments, "base_folder": base})


def test_a_rank_above_vllms_largest_is_refused_with_a_way_out(case: Case, tmp_path: Path) -> None:
    adapter = read_adapter(case.folders[0])
    A_RI, B_OR = adapter.modules["model.layers.0.self_attn.q_proj"]
    big = (A_RI.repeat(VLLM_RANKS[-1] // 4, 1), B_OR.repeat(1, VLLM_RANKS[-1] // 4))
    write_adapter(tmp_path / "big", {"model.layers.0.self_attn.q_proj": big}, "tiny")
    stack = case.stack.model_copy(update={"adapters": (case.stack.adapters[0], folder_digest(tmp_path / "big"))})
    folders = (case.folders[0], tmp_path / "big")
    with pytest.raises(InputError, match=r"found 516.*Export the merged model"):
        export_peft(out=tmp_path / "out", **{**case.arguments, "stack": stack, "adapter_folders": folders})


def test_no_probes_is_not_a_pass(case: Case, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="at least one probe"):
        export_peft(out=tmp_path / "out", **{**case.arguments, "probes": ()})
    assert not (tmp_path / "out").exists()


def test_an_unknown_dtype_is_refused(case: Case, tmp_path: Path) -> None:
    stack = copy.deepcopy(case.stack).model_copy(update={"dtype": "int4"})
    with pytest.raises(InputError, match="'int4'"):
        export_merged(out=tmp_path / "out", **{**case.arguments, "stack": stack})


def test_what_cannot_be_exported_is_refused_from_files_alone(case: Case, tmp_path: Path) -> None:
    out = tmp_path / "out"
    check_exportable(case.stack, case.folders, out)
    assert not out.exists()
    empty = case.stack.model_copy(update={"adapters": ()})
    with pytest.raises(InputError, match="expected a stack with adapters to export, found none"):
        check_exportable(empty, (), out)
    with pytest.raises(InputError, match="expected a stack in one of"):
        check_exportable(case.stack.model_copy(update={"dtype": "int8"}), case.folders, out)
    many = case.stack.model_copy(update={"adapters": case.stack.adapters * 50})
    with pytest.raises(InputError, match="vLLM's largest, found 550"):
        check_exportable(many, case.folders * 50, out)
    check_exportable(many, case.folders * 50, out, "merged")
    (out / "taken").mkdir(parents=True)
    with pytest.raises(InputError, match="an export never overwrites"):
        check_exportable(case.stack, case.folders, out)
