"""The page about adapters of others, run as it is written, on the real base."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM

from incremental_llm.adapters.lora import read_adapter
from incremental_llm.artifacts import verify_folder
from incremental_llm.base_models import resolve

pytestmark = [pytest.mark.real, pytest.mark.slow]
PAGE = Path(__file__).resolve().parents[2] / "docs/import-adapters.md"


def test_the_example_of_the_page_imports_an_adapter_that_computes_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    base = resolve("smollm2-135m").folder
    ids = torch.arange(100, 140)[None]
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    with torch.no_grad():
        plain = model(ids).logits
    theirs = get_peft_model(model, LoraConfig(r=8, target_modules="all-linear", use_rslora=True, task_type="CAUSAL_LM"))
    torch.manual_seed(0)
    for name, parameter in theirs.named_parameters():
        if "lora_B" in name:
            parameter.data = torch.randn_like(parameter) * 0.002
    theirs.save_pretrained(tmp_path / "theirs")
    with torch.no_grad():
        expected = theirs.eval()(ids).logits
    (example,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    exec(compile(example, str(PAGE), "exec"), {})
    warnings, largest = capsys.readouterr().out.split(") ")
    assert warnings == "(" and 0 < float(largest) < 1
    assert verify_folder(tmp_path / "ours") == verify_folder(tmp_path / "again")
    again = PeftModel.from_pretrained(theirs.unload(), tmp_path / "ours").eval()
    with torch.no_grad():
        found = again(ids).logits
    assert float((expected - plain).abs().max()) > 0.1
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)
    assert len(read_adapter(tmp_path / "ours").modules) == 210
