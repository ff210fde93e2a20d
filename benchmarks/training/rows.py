"""The rows of the measurement, and TRL's options that were tried for each."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


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

    `allocator` gives the rival our setting of glibc's allocator, which is no option of TRL's: nothing of what is
    measured then comes from it.
    """

    attention: str = "sdpa"
    allocator: bool = True
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

TRIED = {
    "sft": SHIPPED | SFT,
    "depth": SFT,
    "qlora": SHIPPED | SFT,
    "uniform": SHIPPED | UNIFORM,
    "dpo": SHIPPED | PREFERENCES,
    "kto": SHIPPED | PREFERENCES,
    "dpo_300_100": SHIPPED | LONG_PAIRS,
    "dpo_100_400": SHIPPED | LONG_PAIRS,
}
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
