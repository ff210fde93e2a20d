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
    label_smoothing: float = 0.0,
) -> torch.Tensor:
    """-log sigmoid(beta * ((chosen - ref_chosen) - (rejected - ref_rejected))), one loss a pair; ln 2 when equal.

    With a share e = `label_smoothing` of turned pairs, ((1 - e) l(margin) - e l(-margin)) / (1 - 2 e): its expectation
    over the noise is the loss of clean pairs, and it too is ln 2 when equal. It is not bounded below.

    Source: Rafailov et al. 2023, eq. 7; robust: Chowdhury et al. 2024, eq. 12. Arguments are summed log-probabilities
    in nats.
    """
    logits_B = beta * ((chosen_B - ref_chosen_B) - (rejected_B - ref_rejected_B))
    losses_B = -torch.nn.functional.logsigmoid(logits_B)
    if label_smoothing == 0:
        return losses_B
    turned_B = -torch.nn.functional.logsigmoid(-logits_B)
    return ((1 - label_smoothing) * losses_B - label_smoothing * turned_B) / (1 - 2 * label_smoothing)


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
