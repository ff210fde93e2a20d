"""How several adapters become one, as data. No torch here."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

Method = Literal["sum", "ties", "dare", "dare_ties", "magnitude"]


class MergeSettings(BaseModel):
    """The method, and how large its result may be.

    With `rank` and `error` both, it is the smallest rank within the error, and never above the rank.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    method: Method = Field(
        "sum",
        description="sum: what the stack computes, exact unless rank or error say otherwise; magnitude: the largest "
        "entries of each delta; ties: those, where most weight agrees on the sign; dare: entries drawn at random, "
        "rescaled; dare_ties: both",
    )
    rank: int | None = Field(None, ge=1, description="the largest rank of the one; null: the sum of all ranks")
    error: float | None = Field(
        None, ge=0, lt=1, description="take the smallest rank within this relative Frobenius error; null: the largest"
    )
    density: float = Field(0.5, gt=0, le=1, description="share of each delta's entries that every other method keeps")
    seed: int = Field(0, ge=0, lt=2**32, description="of dare's draw")

    @model_validator(mode="after")
    def _no_key_without_effect(self) -> Self:
        effects = {"density": self.method != "sum", "seed": self.method.startswith("dare")}
        for key, has_effect in effects.items():
            found = getattr(self, key)
            if not has_effect and found != type(self).model_fields[key].default:
                raise ValueError(f"expected {key} with a method that it has an effect on, found it with {self.method}")
        return self
