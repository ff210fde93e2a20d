"""What replayed answers are held to, within the very batch that trains them: no second pass is needed.

Shapes: B rows of a batch, N labelled positions, V vocabulary, K kept logits.

Two terms. `replay_kl` is KL(previous policy || new) on replayed answers: what the model said yesterday, in full.
`dark` is dark experience replay (DER++, Buzzega et al. 2020, eq. 6): squared distance to the logits that the model had
when it had learnt the answer, however long ago; the labelled loss of DER++ is the objective's own. Those logits lie in
a file beside the adapter that knew them, so the snapshot that holds the adapter holds them too.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from incremental_llm.training.batching import Row, TokenExample, length_sorted_chunks, pad_rows
from incremental_llm.training.regularizers.teachers import teacher_of
from incremental_llm.training.scoring import as_memory_allows
from incremental_llm.training.settings import DarkSettings

DARK_FILE = "dark_logits.safetensors"


@dataclass(frozen=True)
class DarkLogits:
    """The K largest logits at each position of one completion: `ids` (N x K, int32) and `values` (N x K, bf16)."""

    ids: torch.Tensor
    values: torch.Tensor


class ReplayMemory:
    """Replayed rows and their teachers. `hold` them while phases are planned, `remember` once, then `terms`."""

    def __init__(
        self, *, kl_weight: float, top_k: int | None, dark_weight: float, dark: Mapping[str, DarkLogits]
    ) -> None:
        self.kl_weight = kl_weight
        self.dark_weight = dark_weight
        self._dark = dark
        self._held: dict[str, tuple[int, DarkLogits | None]] = {}
        self._places: list[tuple[int, DarkLogits | None]] = []
        self._without = 0
        self._teacher = teacher_of((), top_k)

    def hold(self, example: TokenExample, kl_weight: float | None = None) -> dict[str, Any]:
        """The columns that hold a replayed example to its teachers: `held` (place or -1) and the terms' weights.

        `kl_weight` replaces the memory's own; the example's own weight counts in both. An example whose logits were
        never stored has no dark term.
        """
        weight = self.kl_weight if kl_weight is None else kl_weight
        if example.id not in self._held:
            self._held[example.id] = self._new(example)
        place, dark = self._held[example.id]
        if not weight and dark is None:
            return not_held()
        row, _ = self._places[place]
        if weight and row < 0:
            self._places[place] = (len(self._teacher.rows), dark)
            self._teacher.rows.append(example.rows[0])
        dark_weight = self.dark_weight if dark is not None else 0.0
        return {"held": place, "kl": example.weight * weight, "dark": example.weight * dark_weight}

    def _new(self, example: TokenExample) -> tuple[int, DarkLogits | None]:
        """(place, logits of old) of an example that is held for the first time; its teacher's row comes when asked."""
        dark = self._dark.get(example.id) if self.dark_weight else None
        if dark is not None and len(dark.ids) != len(example.rows[0].completion):
            dark = None  # of the same text under another tokenizer or template
        self._without += bool(self.dark_weight and dark is None)
        self._places.append((-1, dark))
        return len(self._places) - 1, dark

    @property
    def notes(self) -> list[str]:
        """What could not be held as the recipe asks, in words."""
        if not self._without:
            return []
        total = len(self._places)
        return [f"dark: {self._without} of {total} replayed answers have no logits of old, like those in new words"]

    def remember(self, model: Any, autocast: Any) -> None:
        """Store the previous policy's distributions, which `model` is at the time."""
        self._teacher.remember(model, autocast)

    def __len__(self) -> int:
        return sum(row >= 0 or dark is not None for row, dark in self._places)

    def terms(
        self, causal_lm: Any, batch: Mapping[str, torch.Tensor], logits_NV: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        """{"replay_kl", "dark"}: each the mean over B of weight * scale * (sum over the row's positions).

        `batch["held_scale"]` makes the sum over a row a mean over tokens, as the objective counts them. `logits_NV` may
        have more rows behind the first B (rejected answers).
        """
        held_B, kl_B, dark_B, scale_B = (batch[name].tolist() for name in ("held", "kl", "dark", "held_scale"))
        lengths = batch["scored"].sum(1).tolist()
        zero = logits_NV.sum() * 0.0
        sums = {"replay_kl": zero, "dark": zero}
        parts = logits_NV.split(lengths)[: len(held_B)]
        for part_NV, place, kl, dark, scale in zip(parts, held_B, kl_B, dark_B, scale_B, strict=True):
            if place < 0:
                continue
            row, logits = self._places[place]
            if kl:
                sums["replay_kl"] = sums["replay_kl"] + kl * scale * self._teacher.kl_sum(causal_lm, row, part_NV)
            if logits is not None and dark:
                sums["dark"] = sums["dark"] + dark * scale * _distance(logits, part_NV)
        return {name: value / len(held_B) for name, value in sums.items()}


def not_held() -> dict[str, Any]:
    """The columns of a row that is held to nothing."""
    return {"held": -1, "kl": 0.0, "dark": 0.0}


def _distance(dark: DarkLogits, student_NV: torch.Tensor) -> torch.Tensor:
    """Sum over N of the mean over K of (student - stored)^2, in squared logits."""
    ids_NK = dark.ids.to(student_NV.device, torch.long)
    stored_NK = dark.values.to(student_NV.device, torch.float32)
    return (student_NV.float().gather(-1, ids_NK) - stored_NK).square().mean(-1).sum()


@torch.no_grad()
def dark_logits(
    model: Any, examples: Sequence[tuple[str, Row]], settings: DarkSettings, autocast: Any
) -> dict[str, DarkLogits]:
    """The logits that `model` has now of each (id, row): the largest `settings.top_k` of each position."""
    device = next(model.parameters()).device
    rows = [row for _, row in examples]
    found: dict[str, DarkLogits] = {}

    def look(chunk: list[int]) -> None:
        ids_BT, scored_BT = pad_rows([rows[i] for i in chunk])
        with autocast():
            logits_NV = model(input_ids=ids_BT.to(device), labelled_BT=scored_BT.to(device)).logits
        for i, part_NV in zip(chunk, logits_NV.split([len(rows[i].completion) for i in chunk]), strict=True):
            top = part_NV.float().topk(min(settings.top_k, part_NV.shape[-1]), dim=-1)
            kept = DarkLogits(top.indices.to("cpu", torch.int32), top.values.to("cpu", torch.bfloat16))
            found[examples[i][0]] = kept

    for chunk in length_sorted_chunks(rows):
        as_memory_allows(chunk, look)
    return found


def write_dark(folder: Path, dark: Mapping[str, DarkLogits]) -> None:
    """Write all as one safetensors file; the ids are in its metadata."""
    names = list(dark)
    tensors = {
        "ids": torch.cat([dark[name].ids for name in names]),
        "values": torch.cat([dark[name].values for name in names]),
    }
    lengths = [len(dark[name].ids) for name in names]
    told = json.dumps({"examples": names, "lengths": lengths})  # one key: several are written in any order
    save_file(tensors, folder / DARK_FILE, metadata={"told": told})


def read_dark(folder: Path) -> dict[str, DarkLogits]:
    """What `write_dark` wrote beside an adapter; empty where there is no such file."""
    path = folder / DARK_FILE
    if not path.is_file():
        return {}
    with safe_open(path, framework="pt") as file:
        told = json.loads(file.metadata()["told"])
        lengths = told["lengths"]
        parts = zip(file.get_tensor("ids").split(lengths), file.get_tensor("values").split(lengths), strict=True)
        return {name: DarkLogits(*part) for name, part in zip(told["examples"], parts, strict=True)}
