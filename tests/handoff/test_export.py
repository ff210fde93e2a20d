"""Exports equal the stack they stand for, or do not appear at all."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from incremental_llm.adapters.lora import read_adapter, write_adapter
from incremental_llm.adapters.merge import merge_into
from incremental_llm.artifacts import folder_digest, verify_folder
from incremental_llm.errors import InputError, IntegrityError
from incremental_llm.handoff import (
    PROBES,
    VLLM_RANKS,
    Form,
    Source,
    check_exportable,
    export,
    export_merged,
    export_peft,
    export_vllm,
)
from incremental_llm.handoff.check import probe_ids
from incremental_llm.handoff.source import WHOLE

FORMS: tuple[Form, ...] = ("peft", "vllm", "merged", "gguf-lora", "gguf")
Case = Any  # tests/handoff/conftest.py


@pytest.fixture
def source(case: Case) -> Source:
    return case.source


def of(source: Source, **changes: Any) -> Source:
    """The source of a changed stack; keys of the stack first, then those of the source."""
    of_stack = {key: changes.pop(key) for key in ("adapters", "dtype") if key in changes}
    return replace(source, stack=source.stack.model_copy(update=of_stack), **changes)


def logits(model: Any, tokenizer: Any) -> list[torch.Tensor]:
    """Logits of every probe."""
    with torch.no_grad():
        return [model(ids).logits for ids in probe_ids(tokenizer, PROBES)]


def bf16(source: Source, adapters: int = 3) -> tuple[Source, Any]:
    """The first adapters as a stack in bf16, against all three folded; and those."""
    folded = AutoModelForCausalLM.from_pretrained(source.base_folder, dtype=torch.bfloat16, attn_implementation="sdpa")
    merge_into(folded, [read_adapter(folder) for folder in source.adapter_folders])
    some = of(source, adapters=source.stack.adapters[:adapters], dtype="bfloat16")
    return replace(some, adapter_folders=source.adapter_folders[:adapters], reference=folded.eval()), folded


@pytest.mark.parametrize("form", ["peft", "vllm"])
def test_the_exported_adapter_loads_with_peft_and_equals_the_stack(
    case: Case, source: Source, tmp_path: Path, tiny_tokenizer: Any, form: Form
) -> None:
    out = tmp_path / "exports" / "v3"
    report = export(source, out, form)
    loaded = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(case.base), out)
    for found, expected in zip(logits(loaded, tiny_tokenizer), logits(case.reference, tiny_tokenizer), strict=True):
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)
    assert report.check.max_abs_logit <= 1e-4 and report.check.mean_kl <= 1e-8 and report.check.same_top == 1.0
    assert report.error == 0.0


@pytest.mark.parametrize(("form", "rank"), [("peft", 11), ("vllm", 16)])
def test_the_exported_adapter_has_one_rank(source: Source, tmp_path: Path, form: Form, rank: int) -> None:
    report = export(source, tmp_path / "v3", form)
    config = json.loads((tmp_path / "v3" / "adapter_config.json").read_text())
    assert (report.stack_rank, report.rank) == (4 + 2 + 5, rank)
    assert (config["r"], config["lora_alpha"]) == (rank, rank)
    assert config["use_rslora"] is False and config["use_dora"] is False and config["modules_to_save"] is None
    assert config["rank_pattern"] == config["alpha_pattern"] == {}
    tensors = load_file(tmp_path / "v3" / "adapter_model.safetensors")
    assert {t.shape[0] if ".lora_A." in name else t.shape[1] for name, t in tensors.items()} == {rank}


def test_the_merged_model_loads_and_equals_the_stack(
    case: Case, source: Source, tmp_path: Path, tiny_tokenizer: Any
) -> None:
    report = export_merged(source, tmp_path / "merged")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "merged")
    assert tokenizer.chat_template == tiny_tokenizer.chat_template
    for found, expected in zip(logits(loaded, tokenizer), logits(case.reference, tiny_tokenizer), strict=True):
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)
    assert report.rank is None and report.check.max_abs_logit <= 1e-4
    assert not list((tmp_path / "merged").glob("*.bin"))


def test_a_merged_model_in_bf16_is_the_folded_stack_bit_for_bit(source: Source, tmp_path: Path) -> None:
    served, folded = bf16(source)
    report = export_merged(served, tmp_path / "merged")
    assert report.check.max_abs_logit == 0.0 and report.dtype == "bfloat16"
    saved = load_file(tmp_path / "merged" / "model.safetensors")
    assert {tensor.dtype for tensor in saved.values()} == {torch.bfloat16}
    assert all(torch.equal(tensor, folded.state_dict()[name]) for name, tensor in saved.items())


@pytest.mark.parametrize("form", WHOLE)
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_a_model_in_another_dtype_holds_the_weights_that_were_measured(
    source: Source, tmp_path: Path, form: Form, dtype: str
) -> None:
    """Both have more digits than bfloat16; fp16 has fewer powers, which weights of this size do not need."""
    served, _ = bf16(source)
    assert export(served, tmp_path / "out", form, dtype=dtype).check.max_abs_logit == 0.0
    assert json.loads((tmp_path / "out" / "export.json").read_text())["dtype"] == dtype


@pytest.mark.parametrize("form", WHOLE)
def test_a_model_in_bf16_without_a_small_adapter_does_not_appear(source: Source, tmp_path: Path, form: Form) -> None:
    """Its logits are within what bfloat16 is allowed: only the weights tell."""
    served, _ = bf16(source, adapters=2)
    with pytest.raises(IntegrityError, match="weights of the stack that was measured"):
        export(served, tmp_path / "out", form)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("form", FORMS)
def test_the_folder_says_what_it_is_and_where_it_comes_from(
    case: Case, source: Source, tmp_path: Path, form: Form
) -> None:
    out = tmp_path / "out"
    said: list[str] = []
    report = export(replace(source, lineage={"version": 3}, say=said.append), out, form)
    verify_folder(out)
    written = json.loads((out / "export.json").read_text())
    assert written["kind"] == form and written["stack"] == case.stack.digest
    assert written["base"] == {**case.stack.base.model_dump(), "revision": None}
    assert written["check"]["max_abs_logit"] == report.check.max_abs_logit
    assert written["check"]["mean_kl"] == report.check.mean_kl and written["check"]["probes"] == 2
    assert written["check"]["same_top"] == report.check.same_top
    assert written["check"]["tolerance"]["mean_kl"] == report.tolerance.mean_kl
    if form not in WHOLE:
        assert written["ranks"]["exported"] == report.rank and "padded with zeros" in written["ranks"]["note"]
        assert written["ranks"]["stack"]["model.layers.0.mlp.up_proj"] == 2
        assert written["relative_error"] == 0.0
    lineage = json.loads((out / "lineage.json").read_text())
    assert lineage["stack"]["adapters"] == list(case.stack.adapters) and lineage["source"] == {"version": 3}
    card = (out / "README.md").read_text()
    assert case.stack.base.digest in card and "FOLDER" in card
    for text in (card, json.dumps(written["commands"])):
        assert str(tmp_path) not in text and str(case.base) not in text
    assert said[-2:] == ["loading it back", "comparing its logits with the stack's on 2 prompts"]


def test_the_commands_serve_what_was_written(source: Source, tmp_path: Path) -> None:
    out, base = tmp_path / "an export", source.base_folder
    assert export_vllm(source, out).commands == (
        f"vllm serve {base} --enable-lora --max-lora-rank 16 --lora-modules 'an export={out}'",
        "VLLM_ALLOW_RUNTIME_LORA_UPDATING=true VLLM_PLUGINS=lora_filesystem_resolver "
        f"VLLM_LORA_RESOLVER_CACHE_DIR={tmp_path} vllm serve {base} --enable-lora --max-lora-rank 16",
    )
    assert export_merged(source, tmp_path / "m").commands[0] == f"vllm serve {tmp_path / 'm'}"
    assert export(source, tmp_path / "g", "gguf").commands == (f"llama-server -m {tmp_path / 'g/model.gguf'} --jinja",)
    assert export(source, tmp_path / "l", "gguf-lora").commands == (
        f"llama-server -m BASE/model.gguf --lora {tmp_path / 'l/adapter.gguf'}",
    )


def test_the_python_that_is_printed_loads_the_adapter(source: Source, tmp_path: Path) -> None:
    (line,) = export_peft(source, tmp_path / "v3").commands
    assert isinstance(eval(line), PeftModel)


def test_a_rank_above_vllms_largest_is_reduced_exactly_where_the_deltas_have_less(
    source: Source, tmp_path: Path
) -> None:
    adapter = read_adapter(source.adapter_folders[0])
    A_RI, B_OR = adapter.folded("model.layers.0.self_attn.q_proj")
    times = VLLM_RANKS[-1] // 4 + 1
    big = (A_RI.repeat(times, 1), B_OR.repeat(1, times) / times)
    write_adapter(tmp_path / "big", {**rest(adapter), "model.layers.0.self_attn.q_proj": big}, "tiny")
    adapters = (folder_digest(tmp_path / "big"), *source.stack.adapters[1:])
    tall = of(source, adapters=adapters, adapter_folders=(tmp_path / "big", *source.adapter_folders[1:]))
    assert export_peft(tall, tmp_path / "peft").rank == 516 + 2 + 5
    report = export_vllm(tall, tmp_path / "vllm")
    assert (report.stack_rank, report.rank, report.error) == (516 + 2 + 5, 512, 0.0)
    assert report.check.max_abs_logit < 1e-3


def rest(adapter: Any) -> dict[str, Any]:
    """Every module's factors with the scaling in them."""
    return {name: adapter.folded(name) for name in adapter.modules}


