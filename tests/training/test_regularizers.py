"""Every regulariser with every objective: it starts at its ideal, holds what it should, and is the same however cut."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

from incremental_llm.adapters.load import load_stack
from incremental_llm.adapters.lora import read_adapter, write_adapter
from incremental_llm.dataset.examples import Example
from incremental_llm.training.adapter import new_adapter
from incremental_llm.training.batching import Row, tokenize
from incremental_llm.training.regularizers import ewc, memory
from incremental_llm.training.regularizers.factors import lora_layers
from incremental_llm.training.regularizers.memory import DarkLogits, read_dark
from incremental_llm.training.regularizers.orthogonal import Orthogonality
from incremental_llm.training.regularizers.teachers import kl_sum, lumped_kl_sum
from incremental_llm.training.scoring import attach_labelled_head

from .conftest import UNSETTLED, examples_of, settings_of

KINDS = {"sft": "sft", "dpo": "pair", "kto": "unpaired"}

# How each is turned on, the term it logs, and whether that term is 0 before the first step.
CASES: dict[str, tuple[dict[str, Any], str, bool]] = {
    "anchor": ({"anchor": {"weight": 20.0, "rows_per_step": 4}}, "anchor_kl", True),
    "anchor, top 4": ({"anchor": {"weight": 20.0, "rows_per_step": 4, "top_k": 4}}, "anchor_kl", True),
    "replay_kl": ({"replay_kl": {"weight": 20.0}}, "replay_kl", True),
    "replay_kl, top 4": ({"replay_kl": {"weight": 20.0, "top_k": 4}}, "replay_kl", True),
    "dark": ({"dark": {"weight": 20.0}}, "dark", False),
    "ewc on a stack": ({"ewc": {"weight": 300.0}}, "ewc", True),
    "ewc on one that goes on": ({"ewc": {"weight": 300.0}, "growth": "continue"}, "ewc", True),
    "orthogonal": ({"orthogonal": {"weight": 20.0, "start": False}}, "orthogonal", False),
}
MATRIX = [(case, objective) for case in CASES for objective in KINDS]


def told(case: str, objective: str, **other: Any) -> Any:
    phase = UNSETTLED[objective] | {"learning_rate": 2e-2, "epochs": 2, "batch_size": 4}
    return settings_of(objective, **({"anchor": {"weight": 0}, "phases": [phase]} | CASES[case][0] | other))


@pytest.fixture(scope="module")
def nights(tmp_path_factory: pytest.TempPathFactory, tiny_model_dir: Path) -> Callable[..., Any]:
    """Train a second night on a first one that is trained once; half of the second night's rows are replayed."""
    from incremental_llm.training.increment import train_increment

    from .conftest import everyday

    made: dict[Any, Any] = {}

    def train(case: str, objective: str, name: str = "", **other: Any) -> tuple[Any, Any]:
        examples = examples_of(KINDS[objective])
        settings = told(case, objective, **other)
        growth = (settings.growth, bool(settings.ewc.weight), bool(settings.dark.weight))
        first_key, second_key = (objective, growth), (case, objective, name)
        common: dict[str, Any] = {"base_folder": tiny_model_dir, "anchors": everyday()}
        if first_key not in made:
            first = told(case, objective)
            out = tmp_path_factory.mktemp("first")
            made[first_key] = train_increment(
                **common, adapter_folders=[], examples=examples[:6], settings=first, out=out
            )
        if second_key not in made:
            made[second_key] = train_increment(
                **common,
                adapter_folders=[made[first_key].adapter],
                examples=examples,
                replayed=[example.id for example in examples[:6]],
                settings=settings,
                out=tmp_path_factory.mktemp("second"),
            )
        return made[first_key], made[second_key]

    return train


@pytest.mark.parametrize(("case", "objective"), MATRIX)
def test_its_term_is_logged_at_every_step_and_starts_at_the_ideal(
    case: str, objective: str, nights: Callable[..., Any]
) -> None:
    _, second = nights(case, objective)
    term, zero = CASES[case][1:]
    values = second.phases[0].terms[term]
    assert len(values) == second.phases[0].steps
    assert all(math.isfinite(value) and value >= -1e-5 for value in values)  # of fp32 sums
    assert not zero or abs(values[0]) < 1e-4
    assert max(values) > 1e-4


