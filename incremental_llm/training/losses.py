"""The losses as formulas on log-probabilities, one value a row.

Shapes: B rows or pairs, N labelled positions of the whole batch, T tokens. Log-probabilities are sums over a
completion's tokens, in nats.
"""

from __future__ import annotations

import torch

from incremental_llm.training.scoring import sum_by_row


def dpo_losses(
    chosen_B: torch.Tensor,
    rejected_B: torch.Tensor,
    ref_chosen_B: torch.Tensor,
    ref_rejected_B: torch.Tensor,
    beta: float,
) -> torch.Tensor:
    """-log sigmoid(beta * ((chosen - ref_chosen) - (rejected - ref_rejected))), one loss a pair; ln 2 when equal.

    Source: Rafailov et al. 2023, eq. 7. Arguments are summed log-probabilities in nats.
    """
    margin_B = (chosen_B - ref_chosen_B) - (rejected_B - ref_rejected_B)
    return -torch.nn.functional.logsigmoid(beta * margin_B)


def kto_losses(
    logps_B: torch.Tensor, ref_logps_B: torch.Tensor, desirable_B: torch.Tensor, kl: torch.Tensor, beta: float
) -> torch.Tensor:
    """1 - sigmoid(beta * (ratio - kl)) for desirable rows, 1 - sigmoid(beta * (kl - ratio)) for the others.

    Source: Ethayarajh et al. 2024, eq. 7; `kl` (nats, at least 0) carries no gradient. The loss is in
    [0, 1], 0.5 when policy = reference.
    """
    ratio_B = logps_B - ref_logps_B
    sign_B = torch.where(desirable_B, 1.0, -1.0)
    return 1 - torch.sigmoid(beta * sign_B * (ratio_B - kl))


def nll_per_row(logps_N: torch.Tensor, scored_BT: torch.Tensor) -> torch.Tensor:
    """nll_B: negative log-likelihood of each row's completion, in nats, at least 0."""
    return -sum_by_row(logps_N, scored_BT)
