"""Every way to make one adapter of several, held to the same promises; and to PEFT, where it does the same."""

from __future__ import annotations

import copy
import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from peft.utils import merge_utils
from pydantic import ValidationError

from incremental_llm.adapters.lora import LoraAdapter, delta, read_adapter, write_adapter
from incremental_llm.adapters.low_rank import of_matrix
from incremental_llm.adapters.merge import concatenate, reduce_rank, reduce_to_error, weighted
from incremental_llm.adapters.merge_methods import draw_seed, merge, merged_delta
from incremental_llm.adapters.merge_settings import MergeSettings
from incremental_llm.errors import InputError, IntegrityError

METHODS = ("sum", "magnitude", "ties", "dare", "dare_ties")
ORDERLESS = ("sum", "magnitude", "ties")  # dare draws for one adapter after the other
ENTRYWISE = METHODS[1:]
LAYER = "model.layers.{}.mlp.up_proj"
X, Y, Z = (LAYER.format(i) for i in range(3))


def adapter_of(
    shapes: dict[str, tuple[int, int, int]], scaling: float = 1.0, seed: int = 0, dtype: torch.dtype = torch.float32
) -> LoraAdapter:
    """An adapter with Gaussian factors for {module: (O, I, R)}."""
    draw = torch.Generator().manual_seed(seed)
    modules = {
        name: (torch.randn(r, i, generator=draw).to(dtype), torch.randn(o, r, generator=draw).to(dtype))
        for name, (o, i, r) in shapes.items()
    }
    return LoraAdapter({}, modules, dict.fromkeys(modules, scaling))


@pytest.fixture
def adapters() -> list[LoraAdapter]:
    """Ranks, targets and scalings differ, as between nights of different recipes."""
    return [
        adapter_of({X: (10, 14, 3), Y: (9, 6, 2)}, 0.5, 1),
        adapter_of({X: (10, 14, 1), Z: (8, 8, 4)}, 2 / 3**0.5, 2),  # rsLoRA: alpha / sqrt(rank)
        adapter_of({X: (10, 14, 4), Y: (9, 6, 5), Z: (8, 8, 2)}, 1.25, 3, torch.bfloat16),
    ]


def settings(method: str, **told: Any) -> MergeSettings:
    return MergeSettings(method=method, **told)


def whole(method: str) -> MergeSettings:
    """The method with nothing left out."""
    return settings(method) if method == "sum" else settings(method, density=1.0)


def distance(one: LoraAdapter, expected: dict[str, torch.Tensor]) -> float:
    lost = sum(float((delta(one, name).double() - D.double()).square().sum()) for name, D in expected.items())
    energy = sum(float(D.double().square().sum()) for D in expected.values())
    return (lost / energy) ** 0.5


def explicit(adapters: list[LoraAdapter], weights: list[float] | None = None) -> dict[str, torch.Tensor]:
    """The sum of explicit deltas."""
    total: dict[str, torch.Tensor] = {}
    for adapter, weight in zip(adapters, weights or [1.0] * len(adapters), strict=True):
        for name in adapter.modules:
            total[name] = total.get(name, 0) + weight * delta(adapter, name).double()
    return total


@pytest.mark.parametrize("method", METHODS)
def test_one_adapter_at_weight_1_is_itself(method: str, adapters: list[LoraAdapter]) -> None:
    for adapter in adapters:
        for weights in (None, [1.0]):
            one, loss = merge([adapter], whole(method), weights)
            assert one.modules.keys() == adapter.modules.keys() and set(one.scaling.values()) == {1.0}
            assert one.ranks == adapter.ranks
            assert distance(one, explicit([adapter])) < 1e-6 and loss.relative_error < 1e-6


@pytest.mark.parametrize("method", ORDERLESS)
def test_the_order_of_the_adapters_does_not_matter(method: str, adapters: list[LoraAdapter]) -> None:
    weights = [1.0, 0.5, -0.25]
    expected, _ = merge(adapters, settings(method), weights)
    for places in itertools.permutations(range(3)):
        again, _ = merge([adapters[i] for i in places], settings(method), [weights[i] for i in places])
        assert distance(again, {name: delta(expected, name) for name in expected.modules}) < 1e-6


