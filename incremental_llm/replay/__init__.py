"""Replay: what an increment keeps of earlier ones, and how much of it the next one sees again.

    >>> from incremental_llm.dataset.examples import SftExample
    >>> from incremental_llm.chat import Message
    >>> def row(text):
    ...     prompt = (Message(role="user", content=text),)
    ...     return SftExample(prompt=prompt, completion="Yes.", sources=(f"event of {text}",), users=("u1",))
    >>> buffer = ReplayBuffer().updated([row(f"old {i}") for i in range(40)], increment=1, seed=0)
    >>> mix([row(f"new {i}") for i in range(64)], buffer, ReplaySettings(ratio=0.2, minimum=16), seed=0).sentence
    'Replay: +16 old rows interleaved (20.0 % of 80).'

Verbs: `ReplayBuffer.updated` (take in one increment), `ReplayBuffer.without` (forget what was superseded), `mix`
(interleave old rows into new ones), `anchor_prompts` (everyday prompts that hold general ability). A recipe picks one
of `POLICIES`: what stays in the buffer, and which of it is drawn.

The one design fact: the buffer is a value. Each verb returns a new one, the same seed gives the same one, and its JSON
is bit-identical after a round trip, so a snapshot pins it by digest and a rollback restores it.
"""

from incremental_llm.replay.anchor import anchor_prompts
from incremental_llm.replay.buffer import ReplayBuffer
from incremental_llm.replay.item import Facts, ReplayItem
from incremental_llm.replay.mixture import MixedExample, Mixture, Realised, mix
from incremental_llm.replay.policies import POLICIES
from incremental_llm.replay.settings import DEFAULT_CAPACITY, POLICY_NAMES, ReplaySettings
from incremental_llm.replay.shares import balanced_quotas

__all__ = [
    "DEFAULT_CAPACITY",
    "POLICIES",
    "POLICY_NAMES",
    "Facts",
    "MixedExample",
    "Mixture",
    "Realised",
    "ReplayBuffer",
    "ReplayItem",
    "ReplaySettings",
    "anchor_prompts",
    "balanced_quotas",
    "mix",
]
