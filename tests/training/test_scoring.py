"""Packed, shared and padded rows give what each row gives alone, values and gradients."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

torch = pytest.importorskip("torch")

from incremental_llm.adapters import varlen  # noqa: E402
from incremental_llm.training.batching import Row, pad_rows  # noqa: E402
from incremental_llm.training.scoring import arrange, attach_labelled_head, next_token_logps, pack, row_logps  # noqa: E402

TOKENS = st.lists(st.integers(4, 300), min_size=1, max_size=12).map(tuple)
ROWS = st.lists(st.builds(Row, TOKENS, TOKENS), min_size=1, max_size=6)


@pytest.fixture(scope="module", params=["eager", "sdpa", "varlen"])
def model(request: pytest.FixtureRequest, tiny_model_dir: Any) -> Any:
    from transformers import AutoModelForCausalLM

    loaded = AutoModelForCausalLM.from_pretrained(
        tiny_model_dir, dtype=torch.float32, attn_implementation="eager" if request.param == "eager" else "sdpa"
    ).eval()
    attach_labelled_head(loaded)
    if request.param == "varlen":  # what a GPU takes in 16 bits, here row by row
        varlen.register()
        loaded.set_attn_implementation(varlen.NAME)
    return loaded


def alone(model: Any, row: Row) -> Any:
    """The completion's log-probability by the model's own forward, without any of our short cuts."""
    ids_1T = torch.tensor([row.prompt + row.completion])
    logps_TV = torch.log_softmax(model(input_ids=ids_1T).logits[0], dim=-1)
    places = range(len(row.prompt) - 1, row.length - 1)
    return sum(logps_TV[t, ids_1T[0, t + 1]] for t in places)


@settings(max_examples=40, deadline=None)
@given(rows=ROWS, beginning=st.integers(0, 12), answers=st.lists(TOKENS, max_size=3))
def test_rows_score_together_as_they_score_alone(
    model: Any, rows: list[Row], beginning: int, answers: list[tuple[int, ...]]
) -> None:
    rows = [Row((*range(4, 4 + beginning), *row.prompt), row.completion) for row in rows]
    rows += [Row(rows[0].prompt, answer) for answer in answers]
    together_B = row_logps(model, *pad_rows(rows))
    alone_B = torch.stack([alone(model, row) for row in rows])
    assert torch.allclose(together_B, alone_B, rtol=1e-4, atol=1e-4)


def test_gradients_of_packed_rows_are_those_of_each_row_alone(model: Any) -> None:
    rows = [Row((*range(4, 14), 20 + n), tuple(range(30, 33 + 4 * n))) for n in range(4)]
    weight = model.model.layers[0].self_attn.q_proj.weight
    found = []
    for score in (lambda: row_logps(model, *pad_rows(rows)).sum(), lambda: sum(alone(model, row) for row in rows)):
        (gradient,) = torch.autograd.grad(score(), weight)
        found.append(gradient)
    assert found[0].abs().max() > 0
    assert torch.allclose(*found, rtol=1e-3, atol=1e-5)


def test_log_probabilities_over_a_large_vocabulary_are_exact_to_fp32() -> None:
    torch.manual_seed(0)
    logits_NV = 2.5 * torch.randn(60, 50_000) + 12 * torch.nn.functional.one_hot(torch.tensor(7), 50_000)
    ids_BT = torch.full((1, 60), 7)
    logps_N = next_token_logps(logits_NV, ids_BT, torch.ones_like(ids_BT, dtype=torch.bool))
    expected_N = torch.log_softmax(logits_NV.double(), dim=-1)[:, 7]
    assert (logps_N - expected_N).mean().abs() < 5e-7


def rows_of(*lengths: int, shared: int = 0) -> list[tuple[int, ...]]:
    """Rows with their first `shared` tokens in common and nothing else."""
    return [(*range(shared), *[1000 * row] * (length - shared)) for row, length in enumerate(lengths, 1)]


def test_lines_hold_every_row_once_and_are_filled_evenly() -> None:
    rows = rows_of(200, 80, 120, 40, 160, shared=20)
    lines = pack(rows)
    assert sorted(index for line in lines for index in line) == [0, 1, 2, 3, 4]
    assert sorted(sum(len(rows[index]) - 20 for index in line) for line in lines) == [240, 260]


def test_a_row_longer_than_a_line_is_not_cut() -> None:
    assert sorted(pack(rows_of(900, 41, 31))) == [[0], [1, 2]]


def test_the_answers_to_a_prompt_stay_in_one_line_where_it_stands_once(model: Any) -> None:
    prompts = [(*range(4, 14), *[20 + number] * 200) for number in range(3)]
    pairs = [Row(prompt, (100 + side, *[120 + side] * 60)) for side in range(2) for prompt in prompts]
    assert sorted(map(sorted, pack([row.prompt + row.completion for row in pairs]))) == [[0, 3], [1, 4], [2, 5]]
    at_BT, inputs = arrange(model.base_model, *pad_rows(pairs))
    if model.config._attn_implementation == varlen.NAME:  # without a mask, each row stands for itself
        assert inputs["input_ids"].shape == (1, 6 * 270)
        return
    assert inputs["input_ids"].shape == (3, 210 + 60 + 60)  # nothing stands behind a row's last label
    assert torch.equal(at_BT[0, :210], at_BT[3, :210])
    assert set(at_BT[0, 210:270].tolist()).isdisjoint(at_BT[3, 210:270].tolist())


@pytest.mark.parametrize("answers", [1, 2, 4])
def test_gradients_through_a_shared_prompt_are_those_of_each_row_alone(model: Any, answers: int) -> None:
    """Some answers begin with the same token, one is the beginning of another, and one is said twice."""
    said = [(30, 31, 32), (30, 40, 41, 42), (30, 31), (30, 31, 32)][:answers]
    rows = [Row((*range(4, 14), *[20 + number] * 30), completion) for number in range(3) for completion in said]
    weights = [model.model.layers[0].self_attn.k_proj.weight, model.model.layers[1].mlp.down_proj.weight]
    signs_B = torch.tensor([1.0 - 2.0 * (number % 2) + number for number in range(len(rows))])
    together_B = row_logps(model, *pad_rows(rows))
    alone_B = torch.stack([alone(model, row) for row in rows])
    assert torch.allclose(together_B, alone_B, rtol=1e-5, atol=1e-5)
    found = [torch.autograd.grad((signs_B * logps_B).sum(), weights) for logps_B in (together_B, alone_B)]
    for one, other in zip(*found, strict=True):
        assert one.abs().max() > 0
        assert torch.allclose(one, other, rtol=1e-3, atol=1e-4 * other.abs().max().item())
