"""What a record weighs by the chance with which its replies were served, and by the age of who served them.

A reply that was drawn with probability p stands for 1/p requests (Horvitz & Thompson 1952). The largest weight is
capped, for a little bias and far less variance (Ionides 2008). An example that several records became has the mean of
theirs, and the weights of a kind, which is a phase of training, are divided by their mean: they say what counts more
and not how fast to learn (the self-normalised estimator, Swaminathan & Joachims 2015). What the weights cost is seen in
the effective sample size (Σw)² / Σw² (Kish 1965).

    drafts -> weigh -> (merged) -> normalise -> examples

A correction's own text was drawn by no policy: SFT examples keep their weights.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from math import prod

from pydantic import BaseModel, ConfigDict

from incremental_llm.dataset.batch import Batch, Draft, ReplyKey
from incremental_llm.dataset.examples import Example, Kind
from incremental_llm.feedback.events import Interaction
from incremental_llm.feedback.serving import serving_of

LEAST_AGED = 0.05
"""The least that a record counts for its age: what is old still says something."""

_VERSION = re.compile(r"(?P<name>.+)@v?(?P<version>\d{1,9})")


class Weighting(BaseModel):
    """How the records of a batch were weighed.

    `weighted` of `records` (pairs and unpaired, before duplicates became one) had a logged propensity, the others count
    1; `capped` reached the cap; `older` hold a reply of an older version than the newest. `effective` is the effective
    sample size of `records` by these weights alone.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    records: int
    weighted: int
    capped: int
    older: int
    effective: float

    @property
    def sentence(self) -> str:
        return (
            f"{self.weighted} of {self.records} pairs and verdicts weigh their inverse propensity ({self.capped} at "
            f"the cap), {self.older} less for their age: they tell as much as {self.effective:.0f} of equal weight"
        )


def weigh(
    drafts: Sequence[Draft], batch: Batch, policy_version: int | None = None
) -> tuple[list[Draft], Weighting | None]:
    """The drafts in their order, aged and with their inverse propensities; None where there was nothing to weigh by.

    A version above `policy_version`, production's, does not exist: it makes no other one old.
    """
    settings = batch.settings
    newest = _newest(batch.interactions.values(), policy_version)
    inverse: dict[int, float] = {}
    aged: dict[int, float] = {}
    records = [place for place, draft in enumerate(drafts) if draft.example.kind != "sft"]
    for place in records:
        served = [batch.interactions[name] for name in sorted(drafts[place].interactions)]
        propensity = _propensity(batch, served)
        if propensity is not None and settings.propensity_cap > 1:
            cap = settings.propensity_cap  # several small chances can multiply to 0, which has no inverse
            inverse[place] = cap if propensity <= 1 / cap else 1 / propensity
        behind = max((_behind(one, newest) for one in served), default=0)
        if behind and settings.policy_decay < 1:
            aged[place] = max(LEAST_AGED, settings.policy_decay**behind)
    if not inverse and not aged:
        return list(drafts), None
    kinds = {place: drafts[place].example.kind for place in records}
    means = _means((kinds[place], weight) for place, weight in inverse.items())
    factors = [inverse[n] / means[kinds[n]] * aged.get(n, 1.0) if n in inverse else aged.get(n, 1.0) for n in records]
    weighed = [replace(_aged(draft, aged.get(n, 1.0)), inverse=inverse.get(n)) for n, draft in enumerate(drafts)]
    return weighed, Weighting(
        records=len(records),
        weighted=len(inverse),
        capped=sum(weight == settings.propensity_cap for weight in inverse.values()),
        older=len(aged),
        effective=effective(factors),
    )


def merged_inverse(group: Iterable[Draft]) -> float | None:
    """The inverse propensity of the example that these records became: their mean, so that none speaks for all."""
    logged = [draft.inverse for draft in group if draft.inverse is not None]
    return sum(logged) / len(logged) if logged else None


def normalise(examples: Sequence[Example], inverse: Sequence[float | None]) -> list[Example]:
    """The examples with their weights multiplied by inverse propensities whose mean over each kind is 1."""
    given = zip(examples, inverse, strict=True)
    means = _means((example.kind, weight) for example, weight in given if weight is not None)
    return [
        example if weight is None else _times(example, weight / means[example.kind])
        for example, weight in zip(examples, inverse, strict=True)
    ]


def effective(weights: Iterable[float]) -> float:
    """The effective sample size (Σw)² / Σw²: as many records of equal weight tell as much; 0 for none."""
    listed = list(weights)
    squares = sum(weight * weight for weight in listed)
    return sum(listed) ** 2 / squares if squares else 0.0


def _propensity(batch: Batch, served: Sequence[Interaction]) -> float | None:
    """The chance that a record's replies were all served; of a reply that was served several times the largest one.

    None where it was logged for none of them.
    """
    logged: dict[ReplyKey, float] = defaultdict(float)
    for interaction in served:
        serving = serving_of(interaction.metadata)
        if serving is not None and serving.propensity is not None:
            key = batch.reply_key(interaction.id)
            logged[key] = max(logged[key], serving.propensity)
    return prod(logged.values()) if logged else None


def _means(weights: Iterable[tuple[Kind, float]]) -> dict[Kind, float]:
    of_kind: dict[Kind, list[float]] = defaultdict(list)
    for kind, weight in weights:
        of_kind[kind].append(weight)
    return {kind: sum(listed) / len(listed) for kind, listed in of_kind.items()}


def _newest(served: Iterable[Interaction], policy_version: int | None) -> dict[str, int]:
    newest: dict[str, int] = defaultdict(int)
    for interaction in served:
        name, version = _policy(interaction)
        if policy_version is None or version <= policy_version:
            newest[name] = max(version, newest[name])
    return newest


def _behind(served: Interaction, newest: Mapping[str, int]) -> int:
    """Versions between the policy of a reply and the newest one of its name in the batch."""
    name, version = _policy(served)
    return max(0, newest.get(name, 0) - version)


def _policy(served: Interaction) -> tuple[str, int]:
    serving = serving_of(served.metadata)
    policy = served.model if serving is None else serving.policy
    found = _VERSION.fullmatch(policy)
    return (found["name"], int(found["version"])) if found else (policy, 0)


def _aged(draft: Draft, factor: float) -> Draft:
    return replace(draft, example=_times(draft.example, factor))


def _times(example: Example, factor: float) -> Example:
    return example if factor == 1 else example.model_copy(update={"weight": example.weight * factor})