def test_an_inexact_adapter_has_to_be_asked_for_and_says_what_it_costs(
    source: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("incremental_llm.handoff.adapter.VLLM_RANKS", (1, 8))
    out = tmp_path / "out"
    for refused in (check_exportable, export):
        with pytest.raises(InputError, match=r"at most 0, found 0\.\d+ for a stack of rank 11 at rank 8") as error:
            refused(source, out, "vllm")
    allowed = float(re.findall(r"--max-error ([\d.]+)", str(error.value))[0])
    with pytest.raises(InputError, match="relative error of at most"):
        export(source, out, "vllm", max_error=allowed / 2)
    assert not out.exists()
    report = export(source, out, "vllm", max_error=allowed)
    assert report.rank == 8 and report.error is not None and 0 < report.error <= allowed < 1.2 * report.error
    written = json.loads((out / "export.json").read_text())
    assert written["relative_error"] == report.error and "reduced by SVD from 11 to 8" in written["ranks"]["note"]
    assert written["check"]["tolerance"] is None  # measured, and not judged
    assert written["check"]["max_abs_logit"] > 1e-3 and written["check"]["mean_kl"] > 0
    assert "up to a relative error of" in (out / "README.md").read_text()


@pytest.mark.parametrize("form", ["peft", "vllm", "gguf-lora"])
def test_rounded_factors_have_to_be_asked_for(source: Source, tmp_path: Path, form: Form) -> None:
    with pytest.raises(InputError, match=r"found 0\.00\d+ .* in bfloat16"):
        export(source, tmp_path / "out", form, dtype="bfloat16")
    report = export(source, tmp_path / "out", form, dtype="bfloat16", max_error=0.01)
    assert report.error is not None and 0 < report.error < 0.01 and report.dtype == "bfloat16"


def test_vllms_resolver_finds_the_adapter_by_the_base_that_is_served(source: Source, tmp_path: Path) -> None:
    """It compares `base_model_name_or_path` with the argument of `vllm serve`: a folder, or an id on the Hub."""
    export_vllm(source, tmp_path / "local")
    config = json.loads((tmp_path / "local" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(source.base_folder) and config["revision"] is None
    commit = "0123456789abcdef0123456789abcdef01234567"
    cached = tmp_path / "models--maker--tiny" / "snapshots" / commit
    shutil.copytree(source.base_folder, cached)
    base = source.stack.base.model_copy(update={"name": "maker/tiny"})
    hub = replace(source, stack=source.stack.model_copy(update={"base": base}), base_folder=cached)
    report = export_vllm(hub, tmp_path / "hub")
    config = json.loads((tmp_path / "hub" / "adapter_config.json").read_text())
    assert (config["base_model_name_or_path"], config["revision"]) == ("maker/tiny", commit)
    assert report.commands[0].startswith(f"vllm serve maker/tiny --revision {commit} --enable-lora")
    assert commit in (tmp_path / "hub" / "README.md").read_text()
    assert json.loads((tmp_path / "hub" / "export.json").read_text())["base"]["revision"] == commit


@pytest.mark.parametrize("form", FORMS)
def test_an_export_that_differs_from_the_stack_does_not_appear(source: Source, tmp_path: Path, form: Form) -> None:
    plain_base = AutoModelForCausalLM.from_pretrained(source.base_folder)
    with pytest.raises(IntegrityError, match=r"(mean KL of at most|weights of the stack) .*Nothing was exported"):
        export(replace(source, reference=plain_base), tmp_path / "out", form)
    reference: Any = source.reference
    nan = lambda ids: reference(ids).logits * float("nan")  # noqa: E731
    with pytest.raises(IntegrityError, match="found nan"):
        export(replace(source, reference=nan), tmp_path / "out", form)
    with pytest.raises(InputError, match="to compare an export with, found none"):
        export(replace(source, reference=None), tmp_path / "out", form)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("form", FORMS)
def test_an_export_never_overwrites(source: Source, tmp_path: Path, form: Form) -> None:
    out = tmp_path / "out"
    out.mkdir()
    export(source, out, form)  # an empty folder is free
    before = folder_digest(out)
    with pytest.raises(InputError, match="never overwrites"):
        export(source, out, form)
    assert folder_digest(out) == before
    file = tmp_path / "file"
    file.write_text("mine")
    with pytest.raises(InputError, match="never overwrites"):
        export(source, file, form)
    assert file.read_text() == "mine"


def test_adapters_must_be_those_of_the_stack(case: Case, source: Source, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(InputError, match=r"expected 3 adapter folders.*found 2"):
        export_peft(replace(source, adapter_folders=case.folders[:2]), out)
    with pytest.raises(IntegrityError, match="expected the adapter with digest"):
        export_peft(replace(source, adapter_folders=case.folders[::-1]), out)
    with pytest.raises(InputError, match="gone"):
        export_peft(replace(source, adapter_folders=(*case.folders[:2], tmp_path / "gone")), out)
    assert not out.exists()


@pytest.mark.parametrize("form", ["peft", "vllm", "merged", "gguf-lora"])
def test_a_stack_without_adapters_is_its_base(source: Source, tmp_path: Path, form: Form) -> None:
    with pytest.raises(InputError, match="serve tiny"):
        export(of(source, adapters=(), adapter_folders=()), tmp_path / "out", form)


@pytest.mark.parametrize("form", WHOLE)
def test_nothing_is_merged_into_a_quantised_base(source: Source, tmp_path: Path, form: Form) -> None:
    base = tmp_path / "quantised"
    shutil.copytree(source.base_folder, base)
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps({**config, "quantization_config": {"load_in_4bit": True}}))
    with pytest.raises(InputError, match="4-bit weights loses nearly all"):
        export(replace(source, base_folder=base), tmp_path / "out", form)


@pytest.mark.parametrize("form", ["merged", "gguf-lora", "gguf"])
def test_what_was_measured_in_4_bits_leaves_as_an_adapter_for_4_bits(
    source: Source, tmp_path: Path, form: Form
) -> None:
    with pytest.raises(InputError, match=r"16-bit (ones|weights) were never measured.*--form peft"):
        check_exportable(replace(source, quantization="nf4"), tmp_path / "out", form)


def test_no_probes_is_not_a_pass(source: Source, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="at least one probe"):
        export_peft(replace(source, probes=()), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_unknown_dtype_is_refused(source: Source, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="'int4'"):
        export_merged(of(source, dtype="int4"), tmp_path / "out")
    for form in FORMS:
        with pytest.raises(InputError, match="'int8'"):
            check_exportable(source, tmp_path / "out", form, dtype="int8")


def test_what_cannot_be_exported_is_refused_from_files_alone(case: Case, source: Source, tmp_path: Path) -> None:
    out = tmp_path / "out"
    source = replace(source, reference=None)
    for form in FORMS:
        check_exportable(source, out, form)
    assert not out.exists()
    with pytest.raises(InputError, match="expected a stack with adapters to export, found none"):
        check_exportable(of(source, adapters=(), adapter_folders=()), out)
    check_exportable(of(source, adapters=(), adapter_folders=()), out, "gguf")  # the base, for an adapter to go on
    with pytest.raises(InputError, match="expected one of the dtypes"):
        check_exportable(of(source, dtype="int8"), out)
    with pytest.raises(InputError, match="expected no max_error with merged"):
        check_exportable(source, out, "merged", max_error=0.1)
    (out / "taken").mkdir(parents=True)
    with pytest.raises(InputError, match="an export never overwrites"):
        check_exportable(source, out)
