"""Training: one fresh LoRA adapter on the frozen stack, by SFT, DPO and KTO against the previous policy.

    from incremental_llm.training import TrainingSettings, train_increment

    result = train_increment(base_folder=base, adapter_folders=stack, examples=mixture.examples,
                             anchors=anchors, settings=TrainingSettings(), out=run_folder)
    result.adapter          # a plain PEFT folder

The one design fact: the frozen stack is folded into the base before anything else happens, so a single adapter is ever
active and "adapter disabled" is the previous policy, in every phase and in every trainer.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from incremental_llm.training.settings import AnchorSettings, LoraSettings, PhaseSettings, TrainingSettings

if TYPE_CHECKING:
    from incremental_llm.training.increment import IncrementResult, train_increment

__all__ = [
    "AnchorSettings",
    "IncrementResult",
    "LoraSettings",
    "PhaseSettings",
    "TrainingSettings",
    "train_increment",
]


def __getattr__(name: str) -> Any:
    if name in {"IncrementResult", "train_increment"}:  # these import torch
        from incremental_llm.training import increment

        return getattr(increment, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