@pytest.mark.parametrize("method", ("sum", "magnitude", "dare"))
@pytest.mark.parametrize("weights", [None, [1.0, 0.5, -2.0]])
def test_with_nothing_left_out_it_is_the_sum_of_the_deltas(
    method: str, weights: list[float] | None, adapters: list[LoraAdapter]
) -> None:
    one, loss = merge(adapters, whole(method), weights)
    expected = explicit(adapters, weights)
    assert one.modules.keys() == expected.keys() == {X, Y, Z}
    assert distance(one, expected) < 1e-6 and loss.relative_error < 1e-6
    assert all(factor.dtype == torch.float32 for pair in one.modules.values() for factor in pair)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("size", [{}, {"rank": 1}, {"rank": 2}, {"rank": 4}, {"error": 0.3}, {"error": 0.05}])
def test_the_reported_error_is_the_measured_one(method: str, size: Any, adapters: list[LoraAdapter]) -> None:
    told = settings(method, **size)
    one, loss = merge(adapters, told)
    asked = {name: merged_delta(adapters, name, told) for name in (X, Y, Z)}
    assert loss.relative_error == pytest.approx(distance(one, asked), abs=2e-6)
    for name, D in asked.items():
        assert loss.modules[name] == pytest.approx(distance(one, {name: D}), abs=2e-6)
        kept = torch.linalg.svdvals(D.double())[one.ranks[name] :]  # nothing of this rank is nearer
        assert loss.modules[name] == pytest.approx(float(kept.norm() / D.double().norm()), abs=2e-6)
    if "rank" in size:
        assert max(one.ranks.values()) <= size["rank"]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("error", [0.6, 0.2, 0.01])
def test_an_error_is_kept_with_the_smallest_rank(method: str, error: float, adapters: list[LoraAdapter]) -> None:
    one, loss = merge(adapters, whole(method).model_copy(update={"error": error}))
    rank = max(one.ranks.values())
    full, _ = merge(adapters, whole(method))
    if loss.relative_error > error:  # only where the sum of all ranks, the largest there is, does not suffice
        assert one.ranks == full.ranks
    _, smaller = merge(adapters, whole(method).model_copy(update={"rank": max(1, rank - 1)}))
    assert rank == 1 or smaller.relative_error > error
    capped, more = merge(adapters, whole(method).model_copy(update={"error": error, "rank": 1}))
    assert max(capped.ranks.values()) == 1 and more.relative_error >= loss.relative_error


def test_an_error_of_0_keeps_the_factors_as_they_are(adapters: list[LoraAdapter]) -> None:
    exact = concatenate(adapters)
    same, loss = reduce_to_error(exact, 0.0)
    assert same.ranks == exact.ranks and loss.relative_error == 0.0
    assert all(torch.equal(delta(same, name), delta(exact, name)) for name in exact.modules)


def test_the_same_adapter_twice_needs_its_rank_only_once(adapters: list[LoraAdapter]) -> None:
    twice = concatenate([adapters[0], adapters[0]])
    small, loss = reduce_to_error(twice, 1e-6)
    assert max(twice.ranks.values()) == 6 and max(small.ranks.values()) == 3 and loss.relative_error < 1e-6


@pytest.mark.parametrize("method", METHODS)
def test_any_result_is_a_plain_adapter_on_the_disk(method: str, adapters: list[LoraAdapter], tmp_path: Path) -> None:
    one, _ = merge(adapters, settings(method, rank=3))
    write_adapter(tmp_path, one.modules, "tiny", scaling=one.scaling)
    again = read_adapter(tmp_path)
    assert all(torch.equal(delta(again, name), delta(one, name)) for name in one.modules)


@pytest.mark.parametrize("method", METHODS)
def test_what_cannot_be_merged_is_refused(method: str, adapters: list[LoraAdapter]) -> None:
    with pytest.raises(InputError, match="at least one adapter"):
        merge([], settings(method))
    with pytest.raises(InputError, match=r"up_proj: expected one shape .* different bases"):
        merge([*adapters, adapter_of({Z: (8, 9, 2)})], settings(method))
    broken = adapter_of({X: (10, 14, 2)})
    broken.modules[X][0][1, 3] = float("nan")
    for order in ([*adapters, broken], [broken, *adapters]):
        with pytest.raises(IntegrityError, match="up_proj: expected finite weights, found NaN"):
            merge(order, settings(method))
    for weights in ([1.0, 2.0], [1.0, float("nan"), 1.0], [0.0, 0.0, 0.0]):
        with pytest.raises(InputError, match="expected 3 finite weights"):
            merge(adapters, settings(method), weights)