@pytest.mark.parametrize(("case", "objective"), MATRIX)
def test_it_is_the_same_in_micro_batches(case: str, objective: str, nights: Callable[..., Any]) -> None:
    whole, cut = (
        load_file(nights(case, objective, name, **more)[1].adapter / "adapter_model.safetensors")
        for name, more in (("", {}), ("cut", {"micro_batch": 2}))
    )
    gap = sum((whole[name] - cut[name]).square().sum().item() for name in whole)
    assert gap <= 1e-6 * sum(tensor.square().sum().item() for tensor in whole.values())


@pytest.mark.parametrize(("case", "objective"), [m for m in MATRIX if m[0] not in {"dark", "orthogonal"}])
def test_it_keeps_the_policy_near_the_previous_one(
    case: str, objective: str, nights: Callable[..., Any], tiny_model_dir: Path, tiny_tokenizer: Any
) -> None:
    first, held = nights(case, objective)
    off = {"anchor": {"weight": 0}, "replay_kl": {"weight": 0}, "ewc": {"weight": 0}}
    if "ewc" in case:
        off["ewc"] = {"weight": 1e-9}
    _, free = nights(case, objective, "free", **off)
    rows = [tokenize(tiny_tokenizer, e).rows[0] for e in examples_of(KINDS[objective])[:6]]

    def distance(after: Any) -> float:
        stack = [after.adapter] if after.replaces else [first.adapter, after.adapter]
        return divergence(tiny_model_dir, [first.adapter], stack, rows)

    assert distance(held) < distance(free)


def divergence(base: Path, before: list[Path], after: list[Path], rows: list[Row]) -> float:
    """Mean KL(before || after) at the answers, nats a token."""
    total, tokens = 0.0, 0
    models = [load_stack(base, folders, dtype=torch.float32) for folders in (before, after)]
    with torch.no_grad():
        for row in rows:
            ids = torch.tensor([row.prompt + row.completion])
            old, new = (model(ids).logits[0, len(row.prompt) - 1 : -1] for model in models)
            total, tokens = total + kl_sum(old, new).item(), tokens + len(row.completion)
    return total / tokens


def test_all_of_them_train_together(tmp_path: Path, tiny_model_dir: Path) -> None:
    from incremental_llm.training.increment import train_increment

    from .conftest import everyday

    on = {
        "anchor": {"weight": 0.5, "rows_per_step": 2},
        "replay_kl": {"weight": 0.5},
        "dark": {"weight": 0.1},
        "ewc": {"weight": 1.0},
        "orthogonal": {"weight": 0.5},
    }
    settings = settings_of("dpo", "kto", "sft", **on)
    examples = examples_of("pair", "unpaired", "sft")
    stack: list[Path] = []
    for night in range(3):
        result = train_increment(
            base_folder=tiny_model_dir,
            adapter_folders=stack,
            examples=examples,
            replayed=[e.id for e in examples[::2]] if night else [],
            anchors=everyday(),
            settings=settings,
            out=tmp_path / f"night{night}",
        )
        stack.append(result.adapter)
    for phase in result.phases:
        assert set(phase.terms) == {"anchor_kl", "replay_kl", "dark", "ewc", "orthogonal"}
        assert all(any(abs(value) > 0 for value in values) for values in phase.terms.values())


# The formulas


def some_logits(seed: int, vocabulary: int = 12) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    teacher, student = (3 * torch.randn(5, vocabulary, generator=generator) for _ in range(2))
    return teacher, student


@given(seed=st.integers(0, 1000), k=st.integers(1, 11))
def test_the_lumped_kl_is_at_most_the_exact_one_and_equal_with_all_but_one(seed: int, k: int) -> None:
    teacher, student = some_logits(seed)
    top = torch.log_softmax(teacher, -1).topk(k, dim=-1)
    lumped, exact = lumped_kl_sum(top.indices, top.values, student), kl_sum(teacher, student)
    assert -1e-4 <= lumped.item() <= exact.item() + 1e-3
    if k == 11:
        assert lumped.item() == pytest.approx(exact.item(), rel=1e-3)
    assert lumped_kl_sum(top.indices, top.values, teacher).item() == pytest.approx(0, abs=1e-4)


