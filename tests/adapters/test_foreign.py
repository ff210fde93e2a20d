"""Adapters that PEFT saved and that are what they say: they pass, and compute the same after import."""

from __future__ import annotations

import copy
import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file

import incremental_llm.adapters.foreign as foreign
from incremental_llm.adapters.foreign import IMPORT_FILE, check_foreign, import_foreign
from incremental_llm.adapters.lora import CONFIG_FILE, WEIGHTS_FILE, delta, read_adapter
from incremental_llm.artifacts import file_digest, verify_folder
from incremental_llm.errors import BaseModelError, InputError, IntegrityError

Q0 = "model.layers.0.self_attn.q_proj"
IDS = torch.arange(3, 40)[None]


def saved(model: Any, folder: Path, *, dtype: torch.dtype = torch.float32, size: float = 0.05, **config: Any) -> Any:
    """A LoRA with random factors around `model`, saved by PEFT; the PEFT model, which computes what was saved."""
    options = {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "down_proj"], "task_type": "CAUSAL_LM", **config}
    adapted = get_peft_model(model, LoraConfig(**options))
    generator = torch.Generator().manual_seed(1)
    for name, parameter in adapted.named_parameters():
        if "lora_" in name:
            parameter.data = (torch.randn(parameter.shape, generator=generator) * size).to(dtype)
    adapted.save_pretrained(folder)
    for name, parameter in adapted.named_parameters():
        if "lora_" in name:
            parameter.data = parameter.data.float()
    return adapted.eval()


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(IDS).logits


@pytest.mark.parametrize(
    ("config", "dtype"),
    [
        ({}, torch.float32),
        ({"use_rslora": True}, torch.float32),
        ({"rank_pattern": {"q_proj": 2}, "alpha_pattern": {r"^model\.layers\.1\.mlp\.down_proj": 3}}, torch.float32),
        ({"use_rslora": True, "rank_pattern": {"layers.0.mlp.down_proj": 7}}, torch.float32),
        ({"target_modules": "all-linear"}, torch.float32),
        ({"target_modules": "all-linear", "exclude_modules": ["k_proj", "layers.1.mlp.up_proj"]}, torch.float32),
        ({"layers_to_transform": [1]}, torch.float32),
        ({"lora_alpha": 3, "init_lora_weights": "gaussian"}, torch.bfloat16),
        ({}, torch.float16),
    ],
    ids=["plain", "rslora", "patterns", "rslora_ranks", "all_linear", "excluded", "one_layer", "bfloat16", "float16"],
)
def test_what_peft_saved_computes_the_same_after_import(
    config: dict[str, Any], dtype: torch.dtype, tiny_model: Any, tmp_path: Path, tiny_model_dir: Path
) -> None:
    pristine = copy.deepcopy(tiny_model)
    expected = logits(saved(tiny_model, tmp_path / "theirs", dtype=dtype, **config))
    report = import_foreign(tmp_path / "theirs", tiny_model_dir, tmp_path / "ours", base_name="tiny")
    verify_folder(tmp_path / "ours")
    again = PeftModel.from_pretrained(copy.deepcopy(pristine), tmp_path / "ours").eval()
    torch.testing.assert_close(logits(again), expected, rtol=1e-4, atol=1e-5)
    assert float((expected - logits(pristine)).abs().max()) > 1e-3, (
        "the adapter has to matter for this to mean anything"
    )
    theirs, ours = read_adapter(tmp_path / "theirs"), read_adapter(tmp_path / "ours")
    assert theirs.modules.keys() == ours.modules.keys() == {module.name for module in report.modules}
    assert {module.name: module.rank for module in report.modules} == theirs.ranks
    assert {module.dtype for module in report.modules} == {str(dtype).removeprefix("torch.")}
    for name in theirs.modules:
        torch.testing.assert_close(delta(ours, name), delta(theirs, name))


def test_norms_are_those_of_the_deltas(tiny_model: Any, tmp_path: Path, tiny_model_dir: Path) -> None:
    weights = {name: weight.detach().clone() for name, weight in tiny_model.named_parameters()}
    saved(tiny_model, tmp_path / "theirs", use_rslora=True)
    found = check_foreign(tmp_path / "theirs", tiny_model_dir)
    for module in found.report.modules:
        expected = delta(found.adapter, module.name).norm() / weights[f"{module.name}.weight"].norm()
        assert module.relative_norm == pytest.approx(float(expected), rel=1e-5)
        assert module.scaling == 8 / 4**0.5
    assert found.report.parameters == sum(a.numel() + b.numel() for a, b in found.adapter.modules.values())


def test_dora_of_peft_is_refused(tiny_model: Any, tmp_path: Path, tiny_model_dir: Path) -> None:
    saved(tiny_model, tmp_path / "theirs", use_dora=True)
    with pytest.raises(InputError, match="use_dora = True: DoRA scales the whole weight"):
        check_foreign(tmp_path / "theirs", tiny_model_dir)


