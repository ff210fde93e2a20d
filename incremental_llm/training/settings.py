"""What a training run is told. No torch here: configs are read, printed and hashed on machines without it."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from incremental_llm.dataset.examples import Kind


class _Settings(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class LoraSettings(_Settings):
    """The fresh adapter of an increment (Hu et al. 2021)."""

    rank: int = Field(16, ge=1, description="rank r of the new adapter")
    alpha: float = Field(32, gt=0, description="the update is alpha / rank * B A")
    dropout: float = Field(0.0, ge=0, lt=1, description="dropout before A; 0 keeps runs reproducible across processes")
    targets: str | tuple[str, ...] = Field("all-linear", description="module names, or all-linear (the head excluded)")
    null_space: float | None = Field(
        None,
        gt=0,
        description="start A where the anchor's inputs hold least, damped by this share of the mean; null: at random",
    )
    first_layer: int = Field(0, ge=0, description="layers below this one get no adapter, and no backward pass")

    @field_validator("targets", mode="before")
    @classmethod
    def _names(cls, found: object) -> object:
        if isinstance(found, str):
            return found if found == "all-linear" else (found,)  # PEFT takes a lone string as a pattern
        if isinstance(found, list | tuple) and all(isinstance(one, str) for one in found):
            return found
        raise ValueError(f"expected all-linear or a list of module names such as [q_proj, v_proj], found {found!r}")


class PhaseSettings(_Settings):
    """One objective trained on the adapter; phases run in the order they are listed."""

    objective: Literal["dpo", "kto", "sft"]
    learning_rate: float = Field(gt=0)
    epochs: float = Field(gt=0, description="passes over the examples of this kind; fractions allowed")
    max_steps: int | None = Field(None, ge=1, description="cut the epochs short here: a bound on a large night's time")
    batch_size: int = Field(8, ge=2, description="examples in an optimizer step, over all processes")
    beta: float = Field(0.1, gt=0, description="strength of the reference in DPO and KTO")
    loss: Literal["sigmoid", "robust"] = Field(
        "sigmoid", description="DPO: sigmoid, or robust against a known share of turned pairs (label_smoothing)"
    )
    label_smoothing: float = Field(
        0.0, ge=0, lt=0.5, description="DPO: the share of pairs whose sides are believed to be turned"
    )
    nll: float = Field(0.0, ge=0, description="DPO: factor of the chosen answer's NLL (nats a token) beside the loss")
    settled_margin: float = Field(
        0.5,
        ge=0,
        description="DPO: a replayed pair that production prefers by this many nats a token is no pair any more: of it "
        "NLL and KL on its chosen answer are left",
    )
    replayed_kl: float = Field(
        1.0, ge=0, description="DPO: factor of KL(previous || new) on the chosen answers of replayed pairs"
    )
    warmup: float = Field(0.1, ge=0, lt=1, description="share of the steps with a rising learning rate")
    prompt_dropout: float = Field(
        0.0, ge=0, lt=1, description="SFT: share of the last question's tokens left out at random at each visit"
    )
    minimum: int = Field(2, ge=1, description="with fewer examples the phase is skipped, and says so")
    saturated_below: float = Field(0.01, ge=0, description="skip a DPO or KTO phase whose mean loss starts below this")

    def passes(self, examples: int) -> float:
        """Epochs over so many examples, `max_steps` honoured."""
        if self.max_steps is None:
            return self.epochs
        return min(self.epochs, self.max_steps * self.batch_size / max(1, examples))

    @model_validator(mode="after")
    def _no_key_without_effect(self) -> Self:
        for objective, keys in _KEYS_OF.items():
            for key in keys if self.objective != objective else ():
                found = getattr(self, key)
                if found != type(self).model_fields[key].default:
                    raise ValueError(
                        f"expected {key} with objective {objective} only, where it has an effect, found {found} with "
                        f"{self.objective}: leave it out"
                    )
        return self

    @model_validator(mode="after")
    def _robust_knows_its_noise(self) -> Self:
        if (self.loss == "robust") != (self.label_smoothing > 0):
            raise ValueError(
                f"expected label_smoothing above 0 with loss: robust and with no other, found {self.label_smoothing:g} "
                f"with loss: {self.loss}"
            )
        return self

    @property
    def kind(self) -> Literal["pair", "unpaired", "sft"]:
        """The kind of example that the objective trains on."""
        kinds: dict[str, Literal["pair", "unpaired", "sft"]] = {"dpo": "pair", "kto": "unpaired", "sft": "sft"}
        return kinds[self.objective]


_KEYS_OF: dict[str, tuple[str, ...]] = {
    "dpo": ("loss", "label_smoothing", "nll", "settled_margin", "replayed_kl"),
    "sft": ("prompt_dropout",),
}
"""The keys of a phase that one objective alone knows."""


class EwcSettings(_Settings):
    """Elastic weight consolidation: weights that earlier nights need move less (Kirkpatrick et al. 2017).

    For `stack` and `consolidate` the Fisher information is that of the folded weights, kept by row and column; for
    `continue` it is that of A and B. It is estimated at the end of each increment and lies beside its adapter.
    """

    weight: float = Field(
        0.0, ge=0, description="factor; 1 adds each earlier night's second-order KL(previous || new); 0 off"
    )
    samples: int = Field(64, ge=1, description="rows of the increment's mixture that the Fisher is estimated on")
    decay: float = Field(
        0.9, ge=0, le=1, description="factor of the earlier Fishers' sum before each increment adds its own"
    )


class OrthogonalSettings(_Settings):
    """The new adapter reads other inputs than the earlier ones (O-LoRA, Wang et al. 2023)."""

    weight: float = Field(
        0.0, ge=0, description="factor of the share of A inside the earlier adapters' subspace; 0 off"
    )
    start: bool = Field(True, description="start A outside that subspace (with weight above 0)")


class ReplayKlSettings(_Settings):
    """KL(previous || new) on replayed answers, from the same pass as their own loss."""

    weight: float = Field(0.0, ge=0, description="factor of the KL term (nats a token); 0 turns it off")
    top_k: int | None = Field(
        None, ge=1, description="keep the teacher's k likeliest tokens and the rest as one; null: the full distribution"
    )


class DarkSettings(_Settings):
    """Replayed answers keep the logits that they had when they were learnt (DER++, Buzzega et al. 2020).

    The logits lie beside the adapter, and answers can be read from them: they are as private as the answers.
    """

    weight: float = Field(0.0, ge=0, description="factor of the squared distance of logits; 0 turns it off")
    top_k: int = Field(32, ge=1, description="logits kept of each position: the k largest")
    capacity: int = Field(2000, ge=1, description="examples whose logits are kept, newest first")


class ScheduleSettings(_Settings):
    """How an increment's learning rate and rank depend on how many increments came before it."""

    learning_rate: float = Field(
        1.0, gt=0, le=1, description="factor of every learning rate, once each earlier increment"
    )
    learning_rate_floor: float = Field(0.1, gt=0, le=1, description="the learning rate never falls below this share")
    rank: float = Field(1.0, gt=0, le=1, description="factor of the rank, once each earlier increment; alpha follows")
    rank_floor: int = Field(4, ge=1, description="the rank never falls below this")


