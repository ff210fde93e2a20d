"""Which policy answers a request: an exploring share with known chances, and who is kept for evaluation.

Feedback on what a single policy says cannot tell what another one would have got. So a small share of requests is
answered by a policy that is drawn at random, the chance is logged with the reply, and the records weigh its inverse.

    >>> chosen = choose("request-4711", ["production@7", "production@8"], share=0.1)
    >>> chosen.policy, chosen.propensity, chosen.explored
    ('production@7', 0.95, False)
    >>> choose("request-4711", ["production@7", "production@8"], share=0.1) == chosen
    True

The one design fact: chance is a hash of the name, so a retried request gets the same policy, and every server agrees on
who is held out without asking another.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from incremental_llm.errors import InputError

_RESOLUTION = 2**53  # the integers that a float holds exactly


@dataclass(frozen=True)
class Chosen:
    """The policy of a request, and the chance in (0, 1] with which it was going to be this one."""

    policy: str
    propensity: float
    explored: bool

    def serving(self, **more: Any) -> dict[str, Any]:
        """The `serving` block of the interaction's metadata; `more` are its other fields, such as `sampling`."""
        return {"policy": self.policy, "propensity": self.propensity, "explored": self.explored, **more}


def choose(request: str, policies: Sequence[str], share: float, seed: int = 0) -> Chosen:
    """The policy that answers `request`: the first one, but for a `share` of requests one of all of them by chance.

    This is epsilon-greedy with epsilon = `share`: of k policies the first has the propensity 1 - share + share / k,
    each other one share / k. Of a policy with propensity 0 nothing could be learnt, so none is named without a share.

    Args:
        request: a name of the request, or of the conversation where one policy should answer all of it.
        seed: another one draws other requests.

    Raises:
        InputError: no policies, one named twice, or a share that is not in [0, 1] or is 0 with several policies.
    """
    if not policies or len(set(policies)) < len(policies):
        raise InputError(f"exploration: expected different policies, found {list(policies)}. Name each one once.")
    if not 0 <= share <= 1 or (share == 0 and len(policies) > 1):
        raise InputError(
            f"exploration: expected a share above 0 and up to 1 for {len(policies)} policies, found {share}. "
            "Without a share name one policy."
        )
    explored = chance(request, f"explore {seed}") < share
    place = int(chance(request, f"which {seed}") * len(policies)) if explored else 0
    propensity = share / len(policies) + (1 - share if place == 0 else 0.0)
    return Chosen(policies[place], propensity, explored)


def is_held_out(conversation: str, share: float, salt: str = "") -> bool:
    """Whether a conversation is in the random sample that is kept for evaluation.

    The sample of a larger share holds that of a smaller one. Where clients name their conversations, a secret `salt`
    keeps them from choosing a name that is in the sample, or is not.
    """
    return share > 0 and chance(conversation, f"held out {salt}".strip()) < share


def chance(name: str, purpose: str) -> float:
    """A number in [0, 1) that is uniform over names, the same for the same name, independent between purposes."""
    digest = hashlib.sha256(f"{purpose}\n{name}".encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(digest[:8]) % _RESOLUTION / _RESOLUTION
