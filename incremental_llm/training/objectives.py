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
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import SequentialSampler
from trl import DPOConfig, DPOTrainer, KTOConfig, KTOTrainer, SFTConfig, SFTTrainer

from incremental_llm.errors import TrainingError
from incremental_llm.training.batching import Row, pad_rows, stack_rows
from incremental_llm.training.invariants import check_first_step, check_gradients
from incremental_llm.training.losses import dpo_losses, kto_losses, nll_per_row
from incremental_llm.training.moments import Moments, restore_moments
from incremental_llm.training.regularizers import Regularizers
from incremental_llm.training.regularizers.anchor import AnchorShare
from incremental_llm.training.scoring import next_token_logps, row_logps, sum_by_row
from incremental_llm.training.settings import PhaseSettings

Batch = dict[str, torch.Tensor]


def _rows(features: Sequence[Mapping[str, Any]], prompt: str, completion: str) -> Batch:
    rows = [Row(tuple(f[prompt]), tuple(f[completion])) for f in features]
    ids_BT, scored_BT = pad_rows(rows)
    return {"ids": ids_BT, "scored": scored_BT}


def _columns(features: Sequence[Mapping[str, Any]], *names: str) -> Batch:
    return {name: torch.tensor([f[name] for f in features]) for name in (*names, "held", "kl", "dark", "held_scale")}


