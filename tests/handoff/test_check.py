"""The comparison of two models, on logits whose difference is known."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch

from incremental_llm.adapters.lora import LoraAdapter
from incremental_llm.adapters.merge import concatenate, padded
from incremental_llm.errors import InputError, IntegrityError
from incremental_llm.handoff.check import (
    PROBES,
    Tolerance,
    compare_logits,
    probe_ids,
    require_same_deltas,
    require_same_weights,
)

IDS = [torch.tensor([[1, 2, 3]]), torch.tensor([[4]])]


def constant(*values: float) -> Any:
    """A model with the same logits at every position."""
    return lambda ids_1T: torch.tensor(values).expand(1, ids_1T.shape[1], len(values))


def test_the_figures_are_those_of_the_formulas() -> None:
    check = compare_logits(constant(0.0, math.log(3.0)), constant(0.0, 0.0), IDS)
    assert check.max_abs_logit == pytest.approx(math.log(3.0))
    assert check.mean_kl == pytest.approx(0.25 * math.log(0.5) + 0.75 * math.log(1.5))  # KL((1/4, 3/4) || (1/2, 1/2))
    assert (check.probes, check.tokens, check.same_top) == (2, 4, 0.0)


def test_a_constant_added_to_all_logits_changes_no_probability() -> None:
    check = compare_logits(constant(0.0, 1.0), constant(5.0, 6.0), IDS)
    assert check.max_abs_logit == 5.0 and check.mean_kl == pytest.approx(0.0, abs=1e-12) and check.same_top == 1.0


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_what_is_not_a_number_is_never_within_a_tolerance(bad: float) -> None:
    check = compare_logits(constant(0.0, 1.0), constant(0.0, bad), IDS)
    with pytest.raises(IntegrityError, match="export: expected the logits"):
        check.require(Tolerance(math.inf, math.inf) if math.isnan(bad) else Tolerance(1e9, 1e9), "export")


def test_other_vocabularies_are_not_compared() -> None:
    with pytest.raises(IntegrityError, match=r"\(3, 2\), found \(3, 3\)"):
        compare_logits(constant(0.0, 1.0), constant(0.0, 1.0, 2.0), IDS)


def test_a_model_equals_itself(tiny_model: Any, tiny_tokenizer: Any) -> None:
    ids = probe_ids(tiny_tokenizer, PROBES[:1])
    check = compare_logits(tiny_model, lambda ids_1T: tiny_model(ids_1T).logits, ids)
    assert (check.max_abs_logit, check.same_top) == (0.0, 1.0)
    assert check.tokens == sum(i.shape[1] for i in ids)
    check.require(Tolerance(0.0, 1e-12), "the same model")


def test_no_probes_is_an_error(tiny_tokenizer: Any) -> None:
    with pytest.raises(InputError, match="at least one probe"):
        probe_ids(tiny_tokenizer, ())


def random_adapter(*names: str) -> LoraAdapter:
    modules = {name: (torch.randn(4, 12), torch.randn(8, 4)) for name in names}
    return LoraAdapter({"r": 4, "lora_alpha": 8}, modules, dict.fromkeys(names, 2.0))


def test_weights_are_compared_bit_for_bit_and_by_name(tiny_model: Any) -> None:
    other = copy.deepcopy(tiny_model)
    require_same_weights(other, tiny_model, "export")
    name, parameter = next((n, p) for n, p in other.named_parameters() if "down_proj" in n)
    parameter.data[0, 0] = torch.nextafter(parameter.data[0, 0], torch.tensor(9.0))
    with pytest.raises(IntegrityError, match=f"others at 1 places, such as {name}"):
        require_same_weights(other, tiny_model, "export")
    with pytest.raises(IntegrityError, match="others at"):
        require_same_weights(copy.deepcopy(tiny_model).half(), tiny_model, "export")
    with pytest.raises(IntegrityError, match="such as extra"):
        other = copy.deepcopy(tiny_model)
        other.register_buffer("extra", torch.zeros(1))
        require_same_weights(other, tiny_model, "export")


def test_deltas_are_compared_module_by_module_whatever_the_dtype_that_is_served() -> None:
    torch.manual_seed(0)
    stack = [random_adapter("up", "down"), random_adapter("down")]
    exported = padded(concatenate(stack), 16)
    require_same_deltas(exported, stack, "export")
    A_RI, B_OR = exported.modules["down"]
    slightly = {**exported.modules, "down": (A_RI, B_OR * 1.001)}
    missing = {"down": exported.modules["down"]}
    for wrong in (slightly, missing):
        with pytest.raises(IntegrityError, match=r"expected the sum of [12] deltas at (down|up)"):
            require_same_deltas(LoraAdapter(exported.config, wrong, exported.scaling), stack, "export")
    with pytest.raises(IntegrityError, match="sum of 1 deltas at down"):
        require_same_deltas(exported, stack[:1], "export")
