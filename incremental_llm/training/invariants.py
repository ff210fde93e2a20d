"""What must hold in every training run, checked while it runs.

Each check raises TrainingError with what was expected and what was found; none of them warns and goes on.
"""

from __future__ import annotations

import hashlib
import math
from typing import Any

import torch

from incremental_llm.adapters.sharding import own_part, settle
from incremental_llm.errors import TrainingError
from incremental_llm.training.batching import Row, pad_rows
from incremental_llm.training.losses import dpo_losses
from incremental_llm.training.scoring import row_logps

# Nats a token by which two batches of the same rows may differ, on average: bf16 logits of 20 to 30 are rounded by
# 0.06, fp32 ones on a GPU may be products in TF32. Another row's or side's reference is off by a nat and more.
_ROUNDING_16, _ROUNDING_32 = 0.5, 0.02


def frozen_digest(model: Any) -> str:
    """sha256 over the bytes of every parameter and buffer that is not trained, names included.

    Of a model that is spread over processes, each takes that of its own part.
    """
    settle(model)
    digest = hashlib.sha256()
    frozen = [(n, p) for n, p in model.named_parameters() if not p.requires_grad]
    for name, tensor in [*frozen, *model.named_buffers()]:
        digest.update(name.encode())
        flat = own_part(tensor).detach().contiguous().cpu().reshape(-1)
        digest.update(memoryview(flat.view(torch.uint8).numpy()) if flat.numel() else b"")
    return digest.hexdigest()


def check_only_adapter_trains(model: Any) -> None:
    """Exactly the LoRA factors of the adapter `default` take gradients."""
    trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    wrong = [name for name in trained if ".lora_" not in name or ".default." not in name]
    if wrong or not trained:
        raise TrainingError(
            f"expected only the new adapter's factors to be trainable, found {wrong[:3] or 'nothing trainable'}. "
            "Check lora.targets in the recipe."
        )


def check_frozen(before: str, after: str) -> None:
    """The frozen weights are bit-identical before and after."""
    if before != after:
        raise TrainingError(
            f"the frozen weights changed during training: sha256 {before[:12]} before, {after[:12]} after. "
            "The adapter was trained on moving ground and is thrown away; please report this with the recipe."
        )


def check_start(policy_B: torch.Tensor, reference_B: torch.Tensor, beta: float = 0.1) -> None:
    """Before the first step the policy IS the reference: a pair has DPO loss ln 2 and both rewards 0, exactly.

    Arguments are the summed log-probabilities of a pair's two answers.
    """
    loss = dpo_losses(policy_B[:1], policy_B[1:], reference_B[:1], reference_B[1:], beta).item()
    rewards = (beta * (policy_B - reference_B)).abs().max().item()
    if not (abs(loss - math.log(2)) < 1e-6 and rewards < 1e-6):
        raise TrainingError(
            f"an adapter must start at the reference: expected DPO loss ln 2 = {math.log(2):.6f} and rewards 0, "
            f"found {loss:.6f} and {rewards:.2e}. The adapter is not fresh, or another adapter is active."
        )


@torch.no_grad()
def probe_logps(model: Any, rows: list[Row], autocast: Any) -> torch.Tensor:
    """logps_B of a probe batch by the model as it is: the policy; with its adapter disabled, the reference."""
    device = next(model.parameters()).device
    ids_BT, scored_BT = (tensor.to(device) for tensor in pad_rows(rows))
    with autocast():
        return row_logps(model, ids_BT, scored_BT).float()


def check_reference(phase: str, stored_B: torch.Tensor, found_B: torch.Tensor) -> None:
    """The reference of this phase is the one stored before the first phase (same rows, same batch)."""
    gap = (stored_B - found_B).abs().max().item()
    tolerance = 0.0 if stored_B.device.type == "cpu" else 1e-2  # GPU kernels may pick another order of summation
    if not gap <= tolerance:
        raise TrainingError(
            f"{phase}: the reference moved: log-probabilities of the probe batch differ from those before the first "
            f"phase by {gap:.3g} nats. The previous policy is not what the adapter is compared with."
        )


def check_first_step(
    objective: str, found_B: torch.Tensor, stored_B: torch.Tensor, lengths_B: torch.Tensor, *, exact: bool
) -> None:
    """At the first step of a policy that is the reference, the rows have the log-probabilities stored with them.

    This is what the loss itself is computed from: a reference that is another row's, another side's or another model's
    shows here and in no probe. Compared as a mean over rows of nats a token, within the rounding of batches of another
    shape: that of fp32 where `exact`, else of bf16.
    """
    gap = ((found_B.detach().float() - stored_B).abs() / lengths_B.clamp(min=1)).mean().item()
    tolerance = _ROUNDING_32 if exact else _ROUNDING_16
    if not gap <= tolerance:
        raise TrainingError(
            f"{objective}: the policy is not the stored reference at its first step: expected log-probabilities that "
            f"differ by at most {tolerance} nats a token, found {gap:.3g}. Nothing was trained; please report this "
            "with the recipe."
        )


def check_weights(model: Any, objective: str) -> None:
    """Every trained weight is finite: after the last step there is no next loss that would show it."""
    bad = [n for n, p in model.named_parameters() if p.requires_grad and not torch.isfinite(own_part(p)).all()]
    if bad:
        raise TrainingError(
            f"{objective}: {', '.join(bad[:3])} is not finite after the last step. Nothing is published: lower the "
            "learning rate."
        )


def check_gradients(model: Any, step: int) -> None:
    """Every gradient is finite. Call it before clipping, which spreads one NaN over all parameters."""
    found = [(name, parameter.grad) for name, parameter in model.named_parameters() if parameter.grad is not None]
    if torch.isfinite(torch.nn.utils.get_total_norm([gradient for _, gradient in found])):
        return
    bad = [name for name, gradient in found if not torch.isfinite(gradient).all()]
    raise TrainingError(
        f"the gradient of {', '.join(bad[:3]) or 'all parameters together'} is not finite at step {step}. "
        "Training stopped before the weights were touched: lower the learning rate."
    )
