"""The nearest adapter of a smaller rank, and how far away it is.

Shapes: R rank, I inputs, O outputs, K kept rank, N all singular values.

Truncating the singular value decomposition is the best approximation of a given rank in the Frobenius norm (Eckart and
Young 1936). It is never taken of a factored delta as a whole: QR of both factors leaves an R x R core that has the same
singular values. float64 inside, float32 outside.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch

from incremental_llm.adapters.lora import Factors
from incremental_llm.errors import InputError


@dataclass(frozen=True)
class RankReduction:
    """Relative Frobenius error of a reduction, 0 (exact) to 1: over all modules together, and of each."""

    relative_error: float
    modules: Mapping[str, float]


@dataclass(frozen=True)
class Decomposition:
    """A delta by its singular directions, largest first: A (K x I) and B (O x K) with S's roots in both.

    `singular` (N) are all singular values, also those whose directions were not kept. `exact` are factors of the delta
    as it was given, where it was given by factors.
    """

    factors: Factors
    singular: torch.Tensor
    exact: Factors | None = None

    def at(self, rank: int) -> Factors:
        """The best factors of at most `rank`; the given ones where their rank is not above it."""
        if self.exact is not None and self.exact[0].shape[0] <= rank:
            return self.exact
        return self.factors[0][:rank].contiguous(), self.factors[1][:, :rank].contiguous()

    @property
    def rank(self) -> int:
        """The largest rank that `at` can give."""
        return int((self.exact or self.factors)[0].shape[0])

    @property
    def energy(self) -> float:
        """The squared Frobenius norm of the delta."""
        return float(self.singular.square().sum())

    def lost(self, rank: int) -> float:
        """The squared Frobenius norm of what `at(rank)` leaves out."""
        return float(self.singular[min(rank, self.factors[0].shape[0]) :].square().sum())


def of_factors(factors: Factors) -> Decomposition:
    """The decomposition of B·A, without ever forming the product."""
    A_RI, B_OR = factors
    Qb_OR, Rb_RR = torch.linalg.qr(B_OR.double())
    Qa_IR, Ra_RR = torch.linalg.qr(A_RI.double().T)
    U_RN, S_N, Vt_NR = torch.linalg.svd(Rb_RR @ Ra_RR.T, full_matrices=False)
    root_N = S_N.sqrt()
    balanced = (root_N[:, None] * (Vt_NR @ Qa_IR.T), (Qb_OR @ U_RN) * root_N)
    return Decomposition((balanced[0].float(), balanced[1].float()), S_N, exact=factors)


def of_matrix(delta_OI: torch.Tensor, most: int) -> Decomposition:
    """The decomposition of any matrix, with directions for the `most` largest singular values.

    They are the eigenvectors of the smaller of D·D' and D'·D, onto which the matrix is projected: a few times faster
    than its SVD, and as good where singular values matter (above 1e-8 of the largest).
    """
    if delta_OI.shape[0] > delta_OI.shape[1]:
        turned = of_matrix(delta_OI.T, most)
        return Decomposition((turned.factors[1].T, turned.factors[0].T), turned.singular)
    D_OI = delta_OI.double()
    squares_O, U_OO = torch.linalg.eigh(D_OI @ D_OI.T)
    singular_O = squares_O.clamp(min=0).sqrt().flip(0)
    U_OK = U_OO.flip(1)[:, :most]
    A_KI = U_OK.T @ D_OI
    root_K = torch.linalg.vector_norm(A_KI, dim=1).sqrt()
    inverse_K = torch.where(root_K > 0, 1 / root_K.clamp(min=torch.finfo(torch.float64).tiny), 0.0)
    return Decomposition(((A_KI * inverse_K[:, None]).float(), (U_OK * root_K).float()), singular_O)


def rank_for(deltas: Mapping[str, Decomposition], error: float) -> int:
    """The smallest rank at which all modules together are within this relative Frobenius error; 0 is exact.

    One rank for all modules: a server pays for the largest.
    """
    if not 0 <= error < 1:
        raise InputError(f"expected a relative error of at least 0 and below 1, found {error}.")
    full = max((delta.rank for delta in deltas.values()), default=1)
    allowed = error**2 * sum(delta.energy for delta in deltas.values())
    return next((rank for rank in range(1, full) if sum(d.lost(rank) for d in deltas.values()) <= allowed), full)


def cut(deltas: Mapping[str, Decomposition], rank: int) -> tuple[dict[str, Factors], RankReduction]:
    """Every module at `rank` or below, and what that leaves out.

    Raises:
        InputError: `rank` below 1.
    """
    if rank < 1:
        raise InputError(f"expected a rank of at least 1, found {rank}.")
    lost = {name: 0.0 if _given(delta, rank) else delta.lost(rank) for name, delta in deltas.items()}
    energy = {name: delta.energy for name, delta in deltas.items()}
    errors = {name: _relative(lost[name], energy[name]) for name in deltas}
    reduction = RankReduction(_relative(sum(lost.values()), sum(energy.values())), errors)
    return {name: delta.at(rank) for name, delta in deltas.items()}, reduction


def _given(delta: Decomposition, rank: int) -> bool:
    return delta.exact is not None and delta.exact[0].shape[0] <= rank


def _relative(lost: float, energy: float) -> float:
    return math.sqrt(lost / energy) if energy else 0.0