class AnchorSettings(_Settings):
    """KL(teacher || new) on the teacher's own answers to everyday prompts: it keeps general ability.

    With the previous policy as the teacher, what one night loses is the next night's norm: the losses add up. With the
    base, every night is held to the same one, and what feedback changed in everyday answers is pulled back to it.
    """

    teacher: Literal["previous", "base"] = Field(
        "previous", description="whose everyday answers are kept: the previous policy's, or the base model's"
    )
    weight: float = Field(1.0, ge=0, description="factor of the KL term (nats a token); 0 turns the anchor off")
    rows_per_step: int = Field(4, ge=1, description="anchor conversations in an optimizer step")
    max_new_tokens: int = Field(24, ge=1, description="length of the teacher's answers")
    prompts: str | None = Field(None, description="JSONL with messages; the project's everyday prompts by default")
    top_k: int | None = Field(
        None, ge=1, description="keep the teacher's k likeliest tokens and the rest as one; null: the full distribution"
    )


class PatchSettings(_Settings):
    """A targeted patch: how small its adapter is, when it is done, and how little anything else may move.

    In bf16 a greedy answer changes where two tokens are nearly tied, whatever is rounded otherwise: random noise of
    0.4 % on SmolLM2-135M's `down_proj` weights changes a third of everyday answers of 16 tokens (`tie_share` of
    benchmarks/patch.py). So an answer that differs at a KL below `tie_kl` is counted and shown, and has not moved.
    """

    seed: int = Field(0, ge=0, lt=2**32)
    rank: int = Field(4, ge=1, description="rank of the patch's adapter")
    alpha: float = Field(8, gt=0, description="the update is alpha / rank * B A")
    layers: int = Field(10, ge=1, description="the adapter is in the last so many layers alone")
    targets: str | tuple[str, ...] | None = Field(None, description="module names; null: those of training.lora")
    damping: float = Field(0.01, gt=0, description="how sharply A starts away from the held prompts' inputs")
    learning_rate: float = Field(3e-3, gt=0)
    steps: int = Field(48, ge=1, description="optimizer steps at most")
    round: int = Field(4, ge=1, description="steps from one look at the answer to the next")
    nll: float = Field(0.3, gt=0, description="done once the right answer's NLL is below this (nats a token)")
    kl_weight: float = Field(50.0, gt=0, description="factor of KL(before || after) on the prompts that are held")
    rows_per_step: int = Field(12, ge=1, description="held prompts in an optimizer step")
    max_kl: float = Field(0.05, gt=0, description="above this KL on its own answer a prompt moved (nats a token)")
    tie_kl: float = Field(0.01, ge=0, description="up to this KL, another greedy answer is a near tie and no move")
    neighbours_may_move: float = Field(0.0, ge=0, le=1, description="share of the neighbouring prompts that may move")
    unrelated_may_move: float = Field(0.0, ge=0, le=1, description="share of the unrelated prompts that may move")
    neighbours: int = Field(8, ge=1, description="neighbouring prompts that are checked, and as many that are held")
    unrelated: int = Field(16, ge=1, description="unrelated prompts that are checked, and as many that are held")
    max_new_tokens: int = Field(16, ge=1, description="length of the answers that are compared")


