"""What the trust controls found and did in one night: shares of loss weight, balance, suspicious phrases."""

from __future__ import annotations

from collections.abc import Iterator

from pydantic import BaseModel, ConfigDict, Field

from incremental_llm.dataset.examples import Kind
from incremental_llm.feedback.serving import absent


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Share(_Record):
    """The largest share of a kind's loss weight before and after scaling, over so many people or clusters.

    `cap` is what was asked for; `after` is above it where the cap could not be reached.
    """

    kind: Kind
    of: str = Field(description="people or messages")
    groups: int
    cap: float
    before: float
    after: float


class Balance(_Record):
    """Loss weight of desirable and undesirable examples, before and after scaling.

    `limit` is the ratio that was asked for, and `people` are the distinct ones, young accounts aside, on the side that
    has fewer; reports of before have neither.
    """

    desirable: float
    undesirable: float
    desirable_after: float
    undesirable_after: float
    limit: float | None = Field(None, exclude_if=absent)
    people: int | None = Field(None, exclude_if=absent)

    @property
    def reached(self) -> bool:
        """Whether no side has more than `limit` times the other, or there is only one."""
        less, more = sorted((self.desirable_after, self.undesirable_after))
        return not less or self.limit is None or more <= self.limit * less * (1 + 1e-4)


class Lift(_Record):
    """A phrase that is much more frequent in what would be taught than in what was served and taught before.

    `examples` of `taught` hold it, and `known` of `reference` texts (0 where too few people were served it); `score` is
    the log-likelihood ratio. `people` back it, `young` of them are young accounts. `held` says whether its examples
    were left out.
    """

    phrase: str
    score: float
    examples: int
    taught: int
    known: int
    reference: int
    people: int
    young: int
    held: bool


class TrustReport(_Record):
    """`young` counts the young accounts among the night's people; `young_share` is theirs of all loss weight."""

    people: int = 0
    young: int = 0
    young_share: float = 0.0
    shares: tuple[Share, ...] = ()
    balance: Balance | None = None
    lifts: tuple[Lift, ...] = ()

    def sentences(self) -> Iterator[str]:
        """What a person should look at, in words; nothing where nothing was done or found."""
        for share in self.shares:
            if share.before > share.cap + 1e-6:
                who = "the largest message" if share.of == "messages" else "the most active person"
                short = f"; the cap of {share.cap:.0%} was not reached" if share.after > share.cap + 1e-4 else ""
                told = f"{who} had {share.before:.0%} of the loss weight and has {share.after:.0%} now"
                yield f"{share.kind}: {told}{short}"
        sums = self.balance
        if sums is not None and (sums != _unscaled(sums) or not sums.reached):
            short = "" if sums.reached else f"; not within 1 to {sums.limit:g}, with {sums.people} people on one side"
            yield (
                f"desirable to undesirable loss weight was {sums.desirable:.4g} to {sums.undesirable:.4g}, now "
                f"{sums.desirable_after:.4g} to {sums.undesirable_after:.4g}{short}"
            )
        for lift in self.lifts:
            young = f", {lift.young} of them new" if lift.young else ""
            yield (
                f"{lift.phrase!r}: in {lift.examples} of {lift.taught} taught replies, of {lift.people} people{young}, "
                f"and in {lift.known} of {lift.reference} others{'; held' if lift.held else ''}"
            )


def _unscaled(balance: Balance) -> Balance:
    return balance.model_copy(update={"desirable_after": balance.desirable, "undesirable_after": balance.undesirable})
