"""Dataset: a night's events become SFT examples, preference pairs and unpaired examples; nothing is lost silently.

The verbs are `compile_dataset`, `CompiledDataset.write` and `.read`, and `.account_table` for what came of it.

    >>> from incremental_llm.dataset import CompileSettings, compile_dataset
    >>> from incremental_llm.feedback import StoredEvent, parse_event
    >>> served = {"type": "interaction", "id": "i1", "time": "2026-11-01T12:00:00Z", "conversation": "c1", "user": "u1",
    ...           "messages": [{"role": "user", "content": "How long can I return boots?"}], "reply": "Two weeks.",
    ...           "model": "production@1"}
    >>> better = {"type": "correction", "id": "k1", "time": "2026-11-01T18:00:00Z", "interaction": "i1",
    ...           "reviewer": "r1", "content": "You can return boots within 30 days."}
    >>> events = [StoredEvent(seq, parse_event(event)) for seq, event in enumerate([served, better], 1)]
    >>> dataset = compile_dataset(events, CompileSettings())
    >>> dataset.sft[0].completion, dataset.pairs[0].rejected
    ('You can return boots within 30 days.', 'Two weeks.')
    >>> dataset.account
    {'i1': 'used', 'k1': 'used'}
    >>> left_out = compile_dataset(events, CompileSettings(), suite_texts=["How long can I return boots"])
    >>> left_out.account_table()[0]
    AccountRow(kind='sft', made=0, dropped={'in_suite': 1})

The one design fact: conflicts are settled by distinct people, never by the number of clicks, and the truth changes
only through a policy change; so whoever wants to teach the model something needs other people, or the right to.
"""

from incremental_llm.dataset.compile import Unfit, compile_dataset
from incremental_llm.dataset.compiled import USED, AccountRow, CompiledDataset
from incremental_llm.dataset.corrections import AcceptedCorrection
from incremental_llm.dataset.decontaminate import SuiteIndex
from incremental_llm.dataset.dedup import opponents
from incremental_llm.dataset.examples import (
    KINDS,
    Example,
    Kind,
    PairExample,
    SftExample,
    UnpairedExample,
    parse_example,
)
from incremental_llm.dataset.held_out import HeldOutReply, held_out_replies
from incremental_llm.dataset.propensity import Weighting
from incremental_llm.dataset.reasons import EVENT_REASONS, Drop, DropReason
from incremental_llm.dataset.representation import Representation, represent
from incremental_llm.dataset.settings import CompileSettings, SignalWeights

__all__ = [
    "EVENT_REASONS",
    "KINDS",
    "USED",
    "AcceptedCorrection",
    "AccountRow",
    "CompileSettings",
    "CompiledDataset",
    "Drop",
    "DropReason",
    "Example",
    "HeldOutReply",
    "Kind",
    "PairExample",
    "Representation",
    "SftExample",
    "SignalWeights",
    "SuiteIndex",
    "Unfit",
    "UnpairedExample",
    "Weighting",
    "compile_dataset",
    "held_out_replies",
    "opponents",
    "parse_example",
    "represent",
]
