"""Rows of numbers in arrays: each as one number, by which equal rows are found, and each once.

Equal rows always give equal numbers; others do by chance, with a probability of 2^-64 for two of them.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeVar

import numpy as np
import numpy.typing as npt

Row = TypeVar("Row", bound=np.generic)
Numbers = npt.NDArray[np.uint64]

_FACTOR = np.uint64(0x9E3779B97F4A7C15)
_SHIFT = np.uint64(29)


def mixed(columns: Iterable[Numbers]) -> Numbers:
    """One number for each row of some columns of one length, in which their order counts.

    A step adds a column, multiplies by an odd constant and folds the high bits down (Steele et al. 2014, SplitMix).
    """
    total: Numbers = np.zeros(1, np.uint64)
    for column in columns:
        total = (total + column) * _FACTOR
        total = (total ^ (total >> _SHIFT)) * _FACTOR
        total = total ^ (total >> np.uint64(32))
    return total


def changes(*columns: npt.NDArray[np.generic]) -> npt.NDArray[np.bool_]:
    """Where a row differs from the one before it; true for the first."""
    new = np.zeros(len(columns[0]), bool)
    new[:1] = True
    for column in columns:
        new[1:] |= column[1:] != column[:-1]
    return new


def distinct(*arrays: npt.NDArray[Row]) -> npt.NDArray[Row]:
    """The values of arrays once each, sorted; numpy's `unique` hashes integers and is slow where they are alike."""
    values = np.sort(np.concatenate(arrays))
    return values[changes(values)]


def among(values: npt.NDArray[Row], ordered: npt.NDArray[Row]) -> npt.NDArray[np.bool_]:
    """Which values are among sorted ones."""
    if not len(ordered):
        return np.zeros(len(values), bool)
    found = np.minimum(np.searchsorted(ordered, values), len(ordered) - 1)
    same: npt.NDArray[np.bool_] = ordered[found] == values
    return same
