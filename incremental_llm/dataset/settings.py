"""The settings of a compile, each with its unit and default."""

from __future__ import annotations

from functools import partial
from operator import eq
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from incremental_llm.dataset.trust_settings import TrustSettings
from incremental_llm.feedback.events import Abandon, Copy, Correction, Event, Preference, Ranking, Rephrase, Thumb


def _later(default: Any, **told: Any) -> Any:
    """A setting that came later: not written down where it is the default, so that digests stay what they were."""
    return Field(default=default, exclude_if=partial(eq, default), **told)


class SignalWeights(BaseModel):
    """Weight of one example by what it was made from: a factor on its loss, 1 is plain, 0 trains nothing."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    correction: float = Field(default=1.0, ge=0, description="SFT example and pair from a correction")
    thumb: float = Field(default=1.0, ge=0, description="unpaired example from thumbs")
    thumb_pair: float = Field(default=1.0, ge=0, description="pair from an up and a down on the same prompt")
    preference: float = Field(default=1.0, ge=0, description="pair from a preference")
    rephrase: float = Field(default=0.5, ge=0, description="pair and unpaired example from a question asked again")
    ranking: float = _later(1.0, ge=0, description="all pairs of a ranking together")
    copied: float = _later(0.2, ge=0, description="desirable example from a reply that was copied")
    repeated: float = _later(0.0, ge=0, description="undesirable example from a question asked again word for word")
    abandoned: float = _later(0.0, ge=0, description="undesirable example from a reply at which the user left")

    def of(self, event: Event) -> float:
        """The largest weight of anything that a feedback event can become; 1 for other events."""
        match event:
            case Thumb():
                return max(self.thumb, self.thumb_pair)
            case Correction():
                return self.correction
            case Preference():
                return self.preference
            case Rephrase():
                return self.rephrase
            case Ranking():
                return self.ranking
            case Copy():
                return self.copied
            case Abandon():
                return self.abandoned
            case _:
                return 1.0


class CompileSettings(BaseModel):
    """How events become examples.

    An example that n distinct users stand behind weighs its signal's weight times
    `min(user_weight_cap, 1 + user_weight_step * (n - 1))`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    weights: SignalWeights = Field(default=SignalWeights(), description="weight of an example by its signal")
    user_weight_step: float = Field(
        default=0.25, ge=0, description="added to the factor for every further distinct user"
    )
    user_weight_cap: float = Field(default=2.0, ge=1, description="largest factor that many users can give")

    detect_rephrases: bool = Field(default=True, description="find questions asked again that no event names")
    rephrase_window_seconds: float = Field(
        default=180.0, ge=0, description="seconds from the first question to the second"
    )
    rephrase_similarity_min: float = Field(
        default=70.0,
        ge=0,
        le=100,
        description="token-set similarity from which two questions are the same in other words",
    )
    rephrase_similarity_max: float = Field(
        default=100.0, ge=0, le=100, description="token-set similarity up to which they are; equal questions never are"
    )

    rephrase_embeddings: str | None = _later(
        None, description="folder of a model2vec model that finds more than the words do; nothing is downloaded"
    )
    rephrase_proposal_min: float = _later(
        40.0, ge=0, le=100, description="token-set similarity from which two questions are shown to that model"
    )
    rephrase_cosine_min: float = _later(
        0.9, ge=-1, le=1, description="cosine of that model from which two questions are the same in other words"
    )

    duplicate_embeddings: str | None = _later(
        None, description="folder of a model2vec model that finds questions of one meaning; nothing is downloaded"
    )
    duplicate_cosine_min: float = _later(
        0.95, ge=-1, le=1, description="cosine of that model from which two questions with the same reply are one"
    )

    held_out_share: float = _later(
        0.0, ge=0, lt=1, description="share of conversations that are never trained on, kept for evaluation"
    )
    held_out_salt: str = _later(
        "", description="secret that draws the held-out conversations, where clients choose their names"
    )
    propensity_cap: float = _later(
        10.0, ge=1, description="largest weight 1/propensity of a reply whose propensity was logged; 1 weighs none"
    )
    policy_decay: float = _later(
        1.0, gt=0, le=1, description="factor on a record for each version that its replies are behind the newest one"
    )

    user_thumb_cap: int = Field(
        default=100,
        ge=1,
        description="thumbs of one user that count in a batch, earliest first; as many of what the user did",
    )
    one_sided_minimum: int = Field(
        default=8, ge=1, description="replies from which a user with only thumbs down is left out"
    )
    prompt_pair_cap: int = Field(default=4, ge=1, description="pairs that the thumbs on one prompt can give")

    max_prompt_chars: int = Field(default=8000, ge=1, description="characters of all messages of a prompt")
    max_completion_chars: int = Field(default=4000, ge=1, description="characters of one reply")
    personal_data_in_prompts: Literal["replace", "drop", "keep"] = Field(
        default="replace",
        description="addresses, phones, cards, handles, secrets: a placeholder such as [EMAIL] instead",
    )
    personal_data_in_replies: Literal["replace", "drop", "keep"] = Field(
        default="drop", description="replace: the model is taught to say [EMAIL] and the like"
    )
    public_texts: tuple[str, ...] = Field(
        default=(), description="what is nobody's secret, such as the shop's own address; finds that hold one stay"
    )
    suite_similarity: float = Field(
        default=95.0, gt=0, le=100, description="similarity (Indel ratio) from which a question stands in a suite"
    )

    # Not `_later`: it changes what a night is made of by default, so recipes that name it or not have another digest
    # than before there was any, and one that turns it off must not be written down as one that says nothing.
    trust: TrustSettings = Field(default=TrustSettings(), description="how far few people can move a night")

    policy_reviewers: frozenset[str] = Field(
        default=frozenset(), description="reviewers whose policy changes count; nobody's by default"
    )

    def may_change_policy(self, reviewer: str) -> bool:
        """Whether policy changes of this reviewer count."""
        return reviewer in self.policy_reviewers

    @model_validator(mode="before")
    @classmethod
    def _one_switch_before(cls, given: Any) -> Any:
        """`drop_personal_data` of recipes and datasets made before there were two settings and placeholders."""
        if not isinstance(given, dict) or "drop_personal_data" not in given:
            return given
        told = dict(given)
        what = "drop" if told.pop("drop_personal_data") else "keep"
        return {"personal_data_in_prompts": what, "personal_data_in_replies": what, **told}

    @model_validator(mode="after")
    def _a_band(self) -> Self:
        if self.rephrase_similarity_min > self.rephrase_similarity_max:
            raise ValueError("rephrase_similarity_min is above rephrase_similarity_max: no question would ever match")
        return self
