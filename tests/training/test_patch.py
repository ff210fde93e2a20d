"""A patch gives one answer with a minimal adapter, says what else moved, and is refused where too much did."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from incremental_llm.artifacts import file_digest, verify_folder
from incremental_llm.dataset.examples import SftExample
from incremental_llm.errors import NothingToTrainError, TrainingError
from incremental_llm.evaluation.generate import greedy_answers
from incremental_llm.training.aim import aim
from incremental_llm.training.batching import Row
from incremental_llm.training.locality import Checked, Compared, Watch, checked, problem_of
from incremental_llm.training.online import OnlineTrainer
from incremental_llm.training.patch import patch_settings, train_patch
from incremental_llm.training.regularizers.teachers import ExactTeacher
from incremental_llm.training.settings import PatchSettings, TrainingSettings

from .conftest import ask, settings_of

NEAR = [ask("Where is the owl?"), ask("Where is the hen now?")]
FAR = [ask(f"What is {n} and {n}?") for n in (1, 20, 300)]
HELD = [ask(f"Say {n} words.") for n in (2, 5, 9, 12)]
RIGHT = SftExample(prompt=ask("Where is the fox?"), completion="In the shop.", sources=("k1",), users=("r1",))


def greedy(model: Any, tokenizer: Any, conversations: Sequence[Any], max_new_tokens: int) -> list[str]:
    return greedy_answers(model, tokenizer, conversations, max_new_tokens=max_new_tokens)


def told(**changes: Any) -> PatchSettings:
    """A patch that the tiny model learns in a second; it may move anything unless told otherwise."""
    tree = {"learning_rate": 3e-2, "steps": 100, "kl_weight": 0.1, "max_new_tokens": 4, "rank": 8, "nll": 1.0}
    return PatchSettings.model_validate(tree | {"neighbours_may_move": 1.0, "unrelated_may_move": 1.0} | changes)


@pytest.fixture
def patched(tmp_path: Path, ending_model_dir: Path) -> Callable[..., Any]:
    def make(**changes: Any) -> Any:
        arguments: dict[str, Any] = {
            "base_folder": ending_model_dir,
            "adapter_folders": [],
            "example": RIGHT,
            "held": HELD,
            "neighbours": NEAR,
            "unrelated": FAR,
            "settings": settings_of("sft"),
            "patch": told(),
            "answer": greedy,
            "out": tmp_path / "out",
        }
        return train_patch(**(arguments | changes))

    return make


def test_one_correction_becomes_a_small_adapter(
    patched: Callable[..., Any], ending_model_dir: Path, tiny_tokenizer: Any, tmp_path: Path
) -> None:
    base = file_digest(ending_model_dir / "model.safetensors")
    record = patched(patch=told(layers=1))
    assert record.answer_after == RIGHT.completion != record.answer_before
    assert record.nll_after <= 1.0 < record.nll_before
    assert 0 < record.steps <= 100 and record.tokens > 0 and 0 < record.scale <= 1
    assert (record.neighbours.count, record.unrelated.count) == (2, 3)
    assert file_digest(ending_model_dir / "model.safetensors") == base
    assert verify_folder(record.adapter)
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(ending_model_dir), record.adapter).eval()
    assert {name.split("layers.")[1][0] for name, _ in model.named_parameters() if ".lora_" in name} == {"1"}
    assert sum(p.numel() for n, p in model.named_parameters() if ".lora_" in n) == record.parameters
    assert greedy(model.get_base_model(), tiny_tokenizer, [RIGHT.prompt], 16) == [RIGHT.completion]
    kept = json.loads((tmp_path / "out" / "patch.json").read_text(encoding="utf-8"))
    assert (kept["adapter"], kept["problem"], kept["steps"]) == ("adapter", "", record.steps)


def test_equal_seeds_give_equal_patches(patched: Callable[..., Any], tmp_path: Path) -> None:
    digests = [
        file_digest(patched(out=tmp_path / name, patch=told(seed=seed)).adapter / "adapter_model.safetensors")
        for name, seed in (("a", 0), ("b", 0), ("c", 1))
    ]
    assert digests[0] == digests[1] != digests[2]


def test_the_update_is_the_smallest_that_holds(patched: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    from incremental_llm.training import patch

    cut = patched()
    monkeypatch.setattr(patch, "_HALVINGS", 0)
    whole = patched(out=cut.adapter.parent.parent / "whole")
    assert whole.scale == 1.0 > cut.scale
    assert cut.nll_after > whole.nll_after
    assert cut.unrelated.mean_kl < whole.unrelated.mean_kl


def test_it_stands_on_the_stack_and_leaves_it_alone(
    patched: Callable[..., Any], increment: Callable[..., Any], ending_model_dir: Path, tmp_path: Path
) -> None:
    below = increment("sft", base_folder=ending_model_dir, out=tmp_path / "below").adapter
    digest = verify_folder(below)
    record = patched(adapter_folders=[below])
    assert record.answer_after == RIGHT.completion
    assert verify_folder(below) == digest


def test_what_moved_is_named_and_no_adapter_is_left(patched: Callable[..., Any], tmp_path: Path) -> None:
    strict = told(kl_weight=1e-6, neighbours_may_move=0.0, max_kl=1e-3, tie_kl=0.0)
    with pytest.raises(
        TrainingError,
        match=r"not local: expected at most 0% of the neighbouring prompts to move, found 2 of 2 \('Where",
    ):
        patched(patch=strict)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["patch.json"]
    kept = json.loads((tmp_path / "out" / "patch.json").read_text(encoding="utf-8"))
    assert kept["adapter"] is None and "not local" in kept["problem"]
    assert len(kept["neighbours"]["moved"]) == 2


def test_an_answer_that_is_given_already_or_not_learnt_is_no_patch(patched: Callable[..., Any], tmp_path: Path) -> None:
    with pytest.raises(
        TrainingError, match=r"was not learnt in 4 steps: expected 'In the shop\.' at an NLL below 1\.0"
    ):
        patched(patch=told(steps=4, learning_rate=1e-6))
    record = patched()
    with pytest.raises(NothingToTrainError, match="there is nothing to patch"):
        patched(adapter_folders=[record.adapter], out=tmp_path / "again", patch=told(nll=1.1))


def test_a_prompt_that_cannot_be_compared_has_moved(ending_model_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = OnlineTrainer(base_folder=ending_model_dir, adapter_folders=[], settings=settings_of("sft"), anchors=None)
    watch, lenient = Watch(trainer, FAR, greedy, 4), told(max_kl=1e9, tie_kl=1e9)
    assert not checked(watch.compare(), lenient).moved
    monkeypatch.setattr(ExactTeacher, "kl_sum", lambda _self, _lm, _index, now_NV: now_NV.sum() * float("nan"))
    found = checked(watch.compare(), lenient)
    assert len(found.moved) == len(FAR)
    assert "expected neighbouring prompts to check, found none" in problem_of(checked([], lenient), found, lenient)


def test_a_near_tie_is_counted_and_has_not_moved() -> None:
    settings = PatchSettings(max_kl=0.05, tie_kl=0.01)
    same, tie = Compared("a", "x", "x", 0.04), Compared("b", "x", "y", 0.009)
    turned, drifted = Compared("c", "x", "y", 0.02), Compared("d", "x", "x", 0.06)
    lost = Compared("e", "x", "x", float("nan"))
    found = checked([same, tie, turned, drifted, lost], settings)
    assert (found.count, found.changed, found.moved) == (5, 2, (turned, drifted, lost))
    assert found.share == pytest.approx(0.6)
    assert Checked(0, (), 0, 0.0, 0.0).share == 0.0


def test_its_settings_are_the_recipes_where_the_model_is_concerned() -> None:
    recipe = TrainingSettings.model_validate(
        {"precision": "bf16", "quantization": "nf4", "frozen": "concat", "lora": {"targets": ["q_proj"], "rank": 64}}
    )
    found = patch_settings(recipe, PatchSettings(layers=10), depth=30)
    assert (found.precision, found.quantization, found.frozen) == ("bf16", "nf4", "concat")
    assert (found.lora.targets, found.lora.rank, found.lora.first_layer) == (("q_proj",), 4, 20)
    assert patch_settings(recipe, PatchSettings(layers=10, targets="all-linear"), depth=2).lora.first_layer == 0


def test_a_starts_at_the_answers_inputs_and_not_at_those_of_others(tiny_model: Any) -> None:
    import contextlib

    from peft import LoraConfig, get_peft_model

    torch.manual_seed(0)
    model = get_peft_model(tiny_model, LoraConfig(r=2, lora_alpha=4, target_modules=["down_proj"]))
    row, others = Row((5, 6, 7), (9, 10, 11)), [Row((5, 6, 12), (13, 14)), Row((5, 6, 15, 16), (17,))]
    layers = {name: module for name, module in model.named_modules() if hasattr(module, "lora_A")}

    def let_through(ids: tuple[int, ...], places: slice) -> float:
        seen: list[float] = []
        handles = [
            layer.register_forward_pre_hook(
                lambda m, inputs: seen.append(
                    (torch.nn.functional.normalize(inputs[0][0, places], dim=-1) @ m.lora_A["default"].weight.T)
                    .norm()
                    .item()
                )
            )
            for layer in layers.values()
        ]
        with torch.no_grad():
            model(input_ids=torch.tensor([ids]))
        for handle in handles:
            handle.remove()
        return sum(seen)

    norms = [layer.lora_A["default"].weight.norm().item() for layer in layers.values()]
    ratio = [let_through((5, 6, 7, 9, 10, 11), slice(2, 5)) / let_through((5, 6, 15, 16, 17), slice(2, 5))]
    aim(model, row, others, 0.01, contextlib.nullcontext)
    ratio += [let_through((5, 6, 7, 9, 10, 11), slice(2, 5)) / let_through((5, 6, 15, 16, 17), slice(2, 5))]
    assert ratio[1] > 1.5 * ratio[0]
    assert [layer.lora_A["default"].weight.norm().item() for layer in layers.values()] == pytest.approx(norms, rel=1e-4)
