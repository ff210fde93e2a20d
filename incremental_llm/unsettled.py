"""What a night leaves to people: the review queue as the recipe has it, and the questions that go into it."""

from __future__ import annotations

import logging

from incremental_llm.config import RunConfig
from incremental_llm.dataset import CompiledDataset
from incremental_llm.dataset.dedup import same_statement
from incremental_llm.dataset.unsure import unsure
from incremental_llm.feedback import FeedbackStore
from incremental_llm.feedback.review import ReviewQueue
from incremental_llm.pending import Pending

log = logging.getLogger(__name__)


def review_queue(store: FeedbackStore, config: RunConfig) -> ReviewQueue:
    """The queue in this store, by the recipe's settings; what says the same is decided as in a compile."""
    return ReviewQueue(store, config.review, same=same_statement)


def fill_unsettled(store: FeedbackStore, config: RunConfig, todo: Pending, dataset: CompiledDataset) -> int:
    """Put what this compile left to people into the queue; how many questions were new."""
    proposals = unsure(dataset, (*todo.context.values(), *todo.events), config.review.narrow)
    return review_queue(store, config).add(proposals)


def left_to_people(store: FeedbackStore, config: RunConfig, todo: Pending, dataset: CompiledDataset) -> str:
    """As `fill_unsettled`, in words; empty where nothing is to review. A queue that fails does not stop a night."""
    try:
        new = fill_unsettled(store, config, todo, dataset)
        counts = review_queue(store, config).counts(seeds=False)
    except Exception as error:  # whatever it is: the night is good without it
        log.exception("the review queue could not be filled")
        return f"the review queue could not be filled ({type(error).__name__}): illm review fill tries it again"
    waiting = sum(count for state, count in counts.items() if state != "done")
    return f"{waiting} to review, {new} of them new: illm review list" if waiting else ""