class _OnOneAdapter:
    """What the three trainers share; stands before TRL's class in the method resolution order."""

    objective = ""
    phase: PhaseSettings
    regularizers = Regularizers()
    micro_steps = 0
    moments: Moments | None = None
    lr_scheduler: Any

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.at_reference = False  # whether the first step must find the log-probabilities that are stored
        self._noted: dict[str, list[torch.Tensor]] = defaultdict(list)  # of the micro-batches of a step

    def _prepare_dataset(self, dataset: Any, *_args: Any, **_kwargs: Any) -> Any:
        return dataset  # rows arrive as token ids in their final order

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        return SequentialSampler(train_dataset if train_dataset is not None else self.train_dataset)  # type: ignore[attr-defined]

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        """Cosine after a linear rise whose first step is not 0, as transformers' is: of few steps none is wasted."""
        if self.lr_scheduler is None:
            rising: int = self.args.get_warmup_steps(num_training_steps)  # type: ignore[attr-defined]
            falling = max(1, num_training_steps - rising)

            def share(step: int) -> float:
                if step < rising:
                    return (step + 1) / (rising + 1)
                return 0.5 * (1 + math.cos(math.pi * (step - rising) / falling))

            self.lr_scheduler = LambdaLR(optimizer or self.optimizer, share)  # type: ignore[attr-defined]
            self._created_lr_scheduler = True
        return self.lr_scheduler

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
        for name, term in self._terms(model, inputs, objective_NV, anchor_NV, share).items():
            self.note(name, term)
            loss = loss + term
        self.note("loss", loss)
        self.micro_steps += 1
        return loss

    def _logits(self, model: Any, batch: Batch) -> tuple[torch.Tensor, torch.Tensor, AnchorShare | None]:
        """Logits of the objective's and of the anchor's scored positions, from one pass: a pass has a fixed cost."""
        ids_BT, scored_BT, share = batch["ids"], batch["scored"], None
        if self.regularizers.anchor is not None:
            step, part = divmod(self.micro_steps, self._parts)
            rank, processes = self._place
            share = self.regularizers.anchor.share(step, part * processes + rank, self._parts * processes)
            if share.rows:
                anchor_ids_BT, anchor_scored_BT = pad_rows(share.rows)
                ids_BT = stack_rows(ids_BT, anchor_ids_BT.to(ids_BT.device))
                scored_BT = stack_rows(scored_BT, anchor_scored_BT.to(ids_BT.device))
        logits_NV = model(input_ids=ids_BT, labelled_BT=scored_BT).logits
        own = int(batch["scored"].sum())
        # Split, not sliced: the gradient of two slices is two zero-filled copies of all logits, added up.
        objective_NV, anchor_NV = logits_NV.split([own, len(logits_NV) - own])
        return objective_NV, anchor_NV, share

    def _terms(
        self,
        model: Any,
        batch: Batch,
        objective_NV: torch.Tensor,
        anchor_NV: torch.Tensor,
        share: AnchorShare | None,
    ) -> Batch:
        """The regularisers' terms, by the name that they are logged under."""
        told, terms = self.regularizers, {}
        causal_lm = self.accelerator.unwrap_model(model).get_base_model()  # type: ignore[attr-defined]
        if told.anchor is not None and share is not None:
            terms["anchor_kl"] = told.anchor.loss(causal_lm, share, anchor_NV)
        if told.memory is not None:
            terms |= told.memory.terms(causal_lm, batch, objective_NV)
        return terms | {penalty.name: penalty.loss() for penalty in told.penalties}

    @property
    def _parts(self) -> int:
        """Micro-batches of a process in an optimizer step."""
        return int(self.args.gradient_accumulation_steps)  # type: ignore[attr-defined]

    @property
    def _place(self) -> tuple[int, int]:
        """This process's number, and how many there are."""
        accelerator = self.accelerator  # type: ignore[attr-defined]
        return accelerator.process_index, accelerator.num_processes

    def create_optimizer(self, *args: Any, **kwargs: Any) -> Any:
        optimizer = super().create_optimizer(*args, **kwargs)  # type: ignore[misc]
        if self.moments:
            restore_moments(optimizer, self.model, self.moments)  # type: ignore[attr-defined]
        return optimizer

    def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        loss: torch.Tensor = super().training_step(*args, **kwargs)  # type: ignore[misc]
        if self.accelerator.sync_gradients:  # type: ignore[attr-defined]
            self._report_step(self.state.global_step + 1)  # type: ignore[attr-defined]
            check_gradients(self.model, self.state.global_step + 1)  # type: ignore[attr-defined]
        return loss

    def check_reference(
        self, name: str, logps_B: torch.Tensor, stored_B: torch.Tensor, lengths_B: torch.Tensor
    ) -> None:
        """What the first step is computed from is what was stored, where the policy still is the reference."""
        if self.at_reference and not self.micro_steps:
            check_first_step(name, logps_B, stored_B, lengths_B, exact=not self.args.bf16)  # type: ignore[attr-defined]

    def note(self, name: str, value: torch.Tensor) -> None:
        """Keep a value of this micro-batch for the step's log line; on its device, which is not waited for."""
        self._noted[name].append(value.detach().float().mean())

    def _report_step(self, step: int) -> None:
        """Log the step's values, means over micro-batches and processes, in one collective and one transfer.

        Raises:
            TrainingError: the loss of any process is not finite; the weights have not been touched.
        """
        names = list(self._noted)
        means_1K = torch.stack([torch.stack(self._noted[name]).mean() for name in names])[None]
        values = dict(zip(names, self.whole_batch(means_1K).mean(0).tolist(), strict=True))
        self._noted.clear()
        if not math.isfinite(total := values.pop("loss")):  # of all processes, so that all of them stop
            raise TrainingError(
                f"{self.objective}: the loss is {total} at step {step}. "
                "Training stopped before the weights were touched: lower the learning rate, or look at the batch."
            )
        for name, value in values.items():
            self._metrics["train"][name].append(value)  # type: ignore[attr-defined]

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
            **_columns(features, "weight", "share"),
        }

    def objective_loss(self, model: Any, batch: Batch, logps_N: torch.Tensor) -> torch.Tensor:
        # `share` is rows / labelled tokens of the whole step, so that the mean over rows, micro-batches and processes
        # is the mean over the step's tokens, however the step was cut.
        return (batch["weight"] * batch["share"] * nll_per_row(logps_N, batch["scored"])).mean()


