"""SFT, DPO and KTO on one adapter: TRL's trainers, with three things made right.

Shapes: B examples of a process's micro-batch, N labelled positions, T tokens.

1. Every record's weight multiplies its loss (weight 0 gives zero gradient); TRL's DPO and KTO take no weights.
2. The reference is the previous policy in every phase: its log-probabilities are computed once, before the first
   phase, and come with the rows. TRL's own reference is wrong from the second phase on (it copies the trained adapter).
3. Only labelled positions pass the head, and rows arrive in a fixed order that is the same on any number of processes.

Everything else (optimizer, schedule, clipping, accumulation, distribution, checkpoints, logging) stays TRL's.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch.utils.data import SequentialSampler
from trl import DPOConfig, DPOTrainer, KTOConfig, KTOTrainer, SFTConfig, SFTTrainer

from incremental_llm.errors import TrainingError
from incremental_llm.training.anchor import Anchor, AnchorShare
from incremental_llm.training.batching import Row, pad_rows, stack_rows
from incremental_llm.training.invariants import check_gradients
from incremental_llm.training.losses import dpo_losses, kto_losses, nll_per_row
from incremental_llm.training.scoring import next_token_logps, row_logps, sum_by_row

Batch = dict[str, torch.Tensor]


def _rows(features: Sequence[Mapping[str, Any]], prompt: str, completion: str) -> Batch:
    rows = [Row(tuple(f[prompt]), tuple(f[completion])) for f in features]
    ids_BT, scored_BT = pad_rows(rows)
    return {"ids": ids_BT, "scored": scored_BT}


def _column(features: Sequence[Mapping[str, Any]], name: str) -> torch.Tensor:
    return torch.tensor([f[name] for f in features])


class _OnOneAdapter:
    """What the three trainers share; stands before TRL's class in the method resolution order."""

    objective = ""
    anchor: Anchor | None = None
    micro_steps = 0

    def _prepare_dataset(self, dataset: Any, *_args: Any, **_kwargs: Any) -> Any:
        return dataset  # rows arrive as token ids in their final order

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        return SequentialSampler(train_dataset if train_dataset is not None else self.train_dataset)  # type: ignore[attr-defined]

    def create_model_card(self, *_args: Any, **_kwargs: Any) -> None:
        """Checkpoints are internal; the handoff writes the card."""

    def objective_loss(self, model: Any, batch: Batch, logps_N: torch.Tensor) -> torch.Tensor:
        raise NotImplementedError

    def compute_loss(
        self, model: Any, inputs: Batch, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        objective_NV, anchor_NV, share = self._logits(model, inputs)
        logps_N = next_token_logps(objective_NV, inputs["ids"], inputs["scored"])
        loss = self.objective_loss(model, inputs, logps_N)
        self.note("objective", loss)
        if self.anchor is not None and share is not None:
            causal_lm = self.accelerator.unwrap_model(model).get_base_model()  # type: ignore[attr-defined]
            kl = self.anchor.loss(causal_lm, share, anchor_NV)
            self.note("anchor_kl", kl)
            loss = loss + kl
        self.micro_steps += 1
        total = self.whole_batch(loss.detach()).mean().item()  # of all processes, so that all of them stop
        if not math.isfinite(total):
            raise TrainingError(
                f"{self.objective}: the loss is {total} at step {self.state.global_step + 1}. "  # type: ignore[attr-defined]
                "Training stopped before the weights were touched: lower the learning rate, or look at the batch."
            )
        return loss

    def _logits(self, model: Any, batch: Batch) -> tuple[torch.Tensor, torch.Tensor, AnchorShare | None]:
        """Logits of the objective's and of the anchor's scored positions, from one pass: a pass has a fixed cost."""
        ids_BT, scored_BT, share = batch["ids"], batch["scored"], None
        if self.anchor is not None:
            accelerator = self.accelerator  # type: ignore[attr-defined]
            rank, processes = accelerator.process_index, accelerator.num_processes
            share = self.anchor.share(step=self.micro_steps, rank=rank, processes=processes)
            if share.rows:
                anchor_ids_BT, anchor_scored_BT = pad_rows(share.rows)
                ids_BT = stack_rows(ids_BT, anchor_ids_BT.to(ids_BT.device))
                scored_BT = stack_rows(scored_BT, anchor_scored_BT.to(ids_BT.device))
        logits_NV = model(input_ids=ids_BT, labelled_BT=scored_BT).logits
        own = int(batch["scored"].sum())
        # Split, not sliced: the gradient of two slices is two zero-filled copies of all logits, added up.
        objective_NV, anchor_NV = logits_NV.split([own, len(logits_NV) - own])
        return objective_NV, anchor_NV, share

    def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        loss: torch.Tensor = super().training_step(*args, **kwargs)  # type: ignore[misc]
        if self.accelerator.sync_gradients:  # type: ignore[attr-defined]
            check_gradients(self.model, self.state.global_step + 1)  # type: ignore[attr-defined]
        return loss

    def note(self, name: str, value: torch.Tensor) -> None:
        """Add a value of this micro-batch, averaged over the processes, to the next log line."""
        value = self.whole_batch(value.detach().float().mean())
        self._metrics["train"][name].append(value.mean().item())  # type: ignore[attr-defined]

    def whole_batch(self, values_B: torch.Tensor) -> torch.Tensor:
        """The values of all processes, as one tensor."""
        gathered: torch.Tensor = self.accelerator.gather(values_B)  # type: ignore[attr-defined]
        return gathered


class WeightedSFT(_OnOneAdapter, SFTTrainer):  # type: ignore[misc]
    """Maximum likelihood of completions; the loss of a step is sum(weight * nll) / labelled tokens of that step."""

    objective = "sft"
    config = SFTConfig

    @staticmethod
    def collate(features: Sequence[Mapping[str, Any]]) -> Batch:
        return {
            **_rows(features, "prompt_ids", "completion_ids"),
            "weight": _column(features, "weight"),
            "share": _column(features, "share"),
        }

    def objective_loss(self, model: Any, batch: Batch, logps_N: torch.Tensor) -> torch.Tensor:
        # `share` is rows / labelled tokens of the whole step, so that the mean over rows, micro-batches and processes
        # is the mean over the step's tokens, however the step was cut.
        return (batch["weight"] * batch["share"] * nll_per_row(logps_N, batch["scored"])).mean()


class WeightedDPO(_OnOneAdapter, DPOTrainer):  # type: ignore[misc]
    """Direct preference optimisation against stored reference log-probabilities."""

    objective = "dpo"
    config = DPOConfig

    @staticmethod
    def collate(features: Sequence[Mapping[str, Any]]) -> Batch:
        rows = [
            Row(tuple(f["prompt_ids"]), tuple(f[side])) for side in ("chosen_ids", "rejected_ids") for f in features
        ]
        ids_BT, scored_BT = pad_rows(rows)  # chosen rows first, then the rejected ones
        return {
            "ids": ids_BT,
            "scored": scored_BT,
            "weight": _column(features, "weight"),
            "ref_chosen": _column(features, "ref_chosen"),
            "ref_rejected": _column(features, "ref_rejected"),
        }

    def objective_loss(self, model: Any, batch: Batch, logps_N: torch.Tensor) -> torch.Tensor:
        chosen_B, rejected_B = sum_by_row(logps_N, batch["scored"]).chunk(2)
        losses_B = dpo_losses(chosen_B, rejected_B, batch["ref_chosen"], batch["ref_rejected"], self.args.beta)
        self.note("rewards/chosen", self.args.beta * (chosen_B - batch["ref_chosen"]))
        self.note("rewards/rejected", self.args.beta * (rejected_B - batch["ref_rejected"]))
        return (batch["weight"] * losses_B).mean()


class WeightedKTO(_OnOneAdapter, KTOTrainer):  # type: ignore[misc]
    """Kahneman-Tversky optimisation; the KL baseline uses mismatched completions that were fixed beforehand."""

    objective = "kto"
    config = KTOConfig

    @staticmethod
    def collate(features: Sequence[Mapping[str, Any]]) -> Batch:
        kl = _rows(features, "prompt_ids", "kl_completion_ids")
        return {
            **_rows(features, "prompt_ids", "completion_ids"),
            "kl_ids": kl["ids"],
            "kl_scored": kl["scored"],
            "desirable": _column(features, "desirable"),
            "weight": _column(features, "weight"),
            "ref_logps": _column(features, "ref_logps"),
            "ref_kl_logps": _column(features, "ref_kl_logps"),
        }

    def objective_loss(self, model: Any, batch: Batch, logps_N: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            kl_B = row_logps(model, batch["kl_ids"], batch["kl_scored"]) - batch["ref_kl_logps"]
            kl = self.whole_batch(kl_B).mean().clamp(min=0)
        logps_B = sum_by_row(logps_N, batch["scored"])
        losses_B = kto_losses(logps_B, batch["ref_logps"], batch["desirable"], kl, self.args.beta)
        self.note("kl", kl)
        return (batch["weight"] * losses_B).mean()


TRAINERS = {trainer.objective: trainer for trainer in (WeightedSFT, WeightedDPO, WeightedKTO)}