@pytest.fixture
def adapted(tiny_model: Any) -> Any:
    """The tiny model with a trained-looking adapter: B is not 0."""
    attach_labelled_head(tiny_model)
    model = new_adapter(tiny_model, settings_of("sft"))
    torch.manual_seed(1)
    with torch.no_grad():
        for layer in lora_layers(model).values():
            layer.lora_B["default"].weight.normal_(std=0.05)
    return model


def rows_of(tokenizer: Any, examples: tuple[Example, ...] = examples_of("sft")) -> list[Row]:
    return [tokenize(tokenizer, example).rows[0] for example in examples[:4]]


def test_row_and_column_sums_are_those_of_the_dense_squared_gradient(adapted: Any, tiny_tokenizer: Any) -> None:
    rows, name = rows_of(tiny_tokenizer)[:1], "model.layers.1.mlp.up_proj"
    found = ewc.estimate_fisher(adapted, rows, contextlib.nullcontext, seed=3, folded=True)
    weight = lora_layers(adapted)[name].base_layer.weight
    weight.requires_grad_(True)
    generator = torch.Generator().manual_seed(3)
    (gradient,) = torch.autograd.grad(ewc._drawn_nll(adapted, rows[0], contextlib.nullcontext, generator), [weight])
    dense = gradient.square() / len(rows[0].completion)
    torch.testing.assert_close(found[f"{name}.row"], dense.sum(1), rtol=1e-3, atol=1e-9)
    torch.testing.assert_close(found[f"{name}.column"], dense.sum(0), rtol=1e-3, atol=1e-9)


def test_the_folded_penalty_is_the_dense_formula(adapted: Any, tiny_tokenizer: Any) -> None:
    fisher = ewc.estimate_fisher(adapted, rows_of(tiny_tokenizer), contextlib.nullcontext, seed=0, folded=True)
    by_hand = 0.0
    for name, layer in lora_layers(adapted).items():
        row, column = fisher[f"{name}.row"], fisher[f"{name}.column"]
        factors = (layer.lora_B["default"].weight.detach(), layer.lora_A["default"].weight.detach())
        delta = layer.scaling["default"] * factors[0] @ factors[1]
        by_hand += float((torch.outer(row, column) / row.sum() * delta.square()).sum() / 2)
    assert ewc.FoldedEwc(adapted, fisher, 3.0).loss().item() == pytest.approx(3 * by_hand, rel=1e-4)


def test_half_d_f_d_predicts_the_kl_of_a_small_step(adapted: Any, tiny_tokenizer: Any) -> None:
    """The unit of ewc.weight: the penalty at 1 is an estimate of KL(previous || new) in nats a token."""
    rows = rows_of(tiny_tokenizer)
    fisher = [ewc.estimate_fisher(adapted, rows, contextlib.nullcontext, seed=s, folded=False) for s in range(40)]
    mean = {name: torch.stack([f[name] for f in fisher]).mean(0) for name in fisher[0]}
    penalty = ewc.DiagonalEwc(adapted, mean, 1.0)
    batches = [torch.tensor([row.prompt + row.completion]) for row in rows]

    def answers() -> torch.Tensor:
        with torch.no_grad():
            logits = [adapted(b).logits[0, len(r.prompt) - 1 : -1] for b, r in zip(batches, rows, strict=True)]
        return torch.cat(logits)

    before = answers()
    generator = torch.Generator().manual_seed(0)
    ratios = []
    start = {n: p.detach().clone() for n, p in adapted.named_parameters() if p.requires_grad}
    for _ in range(20):
        with torch.no_grad():
            for name, parameter in adapted.named_parameters():
                if name in start:
                    parameter.copy_(start[name] + 1e-3 * torch.randn(parameter.shape, generator=generator))
        after = answers()
        ratios.append(penalty.loss().item() / (kl_sum(before, after).item() / len(before)))
    assert sum(ratios) / len(ratios) == pytest.approx(1.0, abs=0.25)


def test_a_fresh_adapters_own_fisher_is_zero_but_the_folded_one_is_not(tiny_model: Any, tiny_tokenizer: Any) -> None:
    attach_labelled_head(tiny_model)
    model = new_adapter(tiny_model, settings_of("sft"))
    rows = rows_of(tiny_tokenizer)
    own = ewc.estimate_fisher(model, rows, contextlib.nullcontext, seed=0, folded=False)
    folded = ewc.estimate_fisher(model, rows, contextlib.nullcontext, seed=0, folded=True)
    assert all(torch.count_nonzero(tensor) == 0 for name, tensor in own.items() if name.endswith(".A"))
    assert all(tensor.sum() > 0 for tensor in folded.values())


