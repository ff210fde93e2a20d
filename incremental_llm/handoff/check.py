"""How far a model is from the one it should equal, measured on the logits of a few prompts.

Shapes: T tokens of one prompt, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from incremental_llm.adapters.lora import LoraAdapter, delta
from incremental_llm.chat import Conversation, Message, as_dicts
from incremental_llm.errors import InputError, IntegrityError

Logits = Callable[[torch.Tensor], torch.Tensor]
"""Token ids (1 x T) to logits (1 x T x V), on any device, in any float dtype."""


def _asked(text: str) -> Conversation:
    return (Message(role="user", content=text),)


PROBES: tuple[Conversation, ...] = (
    _asked("What is the capital of Portugal?"),
    _asked("Write a short note that thanks a colleague for covering a shift."),
    _asked("What is 17 plus 26? Answer with the number only."),
    _asked("My parcel has not arrived yet. What should I do?"),
    _asked("Name three things to pack for a day of hiking in the rain."),
    (
        Message(role="system", content="You answer in one sentence."),
        Message(role="user", content="How do I clean a rain jacket?"),
        Message(role="assistant", content="Wash it cold with a mild soap and let it dry in the air."),
        Message(role="user", content="And can it go in the dryer?"),
    ),
)
"""Prompts that any chat model can be asked; a shop's own prompts may be given instead."""


@dataclass(frozen=True)
class Tolerance:
    """The largest difference that is accepted: |logit - logit| anywhere, and mean KL in nats per token."""

    max_abs_logit: float
    mean_kl: float


# Measured on a 135M model with three random rank-16 adapters of 1 % of the weight's norm each: the exact sum against
# the fold gave 1.25 and 0.0029 in bfloat16, 1e-4 and 1.5e-11 in float32. A trained adapter is larger and rounds more:
# 4.97 and 0.0195 in bfloat16 at a learning rate of 3e-3 (tests/end_to_end/test_real_model.py). So in bfloat16 this
# catches a wrong base, template or scaling; a wrong adapter of small effect is for `require_same_deltas` to catch.
TOLERANCES = {
    "float32": Tolerance(max_abs_logit=5e-3, mean_kl=1e-7),
    "bfloat16": Tolerance(max_abs_logit=10.0, mean_kl=5e-2),
    "float16": Tolerance(max_abs_logit=1.0, mean_kl=2e-3),
}
"""The accepted difference for each dtype a stack is served in, several times what is measured for a right export."""

UNBOUNDED = Tolerance(math.inf, math.inf)
"""For an export whose deltas were changed on request: its logits are measured and have to be numbers, no more."""


def coarser(one: Tolerance, other: Tolerance) -> Tolerance:
    """What both accept together."""
    return Tolerance(max(one.max_abs_logit, other.max_abs_logit), max(one.mean_kl, other.mean_kl))


@dataclass(frozen=True)
class LogitCheck:
    """What was measured over `tokens` positions of `probes` prompts.

    `max_abs_logit`: largest absolute difference of two logits. `mean_kl`: mean over positions of
    KL(reference || candidate) in nats. `same_top`: share of positions with the same most likely token, 0 to 1.
    """

    max_abs_logit: float
    mean_kl: float
    same_top: float
    probes: int
    tokens: int

    def require(self, tolerance: Tolerance, what: str) -> None:
        """Raises IntegrityError where a difference is above `tolerance`, or is not a number."""
        within = self.max_abs_logit <= tolerance.max_abs_logit and self.mean_kl <= tolerance.mean_kl
        if not within:  # also for NaN, which no comparison accepts
            raise IntegrityError(
                f"{what}: expected the logits of the stack within {tolerance.max_abs_logit:g} and a mean KL of at most "
                f"{tolerance.mean_kl:g}, found {self.max_abs_logit:.3g} and {self.mean_kl:.3g} over {self.tokens} "
                "tokens. Nothing was exported: check that base and adapters are those of this stack, and that the "
                "reference is served in the stack's dtype."
            )


ROUNDING = 1e-5
"""Relative error of a delta up to which it counts as the same: sums of some hundred products in fp32."""


def relative_error(exported: LoraAdapter, adapters: Sequence[LoraAdapter]) -> float:
    """How far `exported` is from the sum of `adapters`: Frobenius norm over all modules, 0 (exact) to about 1."""
    lost = total = 0.0
    for _name, expected_OI, found_OI in _deltas(exported, adapters):
        lost += float((expected_OI - found_OI).double().square().sum())
        total += float(expected_OI.double().square().sum())
    return math.sqrt(lost / total) if total else math.sqrt(lost)


