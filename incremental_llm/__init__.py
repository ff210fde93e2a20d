"""incremental_llm: a chat model that learns from its feedback every night, and proves that nothing old was lost.

    import incremental_llm as illm
    from pathlib import Path

    with illm.Workspace.create(illm.load_config(Path("incremental.yaml"))) as workspace:
        workspace.import_feedback(Path("feedback.jsonl"))
        outcome = workspace.run()                    # compile, train, measure, gate, commit
        print(outcome.decision, *outcome.reasons, sep="\\n")

Stages are folders, in the order data moves: feedback, dataset, replay, training, evaluation, gate, registry, handoff.

The one design fact: importing this package costs no torch; what computes is imported when it computes.
"""

from __future__ import annotations

import importlib
import logging
import os
from typing import TYPE_CHECKING, Any

# TRL reports usage to its makers unless told not to. A nightly job on production data should not.
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")

# PEFT imports bitsandbytes, which on some CPUs warns that an optional kernel is not installed; 4-bit works without it.
# A filter on its logger needs neither package to be imported yet, and leaves every other record of it alone.
logging.getLogger("bitsandbytes.backends.cpu.ops").addFilter(
    lambda record: "Failed to load CPU gemm_4bit_forward" not in str(record.msg)
)

if TYPE_CHECKING:
    from incremental_llm.adapters.stack import Stack
    from incremental_llm.chat import Message
    from incremental_llm.config import RunConfig, load_config
    from incremental_llm.errors import IncrementalError
    from incremental_llm.pipeline import RunOutcome
    from incremental_llm.workspace import Workspace

__version__ = "0.1.0"

_PUBLIC = {
    "IncrementalError": "incremental_llm.errors",
    "Message": "incremental_llm.chat",
    "RunConfig": "incremental_llm.config",
    "RunOutcome": "incremental_llm.pipeline",
    "Stack": "incremental_llm.adapters.stack",
    "Workspace": "incremental_llm.workspace",
    "load_config": "incremental_llm.config",
}

__all__ = ["IncrementalError", "Message", "RunConfig", "RunOutcome", "Stack", "Workspace", "__version__", "load_config"]


def __getattr__(name: str) -> Any:
    if name in _PUBLIC:
        return getattr(importlib.import_module(_PUBLIC[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
