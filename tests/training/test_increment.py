"""An increment keeps its promises while it runs, and stops when one of them breaks."""

from __future__ import annotations

import json
import math
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from incremental_llm.adapters import load
from incremental_llm.adapters.chat_tokens import prompt_ids
from incremental_llm.artifacts import verify_folder, write_manifest
from incremental_llm.dataset.examples import SftExample, UnpairedExample
from incremental_llm.errors import ConfigError, IntegrityError, NothingToTrainError, TrainingError
from incremental_llm.training import adapter, invariants, objectives
from incremental_llm.training import increment as module
from incremental_llm.training.settings import PhaseSettings

from .conftest import PHASES, ask, everyday, examples_of, settings_of

Increment = Callable[..., Any]


class Killed(BaseException):
    """What a power cut would be."""


@pytest.fixture
def phases_run(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, Any]]:
    """(plan, model) of every phase that runs, in order."""
    run_phase, seen = module.run_phase, []

    def recorded(context: Any, plan: Any, *rest: Any, **told: Any) -> Any:
        seen.append((plan, context.model))
        return run_phase(context, plan, *rest, **told)

    monkeypatch.setattr(module, "run_phase", recorded)
    return seen


def tensors(adapter: Path) -> dict[str, torch.Tensor]:
    return load_file(adapter / "adapter_model.safetensors")