def test_settings_without_effect_are_refused() -> None:
    for told in ({"density": 0.2}, {"seed": 1}, {"method": "ties", "seed": 1}, {"rank": 0}, {"error": 1.0}):
        with pytest.raises(ValidationError):
            MergeSettings(**told)


def test_an_adapter_of_weight_0_takes_no_room(adapters: list[LoraAdapter]) -> None:
    one, _ = merge(adapters, settings("sum"), [1.0, 0.0, 1.0])
    assert one.ranks == concatenate([adapters[0], adapters[2]]).ranks
    assert weighted(adapters, [1.0, 0.0, 1.0])[0].scaling == adapters[0].scaling


def test_dare_is_the_same_for_a_seed_and_right_on_average(adapters: list[LoraAdapter]) -> None:
    told = [settings("dare", density=0.5, seed=seed) for seed in range(300)]
    first = merged_delta(adapters, X, told[1])
    assert torch.equal(first, merged_delta(adapters, X, told[1]))
    assert not torch.equal(first, merged_delta(adapters, X, told[2]))
    mean = torch.stack([merged_delta(adapters, X, one) for one in told]).mean(dim=0)
    expected = explicit(adapters)[X].float()
    assert float((mean - expected).norm() / expected.norm()) < 0.12  # sqrt(1 / 300), times what the deltas add up from


def test_ties_keeps_the_sign_with_the_most_weight() -> None:
    def single(value: float) -> LoraAdapter:
        return LoraAdapter({}, {X: (torch.ones(1, 1), torch.full((1, 1), value))}, {X: 1.0})

    parts, told = [single(3.0), single(1.0), single(-2.0)], settings("ties", density=1.0)
    assert merged_delta(parts, X, told).item() == 2.0  # the mean of 3 and 1: +2 in the sum, -2 is outvoted
    assert merged_delta(weighted(parts, [1.0, 1.0, 3.0]), X, told).item() == -6.0
    assert merged_delta(weighted(parts, [-1.0, 1.0, 1.0]), X, told).item() == -2.5  # a turned vote


def test_magnitude_keeps_the_largest_entries(adapters: list[LoraAdapter]) -> None:
    kept = merged_delta([adapters[0]], X, settings("magnitude", density=0.1))
    full = delta(adapters[0], X)
    assert int((kept != 0).sum()) == 14 and torch.equal(kept[kept != 0], full[kept != 0])
    assert float(full[kept == 0].abs().max()) <= float(kept[kept != 0].abs().min())
    assert int((merged_delta([adapters[0]], X, settings("magnitude", density=1e-6)) != 0).sum()) == 1


@pytest.mark.parametrize("shape", [(7, 12), (12, 7), (5, 5)])
def test_the_nearest_matrix_of_a_rank(shape: tuple[int, int]) -> None:
    D = torch.randn(shape, generator=torch.Generator().manual_seed(4))
    singular = torch.linalg.svdvals(D.double())
    for rank in range(1, 6):
        A_KI, B_OK = of_matrix(D, 5).at(rank)
        assert A_KI.shape[0] == B_OK.shape[1] == rank
        assert float((D - B_OK @ A_KI).norm()) == pytest.approx(float(singular[rank:].norm()), abs=1e-5)
    nothing = of_matrix(torch.zeros(shape), 3)
    assert nothing.energy == 0.0 and not (nothing.at(3)[1] @ nothing.at(3)[0]).any()


# against PEFT's own


@pytest.mark.parametrize("weights", [[1.0, 1.0, 1.0], [0.5, 0.5, 0.5]])
@pytest.mark.parametrize("density", [0.2, 0.5, 0.9])
def test_deltas_are_merged_as_pefts_functions_merge_them(
    weights: list[float], density: float, adapters: list[LoraAdapter]
) -> None:
    deltas, w = [delta(adapter, X) for adapter in adapters], torch.tensor(weights)
    told = weighted(adapters, weights)

    def ours(method: str) -> torch.Tensor:
        return merged_delta(told, X, settings(method, density=density))

    close = {"atol": 1e-6, "rtol": 1e-5}
    torch.testing.assert_close(ours("magnitude"), merge_utils.magnitude_prune(deltas, w, density), **close)
    torch.testing.assert_close(ours("ties"), merge_utils.ties(deltas, w, density), **close)
    with torch.random.fork_rng(devices=[]):  # PEFT draws from the global generator
        torch.manual_seed(draw_seed(0, X))
        torch.testing.assert_close(ours("dare"), merge_utils.dare_linear(deltas, w, density), **close)
        torch.manual_seed(draw_seed(0, X))
        torch.testing.assert_close(ours("dare_ties"), merge_utils.dare_ties(deltas, w, density), **close)


