"""Packed, shared and padded rows give what each row gives alone, values and gradients."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

torch = pytest.importorskip("torch")

from incremental_llm.training.batching import Row, pad_rows  # noqa: E402
from incremental_llm.training.scoring import attach_labelled_head, pack, row_logps  # noqa: E402

TOKENS = st.lists(st.integers(4, 300), min_size=1, max_size=12).map(tuple)
ROWS = st.lists(st.builds(Row, TOKENS, TOKENS), min_size=1, max_size=6)


@pytest.fixture(scope="module", params=["eager", "sdpa"])
def model(request: pytest.FixtureRequest, tiny_model_dir: Any) -> Any:
    from transformers import AutoModelForCausalLM

    loaded = AutoModelForCausalLM.from_pretrained(
        tiny_model_dir, dtype=torch.float32, attn_implementation=request.param
    ).eval()
    attach_labelled_head(loaded)
    return loaded


def alone(model: Any, row: Row) -> Any:
    """The completion's log-probability by the model's own forward, without any of our short cuts."""
    ids_1T = torch.tensor([row.prompt + row.completion])
    logps_TV = torch.log_softmax(model(input_ids=ids_1T).logits[0], dim=-1)
    places = range(len(row.prompt) - 1, row.length - 1)
    return sum(logps_TV[t, ids_1T[0, t + 1]] for t in places)


@settings(max_examples=40, deadline=None)
@given(rows=ROWS, beginning=st.integers(0, 12))
def test_rows_score_together_as_they_score_alone(model: Any, rows: list[Row], beginning: int) -> None:
    rows = [Row((*range(4, 4 + beginning), *row.prompt), row.completion) for row in rows]
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


def test_lines_hold_every_row_once_and_are_filled_evenly() -> None:
    labelled_BT = torch.zeros(5, 200, dtype=torch.bool)
    for row, last in enumerate((199, 79, 119, 39, 159)):
        labelled_BT[row, last] = True
    lines = pack(labelled_BT, 20)
    assert sorted(entry for line in lines for entry in line) == [(0, 180), (1, 60), (2, 100), (3, 20), (4, 140)]
    assert sorted(sum(length for _, length in line) for line in lines) == [240, 260]


def test_a_row_longer_than_a_line_is_not_cut() -> None:
    labelled_BT = torch.zeros(3, 900, dtype=torch.bool)
    labelled_BT[[0, 1, 2], [899, 40, 30]] = True
    assert sorted(pack(labelled_BT, 0)) == [[(0, 900)], [(1, 41), (2, 31)]]