class TrainingSettings(_Settings):
    """All that decides what an increment's adapter becomes, data aside."""

    seed: int = Field(0, ge=0, lt=2**32)
    precision: Literal["auto", "bf16", "fp32"] = Field(
        "auto", description="bf16 keeps the adapter itself in fp32; auto: bf16 where the machine computes it natively"
    )
    quantization: Literal["none", "nf4"] = Field("none", description="nf4: 4-bit base, stack concatenated, not folded")
    micro_batch: int | None = Field(None, ge=1, description="examples a process takes at once; batch_size by default")
    max_length: int = Field(512, ge=16, description="tokens; a longer example is left out and counted")
    max_grad_norm: float = Field(1.0, gt=0)
    save_steps: int = Field(50, ge=1, description="optimizer steps between checkpoints")
    growth: Literal["stack", "continue", "consolidate"] = Field(
        "stack",
        description="stack: a new adapter each increment; continue: the last one goes on with its optimizer state; "
        "consolidate: as stack, and all become one after consolidate_after",
    )
    consolidate_after: int = Field(
        4, ge=1, description="adapters above which a stack becomes one (growth: consolidate)"
    )
    consolidate_rank: int | None = Field(None, ge=1, description="rank of that one; null: exact, the sum of all ranks")
    frozen: Literal["fold", "concat", "live"] = Field(
        "fold",
        description="the earlier adapters: folded into the base's weights, one exact pair beside them (always with "
        "nf4), or each beside them (slow; to compare)",
    )
    lora: LoraSettings = LoraSettings()
    schedule: ScheduleSettings = ScheduleSettings()
    anchor: AnchorSettings = AnchorSettings()
    replay_kl: ReplayKlSettings = ReplayKlSettings()
    dark: DarkSettings = DarkSettings()
    ewc: EwcSettings = EwcSettings()
    orthogonal: OrthogonalSettings = OrthogonalSettings()
    phases: tuple[PhaseSettings, ...] = Field(
        (
            PhaseSettings(objective="dpo", learning_rate=1e-4, epochs=1),
            PhaseSettings(objective="kto", learning_rate=1e-4, epochs=1),
            PhaseSettings(objective="sft", learning_rate=1e-3, epochs=6),
        ),
        min_length=1,
    )

    @model_validator(mode="after")
    def _no_key_without_effect(self) -> Self:
        if self.lora.null_space is not None and self.anchor.weight == 0:
            raise ValueError(
                "expected anchor.weight above 0 with lora.null_space, which turns the adapter away from the anchor's "
                "conversations, found 0: set null_space to null"
            )
        if self.growth == "continue" and self.schedule.rank < 1:
            raise ValueError(
                f"expected schedule.rank 1 with growth: continue, whose one adapter keeps its rank, found "
                f"{self.schedule.rank:g}"
            )
        return self

    def passes(self, kind: Kind, rows: int) -> float:
        """The most epochs that a phase makes over so many rows of a kind; 0 where none trains on it."""
        return max((phase.passes(rows) for phase in self.phases if phase.kind == kind), default=0.0)

    @property
    def dtype(self) -> str:
        """What is computed in, and what the stack is served and measured in, once `auto` is decided."""
        return "bfloat16" if self.precision == "bf16" else "float32"

    def after(self, increments: int) -> TrainingSettings:
        """These settings for an increment with so many before it: learning rates and rank by their schedules."""
        told = self.schedule
        share = max(told.learning_rate**increments, told.learning_rate_floor)
        rank = max(round(self.lora.rank * told.rank**increments), min(told.rank_floor, self.lora.rank))
        phases = tuple(p.model_copy(update={"learning_rate": p.learning_rate * share}) for p in self.phases)
        lora = self.lora.model_copy(update={"rank": rank, "alpha": self.lora.alpha * rank / self.lora.rank})
        return self.model_copy(update={"phases": phases, "lora": lora})

    def at_dtype(self, dtype: str) -> TrainingSettings:
        """These settings with `precision: auto` decided: what goes with a stack in `dtype`."""
        if self.precision != "auto":
            return self
        return self.model_copy(update={"precision": "bf16" if dtype == "bfloat16" else "fp32"})