class WeightedDPO(_OnOneAdapter, DPOTrainer):  # type: ignore[misc]
    """Direct preference optimisation against stored reference log-probabilities.

    A pair's loss is weight * DPO + nll_weight * NLL of the chosen answer, per token (RPO, Pang et al. 2024, eq. 1).
    """

    objective = "dpo"
    config = DPOConfig

    @staticmethod
    def collate(features: Sequence[Mapping[str, Any]]) -> Batch:
        rows = [
            Row(tuple(f["prompt_ids"]), tuple(f[side]))
            for side in ("chosen_ids", "rejected_ids")
            for f in features
            if f[side]
        ]
        ids_BT, scored_BT = pad_rows(rows)  # chosen rows first, then the rejected ones of pairs that still are pairs
        return {
            "ids": ids_BT,
            "scored": scored_BT,
            "is_pair": torch.tensor([bool(f["rejected_ids"]) for f in features]),
            **_columns(features, "weight", "nll_weight", "ref_chosen", "ref_rejected"),
        }

    def objective_loss(self, model: Any, batch: Batch, logps_N: torch.Tensor) -> torch.Tensor:
        pairs_B, lengths = batch["is_pair"], batch["scored"].sum(1)
        logps = sum_by_row(logps_N, batch["scored"])
        chosen_B, rejected_P = logps.split([len(pairs_B), len(logps) - len(pairs_B)])
        chosen_P, ref_chosen_P, ref_rejected_P, weight_P = (
            column[pairs_B] for column in (chosen_B, batch["ref_chosen"], batch["ref_rejected"], batch["weight"])
        )
        self.check_reference("dpo", logps, torch.cat([batch["ref_chosen"], ref_rejected_P]), lengths)
        beta, smoothing = self.phase.beta, self.phase.label_smoothing
        losses_P = dpo_losses(chosen_P, rejected_P, ref_chosen_P, ref_rejected_P, beta, smoothing)
        nll_B = -chosen_B / lengths[: len(pairs_B)]
        return ((weight_P * losses_P).sum() + (batch["nll_weight"] * nll_B).sum()) / len(pairs_B)


class WeightedKTO(_OnOneAdapter, KTOTrainer):  # type: ignore[misc]
    """Kahneman-Tversky optimisation; the KL baseline uses mismatched completions that were fixed beforehand."""

    objective = "kto"
    config = KTOConfig

    @staticmethod
    def collate(features: Sequence[Mapping[str, Any]]) -> Batch:
        return {
            **_rows(features, "prompt_ids", "completion_ids"),
            **_columns(features, "desirable", "weight", "ref_logps"),
        }

    def objective_loss(self, model: Any, batch: Batch, logps_N: torch.Tensor) -> torch.Tensor:
        if self.micro_steps % self._parts == 0:
            self._baseline = self._step_baseline(model)
        logps_B = sum_by_row(logps_N, batch["scored"])
        self.check_reference("kto", logps_B, batch["ref_logps"], batch["scored"].sum(1))
        losses_B = kto_losses(logps_B, batch["ref_logps"], batch["desirable"], self._baseline, self.phase.beta)
        self.note("kl", self._baseline)
        return (batch["weight"] * losses_B).mean()

    @torch.no_grad()
    def _step_baseline(self, model: Any) -> torch.Tensor:
        """KL(new || reference) on the mismatched completions of the whole step, however the step is cut."""
        (rank, processes), step = self._place, self.micro_steps // self._parts
        size = self.phase.batch_size
        rows = [self.train_dataset[step * size + place] for place in range(rank, size, processes)]
        device = self.accelerator.device
        kl_parts = []
        for start in range(0, len(rows), self.args.per_device_train_batch_size):
            part = rows[start : start + self.args.per_device_train_batch_size]
            told = _rows(part, "prompt_ids", "kl_completion_ids")
            logps_B = row_logps(model, told["ids"].to(device), told["scored"].to(device))
            stored_B = torch.tensor([row["ref_kl_logps"] for row in part], device=device)
            self.check_reference("kto's baseline", logps_B, stored_B, told["scored"].sum(1).to(device))
            kl_parts.append(logps_B - stored_B)
        return self.whole_batch(torch.cat(kl_parts)).mean().clamp(min=0)


TRAINERS = {trainer.objective: trainer for trainer in (WeightedSFT, WeightedDPO, WeightedKTO)}