def test_an_adapter_of_another_base_is_refused_by_shape(
    tiny_tokenizer: Any, tmp_path: Path, tiny_model_dir: Path
) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    wider = LlamaConfig(
        **{"vocab_size": len(tiny_tokenizer), "hidden_size": 48, "intermediate_size": 64, "num_hidden_layers": 2},
        **{"num_attention_heads": 2, "num_key_value_heads": 1},
    )
    saved(LlamaForCausalLM(wider), tmp_path / "theirs")
    with pytest.raises(InputError, match=r"found \(4, 48\)|found \(48, 4\)"):
        check_foreign(tmp_path / "theirs", tiny_model_dir)


def test_nothing_of_the_strangers_config_is_kept(tiny_model: Any, tmp_path: Path, tiny_model_dir: Path) -> None:
    saved(tiny_model, tmp_path / "theirs")
    _edit(tmp_path / "theirs", base_model_name_or_path="org/secret-words", revision="abc", later_setting=None)
    report = import_foreign(tmp_path / "theirs", tiny_model_dir, tmp_path / "ours", base_name="tiny")
    config = (tmp_path / "ours" / CONFIG_FILE).read_text()
    assert json.loads(config)["base_model_name_or_path"] == "tiny"
    assert not any(word in config for word in ("secret", "abc", "later_setting"))
    assert report.sha256 == {name: file_digest(tmp_path / "theirs" / name) for name in (CONFIG_FILE, WEIGHTS_FILE)}
    written = json.loads((tmp_path / "ours" / IMPORT_FILE).read_text())
    assert written["sha256"] == report.sha256 and written["claimed_base"] == "org/secret-words"
    assert [
        words in warning
        for words, warning in zip(
            ("'org/secret-words'", "revision 'abc'", "'later_setting'"), report.warnings, strict=True
        )
    ] == [True] * 3


def test_a_name_that_ends_like_the_bases_is_no_mismatch(tiny_model: Any, tmp_path: Path, tiny_model_dir: Path) -> None:
    saved(tiny_model, tmp_path / "theirs")
    _edit(tmp_path / "theirs", base_model_name_or_path="Org/Tiny/")
    assert check_foreign(tmp_path / "theirs", tiny_model_dir, base_name="tiny").report.warnings == ()
    _edit(tmp_path / "theirs", base_model_name_or_path=None)
    assert "names no base" in check_foreign(tmp_path / "theirs", tiny_model_dir).report.warnings[0]


def test_tokenizer_files_are_ignored_and_differences_reported(
    tiny_model: Any, tiny_tokenizer: Any, tmp_path: Path, tiny_model_dir: Path
) -> None:
    saved(tiny_model, tmp_path / "theirs")
    _edit(tmp_path / "theirs", base_model_name_or_path="tiny")
    tiny_tokenizer.save_pretrained(tmp_path / "theirs")
    (tmp_path / "theirs" / ".gitattributes").write_text("*.safetensors filter=lfs\n")
    report = import_foreign(tmp_path / "theirs", tiny_model_dir, tmp_path / "ours", base_name="tiny")
    assert report.warnings == () and {"tokenizer.json", "README.md", ".gitattributes"} <= set(report.ignored)
    assert not {path.name for path in (tmp_path / "ours").iterdir()} & set(report.ignored)
    (tmp_path / "theirs" / "chat_template.jinja").write_text("{{ messages }}")
    (tmp_path / "theirs" / "added_tokens.json").write_text('{"<|im_end|>": 2}')
    report = check_foreign(tmp_path / "theirs", tiny_model_dir, base_name="tiny").report
    assert report.warnings == (
        "not the base's own, and not used: added_tokens.json, chat_template.jinja; it may expect other prompts",
    )


def test_modules_that_add_nothing_are_reported(tiny_model: Any, tmp_path: Path, tiny_model_dir: Path) -> None:
    saved(tiny_model, tmp_path / "theirs")
    tensors = load_file(tmp_path / "theirs" / WEIGHTS_FILE)
    tensors[f"base_model.model.{Q0}.lora_B.weight"].zero_()
    save_file(tensors, tmp_path / "theirs" / WEIGHTS_FILE)
    assert (
        f"1 of 4 modules add nothing, such as {Q0}"
        in check_foreign(tmp_path / "theirs", tiny_model_dir).report.warnings
    )


def test_an_import_never_overwrites(tiny_model: Any, tmp_path: Path, tiny_model_dir: Path) -> None:
    saved(tiny_model, tmp_path / "theirs")
    (tmp_path / "ours").mkdir()
    import_foreign(tmp_path / "theirs", tiny_model_dir, tmp_path / "ours")  # empty is free
    before = file_digest(tmp_path / "ours" / WEIGHTS_FILE)
    with pytest.raises(InputError, match="expected a folder that does not exist or is empty"):
        import_foreign(tmp_path / "theirs", tiny_model_dir, tmp_path / "ours")
    assert file_digest(tmp_path / "ours" / WEIGHTS_FILE) == before
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(InputError, match="found something there"):
        import_foreign(tmp_path / "theirs", tiny_model_dir, tmp_path / "link")
    assert not (tmp_path / "elsewhere").exists()


