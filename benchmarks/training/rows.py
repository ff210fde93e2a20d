"""The rows of the measurement, and TRL's options that were tried for each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

Precision = Literal["fp32", "bf16"]


@dataclass(frozen=True)
class Shape:
    """One kind of step. `lengths`: (prompt, completion) in tokens, or the demo's own chats."""

    objective: str
    batch_size: int = 8
    lengths: tuple[int, int] | None = None
    uniform: int | None = None
    quantization: str = "none"
    steps: int = 3  # in a timed block


SHAPES = {
    "sft": Shape("sft"),
    "depth": Shape("sft"),
    "dpo": Shape("dpo"),
    "kto": Shape("kto"),
    "qlora": Shape("sft", quantization="nf4"),
    "dpo_300_100": Shape("dpo", batch_size=2, lengths=(300, 100), steps=1),
    "dpo_100_400": Shape("dpo", batch_size=2, lengths=(100, 400), steps=1),
    "uniform": Shape("sft", uniform=72),
}


@dataclass(frozen=True)
class Variant:
    """One way to run TRL. `options` go to its config; `attention` to the model.

    `precision` is its weights' and its autocast's; adapters are fp32 with both, which is PEFT's own default.
    `allocator` gives the rival our setting of glibc's allocator, which is no option of TRL's: nothing of what is
    measured then comes from it.
    """

    attention: str = "sdpa"
    allocator: bool = True
    precision: Precision = "fp32"
    options: dict[str, Any] = field(default_factory=dict)


_FREE: dict[str, Any] = {"gradient_checkpointing": False}
_ONCE = _FREE | {"precompute_ref_log_probs": True}
_FLAT = _FREE | {"padding_free": True, "max_length": None}

SHIPPED = {"shipped": Variant(allocator=False)}
SFT = {
    "allocator": Variant(),
    "no checkpointing": Variant(options=_FREE),
    "no checkpointing, eager attention": Variant("eager", options=_FREE),
    "no checkpointing, eager, batch in one line": Variant("eager", options=_FLAT),
    "no checkpointing, sdpa, batch in one line": Variant(options=_FLAT),
    "no checkpointing, eager, 2 rows at a time": Variant(
        "eager", options=_FREE | {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 4}
    ),
}
UNIFORM = {name: SFT[name] for name in ("no checkpointing", "no checkpointing, eager attention")}
PREFERENCES = {
    "no checkpointing": Variant(options=_FREE),
    "no checkpointing, stored reference": Variant(options=_ONCE),
    "no checkpointing, stored reference, eager attention": Variant("eager", options=_ONCE),
}
LONG_PAIRS = PREFERENCES | {
    "no checkpointing, stored reference, eager, 1 pair at a time": Variant(
        "eager", options=_ONCE | {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 4}
    ),
}

_ROWS: dict[str, dict[str, Variant]] = {
    "sft": SHIPPED | SFT,
    "depth": SFT,
    "qlora": SHIPPED | SFT,
    "uniform": SHIPPED | UNIFORM,
    "dpo": SHIPPED | PREFERENCES,
    "kto": SHIPPED | PREFERENCES,
    "dpo_300_100": SHIPPED | LONG_PAIRS,
    "dpo_100_400": SHIPPED | LONG_PAIRS,
}


def _in_both(variants: Mapping[str, Variant]) -> dict[str, Variant]:
    """Every variant in fp32 and, marked by its name, in bf16."""
    return {**variants, **{f"{name}, bf16": replace(one, precision="bf16") for name, one in variants.items()}}


VARIANTS = {row: _in_both(variants) for row, variants in _ROWS.items()}


def tried(row: str, native: Precision) -> list[str]:
    """The options that are searched on a machine that computes `native` itself.

    Where bf16 is emulated, TRL's own default of bf16 would be the weaker rival by far (thirty times slower products):
    it is left out, and TRL as shipped runs in fp32 as well.
    """
    return [name for name, one in VARIANTS[row].items() if native == "bf16" or one.precision == "fp32"]


def shipped(native: Precision) -> str:
    """TRL as it comes: bf16, unless that is emulated."""
    return "shipped, bf16" if native == "bf16" else "shipped"


BEST = {  # the fastest found; a full run searches again
    "sft": "no checkpointing",
    "depth": "no checkpointing",
    "qlora": "no checkpointing",
    "uniform": "no checkpointing",
    "dpo": "no checkpointing, stored reference",
    "kto": "no checkpointing, stored reference",
    "dpo_300_100": "no checkpointing, stored reference",
    "dpo_100_400": "no checkpointing, stored reference",
}