def require_same_deltas(exported: LoraAdapter, adapters: Sequence[LoraAdapter], what: str) -> None:
    """Raises IntegrityError unless every module's delta is the sum of those of `adapters`, up to fp32's rounding."""
    for name, expected_OI, found_OI in _deltas(exported, adapters):
        gap = (expected_OI - found_OI).abs().max().item()
        if not gap <= ROUNDING * expected_OI.abs().max().item():  # also for NaN
            parts = sum(name in adapter.modules for adapter in adapters)
            raise IntegrityError(
                f"{what}: expected the sum of {parts} deltas at {name}, found one that differs by {gap:.3g}. "
                "Nothing was exported: verify the registry."
            )


def _deltas(exported: LoraAdapter, adapters: Sequence[LoraAdapter]) -> Iterator[tuple[str, torch.Tensor, torch.Tensor]]:
    """Each module with the sum of its deltas (O x I) and the exported one, 0 where there is none."""
    for name in sorted(exported.modules.keys() | {name for adapter in adapters for name in adapter.modules}):
        parts = [delta(adapter, name) for adapter in adapters if name in adapter.modules]
        expected_OI = torch.stack(parts).sum(0) if parts else torch.zeros(())
        yield name, expected_OI, delta(exported, name) if name in exported.modules else torch.zeros(())


def require_same_weights(exported: torch.nn.Module, reference: torch.nn.Module, what: str) -> None:
    """Raises IntegrityError unless both models have the same weights, bit for bit."""
    expected, found = reference.state_dict(), exported.state_dict()
    differing = sorted(expected.keys() ^ found.keys())
    differing += [name for name in expected.keys() & found.keys() if not _equal(expected[name], found[name])]
    if differing:
        raise IntegrityError(
            f"{what}: expected the weights of the stack that was measured, found others at {len(differing)} places, "
            f"such as {differing[0]}. Nothing was exported: verify the registry."
        )


def _equal(one: torch.Tensor, other: torch.Tensor) -> bool:
    same: bool = one.dtype == other.dtype and torch.equal(one.cpu(), other.cpu())
    return same


def logits_of(model: Any) -> Logits:
    """A model's logits as a function; a function is returned as it is."""
    if not isinstance(model, torch.nn.Module):
        return model  # type: ignore[no-any-return]

    def run(ids_1T: torch.Tensor) -> torch.Tensor:
        device = next(model.parameters()).device
        with torch.inference_mode():
            output = model(input_ids=ids_1T.to(device), attention_mask=torch.ones_like(ids_1T).to(device))
        return output.logits

    return run


def probe_ids(tokenizer: Any, probes: Sequence[Conversation]) -> list[torch.Tensor]:
    """Each probe as token ids (1 x T) through the chat template, with the opening of the reply.

    Raises:
        InputError: no probes: what was not measured is never a pass.
    """
    if not probes:
        raise InputError("expected at least one probe prompt to compare logits on, found none. Leave `probes` out.")
    ids = []
    for probe in probes:
        encoded = tokenizer.apply_chat_template(
            as_dicts(probe), add_generation_prompt=True, return_tensors="pt", return_dict=True
        )
        ids.append(encoded["input_ids"])
    return ids


def compare_logits(reference: Any, candidate: Any, probes_1T: Sequence[torch.Tensor]) -> LogitCheck:
    """Compare two models (or `Logits` functions) on token ids; sums in float64, one prompt in memory at a time.

    Raises:
        IntegrityError: the two have logits of different shapes.
    """
    expected, found = logits_of(reference), logits_of(candidate)
    largest, kl, same, tokens = 0.0, 0.0, 0, 0
    for ids_1T in probes_1T:
        p_TV, q_TV = (run(ids_1T)[0].detach().double().cpu() for run in (expected, found))
        if p_TV.shape != q_TV.shape:
            raise IntegrityError(
                f"expected logits of shape {tuple(p_TV.shape)}, found {tuple(q_TV.shape)}: not the same model."
            )
        difference = float((p_TV - q_TV).abs().max())
        largest = math.nan if math.isnan(difference) else max(largest, difference)
        if math.isnan(largest):
            return LogitCheck(math.nan, math.nan, 0.0, len(probes_1T), tokens)
        p_log_TV, q_log_TV = p_TV.log_softmax(-1), q_TV.log_softmax(-1)
        kl += float((p_log_TV.exp() * (p_log_TV - q_log_TV)).sum())
        same += int((p_TV.argmax(-1) == q_TV.argmax(-1)).sum())
        tokens += p_TV.shape[0]
    return LogitCheck(largest, kl / tokens, same / tokens, len(probes_1T), tokens)