def test_importing_twice_gives_the_same_object(tiny_model: Any, tmp_path: Path, tiny_model_dir: Path) -> None:
    saved(tiny_model, tmp_path / "theirs")
    for name in ("one", "two"):
        import_foreign(tmp_path / "theirs", tiny_model_dir, tmp_path / name, base_name="tiny")
    assert verify_folder(tmp_path / "one") == verify_folder(tmp_path / "two")


def test_an_import_can_be_imported_again(tiny_model: Any, tmp_path: Path, tiny_model_dir: Path) -> None:
    saved(tiny_model, tmp_path / "theirs", use_rslora=True)
    import_foreign(tmp_path / "theirs", tiny_model_dir, tmp_path / "one", base_name="tiny")
    report = import_foreign(tmp_path / "one", tiny_model_dir, tmp_path / "two", base_name="tiny")
    assert report.warnings == () and report.ignored == (IMPORT_FILE, "manifest.json")
    assert file_digest(tmp_path / "one" / WEIGHTS_FILE) == file_digest(tmp_path / "two" / WEIGHTS_FILE)


def test_what_was_checked_is_what_is_written(tiny_model: Any, tmp_path: Path, tiny_model_dir: Path) -> None:
    saved(tiny_model, tmp_path / "theirs")
    found = check_foreign(tmp_path / "theirs", tiny_model_dir)
    expected = {name: delta(found.adapter, name).clone() for name in found.adapter.modules}
    for name in (WEIGHTS_FILE, CONFIG_FILE):  # swapped, and written over in place, between check and use
        (tmp_path / "theirs" / name).write_bytes(b"\xff" * (tmp_path / "theirs" / name).stat().st_size)
    found.write(tmp_path / "ours")
    ours = read_adapter(tmp_path / "ours")
    for name, expected_OI in expected.items():
        torch.testing.assert_close(delta(ours, name), expected_OI)


def test_a_folder_that_is_swapped_while_it_is_read_leads_nowhere(
    tiny_model: Any, tmp_path: Path, tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved(tiny_model, tmp_path / "theirs")
    (tmp_path / "secret").write_bytes((tmp_path / "theirs" / WEIGHTS_FILE).read_bytes())

    def swap(*arguments: Any) -> Any:
        (tmp_path / "theirs" / WEIGHTS_FILE).unlink()
        (tmp_path / "theirs" / WEIGHTS_FILE).symlink_to(tmp_path / "secret")
        return read(*arguments)

    read = foreign.read_foreign_config
    monkeypatch.setattr(
        foreign, "read_foreign_config", swap
    )  # after the names were judged, before the weights are read
    with pytest.raises(InputError, match="expected a file to read"):
        check_foreign(tmp_path / "theirs", tiny_model_dir)


def test_a_file_that_grows_while_it_is_read_is_refused(
    tiny_model: Any, tmp_path: Path, tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved(tiny_model, tmp_path / "theirs")

    def grow(*arguments: Any) -> None:
        with (tmp_path / "theirs" / WEIGHTS_FILE).open("ab") as stream:
            stream.write(b"more")

    monkeypatch.setattr(foreign, "require_tensors", grow)  # between header and payload
    with pytest.raises(IntegrityError, match="The file changes while it is read"):
        check_foreign(tmp_path / "theirs", tiny_model_dir)


def test_a_base_that_cannot_be_read_is_an_error_of_the_base(tiny_model: Any, tmp_path: Path) -> None:
    saved(tiny_model, tmp_path / "theirs")
    (tmp_path / "base").mkdir()
    with pytest.raises(BaseModelError, match="expected a model to compare with"):
        check_foreign(tmp_path / "theirs", tmp_path / "base")


def test_a_base_whose_weights_disagree_with_its_config(tiny_model: Any, tmp_path: Path, tiny_model_dir: Path) -> None:
    saved(tiny_model, tmp_path / "theirs")
    (tmp_path / "base").mkdir()
    for name in ("config.json", "model.safetensors"):
        os.link(tiny_model_dir / name, tmp_path / "base" / name)
    config = json.loads((tiny_model_dir / "config.json").read_text())
    (tmp_path / "base" / "config.json").unlink()
    (tmp_path / "base" / "config.json").write_text(json.dumps({**config, "intermediate_size": 128}))
    with pytest.raises(BaseModelError, match="as in its config"):
        check_foreign(tmp_path / "theirs", tmp_path / "base")


def _edit(folder: Path, **values: Any) -> None:
    found = json.loads((folder / CONFIG_FILE).read_text())
    (folder / CONFIG_FILE).write_text(json.dumps({**found, **values}))