def test_fishers_add_up_and_earlier_ones_fade() -> None:
    before = {"a.row": torch.full((2,), 3.0), "b.row": torch.ones(1)}
    found = ewc.accumulated(before, {"a.row": torch.ones(2), "c.row": torch.ones(1)}, 0.75)
    assert {name: tensor.tolist() for name, tensor in found.items()} == {
        "a.row": [3.25, 3.25],
        "b.row": [0.75],
        "c.row": [1.0],
    }
    both = ewc.accumulated({"a.row": torch.ones(1)}, {"a.row": torch.ones(1)}, 1.0)
    assert both["a.row"].item() == 2  # two nights that need a weight equally hold it twice as hard


def test_the_dark_distance_is_that_of_the_kept_logits_alone() -> None:
    kept = DarkLogits(torch.tensor([[0, 2], [1, 3]], dtype=torch.int32), torch.tensor([[1.0, 2.0], [0.0, -1.0]]))
    now_NV = torch.tensor([[1.5, 9.0, 2.0, 9.0], [9.0, 1.0, 9.0, -4.0]], requires_grad=True)
    distance = memory._distance(kept, now_NV)
    assert distance.item() == pytest.approx((0.25 + 0.0) / 2 + (1.0 + 9.0) / 2)
    (gradient,) = torch.autograd.grad(distance, [now_NV])
    assert gradient.tolist() == [[0.5, 0.0, 0.0, 0.0], [0.0, 1.0, 0.0, -3.0]]


@pytest.mark.parametrize("objective", list(KINDS))
def test_dark_starts_at_the_policy_that_stored_the_logits_and_keeps_near_it(
    objective: str, nights: Callable[..., Any], tiny_model_dir: Path, tiny_tokenizer: Any
) -> None:
    """The second night's policy is at first the very one that stored them: what is left is their rounding to bf16."""
    first, held = nights("dark", objective)
    _, free = nights("dark", objective, "free", dark={"weight": 1e-9})
    at_first, farthest = held.phases[0].terms["dark"][0] / 20, max(free.phases[0].terms["dark"]) / 1e-9
    assert at_first < 0.05 * farthest
    rows = {e.id: tokenize(tiny_tokenizer, e).rows[0] for e in examples_of(KINDS[objective])[:6]}
    stored = read_dark(first.adapter)

    def distance(after: Any) -> float:
        model = load_stack(tiny_model_dir, [first.adapter, after.adapter], dtype=torch.float32)
        total = 0.0
        for name in stored.keys() & rows.keys():
            ids = torch.tensor([rows[name].prompt + rows[name].completion])
            with torch.no_grad():
                total += memory._distance(stored[name], model(ids).logits[0, len(rows[name].prompt) - 1 : -1]).item()
        return total

    assert distance(held) < 0.8 * distance(free)


def test_an_increment_leaves_its_fisher_and_its_logits_beside_its_adapter(nights: Callable[..., Any]) -> None:
    first, second = nights("dark", "sft")
    old, new = read_dark(first.adapter), read_dark(second.adapter)
    assert set(old) < set(new)
    assert all(torch.equal(old[name].values, new[name].values) for name in old)  # of when they were learnt
    first, second = nights("ewc on a stack", "sft")
    assert ewc.is_folded(ewc.read_fisher(first.adapter))
    _, second = nights("ewc on one that goes on", "sft")
    assert not ewc.is_folded(ewc.read_fisher(second.adapter))


def test_a_term_without_its_past_is_no_term_and_says_so(
    tmp_path: Path, tiny_model_dir: Path, increment: Callable[..., Any]
) -> None:
    below = increment("sft", out=tmp_path / "below").adapter
    on = {"ewc": {"weight": 1.0}, "dark": {"weight": 1.0}}
    result = increment(settings=settings_of("sft", **on), adapter_folders=[below], out=tmp_path / "above")
    assert "ewc: expected the Fisher information of the adapter before, found none: no penalty" in result.notes
    assert any(note.startswith("dark: the adapter before stored no logits") for note in result.notes)
    assert "ewc" not in result.phases[0].terms