def test_three_objectives_train_one_adapter_against_one_reference(
    increment: Increment, phases_run: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    compared: list[str] = []
    check = invariants.check_reference

    def recorded(phase: str, stored_B: torch.Tensor, found_B: torch.Tensor) -> None:
        assert torch.equal(stored_B, found_B)
        compared.append(phase)
        check(phase, stored_B, found_B)

    monkeypatch.setattr(invariants, "check_reference", recorded)
    result = increment()
    assert compared == ["dpo", "kto", "sft"]
    assert [(p.objective, p.steps, p.note) for p in result.phases] == [("dpo", 3, ""), ("kto", 3, ""), ("sft", 5, "")]
    first = phases_run[0][0]
    weights = [row["weight"] for row in first.rows[: first.settings.batch_size]]
    assert result.phases[0].losses[0] == pytest.approx(math.log(2) * sum(weights) / len(weights), abs=1e-4)
    assert all(len(p.losses) == len(p.anchor_kl) == p.steps for p in result.phases)
    assert result.phases[0].anchor_kl[0] == pytest.approx(0, abs=1e-5)
    for _, model in phases_run:
        assert list(model.peft_config) == ["default"]  # TRL's copy "ref" of the trained adapter is gone
        assert model.active_adapters == ["default"]
    verify_folder(result.adapter)
    config = json.loads((result.adapter / "adapter_config.json").read_text(encoding="utf-8"))
    assert "/" not in config["base_model_name_or_path"]
    assert all(torch.isfinite(t).all() for t in tensors(result.adapter).values())
    assert any(t.abs().max() > 0 for name, t in tensors(result.adapter).items() if "lora_B" in name)


@pytest.mark.parametrize(("objective", "kind"), [("sft", "sft"), ("dpo", "pair"), ("kto", "unpaired")])
def test_every_row_carries_the_weight_of_its_example(
    objective: str, kind: str, increment: Increment, phases_run: list[Any], tiny_tokenizer: Any
) -> None:
    increment(objective, examples=examples_of(kind))
    ((plan, _),) = phases_run
    told = {tuple(prompt_ids(tiny_tokenizer, e.prompt)): e for e in examples_of(kind)}
    ups, downs = (sum(e.weight for e in told.values() if getattr(e, "desirable", True) is up) for up in (True, False))
    assert len(told) == 10 and len({row["weight"] for row in plan.rows}) > 8
    for row in plan.rows:
        example = told[tuple(row["prompt_ids"])]
        scale = 1.0 if getattr(example, "desirable", True) else min(1.0, ups / downs)
        assert row["weight"] == pytest.approx(example.weight * scale)


def test_one_target_may_be_named_alone_but_never_the_head(increment: Increment, tmp_path: Path) -> None:
    lora = {"rank": 4, "alpha": 8}
    result = increment(settings=settings_of("sft", lora=lora | {"targets": "q_proj", "first_layer": 1}))
    assert all(".layers.1.self_attn.q_proj." in name for name in tensors(result.adapter))
    with pytest.raises(ConfigError, match="found 'lm_head'"):
        increment(settings=settings_of("sft", lora=lora | {"targets": ["lm_head"]}), out=tmp_path / "head")


@pytest.mark.parametrize("targets", [("gate_proj", "up_porj"), "dwn_proj"])
def test_a_mistyped_target_is_refused_and_not_left_out(increment: Increment, targets: Any) -> None:
    with pytest.raises(ConfigError, match=r"lora\.targets: expected linear layers .* Did you mean '(up|down)_proj'"):
        increment(settings=settings_of("sft", lora={"rank": 4, "alpha": 8, "targets": targets}))


def test_the_largest_seed_trains(increment: Increment) -> None:
    increment(settings=settings_of("sft", seed=2**32 - 1))


def test_a_finished_run_keeps_no_optimizer_state(increment: Increment, tmp_path: Path) -> None:
    increment(settings=settings_of("sft", save_steps=1))
    assert not list((tmp_path / "run").rglob("checkpoint-*"))
    assert list((tmp_path / "run").rglob("phase.json"))


def test_unit_weights_start_at_ln_2_and_a_half(increment: Increment) -> None:
    plain = tuple(e.model_copy(update={"weight": 1.0}) for e in examples_of("pair", "unpaired"))
    result = increment(
        "dpo", "kto", examples=plain, settings=settings_of("dpo", "kto", anchor={"weight": 0}), anchors=[]
    )
    assert result.phases[0].losses[0] == pytest.approx(0.693147, abs=1e-5)
    alone = settings_of("kto", anchor={"weight": 0})
    first = increment(examples=plain, settings=alone, anchors=[], out=result.adapter.parent / "kto").phases[0]
    assert first.losses[0] == pytest.approx(0.5, abs=1e-5)


def test_an_adapter_that_is_not_fresh_is_refused(increment: Increment, monkeypatch: pytest.MonkeyPatch) -> None:
    fresh = adapter.lora_config

    def used(model: Any, settings: Any) -> Any:
        config = fresh(model, settings)
        config.init_lora_weights = False  # B is random instead of 0
        return config

    monkeypatch.setattr(adapter, "lora_config", used)
    with pytest.raises(TrainingError, match="must start at the reference"):
        increment()


@pytest.fixture
def tampered(monkeypatch: pytest.MonkeyPatch) -> None:
    """A frozen weight moves a little during each phase."""
    run_phase = module.run_phase

    def tamper(context: Any, *rest: Any, **told: Any) -> Any:
        done = run_phase(context, *rest, **told)
        with torch.no_grad():
            next(p for n, p in context.model.named_parameters() if "mlp.up_proj.base_layer" in n)[0, 0] += 1
        return done

    monkeypatch.setattr(module, "run_phase", tamper)


@pytest.mark.usefixtures("tampered")
def test_a_frozen_weight_that_moves_is_noticed_at_the_next_phase_or_at_the_end(
    increment: Increment, tmp_path: Path
) -> None:
    with pytest.raises(TrainingError, match="kto: the reference moved"):
        increment(out=tmp_path / "three")
    with pytest.raises(TrainingError, match="the frozen weights changed during training"):
        increment("sft", out=tmp_path / "one")
    assert not (tmp_path / "one" / "adapter").exists()


def test_the_frozen_stack_below_is_checked_on_the_disk_too(increment: Increment, tmp_path: Path) -> None:
    below = increment("sft", out=tmp_path / "first").adapter
    digest = verify_folder(below)
    above = increment("sft", adapter_folders=[below], out=tmp_path / "second")
    assert verify_folder(below) == digest
    assert any((tensors(above.adapter)[n] != t).any() for n, t in tensors(below).items())

    def tamper(what: str, done: int, _total: int, _loss: float | None) -> None:
        if what == "training sft" and done == 2:
            (below / "adapter_config.json").write_text("{}", encoding="utf-8")

    with pytest.raises(IntegrityError, match=r"adapter_config\.json"):
        increment("sft", adapter_folders=[below], out=tmp_path / "third", progress=tamper)


@pytest.mark.parametrize("objective", ["dpo", "kto"])
def test_a_saturated_preference_phase_is_skipped_and_says_so(
    objective: str, increment: Increment, tmp_path: Path
) -> None:
    full = [{"objective": objective, "learning_rate": 1e-3, "epochs": 1, "saturated_below": 0.7}]  # starts at ln 2, 0.5
    result = increment(settings=settings_of(phases=[*full, PHASES["sft"]]))
    skipped, sft = result.phases
    assert (skipped.steps, skipped.tokens, sft.steps) == (0, 0, 5)
    assert "the margins are saturated" in skipped.note
    assert result.notes == (
        "20 of 30 examples were reached by no step: phases of less than an epoch, ended by max_steps, or skipped",
        skipped.note,
    )
    assert len(result.not_trained) == 20
    with pytest.raises(NothingToTrainError, match=f"every phase was skipped: {objective}: skipped"):
        increment(settings=settings_of(phases=full), out=tmp_path / "alone")


def test_thumbs_down_alone_are_never_trained_on(increment: Increment) -> None:
    kept = [e for e in examples_of("unpaired", "sft") if not isinstance(e, UnpairedExample) or not e.desirable]
    result = increment("kto", "sft", examples=tuple(kept))
    assert "only thumbs down" in result.phases[0].note
    assert (result.phases[0].steps, result.phases[1].steps) == (0, 5)


@pytest.fixture
def weights_after_failure(phases_run: list[Any]) -> Iterator[None]:
    """Whatever stopped the run, every weight of the model is still finite."""
    yield
    ((_, model),) = phases_run
    assert all(torch.isfinite(parameter).all() for parameter in model.parameters())


@pytest.mark.usefixtures("weights_after_failure")
def test_a_loss_that_is_not_finite_stops_the_run_at_its_step(
    increment: Increment, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    nll, calls = objectives.nll_per_row, []

    def broken(*arguments: Any) -> torch.Tensor:
        calls.append(1)
        return nll(*arguments) * (float("nan") if len(calls) == 3 else 1.0)

    monkeypatch.setattr(objectives, "nll_per_row", broken)
    with pytest.raises(TrainingError, match="sft: the loss is nan at step 3"):
        increment("sft")
    assert len(calls) == 3
    assert not (tmp_path / "run" / "adapter").exists()


@pytest.mark.usefixtures("weights_after_failure")
def test_a_gradient_that_is_not_finite_stops_the_run_and_is_named(increment: Increment, phases_run: list[Any]) -> None:
    def break_one(what: str, done: int, _total: int, _loss: float | None) -> None:
        if what == "training sft" and done == 1:
            ((_, model),) = phases_run
            names = dict(model.named_parameters())
            broken = next(p for n, p in names.items() if "layers.1.mlp.up_proj.lora_B" in n)
            broken.register_hook(lambda gradient: gradient * float("inf"))

    with pytest.raises(
        TrainingError, match=r"layers\.1\.mlp\.up_proj\.lora_B\.default\.weight is not finite at step 2"
    ):
        increment("sft", progress=break_one)


def test_a_run_killed_inside_its_second_phase_ends_with_the_same_adapter(
    increment: Increment, phases_run: list[Any], tmp_path: Path
) -> None:
    settings = settings_of("dpo", "sft", save_steps=2, lora={"rank": 4, "alpha": 8, "dropout": 0.2})
    whole = increment(settings=settings, out=tmp_path / "whole")
    phases_run.clear()

    def die(what: str, done: int, _total: int, _loss: float | None) -> None:
        if what == "training sft" and done == 4:  # logged after its optimizer step, before checkpoint 4
            raise Killed

    with pytest.raises(Killed):
        increment(settings=settings, out=tmp_path / "cut", progress=die)
    assert (tmp_path / "cut" / "phase1-sft" / "checkpoint-2").is_dir()
    assert not (tmp_path / "cut" / "adapter").exists()
    assert [plan.settings.objective for plan, _ in phases_run] == ["dpo", "sft"]

    seen: list[int] = []
    resumed = increment(
        settings=settings,
        out=tmp_path / "cut",
        progress=lambda what, done, total, loss: seen.append(done) if what == "training sft" else None,
    )
    assert [plan.settings.objective for plan, _ in phases_run] == ["dpo", "sft", "sft"]  # DPO was not trained again
    assert seen == [3, 4, 5]
    assert all(torch.equal(t, tensors(resumed.adapter)[name]) for name, t in tensors(whole.adapter).items())
    assert resumed.phases[1].losses == whole.phases[1].losses

    again = increment(settings=settings, out=tmp_path / "cut")  # finished: nothing is trained
    assert len(phases_run) == 3
    assert again.phases == resumed.phases


@pytest.mark.parametrize("objective", ["dpo", "kto"])
def test_a_reference_of_another_row_is_seen_at_the_first_step(
    objective: str, increment: Increment, monkeypatch: pytest.MonkeyPatch
) -> None:
    from incremental_llm.training import plan

    scored = plan._scored
    monkeypatch.setattr(plan, "_scored", lambda rows, **told: scored(rows, **told)[::-1])
    with pytest.raises(TrainingError, match=f"{objective}.*is not the stored reference at its first step"):
        increment(objective)


def test_weights_that_are_not_finite_after_the_last_step_are_not_published(
    increment: Increment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from incremental_llm.training import phase

    trained = phase._trained

    def overflow(context: Any, *rest: Any) -> Any:
        trainer = trained(context, *rest)
        weight = next(p for n, p in context.model.named_parameters() if "up_proj.lora_B.default" in n)
        weight.data[0, 0] = float("inf")
        return trainer

    monkeypatch.setattr(phase, "_trained", overflow)
    with pytest.raises(TrainingError, match=r"sft: .*up_proj.lora_B.default.weight is not finite after the last step"):
        increment("sft")
    assert not (tmp_path / "run" / "adapter").exists()


def test_a_process_that_sees_two_gpus_takes_one(
    increment: Increment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone = increment("sft").phases[0]
    config = objectives.WeightedSFT.config

    def with_two(**told: Any) -> Any:
        made = config(**told)
        made._n_gpu = 2
        return made

    monkeypatch.setattr(objectives.WeightedSFT, "config", with_two)
    assert increment("sft", out=tmp_path / "two").phases[0].losses == alone.losses


def test_the_bases_own_dropout_is_off(increment: Increment, tiny_model_dir: Path, tmp_path: Path) -> None:
    noisy = tmp_path / "noisy"
    shutil.copytree(tiny_model_dir, noisy)
    told = json.loads((noisy / "config.json").read_text(encoding="utf-8")) | {"attention_dropout": 0.5}
    (noisy / "config.json").write_text(json.dumps(told), encoding="utf-8")
    losses = [
        increment("sft", base_folder=base, out=tmp_path / base.name).phases[0].losses
        for base in (noisy, tiny_model_dir)
    ]
    assert losses[0] == losses[1]


def test_a_damaged_checkpoint_is_passed_over(increment: Increment, phases_run: list[Any], tmp_path: Path) -> None:
    settings = settings_of("sft", save_steps=2)
    whole = increment(settings=settings, out=tmp_path / "whole")

    def die(what: str, done: int, _total: int, _loss: float | None) -> None:
        if what == "training sft" and done == 5:
            raise Killed

    with pytest.raises(Killed):
        increment(settings=settings, out=tmp_path / "cut", progress=die)
    newest = tmp_path / "cut" / "phase0-sft" / "checkpoint-4" / "adapter_model.safetensors"
    flipped = bytearray(newest.read_bytes())
    flipped[-9] ^= 1
    newest.write_bytes(flipped)
    seen: list[int] = []
    resumed = increment(
        settings=settings,
        out=tmp_path / "cut",
        progress=lambda what, done, total, loss: seen.append(done) if what == "training sft" else None,
    )
    assert seen == [3, 4, 5]  # from checkpoint 2
    assert all(torch.equal(t, tensors(resumed.adapter)[name]) for name, t in tensors(whole.adapter).items())


def test_another_increments_folder_is_refused(increment: Increment) -> None:
    increment("sft")
    with pytest.raises(IntegrityError, match="another examples, settings"):
        increment("dpo", examples=examples_of("pair"))


def test_a_damaged_result_is_not_taken_for_one(increment: Increment) -> None:
    adapter = increment("sft").adapter
    (adapter / "training.json").write_text("{}", encoding="utf-8")
    with pytest.raises(IntegrityError, match=r"training\.json"):
        increment("sft")
    write_manifest(adapter)


def test_nothing_to_train_is_an_error(increment: Increment) -> None:
    with pytest.raises(NothingToTrainError, match="0 sft, 10 pair, 0 unpaired"):
        increment("sft", examples=examples_of("pair"))


def test_examples_that_are_too_long_are_counted(increment: Increment) -> None:
    long = SftExample(prompt=ask("What?"), completion="a long story " * 40, sources=("e9",), users=("u1",))
    settings = settings_of("sft", max_length=128)
    result = increment(examples=(*examples_of("sft"), long), settings=settings)
    assert result.not_trained == (long.id,)
    assert result.notes == ("1 of 11 examples are longer than training.max_length (128 tokens)",)
    assert result.phases[0].examples == 10


def test_examples_that_no_step_reaches_are_named(increment: Increment) -> None:
    half = [{"objective": "sft", "learning_rate": 1e-3, "epochs": 8, "max_steps": 1, "batch_size": 4}]
    given = examples_of("sft")
    result = increment(examples=given, settings=settings_of(phases=half))
    assert set(result.not_trained) < {example.id for example in given}
    assert len(result.not_trained) == 6
    assert "6 of 10 examples were reached by no step" in result.notes[0]


def test_an_anchor_without_conversations_is_an_error(increment: Increment) -> None:
    with pytest.raises(TrainingError, match="no anchor conversations"):
        increment("sft", anchors=[])
    assert len(everyday()) == 3


def test_micro_batches_add_up_to_the_batch(increment: Increment, tmp_path: Path) -> None:
    """Cutting a step changes nothing but the order of a sum (the anchor is off: it has rows in every cut)."""
    off: dict[str, Any] = {"anchor": {"weight": 0}}
    whole = increment(settings=settings_of("dpo", "sft", **off), anchors=[], out=tmp_path / "whole")
    cut = increment(settings=settings_of("dpo", "sft", micro_batch=2, **off), anchors=[], out=tmp_path / "cut")
    for name, tensor in tensors(whole.adapter).items():
        assert torch.allclose(tensor, tensors(cut.adapter)[name], atol=1e-5), name


@pytest.mark.parametrize(
    ("phases", "micro", "said"),
    [
        (["dpo", "sft"], 3, "sft: expected a batch_size that is a multiple of 3, .* found 4"),
        (["dpo", "kto"], 1, "kto: expected micro-batches of at least 2 examples"),
    ],
)
def test_steps_that_cannot_be_cut_are_refused_before_anything_is_done(
    phases: list[str], micro: int, said: str, increment: Increment, tmp_path: Path
) -> None:
    told = settings_of(*phases, micro_batch=micro)
    fits = told.phases[0].model_copy(update={"batch_size": 6})
    with pytest.raises(ConfigError, match=said):
        increment(settings=told.model_copy(update={"phases": (fits, *told.phases[1:])}), out=tmp_path / "odd")
    assert not (tmp_path / "odd").exists()


def test_an_adapter_that_goes_on_may_have_dropout(increment: Increment) -> None:
    lora = {"rank": 4, "alpha": 8, "dropout": 0.3}
    result = increment(settings=settings_of("dpo", "sft", growth="continue", lora=lora))
    assert all(phase.steps for phase in result.phases)


def test_one_step_is_enough_to_move(increment: Increment) -> None:
    once = [PHASES["sft"] | {"max_steps": 1, "warmup": 0.6}]
    adapter = tensors(increment(settings=settings_of("sft", phases=once)).adapter)
    assert all(tensor.abs().max() > 0 for name, tensor in adapter.items() if "lora_B" in name)


def test_equal_phases_see_other_orders(increment: Increment, phases_run: list[Any]) -> None:
    increment(settings=settings_of("sft", phases=[PHASES["sft"], PHASES["sft"]]))
    (first, _), (second, _) = phases_run
    assert [row["prompt_ids"] for row in first.rows] != [row["prompt_ids"] for row in second.rows]


def test_weight_0_is_held_to_nothing(increment: Increment, tmp_path: Path, phases_run: list[Any]) -> None:
    examples = examples_of("sft")
    below = increment("sft", examples=examples, settings=settings_of("sft", dark={"weight": 1.0}), out=tmp_path / "1")
    told = settings_of("sft", dark={"weight": 1.0}, replay_kl={"weight": 1.0}, anchor={"weight": 0})
    silent = [example.model_copy(update={"weight": 0.0}) for example in examples]
    second = increment(
        examples=silent,
        replayed=[e.id for e in silent],
        adapter_folders=[below.adapter],
        settings=told,
        anchors=[],
        out=tmp_path / "2",
    )
    assert all(row["held"] >= 0 for row in phases_run[-1][0].rows)
    assert all(not tensor.any() for name, tensor in tensors(second.adapter).items() if "lora_B" in name)


@pytest.fixture
def quantizable(tmp_path: Path, tiny_model: Any, tiny_tokenizer: Any) -> Path:
    """A random base whose layers have whole blocks of 64 weights a row, which is what 4-bit kernels want."""
    config = type(tiny_model.config)(
        **tiny_model.config.to_dict() | {"hidden_size": 64, "intermediate_size": 128, "head_dim": 32}
    )
    torch.manual_seed(0)
    type(tiny_model)(config).save_pretrained(tmp_path / "base")
    tiny_tokenizer.save_pretrained(tmp_path / "base")
    return tmp_path / "base"


def test_a_four_bit_base_is_never_folded_into(
    increment: Increment, quantizable: Path, phases_run: list[Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    below = increment("sft", base_folder=quantizable, out=tmp_path / "first").adapter
    phases_run.clear()
    monkeypatch.setattr(load, "merge_into", lambda *_: pytest.fail("folded into a 4-bit base"))
    references: list[torch.Tensor] = []
    monkeypatch.setattr(invariants, "check_reference", lambda phase, stored, found: references.extend([stored, found]))
    plain = tuple(e.model_copy(update={"weight": 1.0}) for e in examples_of("pair", "sft"))
    result = increment(
        base_folder=quantizable,
        adapter_folders=[below],
        examples=plain,
        settings=settings_of("dpo", "sft", quantization="nf4"),
        out=tmp_path / "second",
    )
    assert result.phases[0].losses[0] == pytest.approx(0.693147, abs=1e-4)
    assert torch.equal(references[0], references[1])
    assert torch.equal(references[2], references[3])
    _, (_, model) = phases_run
    layer = dict(model.named_modules())["base_model.model.model.layers.0.mlp.up_proj"].base_layer
    assert type(layer).__name__ == "Linear4bit"
    # Adapter off is the 4-bit base with the stack on it, not the bare base.
    ids_BT = torch.arange(4, 20).reshape(1, -1)
    model.eval()
    previous = load.load_stack(quantizable, [below], dtype=torch.float32, quantization="nf4")
    bare = load.load_base(quantizable, dtype=torch.float32, quantization="nf4")
    with torch.no_grad():
        with model.disable_adapter():
            off_BTV = model(input_ids=ids_BT).logits
        stack_BTV, bare_BTV = previous(input_ids=ids_BT).logits, bare(input_ids=ids_BT).logits
    assert torch.allclose(off_BTV, stack_BTV, atol=1e-5)
    assert (stack_BTV - bare_BTV).abs().max() > 10 * (off_BTV - stack_BTV).abs().max() + 1e-2


def test_every_epoch_rehearses_old_rows_of_its_own(increment: Increment, phases_run: list[Any]) -> None:
    told = settings_of("sft", phases=[PHASES["sft"] | {"epochs": 3, "batch_size": 2}])
    examples = examples_of("sft")
    old = [example.id for example in examples[:6]]
    increment("sft", settings=told, replayed=old, turns={"sft": [old[:2], old[2:4], old[4:]]})
    ((plan, _),) = phases_run
    visits = Counter(tuple(row["prompt_ids"]) for row in plan.rows)
    new = len(examples) - len(old)
    assert plan.steps == -(-3 * (new + 2) // 2)
    assert sorted(visits.values()) == [1] * len(old) + [3] * new
    assert plan.reached >= set(old)


def test_a_large_night_stops_at_max_steps(increment: Increment) -> None:
    capped = settings_of("sft", phases=[PHASES["sft"] | {"epochs": 40, "max_steps": 3}])
    (phase,) = increment(settings=capped).phases
    assert (phase.steps, len(phase.losses)) == (3, 3)


@pytest.mark.parametrize(("max_steps", "epochs"), [(None, 6), (1000, 6), (150, 3)])
def test_max_steps_shortens_epochs_and_never_adds_any(max_steps: int | None, epochs: float) -> None:
    phase = PhaseSettings(objective="sft", learning_rate=1e-3, epochs=6, batch_size=4, max_steps=max_steps)
    assert phase.passes(200) == epochs


def test_the_anchor_pulls_towards_its_teacher(increment: Increment, tmp_path: Path) -> None:
    first = increment("sft", out=tmp_path / "first").adapter

    def starting_kl(teacher: str) -> float:
        anchor = {"weight": 0.5, "rows_per_step": 3, "teacher": teacher}
        second = increment(adapter_folders=[first], settings=settings_of("sft", anchor=anchor), out=tmp_path / teacher)
        return float(second.phases[0].anchor_kl[0])

    assert starting_kl("previous") == pytest.approx(0, abs=1e-5)  # a fresh adapter still is the previous policy ...
    assert starting_kl("base") > 1e-3  # ... which is no longer the base
