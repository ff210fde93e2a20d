"""Why something did not become training data: the reasons, counted, and the record of each drop."""

from __future__ import annotations

from enum import StrEnum

from pydantic import BaseModel, ConfigDict

from incremental_llm.dataset.examples import Kind


class DropReason(StrEnum):
    """Why an example, or what would have become one, was left out.

    An event that several drops name is accounted for by the one that stands first here.
    """

    SUPERSEDED = "superseded"
    """A policy change names one of its events."""
    NOT_AUTHORISED = "not_authorised"
    """A policy change by someone who is not in `policy_reviewers`."""
    PERSONAL_DATA = "personal_data"
    """An e-mail address, phone number, card, IBAN or network address in the prompt or a reply."""
    IN_SUITE = "in_suite"
    """The question stands in an evaluation suite, exactly or nearly, or a text shares 13 words in a row with one."""
    HELD_OUT = "held_out"
    """Its conversation is in the random sample that is kept for evaluation."""
    UNPARSABLE = "unparsable"
    """An empty reply, or a prompt that does not end with a user's words."""
    TOO_LONG = "too_long"
    """More characters than the settings allow."""
    SPECIAL_TOKEN = "special_token"
    """Holds one of the tokenizer's special tokens as text: it would be read as the end of a turn, say, not as words."""
    NO_TEMPLATE = "no_template"
    """The base's chat template cannot write it, such as two turns of the user in a row for some."""
    TOO_MANY_TOKENS = "too_many_tokens"
    """Prompt and reply together are longer than `training.max_length`."""
    CONTRADICTS_ACCEPTED = "contradicts_accepted"
    """Says of the same prompt something else than an accepted correction, without a policy change."""
    CONTRADICTS_CORRECTION = "contradicts_correction"
    """Praises a reply that a reviewer corrected in this batch, or blames the one that the reviewer wrote."""
    NO_QUORUM = "no_quorum"
    """Reviewers disagree on the right reply, and none has more than half of them."""
    ONE_SIDED_USER = "one_sided_user"
    """From a user who gave many thumbs, all of them down."""
    OVER_USER_CAP = "over_user_cap"
    """More thumbs than one user may give in a batch, or more implicit signals."""
    OVER_PAIR_CAP = "over_pair_cap"
    """A reply in no pair: the thumbs on its prompt gave as many as one prompt may give."""
    OVER_TOPIC_CAP = "over_topic_cap"
    """More events of one user on one topic than count in a batch."""
    SUSPICIOUS_LIFT = "suspicious_lift"
    """The reply holds a phrase that many examples of few people teach, and hardly anything said before."""
    YOUNG_ACCOUNTS = "young_accounts"
    """Several new accounts say so, and nobody else: they never decide alone."""
    NO_PAIR_QUORUM = "no_pair_quorum"
    """Fewer users than `trust.pair_quorum` stand behind the pair."""
    CONFLICT = "conflict"
    """Users disagree, and no side has the margin over the other."""
    OUTVOTED = "outvoted"
    """Users or reviewers disagree, and more of them are on the other side."""
    REPLACED = "replaced"
    """The same person said something else of the same reply later."""
    SAME_REPLY = "same_reply"
    """Both replies of a pair say the same: nothing to prefer."""
    DIFFERENT_PROMPTS = "different_prompts"
    """A preference between replies to different prompts."""
    DIFFERENT_PEOPLE = "different_people"
    """A rephrase event that names questions of two people, or of two conversations: nobody asked again."""
    SECOND_ANSWER_FAILED = "second_answer_failed"
    """The answer to a rephrased question was thumbed down or corrected too."""
    SAID_OUTRIGHT = "said_outright"
    """An implicit signal on a reply that somebody judges in words or by a thumb: what people say counts."""
    NO_WEIGHT = "no_weight"
    """The settings give its signal no weight."""
    DUPLICATE = "duplicate"
    """Equal to another example but for case, spaces and punctuation; its sources and users count there."""
    NEAR_DUPLICATE = "near_duplicate"
    """Equal to another example but for filler, and typing errors in the question; its sources and users count there."""
    SEMANTIC_DUPLICATE = "semantic_duplicate"
    """Another example gives the same reply to a question that means the same; its sources and users count there."""


SEVERITY = {reason: place for place, reason in enumerate(DropReason)}
"""Place of a reason in the enum: of several the lowest accounts for an event."""

EVENT_REASONS = ("no_feedback", "unknown_type", "missing_interaction")
"""Why an event gave nothing without a drop: nobody judged it, its type is unknown, what it judges is not here."""


class Drop(BaseModel):
    """One example that was not made, or not kept: what it would have been, why not, from which events and users."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Kind
    reason: DropReason
    sources: tuple[str, ...]
    users: tuple[str, ...]