@pytest.mark.parametrize("earlier", [1, 3])
def test_a_start_outside_has_no_share_and_keeps_its_norm(earlier: int, tiny_model: Any, tmp_path: Path) -> None:
    below = []
    for number in range(earlier):
        model = new_adapter(tiny_model, settings_of("sft"), below=number)
        factors = {
            name: (layer.lora_A["default"].weight.detach().clone(), layer.lora_B["default"].weight.detach().clone())
            for name, layer in lora_layers(model).items()
        }
        tiny_model = model.unload()
        write_adapter(tmp_path / str(number), factors, "tiny")
        below.append(read_adapter(tmp_path / str(number)))
    model = new_adapter(tiny_model, settings_of("sft"), below=earlier)
    penalty = Orthogonality(model, below, 2.0)
    factors_A = [layer.lora_A["default"].weight for layer in lora_layers(model).values()]
    norms = [A_RI.norm().item() for A_RI in factors_A]
    assert 0 < penalty.loss().item() <= 2.0
    penalty.start_outside()
    assert [A_RI.norm().item() for A_RI in factors_A] == pytest.approx(norms, rel=1e-4)
    # Exactly 0, gradient and all: of what rounding leaves of it, Adam would make a whole step.
    assert penalty.loss().item() == 0
    assert all(torch.count_nonzero(gradient) == 0 for gradient in torch.autograd.grad(penalty.loss(), factors_A))


def test_orthogonality_keeps_the_new_adapter_out_of_what_the_old_one_reads(nights: Callable[..., Any]) -> None:
    first, held = nights("orthogonal", "sft")
    _, free = nights("orthogonal", "sft", "free", orthogonal={"weight": 0})

    def share(result: Any) -> float:
        old, new = read_adapter(first.adapter), read_adapter(result.adapter)
        shares = []
        for name, (A_RI, _) in new.modules.items():
            Q_EI = torch.linalg.qr(old.modules[name][0].float().T).Q.T
            shares.append(float((A_RI @ Q_EI.T).square().sum() / A_RI.square().sum()))
        return sum(shares) / len(shares)

    assert share(held) < 0.5 * share(free)


def test_a_fisher_of_other_layers_holds_nothing_and_that_is_said(tmp_path: Path, increment: Callable[..., Any]) -> None:
    on = {"ewc": {"weight": 1.0}, "orthogonal": {"weight": 1.0}}
    attention = settings_of("sft", lora={"rank": 4, "alpha": 8, "targets": ["q_proj"]}, **on)
    below = increment(settings=attention, out=tmp_path / "below").adapter
    mlp = settings_of("sft", lora={"rank": 4, "alpha": 8, "targets": ["up_proj"]}, **on)
    result = increment(settings=mlp, adapter_folders=[below], out=tmp_path / "above")
    assert any("of other layers: no penalty" in note for note in result.notes)
    assert not {"ewc", "orthogonal"} & set(result.phases[0].terms)


def test_layers_whose_inputs_are_all_read_are_left_out_and_that_is_said(
    tmp_path: Path, increment: Callable[..., Any]
) -> None:
    full = settings_of("sft", lora={"rank": 32, "alpha": 32, "targets": ["q_proj"]}, orthogonal={"weight": 1.0})
    below = increment(settings=full, out=tmp_path / "below").adapter
    result = increment(settings=full, adapter_folders=[below], out=tmp_path / "above")
    assert "orthogonal: earlier adapters read all inputs of 2 layers: left out there" in result.notes
    assert "orthogonal" not in result.phases[0].terms


def test_stored_logits_leave_with_what_the_buffer_lets_go(increment: Callable[..., Any], tmp_path: Path) -> None:
    told, examples = settings_of("sft", dark={"weight": 1.0}), examples_of("sft")
    first = increment(examples=examples[:5], settings=told, out=tmp_path / "1")
    kept = {examples[0].id, examples[3].id}
    common = {"adapter_folders": [first.adapter], "settings": told, "examples": examples[5:]}
    second = increment(**common, replayable=kept, out=tmp_path / "2")
    assert read_dark(second.adapter).keys() == kept | {e.id for e in examples[5:]}
    assert any("no old example was replayed" in note for note in second.notes)
    third = increment(**common, out=tmp_path / "3")
    assert len(read_dark(third.adapter)) == 10
