"""How a reply came to be served: the optional block `metadata["serving"]` of an interaction.

    {"policy": "production@7", "sampling": {"temperature": 0.7, "top_p": 0.9, "seed": 1},
     "propensity": 0.05, "explored": true, "logprob": -12.3}

The one design fact: it is checked strictly where an event comes in, and read leniently from the log. A propensity that
is wrong would be a weight that is wrong; what an older log kept under that name stays readable, and weighs nothing
where it is no such block.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

BLOCK = "serving"
"""The key of the block in an interaction's metadata."""

LEAST_PROPENSITY = 1e-6
"""The smallest propensity that is taken in: no server draws a policy for one request in more than a million."""

Setting = Annotated[bool | int | float | str | None, Field(union_mode="smart")]


def absent(value: object) -> bool:
    """Whether something was not logged; it is then left out of the JSON."""
    return value is None


class Sampling(BaseModel):
    """How the reply was drawn; other settings of the server are kept as they are, if they are plain values."""

    model_config = ConfigDict(frozen=True, extra="allow", strict=True, allow_inf_nan=False)
    __pydantic_extra__: dict[str, Setting]

    temperature: float | None = Field(None, ge=0, exclude_if=absent)
    top_p: float | None = Field(None, gt=0, le=1, exclude_if=absent)
    seed: int | None = Field(None, exclude_if=absent)


class Serving(BaseModel):
    """Who answered and by what chance.

    `policy` is a version such as production@7; `propensity` the probability, in (0, 1], with which this request was
    given that policy; `explored` whether it was the exploring share that chose; `logprob` the natural log of the
    probability of the whole reply under the sampling settings.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    policy: str = Field(min_length=1, max_length=200)
    sampling: Sampling | None = Field(None, exclude_if=absent)
    propensity: float | None = Field(None, gt=0, le=1, exclude_if=absent)
    explored: bool | None = Field(None, exclude_if=absent)
    logprob: float | None = Field(None, le=0, exclude_if=absent)


class _Incoming(Serving):
    propensity: float | None = Field(None, ge=LEAST_PROPENSITY, le=1, exclude_if=absent)


class _IncomingBlock(BaseModel):
    """Metadata as far as this block goes, so that an error says where it stands."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    serving: _Incoming | None = None


def check_serving(metadata: Mapping[str, Any]) -> None:
    """Raises pydantic's ValidationError where there is a block that does not fit, such as too small a propensity."""
    if BLOCK in metadata:
        _IncomingBlock.model_validate({BLOCK: metadata[BLOCK]})


def serving_fits(metadata: Mapping[str, Any]) -> bool:
    """Whether `check_serving` has nothing to say."""
    try:
        check_serving(metadata)
    except ValidationError:
        return False
    return True


def serving_of(metadata: Mapping[str, Any]) -> Serving | None:
    """The block of an interaction's metadata; None where there is none, or one that does not fit."""
    if metadata.get(BLOCK) is None:
        return None
    try:
        return Serving.model_validate(metadata[BLOCK])
    except ValidationError:
        return None
