"""Rows of numbers: equal rows are found, and each once."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from incremental_llm.dataset.rows import among, changes, distinct, mixed

SMALL = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 2**64 - 1)), max_size=30)


@given(SMALL)
def test_rows_have_equal_numbers_exactly_where_they_are_equal(rows: list[tuple[int, int]]) -> None:
    table = np.array(rows, np.uint64).reshape(len(rows), 2)
    found = mixed(table.T).tolist()
    assert all((a == b) == (x == y) for a, x in zip(rows, found, strict=True) for b, y in zip(rows, found, strict=True))


def test_the_order_of_columns_counts_and_neighbours_do_not_collide() -> None:
    many = np.arange(2**16, dtype=np.uint64)
    grid = mixed([np.repeat(many[:256], 256), np.tile(many[:256], 256)])
    assert len(np.unique(grid)) == 2**16
    assert len(np.unique(mixed([many]) & np.uint64(2**20 - 1))) > 0.95 * 2**16 * (1 - 2**16 / 2**21)


@given(st.lists(st.integers(-5, 5)), st.lists(st.integers(-5, 5)))
def test_distinct_and_among_are_those_of_sets(left: list[int], right: list[int]) -> None:
    ordered = distinct(np.array(left, np.int64), np.array(right, np.int64))
    assert ordered.tolist() == sorted({*left, *right})
    asked = np.arange(-7, 8)
    assert among(asked, ordered).tolist() == [value in {*left, *right} for value in asked.tolist()]
    assert changes(ordered).all()