@pytest.fixture
def peft_model(tiny_model: Any, tmp_path: Path) -> Any:
    """Two adapters of the same layers in a PEFT model, of different ranks and scalings; saved as `a0` and `a1`."""
    model, draw = None, torch.Generator().manual_seed(1)
    for i, (rank, alpha) in enumerate(((4, 8), (2, 6))):
        config = LoraConfig(task_type="CAUSAL_LM", r=rank, lora_alpha=alpha, target_modules=["q_proj", "up_proj"])
        if model is None:
            model = get_peft_model(copy.deepcopy(tiny_model), config, adapter_name="a0")
        else:
            model.add_adapter(f"a{i}", config)
        for name, parameter in model.named_parameters():
            if f".a{i}." in name:
                parameter.data.copy_(torch.randn(parameter.shape, generator=draw) * 0.1)
        model.save_pretrained(tmp_path, selected_adapters=[f"a{i}"])
    return model


def of_peft(model: Any, tmp_path: Path, kind: str, **told: Any) -> dict[str, torch.Tensor]:
    """Deltas of what `add_weighted_adapter` makes."""
    model.add_weighted_adapter(["a0", "a1"], adapter_name=kind, combination_type=kind, **told)
    model.save_pretrained(tmp_path, selected_adapters=[kind])
    made = read_adapter(tmp_path / kind)
    return {name: delta(made, name) for name in made.modules}


@pytest.mark.parametrize(
    ("kind", "told", "weights"),
    [
        ("svd", settings("sum", rank=3), [1.0, -0.5]),
        ("ties_svd", settings("ties", density=0.4, rank=3), [1.0, 1.0]),
        ("magnitude_prune_svd", settings("magnitude", density=0.4, rank=3), [1.0, -0.5]),
        ("dare_linear_svd", settings("dare", density=1.0, rank=3), [1.0, -0.5]),
    ],
)
@pytest.mark.filterwarnings("ignore:The density 1.0 is greater than or equal to 1:UserWarning")
def test_add_weighted_adapter_with_svd_gives_the_same(
    kind: str, told: MergeSettings, weights: list[float], peft_model: Any, tmp_path: Path
) -> None:
    density = {} if kind == "svd" else {"density": told.density}
    theirs = of_peft(peft_model, tmp_path, kind, weights=weights, svd_rank=3, **density)
    ours, _ = merge([read_adapter(tmp_path / name) for name in ("a0", "a1")], told, weights)
    assert ours.modules.keys() == theirs.keys()
    assert distance(ours, theirs) < 1e-5


@pytest.mark.filterwarnings("ignore:Adapter a0 was active which is now deleted:UserWarning")
def test_add_weighted_adapter_without_svd_is_not_the_sum(tiny_model: Any, peft_model: Any, tmp_path: Path) -> None:
    """PEFT's `linear` adds A to A and B to B, so B0·A1 and B1·A0 come into the product; and it wants equal ranks."""
    parts = [read_adapter(tmp_path / name) for name in ("a0", "a1")]
    with pytest.raises(ValueError, match="same r value"):
        of_peft(peft_model, tmp_path, "linear", weights=[1.0, 1.0])
    small, _ = reduce_rank(parts[0], 2)
    write_adapter(tmp_path / "b0", small.modules, "")  # with a name PEFT asks the hub for it
    peft_model.delete_adapter("a0")
    peft_model.load_adapter(tmp_path / "b0", "a0")
    linear = of_peft(peft_model, tmp_path, "linear", weights=[1.0, 1.0])
    (Ab, Bb), (A1, B1) = (part.folded(name) for part in (small, parts[1]) for name in [next(iter(linear))])
    scaling = parts[1].scaling[next(iter(linear))] ** 0.5
    mixed = (Bb + B1 / scaling) @ (Ab + A1 * scaling)  # the scaling's root goes to either side
    torch.testing.assert_close(linear[next(iter(linear))], mixed, atol=1e-5, rtol=1e-4)
    one, _ = merge([small, parts[1]], settings("sum"))
    assert distance(one, linear) > 0.3
