"""One adapter that goes on, several that become one, and schedules over increments."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from incremental_llm.adapters.load import load_stack
from incremental_llm.adapters.lora import delta, read_adapter
from incremental_llm.artifacts import verify_folder, write_manifest
from incremental_llm.errors import ConfigError, IntegrityError
from incremental_llm.training import increment as module
from incremental_llm.training.growth import increments_behind
from incremental_llm.training.settings import TrainingSettings

from .conftest import settings_of

Increment = Callable[..., Any]


def logits(base: Path, stack: list[Path]) -> torch.Tensor:
    model = load_stack(base, stack, dtype=torch.float32)
    with torch.no_grad():
        found: torch.Tensor = model(torch.arange(1, 40)[None]).logits
    return found


@pytest.mark.parametrize("objective", ["sft", "dpo", "kto"])
def test_an_adapter_that_goes_on_starts_where_it_was_with_its_optimizer(
    objective: str, increment: Increment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from incremental_llm.training import objectives

    restored: list[dict[str, torch.Tensor]] = []
    restore = objectives.restore_moments

    def recorded(optimizer: Any, model: Any, moments: Any) -> None:
        restore(optimizer, model, moments)
        restored.append(
            {n: optimizer.state[p]["exp_avg"].clone() for n, p in model.named_parameters() if p.requires_grad}
        )

    monkeypatch.setattr(objectives, "restore_moments", recorded)
    goes_on = settings_of(objective, growth="continue", anchor={"weight": 0})
    first = increment(settings=goes_on, anchors=[], out=tmp_path / "1")
    assert (first.replaces, first.increments, restored) == (0, 1, [])
    digest = verify_folder(first.adapter)
    still = goes_on.model_copy(
        update={"phases": tuple(p.model_copy(update={"learning_rate": 1e-12}) for p in goes_on.phases)}
    )
    second = increment(settings=still, anchors=[], adapter_folders=[first.adapter], out=tmp_path / "2")
    assert (second.replaces, second.increments) == (1, 2)
    assert verify_folder(first.adapter) == digest  # the version before can still be restored
    assert increments_behind([second.adapter]) == 2
    before, after = (load_file(r.adapter / "adapter_model.safetensors") for r in (first, second))
    assert all(torch.allclose(before[name], after[name], atol=1e-8) for name in before)
    kept = load_file(first.adapter / f"optimizer-{objective}.safetensors")
    ((state),) = restored
    assert len(state) == len(before)
    assert all(torch.equal(kept[f"{name}/exp_avg"], value) for name, value in state.items())
    if objective != "sft":  # the reference is the adapter as it was: no rewards yet
        assert second.phases[0].losses[0] == pytest.approx(first.phases[0].losses[0], abs=1e-3)


def test_an_adapter_that_goes_on_keeps_its_shape(increment: Increment, tmp_path: Path) -> None:
    first = increment("sft", out=tmp_path / "1").adapter
    other = settings_of("sft", growth="continue", lora={"rank": 8, "alpha": 8})
    with pytest.raises(ConfigError, match=r"expected \(rank, scaling\) \(8, 1\.0\) in .*, found \(4, 2\.0\)"):
        increment(settings=other, adapter_folders=[first], out=tmp_path / "2")


def test_moments_of_another_adapter_are_refused(increment: Increment, tmp_path: Path) -> None:
    goes_on = settings_of("sft", growth="continue")
    first = increment(settings=goes_on, out=tmp_path / "1").adapter
    path = first / "optimizer-sft.safetensors"
    save_file({f"other/{number}": torch.ones(1) for number in range(3)}, path)
    (first / "manifest.json").unlink()
    write_manifest(first)
    with pytest.raises(IntegrityError, match=r"expected one of shape .* found none"):
        increment(settings=goes_on, adapter_folders=[first], out=tmp_path / "2")


@pytest.mark.parametrize(("rank", "same"), [(None, True), (12, True), (2, False)])
def test_more_than_so_many_adapters_become_one(
    rank: int | None, same: bool, increment: Increment, tmp_path: Path, tiny_model_dir: Path
) -> None:
    one = settings_of("sft", growth="consolidate", consolidate_after=2, consolidate_rank=rank, ewc={"weight": 1.0})
    stack: list[Path] = []
    for night in range(3):
        result = increment(settings=one, adapter_folders=stack, out=tmp_path / f"{rank}{night}")
        assert result.replaces == (0 if night < 2 else 2)
        newest = tmp_path / f"{rank}{night}" / "adapter"
        if night == 2:
            whole = logits(tiny_model_dir, [*stack, newest])
        stack = [*stack[: len(stack) - result.replaces], result.adapter]
    assert len(stack) == 1
    assert (result.increments, increments_behind(stack)) == (3, 3)
    assert torch.allclose(logits(tiny_model_dir, stack), whole, atol=1e-3) == same
    assert any("3 adapters became one" in note for note in result.notes)
    assert (result.adapter / "fisher.safetensors").is_file()
    again = increment(settings=one, adapter_folders=stack, out=tmp_path / f"{rank}3")
    assert (again.replaces, len(read_adapter(again.adapter).modules)) == (0, len(read_adapter(stack[0]).modules))


def test_learning_rate_and_rank_follow_their_schedules() -> None:
    told = settings_of(
        "sft",
        lora={"rank": 16, "alpha": 32},
        schedule={"learning_rate": 0.5, "learning_rate_floor": 0.2, "rank": 0.5, "rank_floor": 4},
    )
    seen = [told.after(n) for n in range(5)]
    assert [s.lora.rank for s in seen] == [16, 8, 4, 4, 4]
    assert all(s.lora.alpha / s.lora.rank == 2 for s in seen)
    rates = [s.phases[0].learning_rate / told.phases[0].learning_rate for s in seen]
    assert rates == pytest.approx([1.0, 0.5, 0.25, 0.2, 0.2])
    plain = TrainingSettings()
    assert plain.after(30) == plain


def test_a_later_night_trains_a_smaller_adapter(increment: Increment, tmp_path: Path) -> None:
    told = settings_of("sft", schedule={"rank": 0.5, "rank_floor": 1})
    first = increment(settings=told, out=tmp_path / "1").adapter
    second = increment(settings=told, adapter_folders=[first], out=tmp_path / "2").adapter
    assert [set(read_adapter(folder).ranks.values()) for folder in (first, second)] == [{4}, {2}]
    assert all(torch.isfinite(delta(read_adapter(second), name)).all() for name in read_adapter(second).modules)


def test_two_phases_of_one_objective_begin_with_fresh_moments_unless_the_adapter_goes_on(
    increment: Increment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_phase, given = module.run_phase, []

    def recorded(context: Any, plan: Any, folder: Path, moments: Any, **told: Any) -> Any:
        given.append(bool(moments))
        return run_phase(context, plan, folder, moments, **told)

    monkeypatch.setattr(module, "run_phase", recorded)
    increment("sft", "sft", out=tmp_path / "stack")
    increment(settings=settings_of("sft", "sft", growth="continue"), out=tmp_path / "continue")
    assert given == [False, False, False, True]
